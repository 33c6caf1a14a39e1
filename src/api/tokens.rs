//! Join tokens, as documents and as what can be asked. No document but the one of a token just made
//! may carry a secret.

use async_trait::async_trait;
use flocker_base::{Name, TokenId};
use serde::{Deserialize, Serialize};

use super::Schema;
use super::error::ApiError;

/// What can be asked about join tokens.
#[async_trait]
pub trait TokenOperations: Send + Sync + 'static {
    /// Makes a join token, with the line to run on the next node.
    async fn create_token(&self, request: TokenCreate) -> Result<TokenCreated, ApiError>;

    /// The tokens, those that ended not long ago among them.
    async fn tokens(&self) -> Result<TokenList, ApiError>;

    /// Revokes tokens, all or none. One that is revoked already stays so.
    async fn revoke_tokens(&self, request: TokenRevoke) -> Result<TokensRevoked, ApiError>;
}

/// Make a join token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenCreate {
    /// How long it is to be good for.
    pub valid_for_ms: u64,
    /// For how many nodes; any number if not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uses: Option<u32>,
    /// The region that whoever joins with it takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<Name>,
    /// The name that whoever joins with it takes. It is then for one node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// What it is for, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl TokenCreate {
    /// A token for any number of nodes.
    #[must_use]
    pub const fn lasting(valid_for_ms: u64) -> Self {
        Self { valid_for_ms, uses: None, region: None, name: None, note: None }
    }
}

/// A join token. It is a secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenCreated {
    /// The token with addresses, as `--join` takes it.
    pub join: String,
    /// How long it is good for.
    pub valid_for_ms: u64,
    /// Its id.
    #[serde(default)]
    pub id: Option<TokenId>,
    /// For how many nodes, if that is limited. Then it is good at the node that made it alone.
    #[serde(default)]
    pub uses: Option<u32>,
    /// Whether a newcomer needs a certificate beside it: the cluster's authority is outside.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub needs_certificate: bool,
}

impl Schema for TokenCreated {
    const SCHEMA: &'static str = "flocker.token/1";
}

impl std::fmt::Debug for TokenCreated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenCreated")
            .field("valid_for_ms", &self.valid_for_ms)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// The tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenList {
    /// The node whose view this is: a token may be blocked there and not elsewhere.
    pub viewed_from: Name,
    /// The newest first.
    pub tokens: Vec<TokenStatus>,
}

impl Schema for TokenList {
    const SCHEMA: &'static str = "flocker.tokens/1";
}

/// A token without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenStatus {
    /// Its id.
    pub id: TokenId,
    /// Whether it still admits.
    pub state: TokenState,
    /// How long ago it was made.
    pub made_ms_ago: u64,
    /// The node that made it.
    pub made_by: Option<Name>,
    /// How long it is still good for, if nothing else ends it; `None` once it expired.
    pub expires_in_ms: Option<u64>,
    /// How long ago it ended, if it did.
    pub ended_ms_ago: Option<u64>,
    /// For how many nodes, if that is limited.
    pub uses: Option<u32>,
    /// How many of them are left, as the node that made it last said.
    pub uses_left: Option<u32>,
    /// The region that whoever joins with it takes.
    pub region: Option<Name>,
    /// The name that whoever joins with it takes.
    pub name: Option<Name>,
    /// What it is for.
    pub note: Option<String>,
}

/// Whether a token admits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenState {
    /// It does.
    Live,
    /// Not at the viewing node: too many wrong proofs were given there.
    BlockedHere,
    /// Its time is over.
    Expired,
    /// As many nodes joined with it as might.
    UsedUp,
    /// Someone revoked it.
    Revoked,
    /// The node that made it was removed.
    Void,
    /// Not known here.
    #[serde(other)]
    Unknown,
}

/// Revoke tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRevoke {
    /// Each an id, or a beginning or an end of one that no other has.
    pub tokens: Vec<String>,
}

/// Tokens were revoked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokensRevoked {
    /// Those that were not revoked before.
    pub revoked: Vec<TokenId>,
    /// Those that were.
    pub already: Vec<TokenId>,
}

impl Schema for TokensRevoked {
    const SCHEMA: &'static str = "flocker.tokens-revoked/1";
}

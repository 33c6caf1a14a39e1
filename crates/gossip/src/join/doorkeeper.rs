//! The member's side of a join: reads the clocks, asks the core ([`super::door`]), signs, records
//! and replies. It decides nothing by itself, and it answers nothing before the newcomer is
//! recorded durably.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use flocker_base::{Clock, Name, StoreId, TokenId};
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;

use super::KnownNode;
use super::door::{Admitted, Door, Knock, Passed, Refusal, Turned};
use super::exchange::{Admission, Answer, Claim, MAX_REPLY_BYTES, Reply};
use super::redemptions::RedeemError;
use crate::control::JoinHandler;
use crate::identity::{IdentityError, NodeIdentity};
use crate::model::TokenSpec;

/// The most nodes told to a newcomer. Gossip tells it the others.
const MAX_TOLD: usize = 64;

/// The most addresses of one kind told of one node.
const MAX_TOLD_ADDRESSES: usize = 4;

/// Where the cluster's tokens are found.
pub trait TokenSource: Send + Sync + 'static {
    /// The token with this id, revoked and expired ones included.
    fn find(&self, id: TokenId) -> Option<TokenSpec>;
    /// Spends a use of a token for limited uses that this node issued, for the newcomer with this
    /// key. Durable when it returns. Says how many are left.
    ///
    /// # Errors
    /// Any [`RedeemError`]; the newcomer is then refused. A source that keeps no counts keeps none
    /// of this token either.
    fn redeem(&self, _token: TokenId, _key: [u8; 32]) -> Result<u32, RedeemError> {
        Err(RedeemError::NotKept)
    }
}

/// What the doorkeeper must know of the cluster, and where it records whom it admits. Called on a
/// blocking thread.
pub trait Roster: Send + Sync + 'static {
    /// The store of the member that has this name, if one has; removed nodes have none.
    fn name_holder(&self, name: &Name) -> Option<StoreId>;
    /// Whether this store was removed from the cluster.
    fn is_removed(&self, store: StoreId) -> bool;
    /// The name of this store's node, if it is known.
    fn name_of(&self, _store: StoreId) -> Option<Name> {
        None
    }
    /// Where this store's node is reached, the best first.
    fn whereabouts(&self, store: StoreId) -> Vec<SocketAddr> {
        self.known().into_iter().find(|n| n.store == store).map_or_else(Vec::new, |n| n.control)
    }
    /// Nodes for the newcomer to begin with, the most useful first, this one among them.
    fn known(&self) -> Vec<KnownNode>;
    /// Records a newcomer, durably.
    ///
    /// # Errors
    /// Why it could not be recorded; the newcomer is then refused.
    fn admit(&self, admitted: &Admitted) -> Result<(), String>;
}

/// The tokens that are blocked at this node after wrong proofs, for those who list tokens. A clone
/// is the same.
#[derive(Clone, Debug, Default)]
pub struct BlockedTokens(Arc<std::sync::Mutex<BTreeSet<TokenId>>>);

impl BlockedTokens {
    /// Whether this token is.
    #[must_use]
    pub fn contains(&self, token: TokenId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&token)
    }

    fn set(&self, tokens: impl Iterator<Item = TokenId>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = tokens.collect();
    }
}

/// Admits newcomers: see [`crate::join`].
pub struct Doorkeeper {
    inner: Arc<Inner>,
    door: Arc<Mutex<Door>>,
}

struct Inner {
    identity: NodeIdentity,
    tokens: Arc<dyn TokenSource>,
    roster: Arc<dyn Roster>,
    clock: Arc<dyn Clock>,
    blocked: BlockedTokens,
}

impl std::fmt::Debug for Doorkeeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Doorkeeper").field("identity", &self.inner.identity).finish_non_exhaustive()
    }
}

impl Doorkeeper {
    /// A doorkeeper that is this node and signs with its cluster's authority.
    #[must_use]
    pub fn new(
        identity: NodeIdentity,
        tokens: Arc<dyn TokenSource>,
        roster: Arc<dyn Roster>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                identity,
                tokens,
                roster,
                clock,
                blocked: BlockedTokens::default(),
            }),
            door: Arc::new(Mutex::new(Door::default())),
        }
    }

    /// The tokens that are blocked at this node, as that changes.
    #[must_use]
    pub fn blocked(&self) -> BlockedTokens {
        self.inner.blocked.clone()
    }
}

#[async_trait]
impl JoinHandler for Doorkeeper {
    /// Judges one join request and answers it. Joins are handled one at a time, so that two
    /// newcomers can't both be given one name here. A caller that gives up waiting leaves a join
    /// that was begun to finish: the newcomer may then be recorded, and may simply try again.
    async fn on_join(&self, remote: SocketAddr, exporter: [u8; 32], request: Bytes) -> Bytes {
        let inner = Arc::clone(&self.inner);
        let mut door = Arc::clone(&self.door).lock_owned().await;
        // What can't be read whole is answered as anyone reads it.
        let version = Claim::decode(&request).map_or(1, |claim| claim.version);
        let answered = tokio::task::spawn_blocking(move || {
            inner.answer(&mut door, remote, &exporter, &request)
        });
        let answer = match answered.await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::error!(%remote, %error, "a join request ended in a defect of this program");
                Answer::refused(Refusal::Failed("an internal defect".to_owned()).to_string())
            }
        };
        match answer.encode(version) {
            Some(bytes) if bytes.len() <= MAX_REPLY_BYTES => bytes.into(),
            Some(_) | None => {
                tracing::error!(%remote, "the reply to a join could not be encoded");
                Bytes::new()
            }
        }
    }
}

impl Inner {
    fn answer(
        &self,
        door: &mut Door,
        remote: SocketAddr,
        exporter: &[u8; 32],
        message: &[u8],
    ) -> Answer {
        let (boot, me) = (self.clock.boot(), self.identity.store());
        let knock = Knock { me, boot, wall: self.clock.wall(), remote, exporter, message };
        let judged = door.judge(&knock, &*self.tokens, &*self.roster).and_then(|passed| {
            let token = passed.admitted.token;
            self.spend(&passed)
                .and_then(|()| self.admit(&passed.admitted, &passed.csr))
                .map(|admission| (passed.admitted, admission))
                .map_err(|refusal| Turned { refusal, token: Some(token) })
        });
        self.blocked.set(door.blocked());
        match judged {
            Ok((admitted, admission)) => {
                tracing::info!(
                    %remote, token = %admitted.token, store = %admitted.node.store,
                    name = %admitted.node.name, region = %admitted.node.region, "a node was admitted"
                );
                let recorded = Some((admitted.node.name, admitted.node.region));
                Answer { reply: Reply::Admitted(admission), recorded, try_at: Vec::new() }
            }
            Err(Turned { refusal, token }) => {
                if let Some(kept_quiet) = door.log_line(&refusal, boot) {
                    let token = token.map_or_else(|| "none".to_owned(), |t| t.to_string());
                    tracing::warn!(%remote, token, reason = %refusal, kept_quiet, "a join was refused");
                }
                Answer { try_at: refusal.try_at(), ..Answer::refused(refusal.to_string()) }
            }
        }
    }

    /// Spends a use of a token that has a limited number of them, durably, before anything is
    /// signed. What fails after it costs that use, unless the newcomer asks again under the same
    /// key.
    fn spend(&self, passed: &Passed) -> Result<(), Refusal> {
        let Some(uses) = passed.token.uses else { return Ok(()) };
        let key = Sha256::digest(&passed.csr).into();
        match self.tokens.redeem(passed.token.id, key) {
            Ok(left) => {
                tracing::info!(token = %passed.token.id, left, "a use of a join token was spent");
                Ok(())
            }
            Err(RedeemError::UsedUp | RedeemError::NotKept) => Err(Refusal::UsedUp(uses)),
            Err(error) => {
                tracing::error!(token = %passed.token.id, %error, "no use of a token could be spent");
                Err(Refusal::Failed(error.to_string()))
            }
        }
    }

    /// Signs first, since that may fail without a trace; then records; then the reply may go.
    fn admit(&self, admitted: &Admitted, csr: &[u8]) -> Result<Admission, Refusal> {
        let store = admitted.node.store;
        let authority = self.identity.authority();
        let cert =
            self.identity.certificate_for(csr, store, self.clock.wall()).map_err(|error| {
                match error {
                    IdentityError::Request(_)
                    | IdentityError::NoKey
                    | IdentityError::Outside(_) => Refusal::BadRequest(error.to_string()),
                    other => Refusal::Failed(other.to_string()),
                }
            })?;
        let mut known = self.roster.known();
        known.retain(|node| node.store != store);
        known.truncate(MAX_TOLD);
        for node in &mut known {
            node.control.truncate(MAX_TOLD_ADDRESSES);
            node.data.truncate(MAX_TOLD_ADDRESSES);
        }
        self.roster.admit(admitted).map_err(Refusal::Failed)?;
        Ok(Admission {
            cluster: self.identity.cluster(),
            by: self.identity.store(),
            cert,
            authority_cert: authority.cert_der().to_vec(),
            authority_key: authority.key_der().to_vec(),
            known,
        })
    }
}

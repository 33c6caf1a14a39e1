//! Whether a newcomer is admitted: the pure core of the doorkeeper. It opens no socket, reads no
//! clock, signs nothing and never sees a private key.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use flocker_base::{BootTime, Name, StoreId, TokenId, WallTime};

use super::doorkeeper::{Roster, TokenSource};
use super::exchange::{Claim, ExchangeError, MAX_REQUEST_BYTES, MAX_TRY_AT, Request};
use super::limiter::{Limiter, TRIES};
use crate::model::{NodeSpec, Origin, TokenSpec};

/// Wrong proofs after which a token is refused at this node until it restarts.
const WRONG_PROOFS: u8 = 3;

/// Tokens with wrong proofs remembered before those that have ended are forgotten.
const WRONG_REMEMBERED: usize = 256;

/// Time between two log lines about addresses that try too often.
const QUIET: Duration = Duration::from_secs(10);

/// A newcomer that was admitted, to be recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// The node, as the map records it.
    pub node: NodeSpec,
    /// Where its control port is reached.
    pub control: SocketAddr,
    /// Where its data port is reached.
    pub data: SocketAddr,
    /// The token that it came with.
    pub token: TokenId,
}

/// Something that a token fixes for whoever joins with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preset {
    /// Which: `name` or `region`.
    pub what: &'static str,
    /// The token's.
    pub preset: Name,
    /// The newcomer's.
    pub asked: Name,
}

/// Why a newcomer is not admitted. The text is sent to it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The request is too large.
    #[error(
        "the join request has {0} bytes and may have {MAX_REQUEST_BYTES}: run the same version of flocker on both nodes"
    )]
    TooLarge(usize),
    /// The address has tried too often.
    #[error("this address has tried to join {TRIES} times within a minute: try again in {} s", .0.as_secs() + 1)]
    TooOften(Duration),
    /// The request can't be read.
    #[error("the join request can't be read: {0}")]
    Unreadable(String),
    /// The name or region can't be one.
    #[error("the {what} is refused: {why}; start again with another one")]
    BadName {
        /// Which: `name` or `region`.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// No one here knows the token.
    #[error(
        "this cluster knows no such token; if it was made within the last seconds, try again or join through the node that made it, else make one with `flocker token create`"
    )]
    UnknownToken,
    /// There were too many wrong proofs.
    #[error(
        "this token is blocked at this node after {WRONG_PROOFS} wrong proofs: make a new one with `flocker token create`"
    )]
    Blocked,
    /// The secret is not the token's, or the proof belongs to another connection.
    #[error(
        "the proof is wrong: the token's secret does not match; copy the whole line that `flocker token create` printed"
    )]
    WrongProof,
    /// The token was revoked.
    #[error("this token was revoked: make a new one with `flocker token create`")]
    Revoked,
    /// The token has ended.
    #[error("this token expired {} min ago by this node's clock: make a new one with `flocker token create`", .0.as_secs() / 60)]
    Expired(Duration),
    /// Every use of the token is spent.
    #[error(
        "this token was for {0} node(s), and as many have joined with it: make a new one with `flocker token create`"
    )]
    UsedUp(u32),
    /// Only the node that made a token for limited uses admits with it.
    #[error(
        "this token is for a limited number of nodes, and only the node that made it, {issuer}, admits with it: join through that node{}",
        reached_at(at)
    )]
    OtherIssuer {
        /// Its name, or its store where no name is known.
        issuer: String,
        /// Where it is reached.
        at: Vec<SocketAddr>,
    },
    /// The node that made the token was removed, and its tokens with it.
    #[error(
        "this token was made by a node that has been removed from the cluster, and is void: make a new one with `flocker token create`"
    )]
    IssuerRemoved,
    /// The newcomer names itself otherwise than its token does.
    #[error("this token is for the {what} '{preset}', and this node asks for '{asked}': leave --{what} out, or make another token", what = .0.what, preset = .0.preset, asked = .0.asked)]
    Preset(Box<Preset>),
    /// Another node has the name.
    #[error(
        "the name '{name}' is taken by the node with store {holder}: start again with another --name"
    )]
    NameTaken {
        /// The name.
        name: Name,
        /// The store of the node that has it.
        holder: StoreId,
    },
    /// The store was removed from the cluster.
    #[error(
        "the store {0} was removed from this cluster and can't come back: move its state folder away and join as a new node"
    )]
    Removed(StoreId),
    /// An address can't be reached by anyone.
    #[error(
        "the {what} address {address} can't be reached by other nodes: start again with --advertise and an address that they reach"
    )]
    BadAddress {
        /// Which: `control` or `data`.
        what: &'static str,
        /// The address.
        address: SocketAddr,
    },
    /// The certificate request is refused.
    #[error("{0}")]
    BadRequest(String),
    /// The member that was asked failed.
    #[error(
        "this node could not admit anyone just now ({0}): try another node, and look at this one's log"
    )]
    Failed(String),
}

/// Where a node is reached, as the end of a sentence.
fn reached_at(at: &[SocketAddr]) -> String {
    let all: Vec<String> = at.iter().map(ToString::to_string).collect();
    if all.is_empty() { String::new() } else { format!(" at {}", all.join(" or ")) }
}

impl Refusal {
    /// Where the newcomer may try instead.
    pub(super) fn try_at(&self) -> Vec<SocketAddr> {
        match self {
            Self::OtherIssuer { at, .. } => at.clone(),
            _ => Vec::new(),
        }
    }
}

/// One try to join, with the readings it is judged by.
pub(super) struct Knock<'a> {
    /// The store of the node that is asked.
    pub(super) me: StoreId,
    pub(super) boot: BootTime,
    pub(super) wall: WallTime,
    pub(super) remote: SocketAddr,
    pub(super) exporter: &'a [u8; 32],
    pub(super) message: &'a [u8],
}

/// A try that passed: what to record, and the certificate request to sign.
#[derive(Debug)]
pub(super) struct Passed {
    pub(super) admitted: Admitted,
    pub(super) csr: Vec<u8>,
    /// The token, of which a use is to be spent if they are limited.
    pub(super) token: TokenSpec,
}

/// A try that did not.
#[derive(Debug)]
pub(super) struct Turned {
    pub(super) refusal: Refusal,
    /// The token that was named, once the request could be read.
    pub(super) token: Option<TokenId>,
}

/// What the doorkeeper remembers between tries, all of it bounded.
#[derive(Debug, Default)]
pub(super) struct Door {
    limiter: Limiter,
    wrong: BTreeMap<TokenId, u8>,
    quiet_since: Option<BootTime>,
    kept_quiet: u64,
}

impl Door {
    /// Judges a try. The order matters: size and frequency before decoding, the proof before
    /// anything about the token or the cluster is told.
    pub(super) fn judge(
        &mut self,
        knock: &Knock<'_>,
        tokens: &dyn TokenSource,
        roster: &dyn Roster,
    ) -> Result<Passed, Turned> {
        let early = |refusal| Turned { refusal, token: None };
        self.limiter
            .admit(knock.remote.ip(), knock.boot)
            .map_err(|wait| early(Refusal::TooOften(wait)))?;
        if knock.message.len() > MAX_REQUEST_BYTES {
            return Err(early(Refusal::TooLarge(knock.message.len())));
        }
        let claim = Claim::decode(knock.message).map_err(|e| match e {
            ExchangeError::Version(_) | ExchangeError::Malformed => {
                early(Refusal::Unreadable(e.to_string()))
            }
        })?;
        let id = claim.request.token;
        let turned = |refusal| Turned { refusal, token: Some(id) };
        let token = self.check_token(&claim, knock, tokens).map_err(turned)?;
        check_issuer(&token, knock.me, roster).map_err(turned)?;
        let admitted = check_node(&claim.request, &token, knock, roster).map_err(turned)?;
        Ok(Passed { admitted, csr: claim.request.csr, token })
    }

    /// The tokens that are blocked at this node.
    pub(super) fn blocked(&self) -> impl Iterator<Item = TokenId> {
        self.wrong.iter().filter(|(_, count)| **count >= WRONG_PROOFS).map(|(id, _)| *id)
    }

    /// Whether a line about this refusal is to be logged, and how many like it were not. Only
    /// those who try too often are kept quiet about.
    pub(super) fn log_line(&mut self, refusal: &Refusal, now: BootTime) -> Option<u64> {
        if !matches!(refusal, Refusal::TooOften(_)) {
            return Some(0);
        }
        if self.quiet_since.is_some_and(|since| now.saturating_since(since) < QUIET) {
            self.kept_quiet += 1;
            return None;
        }
        self.quiet_since = Some(now);
        Some(std::mem::take(&mut self.kept_quiet))
    }

    fn check_token(
        &mut self,
        claim: &Claim<'_>,
        knock: &Knock<'_>,
        tokens: &dyn TokenSource,
    ) -> Result<TokenSpec, Refusal> {
        let id = claim.request.token;
        let spec = tokens.find(id).ok_or(Refusal::UnknownToken)?;
        if self.wrong.get(&id).is_some_and(|n| *n >= WRONG_PROOFS) {
            return Err(Refusal::Blocked);
        }
        if !claim.is_proven(&spec.secret, knock.exporter) {
            self.count_wrong(id, knock.wall, tokens);
            return Err(Refusal::WrongProof);
        }
        if spec.revoked {
            return Err(Refusal::Revoked);
        }
        if spec.expires <= knock.wall {
            return Err(Refusal::Expired(knock.wall.saturating_since(spec.expires)));
        }
        Ok(spec)
    }

    /// Only tokens that the cluster knows are counted, so a stranger can't fill this memory.
    fn count_wrong(&mut self, id: TokenId, now: WallTime, tokens: &dyn TokenSource) {
        if self.wrong.len() >= WRONG_REMEMBERED {
            self.wrong.retain(|id, _| {
                tokens.find(*id).is_some_and(|spec| !spec.revoked && spec.expires > now)
            });
        }
        let count = self.wrong.entry(id).or_default();
        *count = count.saturating_add(1);
        if *count == WRONG_PROOFS {
            tracing::warn!(token = %id, "a join token is blocked at this node: {WRONG_PROOFS} wrong proofs");
        }
    }
}

/// Told only to who has proven the token.
fn check_issuer(token: &TokenSpec, me: StoreId, roster: &dyn Roster) -> Result<(), Refusal> {
    let Some(issuer) = token.issuer else {
        // A limit whose keeper nobody knows can't be kept.
        return token.uses.map_or(Ok(()), |uses| Err(Refusal::UsedUp(uses)));
    };
    if roster.is_removed(issuer) {
        return Err(Refusal::IssuerRemoved);
    }
    if token.uses.is_none() || issuer == me {
        return Ok(());
    }
    let mut at = roster.whereabouts(issuer);
    at.truncate(MAX_TRY_AT);
    let name = roster.name_of(issuer);
    Err(Refusal::OtherIssuer { issuer: name.map_or_else(|| issuer.to_string(), Name::into), at })
}

/// What the newcomer is recorded under: what it asks for, or the token's preset.
fn settle(
    what: &'static str,
    asked: &str,
    gives_way: bool,
    preset: Option<&Name>,
) -> Result<Name, Refusal> {
    if let Some(preset) = preset.filter(|_| gives_way) {
        return Ok(preset.clone());
    }
    let asked = Name::new(asked).map_err(|e| Refusal::BadName { what, why: e.to_string() })?;
    match preset {
        Some(preset) if *preset != asked => {
            Err(Refusal::Preset(Box::new(Preset { what, preset: preset.clone(), asked })))
        }
        Some(_) | None => Ok(asked),
    }
}

fn check_node(
    request: &Request,
    token: &TokenSpec,
    knock: &Knock<'_>,
    roster: &dyn Roster,
) -> Result<Admitted, Refusal> {
    let remote: IpAddr = knock.remote.ip();
    let takes = request.takes;
    let name = settle("name", &request.name, takes.name, token.name.as_ref())?;
    let region = settle("region", &request.region, takes.region, token.region.as_ref())?;
    let store = request.store;
    if roster.is_removed(store) {
        return Err(Refusal::Removed(store));
    }
    match roster.name_holder(&name) {
        Some(holder) if holder != store => return Err(Refusal::NameTaken { name, holder }),
        Some(_) | None => {}
    }
    Ok(Admitted {
        control: reachable("control", request.control, remote)?,
        data: reachable("data", request.data, remote)?,
        node: NodeSpec {
            origin: Some(Origin { token: request.token, by: knock.me, at: knock.wall }),
            ..NodeSpec::new(store, name, region)
        },
        token: request.token,
    })
}

/// The address as others reach it: a newcomer that listens on every interface and does not know
/// its address is reached where it came from.
fn reachable(
    what: &'static str,
    address: SocketAddr,
    remote: IpAddr,
) -> Result<SocketAddr, Refusal> {
    if address.port() == 0 || address.ip().is_multicast() {
        return Err(Refusal::BadAddress { what, address });
    }
    if address.ip().is_unspecified() {
        return Ok(SocketAddr::new(remote.to_canonical(), address.port()));
    }
    Ok(address)
}

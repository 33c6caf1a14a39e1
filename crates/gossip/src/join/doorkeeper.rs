//! The member's side of a join: reads the clocks, asks the core ([`super::door`]), signs, records
//! and replies. It decides nothing by itself, and it answers nothing before the newcomer is
//! recorded durably.

use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use flocker_base::{Clock, Name, StoreId, TokenId};
use tokio::sync::Mutex;

use super::KnownNode;
use super::door::{Admitted, Door, Knock, Refusal, Turned};
use super::exchange::{Admission, MAX_REPLY_BYTES, Reply};
use crate::control::JoinHandler;
use crate::identity::{IdentityError, NODE_VALIDITY, NodeIdentity};
use crate::model::TokenSpec;

/// The most nodes told to a newcomer. Gossip tells it the others.
const MAX_TOLD: usize = 64;

/// The most addresses of one kind told of one node.
const MAX_TOLD_ADDRESSES: usize = 4;

/// Where the cluster's tokens are found.
pub trait TokenSource: Send + Sync + 'static {
    /// The token with this id, revoked and expired ones included.
    fn find(&self, id: TokenId) -> Option<TokenSpec>;
}

/// What the doorkeeper must know of the cluster, and where it records whom it admits. Called on a
/// blocking thread.
pub trait Roster: Send + Sync + 'static {
    /// The store of the member that has this name, if one has; removed nodes have none.
    fn name_holder(&self, name: &Name) -> Option<StoreId>;
    /// Whether this store was removed from the cluster.
    fn is_removed(&self, store: StoreId) -> bool;
    /// Nodes for the newcomer to begin with, the most useful first, this one among them.
    fn known(&self) -> Vec<KnownNode>;
    /// Records a newcomer, durably.
    ///
    /// # Errors
    /// Why it could not be recorded; the newcomer is then refused.
    fn admit(&self, admitted: &Admitted) -> Result<(), String>;
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
            inner: Arc::new(Inner { identity, tokens, roster, clock }),
            door: Arc::new(Mutex::new(Door::default())),
        }
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
        let answered = tokio::task::spawn_blocking(move || {
            inner.answer(&mut door, remote, &exporter, &request)
        });
        let reply = match answered.await {
            Ok(reply) => reply,
            Err(error) => {
                tracing::error!(%remote, %error, "a join request ended in a defect of this program");
                Reply::Refused(Refusal::Failed("an internal defect".to_owned()).to_string())
            }
        };
        match reply.encode() {
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
    ) -> Reply {
        let boot = self.clock.boot();
        let knock = Knock { boot, wall: self.clock.wall(), remote, exporter, message };
        let judged = door.judge(&knock, &*self.tokens, &*self.roster).and_then(|passed| {
            let token = passed.admitted.token;
            self.admit(&passed.admitted, &passed.csr)
                .map(|admission| (passed.admitted, admission))
                .map_err(|refusal| Turned { refusal, token: Some(token) })
        });
        match judged {
            Ok((admitted, admission)) => {
                tracing::info!(
                    %remote, token = %admitted.token, store = %admitted.node.store,
                    name = %admitted.node.name, region = %admitted.node.region, "a node was admitted"
                );
                Reply::Admitted(admission)
            }
            Err(Turned { refusal, token }) => {
                if let Some(kept_quiet) = door.log_line(&refusal, boot) {
                    let token = token.map_or_else(|| "none".to_owned(), |t| t.to_string());
                    tracing::warn!(%remote, token, reason = %refusal, kept_quiet, "a join was refused");
                }
                Reply::Refused(refusal.to_string())
            }
        }
    }

    /// Signs first, since that may fail without a trace; then records; then the reply may go.
    fn admit(&self, admitted: &Admitted, csr: &[u8]) -> Result<Admission, Refusal> {
        let store = admitted.node.store;
        let authority = self.identity.authority();
        let cert =
            authority.issue(csr, store, self.clock.wall(), NODE_VALIDITY).map_err(|error| {
                match error {
                    IdentityError::Request(_) => Refusal::BadRequest(error.to_string()),
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

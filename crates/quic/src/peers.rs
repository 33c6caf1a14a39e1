//! One live connection a peer: dialled on demand, adopted when the peer dials, replaced when it
//! dies. It never decides who may be a peer (the caller drops those it does not want) and never
//! keeps a connection whose port is known to be closed.
//!
//! ```text
//!   connection() ──▶ slot (decides) ──▶ dial: every address, staggered ──┐
//!   adopt() ───────▶   ▲    │ retire                                     │
//!                      │    ▼                                            │
//!                 closed ◀─ watch: one task a connection ◀───────────────┘──▶ dialled()
//! ```

mod pool;
mod silence;
mod slot;
mod tasks;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use flocker_base::StoreId;

use crate::connection::Connection;
use crate::endpoint::Endpoint;
use crate::error::QuicError;
use pool::{Pool, now};
use slot::Wanted;

/// Where a node is sought.
pub trait AddressBook: Send + Sync {
    /// Every address known of it, the best first.
    fn addresses(&self, store: StoreId) -> Vec<SocketAddr>;
}

/// The connections of this node's endpoint, by peer. Clones are the same pool; when the last is
/// dropped its tasks end.
#[derive(Clone)]
pub struct Peers {
    pool: Arc<Pool>,
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peers").field("endpoint", self.pool.endpoint()).finish_non_exhaustive()
    }
}

impl Peers {
    /// A pool over this endpoint. Its tasks run on the endpoint's runtime, whoever asks.
    #[must_use]
    pub fn new(endpoint: Endpoint, book: Arc<dyn AddressBook>) -> Self {
        Self { pool: Arc::new(Pool::new(endpoint, book)) }
    }

    /// A live connection to this node: the one there is, or a new one. A dial that fails while
    /// this waits is its error at once, and so is a rest after failures that outlasts `deadline`.
    /// Cancel safe; the dial goes on for whoever asks next.
    ///
    /// # Errors
    /// [`QuicError::Itself`], [`QuicError::NoAddress`], [`QuicError::Unreachable`] or
    /// [`QuicError::Deadline`].
    pub async fn connection(
        &self,
        to: StoreId,
        deadline: Duration,
    ) -> Result<Connection, QuicError> {
        if let Some(connection) = self.existing(to) {
            return Ok(connection);
        }
        if to == self.pool.endpoint().store() {
            return Err(QuicError::Itself { to });
        }
        match tokio::time::timeout(deadline, self.wait_for(to, deadline)).await {
            Ok(result) => result,
            Err(_elapsed) => Err(QuicError::Deadline { to, after: deadline }),
        }
    }

    /// The live connection to this node, if there is one. Dials nothing.
    #[must_use]
    pub fn existing(&self, to: StoreId) -> Option<Connection> {
        self.pool.existing(to)
    }

    /// Takes a connection that the peer dialled into use. The caller serves its streams.
    pub fn adopt(&self, connection: Connection) {
        self.pool.arrived(connection);
    }

    /// Closes every connection to this node and forgets them. A later [`Self::connection`] dials
    /// again.
    pub fn drop_peer(&self, store: StoreId) {
        self.pool.forget(store);
    }

    /// The nodes with a live connection.
    #[must_use]
    pub fn connected(&self) -> Vec<StoreId> {
        self.pool.connected()
    }

    /// The next connection that this pool has dialled, each once: peers open streams on it too, so
    /// someone must serve it as those from [`Endpoint::accept`]. Cancel safe.
    pub async fn dialled(&self) -> Connection {
        self.pool.take_dialled().await
    }

    /// Whether the host of this node says within this time that nothing listens on its port: where
    /// it was last, or else at every address known of it. A no says nothing. Cancel safe.
    pub async fn nothing_listens(&self, at: StoreId, within: Duration) -> bool {
        let addresses = tasks::where_it_listens(&self.pool, at);
        if addresses.is_empty() {
            return false;
        }
        let all = async {
            for (from, at) in addresses {
                crate::probe::nothing_listens(from, at).await;
            }
        };
        tokio::time::timeout(within, all).await.is_ok()
    }

    async fn wait_for(&self, to: StoreId, patience: Duration) -> Result<Connection, QuicError> {
        let give_up = now() + patience;
        let mut saw_a_dial = false;
        loop {
            let mut want = self.pool.want(to);
            match want.decision {
                Wanted::Use(_) => {
                    if let Some(connection) = want.connection {
                        return Ok(connection);
                    }
                }
                Wanted::Dial => {
                    self.pool.start_dial(to);
                    saw_a_dial = true;
                }
                Wanted::Wait => saw_a_dial = true,
                Wanted::Rest(until) => {
                    if let Some(error) = want.last_error
                        && (saw_a_dial || until >= give_up)
                    {
                        return Err(error);
                    }
                    let rest = until.saturating_since(now());
                    // Over, or something changed: either way, ask again.
                    let _rested = tokio::time::timeout(rest, want.changes.changed()).await;
                    continue;
                }
            }
            // An error means that the peer was dropped from the table: ask again too.
            let _changed = want.changes.changed().await;
        }
    }
}

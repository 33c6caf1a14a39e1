//! The control endpoint at work: who comes in, what goes out. The one task that owns all others of
//! this module; when it ends, they end.

use std::sync::Arc;
use std::time::Duration;

use flocker_base::{Clock, SystemClock};
use flocker_quic::{
    Accepted, AddressBook, CloseCode, Connection, Endpoint, JOIN_EXPORTER_LABEL, JoinerConnection,
    Peers, QuicError, REMOVED,
};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::dispatch::Dispatch;
use super::serve::serve;
use super::wire::QuicWire;
use super::{Admission, Handler, JoinHandler, Kind, Quiet, Wire};

/// How often connections are checked against removals.
const SWEEP: Duration = Duration::from_secs(1);
/// Most requests to join under way at once.
const MOST_JOINERS: usize = 16;
/// How long each step of a join may take.
const JOIN_STEP: Duration = Duration::from_secs(5);
/// How long peers may take to hear that this node shuts down.
const FAREWELL: Duration = Duration::from_millis(500);

/// The control endpoint with everything that hangs on it. Build it, hand out its [`Wire`],
/// register the handlers, run it. Dropped, it lets go of its handlers.
pub struct Control {
    endpoint: Endpoint,
    wire: Arc<QuicWire>,
    joiners: Option<Arc<dyn JoinHandler>>,
    removed: Quiet,
    turned_away: Arc<Quiet>,
}

impl Control {
    /// A control on this endpoint, which nothing else must accept from. Removed nodes are refused,
    /// whoever dials.
    #[must_use]
    pub fn new(
        endpoint: Endpoint,
        book: Arc<dyn AddressBook>,
        admission: Arc<dyn Admission>,
    ) -> Self {
        let peers = Peers::new(endpoint.clone(), book);
        let dispatch = Arc::new(Dispatch::new(admission));
        let wire = Arc::new(QuicWire::new(endpoint.store(), peers, dispatch));
        let (removed, turned_away) = (Quiet::default(), Arc::default());
        Self { endpoint, wire, joiners: None, removed, turned_away }
    }

    /// Registers who handles a kind, in place of whoever did.
    #[must_use]
    pub fn handle(self, kind: Kind, handler: Arc<dyn Handler>) -> Self {
        self.wire.dispatch.register(kind, handler);
        self
    }

    /// Registers who answers those that ask to join. Without one they are refused.
    #[must_use]
    pub fn joiners(mut self, handler: Arc<dyn JoinHandler>) -> Self {
        self.joiners = Some(handler);
        self
    }

    /// The way to other nodes. Calls work at once; messages go out once [`Self::run`] runs.
    #[must_use]
    pub fn wire(&self) -> Arc<dyn Wire> {
        Arc::clone(&self.wire) as Arc<dyn Wire>
    }

    /// The connections to peers, for what they tell of them: round trips, addresses.
    #[must_use]
    pub fn peers(&self) -> Peers {
        self.wire.peers.clone()
    }

    /// Serves until told to stop; then closes the endpoint. Not cancel safe: dropped, handlers end
    /// where they are.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut work = JoinSet::new();
        let joins = Arc::new(Semaphore::new(MOST_JOINERS));
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = self.endpoint.accept() => match accepted {
                    Some(Accepted::Peer(connection)) => {
                        if self.counts(&connection) {
                            self.wire.peers.adopt(connection.clone());
                            work.spawn(serve(connection, Arc::clone(&self.wire.dispatch)));
                        }
                    }
                    Some(Accepted::Joiner(joiner)) => self.join(joiner, &joins, &mut work),
                    None => break,
                },
                connection = self.wire.peers.dialled() => {
                    if self.counts(&connection) {
                        work.spawn(serve(connection, Arc::clone(&self.wire.dispatch)));
                    }
                }
                lane = self.wire.next_lane() => {
                    work.spawn(Arc::clone(&self.wire).send_all(lane));
                }
                _ = sweep.tick() => self.drop_removed(),
                Some(ended) = work.join_next(), if !work.is_empty() => {
                    if let Err(e) = ended {
                        tracing::error!("a task of the control endpoint panicked: {e}");
                    }
                }
            }
        }
        self.endpoint.close();
        self.endpoint.wait_idle(FAREWELL).await;
    }

    /// Whether the peer is still of the cluster; if not, it is refused.
    fn counts(&self, connection: &Connection) -> bool {
        let peer = connection.peer();
        if self.wire.dispatch.admission.is_stranger(peer) {
            // It dials again within a second, and is told why: no line of the log for each.
            tracing::debug!(
                %peer, remote = %connection.remote_addr(),
                "refused a connection: this node knows of no admission of that one; if it has just \
                 joined elsewhere, it is let in once that is known here"
            );
            connection.close(CloseCode::Busy, "this node was not told of your admission yet");
            return false;
        }
        if !self.wire.dispatch.admission.is_removed(peer) {
            return true;
        }
        if let Some(unsaid) = self.removed.due(SystemClock.boot()) {
            tracing::warn!(
                %peer, remote = %connection.remote_addr(), unsaid,
                "refused a connection: this node was removed from the cluster"
            );
        }
        connection.close(CloseCode::NotAMember, REMOVED);
        self.wire.peers.drop_peer(peer);
        false
    }

    fn drop_removed(&self) {
        for peer in self.wire.peers.connected() {
            if self.wire.dispatch.admission.is_removed(peer) {
                tracing::warn!(%peer, "closed its connections: it was removed from the cluster");
                self.wire.peers.drop_peer(peer);
                self.wire.dispatch.forget(peer);
            }
        }
    }

    fn join(&self, joiner: JoinerConnection, joins: &Arc<Semaphore>, work: &mut JoinSet<()>) {
        let remote = joiner.remote_addr();
        let Some(handler) = self.joiners.clone() else {
            if let Some(unsaid) = self.turned_away.due(SystemClock.boot()) {
                tracing::warn!(%remote, unsaid, "refused a request to join: this node admits none");
            }
            joiner.refuse("this node admits none: try another");
            return;
        };
        let Ok(turn) = Arc::clone(joins).try_acquire_owned() else {
            if let Some(unsaid) = self.turned_away.due(SystemClock.boot()) {
                tracing::warn!(%remote, unsaid, "refused a request to join: too many at once");
            }
            joiner.refuse("too many ask to join at once: try again");
            return;
        };
        let turned_away = Arc::clone(&self.turned_away);
        work.spawn(async move {
            if let Err(e) = admit(joiner, &*handler).await
                && let Some(unsaid) = turned_away.due(SystemClock.boot())
            {
                tracing::warn!(%remote, unsaid, "a request to join came to nothing: {e}");
            }
            drop(turn);
        });
    }
}

impl Drop for Control {
    /// Handlers usually hold the wire, and the wire leads to them: this parts them.
    fn drop(&mut self) {
        self.wire.dispatch.release();
    }
}

async fn admit(mut joiner: JoinerConnection, handler: &dyn JoinHandler) -> Result<(), QuicError> {
    let remote = joiner.remote_addr();
    let exporter = joiner.exporter(JOIN_EXPORTER_LABEL)?;
    let request = joiner.receive(JOIN_STEP).await?;
    let answer = tokio::time::timeout(JOIN_STEP, handler.on_join(remote, exporter, request));
    match answer.await {
        Ok(answer) => joiner.reply(&answer, JOIN_STEP).await,
        Err(_elapsed) => {
            joiner.refuse("this node is too busy: try another");
            tracing::error!(%remote, "a request to join was not decided in time");
            Ok(())
        }
    }
}

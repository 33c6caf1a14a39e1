//! The task that owns the core: it waits for what happens, steps, and has the commands carried
//! out. It decides nothing, and blocks on nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flocker_base::StoreId;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinSet, spawn_blocking};
use tokio_util::sync::CancellationToken;

use super::core::SyncCore;
use super::event::{Command, Event, Reply};
use super::links::Member;
use super::refusals::Refusals;
use super::{Peer, PeerView, work};
use crate::control::{Handler, Kind, Wire};
use crate::map::{Map, MapError};

/// Messages on their way from the handlers to the core, which takes them at once. A peer whose
/// message finds no room waits, and so do its next ones; there are few of each peer.
const MAX_INCOMING: usize = 16;
/// The shortest sleep, for a clock that runs apart from the runtime's.
const SHORTEST_SLEEP: Duration = Duration::from_millis(1);

/// Keeps a map equal to its peers'.
pub struct MapSync {
    map: Map,
    wire: Arc<dyn Wire>,
    peers: Arc<dyn PeerView>,
    core: SyncCore,
    incoming: mpsc::Receiver<Incoming>,
    refusals: Refusals,
    members: Arc<[Member]>,
    replies: BTreeMap<Reply, Answer>,
    replied: u64,
    work: JoinSet<Result<Event, MapError>>,
}

type Answer = oneshot::Sender<Result<Bytes, String>>;

enum Incoming {
    Pushed(StoreId, Bytes),
    Asked(StoreId, Bytes, Answer),
}

/// Takes the pushes of peers.
struct PushIntake(mpsc::Sender<Incoming>);

/// Takes the pulls of peers.
struct PullIntake(mpsc::Sender<Incoming>);

/// Builds the synchronisation of this map: what is to be run, and the handlers for
/// [`Kind::MapPush`] and [`Kind::MapPull`]. The seed decides which peers are chosen.
#[must_use]
pub fn build(
    map: Map,
    wire: Arc<dyn Wire>,
    peers: Arc<dyn PeerView>,
    seed: u64,
) -> (MapSync, Arc<dyn Handler>, Arc<dyn Handler>) {
    let core = SyncCore::new(map.actor(), peers.region(), seed, map.inner.clock.boot());
    let (sender, incoming) = mpsc::channel(MAX_INCOMING);
    let sync = MapSync {
        map,
        wire,
        peers,
        core,
        incoming,
        refusals: Refusals::default(),
        members: Arc::from([]),
        replies: BTreeMap::new(),
        replied: 0,
        work: JoinSet::new(),
    };
    (sync, Arc::new(PushIntake(sender.clone())), Arc::new(PullIntake(sender)))
}

impl MapSync {
    /// Runs until the shutdown.
    ///
    /// # Errors
    /// [`MapError`] if the disk failed: the process must end, see [`MapError::is_fatal`].
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), MapError> {
        loop {
            let now = self.map.inner.clock.boot();
            let sleep = self.core.next_deadline().saturating_since(now).max(SHORTEST_SLEEP);
            let event = tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                Some(done) = self.work.join_next(), if !self.work.is_empty() => done_with(done)?,
                (keys, _hops) = self.map.inner.outbox.take() => Event::Changed(keys),
                Some(incoming) = self.incoming.recv() => self.take(incoming),
                () = tokio::time::sleep(sleep) => Event::Tick,
            };
            self.step(event);
        }
    }

    fn take(&mut self, incoming: Incoming) -> Event {
        match incoming {
            Incoming::Pushed(from, bytes) => Event::Pushed { from, bytes },
            Incoming::Asked(from, bytes, answer) => {
                self.replied += 1;
                let reply = Reply(self.replied);
                self.replies.insert(reply, answer);
                Event::Asked { from, reply, bytes }
            }
        }
    }

    fn step(&mut self, event: Event) {
        let now = self.map.inner.clock.boot();
        for command in work::step(&mut self.core, &self.map, now, event) {
            self.carry_out(command);
        }
    }

    fn carry_out(&mut self, command: Command) {
        let map = self.map.clone();
        match command {
            Command::Look => self.look(),
            Command::Read(keys) => {
                self.work.spawn(blocking(move || work::read(&map, keys)));
            }
            Command::Merge(parcels) => {
                self.work.spawn(blocking(move || work::merge(&map, parcels)));
            }
            Command::Push { to, bytes } => {
                for peer in to {
                    self.wire.send(peer, Kind::MapPush, bytes.clone());
                }
            }
            Command::Ask { ask, peer, bytes, within } => {
                let wire = Arc::clone(&self.wire);
                self.work.spawn(async move {
                    let answer = wire.call(peer, Kind::MapPull, bytes, within).await;
                    let answer = answer.map_err(|failure| {
                        tracing::debug!(%peer, %failure, "a pull of the map ended early");
                        failure.to_string()
                    });
                    Ok(Event::Answered(ask, answer))
                });
            }
            Command::Answer { to, reply, request } => {
                let answer = self.replies.remove(&reply);
                self.work.spawn(blocking(move || {
                    let said = work::answer(&map, request);
                    // Who asked may have given up.
                    drop(answer.map(|answer| answer.send(said)));
                    Ok(Event::Replied { to })
                }));
            }
            Command::Refuse { reply, why } => {
                drop(self.replies.remove(&reply).map(|answer| answer.send(Err(why))));
            }
            Command::Warn { from, what, why } => {
                self.refusals.warn(self.map.inner.clock.boot(), from, &what, &why);
            }
        }
    }

    fn look(&mut self) {
        let live = self.peers.live();
        let known = self.members.iter().map(|member| (member.store, &member.region));
        if !live.iter().map(|peer| (peer.store, &peer.region)).eq(known) {
            let member = |peer: &Peer| Member { store: peer.store, region: peer.region.clone() };
            self.members = live.iter().map(member).collect();
            self.step(Event::Members(Arc::clone(&self.members)));
        }
        let me = self.map.actor();
        let others = live.into_iter().filter(|peer| peer.store != me);
        let roots = others.filter_map(|peer| peer.root.map(|root| (peer.store, root)));
        self.step(Event::Roots(roots.collect()));
    }
}

/// Runs what blocks on the disk where blocking is allowed.
async fn blocking(
    work: impl FnOnce() -> Result<Event, MapError> + Send + 'static,
) -> Result<Event, MapError> {
    // The work is only ever lost to a panic or to the end of the runtime.
    spawn_blocking(work).await.unwrap_or(Err(MapError::Stopped))
}

fn done_with(done: Result<Result<Event, MapError>, JoinError>) -> Result<Event, MapError> {
    done.unwrap_or(Err(MapError::Stopped))
}

#[async_trait]
impl Handler for PushIntake {
    async fn on_message(&self, from: StoreId, payload: Bytes) {
        // After the shutdown nobody listens any more.
        drop(self.0.send(Incoming::Pushed(from, payload)).await);
    }

    async fn on_call(&self, _from: StoreId, _payload: Bytes) -> Result<Bytes, String> {
        Err("changes of the map are pushed without an answer".to_owned())
    }
}

#[async_trait]
impl Handler for PullIntake {
    async fn on_message(&self, from: StoreId, _payload: Bytes) {
        tracing::debug!(%from, "dropped a message: pulls of the map are calls");
    }

    async fn on_call(&self, from: StoreId, payload: Bytes) -> Result<Bytes, String> {
        let (answer, answered) = oneshot::channel();
        let gone = |_| "this node stops".to_owned();
        let asked = self.0.send(Incoming::Asked(from, payload, answer)).await;
        asked.map_err(|_stopped| "this node stops".to_owned())?;
        answered.await.map_err(gone)?
    }
}

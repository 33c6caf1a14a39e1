//! The replicator: runs the schedule, takes snapshots, sends and fetches streams, and serves
//! those of peers.
//!
//! ```text
//!   set_duties ──► run: schedule core ──► snapshot / send / prune tasks ──► backend, session
//!                     ▲                                   │
//!                     └────────── what came of it ◄───────┘
//! ```
//!
//! One snapshot of a volume is taken at a time and one stream goes to a replica at a time, whoever
//! asks. A newer incoming stream for a volume takes the place of an older one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flocker_base::{Clock, Epoch, Head, StoreId, VolumeId, WallTime};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::backend::{Backend, BackendError, Quiesce, Still};
use crate::fence::Fence;
use crate::model::{Duty, Guid, Retention, SnapshotInfo, VolumeProgress};
use crate::session::{self, SessionConfig, SessionError, blocking};
use crate::transport::{Stream, Transport};

mod incoming;
mod run;
mod schedule;

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests write the files that users would")]
mod tests;

use incoming::Incoming;
use schedule::Event;
pub use schedule::ScheduleConfig;

/// How the replicator works.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicatorConfig {
    /// Limits of one session.
    pub session: SessionConfig,
    /// When things are tried again and pruned.
    pub schedule: ScheduleConfig,
    /// Bounds on what runs at once.
    pub limits: Limits,
}

/// Bounds on what runs at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Snapshots being taken.
    pub snapshots: usize,
    /// Streams being sent.
    pub sends: usize,
    /// Streams being served, either way.
    pub served: usize,
    /// Longest time to open a stream to a peer.
    pub open: Duration,
    /// Longest time that one session may take, a full copy included.
    pub session: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            snapshots: 4,
            sends: 32,
            served: 64,
            open: Duration::from_secs(5),
            session: Duration::from_secs(6 * 3600),
        }
    }
}

/// Why replication did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ReplicateError {
    /// This node may not write the volume.
    #[error("this node does not hold volume {0}: only its master takes snapshots")]
    NotMaster(VolumeId),
    /// The backend failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// No stream could be opened.
    #[error("no stream to node {peer} could be opened: {source}")]
    Unreachable {
        /// The peer.
        peer: StoreId,
        /// What the transport said.
        source: std::io::Error,
    },
    /// The session with the peer failed.
    #[error("replicating volume {volume} with node {peer}: {source}")]
    Session {
        /// The volume.
        volume: VolumeId,
        /// The peer.
        peer: StoreId,
        /// What went wrong.
        source: SessionError,
    },
    /// It took too long.
    #[error("volume {volume}: not done within {within:?}")]
    TooLate {
        /// The volume.
        volume: VolumeId,
        /// The deadline.
        within: Duration,
    },
}

/// What each volume's newest snapshot here is, and when it was taken.
pub type Heads = BTreeMap<VolumeId, (Head, WallTime)>;

/// The handle to replication; clones share one state.
#[derive(Clone, Debug)]
pub struct Replicator {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: ReplicatorConfig,
    backend: Arc<dyn Backend>,
    fence: Arc<dyn Fence>,
    transport: Arc<dyn Transport>,
    clock: Arc<dyn Clock>,
    random: Mutex<StdRng>,
    duties: watch::Sender<Vec<Duty>>,
    heads: watch::Sender<Arc<Heads>>,
    progress: watch::Sender<Arc<BTreeMap<VolumeId, VolumeProgress>>>,
    events: mpsc::Sender<Event>,
    inbox: Mutex<Option<mpsc::Receiver<Event>>>,
    /// One turn for each volume's snapshots and each volume's stream to a replica.
    turns: Mutex<BTreeMap<(VolumeId, Option<StoreId>), Arc<tokio::sync::Mutex<()>>>>,
    incoming: Incoming,
    snapshots: Semaphore,
    sends: Semaphore,
    served: Semaphore,
}

/// Events that wait for the run loop.
const INBOX: usize = 1024;

impl Replicator {
    /// A replicator on this backend. Reads what is held, so it blocks on the disk. A volume that
    /// cannot be read is logged and left out of the heads.
    ///
    /// # Errors
    /// If the backend cannot list its volumes.
    pub fn new(
        config: ReplicatorConfig,
        backend: Arc<dyn Backend>,
        fence: Arc<dyn Fence>,
        transport: Arc<dyn Transport>,
        clock: Arc<dyn Clock>,
        seed: [u8; 32],
    ) -> Result<Self, BackendError> {
        let mut heads = Heads::new();
        for volume in backend.volumes()? {
            match backend.list(volume) {
                Ok(line) => heads.extend(line.last().map(|info| (volume, head_of(info)))),
                Err(error) => tracing::error!(%volume, %error, "a volume cannot be read"),
            }
        }
        let (events, inbox) = mpsc::channel(INBOX);
        let limits = &config.limits;
        let inner = Inner {
            snapshots: Semaphore::new(limits.snapshots),
            sends: Semaphore::new(limits.sends),
            served: Semaphore::new(limits.served),
            config,
            backend,
            fence,
            transport,
            clock,
            random: Mutex::new(StdRng::from_seed(seed)),
            duties: watch::Sender::new(Vec::new()),
            heads: watch::Sender::new(Arc::new(heads)),
            progress: watch::Sender::default(),
            events,
            inbox: Mutex::new(Some(inbox)),
            turns: Mutex::default(),
            incoming: Incoming::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Runs the schedule until told to stop. A second call returns at once.
    pub async fn run(&self, shutdown: CancellationToken) {
        run::run(&self.inner, shutdown).await;
    }

    /// Says what this node is master of; the whole of it, each time.
    pub fn set_duties(&self, duties: Vec<Duty>) {
        self.inner.duties.send_replace(duties);
    }

    /// Takes a snapshot now, if anything changed.
    ///
    /// # Errors
    /// [`ReplicateError::NotMaster`], or what the backend said.
    pub async fn snapshot_now(
        &self,
        volume: VolumeId,
    ) -> Result<Option<SnapshotInfo>, ReplicateError> {
        let (taken, newest) = self.inner.snapshot(volume).await?;
        self.inner.tell(Event::Snapshotted(volume, Ok(newest)));
        Ok(taken)
    }

    /// Takes a snapshot if anything changed and sends the newest one to this node, replica or
    /// not. Answers what the node then holds durably.
    ///
    /// # Errors
    /// [`ReplicateError`]; a retry goes on where it broke.
    pub async fn bring_up_to_date(
        &self,
        volume: VolumeId,
        target: StoreId,
        deadline: Duration,
    ) -> Result<Head, ReplicateError> {
        let work = async {
            self.snapshot_now(volume).await?;
            let info = self.inner.push(volume, target).await?;
            let head = info.head;
            self.inner.tell(Event::Sent(volume, target, Ok(info)));
            Ok(head)
        };
        timeout(deadline, work)
            .await
            .map_err(|_elapsed| ReplicateError::TooLate { volume, within: deadline })?
    }

    /// Fetches the newest snapshot that this peer holds. Answers the newest one held here then.
    ///
    /// # Errors
    /// [`ReplicateError`]; a retry goes on where it broke.
    pub async fn fetch(
        &self,
        volume: VolumeId,
        from: StoreId,
        deadline: Duration,
    ) -> Result<Head, ReplicateError> {
        timeout(deadline, self.inner.pull(volume, from))
            .await
            .map_err(|_elapsed| ReplicateError::TooLate { volume, within: deadline })?
    }

    /// Serves one stream that a peer opened.
    pub async fn serve(&self, from: StoreId, stream: Box<dyn Stream>) {
        incoming::serve(&self.inner, from, stream).await;
    }

    /// How far each volume has come of which this node is master.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Arc<BTreeMap<VolumeId, VolumeProgress>>> {
        self.inner.progress.subscribe()
    }

    /// The newest snapshot of every volume held here, with each change.
    #[must_use]
    pub fn heads(&self) -> watch::Receiver<Arc<Heads>> {
        self.inner.heads.subscribe()
    }

    /// The newest snapshot of every volume held here, now.
    #[must_use]
    pub fn local_heads(&self) -> Arc<Heads> {
        self.inner.heads.borrow().clone()
    }

    /// The newest snapshot of this volume held here, and when it was taken.
    #[must_use]
    pub fn head(&self, volume: VolumeId) -> Option<(Head, WallTime)> {
        self.inner.heads.borrow().get(&volume).copied()
    }

    /// Reads the volume's head again, after the backend was used directly (a roll-back, a clone, a
    /// destruction).
    ///
    /// # Errors
    /// What the backend said.
    pub async fn refresh(&self, volume: VolumeId) -> Result<Option<Head>, ReplicateError> {
        Ok(self.inner.refresh(volume).await?.map(|info| info.head))
    }

    /// A random identity for a snapshot that the caller takes or sets aside.
    #[must_use]
    pub fn new_guid(&self) -> Guid {
        self.inner.guid()
    }
}

const fn head_of(info: &SnapshotInfo) -> (Head, WallTime) {
    (info.head, info.taken_at)
}

impl Inner {
    fn random(&self) -> MutexGuard<'_, StdRng> {
        self.random.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn guid(&self) -> Guid {
        self.random().random()
    }

    fn turn(&self, volume: VolumeId, to: Option<StoreId>) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        // Turns that nobody waits for are forgotten, so that there are never many.
        if turns.len() > 1024 {
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        }
        turns.entry((volume, to)).or_default().clone()
    }

    fn quiesce(&self, volume: VolumeId, epoch: Epoch) -> Arc<dyn Quiesce> {
        let duties = self.duties.borrow();
        let duty = duties.iter().find(|duty| duty.volume == volume && duty.epoch == epoch);
        duty.map_or_else(|| Arc::new(Still) as Arc<dyn Quiesce>, |duty| duty.quiesce.clone())
    }

    /// Tells the schedule what came of something that it did not ask for. If its inbox is full it
    /// finds out when it does the same itself.
    fn tell(&self, event: Event) {
        if self.events.try_send(event).is_err() {
            tracing::debug!("the schedule's inbox is full");
        }
    }

    async fn refresh(&self, volume: VolumeId) -> Result<Option<SnapshotInfo>, BackendError> {
        let listed = blocking(&self.backend, move |backend| backend.list(volume)).await;
        let newest = match listed {
            Ok(line) => line.last().cloned(),
            Err(SessionError::Backend(BackendError::NoVolume(_))) => None,
            Err(SessionError::Backend(error)) => return Err(error),
            Err(_other) => None,
        };
        self.note(volume, newest.as_ref());
        Ok(newest)
    }

    /// Announces the volume's newest snapshot.
    fn note(&self, volume: VolumeId, newest: Option<&SnapshotInfo>) {
        let head = newest.map(head_of);
        self.heads.send_if_modified(|heads| {
            if heads.get(&volume).copied() == head {
                return false;
            }
            let heads = Arc::make_mut(heads);
            match head {
                Some(head) => heads.insert(volume, head),
                None => heads.remove(&volume),
            };
            true
        });
    }

    /// Takes a snapshot if anything changed. Answers that one, and the newest one then.
    async fn snapshot(
        &self,
        volume: VolumeId,
    ) -> Result<(Option<SnapshotInfo>, Option<SnapshotInfo>), ReplicateError> {
        let turn = self.turn(volume, None);
        let _turn = turn.lock().await;
        // The semaphore is never closed; if it were, one more snapshot does no harm.
        let _permit = self.snapshots.acquire().await.ok();
        let not_master = || ReplicateError::NotMaster(volume);
        let epoch = self.fence.may_write(volume).ok_or_else(not_master)?;
        let (now, guid) = (self.clock.wall(), self.guid());
        let quiesce = self.quiesce(volume, epoch);
        let taken = blocking(&self.backend, move |backend| {
            backend.snapshot(volume, epoch, now, guid, &*quiesce)
        })
        .await
        .map_err(into_backend)?;
        let newest = self.refresh(volume).await?;
        if self.fence.may_write(volume) != Some(epoch) {
            // It is on the line here, but it is sent to nobody: the next master's stream makes a
            // branch of it.
            tracing::warn!(%volume, %epoch, "the lease ended while a snapshot was taken");
            return Err(not_master());
        }
        Ok((taken, newest))
    }

    async fn push(&self, volume: VolumeId, to: StoreId) -> Result<SnapshotInfo, ReplicateError> {
        let turn = self.turn(volume, Some(to));
        let _turn = turn.lock().await;
        let _permit = self.sends.acquire().await.ok();
        let stream = self.open(to).await?;
        let config = self.config.session.clone();
        let session = session::push(stream, config, &self.backend, &*self.fence, volume);
        self.bounded(volume, to, session).await
    }

    async fn pull(&self, volume: VolumeId, from: StoreId) -> Result<Head, ReplicateError> {
        let slot = self.incoming.enter(volume, None).await;
        let stream = self.open(from).await?;
        let config = self.config.session.clone();
        let note = |info: &SnapshotInfo| self.note(volume, Some(info));
        let session = session::pull(stream, config, &self.backend, volume, &note, slot.cancelled());
        let pulled = self.bounded(volume, from, session).await;
        let newest = self.refresh(volume).await?;
        pulled?;
        Ok(newest.map_or(Head::NONE, |info| info.head))
    }

    async fn open(&self, peer: StoreId) -> Result<Box<dyn Stream>, ReplicateError> {
        let within = self.config.limits.open;
        match timeout(within, self.transport.open(peer)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(source)) => Err(ReplicateError::Unreachable { peer, source }),
            Err(_elapsed) => Err(ReplicateError::Unreachable {
                peer,
                source: std::io::ErrorKind::TimedOut.into(),
            }),
        }
    }

    async fn bounded<T>(
        &self,
        volume: VolumeId,
        peer: StoreId,
        session: impl Future<Output = Result<T, SessionError>>,
    ) -> Result<T, ReplicateError> {
        let within = self.config.limits.session;
        match timeout(within, session).await {
            Ok(result) => result.map_err(|source| ReplicateError::Session { volume, peer, source }),
            Err(_elapsed) => Err(ReplicateError::TooLate { volume, within }),
        }
    }

    async fn prune(&self, volume: VolumeId, retention: Retention) {
        let pruned =
            blocking(&self.backend, move |backend| backend.prune(volume, &retention)).await;
        match pruned {
            Ok(gone) => tracing::debug!(%volume, gone, "old snapshots are pruned"),
            Err(error) => tracing::warn!(%volume, %error, "old snapshots cannot be pruned"),
        }
    }
}

fn into_backend(error: SessionError) -> ReplicateError {
    match error {
        SessionError::Backend(error) => ReplicateError::Backend(error),
        other => ReplicateError::Backend(BackendError::io(
            "work in",
            "the backend",
            std::io::Error::other(other.to_string()),
        )),
    }
}

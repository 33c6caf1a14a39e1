//! The agent's handle on leases: what it says is taken without waiting and merged a volume, so
//! that a fast caller can't fill a queue; what it asks is read from the last published views.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use flocker_base::{BootTime, Epoch, Head, StoreId, VolumeId, WallTime};
use tokio::sync::{Notify, mpsc, oneshot};

use super::event::{Event, LeaseError, LeaseEvent, LeaseView, Outcome, Request, VolumeFacts};
use super::record::Stamp;
use crate::model::{VoterConfig, Voters};

/// Most requests that wait for the driver.
const MOST_REQUESTS: usize = 1_024;

/// What was said of one volume since the driver last looked.
#[derive(Debug, Default)]
struct Said {
    facts: Option<Option<VolumeFacts>>,
    copy: Option<Option<Stamp>>,
    replicated: Option<Stamp>,
    seen: Option<Epoch>,
    campaign: Option<Option<(u32, String)>>,
}

type Answer = oneshot::Sender<Result<Outcome, LeaseError>>;

/// A request that someone waits for.
#[derive(Debug)]
pub(crate) enum Ask {
    Release(VolumeId, Option<StoreId>),
    ChangeVoters(VolumeId, Voters),
    Promote(VolumeId, Option<Voters>),
}

impl Ask {
    /// The event that puts it to the core.
    pub(crate) fn event(self, request: Request) -> Event {
        match self {
            Self::Release(volume, successor) => Event::Release { volume, successor, request },
            Self::ChangeVoters(volume, voters) => Event::ChangeVoters { volume, voters, request },
            Self::Promote(volume, force) => Event::Promote { volume, force, request },
        }
    }
}

#[derive(Debug, Default)]
struct Inbox {
    said: BTreeMap<VolumeId, Said>,
    asked: VecDeque<(Ask, Answer)>,
    closed: bool,
}

/// What the handle and the driver share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    inbox: Mutex<Inbox>,
    pub(crate) wake: Notify,
    views: RwLock<BTreeMap<VolumeId, LeaseView>>,
    floors: RwLock<BTreeMap<VolumeId, Epoch>>,
}

impl Shared {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that was said, as events, and all that was asked, in that order.
    pub(crate) fn take(&self) -> (Vec<Event>, VecDeque<(Ask, Answer)>) {
        let mut inbox = self.inbox();
        let said = std::mem::take(&mut inbox.said);
        let asked = std::mem::take(&mut inbox.asked);
        drop(inbox);
        let mut events = Vec::new();
        for (volume, said) in said {
            events.extend(said.facts.map(|facts| match facts {
                Some(facts) => Event::Observe(facts),
                None => Event::Forget(volume),
            }));
            events.extend(said.copy.map(|copy| Event::LocalCopy(volume, copy)));
            events.extend(said.seen.map(|epoch| Event::Seen(volume, epoch)));
            events.extend(said.replicated.map(|stamp| Event::Replicated(volume, stamp)));
            events.extend(said.campaign.map(|campaign| match campaign {
                Some((rank, reason)) => Event::Campaign { volume, rank, reason },
                None => Event::StandDown(volume),
            }));
        }
        (events, asked)
    }

    /// Publishes what is known of a volume.
    pub(crate) fn publish(&self, volume: VolumeId, view: Option<LeaseView>, floor: Epoch) {
        self.floors.write().unwrap_or_else(PoisonError::into_inner).insert(volume, floor);
        let mut views = self.views.write().unwrap_or_else(PoisonError::into_inner);
        match view {
            Some(view) => drop(views.insert(volume, view)),
            None => drop(views.remove(&volume)),
        }
    }

    /// The driver is gone: nothing is held any more as far as anyone here may tell.
    pub(crate) fn close(&self) {
        let asked = {
            let mut inbox = self.inbox();
            inbox.closed = true;
            std::mem::take(&mut inbox.asked)
        };
        self.views.write().unwrap_or_else(PoisonError::into_inner).clear();
        for (_, answer) in asked {
            let _ = answer.send(Err(LeaseError::Stopped));
        }
    }
}

/// Handle on this node's leases.
#[derive(Clone, Debug)]
pub struct Leases {
    shared: Arc<Shared>,
    events: Arc<Mutex<Option<mpsc::Receiver<LeaseEvent>>>>,
}

impl Leases {
    pub(crate) fn new(shared: Arc<Shared>, events: mpsc::Receiver<LeaseEvent>) -> Self {
        Self { shared, events: Arc::new(Mutex::new(Some(events))) }
    }

    fn say(&self, volume: VolumeId, change: impl FnOnce(&mut Said)) {
        let mut inbox = self.shared.inbox();
        if !inbox.closed {
            change(inbox.said.entry(volume).or_default());
            drop(inbox);
            self.shared.wake.notify_one();
        }
    }

    /// Tells that a volume exists, from the map.
    pub fn observe(&self, facts: VolumeFacts) {
        self.say(facts.volume, |said| said.facts = Some(Some(facts)));
    }

    /// Tells that the map knows a volume no more. A voter's record of it stays for ever.
    pub fn forget(&self, volume: VolumeId) {
        self.say(volume, |said| {
            said.facts = Some(None);
            said.campaign = None;
        });
    }

    /// Tells what this node holds durably of a volume, and can serve.
    pub fn set_local_head(&self, volume: VolumeId, head: Head, taken_at: WallTime) {
        self.say(volume, |said| said.copy = Some(Some(Stamp { head, taken_at })));
    }

    /// Tells that this node can serve no copy of a volume.
    pub fn clear_local_head(&self, volume: VolumeId) {
        self.say(volume, |said| said.copy = Some(None));
    }

    /// Tells, as the holder, the newest snapshot that a replica has durably.
    pub fn set_replicated(&self, volume: VolumeId, head: Head, taken_at: WallTime) {
        self.say(volume, |said| said.replicated = Some(Stamp { head, taken_at }));
    }

    /// Tries to win a volume, until won, lost or told to stand down. Rank zero starts at once,
    /// each further one a step later.
    pub fn campaign(&self, volume: VolumeId, rank: u32, reason: impl Into<String>) {
        let reason = reason.into();
        self.say(volume, |said| said.campaign = Some(Some((rank, reason))));
    }

    /// Stops trying to win a volume.
    pub fn stand_down(&self, volume: VolumeId) {
        self.say(volume, |said| said.campaign = Some(None));
    }

    /// Tells of an epoch that the map or a stream showed.
    pub fn raise_seen(&self, volume: VolumeId, epoch: Epoch) {
        self.say(volume, |said| said.seen = said.seen.max(Some(epoch)));
    }

    /// Gives a volume back: closed durably first, then told to the voters. The caller has stopped
    /// its writer. Once this is called, the epoch is over whatever the outcome.
    ///
    /// # Errors
    /// [`LeaseError::NotHolder`]; [`LeaseError::NoQuorum`] if too few voters answered yet (they
    /// are told until they do); [`LeaseError::Lost`]; [`LeaseError::Stopped`].
    pub async fn release(
        &self,
        volume: VolumeId,
        successor: Option<StoreId>,
    ) -> Result<Epoch, LeaseError> {
        match self.ask(Ask::Release(volume, successor)).await? {
            Outcome::Released(epoch) => Ok(epoch),
            Outcome::Voters(_) | Outcome::Won(_) => Err(LeaseError::Stopped),
        }
    }

    /// Changes the voters of a volume that this node holds. Ends once the new ones are in force.
    ///
    /// # Errors
    /// [`LeaseError::NotHolder`], [`LeaseError::ChangeInProgress`], [`LeaseError::BadVoters`],
    /// [`LeaseError::Lost`] or [`LeaseError::Stopped`]. It has no deadline of its own: without
    /// both majorities it goes on for as long as the volume is held.
    pub async fn change_voters(
        &self,
        volume: VolumeId,
        voters: Voters,
    ) -> Result<VoterConfig, LeaseError> {
        match self.ask(Ask::ChangeVoters(volume, voters)).await? {
            Outcome::Voters(config) => Ok(config),
            Outcome::Released(_) | Outcome::Won(_) => Err(LeaseError::Stopped),
        }
    }

    /// Has this node's copy lead because a person said so, however far behind it is. With voters,
    /// by force: under a new generation of epochs and these voters, whoever the present ones are,
    /// unless one that answers still promises the volume to somebody.
    ///
    /// # Errors
    /// [`LeaseError::NotPromoted`], [`LeaseError::Lost`] or [`LeaseError::Stopped`]. It ends within
    /// half a minute or so.
    pub async fn promote(
        &self,
        volume: VolumeId,
        force: Option<Voters>,
    ) -> Result<Epoch, LeaseError> {
        match self.ask(Ask::Promote(volume, force)).await? {
            Outcome::Won(epoch) => Ok(epoch),
            Outcome::Released(_) | Outcome::Voters(_) => Err(LeaseError::Stopped),
        }
    }

    async fn ask(&self, ask: Ask) -> Result<Outcome, LeaseError> {
        let (answer, outcome) = oneshot::channel();
        {
            let mut inbox = self.shared.inbox();
            if inbox.closed || inbox.asked.len() >= MOST_REQUESTS {
                return Err(LeaseError::Stopped);
            }
            inbox.asked.push_back((ask, answer));
        }
        self.shared.wake.notify_one();
        outcome.await.unwrap_or(Err(LeaseError::Stopped))
    }

    /// What this node knows of a volume's lease.
    #[must_use]
    pub fn view(&self, volume: VolumeId) -> Option<LeaseView> {
        self.views().get(&volume).cloned()
    }

    /// What this node knows of every lease.
    #[must_use]
    pub fn all(&self) -> Vec<LeaseView> {
        self.views().values().cloned().collect()
    }

    fn views(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<VolumeId, LeaseView>> {
        self.shared.views.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The highest epoch granted or seen: anything below it is refused.
    #[must_use]
    pub fn floor(&self, volume: VolumeId) -> Epoch {
        let floors = self.shared.floors.read().unwrap_or_else(PoisonError::into_inner);
        floors.get(&volume).copied().unwrap_or(Epoch::ZERO)
    }

    /// Until when this node holds this epoch, if it holds it now.
    #[must_use]
    pub fn holds(&self, volume: VolumeId, epoch: Epoch, now: BootTime) -> Option<BootTime> {
        let views = self.views();
        let held = views.get(&volume)?.held?;
        (held.epoch == epoch && now < held.until).then_some(held.until)
    }

    /// What happens, for one consumer: the first call takes the queue, later ones get one that
    /// has ended. Events only wake; [`Leases::view`] has the state, and events of one kind about
    /// one volume are merged while the consumer is slow.
    #[must_use]
    pub fn events(&self) -> mpsc::Receiver<LeaseEvent> {
        let taken = self.events.lock().unwrap_or_else(PoisonError::into_inner).take();
        taken.unwrap_or_else(|| {
            tracing::error!("lease events were taken twice: the second taker gets none");
            mpsc::channel(1).1
        })
    }
}

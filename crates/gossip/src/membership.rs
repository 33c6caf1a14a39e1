//! Which nodes there are, what each says of itself, and which seem to be alive: a chitchat pool a
//! region, one between regions in which a few bridges of each take part, and rosters that carry
//! what a region's members are to the others.
//!
//! ```text
//!   Wire ──▶ guard ──▶ inbox ──▶ chitchat ──▶ outlet ──▶ Wire     a pool, twice
//!                                   │
//!   Wire ◀── calls ◀── shell ◀──▶ core: roll, bridge, rosters, scout
//!                         │
//!                        View ──▶ address book, events
//! ```
//!
//! Invariants:
//! - Suspicion never decides ownership; it is a hint for views, repair and the moment to ask for
//!   an election.
//! - Only messages of authenticated peers arrive here, a reply goes to the peer that the wire says
//!   it came from, and no byte reaches chitchat's decoder before the guard has read it whole.
//! - A node's generation comes from its durable store and rises with every start, so that no state
//!   of an earlier start is taken for the present one.
//! - What a node says of itself stays under [`MAX_STATE_BYTES`], and the number of states of a pool
//!   under [`MAX_STATES`]: beyond, chitchat 0.11.2 stops or panics.
//! - Decisions are the core's, which is synchronous; the shell waits, asks it and obeys.

mod bridge;
mod chat_id;
mod config;
mod core;
mod detector;
mod event;
mod facts;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod guard;
mod lookout;
mod pace;
mod pool;
mod roll;
mod roster;
mod scout;
mod shell;
pub mod starts;
mod transport;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flocker_base::{BootTime, Clock, ClusterId, Incarnation, StoreId};
use tokio::sync::{Notify, broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;

use self::shell::{Asked, Desk, Shell};
use self::transport::Inlet;
use crate::addresses::{AddressBookStore, AddressError};
use crate::control::{Handler, Kind, Wire};
use crate::model::{Load, NodeFacts};

pub use self::config::MembershipConfig;
pub use self::event::{Event, EventKind};
pub use self::guard::{
    MAX_ANNOUNCED_BYTES, MAX_KEY_BYTES, MAX_KEYS, MAX_STATE_BYTES, MAX_STATES, MAX_VALUE_BYTES,
};
pub use self::lookout::{Lookout, Scope, lookout};
pub use self::roster::MAX_REGIONS;

#[cfg(test)]
mod live;
#[cfg(test)]
mod tests;

/// The number of states in one pool at which the operator is warned: a digest grows with each, and
/// each restart of a node makes one that stays for a while.
const ALARM_STATES: usize = 300;

/// Keys of this module's own in a node's state; [`Membership::set`] refuses them, since they are
/// shorter than it allows.
const KEY_FACTS: &str = "f";
const KEY_ROOT: &str = "m";
const KEY_LOAD: &str = "l";
/// What a bridge says of the other regions' rosters to its own region.
const KEY_NOTICES: &str = "o";
/// The digest of its region's roster, as a bridge tells the other regions.
const KEY_ROSTER: &str = "r";
/// Set by a node that leaves a pool: because it stops as it was asked to, or because it no longer
/// is a bridge.
const KEY_LEFT: &str = "x";
const STOPPED: &str = "";
const STEPPED_DOWN: &str = "b";
const OWN_KEYS: [&str; 6] = [KEY_FACTS, KEY_ROOT, KEY_LOAD, KEY_NOTICES, KEY_ROSTER, KEY_LEFT];

/// Time between two changes of the load that are announced: each goes to every node of the region.
const LOAD_INTERVAL: Duration = Duration::from_secs(30);

/// The most events that wait for a listener; one that is slower misses the oldest.
const MAX_EVENTS: usize = 1024;

/// From this many events at once on, they are logged as one line.
const MANY_EVENTS: usize = 8;

/// Runs of nodes that a watch holds for dead or vouches for, by store and incarnation.
pub type Suspicions = BTreeSet<(StoreId, Incarnation)>;

/// What a watch says of the runs that it watches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdicts {
    /// Those that it holds for dead.
    pub suspected: Suspicions,
    /// Those that it knows to live.
    pub vouched: Suspicions,
}

/// This node, as membership announces it.
#[derive(Clone, Debug)]
pub struct LocalNode {
    /// Its cluster. Peers of another are refused (by their certificate, and here once more).
    pub cluster: ClusterId,
    /// The count of its store's starts.
    pub incarnation: Incarnation,
    /// What it says of itself.
    pub facts: NodeFacts,
    /// Nodes to begin with, besides those in the address book.
    pub seeds: Vec<StoreId>,
    /// How long to wait before it announces itself: see [`starts`].
    pub announce_after: Duration,
}

/// Every node that is known of, as this node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// By store, this node among them.
    pub nodes: BTreeMap<StoreId, Arc<Member>>,
}

/// A node as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// What it says of itself.
    pub facts: NodeFacts,
    /// Whether it seems to be alive.
    pub liveness: Liveness,
    /// Since when, by this node's clock.
    pub since: BootTime,
    /// The count of its store's starts.
    pub incarnation: Incarnation,
    /// The root of its placement map, once it has said. Without one it is unknown: a node of
    /// another region tells its root to bridges alone.
    pub map_root: Option<[u8; 32]>,
    /// How busy it last said it is. Of a node of another region, bridges alone know.
    pub load: Option<Load>,
    /// What else it announces: see [`Membership::set`]. Of a node of another region, bridges alone
    /// know.
    pub values: BTreeMap<String, String>,
}

/// Whether a node seems to be alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// Its heartbeats arrive.
    Live,
    /// They do not, or not yet twice, or a watch suspects it: see [`Membership::judge`].
    Suspected,
    /// It said that it stops.
    Left,
}

/// Why membership could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// The configuration does not hold together.
    #[error("the membership configuration can't be used: {0}")]
    Config(&'static str),
    /// The incarnation can't be announced.
    #[error(
        "this store's count of starts ({0}) is beyond what can be announced: the state database is damaged; move the state folder away and join as a new node"
    )]
    Incarnation(u64),
    /// A value can't be announced.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// Gossip could not start.
    #[error("membership gossip could not start: {0}")]
    Start(String),
    /// Gossip ended although no one asked it to.
    #[error(
        "membership gossip ended by itself ({0}): this node no longer knows who is alive; it must be started again"
    )]
    Ended(String),
    /// It runs already.
    #[error("membership runs already: it can't be run twice at once")]
    Running,
    /// The address book could not be written.
    #[error(transparent)]
    Book(#[from] AddressError),
}

/// Why a value can't be announced.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// The key is reserved, empty, too long or has other characters.
    #[error("'{0}' can't be announced as a key: use 2 to {MAX_KEY_BYTES} of a-z, 0-9 and '_'")]
    Key(String),
    /// The value is too long.
    #[error(
        "the value of '{key}' has {len} bytes and may have {MAX_VALUE_BYTES}: announce a digest of it, and let peers pull it"
    )]
    Long {
        /// The key.
        key: String,
        /// The value's length in bytes.
        len: usize,
    },
    /// All values together are too long.
    #[error(
        "with '{key}' this node would announce {len} bytes in {keys} keys, and may announce {MAX_ANNOUNCED_BYTES} in {MAX_KEYS}"
    )]
    Total {
        /// The key.
        key: String,
        /// All bytes together.
        len: usize,
        /// All keys together.
        keys: usize,
    },
}

/// The handle on membership. A clone is the same membership.
#[derive(Clone)]
pub struct Membership {
    inner: Arc<Inner>,
}

struct Inner {
    config: MembershipConfig,
    local: LocalNode,
    me: StoreId,
    wire: Arc<dyn Wire>,
    book: AddressBookStore,
    clock: Arc<dyn Clock>,
    region_inlet: Arc<Inlet>,
    between_inlet: Arc<Inlet>,
    announced: Mutex<BTreeMap<String, String>>,
    announcement: Notify,
    load: Mutex<Option<(BootTime, Load)>>,
    /// What the watch of the region and that of the bridges say.
    verdicts: watch::Sender<[Verdicts; 2]>,
    /// The bridges that this one sees in the pool between regions, if it is in it.
    bridges: watch::Sender<BTreeMap<StoreId, Incarnation>>,
    events: broadcast::Sender<Event>,
    view: watch::Sender<Arc<View>>,
    generations: AtomicU16,
    /// Held while membership runs.
    requests: tokio::sync::Mutex<mpsc::Receiver<Asked>>,
}

/// The handlers of membership's messages and calls, with the kind of each.
pub type Handlers = [(Kind, Arc<dyn Handler>); 3];

impl std::fmt::Debug for Membership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Membership").field("me", &self.inner.me).finish_non_exhaustive()
    }
}

impl Membership {
    /// The membership of this node, and the handlers of its messages and calls. Nothing is sent
    /// before [`Self::run`].
    ///
    /// # Errors
    /// [`MembershipError::Config`], [`MembershipError::Incarnation`] or [`MembershipError::Value`].
    pub fn new(
        config: MembershipConfig,
        node: LocalNode,
        wire: Arc<dyn Wire>,
        book: AddressBookStore,
        clock: Arc<dyn Clock>,
    ) -> Result<(Self, Handlers), MembershipError> {
        config.validate()?;
        chat_id::generation(node.incarnation, u16::MAX)
            .ok_or(MembershipError::Incarnation(node.incarnation.0))?;
        let me = wire.local();
        let inlet = |kind, region| {
            let pool = pool::id_of(node.cluster, region);
            Arc::new(Inlet::new(me, kind, pool, Arc::clone(&clock)))
        };
        let region_inlet = inlet(Kind::Membership, Some(&node.facts.region));
        let between_inlet = inlet(Kind::Bridges, None);
        let (desk, requests) = mpsc::channel(shell::MAX_REQUESTS);
        let mut announced = BTreeMap::new();
        announce(&mut announced, KEY_FACTS, facts::encode(&node.facts)?)?;
        let own = Member {
            facts: node.facts.clone(),
            liveness: Liveness::Live,
            since: clock.boot(),
            incarnation: node.incarnation,
            map_root: None,
            load: None,
            values: BTreeMap::new(),
        };
        let handlers: Handlers = [
            (Kind::Membership, Arc::<Inlet>::clone(&region_inlet)),
            (Kind::Bridges, Arc::<Inlet>::clone(&between_inlet)),
            (Kind::Roster, Arc::new(Desk(desk))),
        ];
        let inner = Inner {
            config,
            local: node,
            me,
            wire,
            book,
            clock,
            region_inlet,
            between_inlet,
            announced: Mutex::new(announced),
            announcement: Notify::new(),
            load: Mutex::default(),
            verdicts: watch::Sender::default(),
            bridges: watch::Sender::default(),
            events: broadcast::Sender::new(MAX_EVENTS),
            view: watch::Sender::new(Arc::new(View { nodes: [(me, Arc::new(own))].into() })),
            generations: AtomicU16::new(0),
            requests: tokio::sync::Mutex::new(requests),
        };
        Ok((Self { inner: Arc::new(inner) }, handlers))
    }

    /// This node's store.
    #[must_use]
    pub fn local(&self) -> StoreId {
        self.inner.me
    }

    /// The view, as it changes.
    #[must_use]
    pub fn view(&self) -> watch::Receiver<Arc<View>> {
        self.inner.view.subscribe()
    }

    /// What happens to nodes from now on. A receiver that lags behind is told how many events it
    /// missed: the view has what counts.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.inner.events.subscribe()
    }

    /// Takes what a watch says of runs of nodes, in place of what it said before. A node is live in
    /// the view if its heartbeats arrive or a watch vouches for it, and none suspects it; the view
    /// and the events follow at once.
    pub fn judge(&self, scope: Scope, verdicts: Verdicts) {
        self.inner.verdicts.send_if_modified(|before| {
            let before = &mut before[scope as usize];
            let changed = *before != verdicts;
            *before = verdicts;
            changed
        });
    }

    /// The bridges in the pool between regions, this node among them, as long as it is in it.
    fn bridges(&self) -> watch::Receiver<BTreeMap<StoreId, Incarnation>> {
        self.inner.bridges.subscribe()
    }

    /// Announces the root of this node's placement map.
    ///
    /// # Errors
    /// [`ValueError::Total`] if too much else is announced.
    pub fn set_map_root(&self, root: [u8; 32]) -> Result<(), ValueError> {
        self.announce(KEY_ROOT, facts::encode_root(&root))
    }

    /// Announces other facts of this node.
    ///
    /// # Errors
    /// Any [`ValueError`].
    pub fn set_facts(&self, facts: &NodeFacts) -> Result<(), ValueError> {
        self.announce(KEY_FACTS, facts::encode(facts)?)
    }

    /// Announces how busy this node is, in steps of ten per cent and no more often than every
    /// `LOAD_INTERVAL`: what comes too soon is left out, and comes again with the next call.
    ///
    /// # Errors
    /// [`ValueError::Total`] if too much else is announced.
    pub fn set_load(&self, load: Load) -> Result<(), ValueError> {
        let (now, load) = (self.inner.clock.boot(), load.in_steps());
        let mut told = self.inner.load.lock().unwrap_or_else(PoisonError::into_inner);
        if told
            .is_some_and(|(at, before)| before == load || now.saturating_since(at) < LOAD_INTERVAL)
        {
            return Ok(());
        }
        *told = Some((now, load));
        drop(told);
        self.announce(KEY_LOAD, facts::encode_load(load))
    }

    /// Announces a small value to every node of the region, until it is set anew.
    ///
    /// # Errors
    /// Any [`ValueError`]; nothing is then changed.
    pub fn set(&self, key: &str, value: impl Into<String>) -> Result<(), ValueError> {
        if key.len() < 2 || !guard::is_key(key) {
            return Err(ValueError::Key(key.chars().take(80).collect()));
        }
        self.announce(key, value.into())
    }

    fn announce(&self, key: &str, value: String) -> Result<(), ValueError> {
        let mut announced = self.inner.announced.lock().unwrap_or_else(PoisonError::into_inner);
        announce(&mut announced, key, value)?;
        drop(announced);
        self.inner.announcement.notify_one();
        Ok(())
    }

    /// Gossips until told to shut down. After an error it may be run again: it then announces
    /// itself anew, and peers take that for a restart. Not cancel safe: dropping the future ends
    /// the gossip, and it must be run again.
    ///
    /// # Errors
    /// [`MembershipError::Ended`] when gossip ended by itself; [`MembershipError::Book`], after
    /// which the process must end, since its database can't be relied on; others when it could
    /// not start.
    pub async fn run(&self, shutdown: CancellationToken) -> Result<(), MembershipError> {
        let inner = &*self.inner;
        let mut requests = inner.requests.try_lock().map_err(|_why| MembershipError::Running)?;
        if inner.generations.load(Ordering::Relaxed) == 0 && !inner.local.announce_after.is_zero() {
            let after = inner.local.announce_after;
            tracing::warn!(?after, "this node started often of late, and waits before it gossips");
            tokio::select! {
                () = tokio::time::sleep(after) => {}
                () = shutdown.cancelled() => return Ok(()),
            }
        }
        let mut shell = Shell::start(inner).await?;
        let result = shell.drive(&mut requests, &shutdown).await;
        shell.stop(result.is_ok()).await;
        result
    }
}

impl Inner {
    /// A generation for a pool that is entered now: higher than those before.
    fn next_generation(&self) -> Result<u64, MembershipError> {
        let damaged = MembershipError::Incarnation(self.local.incarnation.0);
        let add = |n: u16| n.checked_add(1);
        let run = self
            .generations
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add)
            .map_err(|_all_used| MembershipError::Start("it was started too often".to_owned()))?;
        chat_id::generation(self.local.incarnation, run).ok_or(damaged)
    }

    /// Every store that is known of.
    fn stores(&self) -> Vec<StoreId> {
        let mut stores = self.book.stores();
        stores.extend(&self.local.seeds);
        stores.sort_unstable();
        stores.dedup();
        stores
    }

    fn tell(&self, events: Vec<Event>) {
        if events.len() >= MANY_EVENTS {
            let of = |kind| events.iter().filter(|event| event.kind == kind).count();
            tracing::warn!(
                joined = of(EventKind::Joined),
                left = of(EventKind::Left),
                restarted = of(EventKind::Restarted),
                suspected = of(EventKind::Suspected),
                returned = of(EventKind::Returned),
                "many nodes changed at once (`flocker events`)"
            );
        } else {
            events.iter().for_each(Event::log);
        }
        for event in events {
            // Nobody need listen.
            let _ = self.events.send(event);
        }
    }

    /// What all watches say together.
    fn verdicts_now(&self) -> Verdicts {
        let [mut all, of_bridges] = self.verdicts.borrow().clone();
        all.suspected.extend(of_bridges.suspected);
        all.vouched.extend(of_bridges.vouched);
        all
    }

    fn announced_now(&self) -> BTreeMap<String, String> {
        self.announced.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Puts a value among those announced, if there is room for it.
fn announce(
    announced: &mut BTreeMap<String, String>,
    key: &str,
    value: String,
) -> Result<(), ValueError> {
    if value.len() > MAX_VALUE_BYTES {
        return Err(ValueError::Long { key: key.to_owned(), len: value.len() });
    }
    let others = announced.iter().filter(|(k, _)| *k != key);
    let (keys, len) = others
        .fold((1, key.len() + value.len()), |(n, len), (k, v)| (n + 1, len + k.len() + v.len()));
    if len > MAX_ANNOUNCED_BYTES || keys > MAX_KEYS {
        return Err(ValueError::Total { key: key.to_owned(), len, keys });
    }
    announced.insert(key.to_owned(), value);
    Ok(())
}

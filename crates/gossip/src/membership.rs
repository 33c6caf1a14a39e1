//! Which nodes there are, what each says of itself, and which seem to be alive: chitchat, carried
//! by [`Wire`] alone.
//!
//! ```text
//!   Wire ──▶ guard ──▶ inbox ──▶ chitchat ──▶ outlet ──▶ Wire
//!                                   │
//!                                 roll ──▶ View ──▶ address book
//! ```
//!
//! Invariants:
//! - Suspicion never decides ownership; it is a hint for views, repair and the moment to ask for
//!   an election.
//! - Only messages of authenticated peers arrive here, a reply goes to the peer that the wire says
//!   it came from, and no byte reaches chitchat's decoder before the guard has read it whole.
//! - A node's generation comes from its durable store and rises with every start, so that no state
//!   of an earlier start is taken for the present one.
//! - What a node says of itself stays under [`MAX_STATE_BYTES`], and the number of states under
//!   [`MAX_STATES`]: beyond, chitchat 0.11.2 stops or panics.

mod chat_id;
mod config;
mod detector;
mod event;
mod facts;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod guard;
mod lookout;
mod roll;
mod transport;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chitchat::{ChitchatConfig, ChitchatHandle, FailureDetectorConfig, spawn_chitchat};
use flocker_base::{BootTime, Clock, ClusterId, Incarnation, StoreId};
use tokio::sync::{Notify, broadcast, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use self::roll::{Roll, Sighting};
use self::transport::{Inlet, Outlet};
use crate::addresses::{AddressBookStore, AddressError};
use crate::control::{Handler, Wire};
use crate::join::KnownNode;
use crate::model::NodeFacts;

pub use self::config::MembershipConfig;
pub use self::event::{Event, EventKind};
pub use self::guard::{MAX_KEY_BYTES, MAX_KEYS, MAX_STATE_BYTES, MAX_STATES, MAX_VALUE_BYTES};
pub use self::lookout::{Lookout, lookout};

#[cfg(test)]
mod live;
#[cfg(test)]
mod tests;

/// The number of states at which the operator is warned: a digest grows with each, and each
/// restart of a node makes one that stays for a while.
const ALARM_STATES: usize = 300;

/// How long chitchat may take to end when asked to.
const ENDING: Duration = Duration::from_secs(2);

/// Keys of this module's own in a node's state; [`Membership::set`] refuses them.
const KEY_FACTS: &str = "f";
const KEY_ROOT: &str = "m";
/// Set by a node that stops because it was asked to.
const KEY_LEFT: &str = "x";

/// The most events that wait for a listener; one that is slower misses the oldest.
const MAX_EVENTS: usize = 1024;

/// How many peers a node that stops tells so itself, and how long it gives them to ask.
const FAREWELLS: usize = 8;
const FAREWELL: Duration = Duration::from_millis(300);

/// Runs of nodes that a watch other than chitchat's own suspects, by store and incarnation.
pub type Suspicions = BTreeSet<(StoreId, Incarnation)>;

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
}

/// Every node that is known of, as this node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// By store, this node among them.
    pub nodes: BTreeMap<StoreId, Member>,
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
    /// The root of its placement map, once it has said.
    pub map_root: Option<[u8; 32]>,
    /// What else it announces: see [`Membership::set`].
    pub values: BTreeMap<String, String>,
}

/// Whether a node seems to be alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// Its heartbeats arrive.
    Live,
    /// They do not, or not yet twice, or the watch suspects it: see [`Membership::suspect`].
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
        "with '{key}' this node would announce {len} bytes in {keys} keys, and may announce {MAX_STATE_BYTES} in {MAX_KEYS}"
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
    cluster: ClusterId,
    me: StoreId,
    incarnation: Incarnation,
    seeds: Vec<StoreId>,
    wire: Arc<dyn Wire>,
    book: AddressBookStore,
    clock: Arc<dyn Clock>,
    inlet: Arc<Inlet>,
    announced: Mutex<BTreeMap<String, String>>,
    announcement: Notify,
    suspicions: watch::Sender<Suspicions>,
    events: broadcast::Sender<Event>,
    view: watch::Sender<Arc<View>>,
    runs: tokio::sync::Mutex<u16>,
}

impl std::fmt::Debug for Membership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Membership").field("me", &self.inner.me).finish_non_exhaustive()
    }
}

impl Membership {
    /// The membership of this node, and the handler of its messages
    /// ([`crate::control::Kind::Membership`]). Nothing is sent before [`Self::run`].
    ///
    /// # Errors
    /// [`MembershipError::Config`], [`MembershipError::Incarnation`] or [`MembershipError::Value`].
    pub fn new(
        config: MembershipConfig,
        node: LocalNode,
        wire: Arc<dyn Wire>,
        book: AddressBookStore,
        clock: Arc<dyn Clock>,
    ) -> Result<(Self, Arc<dyn Handler>), MembershipError> {
        config.validate()?;
        chat_id::generation(node.incarnation, u16::MAX)
            .ok_or(MembershipError::Incarnation(node.incarnation.0))?;
        let me = wire.local();
        let inlet = Arc::new(Inlet::new(me, node.cluster, Arc::clone(&clock)));
        let mut announced = BTreeMap::new();
        announce(&mut announced, KEY_FACTS, facts::encode(&node.facts)?)?;
        let own = Member {
            facts: node.facts,
            liveness: Liveness::Live,
            since: clock.boot(),
            incarnation: node.incarnation,
            map_root: None,
            values: BTreeMap::new(),
        };
        let inner = Inner {
            config,
            cluster: node.cluster,
            me,
            incarnation: node.incarnation,
            seeds: node.seeds,
            wire,
            book,
            clock,
            inlet: Arc::clone(&inlet),
            announced: Mutex::new(announced),
            announcement: Notify::new(),
            suspicions: watch::Sender::default(),
            events: broadcast::Sender::new(MAX_EVENTS),
            view: watch::Sender::new(Arc::new(View { nodes: [(me, own)].into() })),
            runs: tokio::sync::Mutex::new(0),
        };
        Ok((Self { inner: Arc::new(inner) }, inlet))
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

    /// Says which runs of nodes a watch suspects, in place of what it said before. A node is live
    /// in the view if its heartbeats arrive and its run is not among these; the view and the
    /// events follow at once.
    pub fn suspect(&self, suspected: Suspicions) {
        self.inner.suspicions.send_if_modified(|before| {
            let changed = *before != suspected;
            *before = suspected;
            changed
        });
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

    /// Announces a small value to every node, until it is set anew.
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
        let mut runs = inner.runs.try_lock().map_err(|_why| MembershipError::Running)?;
        let generation = chat_id::generation(inner.incarnation, *runs)
            .ok_or(MembershipError::Incarnation(inner.incarnation.0))?;
        *runs = runs.saturating_add(1);
        let chat = inner.start(generation).await?;
        let result = inner.drive(&chat, generation, &shutdown).await;
        inner.inlet.close();
        match timeout(ENDING, chat.shutdown()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "membership gossip did not end well"),
            Err(_) => tracing::warn!("membership gossip did not end in time"),
        }
        result
    }
}

impl Inner {
    async fn start(&self, generation: u64) -> Result<ChitchatHandle, MembershipError> {
        let id = chat_id::of(self.me, generation);
        let mut seeds = self.book.stores();
        seeds.extend(&self.seeds);
        seeds.sort_unstable();
        seeds.dedup();
        seeds.retain(|store| *store != self.me);
        let config = ChitchatConfig {
            listen_addr: id.gossip_advertise_addr,
            chitchat_id: id,
            cluster_id: self.cluster.to_string(),
            gossip_interval: self.config.gossip_interval,
            seed_nodes: seeds.iter().map(|s| chat_id::address(*s).to_string()).collect(),
            failure_detector_config: FailureDetectorConfig::new(
                self.config.phi_threshold,
                200,
                Duration::from_secs(10),
                self.config.initial_interval,
                self.config.dead_node_grace,
            ),
            marked_for_deletion_grace_period: Duration::from_secs(20 * 60),
            catchup_callback: None,
            extra_liveness_predicate: None,
        };
        let outlet = Outlet::new(Arc::clone(&self.wire), self.inlet.open(generation));
        spawn_chitchat(config, self.announced_now().into_iter().collect(), &outlet)
            .await
            .map_err(|error| MembershipError::Start(format!("{error:#}")))
    }

    async fn drive(
        &self,
        chat: &ChitchatHandle,
        generation: u64,
        shutdown: &CancellationToken,
    ) -> Result<(), MembershipError> {
        let mut roll = Roll::new(self.me, generation, (**self.view.borrow()).clone());
        let mut reading = interval(self.config.view_interval);
        reading.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reaching = interval(self.config.reconnect_interval);
        reaching.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last_reached = None;
        let mut suspicions = self.suspicions.subscribe();
        let ended = chat.termination_watcher();
        tokio::pin!(ended);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => {
                    self.bid_farewell(chat).await;
                    return Ok(());
                }
                end = &mut ended => {
                    let why = end.map_or_else(|e| format!("{e:#}"), |()| "without a word".into());
                    return Err(MembershipError::Ended(why));
                }
                () = self.announcement.notified() => {
                    let announced = self.announced_now();
                    let chitchat = chat.chitchat();
                    let mut chitchat = chitchat.lock().await;
                    for (key, value) in announced {
                        chitchat.self_node_state().set(key, value);
                    }
                }
                _ = reading.tick() => self.read(chat, &mut roll).await?,
                Ok(()) = suspicions.changed() => self.read(chat, &mut roll).await?,
                _ = reaching.tick() => {
                    last_reached = roll.next_missing(&self.book.stores(), last_reached);
                    if let Some(store) = last_reached
                        && let Err(error) = chat.gossip(chat_id::address(store))
                    {
                        return Err(MembershipError::Ended(format!("{error:#}")));
                    }
                }
            }
        }
    }

    /// Reads chitchat's state into the view, and new addresses into the book.
    async fn read(&self, chat: &ChitchatHandle, roll: &mut Roll) -> Result<(), MembershipError> {
        let now = self.clock.boot();
        let (held, changes) = {
            let chitchat = chat.chitchat();
            let chitchat = chitchat.lock().await;
            let live: std::collections::HashSet<_> = chitchat.live_nodes().collect();
            let sightings = chitchat.node_states().iter().filter_map(|(id, state)| {
                let (store, generation) = chat_id::parse(id)?;
                Some(Sighting {
                    store,
                    generation,
                    live: live.contains(id),
                    version: state.max_version(),
                    values: state.key_values().collect(),
                })
            });
            let sightings: Vec<_> = sightings.collect();
            let held: Vec<_> = sightings.iter().map(|s| (s.store, s.generation)).collect();
            let suspected = self.suspicions.borrow();
            (held, roll.update(now, &sightings, &suspected))
        };
        if let Some(states) = roll.alarm(now, held.len()) {
            tracing::warn!(
                states,
                alarm = ALARM_STATES,
                most = MAX_STATES,
                "there are many states in the membership gossip, and every restart of a node adds \
                 one for a while: look for nodes that start over and over (`flocker status`)"
            );
        }
        self.inlet.keep(&held);
        if !changes.reached.is_empty() {
            self.note(changes.reached).await?;
        }
        if let Some(view) = changes.view {
            self.view.send_replace(view);
        }
        for event in changes.events {
            // Nobody need listen.
            let _ = self.events.send(event);
        }
        Ok(())
    }

    /// Says that this node stops, to a few peers at once; the others learn it from them.
    async fn bid_farewell(&self, chat: &ChitchatHandle) {
        let peers: Vec<_> = {
            let chitchat = chat.chitchat();
            let mut chitchat = chitchat.lock().await;
            chitchat.self_node_state().set(KEY_LEFT, "");
            let me = chat_id::address(self.me);
            let live = chitchat.live_nodes().map(|id| id.gossip_advertise_addr);
            live.filter(|address| *address != me).collect()
        };
        if peers.is_empty() {
            return;
        }
        for peer in peers.into_iter().take(FAREWELLS) {
            // Gossip that has ended by itself can't tell anyone.
            let _ = chat.gossip(peer);
        }
        tokio::time::sleep(FAREWELL).await;
    }

    /// Writes addresses to the book, on a thread where that may block.
    async fn note(&self, reached: Vec<KnownNode>) -> Result<(), MembershipError> {
        let book = self.book.clone();
        let written = tokio::task::spawn_blocking(move || {
            reached.iter().try_for_each(|node| {
                match book.learn(node.store, &node.control, &node.data) {
                    Err(error @ AddressError::Full) => {
                        tracing::warn!(%error, store = %node.store, "an address is not noted");
                        Ok(())
                    }
                    other => other.map(|_| ()),
                }
            })
        });
        match written.await {
            Ok(result) => Ok(result?),
            Err(error) => Err(MembershipError::Ended(format!("writing addresses: {error}"))),
        }
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
    if len > MAX_STATE_BYTES || keys > MAX_KEYS {
        return Err(ValueError::Total { key: key.to_owned(), len, keys });
    }
    announced.insert(key.to_owned(), value);
    Ok(())
}

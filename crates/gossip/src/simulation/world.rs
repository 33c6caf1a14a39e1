//! The simulated world: true time, the queue of what happens next, nodes with their clocks, disks
//! and the real map and core. It decides nothing that a core decides.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use flocker_base::{BootTime, Clock, Name, StoreId};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::checks::Ledger;
use super::disk::Disk;
use super::mutants::Mutant;
use super::network::{Network, OVERHEAD};
use super::node::{Node, Running, SkewedClock};
use super::views::{Membership, Pools};
use crate::map::sync::core::SyncCore;
use crate::map::sync::event::{Ask, Command, Event, Parcel, Reply};
use crate::map::sync::links::Member;
use crate::map::sync::{Request, work};
use crate::map::{Edit, Map, RecordKey};
use crate::model::Placement;

/// True time, in microseconds.
pub(super) type Micros = u64;

pub(super) const MILLISECOND: Micros = 1_000;
pub(super) const SECOND: Micros = 1_000 * MILLISECOND;

/// What a user or a master changes.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Edit(Edit),
    Place(Placement),
}

/// What takes a node's disk.
#[derive(Debug)]
pub(super) enum Work {
    Read(Vec<RecordKey>),
    Merge(Vec<Parcel>),
    Answer { to: StoreId, reply: Reply, request: Request },
    Change(Change),
}

/// What happens next.
#[derive(Debug)]
pub(super) enum Item {
    Push { from: usize, to: usize, bytes: Bytes },
    Question { from: usize, life: u32, to: usize, ask: Ask, bytes: Bytes },
    Answer { to: usize, life: u32, ask: Ask, answer: Result<Bytes, String> },
    Done { node: usize, life: u32, work: Work },
    Wake { node: usize, life: u32 },
    View { node: usize, life: u32, number: u64, members: Arc<[Member]> },
    Edit,
    Fault,
    Start { node: usize },
    Repair,
}

/// Bytes and messages that the nodes sent.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Traffic {
    pub(super) pushes: u64,
    pub(super) push_bytes: u64,
    pub(super) questions: u64,
    pub(super) pull_bytes: u64,
}

pub(super) struct World {
    pub(super) now: Micros,
    pub(super) random: StdRng,
    pub(super) nodes: Vec<Node>,
    pub(super) network: Network,
    pub(super) ledger: Ledger,
    pub(super) mutant: Option<Mutant>,
    /// How long a change takes to be on disk.
    pub(super) commit: (Micros, Micros),
    pub(super) traffic: Traffic,
    /// When each record was first changed on each node, if that is to be known.
    pub(super) arrivals: Option<BTreeMap<RecordKey, BTreeMap<usize, Micros>>>,
    pub(super) membership: Pools,
    pub(super) partitioned_at: Micros,
    pub(super) telling: bool,
    clock: Arc<AtomicU64>,
    numbers: BTreeMap<StoreId, usize>,
    queue: BTreeMap<(Micros, u64), Item>,
    queued: u64,
    views: u64,
    pub(super) last_arrival: BTreeMap<(usize, usize), Micros>,
    happened: BTreeMap<&'static str, u64>,
    trace: DefaultHasher,
}

impl World {
    /// A world of so many nodes in so many regions; none runs yet.
    pub(super) fn new(seed: u64, count: usize, regions: usize, mutant: Option<Mutant>) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let network = Network::good(&mut random, regions);
        let mut world = Self {
            now: 0,
            random,
            nodes: Vec::new(),
            network,
            ledger: Ledger::default(),
            mutant,
            commit: (2 * MILLISECOND, 8 * MILLISECOND),
            traffic: Traffic::default(),
            arrivals: None,
            membership: Pools::default(),
            partitioned_at: 0,
            telling: false,
            clock: Arc::default(),
            numbers: BTreeMap::new(),
            queue: BTreeMap::new(),
            queued: 0,
            views: 0,
            last_arrival: BTreeMap::new(),
            happened: BTreeMap::new(),
            trace: DefaultHasher::new(),
        };
        for number in 0..count {
            world.add_node(number % regions, Disk::default());
        }
        world
    }

    /// Adds a node; it does not run yet.
    pub(super) fn add_node(&mut self, region: usize, disk: Disk) -> usize {
        let number = self.nodes.len();
        let mut id: [u8; 16] = self.random.random();
        id[0] = u8::try_from(number % 251).expect("small");
        let store = StoreId::from_bytes(id);
        let skew = self.random.random_range(-25_000..=25_000);
        self.network.regions.push(region);
        self.network.sides.push(0);
        let name = Name::new(format!("r{region}")).expect("a name");
        self.membership.add(store, region, name);
        self.numbers.insert(store, number);
        let running = None;
        self.nodes.push(Node { store, region, disk, running, gone: false, life: 0, skew });
        number
    }

    pub(super) fn note(&mut self, what: &'static str) {
        *self.happened.entry(what).or_default() += 1;
    }

    pub(super) fn happened(&self) -> &BTreeMap<&'static str, u64> {
        &self.happened
    }

    pub(super) fn trace(&self) -> u64 {
        self.trace.finish()
    }

    pub(super) fn put(&mut self, after: Micros, item: Item) {
        self.queued += 1;
        self.queue.insert((self.now + after, self.queued), item);
    }

    /// The nodes that run.
    pub(super) fn running(&self) -> impl Iterator<Item = (usize, &Map)> {
        let nodes = self.nodes.iter().enumerate();
        nodes.filter_map(|(number, node)| Some((number, &node.running.as_ref()?.map)))
    }

    /// Starts a node from what its disk holds.
    pub(super) fn start(&mut self, number: usize) {
        let seed = self.random.random();
        let node = &mut self.nodes[number];
        if node.running.is_some() || node.gone {
            return;
        }
        let clock = Arc::new(SkewedClock { now: Arc::clone(&self.clock), skew: node.skew });
        let now = clock.boot();
        let map = Map::open(node.disk.open(), node.store, clock).expect("a sound disk opens");
        let region = Name::new(format!("r{}", node.region)).expect("a name");
        let core = SyncCore::new(node.store, region, seed, now);
        let root = map.root();
        node.life += 1;
        node.running = Some(Running {
            map,
            core,
            members: Arc::from([]),
            view: 0,
            replies: BTreeMap::new(),
            replied: 0,
            wake_at: None,
            written_at: self.now,
        });
        self.membership.on_state(number, true, self.network.sides[number]);
        self.membership.on_root(self.now, number, root);
        self.schedule_wake(number);
    }

    /// Kills a node's process. Its disk keeps what was synced.
    pub(super) fn kill(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        node.disk = node.disk.after_crash();
        node.running = None;
        node.life += 1;
        self.membership.on_state(number, false, self.network.sides[number]);
    }

    /// Lets the nodes hear, one after the other, who lives now.
    pub(super) fn tell_views(&mut self, within: Micros) {
        self.views += 1;
        let number = self.views;
        let sides = self.membership.sides();
        for node in 0..self.nodes.len() {
            if self.nodes[node].running.is_none() {
                continue;
            }
            let Some(members) = sides.get(&self.network.sides[node]) else { continue };
            let (members, life) = (Arc::clone(members), self.nodes[node].life);
            let after = self.random.random_range(within / 8..=within);
            self.put(after, Item::View { node, life, number, members });
        }
    }

    /// Lets happen what happens until then.
    pub(super) fn run_until(&mut self, until: Micros) {
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > until {
                break;
            }
            let ((at, number), item) = entry.remove_entry();
            self.now = at;
            self.clock.store(at, Ordering::Relaxed);
            (at, number, std::mem::discriminant(&item)).hash(&mut self.trace);
            self.happen(item);
        }
        self.now = until;
        self.clock.store(until, Ordering::Relaxed);
    }

    fn is_alive(&self, node: usize, life: u32) -> bool {
        self.nodes[node].life == life && self.nodes[node].running.is_some()
    }

    fn happen(&mut self, item: Item) {
        match item {
            Item::Push { from, to, bytes } => {
                if self.arrives(from, to) {
                    let from = self.nodes[from].store;
                    self.step(to, Event::Pushed { from, bytes });
                }
            }
            Item::Question { from, life, to, ask, bytes } => {
                if self.arrives(from, to)
                    && let Some(running) = &mut self.nodes[to].running
                {
                    running.replied += 1;
                    let reply = Reply(running.replied);
                    running.replies.insert(reply, (from, life, ask));
                    let from = self.nodes[from].store;
                    self.step(to, Event::Asked { from, reply, bytes });
                }
            }
            Item::Answer { to, life, ask, answer } if self.is_alive(to, life) => {
                self.step(to, Event::Answered(ask, answer));
            }
            Item::Done { node, life, work } if self.is_alive(node, life) => self.done(node, work),
            Item::Wake { node, life } if self.is_alive(node, life) => {
                if let Some(running) = &mut self.nodes[node].running {
                    running.wake_at = None;
                }
                self.step(node, Event::Tick);
            }
            Item::View { node, life, number, members } if self.is_alive(node, life) => {
                if let Some(running) = &mut self.nodes[node].running
                    && running.view < number
                {
                    running.view = number;
                    running.members = Arc::clone(&members);
                    self.step(node, Event::Members(members));
                }
            }
            Item::Answer { .. } | Item::Done { .. } | Item::Wake { .. } | Item::View { .. } => {}
            Item::Edit => self.edit(),
            Item::Fault => self.fault(),
            Item::Start { node } => {
                if self.nodes[node].running.is_none() && !self.nodes[node].gone {
                    self.start(node);
                    self.note("restart");
                    self.tell_views(2 * SECOND);
                }
            }
            Item::Repair => self.repair(),
        }
    }

    /// Whether something on its way gets there now.
    fn arrives(&mut self, from: usize, to: usize) -> bool {
        if self.network.is_cut(from, to) {
            self.note("message cut off");
            return false;
        }
        self.nodes[to].running.is_some()
    }

    /// One step of a node's core, and what it commands.
    pub(super) fn step(&mut self, node: usize, event: Event) {
        let now = BootTime::from_duration(Duration::from_micros(self.now));
        let Some(running) = &mut self.nodes[node].running else { return };
        let commands = work::step(&mut running.core, &running.map, now, event);
        for command in commands {
            self.carry_out(node, command);
        }
        self.schedule_wake(node);
    }

    fn schedule_wake(&mut self, node: usize) {
        let (now, life) = (self.now, self.nodes[node].life);
        let Some(running) = &mut self.nodes[node].running else { return };
        let deadline = running.core.next_deadline().since_boot().as_micros();
        let at = u64::try_from(deadline).unwrap_or(u64::MAX).max(now + 1);
        if running.wake_at.is_none_or(|earlier| at < earlier) {
            running.wake_at = Some(at);
            self.put(at - now, Item::Wake { node, life });
        }
    }

    fn carry_out(&mut self, node: usize, command: Command) {
        match command {
            Command::Look => {
                let Some(running) = &self.nodes[node].running else { return };
                let roots = self.membership.roots(self.now, node, &running.members);
                self.step(node, Event::Roots(roots));
            }
            Command::Push { to, bytes } => {
                for peer in to {
                    let Some(to) = self.numbers.get(&peer).copied() else { continue };
                    self.traffic.pushes += 1;
                    self.traffic.push_bytes += (bytes.len() + OVERHEAD) as u64;
                    let bytes = bytes.clone();
                    self.send(node, to, bytes.len(), &|| Item::Push {
                        from: node,
                        to,
                        bytes: bytes.clone(),
                    });
                }
            }
            Command::Ask { ask, peer, bytes, within } => {
                let life = self.nodes[node].life;
                let Some(to) = self.numbers.get(&peer).copied() else { return };
                self.traffic.questions += 1;
                self.traffic.pull_bytes += (bytes.len() + OVERHEAD) as u64;
                let answer = Err("no answer".to_owned());
                let patience = u64::try_from(within.as_micros()).expect("short");
                self.put(patience, Item::Answer { to: node, life, ask, answer });
                if self.mutant != Some(Mutant::NoPull) {
                    self.send(node, to, bytes.len(), &|| Item::Question {
                        from: node,
                        life,
                        to,
                        ask,
                        bytes: bytes.clone(),
                    });
                }
            }
            Command::Refuse { reply, why } => self.answer(node, reply, &Err(why)),
            Command::Warn { what, why, .. } => {
                self.note("something refused");
                if self.telling {
                    println!("{:>9} us node {node} refused {what}: {why}", self.now);
                }
            }
            Command::Read(keys) => self.work(node, Work::Read(keys)),
            Command::Merge(parcels) => self.work(node, Work::Merge(parcels)),
            Command::Answer { to, reply, request } => {
                self.work(node, Work::Answer { to, reply, request });
            }
        }
    }

    /// Gives work to a node's disk: reading takes a moment, changes come one after the other.
    pub(super) fn work(&mut self, node: usize, work: Work) {
        let commit = self.random.random_range(self.commit.0..=self.commit.1);
        let read = self.random.random_range(MILLISECOND / 10..=MILLISECOND);
        let (now, life) = (self.now, self.nodes[node].life);
        let Some(running) = &mut self.nodes[node].running else { return };
        let at = match work {
            Work::Read(_) | Work::Answer { .. } => now + read,
            Work::Merge(_) | Work::Change(_) => {
                running.written_at = now.max(running.written_at) + commit;
                running.written_at
            }
        };
        self.put(at - now, Item::Done { node, life, work });
    }

    fn done(&mut self, node: usize, work: Work) {
        let Some(running) = &self.nodes[node].running else { return };
        let map = running.map.clone();
        match work {
            Work::Read(keys) => {
                let event = work::read(&map, keys).expect("a sound disk");
                self.step(node, event);
            }
            Work::Merge(parcels) => {
                let mut event = work::merge(&map, parcels).expect("a sound disk");
                self.membership.on_root(self.now, node, map.root());
                if let Event::Merged(outcome) = &mut event {
                    if let Some(arrivals) = &mut self.arrivals {
                        for (key, ..) in &outcome.changed {
                            let of_key = arrivals.entry(key.clone()).or_default();
                            of_key.entry(node).or_insert(self.now);
                        }
                    }
                    if self.mutant == Some(Mutant::NoPassingOn) {
                        outcome.changed.clear();
                    }
                }
                self.step(node, event);
            }
            Work::Answer { to, reply, request } => {
                self.answer(node, reply, &work::answer(&map, request));
                self.step(node, Event::Replied { to });
            }
            Work::Change(change) => self.changed(node, &map, &change),
        }
    }

    /// A change that is on disk now: from here on it must never be lost.
    fn changed(&mut self, node: usize, map: &Map, change: &Change) {
        let made = match change {
            Change::Edit(edit) => map.edit([edit.clone()]),
            Change::Place(placement) => map.place(placement),
        };
        if made.is_err() {
            self.note("edit refused");
            return;
        }
        if self.mutant != Some(Mutant::EarlyAcknowledgement) {
            self.ledger.acknowledge(node, change);
        }
        if let (Some(arrivals), Change::Edit(edit)) = (&mut self.arrivals, change) {
            arrivals.entry(edit.key()).or_default().insert(node, self.now);
        }
        self.membership.on_root(self.now, node, map.root());
        if let Some(event) = work::changed(map) {
            self.step(node, event);
        }
    }

    fn answer(&mut self, node: usize, reply: Reply, answer: &Result<Bytes, String>) {
        let Some(running) = &mut self.nodes[node].running else { return };
        let Some((to, life, ask)) = running.replies.remove(&reply) else { return };
        let size = answer.as_ref().map_or(40, Bytes::len);
        self.traffic.pull_bytes += (size + OVERHEAD) as u64;
        self.send(node, to, size, &|| Item::Answer { to, life, ask, answer: answer.clone() });
    }

    fn send(&mut self, from: usize, to: usize, size: usize, item: &dyn Fn() -> Item) {
        let delays = self.network.carry(&mut self.random, from, to, size);
        match delays.len() {
            0 if self.network.is_cut(from, to) => self.note("message cut off"),
            0 => self.note("message lost"),
            1 => {}
            _ => self.note("message doubled"),
        }
        for delay in delays {
            let at = self.now + delay;
            let last = self.last_arrival.entry((from, to)).or_default();
            let overtaken = at < *last;
            *last = at.max(*last);
            if overtaken {
                self.note("message overtaken");
            }
            self.put(delay, item());
        }
    }
}

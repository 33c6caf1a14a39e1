//! The virtual world: its clock, its network and its nodes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use flocker_base::{BootTime, Incarnation, StoreId};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::super::ring::hash;
use super::super::{Command, Event, Message, Report, Verdict, Watch, WatchConfig};

/// How a node dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Death {
    /// Its host lives, and says that nothing listens.
    Process,
    /// Nothing answers.
    Host,
}

#[derive(Debug)]
struct Node {
    watch: Watch,
    incarnation: Incarnation,
    death: Option<Death>,
    hangs_until: BootTime,
    woken_at: BootTime,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    Wake(usize),
    Arrive { from: usize, to: usize, bytes: Vec<u8> },
    Probed { at: usize, of: usize, refused: bool },
    Learn { at: usize, of: usize, incarnation: u64 },
}

pub(super) struct World {
    pub(super) now: BootTime,
    pub(super) random: StdRng,
    pub(super) loss: f64,
    pub(super) slow: bool,
    pub(super) cuts: BTreeSet<(usize, usize)>,
    pub(super) sent: u64,
    pub(super) bytes: u64,
    pub(super) lost: u64,
    pub(super) cut: u64,
    pub(super) convictions: u64,
    pub(super) refutations: u64,
    pub(super) unheard: u64,
    pub(super) trace: u64,
    changed: bool,
    nodes: Vec<Node>,
    known: Vec<BTreeMap<StoreId, Incarnation>>,
    queue: BinaryHeap<Reverse<(BootTime, u64, Happening)>>,
    number: u64,
}

pub(super) fn store(index: usize) -> StoreId {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&(index as u64 + 1).to_be_bytes());
    StoreId::from_bytes(bytes)
}

impl World {
    pub(super) fn new(seed: u64, nodes: usize) -> Self {
        let mut world = Self {
            now: BootTime::from_millis(10_000),
            random: StdRng::seed_from_u64(seed),
            loss: 0.0,
            slow: false,
            cuts: BTreeSet::new(),
            sent: 0,
            bytes: 0,
            lost: 0,
            cut: 0,
            convictions: 0,
            refutations: 0,
            unheard: 0,
            trace: 0,
            changed: true,
            nodes: Vec::new(),
            known: Vec::new(),
            queue: BinaryHeap::new(),
            number: 0,
        };
        let members: BTreeMap<_, _> = (0..nodes).map(|i| (store(i), Incarnation(1))).collect();
        for index in 0..nodes {
            let seed = world.random.random();
            world.nodes.push(Node {
                watch: Watch::new(store(index), Incarnation(1), WatchConfig::default(), seed),
                incarnation: Incarnation(1),
                death: None,
                hangs_until: BootTime::ZERO,
                woken_at: BootTime::NEVER,
            });
            world.known.push(members.clone());
        }
        for index in 0..nodes {
            world.tell_members(index);
        }
        world
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn lives(&self, node: usize) -> bool {
        self.nodes[node].death.is_none()
    }

    pub(super) fn kill(&mut self, node: usize, death: Death) {
        self.nodes[node].death = Some(death);
    }

    pub(super) fn hang(&mut self, node: usize, time: Duration) {
        self.nodes[node].hangs_until = self.now + time;
    }

    /// Starts a dead node anew. Others learn of it from chitchat, each in its own time.
    pub(super) fn restart(&mut self, node: usize) {
        let incarnation = Incarnation(self.nodes[node].incarnation.0 + 1);
        let seed = self.random.random();
        self.nodes[node] = Node {
            watch: Watch::new(store(node), incarnation, WatchConfig::default(), seed),
            incarnation,
            death: None,
            hangs_until: BootTime::ZERO,
            woken_at: BootTime::NEVER,
        };
        self.known[node] =
            self.nodes.iter().enumerate().map(|(i, n)| (store(i), n.incarnation)).collect();
        self.tell_members(node);
        for at in 0..self.nodes.len() {
            let after = Duration::from_millis(self.random.random_range(10..1_500));
            let incarnation = incarnation.0;
            self.push(self.now + after, Happening::Learn { at, of: node, incarnation });
        }
    }

    /// What one node holds of another.
    pub(super) fn verdict(&self, at: usize, of: usize) -> Verdict {
        self.nodes[at].watch.verdict(store(of), self.nodes[of].incarnation)
    }

    /// What the living hold wrongly.
    pub(super) fn wrong(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for at in (0..self.len()).filter(|at| self.lives(*at)) {
            for of in 0..self.len() {
                let verdict = self.verdict(at, of);
                if (verdict == Verdict::Alive) != self.lives(of) {
                    wrong.push(format!("node {at} holds node {of} for {verdict:?}"));
                }
            }
        }
        wrong
    }

    pub(super) fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        self.run_until(end, |_| false);
    }

    /// Runs until the end, or until this is so.
    pub(super) fn run_until(&mut self, end: BootTime, is_so: impl Fn(&Self) -> bool) {
        while let Some(Reverse((at, _, _))) = self.queue.peek()
            && *at <= end
        {
            let Some(Reverse((at, _, what))) = self.queue.pop() else { break };
            self.now = at;
            self.happen(what);
            if std::mem::take(&mut self.changed) && is_so(self) {
                return;
            }
        }
        self.now = end;
    }

    fn happen(&mut self, what: Happening) {
        let node = match &what {
            Happening::Wake(node) => *node,
            Happening::Arrive { to, .. } => *to,
            Happening::Probed { at, .. } | Happening::Learn { at, .. } => *at,
        };
        if self.nodes[node].death.is_some() {
            return;
        }
        if self.nodes[node].hangs_until > self.now {
            let until = self.nodes[node].hangs_until;
            self.push(until, what);
            return;
        }
        let event = match what {
            Happening::Wake(_) if self.nodes[node].woken_at > self.now => return,
            Happening::Wake(_) => Event::Tick,
            Happening::Arrive { from, bytes, .. } => {
                let message = Message::decode(&bytes).expect("what was encoded");
                Event::Message { from: store(from), message }
            }
            Happening::Probed { of, refused, .. } => Event::Probed { store: store(of), refused },
            Happening::Learn { of, incarnation, .. } => {
                let known = self.known[node].entry(store(of)).or_default();
                *known = (*known).max(Incarnation(incarnation));
                self.tell_members(node);
                return;
            }
        };
        self.step(node, event);
    }

    fn tell_members(&mut self, node: usize) {
        let members = self.known[node].clone();
        self.step(node, Event::Members(members));
    }

    fn step(&mut self, node: usize, event: Event) {
        self.record(node, &event);
        let commands = self.nodes[node].watch.step(self.now, event);
        for command in commands {
            match command {
                Command::Send { to, message } => self.send(node, to, &message),
                Command::Probe { store } => self.probe(node, store),
                Command::Report(Report::Convicted { by, .. }) => {
                    self.convictions += u64::from(by == store(node));
                }
                Command::Report(Report::Refuted { .. }) => self.refutations += 1,
                Command::Report(Report::Unheard { .. }) => self.unheard += 1,
                Command::Changed => self.changed = true,
                Command::Report(Report::Returned { .. }) => {}
            }
        }
        let deadline = self.nodes[node].watch.next_deadline();
        self.nodes[node].woken_at = deadline;
        if deadline < BootTime::NEVER {
            self.push(deadline, Happening::Wake(node));
        }
    }

    fn record(&mut self, node: usize, event: &Event) {
        let what = match event {
            Event::Message { message, .. } => message.encode(),
            Event::Members(members) => vec![0, u8::try_from(members.len() % 256).expect("small")],
            Event::Probed { refused, .. } => vec![1, u8::from(*refused)],
            Event::Tick => vec![2],
        };
        let mut bytes = self.trace.to_le_bytes().to_vec();
        bytes.extend(self.now.since_boot().as_nanos().to_le_bytes());
        bytes.extend(node.to_le_bytes());
        bytes.extend(what);
        self.trace = hash(&bytes);
    }

    fn index(of: StoreId) -> usize {
        let [a, b, c, d, e, f, g, h, ..] = *of.as_bytes();
        usize::try_from(u64::from_be_bytes([a, b, c, d, e, f, g, h])).expect("an index") - 1
    }

    fn delay(&mut self) -> Duration {
        let most = if self.slow { 200_000 } else { 2_000 };
        Duration::from_micros(self.random.random_range(200..most))
    }

    /// Whether something gets through.
    fn passes(&mut self, from: usize, to: usize) -> bool {
        if self.cuts.contains(&(from, to)) {
            self.cut += 1;
            return false;
        }
        let lost = self.random.random_bool(self.loss);
        self.lost += u64::from(lost);
        !lost
    }

    fn send(&mut self, from: usize, to: StoreId, message: &Message) {
        let to = Self::index(to);
        let bytes = message.encode();
        self.sent += 1;
        self.bytes += bytes.len() as u64;
        if self.passes(from, to) {
            let at = self.now + self.delay();
            self.push(at, Happening::Arrive { from, to, bytes });
        }
    }

    fn probe(&mut self, at: usize, of: StoreId) {
        let of = Self::index(of);
        let closed = self.nodes[of].death == Some(Death::Process);
        let refused = closed && self.passes(at, of) && self.passes(of, at);
        let after = if refused { self.delay() } else { Duration::from_millis(400) };
        self.push(self.now + after, Happening::Probed { at, of, refused });
    }

    fn push(&mut self, at: BootTime, what: Happening) {
        self.number += 1;
        self.queue.push(Reverse((at, self.number, what)));
    }
}

//! The simulated world: true time, the queue of what happens next, nodes with their clocks and
//! disks.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use flocker_base::{BootTime, Incarnation, StoreId, VolumeId, WallTime};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::super::config::LeaseConfig;
use super::super::core::LeaseCore;
use super::super::event::{Alarm, Command, Event, Ticket};
use super::super::message::{self, Message, Packet};
use super::super::record::{Durable, Stamp, Start, Write};
use super::agent::Placed;
use super::checks::{Guarded, Winners, check_alone, check_said, check_write};
use super::mutants::Mutant;
use super::network::{Network, chance};

/// True time, in microseconds.
pub(super) type Micros = u64;

pub(super) const SECOND: Micros = 1_000_000;
/// Faults happen until here.
pub(super) const FAULTS_END: Micros = 40 * SECOND;
/// By here everything must be well again.
const WELL_BY: Micros = FAULTS_END + 30 * SECOND;
const END: Micros = WELL_BY + 8 * SECOND;

/// What happened in a run.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) violation: Option<String>,
    pub(super) happened: BTreeMap<&'static str, u64>,
    pub(super) trace: u64,
}

/// What happens next.
#[derive(Clone, Debug)]
pub(super) enum Item {
    Packet {
        from: usize,
        to: usize,
        packet: Packet,
    },
    Committed {
        node: usize,
        life: u32,
    },
    Wake {
        node: usize,
        life: u32,
    },
    Agent {
        node: usize,
        life: u32,
        event: Event,
    },
    /// The guard of a node hears of an earlier end.
    Shorten {
        node: usize,
        volume: VolumeId,
    },
    Fetch {
        node: usize,
        from: usize,
        volume: VolumeId,
    },
    Poll,
    Fault,
    Restart {
        node: usize,
    },
    Repair,
}

/// One node.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) store: StoreId,
    pub(super) core: Option<LeaseCore>,
    /// Tells lives of a node apart: what one life began does not reach the next.
    pub(super) life: u32,
    pub(super) durable: Durable,
    pub(super) waiting: Option<(Ticket, Vec<Write>)>,
    pub(super) committing: Option<(Ticket, Vec<Write>)>,
    wake_at: Option<Micros>,
    /// Millionths of true time.
    rate: u64,
    offset: u64,
    pub(super) guarded: Guarded,
    /// What its map says: the newest master's epoch and voters.
    pub(super) placed: BTreeMap<VolumeId, Placed>,
    pub(super) copies: BTreeMap<VolumeId, Stamp>,
    incarnation: u64,
    pub(super) newest_beats: BTreeMap<StoreId, u64>,
    /// What has come and is taken in with what comes next.
    pub(super) together: Vec<Event>,
}

impl Node {
    pub(super) fn local(&self, now: Micros) -> BootTime {
        let micros = u128::from(now) * u128::from(self.rate) / 1_000_000;
        let micros = u64::try_from(micros).expect("a short run") + self.offset;
        BootTime::from_duration(Duration::from_micros(micros))
    }

    /// The first true time at which the local clock reads at least this.
    fn true_time(&self, local: BootTime) -> Micros {
        let micros = local.since_boot().as_micros().saturating_sub(u128::from(self.offset));
        u64::try_from((micros * 1_000_000).div_ceil(u128::from(self.rate))).unwrap_or(u64::MAX)
    }
}

/// The world.
#[derive(Debug)]
pub(super) struct World {
    pub(super) now: Micros,
    pub(super) random: StdRng,
    pub(super) nodes: Vec<Node>,
    pub(super) volumes: Vec<(VolumeId, BTreeSet<StoreId>)>,
    pub(super) network: Network,
    pub(super) winners: Winners,
    pub(super) frozen: BTreeSet<(usize, VolumeId)>,
    pub(super) mutant: Option<Mutant>,
    config: LeaseConfig,
    queue: BTreeMap<(Micros, u64), Item>,
    queued: u64,
    last_arrival: BTreeMap<(usize, usize), Micros>,
    pub(super) disk_delay: (u64, u64),
    happened: BTreeMap<&'static str, u64>,
    trace: DefaultHasher,
    telling: bool,
}

impl World {
    pub(super) fn new(seed: u64, mutant: Option<Mutant>) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let count = random.random_range(3..=5);
        let drift = if mutant == Some(Mutant::WildClocks) { 300_000 } else { 90_000 };
        let nodes: Vec<_> = (0..count)
            .map(|number| Node {
                store: StoreId::from_bytes([number + 1; 16]),
                core: None,
                life: 0,
                durable: Durable::default(),
                waiting: None,
                committing: None,
                wake_at: None,
                rate: random.random_range(1_000_000 - drift..=1_000_000 + drift),
                offset: random.random_range(0..1_000 * SECOND),
                guarded: Guarded::new(),
                copies: BTreeMap::new(),
                placed: BTreeMap::new(),
                incarnation: 0,
                newest_beats: BTreeMap::new(),
                together: Vec::new(),
            })
            .collect();
        let stores: Vec<_> = nodes.iter().map(|node| node.store).collect();
        let volumes = (0..random.random_range(1..=3))
            .map(|number| {
                let size = if chance(&mut random, 150) { 1 } else { 3 };
                let voters = stores.sample(&mut random, size).copied().collect();
                (VolumeId::from_bytes([number + 101; 16]), voters)
            })
            .collect();
        Self {
            now: 0,
            random,
            nodes,
            volumes,
            network: Network::good(),
            winners: Winners::default(),
            frozen: BTreeSet::new(),
            mutant,
            config: LeaseConfig {
                frozen_limit: Duration::from_secs(15),
                successor_hold: Duration::from_secs(15),
                ..LeaseConfig::default()
            },
            queue: BTreeMap::new(),
            queued: 0,
            last_arrival: BTreeMap::new(),
            disk_delay: (300, 8_000),
            happened: BTreeMap::new(),
            trace: DefaultHasher::new(),
            telling: false,
        }
    }

    pub(super) fn telling(mut self) -> Self {
        self.telling = true;
        self
    }

    pub(super) fn note(&mut self, what: &'static str) {
        *self.happened.entry(what).or_default() += 1;
    }

    pub(super) fn put(&mut self, after: Micros, item: Item) {
        self.queued += 1;
        self.queue.insert((self.now + after, self.queued), item);
    }

    pub(super) fn index(&self, store: StoreId) -> usize {
        self.nodes.iter().position(|node| node.store == store).expect("a store of this world")
    }

    pub(super) fn run(mut self) -> Outcome {
        let violation = self.play().err();
        let happened = std::mem::take(&mut self.happened);
        Outcome { violation, happened, trace: self.trace.finish() }
    }

    fn play(&mut self) -> Result<(), String> {
        for node in 0..self.nodes.len() {
            let clock = if self.nodes[node].rate > 1_050_000 {
                "fast clock"
            } else if self.nodes[node].rate < 950_000 {
                "slow clock"
            } else {
                "fair clock"
            };
            self.note(clock);
            self.boot(node)?;
        }
        self.put(SECOND, Item::Poll);
        self.put(2 * SECOND, Item::Fault);
        self.put(FAULTS_END, Item::Repair);
        let mut epochs = None;
        while let Some(((at, number), item)) = self.queue.pop_first() {
            if at >= WELL_BY && epochs.is_none() {
                epochs = Some(self.check_well()?);
            }
            if at > END {
                break;
            }
            self.now = at;
            (at, number, std::mem::discriminant(&item)).hash(&mut self.trace);
            self.happen(item).map_err(|violation| format!("at {at} us: {violation}"))?;
            let guards = self.nodes.iter().map(|n| (n.store, n.local(at), &n.guarded));
            check_alone(guards).map_err(|violation| format!("at {at} us: {violation}"))?;
        }
        let stable = self.check_well()?;
        if epochs.as_ref() == Some(&stable) {
            Ok(())
        } else {
            Err(format!("an election in a healthy mesh: {epochs:?} became {stable:?}"))
        }
    }

    /// Liveness: every volume has one holder, no change of voters is half done.
    fn check_well(&self) -> Result<Vec<flocker_base::Epoch>, String> {
        let mut epochs = Vec::new();
        for (volume, _) in &self.volumes {
            let views = self.nodes.iter().filter_map(|node| {
                let view = node.core.as_ref()?.view(*volume)?;
                let held = view.held?;
                (node.local(self.now) < held.until).then_some((node.store, held.epoch, view.config))
            });
            let holders: Vec<_> = views.collect();
            match holders.as_slice() {
                [(_, epoch, config)] if config.joint.is_none() => epochs.push(*epoch),
                _ => return Err(format!("not well again: {volume:?} is held by {holders:?}")),
            }
        }
        Ok(epochs)
    }

    fn happen(&mut self, item: Item) -> Result<(), String> {
        match item {
            Item::Packet { from, to, packet } => self.deliver(from, to, packet),
            Item::Committed { node, life } if self.nodes[node].life == life => self.committed(node),
            Item::Wake { node, life } if self.nodes[node].life == life => {
                self.nodes[node].wake_at = None;
                self.step(node, Event::Tick)
            }
            Item::Agent { node, life, event } if self.nodes[node].life == life => {
                self.step(node, event)
            }
            Item::Committed { .. } | Item::Wake { .. } | Item::Agent { .. } => Ok(()),
            Item::Shorten { node, volume } => {
                self.follow_guard(node, volume, true);
                Ok(())
            }
            Item::Fetch { node, from, volume } => self.fetch(node, from, volume),
            Item::Poll => self.poll(),
            Item::Fault => self.fault(),
            Item::Restart { node } => self.boot(node),
            Item::Repair => self.repair(),
        }
    }

    pub(super) fn boot(&mut self, node: usize) -> Result<(), String> {
        let now = self.now;
        let (seed, nonce) = (self.random.random(), self.random.random());
        let config = self.config.clone();
        let mutant = self.mutant;
        let this = &mut self.nodes[node];
        if this.core.is_some() {
            return Ok(());
        }
        let again = this.incarnation > 0;
        this.incarnation += 1;
        if let (Some(mutant), true) = (mutant, again) {
            mutant.spoil_disk(&mut this.durable);
        }
        let start = Start { incarnation: Incarnation(this.incarnation), nonce };
        let durable = this.durable.clone();
        this.core = Some(LeaseCore::new(this.local(now), this.store, start, config, durable, seed));
        this.wake_at = None;
        this.together.clear();
        if again {
            self.note("restart");
        }
        self.introduce(node)
    }

    pub(super) fn apply(&mut self, node: usize, writes: Vec<Write>) -> Result<(), String> {
        for write in writes {
            check_write(&self.nodes[node].durable, &write)?;
            self.nodes[node].durable.apply(write);
        }
        Ok(())
    }

    /// One step of a node's core, and what it commands.
    pub(super) fn step(&mut self, node: usize, event: Event) -> Result<(), String> {
        let now = self.now;
        let local = self.nodes[node].local(now);
        let together = std::mem::take(&mut self.nodes[node].together);
        let Some(core) = &mut self.nodes[node].core else { return Ok(()) };
        let commands = core.step_all(local, together.into_iter().chain([event]));
        let touched = core.take_touched();
        for volume in touched {
            self.follow_guard(node, volume, false);
        }
        let mut early = None;
        for command in commands {
            match command {
                Command::Persist(ticket, writes) => {
                    self.persist(node, ticket, writes);
                    early = (self.mutant == Some(Mutant::EarlyAnnouncement)).then_some(ticket);
                }
                Command::Send(to, messages) => self.send(node, to, &messages)?,
                Command::Emit(event) => {
                    event.hash(&mut self.trace);
                    if self.telling {
                        println!("{now:>9} us {:?}: {event:?}", self.nodes[node].store);
                    }
                    self.react(node, &event)?;
                }
                Command::Reply(_, outcome) => self.noticed(&outcome),
                // Packets of an earlier life may come late.
                Command::Alarm(Alarm::StaleStart { .. }) => self.note("late packet refused"),
                Command::Alarm(alarm) => {
                    if self.mutant.is_none() {
                        return Err(format!("an alarm without cause: {alarm}"));
                    }
                }
            }
        }
        self.schedule_wake(node);
        early.map_or(Ok(()), |ticket| self.step(node, Event::Persisted(ticket)))
    }

    fn schedule_wake(&mut self, node: usize) {
        let this = &mut self.nodes[node];
        let Some(deadline) = this.core.as_ref().and_then(LeaseCore::next_deadline) else { return };
        let at = this.true_time(deadline).max(self.now + 1);
        if this.wake_at.is_none_or(|earlier| at < earlier) {
            this.wake_at = Some(at);
            let life = this.life;
            self.put(at - self.now, Item::Wake { node, life });
        }
    }

    /// The guard follows what the agent knows: later ends and losses at once, earlier ends after
    /// a while.
    fn follow_guard(&mut self, node: usize, volume: VolumeId, shorten: bool) {
        let this = &mut self.nodes[node];
        let Some(core) = &this.core else { return };
        let held = core.held(volume);
        let guarded = this.guarded.get(&volume).copied();
        match (held, guarded) {
            (Some(held), Some((epoch, until)))
                if !shorten && epoch == held.epoch && held.until < until =>
            {
                self.put(2 * SECOND, Item::Shorten { node, volume });
            }
            (Some(held), _) => drop(this.guarded.insert(volume, (held.epoch, held.until))),
            // Not confirmed again since a restart: the guard goes on as it was told.
            (None, Some(_)) if core.view(volume).is_some_and(|view| view.campaigning) => {}
            (None, _) => drop(this.guarded.remove(&volume)),
        }
    }

    fn persist(&mut self, node: usize, ticket: Ticket, mut writes: Vec<Write>) {
        let this = &mut self.nodes[node];
        if let Some((_, mut earlier)) = this.waiting.take() {
            earlier.append(&mut writes);
            writes = earlier;
        }
        this.waiting = Some((ticket, writes));
        self.commit(node);
    }

    fn commit(&mut self, node: usize) {
        let span = self.random.random_range(self.disk_delay.0..=self.disk_delay.1);
        let this = &mut self.nodes[node];
        if this.committing.is_none() && this.waiting.is_some() {
            this.committing = this.waiting.take();
            let life = this.life;
            self.put(span, Item::Committed { node, life });
        }
    }

    fn committed(&mut self, node: usize) -> Result<(), String> {
        let Some((ticket, writes)) = self.nodes[node].committing.take() else { return Ok(()) };
        self.apply(node, writes)?;
        self.commit(node);
        if self.mutant == Some(Mutant::EarlyAnnouncement) {
            return Ok(());
        }
        self.step(node, Event::Persisted(ticket))
    }

    fn send(&mut self, node: usize, to: StoreId, messages: &[Message]) -> Result<(), String> {
        let this = &mut self.nodes[node];
        for message in messages {
            if matches!(self.mutant, None | Some(Mutant::EarlyAnnouncement)) {
                check_said(&this.durable, to, message)?;
            }
            if let Message::Heartbeat(beat) = message {
                this.newest_beats.insert(to, beat.seq);
            }
        }
        let start = Start { incarnation: Incarnation(this.incarnation), nonce: 0 };
        let Some(core) = &this.core else { return Ok(()) };
        let start = Start { nonce: core.start.nonce, ..start };
        // Every packet survives its encoding; one in sixteen shows it.
        let packets = if self.random.random_range(0..16) == 0 {
            let encoded = message::encode(start, messages).map_err(|e| e.to_string())?;
            let decoded = encoded.iter().map(|bytes| message::decode(bytes));
            decoded.collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())?
        } else {
            vec![Packet { start, messages: messages.to_vec() }]
        };
        let receiver = self.index(to);
        for packet in packets {
            let copies = self.network.carry(&mut self.random, node, receiver);
            match copies.len() {
                0 => self.note("message lost"),
                1 => {}
                _ => self.note("message doubled"),
            }
            for delay in copies {
                let at = self.now + delay;
                let last = self.last_arrival.entry((node, receiver)).or_default();
                let overtaken = at < *last;
                *last = at.max(*last);
                if overtaken {
                    self.note("message overtaken");
                }
                let packet = packet.clone();
                self.put(delay, Item::Packet { from: node, to: receiver, packet });
            }
        }
        Ok(())
    }

    /// Whether faults are over.
    pub(super) const fn is_healing(&self) -> bool {
        self.now >= FAULTS_END
    }

    /// The wall clock that snapshots are stamped by.
    pub(super) const fn wall(&self) -> WallTime {
        WallTime::from_millis(self.now / 1_000)
    }
}

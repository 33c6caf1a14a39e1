//! The real core under a model checker: every order of delivery, loss, ticks, and one restart,
//! release, change of voters and forced promotion, within small bounds. The simulation goes further
//! in time; this goes through all interleavings.
//!
//! `FLOCKER_MODEL_FACTOR` multiplies how many states a run looks at.

use std::collections::BTreeSet;
use std::time::Duration;

use flocker_base::{BootTime, Epoch, Head, Incarnation, StoreId, VolumeId, WallTime};
use stateright::{Model, Property};

use super::config::LeaseConfig;
use super::core::LeaseCore;
use super::event::{Command, Event, Held, LeaseEvent, Request, VolumeFacts};
use super::message::{self, Message};
use super::record::{Durable, Stamp, Start};
use crate::model::{VoterConfig, Voters};

mod runs;

/// The whole system: store 1 holds the volume at first, confirmed by the least majority with it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct System {
    ticks: u8,
    cores: Vec<LeaseCore>,
    disks: Vec<Disk>,
    net: BTreeSet<(usize, usize, Packed)>,
    /// The newest snapshot that each node has.
    copies: Vec<u64>,
    /// Nodes that hear and say nothing any more.
    dead: BTreeSet<usize>,
    campaigned: BTreeSet<usize>,
    restarted: bool,
    released: bool,
    changed: bool,
    forced: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Disk {
    durable: Durable,
    starts: u64,
}

#[derive(Clone, Debug, PartialEq)]
enum Action {
    Tick,
    Deliver(usize, usize, Packed),
    /// This node campaigns, once.
    Campaign(usize),
    Restart(usize),
    Release,
    /// The first master changes the voters.
    Change,
    /// A person has a node lead by force.
    Force,
}

/// An encoded packet, so that packets have an order. It is shown as what it says.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Packed(Vec<u8>);

impl std::fmt::Debug for Packed {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        message::decode(&self.0).map_err(|_unreadable| std::fmt::Error)?.messages.fmt(formatter)
    }
}

/// The bounds, and the errors put in.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    nodes: usize,
    /// So many, the first ones, are the voters at first.
    voters: usize,
    candidates: &'static [usize],
    ticks: u8,
    tick: Duration,
    /// Who restarts, once.
    restarts: Option<usize>,
    releases: bool,
    /// Whom the voters are changed to.
    change: Option<&'static [usize]>,
    /// The voters with whom the first of them is promoted by force.
    force: Option<&'static [usize]>,
    /// Questions before a vote are sent like all else, and can be lost.
    loses_questions: bool,
    /// Nodes that lack the last snapshot, which the first master knows to be replicated.
    stale: &'static [usize],
    /// A restarted voter does not wait.
    no_wait: bool,
    /// Whether each state is followed to an election without faults, with the first master and
    /// without it.
    electable: bool,
}

/// The snapshot that was replicated.
const REPLICATED: u64 = 2;

/// Rounds without faults within which somebody must be elected.
const ROUNDS: u8 = 30;
/// How many of them one node campaigns before the next does.
const TURN: u8 = 10;

/// What some states must show.
const TAKEN: &str = "another takes over";
const CHANGED: &str = "the voters are changed";
const CHANGED_AND_TAKEN: &str = "another takes over by a vote of the new voters";
const FORCED: &str = "a master leads that was forced";

fn store(node: usize) -> StoreId {
    StoreId::from_bytes([u8::try_from(node).expect("few") + 1; 16])
}

fn stores(nodes: &[usize]) -> Voters {
    nodes.iter().copied().map(store).collect()
}

fn node_of(store: StoreId) -> usize {
    usize::from(store.as_bytes()[0]) - 1
}

fn volume() -> VolumeId {
    VolumeId::from_bytes([100; 16])
}

fn start(disk: &Disk) -> Start {
    Start { incarnation: Incarnation(disk.starts), nonce: 0 }
}

/// A snapshot of the first epoch.
fn stamp(seq: u64) -> Stamp {
    let first = Epoch { generation: 0, counter: 1 };
    let taken_at = WallTime::from_millis(1_800_000_000_000) + Duration::from_secs(10 * seq);
    Stamp { head: Head::new(first, seq), taken_at }
}

/// No pause is random here, so that paths that differ only in it are one.
fn config() -> LeaseConfig {
    LeaseConfig { heartbeat: Duration::from_millis(600), ..LeaseConfig::default() }
}

impl Bounds {
    fn now(&self, state: &System) -> BootTime {
        BootTime::ZERO + Duration::from_secs(1_000) + self.tick * u32::from(state.ticks)
    }

    fn boot(&self, state: &mut System, node: usize) {
        let now = self.now(state);
        state.disks[node].starts += 1;
        let disk = &state.disks[node];
        let durable = disk.durable.clone();
        state.cores[node] = LeaseCore::new(now, store(node), start(disk), config(), durable, 1);
        let voters = (0..self.voters).map(store).collect::<BTreeSet<_>>();
        let facts = VolumeFacts {
            volume: volume(),
            config: VoterConfig::birth(voters),
            lag_limit: Duration::ZERO,
        };
        self.step(state, node, Event::Observe(facts));
        self.step(state, node, Event::LocalCopy(volume(), Some(stamp(state.copies[node]))));
    }

    fn deliver(&self, state: &mut System, from: usize, to: usize, bytes: &[u8]) {
        if state.dead.contains(&to) {
            return;
        }
        let packet = message::decode(bytes).expect("was encoded here");
        self.step(state, to, Event::Packet { from: store(from), packet });
    }

    /// One step; its writes are durable at once. Questions before a vote, which change nothing,
    /// and answers that matter little when late arrive at once: far fewer orders are left to try.
    fn step(&self, state: &mut System, node: usize, event: Event) {
        let now = self.now(state);
        let commands = state.cores[node].step(now, event);
        let _ = state.cores[node].take_touched();
        for command in commands {
            match command {
                Command::Persist(ticket, writes) => {
                    writes.into_iter().for_each(|write| state.disks[node].durable.apply(write));
                    self.step(state, node, Event::Persisted(ticket));
                }
                Command::Send(to, messages) => {
                    let to = node_of(to);
                    let start = start(&state.disks[node]);
                    for message in messages {
                        let at_once = matches!(
                            message,
                            Message::GrantReply(_)
                                | Message::ReleaseAck(..)
                                | Message::SetConfigReply(_)
                        );
                        let asks =
                            matches!(message, Message::PreVote(_) | Message::PreVoteReply(_));
                        let at_once = at_once || asks && !self.loses_questions;
                        let packets = message::encode(start, &[message]).expect("has an encoding");
                        for packet in packets {
                            if at_once {
                                self.deliver(state, node, to, &packet);
                            } else {
                                state.net.insert((node, to, Packed(packet.to_vec())));
                            }
                        }
                    }
                }
                // Whoever is told of a fresher copy fetches it, unless it has faults to come.
                Command::Emit(LeaseEvent::Behind { best, .. }) if self.is_settling(state) => {
                    state.copies[node] = best.seq.0;
                    let copy = Some(stamp(best.seq.0));
                    self.step(state, node, Event::LocalCopy(volume(), copy));
                }
                Command::Emit(_) | Command::Reply(..) | Command::Alarm(_) => {}
            }
        }
    }

    fn valid(&self, state: &System, node: usize) -> Option<Held> {
        state.cores[node].held(volume()).filter(|held| self.now(state) < held.until)
    }

    /// Whether faults are over, and the state is only followed to see where it leads.
    const fn is_settling(&self, state: &System) -> bool {
        state.ticks > self.ticks
    }

    /// Delivers what is between these nodes, until nothing is or it has gone on for long.
    fn deliver_among(&self, state: &mut System, nodes: &[usize]) {
        for _ in 0..10_000 {
            let between = |(from, to, _): &&(usize, usize, Packed)| {
                nodes.contains(from) && nodes.contains(to)
            };
            let Some(next) = state.net.iter().find(between).cloned() else { return };
            state.net.remove(&next);
            let (from, to, packet) = next;
            self.deliver(state, from, to, &packet.0);
        }
    }

    fn campaign(&self, state: &mut System, node: usize) {
        let campaign = Event::Campaign { volume: volume(), rank: 0, reason: String::new() };
        self.step(state, node, campaign);
    }

    /// Whether somebody of these is elected once nothing goes wrong any more: what was under way is
    /// lost, and they campaign in turn, one at a time, as long as nobody has the volume. Without
    /// random pauses two would get in each other's way for ever.
    fn leads_to_a_master(&self, before: &System, alive: &[usize]) -> bool {
        let mut state = before.clone();
        state.net.clear();
        state.dead = (0..self.nodes).filter(|node| !alive.contains(node)).collect();
        state.ticks = self.ticks + 1;
        for round in 0..ROUNDS {
            state.ticks += 1;
            for node in alive {
                self.step(&mut state, *node, Event::Tick);
            }
            self.deliver_among(&mut state, alive);
            if alive.iter().any(|node| self.valid(&state, *node).is_some()) {
                return true;
            }
            let leads = alive[usize::from(round / TURN) % alive.len()];
            for other in alive.iter().filter(|node| **node != leads) {
                self.step(&mut state, *other, Event::StandDown(volume()));
            }
            self.campaign(&mut state, leads);
            self.deliver_among(&mut state, alive);
        }
        false
    }
}

impl Model for Bounds {
    type State = System;
    type Action = Action;

    fn init_states(&self) -> Vec<System> {
        let now = BootTime::ZERO + Duration::from_secs(1_000);
        let disk = Disk { durable: Durable::default(), starts: 0 };
        let core = |node| {
            LeaseCore::new(now, store(node), Start::default(), config(), Durable::default(), 1)
        };
        let newest = |node| if self.stale.contains(&node) { 1 } else { REPLICATED };
        let mut state = System {
            ticks: 0,
            cores: (0..self.nodes).map(core).collect(),
            disks: vec![disk; self.nodes],
            net: BTreeSet::new(),
            copies: (0..self.nodes).map(newest).collect(),
            dead: BTreeSet::new(),
            campaigned: BTreeSet::new(),
            restarted: false,
            released: false,
            changed: false,
            forced: false,
        };
        for node in 0..self.nodes {
            self.boot(&mut state, node);
        }
        self.campaign(&mut state, 0);
        let majority: Vec<usize> = (0..=self.voters / 2).collect();
        self.deliver_among(&mut state, &majority);
        self.step(&mut state, 0, Event::Replicated(volume(), stamp(REPLICATED)));
        state.net = BTreeSet::new();
        assert!(self.valid(&state, 0).is_some(), "store 1 holds it");
        vec![state]
    }

    fn actions(&self, state: &System, actions: &mut Vec<Action>) {
        if state.ticks < self.ticks {
            actions.push(Action::Tick);
        }
        if state.ticks > 0 {
            let new = self.candidates.iter().filter(|node| !state.campaigned.contains(node));
            actions.extend(new.map(|node| Action::Campaign(*node)));
        }
        if !state.restarted {
            actions.extend(self.restarts.map(Action::Restart));
        }
        let first = self.valid(state, 0).is_some();
        if self.releases && !state.released && first {
            actions.push(Action::Release);
        }
        if self.change.is_some() && !state.changed && first {
            actions.push(Action::Change);
        }
        if self.force.is_some() && !state.forced && state.ticks > 0 {
            actions.push(Action::Force);
        }
        for (from, to, packet) in &state.net {
            actions.push(Action::Deliver(*from, *to, packet.clone()));
        }
    }

    fn next_state(&self, before: &System, action: Action) -> Option<System> {
        let mut state = before.clone();
        let request = Request(1);
        match action {
            Action::Tick => {
                state.ticks += 1;
                for node in 0..self.nodes {
                    self.step(&mut state, node, Event::Tick);
                }
            }
            Action::Deliver(from, to, packet) => {
                state.net.remove(&(from, to, packet.clone()));
                self.deliver(&mut state, from, to, &packet.0);
            }
            Action::Campaign(node) => {
                state.campaigned.insert(node);
                self.campaign(&mut state, node);
            }
            Action::Restart(node) => {
                state.restarted = true;
                let durable = &mut state.disks[node].durable;
                if self.no_wait {
                    durable.node.longest_lease = Duration::ZERO;
                }
                self.boot(&mut state, node);
            }
            Action::Release => {
                state.released = true;
                let release = Event::Release { volume: volume(), successor: None, request };
                self.step(&mut state, 0, release);
            }
            Action::Change => {
                state.changed = true;
                let voters = stores(self.change?);
                self.step(&mut state, 0, Event::ChangeVoters { volume: volume(), voters, request });
            }
            Action::Force => {
                state.forced = true;
                let nodes = self.force?;
                let force = Some(stores(nodes));
                let promote = Event::Promote { volume: volume(), force, request };
                self.step(&mut state, *nodes.first()?, promote);
            }
        }
        (state != *before).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            // What a person forced may run beside what is of another generation.
            Property::always("one valid lease", |bounds: &Self, state: &System| {
                let valid = (0..bounds.nodes).filter_map(|node| bounds.valid(state, node));
                let generations: Vec<u32> = valid.map(|held| held.epoch.generation).collect();
                generations.iter().collect::<BTreeSet<_>>().len() == generations.len()
            }),
            Property::always("one holder an epoch", |_: &Self, state: &System| {
                let held = state.cores.iter().filter_map(|core| core.held(volume()));
                let epochs: Vec<Epoch> = held.map(|held| held.epoch).collect();
                epochs.iter().collect::<BTreeSet<_>>().len() == epochs.len()
            }),
            Property::always("a closed epoch is not held", |_: &Self, state: &System| {
                state.cores.iter().zip(&state.disks).all(|(core, disk)| {
                    let closed = disk.durable.holders.get(&volume()).map(|holder| holder.closed);
                    core.held(volume()).is_none_or(|held| closed.is_some_and(|c| held.epoch > c))
                })
            }),
            Property::always(
                "a master has what was replicated",
                |bounds: &Self, state: &System| {
                    (0..bounds.nodes).all(|node| {
                        let forced = |held: Held| held.epoch.generation > 0;
                        bounds
                            .valid(state, node)
                            .is_none_or(|held| forced(held) || state.copies[node] >= REPLICATED)
                    })
                },
            ),
            Property::always("a master can be elected", |bounds: &Self, state: &System| {
                let all: Vec<usize> = (0..bounds.nodes).collect();
                !bounds.electable
                    || bounds.leads_to_a_master(state, &all)
                        && bounds.leads_to_a_master(state, &all[1..])
            }),
            Property::sometimes(TAKEN, |bounds: &Self, state: &System| {
                (1..bounds.nodes).any(|node| bounds.valid(state, node).is_some())
            }),
            Property::sometimes(CHANGED, |bounds: &Self, state: &System| {
                let voters = bounds.change.map(stores);
                let holders = state.disks.iter().filter_map(|d| d.durable.holders.get(&volume()));
                let mut configs = holders.map(|holder| &holder.config);
                configs
                    .any(|config| config.joint.is_none() && Some(&config.voters) == voters.as_ref())
            }),
            Property::sometimes(CHANGED_AND_TAKEN, |bounds: &Self, state: &System| {
                let valid = |node| bounds.valid(state, node);
                let voters = bounds.change.map(stores);
                (1..bounds.nodes).any(|node| {
                    let record = state.disks[node].durable.voters.get(&volume());
                    valid(node).is_some()
                        && record
                            .is_some_and(|record| Some(&record.config.voters) == voters.as_ref())
                })
            }),
            Property::sometimes(FORCED, |bounds: &Self, state: &System| {
                let mut valid = (0..bounds.nodes).filter_map(|node| bounds.valid(state, node));
                valid.any(|held| held.epoch.generation > 0)
            }),
        ]
    }
}

//! The real core under a model checker: every order of delivery, loss, ticks, one restart and one
//! release, within small bounds. The simulation goes further in time; this goes through all
//! interleavings.

use std::collections::BTreeSet;
use std::time::Duration;

use flocker_base::{BootTime, Epoch, Incarnation, StoreId, VolumeId};
use stateright::{Checker, Model, Property};

use super::config::LeaseConfig;
use super::core::LeaseCore;
use super::event::{Command, Event, Held, Request, VolumeFacts};
use super::message::{self, Message};
use super::record::{Durable, Start};
use crate::model::VoterConfig;

const NODES: usize = 3;

/// The whole system: store 1 holds the volume at first, confirmed by stores 1 and 2.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct System {
    ticks: u8,
    cores: Vec<LeaseCore>,
    disks: Vec<Disk>,
    /// Encoded packets, so that they have an order.
    net: BTreeSet<(usize, usize, Vec<u8>)>,
    campaigned: bool,
    restarted: bool,
    releases: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Disk {
    durable: Durable,
    starts: u64,
}

#[derive(Clone, Debug, PartialEq)]
enum Action {
    Tick,
    Deliver(usize, usize, Vec<u8>),
    /// Store 3 campaigns.
    Campaign,
    Restart(usize),
    Release,
}

/// The bounds, and the errors put in.
#[derive(Clone, Debug)]
struct Bounds {
    ticks: u8,
    tick: Duration,
    /// Who restarts, once.
    restarts: Option<usize>,
    releases: u8,
    /// A restarted voter does not wait.
    no_wait: bool,
}

fn store(node: usize) -> StoreId {
    StoreId::from_bytes([u8::try_from(node).expect("few") + 1; 16])
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
        let voters = (0..NODES).map(store).collect::<BTreeSet<_>>();
        let facts = VolumeFacts {
            volume: volume(),
            config: VoterConfig::birth(voters),
            lag_limit: Duration::ZERO,
        };
        self.step(state, node, Event::Observe(facts));
    }

    fn deliver(&self, state: &mut System, from: usize, to: usize, bytes: &[u8]) {
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
                            Message::PreVote(_)
                                | Message::PreVoteReply(_)
                                | Message::GrantReply(_)
                                | Message::ReleaseAck(..)
                        );
                        let packets = message::encode(start, &[message]).expect("has an encoding");
                        for packet in packets {
                            if at_once {
                                self.deliver(state, node, to, &packet);
                            } else {
                                state.net.insert((node, to, packet.to_vec()));
                            }
                        }
                    }
                }
                Command::Emit(_) | Command::Reply(..) | Command::Alarm(_) => {}
            }
        }
    }

    fn valid(&self, state: &System, node: usize) -> Option<Held> {
        state.cores[node].held(volume()).filter(|held| self.now(state) < held.until)
    }

    /// Takes the first messages to these nodes, one after another.
    fn deliver_between(&self, state: &mut System, nodes: [usize; 2]) {
        while let Some(next) = state
            .net
            .iter()
            .find(|(from, to, _)| nodes.contains(from) && nodes.contains(to))
            .cloned()
        {
            state.net.remove(&next);
            let (from, to, packet) = next;
            self.deliver(state, from, to, &packet);
        }
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
        let mut state = System {
            ticks: 0,
            cores: (0..NODES).map(core).collect(),
            disks: vec![disk; NODES],
            net: BTreeSet::new(),
            campaigned: false,
            restarted: false,
            releases: 0,
        };
        for node in 0..NODES {
            self.boot(&mut state, node);
        }
        let campaign = Event::Campaign { volume: volume(), rank: 0, reason: String::new() };
        self.step(&mut state, 0, campaign);
        self.deliver_between(&mut state, [0, 1]);
        state.net = BTreeSet::new();
        assert!(self.valid(&state, 0).is_some(), "store 1 holds it");
        vec![state]
    }

    fn actions(&self, state: &System, actions: &mut Vec<Action>) {
        if state.ticks < self.ticks {
            actions.push(Action::Tick);
        }
        if !state.campaigned && state.ticks > 0 {
            actions.push(Action::Campaign);
        }
        if !state.restarted {
            actions.extend(self.restarts.map(Action::Restart));
        }
        if state.releases < self.releases && self.valid(state, 0).is_some() {
            actions.push(Action::Release);
        }
        for (from, to, packet) in &state.net {
            actions.push(Action::Deliver(*from, *to, packet.clone()));
        }
    }

    fn next_state(&self, before: &System, action: Action) -> Option<System> {
        let mut state = before.clone();
        match action {
            Action::Tick => {
                state.ticks += 1;
                for node in 0..NODES {
                    self.step(&mut state, node, Event::Tick);
                }
            }
            Action::Deliver(from, to, packet) => {
                state.net.remove(&(from, to, packet.clone()));
                self.deliver(&mut state, from, to, &packet);
            }
            Action::Campaign => {
                state.campaigned = true;
                let campaign = Event::Campaign { volume: volume(), rank: 0, reason: String::new() };
                self.step(&mut state, 2, campaign);
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
                state.releases += 1;
                let request = Request(1);
                let release = Event::Release { volume: volume(), successor: None, request };
                self.step(&mut state, 0, release);
            }
        }
        (state != *before).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("one valid lease", |bounds: &Self, state: &System| {
                (0..NODES).filter(|node| bounds.valid(state, *node).is_some()).count() <= 1
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
            Property::sometimes("another takes over", |bounds: &Self, state: &System| {
                (1..NODES).any(|node| bounds.valid(state, node).is_some())
            }),
        ]
    }
}

fn check(bounds: &Bounds, most_states: usize) -> impl Checker<Bounds> + use<> {
    let checker =
        bounds.clone().checker().threads(2).target_state_count(most_states).spawn_bfs().join();
    println!("{bounds:?}: {} states, depth {}", checker.unique_state_count(), checker.max_depth());
    checker
}

const BASE: Bounds = Bounds {
    ticks: 3,
    tick: Duration::from_millis(1_200),
    restarts: None,
    releases: 0,
    no_wait: false,
};

#[test]
fn a_takeover_has_one_master_in_every_order() {
    check(&BASE, 60_000).assert_properties();
}

#[test]
fn a_restart_of_a_voter_or_of_the_holder_keeps_one_master() {
    for restarts in [Some(1), Some(0)] {
        let checker = check(&Bounds { restarts, ..BASE }, 40_000);
        assert!(checker.discovery("one valid lease").is_none());
        assert!(checker.discovery("one holder an epoch").is_none());
        assert!(checker.discovery("a closed epoch is not held").is_none());
    }
}

#[test]
fn a_release_keeps_one_master() {
    check(&Bounds { releases: 1, ..BASE }, 60_000).assert_properties();
}

#[test]
fn mutant_no_wait_after_a_restart_is_found() {
    let checker = check(&Bounds { ticks: 1, restarts: Some(1), no_wait: true, ..BASE }, 200_000);
    assert!(checker.discovery("one valid lease").is_some());
}

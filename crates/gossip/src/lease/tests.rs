//! The core's rules one by one: an event in, the exact commands out. Names like F6 are the flaws
//! of the first design that the rule repairs.

mod holder;
mod promotion;
mod replay;
mod voter;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flocker_base::{BootTime, Epoch, Head, Incarnation, StoreId, VolumeId, WallTime};

use super::config::LeaseConfig;
use super::core::LeaseCore;
use super::event::{Command, Event, LeaseEvent, Ticket, VolumeFacts};
use super::message::{Grant, Heartbeat, HeartbeatAck, Message, Packet, Verdict};
use super::record::{Durable, Stamp, Start, Write};
use crate::model::VoterConfig;

const LAG: Duration = Duration::from_secs(60);

fn store(number: u8) -> StoreId {
    StoreId::from_bytes([number; 16])
}

fn volume() -> VolumeId {
    VolumeId::from_bytes([100; 16])
}

fn epoch(counter: u64) -> Epoch {
    Epoch::new(0, counter)
}

fn at(millis: u64) -> BootTime {
    BootTime::from_millis(1_000_000 + millis)
}

fn stamp(counter: u64, seq: u64, taken_at: u64) -> Stamp {
    Stamp { head: Head::new(epoch(counter), seq), taken_at: WallTime::from_millis(taken_at) }
}

fn config() -> VoterConfig {
    VoterConfig::birth(BTreeSet::from([store(1), store(2), store(3)]))
}

fn start_of(number: u8) -> Start {
    Start { incarnation: Incarnation(1), nonce: u64::from(number) }
}

/// One core, its disk, and the time.
struct Bench {
    core: LeaseCore,
    disk: Durable,
    pending: Vec<(Ticket, Vec<Write>)>,
    beats: BTreeMap<StoreId, u64>,
}

impl Bench {
    fn new(number: u8) -> Self {
        Self::restarted(number, Durable::default(), 0)
    }

    fn restarted(number: u8, disk: Durable, millis: u64) -> Self {
        let core = LeaseCore::new(
            at(millis),
            store(number),
            start_of(number),
            LeaseConfig::default(),
            disk.clone(),
            1,
        );
        Self { core, disk, pending: Vec::new(), beats: BTreeMap::new() }
    }

    /// One step; writes wait for [`Bench::sync`].
    fn raw(&mut self, millis: u64, event: Event) -> Vec<Command> {
        let commands = self.core.step(at(millis), event);
        for command in &commands {
            if let Command::Persist(ticket, writes) = command {
                self.pending.push((*ticket, writes.clone()));
            }
        }
        commands
    }

    /// Makes all writes durable and returns what is commanded then.
    fn sync(&mut self, millis: u64) -> Vec<Command> {
        let mut commands = Vec::new();
        while !self.pending.is_empty() {
            for (ticket, writes) in std::mem::take(&mut self.pending) {
                writes.into_iter().for_each(|write| self.disk.apply(write));
                commands.extend(self.raw(millis, Event::Persisted(ticket)));
            }
        }
        commands.retain(|command| !matches!(command, Command::Persist(..)));
        commands
    }

    /// A step and its writes; returns everything but the writes.
    fn step(&mut self, millis: u64, event: Event) -> Vec<Command> {
        let mut commands = self.raw(millis, event);
        commands.retain(|command| !matches!(command, Command::Persist(..)));
        commands.extend(self.sync(millis));
        commands
    }

    fn packet(&mut self, millis: u64, from: u8, message: Message) -> Vec<Command> {
        self.step(millis, packet(from, message))
    }

    /// A heartbeat of a store that asks for a promise and a confirmation.
    fn beat(&mut self, millis: u64, from: u8, support: u64, confirm: &[u64]) -> HeartbeatAck {
        let seq = self.beats.entry(store(from)).or_default();
        *seq += 1;
        let beat = Heartbeat { support, ..heartbeat(*seq, confirm) };
        let commands = self.packet(millis, from, Message::Heartbeat(beat));
        let ack = messages(&commands).into_iter().find_map(|message| match message {
            Message::HeartbeatAck(ack) => Some(ack),
            _ => None,
        });
        ack.expect("an acknowledgement")
    }

    fn grant(&mut self, millis: u64, from: u8, counter: u64) -> Verdict {
        let commands = self.packet(millis, from, Message::Grant(grant(counter)));
        let verdict = messages(&commands).into_iter().find_map(|message| match message {
            Message::GrantReply(reply) => Some(reply.verdict),
            _ => None,
        });
        verdict.expect("an answer")
    }

    fn observe(&mut self) {
        let facts = VolumeFacts { volume: volume(), config: config(), lag_limit: LAG };
        self.step(0, Event::Observe(facts));
    }
}

fn packet(from: u8, message: Message) -> Event {
    let packet = Packet { start: start_of(from), messages: vec![message] };
    Event::Packet { from: store(from), packet }
}

fn heartbeat(seq: u64, confirm: &[u64]) -> Heartbeat {
    Heartbeat {
        seq,
        want: true,
        support: 0,
        lease: Duration::from_secs(3),
        confirm: confirm.iter().map(|counter| (volume(), epoch(*counter))).collect(),
        hints: Vec::new(),
    }
}

fn grant(counter: u64) -> Grant {
    Grant {
        volume: volume(),
        epoch: epoch(counter),
        config: config(),
        copy: Stamp::default(),
        lag_limit: LAG,
    }
}

fn messages(commands: &[Command]) -> Vec<Message> {
    let sends = commands.iter().filter_map(|command| match command {
        Command::Send(_, messages) => Some(messages.clone()),
        _ => None,
    });
    sends.flatten().collect()
}

fn events(commands: &[Command]) -> Vec<LeaseEvent> {
    let events = commands.iter().filter_map(|command| match command {
        Command::Emit(event) => Some(event.clone()),
        _ => None,
    });
    events.collect()
}

const fn is_busy(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Busy { .. })
}

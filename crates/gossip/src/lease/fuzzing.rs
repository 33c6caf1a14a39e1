//! Lease packets over hostile bytes: what is read goes into a real core, a voter with a master
//! to protect. Whatever a peer says, what it recorded as durable never falls.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use flocker_base::{BootTime, Epoch, Head, Incarnation, StoreId, VolumeId, WallTime};
use flocker_quic::fuzzing::{joined, split};

use super::config::LeaseConfig;
use super::core::LeaseCore;
use super::event::{Command, Event, VolumeFacts};
use super::message::{self, Message, Packet};
use super::record::{Durable, Stamp, Start, Write};
use crate::control::Kind;
use crate::model::VoterConfig;

/// Packets of one input at most.
const MOST: usize = 8;
pub(super) const VOLUME: VolumeId = VolumeId::from_bytes([7; 16]);

pub(super) const fn store(number: u8) -> StoreId {
    StoreId::from_bytes([number; 16])
}

/// Packets of peers, one after another: a byte that says from whom and after how long, and the
/// packet.
pub(crate) fn packets(input: &[u8]) {
    let mut bench: Option<Bench> = None;
    for part in split(input, MOST) {
        let Some((&head, bytes)) = part.split_first() else { continue };
        let Ok(packet) = message::decode(bytes) else { continue };
        let written = message::encode(packet.start, &packet.messages).expect("what was read");
        let again: Vec<_> = written
            .iter()
            .flat_map(|bytes| message::decode(bytes).expect("what was written").messages)
            .collect();
        assert_eq!(again, packet.messages, "it is read otherwise");
        bench.get_or_insert_with(Bench::settled).take(head, packet);
    }
}

/// A node with its disk.
#[derive(Clone)]
pub(super) struct Bench {
    pub(super) core: LeaseCore,
    pub(super) disk: Durable,
    pub(super) now: BootTime,
    start: Start,
}

impl Bench {
    fn new(number: u8) -> Self {
        Self::started(number, 1, Durable::default(), BootTime::from_millis(1_000_000))
    }

    /// A node that starts for this time, with what is on its disk.
    pub(super) fn started(number: u8, time: u64, disk: Durable, now: BootTime) -> Self {
        let start = Start { incarnation: Incarnation(time), nonce: number.into() };
        let config = LeaseConfig::default();
        let core = LeaseCore::new(now, store(number), start, config, disk.clone(), 1);
        let mut bench = Self { core, disk, now, start };
        let voters = BTreeSet::from([store(1), store(2), store(3)]);
        let config = VoterConfig::birth(voters);
        let lag_limit = Duration::from_secs(60);
        bench.step(Event::Observe(VolumeFacts { volume: VOLUME, config, lag_limit }));
        let head = Head::new(Epoch::new(0, 1), 5);
        let copy = Stamp { head, taken_at: WallTime::from_millis(1) };
        bench.step(Event::LocalCopy(VOLUME, Some(copy)));
        bench
    }

    /// Node 1, once node 2 is the master.
    fn settled() -> Self {
        let mut trio = Trio::new();
        trio.elect();
        let [one, ..] = trio.nodes;
        one
    }

    /// One step, its writes on the disk; what it sends.
    pub(super) fn step(&mut self, event: Event) -> Vec<(StoreId, Vec<Message>)> {
        let mut sent = Vec::new();
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for command in self.core.step(self.now, event) {
                match command {
                    Command::Persist(ticket, writes) => {
                        writes.into_iter().for_each(|write| self.write(write));
                        events.push(Event::Persisted(ticket));
                    }
                    Command::Send(to, messages) => sent.push((to, messages)),
                    Command::Emit(_) | Command::Reply(..) | Command::Alarm(_) => {}
                }
            }
            self.core.take_touched();
        }
        sent
    }

    /// Nothing that is durable ever falls.
    fn write(&mut self, write: Write) {
        match &write {
            Write::Voter(volume, new) => {
                if let Some(old) = self.disk.voters.get(volume) {
                    assert!(new.max_epoch >= old.max_epoch, "an epoch fell: {old:?} to {new:?}");
                    assert!(new.config.version >= old.config.version, "{old:?} to {new:?}");
                }
            }
            Write::Support(peer, new) => {
                if let Some(old) = self.disk.supports.get(peer) {
                    assert!(new.support >= old.support, "{old:?} to {new:?}");
                    let incarnation = |start: Option<Start>| start.map(|s| s.incarnation);
                    assert!(incarnation(new.start) >= incarnation(old.start), "{new:?}");
                }
            }
            Write::Holder(volume, new) => {
                if let Some(old) = self.disk.holders.get(volume) {
                    assert!(new.epoch >= old.epoch && new.closed >= old.closed, "{new:?}");
                }
            }
            Write::Node(new) => {
                let old = self.disk.node;
                assert!(new.longest_lease >= old.longest_lease, "{new:?}");
                assert!(new.condemned || !old.condemned, "{new:?}");
            }
        }
        self.disk.apply(write);
    }

    fn take(&mut self, head: u8, packet: Packet) {
        let from = store(2 + head % 3);
        self.now = self.now + Duration::from_millis(u64::from(head / 3) * 50);
        let said = packet.messages.len();
        let master = self.core.record(VOLUME).filter(|record| record.confirmed).cloned();
        let protected = self.core.peers.get(&store(2)).is_some_and(|p| self.now < p.promised_until);
        let sent = self.step(Event::Packet { from, packet });
        let answers: usize = sent.iter().map(|(_, messages)| messages.len()).sum();
        assert!(answers <= 16 * (said + 4), "{answers} messages for {said}");
        for (_, messages) in &sent {
            for packet in message::encode(self.start, messages).expect("our own messages") {
                assert!(packet.len() <= Kind::Lease.max_frame(), "{} bytes", packet.len());
            }
        }
        // Only the master itself can give up what its heartbeats still hold.
        if let Some(before) = master.filter(|_| protected && from != store(2)) {
            let after = self.core.record(VOLUME).expect("a record is never forgotten");
            assert_eq!(after.grantee, before.grantee, "another has the volume of a live master");
            assert_eq!(after.released, before.released);
        }
        let record = self.core.record(VOLUME);
        assert_eq!(record, self.disk.voters.get(&VOLUME), "the disk says otherwise");
    }
}

/// Three real nodes, voters of one volume.
pub(super) struct Trio {
    pub(super) nodes: [Bench; 3],
    /// What node 1 was sent, as [`packets`] takes it.
    pub(super) heard: Vec<Vec<u8>>,
    post: VecDeque<(u8, StoreId, Vec<Message>)>,
}

impl Trio {
    pub(super) fn new() -> Self {
        let nodes = [Bench::new(1), Bench::new(2), Bench::new(3)];
        Self { nodes, heard: Vec::new(), post: VecDeque::new() }
    }

    /// Something happens at a node.
    pub(super) fn tell(&mut self, number: u8, event: Event) {
        let said = self.nodes[usize::from(number) - 1].step(event);
        self.post.extend(said.into_iter().map(|(to, messages)| (number, to, messages)));
    }

    /// Lets so many tenths of a second pass.
    pub(super) fn run(&mut self, tenths: u32) {
        for _ in 0..tenths {
            while let Some((from, to, messages)) = self.post.pop_front() {
                self.deliver(from, to, messages);
            }
            for number in 1..=3 {
                let node = &mut self.nodes[usize::from(number) - 1];
                node.now = node.now + Duration::from_millis(100);
                self.tell(number, Event::Tick);
            }
        }
    }

    fn deliver(&mut self, from: u8, to: StoreId, messages: Vec<Message>) {
        let Some(number) = (1..=3).find(|number| store(*number) == to) else { return };
        let start = self.nodes[usize::from(from) - 1].start;
        if number == 1 {
            let bytes = message::encode(start, &messages).expect("our own messages");
            self.heard.extend(bytes.iter().map(|bytes| [&[from - 2][..], bytes].concat()));
        }
        let packet = Packet { start, messages };
        self.tell(number, Event::Packet { from: store(from), packet });
    }

    /// Node 2 wins the volume.
    pub(super) fn elect(&mut self) {
        let reason = "a test".to_owned();
        self.tell(2, Event::Campaign { volume: VOLUME, rank: 0, reason });
        self.run(40);
        let record = self.nodes[0].core.record(VOLUME).expect("it voted");
        assert!(record.confirmed && record.grantee == Some(store(2)), "{record:?}");
    }
}

/// What a real voter is sent in an election and after it.
pub(crate) fn conversations() -> Vec<Vec<u8>> {
    let mut trio = Trio::new();
    trio.elect();
    let heard = trio.heard;
    let mut inputs: Vec<_> = heard.iter().take(8).map(|one| joined(&[one])).collect();
    inputs.push(joined(&heard[..heard.len().min(MOST)]));
    for message in others() {
        let start = Start { incarnation: Incarnation(2), nonce: 1 };
        let bytes = message::encode(start, &[message]).expect("our own message");
        inputs.extend(bytes.iter().map(|bytes| joined(&[[&[0][..], bytes].concat()])));
    }
    inputs
}

/// What an election lacks.
fn others() -> Vec<Message> {
    let config = VoterConfig::birth(BTreeSet::from([store(1), store(2), store(3)]));
    let epoch = Epoch::new(0, 1);
    vec![
        Message::Abandon(VOLUME, epoch),
        Message::Release(message::Release { volume: VOLUME, epoch, successor: Some(store(1)) }),
        Message::ReleaseAck(VOLUME, epoch),
        Message::SetConfig(message::SetConfig { volume: VOLUME, epoch, config }),
        Message::StaleStart { refused: Start::default(), newest: Start::default() },
    ]
}

//! The lease protocol as a pure function: an event in, commands out. No clock, no randomness, no
//! task and no file is read here; a step takes the time as an argument, and the only randomness
//! is the seed given at the start.

use std::collections::BTreeMap;
use std::time::Duration;

use flocker_base::{BootTime, Epoch, StoreId, VolumeId};

use super::config::LeaseConfig;
use super::event::{Alarm, CampaignFailure, Command, Event, Held, LeaseView, Ticket};
use super::message::{Message, Packet};
use super::outbox::Outbox;
use super::record::{Durable, NodeRecord, Start, VoterRecord, Write};
use super::state::{Holding, Peer, Volume};

/// Packets of an old start, with none of the newest between them, that make an alarm.
const STALE_PACKETS_ALARM: u8 = 8;

/// One node's part in all leases: as a voter, as a candidate and as a holder.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LeaseCore {
    pub(crate) me: StoreId,
    pub(crate) start: Start,
    pub(crate) config: LeaseConfig,
    pub(crate) node: NodeRecord,
    /// The write of the longest lease promised.
    pub(crate) node_ticket: Ticket,
    pub(crate) volumes: BTreeMap<VolumeId, Volume>,
    pub(crate) peers: BTreeMap<StoreId, Peer>,
    pub(crate) out: Outbox,
    /// Before this, promises made before the restart may stand.
    pub(crate) settled_at: BootTime,
    pub(crate) next_beat: BootTime,
    /// Peers to be sent a heartbeat at the end of this step.
    pub(crate) urgent: std::collections::BTreeSet<StoreId>,
    pub(crate) rounds: u64,
    pub(crate) last_write: BootTime,
    pub(crate) stall_told: bool,
    random: u64,
    last: BootTime,
}

impl LeaseCore {
    /// A core at its start, from what is durable. The seed spaces retries.
    #[must_use]
    pub fn new(
        now: BootTime,
        me: StoreId,
        start: Start,
        config: LeaseConfig,
        durable: Durable,
        seed: u64,
    ) -> Self {
        let fresh = durable.voters.is_empty() && durable.node.longest_lease.is_zero();
        let wait = config.voter_share(durable.node.longest_lease.max(config.reservation));
        let next_beat = now + config.heartbeat;
        let mut core = Self {
            me,
            start,
            config,
            node: durable.node,
            node_ticket: 0,
            volumes: BTreeMap::new(),
            peers: BTreeMap::new(),
            out: Outbox::new(me),
            settled_at: if fresh { now } else { now + wait },
            next_beat,
            urgent: std::collections::BTreeSet::new(),
            rounds: 0,
            last_write: now,
            stall_told: false,
            random: seed,
            last: now,
        };
        for (store, record) in durable.supports {
            core.peers.insert(store, Peer { record, ..Peer::default() });
        }
        for (volume, record) in durable.voters {
            core.restore_voter(now, volume, record);
        }
        for (volume, record) in durable.holders {
            core.restore_holder(now, volume, record);
        }
        core
    }

    /// Takes one event. Times never go back: an earlier one counts as the latest seen.
    pub fn step(&mut self, now: BootTime, event: Event) -> Vec<Command> {
        self.step_all(now, [event])
    }

    /// Takes events that came by now, in order, and looks at what is due once after them: a look
    /// goes through all volumes.
    pub fn step_all(
        &mut self,
        now: BootTime,
        events: impl IntoIterator<Item = Event>,
    ) -> Vec<Command> {
        let now = now.max(self.last);
        self.last = now;
        for event in events {
            self.take(now, event);
            while let Some(message) = self.out.next_local() {
                let me = self.me;
                self.receive(now, me, message);
            }
        }
        // Messages to oneself, due timers and urgent heartbeats cause one another; each is done
        // once, so this ends.
        loop {
            if let Some(message) = self.out.next_local() {
                let me = self.me;
                self.receive(now, me, message);
            } else if !(self.run_timers(now) || self.send_urgent_beats(now)) {
                break;
            }
        }
        self.out.finish(now)
    }

    fn take(&mut self, now: BootTime, event: Event) {
        match event {
            Event::Tick => {}
            Event::Packet { from, packet } => self.on_packet(now, from, packet),
            Event::Persisted(ticket) => {
                self.out.persisted(ticket);
                self.last_write = now;
            }
            Event::Observe(facts) => {
                let volume = facts.volume;
                self.out.touch(volume);
                self.volume_mut(volume).facts = Some(facts);
            }
            Event::Forget(volume) => {
                self.end_promotion(volume, &CampaignFailure::UnknownVolume);
                let entry = self.volume_mut(volume);
                entry.facts = None;
                entry.campaign = None;
                self.out.touch(volume);
            }
            Event::LocalCopy(volume, copy) => self.on_local_copy(now, volume, copy),
            Event::Replicated(volume, stamp) => self.on_replicated(volume, stamp),
            Event::Seen(volume, epoch) => self.on_seen(volume, epoch),
            Event::Campaign { volume, rank, reason } => {
                self.on_campaign(now, volume, rank, &reason);
            }
            Event::StandDown(volume) => self.on_stand_down(volume),
            Event::Promote { volume, force, request } => {
                self.on_promote(now, volume, force, request);
            }
            Event::Release { volume, successor, request } => {
                self.on_release_request(now, volume, successor, request);
            }
            Event::ChangeVoters { volume, voters, request } => {
                self.on_change_request(now, volume, &voters, request);
            }
        }
    }

    /// Refuses a peer whose start is not the newest known of its store.
    fn on_packet(&mut self, now: BootTime, from: StoreId, packet: Packet) {
        let Packet { start, messages } = packet;
        let peer = self.peers.entry(from).or_default();
        let newest = peer.record.start;
        let stale = newest.is_some_and(|newest| {
            start.incarnation < newest.incarnation
                || (start.incarnation == newest.incarnation && start.nonce != newest.nonce)
        });
        if let (true, Some(newest)) = (stale, newest) {
            // A few may be packets of an earlier start that come late.
            peer.stale_packets = peer.stale_packets.saturating_add(1);
            if peer.stale_packets >= STALE_PACKETS_ALARM {
                self.out.alarm(Alarm::StaleStart { store: from, refused: start, newest });
            }
            self.out.send(from, Message::StaleStart { refused: start, newest }, 0);
            return;
        }
        peer.stale_packets = 0;
        if newest != Some(start) {
            peer.record.start = Some(start);
            peer.last_beat = 0;
            let record = peer.record;
            self.out.write(Write::Support(from, record));
        }
        for message in messages {
            self.receive(now, from, message);
        }
    }

    fn receive(&mut self, now: BootTime, from: StoreId, message: Message) {
        if let Message::StaleStart { refused, newest } = message {
            self.on_stale_start(refused, newest);
            return;
        }
        if self.node.condemned {
            return;
        }
        match message {
            Message::Heartbeat(beat) => self.on_heartbeat(now, from, beat),
            Message::HeartbeatAck(ack) => self.on_heartbeat_ack(now, from, ack),
            Message::PreVote(question) => self.on_pre_vote(now, from, question),
            Message::PreVoteReply(reply) => self.on_pre_vote_reply(now, from, reply),
            Message::Grant(grant) => self.on_grant(now, from, grant),
            Message::GrantReply(reply) => self.on_grant_reply(now, from, reply),
            Message::Abandon(volume, epoch) => self.on_abandon(from, volume, epoch),
            Message::Release(release) => self.on_release(now, from, &release),
            Message::ReleaseAck(volume, epoch) => self.on_release_ack(from, volume, epoch),
            Message::SetConfig(set) => self.on_set_config(now, from, set),
            Message::SetConfigReply(reply) => self.on_set_config_reply(now, from, reply),
            Message::StaleStart { .. } => {}
        }
    }

    /// A peer knows a later start of this store: it is a copy, and must neither vote nor lead.
    fn on_stale_start(&mut self, refused: Start, newest: Start) {
        if refused != self.start || self.node.condemned {
            return;
        }
        self.node.condemned = true;
        self.out.write(Write::Node(self.node));
        self.out.alarm(Alarm::Condemned { own: self.start, newest });
        let holding: Vec<_> = self
            .volumes
            .iter()
            .filter_map(|(volume, entry)| entry.holding.is_some().then_some(*volume))
            .collect();
        for volume in holding {
            self.lose(volume, None);
        }
        let all: Vec<_> = self.volumes.keys().copied().collect();
        for volume in all {
            self.end_promotion(volume, &CampaignFailure::Condemned);
            let entry = self.volume_mut(volume);
            entry.campaign = None;
            entry.releasing = None;
            self.out.touch(volume);
        }
    }

    fn on_seen(&mut self, volume: VolumeId, epoch: Epoch) {
        let entry = self.volumes.entry(volume).or_default();
        let known = entry.highest();
        if !epoch.is_within_reach_of(known) {
            self.out.alarm(Alarm::EpochJump { volume, epoch, known });
        } else if epoch > entry.seen {
            entry.seen = epoch;
            self.out.touch(volume);
        }
    }

    /// Runs what is due. Whether anything was.
    fn run_timers(&mut self, now: BootTime) -> bool {
        if self.node.condemned {
            return false;
        }
        let mut ran = self.voter_timers(now);
        let active: Vec<_> = self
            .volumes
            .iter()
            .filter_map(|(volume, entry)| entry.is_active().then_some(*volume))
            .collect();
        for volume in active {
            ran |= self.candidate_timers(now, volume);
            ran |= self.holder_timers(now, volume);
            ran |= self.release_timers(now, volume);
            ran |= self.change_timers(now, volume);
        }
        self.beat_timer(now) || ran
    }

    /// When the next step is due, if no event comes before.
    #[must_use]
    pub fn next_deadline(&self) -> Option<BootTime> {
        if self.node.condemned {
            return None;
        }
        let active = self.volumes.values().filter(|entry| entry.is_active());
        let of_volumes = active.flat_map(|entry| {
            [
                self.watch_deadline(entry),
                Self::candidate_deadline(entry),
                self.holder_deadline(entry),
                Self::release_deadline(entry),
                Self::change_deadline(entry),
            ]
        });
        let of_peers = self.peers.values().filter(|peer| peer.watched);
        let of_peers = of_peers.map(|peer| Some(peer.promised_until.max(self.settled_at)));
        let beat = self.volumes.values().any(|entry| entry.holding.is_some());
        of_volumes
            .chain(of_peers)
            .chain([beat.then_some(self.next_beat)])
            .flatten()
            .filter(|deadline| *deadline != BootTime::NEVER)
            .min()
    }

    /// What is known of a volume.
    #[must_use]
    pub fn view(&self, volume: VolumeId) -> Option<LeaseView> {
        let entry = self.volumes.get(&volume)?;
        // A newer one may be known that was proposed once and never decided.
        let in_force = entry.holding.as_ref().filter(|holding| holding.announced);
        let config = in_force.map(|h| &h.config).or_else(|| entry.config())?.clone();
        let record = entry.record.as_ref();
        let released = record.and_then(|record| record.released);
        let held = self.held(volume);
        Some(LeaseView {
            volume,
            config,
            max_epoch_seen: entry.highest(),
            grantee: record.and_then(|r| r.grantee.map(|g| (g, r.max_epoch, r.confirmed))),
            released: released.is_some(),
            // Once the hold is over, the volume is open to anyone.
            successor: released.and_then(|r| r.successor).filter(|_| entry.watched),
            silent: entry.silent,
            hint: record.and_then(|record| record.hint).map(|hint| hint.head),
            campaigning: entry.campaign.is_some() || (held.is_none() && entry.holding.is_some()),
            held,
        })
    }

    /// What this node holds of a volume.
    #[must_use]
    pub fn held(&self, volume: VolumeId) -> Option<Held> {
        let holding = self.volumes.get(&volume)?.holding.as_ref()?;
        let Holding { epoch, until, late_since, .. } = *holding;
        holding.announced.then_some(Held { epoch, until, frozen: late_since.is_some() })
    }

    /// The highest epoch granted or heard of.
    #[must_use]
    pub fn floor(&self, volume: VolumeId) -> Epoch {
        self.volumes.get(&volume).map_or(Epoch::ZERO, Volume::highest)
    }

    /// A voter's durable record, for checks.
    #[must_use]
    pub fn record(&self, volume: VolumeId) -> Option<&VoterRecord> {
        self.volumes.get(&volume)?.record.as_ref()
    }

    /// Volumes whose view changed since the last call.
    pub fn take_touched(&mut self) -> std::collections::BTreeSet<VolumeId> {
        self.out.take_touched()
    }

    pub(crate) fn volume_mut(&mut self, volume: VolumeId) -> &mut Volume {
        self.volumes.entry(volume).or_default()
    }

    /// The numbers of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// The span times a random factor between these percentages.
    pub(crate) fn spread(&mut self, span: Duration, least: u32, most: u32) -> Duration {
        let range = u64::from(most.saturating_sub(least)) + 1;
        let percent = u64::from(least) + self.next_random() % range;
        span * u32::try_from(percent).unwrap_or(least) / 100
    }

    /// Writes a voter's record and remembers that others may learn of it.
    pub(crate) fn write_record(&mut self, volume: VolumeId, record: VoterRecord) -> Ticket {
        let ticket = self.out.write(Write::Voter(volume, record.clone()));
        let entry = self.volume_mut(volume);
        entry.record = Some(record);
        entry.record_ticket = ticket;
        self.out.touch(volume);
        ticket
    }
}

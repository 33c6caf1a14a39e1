//! The voter: whom this node has granted a volume to, and what it promises. It never grants what
//! somebody else may still count on, and never says what is not durable yet.

use std::collections::BTreeSet;
use std::time::Duration;

use flocker_base::{BootTime, Epoch, StoreId, VolumeId};

use super::config::LONGEST_LEASE;
use super::core::LeaseCore;
use super::event::{Alarm, LeaseEvent, Ticket};
use super::message::{
    ANY_LAG, Grant, GrantReply, Heartbeat, HeartbeatAck, Message, PreVote, PreVoteReply, Release,
    SetConfig, SetConfigReply, Verdict,
};
use super::record::{Released, Stamp, VoterRecord, Write};
use super::state::Volume;
use crate::model::VoterConfig;

impl LeaseCore {
    /// Takes a record up again after a restart. What was promised before is waited out.
    pub(crate) fn restore_voter(&mut self, now: BootTime, volume: VolumeId, record: VoterRecord) {
        let (settled_at, hold) = (self.settled_at, self.config.successor_hold);
        if let (Some(grantee), true) = (record.grantee, record.confirmed) {
            self.peers.entry(grantee).or_default().watched = true;
        }
        let entry = self.volume_mut(volume);
        match record.released {
            Some(released) => {
                entry.successor_until = now + hold;
                entry.watched = released.successor.is_some();
            }
            None if record.grantee.is_some() && !record.confirmed => {
                entry.reserved_until = settled_at;
                entry.watched = true;
            }
            None => {}
        }
        entry.record = Some(record);
        self.out.touch(volume);
    }

    pub(crate) fn on_heartbeat(&mut self, now: BootTime, from: StoreId, beat: Heartbeat) {
        let peer = self.peers.entry(from).or_default();
        if beat.seq <= peer.last_beat {
            return;
        }
        peer.last_beat = beat.seq;
        if beat.lease > LONGEST_LEASE {
            self.out.alarm(Alarm::LeaseTooLong(from, beat.lease));
            return;
        }
        let mut after = peer.ticket;
        let support = peer.record.support;
        let extended = beat.want && beat.support == support;
        if extended {
            let until = now + self.config.voter_share(beat.lease);
            peer.promised_until = peer.promised_until.max(until);
            if beat.lease > self.node.longest_lease {
                self.node.longest_lease = beat.lease;
                self.node_ticket = self.out.write(Write::Node(self.node));
            }
            after = after.max(self.node_ticket);
            self.watch_peer(from);
        }
        let (mut confirmed, mut refused) = (Vec::new(), Vec::new());
        for (volume, epoch) in beat.confirm {
            let (stands, max_epoch, ticket) = self.confirm(from, volume, epoch, extended);
            after = after.max(ticket);
            if stands {
                confirmed.push((volume, epoch));
            } else {
                refused.push((volume, epoch, max_epoch));
            }
        }
        for (volume, epoch, hint) in beat.hints {
            self.take_hint(from, volume, epoch, hint);
        }
        let start = match self.peers.get(&from).and_then(|peer| peer.record.start) {
            Some(start) if from != self.me => start,
            _ => self.start,
        };
        let ack = HeartbeatAck { start, seq: beat.seq, support, extended, confirmed, refused };
        self.out.send(from, Message::HeartbeatAck(ack), after);
    }

    /// Notes that the end of this promise is to be told, and takes back that it was.
    fn watch_peer(&mut self, store: StoreId) {
        let peer = self.peers.entry(store).or_default();
        if std::mem::replace(&mut peer.watched, true) {
            return;
        }
        for (volume, entry) in &mut self.volumes {
            let theirs = entry.record.as_ref().is_some_and(|r| r.grantee == Some(store));
            if theirs && entry.silent {
                entry.silent = false;
                self.out.touch(*volume);
            }
        }
    }

    fn confirm(
        &mut self,
        from: StoreId,
        volume: VolumeId,
        epoch: Epoch,
        extended: bool,
    ) -> (bool, Epoch, Ticket) {
        let Some(entry) = self.volumes.get_mut(&volume) else { return (false, Epoch::ZERO, 0) };
        let Some(record) = &entry.record else { return (false, Epoch::ZERO, 0) };
        // One that its grantee took out of the voters stands by nothing until it is taken in again.
        let stands = record.grantee == Some(from)
            && record.max_epoch == epoch
            && record.released.is_none()
            && extended
            && !record.has_left(self.me);
        let max_epoch = record.max_epoch;
        if stands && !record.confirmed {
            let record = VoterRecord { confirmed: true, ..record.clone() };
            entry.watched = false;
            entry.silent = false;
            self.write_record(volume, record);
        }
        let ticket = self.volumes.get(&volume).map_or(0, |entry| entry.record_ticket);
        (stands, max_epoch, ticket)
    }

    /// A hint is written without anybody waiting for it.
    fn take_hint(&mut self, from: StoreId, volume: VolumeId, epoch: Epoch, hint: Stamp) {
        let Some(entry) = self.volumes.get_mut(&volume) else { return };
        let Some(record) = &mut entry.record else { return };
        let current = record.grantee == Some(from) && record.confirmed && record.max_epoch == epoch;
        if current && record.hint.is_none_or(|known| known.head < hint.head) {
            record.hint = Some(hint);
            self.out.write(Write::Voter(volume, record.clone()));
            self.out.touch(volume);
        }
    }

    /// Whether somebody else than the candidate is protected, and for how long.
    fn busy(&self, now: BootTime, entry: &Volume, candidate: StoreId) -> Option<Verdict> {
        let record = entry.record.as_ref()?;
        let grantee = record.grantee?;
        let (holder, until) = match record.released {
            Some(Released { successor: Some(successor) })
                if successor != candidate && grantee != candidate =>
            {
                (successor, entry.successor_until)
            }
            Some(_) => return None,
            None if grantee == candidate => return None,
            None => {
                let promised = if record.confirmed && !record.has_left(self.me) {
                    self.peers.get(&grantee).map_or(BootTime::ZERO, |peer| peer.promised_until)
                } else {
                    entry.left_until
                };
                (grantee, promised.max(entry.reserved_until).max(self.settled_at))
            }
        };
        let remaining = until.saturating_since(now);
        let busy = Verdict::Busy { holder, epoch: record.max_epoch, remaining };
        (now < until).then_some(busy)
    }

    /// Whether the copy is too old to lead: older than this voter's own, or too far behind the
    /// newest replicated snapshot.
    fn behind(entry: &Volume, copy: Stamp, lag_limit: Duration) -> Option<Verdict> {
        if let Some(own) = entry.copy.filter(|own| own.head > copy.head) {
            return Some(Verdict::Behind { best: own, here: true });
        }
        let facts = entry.facts.as_ref().filter(|_| lag_limit != ANY_LAG);
        let limit = facts.map_or(lag_limit, |facts| facts.lag_limit);
        let hint = entry.record.as_ref()?.hint?;
        let lag = hint.taken_at.saturating_since(copy.taken_at);
        (hint.head > copy.head && lag > limit)
            .then_some(Verdict::Behind { best: hint, here: false })
    }

    /// Why this voter would not follow the configuration offered.
    fn wrong_config(&self, entry: &Volume, offered: &VoterConfig) -> Option<Verdict> {
        match &entry.record {
            Some(record) if offered.version < record.config.version => {
                Some(Verdict::Newer(record.config.clone()))
            }
            _ => (!offered.members().contains(&self.me)).then_some(Verdict::NotVoter),
        }
    }

    /// The support number for a store, and the write that others must wait for to learn it.
    fn support_of(&self, store: StoreId) -> (u64, Ticket) {
        self.peers.get(&store).map_or((0, 0), |peer| (peer.record.support, peer.ticket))
    }

    pub(crate) fn on_pre_vote(&mut self, now: BootTime, from: StoreId, question: PreVote) {
        let PreVote { volume, round, config, copy, lag_limit } = question;
        let unknown = Volume::default();
        let entry = self.volumes.get(&volume).unwrap_or(&unknown);
        // A former voter is asked before a forced promotion: that it promises counts most, then that
        // it has what the copy lacks.
        let verdict = match (self.wrong_config(entry, &config), self.busy(now, entry, from)) {
            (Some(Verdict::NotVoter) | None, Some(busy)) => busy,
            (Some(Verdict::NotVoter), None) => {
                let own = entry.copy.filter(|own| own.head > copy.head);
                own.map_or(Verdict::NotVoter, |best| Verdict::Behind { best, here: true })
            }
            (Some(wrong), _) => wrong,
            (None, None) => Self::behind(entry, copy, lag_limit).unwrap_or(Verdict::Yes),
        };
        let (support, ticket) = self.support_of(from);
        let max_epoch = entry.record.as_ref().map_or(Epoch::ZERO, |record| record.max_epoch);
        let (copy, after) = (entry.copy, entry.record_ticket.max(ticket));
        let reply = PreVoteReply { volume, round, max_epoch, copy, support, verdict };
        self.out.send(from, Message::PreVoteReply(reply), after);
    }

    pub(crate) fn on_grant(&mut self, now: BootTime, from: StoreId, grant: Grant) {
        let Grant { volume, epoch, config, copy, lag_limit } = grant;
        let verdict = self.judge(now, from, volume, epoch, &config, Some((copy, lag_limit)));
        if verdict == Verdict::Yes {
            self.record_grant(now, from, volume, epoch, &config);
        }
        let (support, ticket) = self.support_of(from);
        let after = self.volumes.get(&volume).map_or(0, |entry| entry.record_ticket).max(ticket);
        let reply = GrantReply { volume, epoch, support, verdict };
        self.out.send(from, Message::GrantReply(reply), after);
    }

    /// Whether this epoch may be granted to this store.
    fn judge(
        &self,
        now: BootTime,
        from: StoreId,
        volume: VolumeId,
        epoch: Epoch,
        config: &VoterConfig,
        data: Option<(Stamp, Duration)>,
    ) -> Verdict {
        let unknown = Volume::default();
        let entry = self.volumes.get(&volume).unwrap_or(&unknown);
        if let Some(verdict) = self.wrong_config(entry, config) {
            return verdict;
        }
        if epoch.generation != config.version.epoch.generation {
            return Verdict::NotVoter;
        }
        if let Some(record) = &entry.record {
            let again = record.grantee == Some(from) && record.released.is_none();
            if epoch < record.max_epoch || (epoch == record.max_epoch && !again) {
                return Verdict::Stale(record.max_epoch);
            }
            if epoch == record.max_epoch {
                return Verdict::Yes;
            }
        }
        if epoch == Epoch::ZERO {
            return Verdict::Stale(Epoch::ZERO);
        }
        // Without a copy to judge it is a master that speaks, confirmed under a later epoch: what was
        // promised under an earlier one is over.
        let Some((copy, limit)) = data else { return Verdict::Yes };
        self.busy(now, entry, from)
            .or_else(|| Self::behind(entry, copy, limit))
            .unwrap_or(Verdict::Yes)
    }

    /// Grants. A grant asked for again changes nothing: above all it stays confirmed, for its
    /// holder may be counting on it.
    fn record_grant(
        &mut self,
        now: BootTime,
        to: StoreId,
        volume: VolumeId,
        epoch: Epoch,
        config: &VoterConfig,
    ) {
        let reserved_until = now + self.config.voter_share(self.config.reservation);
        let entry = self.volumes.entry(volume).or_default();
        let record = match &entry.record {
            Some(record) => record.clone(),
            None => VoterRecord::fresh(
                entry.facts.as_ref().map_or_else(|| config.clone(), |facts| facts.config.clone()),
            ),
        };
        if record.max_epoch == epoch {
            if !record.confirmed {
                entry.reserved_until = reserved_until;
                entry.watched = true;
            }
            return;
        }
        entry.reserved_until = reserved_until;
        entry.watched = true;
        entry.silent = false;
        if let Some(former) = record.grantee.filter(|former| *former != to)
            && record.confirmed
            && record.released.is_none()
        {
            self.withdraw(former);
        }
        // The voters of a new generation are known from its first grant on, or nobody could be
        // elected if that came to nothing.
        let opens = epoch == config.version.epoch && config.version > record.config.version;
        let config = if opens { config.clone() } else { record.config.clone() };
        let granted = VoterRecord {
            config,
            max_epoch: epoch,
            grantee: Some(to),
            confirmed: false,
            released: None,
            ..record
        };
        self.write_record(volume, granted);
    }

    /// Withdraws the promise to a store, for all its volumes: it must ask again.
    fn withdraw(&mut self, store: StoreId) {
        let peer = self.peers.entry(store).or_default();
        peer.record.support += 1;
        peer.ticket = self.out.write(Write::Support(store, peer.record));
    }

    pub(crate) fn on_abandon(&mut self, from: StoreId, volume: VolumeId, epoch: Epoch) {
        let Some(entry) = self.volumes.get_mut(&volume) else { return };
        let theirs = entry.record.as_ref().is_some_and(|record| {
            record.grantee == Some(from) && record.max_epoch == epoch && !record.confirmed
        });
        if theirs {
            entry.reserved_until = BootTime::ZERO;
        }
    }

    pub(crate) fn on_release(&mut self, now: BootTime, from: StoreId, release: &Release) {
        let Release { volume, epoch, successor } = *release;
        let released = LeaseEvent::HolderReleased { volume, successor };
        // The successor is told whatever it knows as a voter, and once.
        let to_me = successor == Some(self.me);
        if to_me && self.volume_mut(volume).offered.replace(epoch) != Some(epoch) {
            self.out.emit(released.clone());
        }
        let hold = self.config.successor_hold;
        let entry = self.volumes.entry(volume).or_default();
        let theirs = entry
            .record
            .as_ref()
            .filter(|record| record.grantee == Some(from) && record.max_epoch == epoch);
        if let Some(record) = theirs.filter(|record| record.released.is_none()) {
            let record = VoterRecord {
                released: Some(Released { successor }),
                confirmed: false,
                ..record.clone()
            };
            entry.successor_until = now + hold;
            entry.watched = successor.is_some();
            self.write_record(volume, record);
            if !to_me {
                self.out.emit(released);
            }
        }
        let after = self.volumes.get(&volume).map_or(0, |entry| entry.record_ticket);
        self.out.send(from, Message::ReleaseAck(volume, epoch), after);
    }

    pub(crate) fn on_set_config(&mut self, now: BootTime, from: StoreId, set: SetConfig) {
        let SetConfig { volume, epoch, config } = set;
        let version = config.version;
        let members = self.volumes.get(&volume).and_then(|entry| entry.record.as_ref());
        // A voter that leaves is no member of the final configuration, and must still hear of it.
        let leaving = members.is_some_and(|record| record.config.members().contains(&self.me));
        let verdict = match self.judge(now, from, volume, epoch, &config, None) {
            Verdict::NotVoter if leaving => self.judge_leaving(from, volume, epoch),
            verdict => verdict,
        };
        if verdict == Verdict::Yes {
            self.record_grant(now, from, volume, epoch, &config);
            let record = self.volumes.get(&volume).and_then(|entry| entry.record.clone());
            if let Some(record) = record.filter(|record| record.config.version < version) {
                let record = self.leave(volume, VoterRecord { config, ..record });
                self.write_record(volume, record);
            }
        }
        let (support, ticket) = self.support_of(from);
        let after = self.volumes.get(&volume).map_or(0, |entry| entry.record_ticket).max(ticket);
        let reply = SetConfigReply { volume, epoch, version, support, verdict };
        self.out.send(from, Message::SetConfigReply(reply), after);
    }

    /// One that is taken out of the voters, if this record says so, keeps what it had promised, and promises nothing more:
    /// its grantee could otherwise count on it for as long as its node lives, and be kept as long.
    /// The grantee is told by the support number, for it may count on this voter already under a
    /// newer configuration, which this one has not heard of.
    fn leave(&mut self, volume: VolumeId, record: VoterRecord) -> VoterRecord {
        let leaves = record.confirmed && record.has_left(self.me);
        let Some(holder) = record.grantee.filter(|_| leaves) else { return record };
        let promised = self.peers.get(&holder).map_or(BootTime::ZERO, |peer| peer.promised_until);
        self.volume_mut(volume).left_until = promised;
        self.withdraw(holder);
        VoterRecord { confirmed: false, ..record }
    }

    /// A voter that leaves follows only the master that it granted.
    fn judge_leaving(&self, from: StoreId, volume: VolumeId, epoch: Epoch) -> Verdict {
        let record = self.volumes.get(&volume).and_then(|entry| entry.record.as_ref());
        match record {
            Some(record)
                if record.max_epoch == epoch
                    && record.grantee == Some(from)
                    && record.released.is_none() =>
            {
                Verdict::Yes
            }
            Some(record) => Verdict::Stale(record.max_epoch),
            None => Verdict::NotVoter,
        }
    }

    /// Tells of promises that ended.
    pub(crate) fn voter_timers(&mut self, now: BootTime) -> bool {
        let settled_at = self.settled_at;
        let mut ended = BTreeSet::new();
        for (store, peer) in &mut self.peers {
            if peer.watched && now >= peer.promised_until.max(settled_at) {
                peer.watched = false;
                ended.insert(*store);
            }
        }
        let mut events = Vec::new();
        for (volume, entry) in &mut self.volumes {
            let Some(record) = &entry.record else { continue };
            let Some(holder) = record.grantee else { continue };
            let silent =
                LeaseEvent::HolderSilent { volume: *volume, holder, epoch: record.max_epoch };
            match record.released {
                Some(_) if entry.watched && now >= entry.successor_until => {
                    entry.watched = false;
                    events.push(LeaseEvent::HolderReleased { volume: *volume, successor: None });
                }
                None if record.confirmed && ended.contains(&holder) => {
                    entry.silent = true;
                    events.push(silent);
                }
                None if !record.confirmed
                    && entry.watched
                    && now >= entry.reserved_until.max(settled_at) =>
                {
                    entry.watched = false;
                    entry.silent = true;
                    events.push(silent);
                }
                _ => {}
            }
        }
        let ran = !ended.is_empty() || !events.is_empty();
        for event in events {
            self.out.touch(event.volume());
            self.out.emit(event);
        }
        ran
    }

    /// When a reservation, or a hold for a successor, ends.
    pub(crate) fn watch_deadline(&self, entry: &Volume) -> Option<BootTime> {
        let record = entry.record.as_ref().filter(|_| entry.watched)?;
        Some(match record.released {
            Some(_) => entry.successor_until,
            None => entry.reserved_until.max(self.settled_at),
        })
    }
}

//! The holder: what this node won, until when it may count on it, and the heartbeats that renew
//! it. The lease is counted from when a heartbeat was sent, never from when its answer came, and
//! an epoch once closed never has a lease again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flocker_base::{BootTime, Epoch, StoreId, VolumeId};

use super::core::LeaseCore;
use super::event::{Alarm, CampaignFailure, LeaseError, LeaseEvent, Outcome};
use super::message::{HeartbeatAck, Verdict};
use super::record::{HolderRecord, Stamp, Write};
use super::state::{Holding, Phase, Standing};
use crate::model::VoterConfig;

impl LeaseCore {
    /// Takes an epoch up again after a restart: offers it again, or goes on to release it.
    pub(crate) fn restore_holder(&mut self, now: BootTime, volume: VolumeId, record: HolderRecord) {
        let HolderRecord { epoch, closed, ref config, successor, settled } = record;
        let config = config.clone();
        self.volume_mut(volume).holder = Some(record);
        if epoch > closed {
            let holding = Holding { again: true, ..self.new_holding(now, epoch, config) };
            self.urgent.extend(holding.config.members());
            self.volume_mut(volume).holding = Some(holding);
        } else if !settled {
            self.start_releasing(now, volume, epoch, config, successor, 0, None);
        }
        self.out.touch(volume);
    }

    fn new_holding(&self, now: BootTime, epoch: Epoch, config: VoterConfig) -> Holding {
        Holding {
            epoch,
            config,
            ticket: 0,
            standing: BTreeMap::new(),
            confirmed: BTreeSet::new(),
            until: BootTime::ZERO,
            announced: false,
            again: false,
            late_since: Some(now),
            confirm_by: None,
            granted_at: now,
            campaign: None,
            change: None,
            uninformed: BTreeSet::new(),
            inform_at: BootTime::NEVER,
            hint: None,
            untold: BTreeSet::new(),
        }
    }

    /// A quorum granted. The lease exists only once they confirm.
    pub(crate) fn become_holder(&mut self, now: BootTime, volume: VolumeId) {
        // The first offer goes by itself; the regular ones follow it.
        if self.volumes.values().all(|entry| entry.holding.is_none()) {
            self.next_beat = now + self.config.heartbeat;
        }
        let Some(entry) = self.volumes.get_mut(&volume) else { return };
        let Some(mut campaign) = entry.campaign.take() else { return };
        let phase = std::mem::replace(&mut campaign.phase, Phase::Waiting { until: now });
        let Phase::Claiming { epoch, config, replies, .. } = phase else { return };
        let record = HolderRecord {
            epoch,
            closed: entry.holder.as_ref().map_or(Epoch::ZERO, |holder| holder.closed),
            config: config.clone(),
            successor: None,
            settled: false,
        };
        entry.holder = Some(record.clone());
        entry.offered = None;
        // The release of an older epoch is overtaken by this one.
        if let Some((request, _)) = entry.releasing.take().and_then(|release| release.request) {
            self.out.reply(request, Err(LeaseError::Lost(volume)));
        }
        let ticket = self.out.write(Write::Holder(volume, record));
        let granted = replies.into_iter().filter(|(_, verdict)| *verdict == Verdict::Yes);
        self.urgent.extend(config.members());
        let holding = Holding {
            ticket,
            standing: granted.map(|(voter, _)| (voter, Standing::Granted)).collect(),
            confirm_by: Some(now + self.config.reservation * 2),
            campaign: Some(campaign),
            ..self.new_holding(now, epoch, config)
        };
        self.volume_mut(volume).holding = Some(holding);
        self.out.touch(volume);
    }

    /// A voter answered an offer to grant what a quorum granted.
    pub(crate) fn on_offer_reply(
        &mut self,
        now: BootTime,
        volume: VolumeId,
        from: StoreId,
        verdict: &Verdict,
    ) {
        let Some(entry) = self.volumes.get_mut(&volume) else { return };
        let Some(holding) = &mut entry.holding else { return };
        match verdict {
            Verdict::Yes => {
                holding.standing.insert(from, Standing::Granted);
                if !holding.confirmed.contains(&from) {
                    self.urgent.insert(from);
                }
            }
            Verdict::Stale(max) => {
                entry.seen = entry.seen.max(*max);
                let (epoch, confirmed) = (holding.epoch, holding.confirmed.contains(&from));
                if *max > epoch && !confirmed {
                    holding.standing.insert(from, Standing::Refused(*max));
                    self.check_support(now, volume);
                }
            }
            Verdict::Newer(newer) => self.on_newer_config(now, volume, newer.clone()),
            Verdict::NotVoter | Verdict::Busy { .. } | Verdict::Behind { .. } => {}
        }
    }

    pub(crate) fn on_heartbeat_ack(&mut self, now: BootTime, from: StoreId, ack: HeartbeatAck) {
        let HeartbeatAck { start, seq, support, extended, confirmed, refused } = ack;
        if start != self.start {
            return;
        }
        let peer = self.peers.entry(from).or_default();
        let Some(sent) = peer.sent.remove(&seq) else { return };
        if support < peer.support {
            // Of an answer to an earlier heartbeat the number may just come late.
            if seq > peer.adopted_at {
                self.out.alarm(Alarm::RolledBack(from));
            }
            return;
        }
        peer.last_ack = peer.last_ack.max(seq);
        let newer = support > peer.support;
        self.heard(now, from, support);
        if newer {
            return;
        }
        for (volume, epoch) in confirmed {
            if let Some(holding) = self.holding_of(volume, epoch)
                && holding.config.members().contains(&from)
            {
                holding.confirmed.insert(from);
                holding.standing.insert(from, Standing::Granted);
            }
        }
        if extended {
            let until = sent.at + self.config.holder_share(sent.lease);
            let peer = self.peers.entry(from).or_default();
            peer.until = peer.until.max(until);
        }
        for (volume, epoch, max_epoch) in refused {
            self.on_refused(now, from, volume, epoch, max_epoch);
        }
        for (volume, told) in sent.hints {
            if let Some(holding) = self.volume_mut(volume).holding.as_mut()
                && holding.hint == Some(told)
            {
                holding.untold.remove(&from);
            }
        }
        if !sent.wanted && !self.is_stalled(now) {
            self.urgent.insert(from);
        }
        self.refresh(now);
    }

    fn holding_of(&mut self, volume: VolumeId, epoch: Epoch) -> Option<&mut Holding> {
        let holding = self.volumes.get_mut(&volume)?.holding.as_mut()?;
        (holding.epoch == epoch).then_some(holding)
    }

    /// A voter does not stand by an epoch offered to it.
    fn on_refused(
        &mut self,
        now: BootTime,
        from: StoreId,
        volume: VolumeId,
        epoch: Epoch,
        max_epoch: Epoch,
    ) {
        let Some(holding) = self.holding_of(volume, epoch) else { return };
        let stood = holding.confirmed.remove(&from);
        if max_epoch == epoch {
            return;
        }
        holding.standing.insert(from, Standing::Refused(max_epoch));
        let entry = self.volume_mut(volume);
        entry.seen = entry.seen.max(max_epoch);
        if stood && max_epoch > epoch {
            self.fall(now, volume, Some(max_epoch));
        } else {
            self.check_support(now, volume);
        }
    }

    /// Gives an epoch up once too many voters went past it.
    fn check_support(&mut self, now: BootTime, volume: VolumeId) {
        let Some(holding) = self.volumes.get(&volume).and_then(|entry| entry.holding.as_ref())
        else {
            return;
        };
        let gone = |voter: &StoreId| match holding.standing.get(voter) {
            Some(Standing::Refused(max)) if *max > holding.epoch => Some(*max),
            _ => None,
        };
        let members = holding.config.members();
        let left = members.iter().copied().filter(|voter| gone(voter).is_none()).collect();
        if !holding.config.is_quorum(&left) {
            let superseded_by = members.iter().filter_map(gone).max();
            self.fall(now, volume, superseded_by);
        }
    }

    /// The lease: the latest time that a quorum's acknowledgements reach. A holder that is its
    /// only voter has no deadline.
    pub(crate) fn lease_until(&self, holding: &Holding) -> BootTime {
        if !self.out.is_durable(holding.ticket) {
            return BootTime::ZERO;
        }
        let alone = holding.config.joint.is_none() && holding.config.voters.len() == 1;
        if alone && holding.confirmed.contains(&self.me) && holding.config.voters.contains(&self.me)
        {
            return BootTime::NEVER;
        }
        let until =
            |voter: &StoreId| self.peers.get(voter).map_or(BootTime::ZERO, |peer| peer.until);
        let mut times: Vec<_> = holding.confirmed.iter().map(until).collect();
        times.sort_unstable_by(|a, b| b.cmp(a));
        let reached = times.into_iter().find(|time| {
            let stores = holding.confirmed.iter().filter(|voter| until(voter) >= *time);
            holding.config.is_quorum(&stores.copied().collect())
        });
        reached.unwrap_or(BootTime::ZERO)
    }

    /// Computes every lease again and tells what changed.
    pub(crate) fn refresh(&mut self, now: BootTime) {
        let lead = self.config.freeze_lead;
        let me = self.me;
        let mut changing = Vec::new();
        let volumes: Vec<_> = self.volumes.keys().copied().collect();
        for volume in volumes {
            let Some(entry) = self.volumes.get(&volume) else { continue };
            let Some(holding) = &entry.holding else { continue };
            // Time once earned stays good: no voter goes back on a promise before it ends.
            let until = self.lease_until(holding).max(holding.until);
            let Some(holding) = self.volume_mut(volume).holding.as_mut() else { continue };
            if until == holding.until {
                continue;
            }
            holding.until = until;
            let epoch = holding.epoch;
            let holding_changes = holding.change.is_some() || holding.config.joint.is_some();
            let roomy = until > now + lead;
            if roomy && !holding.announced {
                holding.announced = true;
                holding.late_since = None;
                holding.confirm_by = None;
                let campaign = holding.campaign.take();
                let election = campaign.as_ref().map(|campaign| holding.story(campaign, now));
                let promotion = campaign.and_then(|won| won.promotion);
                let config = holding.config.clone();
                tracing::debug!(%volume, %epoch, store = %me, "lease won");
                self.out.emit(LeaseEvent::Won { volume, epoch, config, until, election });
                if let Some(request) = promotion.and_then(|promotion| promotion.request) {
                    self.out.reply(request, Ok(Outcome::Won(epoch)));
                }
                self.settle_force(now, volume);
            } else if holding.announced {
                if roomy {
                    holding.late_since = None;
                }
                self.out.emit(LeaseEvent::Renewed { volume, epoch, until });
            }
            if holding_changes {
                changing.push(volume);
            }
            self.out.touch(volume);
        }
        for volume in changing {
            self.finish_inherited_change(now, volume);
            self.advance_change(now, volume);
        }
    }

    pub(crate) fn on_replicated(&mut self, volume: VolumeId, stamp: Stamp) {
        let Some(holding) = self.volume_mut(volume).holding.as_mut() else { return };
        if holding.hint.is_none_or(|known| known.head < stamp.head) {
            holding.hint = Some(stamp);
            holding.untold = holding.config.members();
        }
    }

    /// The epoch is over for this node: an election not confirmed is tried again, a lease is lost.
    pub(crate) fn fall(&mut self, now: BootTime, volume: VolumeId, superseded_by: Option<Epoch>) {
        let Some(entry) = self.volumes.get_mut(&volume) else { return };
        let campaign = entry.holding.as_mut().and_then(|holding| holding.campaign.take());
        self.lose(volume, superseded_by);
        self.release_lost(now, volume);
        let Some(mut campaign) = campaign else { return };
        if campaign.is_forced() {
            let missing = Vec::new();
            self.give_up(volume, campaign, &CampaignFailure::NoQuorum { missing });
            return;
        }
        campaign.lost += 1;
        let pause = self.pause_after(campaign.lost);
        campaign.phase = Phase::Waiting { until: now + pause };
        self.volume_mut(volume).campaign = Some(campaign);
    }

    /// Closes the epoch, durably, and tells the agent if it knew of it.
    pub(crate) fn lose(&mut self, volume: VolumeId, superseded_by: Option<Epoch>) {
        let Some(entry) = self.volumes.get_mut(&volume) else { return };
        let Some(holding) = entry.holding.take() else { return };
        let epoch = holding.epoch;
        entry.uninformed = holding.uninformed;
        let record = HolderRecord {
            epoch,
            closed: epoch,
            config: holding.config,
            successor: None,
            settled: false,
        };
        entry.holder = Some(record.clone());
        self.out.write(Write::Holder(volume, record));
        let promotion = holding.campaign.and_then(|campaign| campaign.promotion);
        let promotion = promotion.and_then(|promotion| promotion.request);
        let change = holding.change.and_then(|change| change.request);
        for request in [promotion, change].into_iter().flatten() {
            self.out.reply(request, Err(LeaseError::Lost(volume)));
        }
        if holding.announced || holding.again {
            self.out.emit(LeaseEvent::Lost { volume, epoch, superseded_by });
        }
        self.out.touch(volume);
    }

    /// Tells the voters that can be reached of an epoch lost, so that they are free.
    fn release_lost(&mut self, now: BootTime, volume: VolumeId) {
        let holder = self.volumes.get(&volume).and_then(|entry| entry.holder.clone());
        if let Some(HolderRecord { epoch, config, .. }) = holder {
            let ticket = self.out.current_ticket();
            self.start_releasing(now, volume, epoch, config, None, ticket, None);
        }
    }

    pub(crate) fn holder_timers(&mut self, now: BootTime, volume: VolumeId) -> bool {
        if self.heed_generation(now, volume) {
            return true;
        }
        let lead = self.config.freeze_lead;
        let Some(entry) = self.volumes.get(&volume) else { return false };
        let Some(holding) = &entry.holding else { return false };
        let limit = self.longest_frozen(holding);
        let Some(holding) = &mut self.volume_mut(volume).holding else { return false };
        if holding.confirm_by.is_some_and(|by| now >= by) {
            self.fall(now, volume, None);
            return true;
        }
        match holding.late_since {
            None if now >= holding.until.saturating_sub(lead) => {
                holding.late_since = Some(now);
                let epoch = holding.epoch;
                self.out.emit(LeaseEvent::Freeze { volume, epoch });
                true
            }
            Some(since) if holding.confirm_by.is_none() && now >= since + limit => {
                self.fall(now, volume, None);
                true
            }
            _ => false,
        }
    }

    pub(crate) fn holder_deadline(&self, entry: &super::state::Volume) -> Option<BootTime> {
        let holding = entry.holding.as_ref()?;
        if holding.confirm_by.is_some() {
            return holding.confirm_by;
        }
        Some(match holding.late_since {
            None if holding.until == BootTime::NEVER => BootTime::NEVER,
            None => holding.until.saturating_sub(self.config.freeze_lead),
            Some(since) => since + self.longest_frozen(holding),
        })
    }

    /// How long this epoch stays frozen before it is given up. With a voter that went past it, the
    /// others may be too few for ever, and this node's own vote keeps them from electing anybody: a
    /// lease's length tells whether they are.
    fn longest_frozen(&self, holding: &Holding) -> Duration {
        let epoch = holding.epoch;
        let passed =
            |standing: &Standing| matches!(standing, Standing::Refused(max) if *max > epoch);
        let limit = self.config.frozen_limit;
        if holding.standing.values().any(passed) { limit.min(self.config.lease) } else { limit }
    }
}

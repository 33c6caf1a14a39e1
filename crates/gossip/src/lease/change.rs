//! Changing the voters of a volume, by its holder alone and one change at a time: a joint
//! configuration that needs both majorities first, then the new one. No configuration takes
//! effect before it is durable where it counts.

use std::collections::BTreeSet;

use flocker_base::{BootTime, StoreId, VolumeId};

use super::core::LeaseCore;
use super::event::{LeaseError, LeaseEvent, Outcome, Request};
use super::message::{Message, SetConfig, SetConfigReply, Verdict};
use super::record::Write;
use super::state::{Change, Standing, Volume};
use crate::model::{ConfigVersion, VoterConfig, Voters};

/// Most voters of a volume.
pub const MOST_VOTERS: usize = 5;

impl LeaseCore {
    pub(crate) fn on_change_request(
        &mut self,
        now: BootTime,
        volume: VolumeId,
        voters: &Voters,
        request: Request,
    ) {
        let holding = self.volumes.get(&volume).and_then(|entry| entry.holding.as_ref());
        let outcome = match holding {
            Some(holding) if holding.is_valid(now) => {
                if voters.len() > MOST_VOTERS || voters.len().is_multiple_of(2) {
                    Err(LeaseError::BadVoters(voters.len()))
                } else if holding.change.is_some() || holding.config.joint.is_some() {
                    Err(LeaseError::ChangeInProgress(volume))
                } else if holding.config.voters == *voters {
                    Ok(Some(Outcome::Voters(holding.config.clone())))
                } else {
                    Ok(None)
                }
            }
            _ => Err(LeaseError::NotHolder(volume)),
        };
        match outcome {
            Err(refusal) => self.out.reply(request, Err(refusal)),
            Ok(Some(done)) => self.out.reply(request, Ok(done)),
            Ok(None) => self.begin_change(now, volume, voters.clone(), Some(request)),
        }
    }

    /// Takes the joint configuration into use here, durably, and proposes it.
    fn begin_change(
        &mut self,
        now: BootTime,
        volume: VolumeId,
        voters: Voters,
        request: Option<Request>,
    ) {
        let share = self.config.holder_share(self.config.lease);
        let lease = self.config.lease;
        let Some(holding) = self.volume_mut(volume).holding.as_mut() else { return };
        let number = holding.config.version.number + 1;
        let joint = VoterConfig {
            version: ConfigVersion { epoch: holding.epoch, number },
            voters,
            joint: Some(holding.config.voters.clone()),
        };
        let mut not_before = now;
        if holding.until == BootTime::NEVER {
            // The lease gets an end, and whoever enforces it needs to hear of it before anyone
            // else could be elected, which only the final step makes possible.
            holding.until = now + share;
            not_before = now + lease;
            let (epoch, until) = (holding.epoch, holding.until);
            self.out.emit(LeaseEvent::Renewed { volume, epoch, until });
        }
        self.propose(now, volume, joint, not_before, request, true);
    }

    /// Proposes a configuration; one taken into use at once is made durable here first.
    pub(crate) fn propose(
        &mut self,
        now: BootTime,
        volume: VolumeId,
        proposal: VoterConfig,
        not_before: BootTime,
        request: Option<Request>,
        in_use: bool,
    ) {
        let mut ticket = 0;
        if in_use {
            let entry = self.volume_mut(volume);
            let (Some(holding), Some(holder)) = (&mut entry.holding, &mut entry.holder) else {
                return;
            };
            holding.config = proposal.clone();
            holder.config = proposal.clone();
            let record = holder.clone();
            ticket = self.out.write(Write::Holder(volume, record));
        }
        let Some(holding) = self.volume_mut(volume).holding.as_mut() else { return };
        holding.change = Some(Change {
            proposal,
            acked: BTreeSet::new(),
            ticket,
            retry: now,
            not_before,
            request,
        });
        self.out.touch(volume);
    }

    /// A holder that finds a joint configuration finishes it; it may not roll it back.
    pub(crate) fn finish_inherited_change(&mut self, now: BootTime, volume: VolumeId) {
        let Some(holding) = self.volumes.get(&volume).and_then(|entry| entry.holding.as_ref())
        else {
            return;
        };
        if holding.config.joint.is_none() || holding.change.is_some() {
            return;
        }
        let version = ConfigVersion { epoch: holding.epoch, ..holding.config.version };
        let joint = VoterConfig { version, ..holding.config.clone() };
        let not_before = now + self.config.lease;
        self.propose(now, volume, joint, not_before, None, true);
    }

    /// A voter knows a newer configuration than this holder's.
    pub(crate) fn on_newer_config(&mut self, now: BootTime, volume: VolumeId, newer: VoterConfig) {
        let Some(holding) = self.volume_mut(volume).holding.as_mut() else { return };
        if newer.version <= holding.config.version {
            return;
        }
        let own = newer.version.epoch == holding.epoch;
        match &holding.change {
            // The final step, proposed before a restart of this holder.
            Some(change)
                if own && newer.joint.is_none() && newer.version > change.proposal.version =>
            {
                let request = change.request;
                self.propose(now, volume, newer, now, request, false);
            }
            // Proposed by an earlier holder and never decided, for a quorum elected this one
            // without it: the configuration in force is stamped anew to overrule it.
            None if !own && newer.version.epoch < holding.epoch && holding.announced => {
                let number = holding.config.version.number + 1;
                let version = ConfigVersion { epoch: holding.epoch, number };
                let stamped = VoterConfig { version, ..holding.config.clone() };
                self.propose(now, volume, stamped, now, None, false);
            }
            _ => {}
        }
    }

    /// Sends the proposal to everybody concerned who has not answered.
    fn tell_config(&mut self, now: BootTime, volume: VolumeId) {
        let heartbeat = self.config.heartbeat;
        let Some(holding) = self.volume_mut(volume).holding.as_mut() else { return };
        let Some(change) = &mut holding.change else { return };
        change.retry = now + heartbeat;
        let everybody =
            holding.config.members().union(&change.proposal.members()).copied().collect();
        let waiting: Vec<StoreId> =
            BTreeSet::difference(&everybody, &change.acked).copied().collect();
        let (epoch, ticket) = (holding.epoch, change.ticket);
        let proposal = change.proposal.clone();
        for voter in waiting {
            let set = SetConfig { volume, epoch, config: proposal.clone() };
            self.out.send(voter, Message::SetConfig(set), ticket);
        }
    }

    pub(crate) fn on_set_config_reply(
        &mut self,
        now: BootTime,
        from: StoreId,
        reply: SetConfigReply,
    ) {
        let SetConfigReply { volume, epoch, version, support, verdict } = reply;
        let Some(holding) = self.volumes.get_mut(&volume).and_then(|e| e.holding.as_mut()) else {
            return;
        };
        if holding.epoch != epoch {
            return;
        }
        if holding.config.version == version && holding.change.is_none() {
            // Whatever it says, it has heard of it.
            holding.uninformed.remove(&from);
            return;
        }
        let Some(change) = &mut holding.change else { return };
        if change.proposal.version != version {
            return;
        }
        match verdict {
            Verdict::Yes => {
                change.acked.insert(from);
                if !holding.confirmed.contains(&from) {
                    holding.standing.insert(from, Standing::Granted);
                    self.urgent.insert(from);
                }
                self.heard(now, from, support);
                self.advance_change(now, volume);
            }
            Verdict::Newer(newer) => self.on_newer_config(now, volume, newer),
            _ => {}
        }
    }

    /// Takes the next step of a change once enough voters have made the present one durable.
    pub(crate) fn advance_change(&mut self, now: BootTime, volume: VolumeId) -> bool {
        let lead = self.config.freeze_lead;
        let Some(holding) = self.volumes.get(&volume).and_then(|entry| entry.holding.as_ref())
        else {
            return false;
        };
        let Some(change) = &holding.change else { return false };
        if !change.proposal.is_quorum(&change.acked) {
            return false;
        }
        if change.proposal.joint.is_none() {
            self.end_change(now, volume);
            return true;
        }
        // Once the final one is proposed, the former voters' promises alone keep nobody out: all
        // the time that was ever told must by then be given by both majorities.
        let earned = self.lease_until(holding);
        if now < change.not_before || earned <= now + lead || earned < holding.until {
            return false;
        }
        let version = change.proposal.version;
        let last = VoterConfig {
            version: ConfigVersion { number: version.number + 1, ..version },
            voters: change.proposal.voters.clone(),
            joint: None,
        };
        let request = change.request;
        self.propose(now, volume, last, now, request, false);
        true
    }

    /// The new configuration is durable at a majority of it: takes it into use.
    fn end_change(&mut self, now: BootTime, volume: VolumeId) {
        let heartbeat = self.config.heartbeat;
        let entry = self.volume_mut(volume);
        let (Some(holding), Some(holder)) = (&mut entry.holding, &mut entry.holder) else { return };
        let Some(change) = holding.change.take() else { return };
        let config = change.proposal;
        let everybody = holding.config.members().union(&config.members()).copied().collect();
        holding
            .uninformed
            .append(&mut BTreeSet::difference(&everybody, &change.acked).copied().collect());
        holding.inform_at = now + heartbeat;
        holding.config = config.clone();
        holding.untold.retain(|voter| config.voters.contains(voter));
        holder.config = config.clone();
        let holder = holder.clone();
        self.out.write(Write::Holder(volume, holder));
        self.out.emit(LeaseEvent::VotersChanged { volume, config: config.clone() });
        if let Some(request) = change.request {
            self.out.reply(request, Ok(Outcome::Voters(config)));
        }
    }

    pub(crate) fn change_timers(&mut self, now: BootTime, volume: VolumeId) -> bool {
        let holding = self.volumes.get(&volume).and_then(|entry| entry.holding.as_ref());
        let Some(holding) = holding else { return false };
        let Some(change) = holding.change.as_ref() else {
            return self.inform(now, volume);
        };
        if now < change.retry {
            return false;
        }
        if !self.advance_change(now, volume) {
            self.tell_config(now, volume);
        }
        true
    }

    /// Tells the outcome of the last change to those who may not know it. Whether it was time to.
    fn inform(&mut self, now: BootTime, volume: VolumeId) -> bool {
        let pause = self.config.lease;
        let Some(holding) = self.volume_mut(volume).holding.as_mut() else { return false };
        if holding.uninformed.is_empty() || now < holding.inform_at {
            return false;
        }
        holding.inform_at = now + pause;
        let (epoch, config) = (holding.epoch, holding.config.clone());
        for store in holding.uninformed.clone() {
            let set = SetConfig { volume, epoch, config: config.clone() };
            self.out.send(store, Message::SetConfig(set), 0);
        }
        true
    }

    pub(crate) fn change_deadline(entry: &Volume) -> Option<BootTime> {
        let holding = entry.holding.as_ref()?;
        match &holding.change {
            Some(change) => Some(change.retry),
            None => (!holding.uninformed.is_empty()).then_some(holding.inform_at),
        }
    }
}

//! Giving a volume back: the epoch is closed durably first, and only then are the voters told,
//! again and again until each knows. A closed epoch never has a lease again.

use std::collections::BTreeSet;

use flocker_base::{BootTime, Epoch, StoreId, VolumeId};

use super::core::LeaseCore;
use super::event::{LeaseError, Outcome, Request, Ticket};
use super::message::{Message, Release};
use super::record::{HolderRecord, Write};
use super::state::{Releasing, Volume};
use crate::model::VoterConfig;

/// After this many tries, which take longer than the volume is kept for it, a successor that does
/// not answer is not told again.
const TRIES_FOR_SUCCESSOR: u32 = 10;

impl LeaseCore {
    pub(crate) fn on_release_request(
        &mut self,
        now: BootTime,
        volume: VolumeId,
        successor: Option<StoreId>,
        request: Request,
    ) {
        let holding = self.volumes.get_mut(&volume).and_then(|entry| entry.holding.take());
        let Some(holding) = holding else {
            self.out.reply(request, Err(LeaseError::NotHolder(volume)));
            return;
        };
        let promotion = holding.campaign.and_then(|campaign| campaign.promotion);
        let promotion = promotion.and_then(|promotion| promotion.request);
        let change = holding.change.and_then(|change| change.request);
        for waiting in [promotion, change].into_iter().flatten() {
            self.out.reply(waiting, Err(LeaseError::Lost(volume)));
        }
        let (epoch, config) = (holding.epoch, holding.config);
        let record = HolderRecord {
            epoch,
            closed: epoch,
            config: config.clone(),
            successor,
            settled: false,
        };
        let entry = self.volume_mut(volume);
        entry.holder = Some(record.clone());
        entry.uninformed = holding.uninformed;
        let ticket = self.out.write(Write::Holder(volume, record));
        self.out.touch(volume);
        self.start_releasing(now, volume, epoch, config, successor, ticket, Some(request));
    }

    /// Begins to tell the voters. The first message goes as soon as the closing is durable.
    #[expect(clippy::too_many_arguments, reason = "each is one field of what is being told")]
    pub(crate) fn start_releasing(
        &mut self,
        now: BootTime,
        volume: VolumeId,
        epoch: Epoch,
        config: VoterConfig,
        successor: Option<StoreId>,
        ticket: Ticket,
        request: Option<Request>,
    ) {
        let deadline = now + self.config.lease * 2;
        let entry = self.volume_mut(volume);
        let releasing = Releasing {
            uninformed: std::mem::take(&mut entry.uninformed),
            epoch,
            successor,
            config,
            ticket,
            acked: BTreeSet::new(),
            retry: now,
            tries: 0,
            request: request.map(|request| (request, deadline)),
        };
        entry.releasing = Some(releasing);
    }

    /// Tells the voters that have not answered, and the successor.
    fn tell_release(&mut self, now: BootTime, volume: VolumeId) {
        let (heartbeat, limit) = (self.config.heartbeat, self.config.retry_limit);
        let Some(entry) = self.volumes.get_mut(&volume) else { return };
        let Some(releasing) = &mut entry.releasing else { return };
        let pause = heartbeat.saturating_mul(1 << releasing.tries.min(10)).min(limit);
        releasing.retry = now + pause;
        releasing.tries += 1;
        let (epoch, successor) = (releasing.epoch, releasing.successor);
        let members = releasing.config.members().into_iter().chain(successor);
        let everybody: BTreeSet<_> = members.chain(releasing.uninformed.iter().copied()).collect();
        for store in everybody.difference(&releasing.acked) {
            let release = Release { volume, epoch, successor };
            self.out.send(*store, Message::Release(release), releasing.ticket);
        }
    }

    pub(crate) fn on_release_ack(&mut self, from: StoreId, volume: VolumeId, epoch: Epoch) {
        let Some(entry) = self.volumes.get_mut(&volume) else { return };
        let Some(releasing) = &mut entry.releasing else { return };
        let members = releasing.config.members();
        let concerned = members.contains(&from)
            || releasing.successor == Some(from)
            || releasing.uninformed.contains(&from);
        if releasing.epoch != epoch || !concerned {
            return;
        }
        releasing.acked.insert(from);
        if releasing.config.is_quorum(&releasing.acked)
            && let Some((request, _)) = releasing.request.take()
        {
            self.out.reply(request, Ok(Outcome::Released(epoch)));
        }
        self.settle_release(volume);
    }

    /// Ends the telling once everybody knows; a successor that can't be told in time has no use
    /// for it any more. Whether it ended.
    fn settle_release(&mut self, volume: VolumeId) -> bool {
        let Some(entry) = self.volumes.get_mut(&volume) else { return false };
        let Some(releasing) = &entry.releasing else { return false };
        let told = releasing.successor.is_none_or(|s| releasing.acked.contains(&s))
            || releasing.tries > TRIES_FOR_SUCCESSOR;
        if !told || !releasing.config.members().is_subset(&releasing.acked) {
            return false;
        }
        let epoch = releasing.epoch;
        entry.releasing = None;
        if let Some(holder) = entry.holder.as_mut().filter(|holder| holder.epoch == epoch) {
            holder.settled = true;
            self.out.write(Write::Holder(volume, holder.clone()));
        }
        true
    }

    pub(crate) fn release_timers(&mut self, now: BootTime, volume: VolumeId) -> bool {
        let Some(entry) = self.volumes.get_mut(&volume) else { return false };
        let Some(releasing) = &mut entry.releasing else { return false };
        if let Some((request, _)) = releasing.request.filter(|(_, deadline)| now >= *deadline) {
            releasing.request = None;
            let members = releasing.config.members();
            let missing = members.difference(&releasing.acked).copied().collect();
            self.out.reply(request, Err(LeaseError::NoQuorum { volume, missing }));
            return true;
        }
        if now >= releasing.retry {
            if !self.settle_release(volume) {
                self.tell_release(now, volume);
            }
            return true;
        }
        false
    }

    pub(crate) fn release_deadline(entry: &Volume) -> Option<BootTime> {
        let releasing = entry.releasing.as_ref()?;
        let asked = releasing.request.map_or(BootTime::NEVER, |(_, deadline)| deadline);
        Some(releasing.retry.min(asked))
    }
}

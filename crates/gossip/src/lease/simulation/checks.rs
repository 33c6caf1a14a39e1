//! What must never happen, checked on what the cores make durable, say and hold.

use std::collections::BTreeMap;

use flocker_base::{BootTime, Epoch, StoreId, VolumeId};

use super::super::message::{Message, Verdict};
use super::super::record::{Durable, Write};

/// What the guard of a node enforces: who runs under which epoch and until when by its clock.
/// It outlives its agent.
pub(super) type Guarded = BTreeMap<VolumeId, (Epoch, BootTime)>;

/// Who won which epoch, ever.
#[derive(Debug, Default)]
pub(super) struct Winners(BTreeMap<(VolumeId, Epoch), StoreId>);

impl Winners {
    /// One store an epoch.
    pub(super) fn check(
        &mut self,
        volume: VolumeId,
        epoch: Epoch,
        by: StoreId,
    ) -> Result<(), String> {
        match self.0.insert((volume, epoch), by) {
            Some(other) if other != by => {
                Err(format!("{volume:?}: epoch {epoch} was won by {other:?} and by {by:?}"))
            }
            _ => Ok(()),
        }
    }

    /// The highest epoch won of a volume.
    pub(super) fn newest(&self, volume: VolumeId) -> Option<Epoch> {
        let mut of_volume = self.0.keys().filter(|(of, _)| *of == volume);
        of_volume.next_back().map(|(_, epoch)| *epoch)
    }
}

/// A voter's epoch and configuration never fall, an epoch is granted to one store, and what is
/// closed stays closed.
pub(super) fn check_write(before: &Durable, write: &Write) -> Result<(), String> {
    match write {
        Write::Voter(volume, new) => {
            let Some(old) = before.voters.get(volume) else { return Ok(()) };
            if new.max_epoch < old.max_epoch || new.config.version < old.config.version {
                return Err(format!("{volume:?}: a voter went back from {old:?} to {new:?}"));
            }
            if new.max_epoch == old.max_epoch && new.grantee != old.grantee {
                return Err(format!("{volume:?}: one epoch was granted twice: {old:?}, {new:?}"));
            }
            if new.max_epoch == old.max_epoch && old.released.is_some() && new.released.is_none() {
                return Err(format!("{volume:?}: a released grant came back: {new:?}"));
            }
        }
        Write::Holder(volume, new) => {
            let Some(old) = before.holders.get(volume) else { return Ok(()) };
            if new.epoch < old.epoch
                || new.closed < old.closed
                || new.epoch <= old.closed && new.epoch > new.closed
            {
                return Err(format!("{volume:?}: a closed epoch revived: {old:?}, {new:?}"));
            }
        }
        Write::Support(store, new) => {
            let old = before.supports.get(store).copied().unwrap_or_default();
            if new.support < old.support || new.start < old.start {
                return Err(format!("{store:?}: support went back from {old:?} to {new:?}"));
            }
        }
        Write::Node(new) => {
            if new.longest_lease < before.node.longest_lease {
                return Err("the longest lease promised went back".to_owned());
            }
        }
    }
    Ok(())
}

/// Nothing is said before it is durable.
pub(super) fn check_said(durable: &Durable, to: StoreId, message: &Message) -> Result<(), String> {
    let granted = |volume: &VolumeId, epoch: Epoch| {
        durable.voters.get(volume).is_some_and(|record| {
            record.max_epoch > epoch || record.max_epoch == epoch && record.grantee == Some(to)
        })
    };
    let held = |volume: &VolumeId, epoch: Epoch| {
        durable.holders.get(volume).is_some_and(|record| record.epoch >= epoch)
    };
    let good = match message {
        Message::GrantReply(reply) if reply.verdict == Verdict::Yes => {
            granted(&reply.volume, reply.epoch)
        }
        Message::HeartbeatAck(ack) => {
            let supported = durable.supports.get(&to).map_or(0, |record| record.support);
            supported >= ack.support
                && (!ack.extended || !durable.node.longest_lease.is_zero())
                // What was said under a support number that was withdrawn meanwhile is kept until
                // its promise ends.
                && (supported > ack.support || ack.confirmed.iter().all(|(volume, epoch)| {
                    durable.voters.get(volume).is_some_and(|record| {
                        record.max_epoch > *epoch
                            || record.max_epoch == *epoch
                                && (record.confirmed || record.released.is_some())
                    })
                }))
        }
        Message::Heartbeat(beat) => beat.confirm.iter().all(|(volume, epoch)| held(volume, *epoch)),
        Message::Release(release) => durable
            .holders
            .get(&release.volume)
            .is_some_and(|record| record.closed >= release.epoch),
        Message::ReleaseAck(volume, epoch) => durable.voters.get(volume).is_none_or(|record| {
            record.max_epoch != *epoch || record.grantee != Some(to) || record.released.is_some()
        }),
        Message::SetConfig(set) => durable.holders.get(&set.volume).is_some_and(|record| {
            set.config.joint.is_none() || record.config.version >= set.config.version
        }),
        Message::SetConfigReply(reply) if reply.verdict == Verdict::Yes => {
            durable.voters.get(&reply.volume).is_some_and(|r| r.config.version >= reply.version)
        }
        _ => true,
    };
    if good { Ok(()) } else { Err(format!("said before it was durable, to {to:?}: {message:?}")) }
}

/// At most one node runs a volume: the guards of all nodes, each by its own clock. What a person
/// forced may run beside what is of another generation.
pub(super) fn check_alone<'a>(
    guards: impl Iterator<Item = (StoreId, BootTime, &'a Guarded)>,
) -> Result<(), String> {
    let mut running: BTreeMap<(VolumeId, u32), (StoreId, Epoch)> = BTreeMap::new();
    for (store, now, guarded) in guards {
        for (volume, (epoch, until)) in guarded {
            if now >= *until {
                continue;
            }
            let key = (*volume, epoch.generation);
            if let Some((other, theirs)) = running.insert(key, (store, *epoch)) {
                return Err(format!(
                    "two masters of {volume:?}: {other:?} in epoch {theirs}, {store:?} in epoch {epoch}"
                ));
            }
        }
    }
    Ok(())
}

//! Tells the guard until when each service may run. It lets no service start without a lease and
//! a guard, and never promises the guard more than the lease says.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use flocker_base::{BootTime, Clock, Epoch, ServiceId, VolumeId};
use flocker_gossip::lease::{LeaseConfig, Leases};
use tokio_util::sync::CancellationToken;

use super::parts::{Parts, locked};
use crate::engine::{Hold, Launch, LaunchGate, ProcessGroup};
use crate::guard::{Extension, Guard, Protected};

/// Time between two looks at the leases.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A service is not started under a lease that ends sooner than this: it would be frozen before
/// it is up.
const ROOM_TO_START: Duration = Duration::from_millis(300);

/// The times of a lease that the guard works by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fencing {
    /// How long before its lease's end a service is frozen.
    pub(super) freeze_lead: Duration,
    /// How long it may then stand still, in case the lease is renewed after all.
    pub(super) frozen_limit: Duration,
}

impl Fencing {
    pub(super) const fn of(leases: &LeaseConfig) -> Self {
        Self { freeze_lead: leases.freeze_lead, frozen_limit: leases.frozen_limit }
    }
}

/// Lets services start under a lease alone, and puts them under the guard before their first
/// instruction.
pub(super) struct LeaseGate {
    pub(super) leases: Leases,
    pub(super) guard: Guard,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) freeze_lead: Duration,
}

#[async_trait]
impl LaunchGate for LeaseGate {
    async fn admit(&self, launch: &Launch, group: ProcessGroup) -> Result<(), String> {
        let now = self.clock.boot();
        let until = lease_end(&self.leases, launch.volume, launch.epoch, now)
            .ok_or("this node does not hold its volume any more")?;
        let freeze_at = until.saturating_sub(self.freeze_lead);
        if until != BootTime::NEVER && freeze_at < now + ROOM_TO_START {
            return Err("its lease is about to end".to_owned());
        }
        let freeze_at = if until == BootTime::NEVER { until } else { freeze_at };
        let protected = Protected { group, epoch: launch.epoch, freeze_at, deadline: until };
        self.guard.protect(protected).await.map_err(|e| e.to_string())
    }
}

fn lease_end(leases: &Leases, volume: VolumeId, epoch: Epoch, now: BootTime) -> Option<BootTime> {
    leases.holds(volume, epoch, now)
}

/// Moves the guard's deadlines along with the leases, until told to stop.
pub(super) async fn run(
    parts: Arc<Parts>,
    fencing: Fencing,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let now = parts.now();
        let extensions: Vec<Extension> = locked(&parts.instances)
            .iter()
            .filter_map(|instance| {
                let until = lease_end(&parts.leases, instance.volume, instance.epoch, now)?;
                let never = until == BootTime::NEVER;
                Some(Extension {
                    service: instance.service,
                    epoch: instance.epoch,
                    freeze_at: if never {
                        until
                    } else {
                        until.saturating_sub(fencing.freeze_lead)
                    },
                    deadline: until,
                    keep_frozen: locked(&parts.snapshotting).contains(&instance.service),
                })
            })
            .collect();
        if extensions.is_empty() {
            continue;
        }
        match parts.guard.extend(extensions).await {
            Ok(unmoved) => {
                thaw_adopted(&parts, &unmoved);
                for service in unmoved {
                    tracing::debug!(%service, "the guard has no deadline to move for it");
                }
            }
            // The old deadlines stand, and the guard freezes what it holds in time.
            Err(error) => tracing::warn!(%error, "cannot move the guard's deadlines"),
        }
    }
}

/// A service that was found frozen when this agent started is held for its lease. Its deadline has
/// moved, so the lease stands: it runs on.
fn thaw_adopted(parts: &Parts, unmoved: &[ServiceId]) {
    let frozen: Vec<_> = locked(&parts.instances)
        .iter()
        .filter(|i| i.frozen && !unmoved.contains(&i.service))
        .filter(|i| parts.holds(i.volume) == Some(i.epoch))
        .map(|i| i.service)
        .collect();
    for service in frozen {
        if let Err(error) = parts.engine.thaw(service, Hold::Lease) {
            tracing::warn!(%service, %error, "cannot thaw a service whose lease stands");
        }
    }
}

//! Tells the guard until when each service may run. It lets no service start without a lease and
//! a guard, and never promises the guard more than the lease says.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use flocker_base::{BootTime, Clock, Epoch, ServiceId, VolumeId};
use flocker_gossip::lease::{LeaseConfig, Leases};
use tokio_util::sync::CancellationToken;

use super::control_plane::ControlPlane;
use super::home::Home;
use super::parts::{Parts, locked};
use crate::api::{ApiError, ErrorCode};
use crate::cli::options::UpOptions;
use crate::engine::process::{ProcessConfig, ProcessEngine};
use crate::engine::{Hold, Instance, Launch, LaunchGate, ProcessGroup};
use crate::guard::{ClientConfig, Extension, Guard, GuardError, Protected};
use crate::supervisor::Supervisor;

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
    async fn admit(&self, launch: &Launch, group: ProcessGroup) -> std::result::Result<(), String> {
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

/// Starts the guard, or finds the one that is there, and opens the engine under it.
pub(super) async fn engine_and_guard(
    options: &UpOptions,
    home: &Home,
    plane: &ControlPlane,
    supervisor: &Supervisor,
    clock: &Arc<dyn Clock>,
    fencing: Fencing,
) -> Result<(ProcessEngine, Guard)> {
    let exe = std::env::current_exe().context("cannot tell where this program is")?;
    let guard_dir = home.folder.join("guard");
    let mut config = ClientConfig::new(exe.clone(), guard_dir.clone(), home.db.incarnation());
    config.frozen_limit = fencing.frozen_limit;
    config.watchdog = match &options.watchdog {
        Some(device) => Some(std::path::absolute(device).context("cannot tell where it is")?),
        None => None,
    };
    let (guard, link) = Guard::connect_or_spawn(config).await.map_err(|error| match error {
        GuardError::Refused(why) => ApiError::new(ErrorCode::Usage, why)
            .hint("name a watchdog device that nothing else feeds, or leave --watchdog out")
            .into(),
        other => anyhow::Error::from(other),
    })?;
    let link = Arc::new(Mutex::new(Some(link)));
    supervisor.spawn("guard link", move |stop| {
        let link = locked(&link).take();
        async move {
            match link {
                Some(link) => Ok(link.run(stop).await?),
                // It ended for good: the agent stops for it, see `wait`.
                None => Ok(()),
            }
        }
    });
    let gate = LeaseGate {
        leases: plane.leases.clone(),
        guard: guard.clone(),
        clock: Arc::clone(clock),
        freeze_lead: fencing.freeze_lead,
    };
    let config = ProcessConfig::new(home.folder.join("engine"), exe, guard_dir);
    let engine = ProcessEngine::open(config, Arc::clone(clock), Some(Arc::new(gate)))?;
    Ok((engine, guard))
}

fn lease_end(leases: &Leases, volume: VolumeId, epoch: Epoch, now: BootTime) -> Option<BootTime> {
    leases.holds(volume, epoch, now)
}

/// Moves the guard's deadlines along with the leases, until told to stop.
pub(super) async fn run(
    parts: Arc<Parts>,
    fencing: Fencing,
    stop: CancellationToken,
) -> Result<()> {
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
                    keep_frozen: snapshotting(&parts, instance.service),
                    resume: is_adopted(&parts, instance),
                })
            })
            .collect();
        if extensions.is_empty() {
            continue;
        }
        match parts.guard.extend(extensions).await {
            Ok(unmoved) => {
                disown_adopted(&parts, &unmoved);
                for service in unmoved {
                    tracing::debug!(%service, "the guard has no deadline to move for it");
                }
            }
            // The old deadlines stand, and the guard freezes what it holds in time.
            Err(error) => tracing::warn!(%error, "cannot move the guard's deadlines"),
        }
    }
}

fn snapshotting(parts: &Parts, service: ServiceId) -> bool {
    locked(&parts.snapshotting).contains(&service)
}

fn is_adopted(parts: &Parts, instance: &Instance) -> bool {
    instance.held_for_lease && !snapshotting(parts, instance.service)
}

/// A service that was found frozen when this agent started is held for its lease. Its deadline has
/// moved, so the lease stood, and the guard has let it run on: this agent never does, for by the time
/// that it comes to it the lease may have ended.
fn disown_adopted(parts: &Parts, unmoved: &[ServiceId]) {
    let adopted: Vec<_> = locked(&parts.instances)
        .iter()
        .filter(|i| is_adopted(parts, i) && !unmoved.contains(&i.service))
        .map(|i| i.service)
        .collect();
    for service in adopted {
        if let Err(error) = parts.engine.disown(service, Hold::Lease) {
            tracing::warn!(%service, %error, "cannot let go of a service whose lease stands");
        }
    }
}

//! Runs the steps that [`super::reconcile`] decided. Each is safe to repeat and to abandon: what a
//! crash leaves half done, the next look sees and leads on from.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flocker_base::{Clock, Epoch, ServiceId, StoreId, VolumeId};
use flocker_gossip::lease::{LeaseError, Leases};
use flocker_gossip::map::MapError;
use flocker_gossip::model::{Placement, PlacementState, VolumeSpec};
use flocker_replicate::{BackendError, Destroy, Keep, Quiesce, ReplicateError, Still};

use super::moving::ask;
use super::parts::{Parts, locked};
use super::promoted::PromotedError;
use super::reconcile::Step;
use super::rpc::{Reply, Request};
use crate::engine::{Engine, EngineError, Hold, Launch};

/// How long one look at a starting service takes at most, so that a lost lease is noticed between
/// two of them.
const READY_SLICE: Duration = Duration::from_millis(500);
/// How long a service may take to become ready before it is started anew.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// Time for requests in flight to finish before a service is stopped.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);
/// The grace of a service that was removed and with it its own.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// Time to fetch a fresher snapshot during an election.
const FETCH_DEADLINE: Duration = Duration::from_secs(10);

/// How long a change of voters keeps other steps of its volume waiting.
const VOTE_WITHIN: Duration = Duration::from_secs(2);
/// Time for a master to say which snapshots it has.
const DISCARD_DEADLINE: Duration = Duration::from_secs(5);

/// Why a step failed. The loop tries again.
#[derive(Debug, thiserror::Error)]
pub(super) enum StepError {
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("cannot fetch a fresher snapshot: {0}")]
    Replicate(#[from] ReplicateError),
    #[error(transparent)]
    Promoted(#[from] PromotedError),
    #[error("cannot write to the map: {0}")]
    Map(#[from] MapError),
    #[error(transparent)]
    Lease(#[from] LeaseError),
    #[error("a copy that is not wanted here any more is kept: {0}")]
    Kept(String),
    #[error("the lease on volume {0} ended before the step was done")]
    LeaseEnded(VolumeId),
    #[error("work on the disk was cut short: {0}")]
    Cut(#[from] tokio::task::JoinError),
}

/// Runs one step.
pub(super) async fn run(
    parts: &Arc<Parts>,
    volume: &VolumeSpec,
    step: Step,
) -> Result<(), StepError> {
    tracing::debug!(volume = %volume.name, ?step, "step");
    match step {
        Step::Kill(reason) => {
            tracing::warn!(volume = %volume.name, ?reason, "killing a service without a right to run");
            match parts.instance_of(volume.id) {
                Some(instance) => kill(parts, instance.service).await,
                None => Ok(()),
            }
        }
        Step::Stop => stop(parts, volume.id).await,
        Step::TakeVote => take_vote(parts, volume).await,
        Step::GiveUp { epoch } => give_up(parts, volume, epoch).await,
        Step::Discard { master } => discard(parts, volume, master).await,
        Step::KeepTail { epoch } => keep_tail(parts, volume, epoch).await,
        Step::Promote { epoch } => promote(parts, volume, epoch).await,
        Step::Announce { epoch } => announce(parts, volume, epoch).await,
        Step::Start { epoch } => start(parts, volume.id, epoch).await,
        Step::AwaitReady => await_ready(parts, volume.id).await,
        Step::Rest | Step::Wait(_) | Step::Campaign { .. } | Step::StandDown => Ok(()),
    }
}

/// Ends a service at once.
pub(super) async fn kill(parts: &Parts, service: ServiceId) -> Result<(), StepError> {
    parts.ready.forget(service);
    match parts.engine.kill(service).await {
        Ok(_) | Err(EngineError::NotHere { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Stops a service in good order: requests in flight finish, new ones wait. If the service is
/// wanted otherwise, they go to it once it has started again; if it was removed, they are told.
async fn stop(parts: &Parts, volume: VolumeId) -> Result<(), StepError> {
    let Some(instance) = parts.instance_of(volume) else { return Ok(()) };
    let grace = parts.service_of(volume).map_or(STOP_GRACE, |s| s.stop_grace);
    parts.proxy.hold(instance.service);
    let drained = parts.proxy.drain(instance.service, DRAIN_DEADLINE).await;
    if drained.in_flight_left > 0 {
        tracing::warn!(service = %instance.service, left = drained.in_flight_left, "requests are cut off");
    }
    parts.ready.forget(instance.service);
    let stopped = parts.engine.stop(instance.service, grace).await;
    parts.refresh_routes();
    parts.proxy.release(instance.service);
    match stopped {
        Ok(_) | Err(EngineError::NotHere { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A volume with one voter is stopped by that voter's death: the vote follows the master.
async fn take_vote(parts: &Parts, volume: &VolumeSpec) -> Result<(), StepError> {
    let change = parts.leases.change_voters(volume.id, [parts.me].into());
    // It goes on by itself, and the volume is not to wait for it.
    if let Ok(changed) = tokio::time::timeout(VOTE_WITHIN, change).await {
        let version = changed?.version;
        tracing::info!(volume = %volume.name, ?version, "this node votes for it now");
    }
    Ok(())
}

/// Keeps what is on this copy alone as a branch, and makes it a replica.
async fn keep_tail(parts: &Arc<Parts>, volume: &VolumeSpec, epoch: Epoch) -> Result<(), StepError> {
    let keep = Keep {
        name: format!("tail-{}-{}", parts.name, epoch.to_string().replace('.', "-")),
        epoch,
        now: parts.clock.wall(),
        guid: parts.guid(),
    };
    let (backend, id) = (Arc::clone(&parts.backend), volume.id);
    let kept = tokio::task::spawn_blocking(move || {
        if backend.exists(id)? { backend.demote(id, &keep) } else { Ok(None) }
    })
    .await??;
    if let Some(branch) = kept {
        tracing::warn!(
            volume = %volume.name,
            branch = %branch.name,
            "writes that were not replicated are kept as a branch"
        );
    }
    parts.promoted.clear(volume.id)?;
    parts.replicator.refresh(volume.id).await?;
    Ok(())
}

/// Releases a volume that this node cannot work on, to whoever comes.
async fn give_up(parts: &Parts, volume: &VolumeSpec, epoch: Epoch) -> Result<(), StepError> {
    let text = format!(
        "{} gives {} up: it cannot make its copy writable (see its log), and another may",
        parts.name, volume.name
    );
    tracing::error!(volume = %volume.name, %epoch, "{text}");
    parts.events.add(parts.clock.wall(), "volume.given-up", volume.name.as_str(), text);
    parts.leases.release(volume.id, None).await?;
    Ok(())
}

/// Gives the room of a copy back that is no longer wanted here, if the master has all of it.
async fn discard(
    parts: &Arc<Parts>,
    volume: &VolumeSpec,
    master: StoreId,
) -> Result<(), StepError> {
    let request = Request::Snapshots { volume: volume.id };
    let held = match ask(parts, master, &request, DISCARD_DEADLINE).await {
        Ok(Reply::Snapshots(guids)) => guids,
        Ok(other) => return Err(StepError::Kept(format!("{other:?}"))),
        Err(error) => return Err(StepError::Kept(error.to_string())),
    };
    let (backend, id) = (Arc::clone(&parts.backend), volume.id);
    let mode = Destroy::OnlyIfHeldElsewhere(held);
    let done = tokio::task::spawn_blocking(move || backend.destroy(id, &mode)).await?;
    match done {
        Ok(()) => {
            let text = format!(
                "the copy of {} on {} is discarded: {} and others hold all of it",
                volume.name,
                parts.name,
                parts.name_of(master)
            );
            tracing::info!(volume = %volume.name, "{text}");
            parts.events.add(parts.clock.wall(), "copy.discarded", volume.name.as_str(), text);
        }
        Err(error) => return Err(StepError::Kept(error.to_string())),
    }
    parts.replicator.refresh(volume.id).await?;
    Ok(())
}

async fn promote(parts: &Arc<Parts>, spec: &VolumeSpec, epoch: Epoch) -> Result<(), StepError> {
    let volume = spec.id;
    still_held(parts, volume, epoch)?;
    let former = parts.promoted.epoch(volume);
    // The note comes first: a crash in between leaves a note on a replica, which costs nothing;
    // a writable copy without a note would lose its tail.
    parts.promoted.note(volume, epoch)?;
    let backend = Arc::clone(&parts.backend);
    let promoted = tokio::task::spawn_blocking(move || {
        if !backend.exists(volume)? {
            backend.create(volume)?;
        }
        backend.promote(volume)
    })
    .await?;
    match promoted {
        Ok(_) => still_held(parts, volume, epoch),
        Err(BackendError::Superseded { .. }) => {
            // The line went on elsewhere while this copy was writable: its tail comes first.
            keep_tail(parts, spec, former.unwrap_or(epoch)).await
        }
        Err(error) => Err(error.into()),
    }
}

async fn announce(parts: &Arc<Parts>, volume: &VolumeSpec, epoch: Epoch) -> Result<(), StepError> {
    place(parts, volume, epoch, |replicas| replicas).await?;
    tracing::info!(volume = %volume.name, %epoch, "announced as master");
    Ok(())
}

/// Tells the mesh where the volume is, with the copies that are made of the former ones.
pub(super) async fn place(
    parts: &Arc<Parts>,
    volume: &VolumeSpec,
    epoch: Epoch,
    change: impl FnOnce(Vec<StoreId>) -> Vec<StoreId>,
) -> Result<(), StepError> {
    still_held(parts, volume.id, epoch)?;
    let former = parts.placement(volume.id);
    let mut replicas = change(
        former.as_ref().map_or_else(|| volume.birth.replicas.clone(), |p| p.replicas.clone()),
    );
    replicas.retain(|s| *s != parts.me);
    replicas.insert(0, parts.me);
    let sequence = match &former {
        Some(p) if p.epoch == epoch => p.sequence + 1,
        _ => 1,
    };
    let voters = parts
        .lease(volume.id)
        .map(|l| l.config)
        .or_else(|| former.map(|p| p.voters))
        .ok_or(StepError::LeaseEnded(volume.id))?;
    let head = parts.replicator.head(volume.id).map(|(head, _)| head).unwrap_or_default();
    let placement = Placement {
        volume: volume.id,
        epoch,
        sequence,
        holder: parts.me,
        voters,
        replicas,
        head,
        state: PlacementState::Active,
    };
    let map = parts.map.clone();
    // It waits for the disk.
    tokio::task::spawn_blocking(move || map.place(placement)).await??;
    Ok(())
}

async fn start(parts: &Arc<Parts>, volume: VolumeId, epoch: Epoch) -> Result<(), StepError> {
    let Some(service) = parts.service_of(volume) else { return Ok(()) };
    let backend = Arc::clone(&parts.backend);
    let live = tokio::task::spawn_blocking(move || backend.live(volume)).await??;
    let Some(folder) = live else { return Err(BackendError::NotWritable(volume).into()) };
    still_held(parts, volume, epoch)?;
    parts.ready.launched(service.clone());
    let launch = Launch {
        service: service.id,
        name: service.name,
        volume,
        epoch,
        command: service.command,
        environment: service.environment,
        folder,
        host: parts.host,
        health_path: service.health_path,
        stop_grace: service.stop_grace,
    };
    let instance = parts.engine.start(&launch).await?;
    tracing::info!(service = %launch.name, pid = instance.pid, address = %instance.address, %epoch, "started");
    Ok(())
}

async fn await_ready(parts: &Arc<Parts>, volume: VolumeId) -> Result<(), StepError> {
    let Some(instance) = parts.instance_of(volume) else { return Ok(()) };
    match parts.engine.ready(instance.service, READY_SLICE).await {
        Ok(()) => {
            parts.ready.note(instance.service, instance.epoch);
            Ok(())
        }
        Err(EngineError::NotReady { .. }) if parts.now() - instance.started < READY_DEADLINE => {
            Ok(())
        }
        Err(error @ EngineError::NotReady { .. }) => {
            kill(parts, instance.service).await?;
            Err(error.into())
        }
        Err(error) => Err(error.into()),
    }
}

/// Fetches a fresher snapshot from the peer that has it, so that the campaign can go on.
pub(super) async fn fetch(parts: &Parts, volume: VolumeId, from: StoreId) -> Result<(), StepError> {
    let fetched = parts.replicator.fetch(volume, from, FETCH_DEADLINE).await;
    parts.board().fetched(volume);
    let head = fetched?;
    tracing::info!(%volume, %head, from = %from.short(), "fetched a fresher snapshot");
    Ok(())
}

fn still_held(parts: &Parts, volume: VolumeId, epoch: Epoch) -> Result<(), StepError> {
    if parts.holds(volume) == Some(epoch) { Ok(()) } else { Err(StepError::LeaseEnded(volume)) }
}

/// How to hold a volume's service still for the end of a snapshot.
pub(super) fn quiesce(
    parts: &Parts,
    volume: VolumeId,
    service: Option<ServiceId>,
) -> Arc<dyn Quiesce> {
    match service {
        Some(service) => Arc::new(Freezer {
            engine: Arc::clone(&parts.engine),
            snapshotting: Arc::clone(&parts.snapshotting),
            leases: parts.leases.clone(),
            clock: Arc::clone(&parts.clock),
            volume,
            service,
        }),
        None => Arc::new(Still),
    }
}

struct Freezer {
    engine: Arc<dyn Engine>,
    snapshotting: Arc<Mutex<HashSet<ServiceId>>>,
    leases: Leases,
    clock: Arc<dyn Clock>,
    volume: VolumeId,
    service: ServiceId,
}

impl Freezer {
    /// Lets the service run on if its lease stands. If not, it stays as it is: the guard, who has it
    /// frozen for that, lets it run on if the lease is renewed.
    fn let_go(&self) -> Result<(), EngineError> {
        let held = self.leases.view(self.volume).and_then(|view| view.held);
        let stands = held.is_some_and(|held| {
            self.leases.holds(self.volume, held.epoch, self.clock.boot()).is_some()
        });
        if stands {
            self.engine.thaw(self.service, Hold::Snapshot)
        } else {
            self.engine.disown(self.service, Hold::Snapshot)
        }
    }
}

impl std::fmt::Debug for Freezer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Freezer").field(&self.service).finish()
    }
}

impl Quiesce for Freezer {
    fn freeze(&self) -> bool {
        // Told first: the guard must not thaw what is frozen for a snapshot.
        locked(&self.snapshotting).insert(self.service);
        match self.engine.freeze(self.service, Hold::Snapshot) {
            // A service that does not run does not write.
            Ok(()) | Err(EngineError::NotHere { .. }) => true,
            Err(error) => {
                tracing::warn!(%error, "the snapshot is taken without freezing the service");
                self.thaw();
                false
            }
        }
    }

    fn thaw(&self) {
        locked(&self.snapshotting).remove(&self.service);
        match self.let_go() {
            Ok(()) | Err(EngineError::NotHere { .. }) => {}
            Err(error) => tracing::error!(%error, "cannot thaw a service after a snapshot"),
        }
    }
}

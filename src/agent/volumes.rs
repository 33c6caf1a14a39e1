//! The reconcile loop: looks at each volume, asks [`super::reconcile`] for the next step, has it
//! run, looks again. One step a volume at a time; steps of different volumes run side by side.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use flocker_base::{BootTime, Epoch, StoreId, VolumeId};
use flocker_gossip::lease::{LeaseEvent, LeaseView, VolumeFacts};
use flocker_gossip::model::{Failover, Placement, VolumeSpec, VoterConfig};
use flocker_replicate::Duty;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::executor::{self, StepError};
use super::mender::{self, Mender};
use super::parts::{Parts, locked};
use super::reconcile::{
    Lease, LocalCopy, Released, RunningInstance, Step, Tries, VolumeWorld, next_step, takeover_rank,
};
use super::story;

/// The longest time between two looks when nothing wakes the loop.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// The first wait after a failed step; it doubles with each further failure.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// The longest wait after a failed step.
const LONGEST_RETRY: Duration = Duration::from_secs(10);

/// The wait after a copy that is not wanted here could not be discarded. It takes little but room, and
/// what keeps it changes seldom.
const KEPT_RETRY: Duration = Duration::from_secs(60);

/// How long this node leaves to others what it could not work on.
const GIVEN_UP_FOR: Duration = Duration::from_secs(60);

/// The loop's own state.
struct Loop {
    parts: Arc<Parts>,
    steps: JoinSet<(VolumeId, Option<Epoch>, Result<(), StepError>)>,
    retries: HashMap<VolumeId, Retry>,
    mender: Mender,
    /// How often, and under which epoch, a copy could not be made writable.
    unwritable: HashMap<VolumeId, (Epoch, u32)>,
    /// When a copy that could not be discarded is looked at again.
    kept: HashMap<VolumeId, BootTime>,
    /// Until when this node asks for nothing that it gave up.
    given_up: HashMap<VolumeId, BootTime>,
    /// Whether the disk has room.
    has_room: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Retry {
    failures: u32,
    at: BootTime,
}

/// Runs the loop until told to stop. Steps under way are then abandoned: each is safe to repeat.
pub(super) async fn run(
    parts: Arc<Parts>,
    events: &mut mpsc::Receiver<LeaseEvent>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut state = Loop {
        parts,
        steps: JoinSet::new(),
        retries: HashMap::new(),
        mender: Mender::default(),
        unwritable: HashMap::new(),
        kept: HashMap::new(),
        given_up: HashMap::new(),
        has_room: true,
    };
    let wake = Arc::clone(&state.parts.wake);
    let mut map = state.parts.map.watch();
    let mut exits = state.parts.engine.exits();
    loop {
        state.look().await;
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = wake.notified() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
            changed = map.changed() => changed?,
            Some(event) = events.recv() => state.hear(&event),
            Some(done) = state.steps.join_next() => state.finished(done?),
            exit = exits.recv() => {
                if let Ok(exit) = exit {
                    state.parts.ready.forget(exit.service);
                    tracing::info!(service = %exit.service, how = %exit.how, asked = exit.asked, "a service ended");
                }
            }
        }
        while let Ok(event) = events.try_recv() {
            state.hear(&event);
        }
        while let Some(done) = state.steps.try_join_next() {
            state.finished(done?);
        }
    }
}

impl Loop {
    fn hear(&mut self, event: &LeaseEvent) {
        if !matches!(event, LeaseEvent::Renewed { .. }) {
            tracing::info!(?event, "lease");
        }
        story::tell(&self.parts, event);
        self.parts.board().hear(event);
    }

    /// `leads` is the epoch under which the step was to make the copy writable, if it was.
    fn finished(
        &mut self,
        (volume, leads, result): (VolumeId, Option<Epoch>, Result<(), StepError>),
    ) {
        locked(&self.parts.busy).remove(&volume);
        if let (Some(epoch), Err(_)) = (leads, &result) {
            let (of, failures) = self.unwritable.entry(volume).or_insert((epoch, 0));
            *failures = if *of == epoch { failures.saturating_add(1) } else { 1 };
            *of = epoch;
        }
        match result {
            Ok(()) => {
                self.retries.remove(&volume);
            }
            Err(StepError::Kept(why)) => {
                tracing::info!(%volume, why, again_in = ?KEPT_RETRY, "an unwanted copy is kept");
                self.kept.insert(volume, self.parts.now() + KEPT_RETRY);
            }
            Err(error) => {
                let retry = self.retries.entry(volume).or_default();
                let wait =
                    FIRST_RETRY.saturating_mul(1 << retry.failures.min(10)).min(LONGEST_RETRY);
                retry.failures = retry.failures.saturating_add(1);
                retry.at = self.parts.now() + wait;
                tracing::warn!(%volume, %error, again_in = ?wait, "a step failed");
            }
        }
    }

    /// Looks at every volume once and starts what is to be done.
    async fn look(&mut self) {
        self.parts.refresh_instances().await;
        if self.parts.removed.is_set() {
            return self.wind_down();
        }
        self.mender.look(&self.parts);
        self.has_room = self.parts.map.has_room();
        let view = self.parts.map_view();
        let mut duties = Vec::new();
        let mut seen = BTreeSet::new();
        for listed in view.volumes() {
            let spec = &listed.spec;
            seen.insert(spec.id);
            self.tell_leases(spec);
            self.learn_master(spec.id);
            duties.extend(self.duty(spec));
            if !locked(&self.parts.busy).contains(&spec.id) {
                self.start_step(spec);
            }
        }
        self.kill_strays(&seen);
        self.parts.replicator.set_duties(duties);
        self.parts.refresh_routes();
        self.parts.passed.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Tells the lease driver what the map and the disk know. All of it is idempotent.
    fn tell_leases(&self, spec: &VolumeSpec) {
        let parts = &self.parts;
        let placement = parts.placement(spec.id);
        let config = placement
            .as_ref()
            .map_or_else(|| VoterConfig::birth(spec.birth.voters.clone()), |p| p.voters.clone());
        let lag_limit = spec.policy.lag_limit;
        parts.leases.observe(VolumeFacts { volume: spec.id, config, lag_limit });
        if let Some(placement) = &placement {
            parts.leases.raise_seen(spec.id, placement.epoch);
        }
        let holds_copy = copies(spec, placement.as_ref()).contains(&parts.me);
        match parts.replicator.head(spec.id) {
            Some((head, taken_at)) => parts.leases.set_local_head(spec.id, head, taken_at),
            // An empty volume that was just born is a copy too: the only one there is.
            None if holds_copy && placement.is_none() => parts.leases.set_local_head(
                spec.id,
                flocker_base::Head::NONE,
                flocker_base::WallTime::default(),
            ),
            None => {}
        }
        let newest = parts.replicator.progress().borrow().get(&spec.id).and_then(|p| {
            p.replicas.values().filter_map(|r| Some((r.acked?, r.acked_taken_at?))).max()
        });
        if let (Some((head, taken_at)), Some(_)) = (newest, parts.holds(spec.id)) {
            parts.leases.set_replicated(spec.id, head, taken_at);
        }
    }

    fn learn_master(&self, volume: VolumeId) {
        let announced = self.parts.placement(volume).map(|p| (p.epoch, p.holder));
        // Confirmed at this voter: a quorum granted it that epoch, so every older one is past.
        let granted = self
            .parts
            .lease(volume)
            .and_then(|l| l.grantee)
            .filter(|(store, _, confirmed)| *confirmed && self.parts.lives(*store))
            .map(|(store, epoch, _)| (epoch, store));
        for (epoch, store) in announced.into_iter().chain(granted) {
            if self.parts.masters.learn(volume, epoch, store) {
                self.parts.board().settled(volume);
            }
        }
    }

    /// What this node owes the volume's replicas, if it is its working master.
    fn duty(&self, spec: &VolumeSpec) -> Option<Duty> {
        let epoch = self.parts.holds(spec.id)?;
        if self.parts.promoted.epoch(spec.id) != Some(epoch) {
            return None;
        }
        let placement = self.parts.placement(spec.id);
        let targets = copies(spec, placement.as_ref())
            .iter()
            .copied()
            .filter(|s| *s != self.parts.me)
            .collect();
        let service = self.parts.service_of(spec.id).map(|s| s.id);
        Some(Duty {
            volume: spec.id,
            epoch,
            interval: spec.policy.snapshot_interval,
            targets,
            quiesce: executor::quiesce(&self.parts, spec.id, service),
        })
    }

    fn start_step(&mut self, spec: &VolumeSpec) {
        let world_parts = Arc::clone(&self.parts);
        let placement = world_parts.placement(spec.id);
        let service = world_parts.service_of(spec.id);
        let tries = self.tries(spec.id);
        let lease = world_parts.lease(spec.id);
        let world = observe(
            &world_parts,
            spec,
            placement.as_ref(),
            service.as_ref(),
            lease.as_ref(),
            tries,
        );
        let step = next_step(&world);
        let fetch = world_parts.board().of(spec.id).behind;
        match step {
            Step::Wait(_) => {}
            Step::Rest => {
                // A campaign that lacks a fresher copy goes on once it is fetched.
                if let (Lease::Campaigning, Some((_, from))) = (world.lease, fetch) {
                    let id = spec.id;
                    self.spawn(spec.id, move |parts| async move {
                        executor::fetch(&parts, id, from).await
                    });
                } else if world_parts.now() >= tries.retry_at && !world_parts.hands.grips(spec.id) {
                    self.mend(spec, placement.as_ref());
                }
            }
            Step::Campaign { rank, reason } => {
                tracing::info!(volume = %spec.id, rank, ?reason, "campaigning");
                story::campaign(&world_parts, spec, rank, reason);
                world_parts.leases.campaign(spec.id, rank, format!("{reason:?}"));
            }
            Step::StandDown => world_parts.leases.stand_down(spec.id),
            step => {
                if matches!(step, Step::GiveUp { .. }) {
                    self.given_up.insert(spec.id, world_parts.now() + GIVEN_UP_FOR);
                }
                let leads = match (step, world.lease) {
                    (Step::Promote { .. } | Step::KeepTail { .. }, Lease::Held { epoch }) => {
                        Some(epoch)
                    }
                    _ => None,
                };
                let spec = spec.clone();
                self.spawn_for(spec.id, leads, move |parts| async move {
                    executor::run(&parts, &spec, step).await
                });
            }
        }
    }

    fn tries(&self, volume: VolumeId) -> Tries {
        let retry = self.retries.get(&volume).copied().unwrap_or_default();
        let given_up = self.given_up.get(&volume).is_some_and(|until| self.parts.now() < *until);
        let held = self.parts.holds(volume);
        let failed = self.unwritable.get(&volume).filter(|(epoch, _)| Some(*epoch) == held);
        Tries {
            retry_at: retry.at,
            discard_at: self.kept.get(&volume).copied().unwrap_or_default(),
            failures: failed.map_or(0, |(_, failures)| *failures),
            unable: given_up || !self.has_room,
        }
    }

    /// Brings where the volume is nearer to where it is wanted, if this node leads it.
    fn mend(&mut self, spec: &VolumeSpec, placement: Option<&Placement>) {
        let Some((epoch, mend)) = self.mender.due(&self.parts, spec, placement) else { return };
        let spec = spec.clone();
        self.spawn(
            spec.id,
            move |parts| async move { mender::mend(&parts, &spec, epoch, mend).await },
        );
    }

    fn spawn<F, Fut>(&mut self, volume: VolumeId, work: F)
    where
        F: FnOnce(Arc<Parts>) -> Fut,
        Fut: Future<Output = Result<(), StepError>> + Send + 'static,
    {
        self.spawn_for(volume, None, work);
    }

    fn spawn_for<F, Fut>(&mut self, volume: VolumeId, leads: Option<Epoch>, work: F)
    where
        F: FnOnce(Arc<Parts>) -> Fut,
        Fut: Future<Output = Result<(), StepError>> + Send + 'static,
    {
        locked(&self.parts.busy).insert(volume);
        let work = work(Arc::clone(&self.parts));
        self.steps.spawn(async move { (volume, leads, work.await) });
    }

    /// This node was removed from the cluster: it asks for nothing, sends nothing, and nothing runs
    /// here but what is being stopped in good order. What is on the disk stays as it is.
    fn wind_down(&mut self) {
        let view = self.parts.map_view();
        for volume in view.volumes() {
            self.parts.leases.stand_down(volume.spec.id);
        }
        let gripped: BTreeSet<VolumeId> = locked(&self.parts.instances)
            .iter()
            .map(|i| i.volume)
            .filter(|volume| self.parts.hands.grips(*volume))
            .collect();
        self.kill_strays(&gripped);
        self.parts.replicator.set_duties(Vec::new());
        self.parts.refresh_routes();
        self.parts.passed.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// A service whose volume the map no longer has must not run.
    fn kill_strays(&mut self, known: &BTreeSet<VolumeId>) {
        let busy = locked(&self.parts.busy).clone();
        let strays: Vec<_> = locked(&self.parts.instances)
            .iter()
            .filter(|i| !known.contains(&i.volume) && !busy.contains(&i.volume))
            .map(|i| (i.volume, i.service))
            .collect();
        for (volume, service) in strays {
            self.spawn(volume, move |parts| async move { executor::kill(&parts, service).await });
        }
    }
}

fn copies<'a>(spec: &'a VolumeSpec, placement: Option<&'a Placement>) -> &'a [StoreId] {
    placement.map_or(&spec.birth.replicas, |p| &p.replicas)
}

/// Gathers what the decision rests on.
fn observe<'a>(
    parts: &Parts,
    spec: &'a VolumeSpec,
    placement: Option<&'a Placement>,
    service: Option<&'a flocker_gossip::model::ServiceSpec>,
    lease: Option<&'a LeaseView>,
    tries: Tries,
) -> VolumeWorld<'a> {
    let signals = parts.board().of(spec.id);
    let last_master = placement.map_or(spec.birth.master, |p| p.holder);
    let replicas = copies(spec, placement);
    let home = parts.region_of(last_master);
    let released = match lease {
        _ if signals.invited => Released::ToMe,
        _ if signals.reopened => Released::ToAnyone,
        Some(l) if l.released => match l.successor {
            Some(store) if store == parts.me => Released::ToMe,
            Some(_) => Released::ToAnother,
            None => Released::ToAnyone,
        },
        _ => Released::No,
    };
    VolumeWorld {
        me: parts.me,
        now: parts.now(),
        spec,
        placement,
        service,
        lease: match parts.holds(spec.id) {
            Some(epoch) => Lease::Held { epoch },
            None if lease.is_some_and(|l| l.campaigning) => Lease::Campaigning,
            None => Lease::None,
        },
        others_epoch: parts.masters.another(spec.id, parts.me),
        in_masters_region: home.as_ref() == Some(&parts.region),
        // A voter goes by its own promise, so that the rank, and not who suspected first, says who
        // asks first. A replica that never voted has membership's word alone.
        master_silent: match lease {
            Some(l) if l.grantee.is_some() => l.silent,
            _ => !parts.lives(last_master),
        },
        released,
        voters: lease.map(|l| &l.config),
        lone_voter_elsewhere: lease.is_some_and(|l| {
            l.config.joint.is_none()
                && l.config.voters.len() == 1
                && !l.config.voters.contains(&parts.me)
        }),
        copy: LocalCopy {
            has_snapshot: parts.replicator.head(spec.id).is_some(),
            promoted: parts.promoted.epoch(spec.id),
        },
        instance: parts.instance_of(spec.id).map(|i| RunningInstance {
            epoch: i.epoch,
            ready: parts.ready.has(i.service, i.epoch),
            current: service.is_none_or(|s| parts.ready.is_current(s)),
        }),
        in_hand: parts.hands.grips(spec.id),
        tries,
        others_can: replicas.iter().any(|s| {
            let near = || parts.region_of(*s).as_ref() == Some(&parts.region);
            let would = match spec.policy.failover {
                Failover::Auto => true,
                Failover::InRegion => near(),
                Failover::Manual => false,
            };
            would && *s != parts.me && parts.lives(*s)
        }),
        rank: takeover_rank(
            parts.me,
            last_master,
            replicas,
            |s| home.is_some() && parts.region_of(s) == home,
            |s| parts.lives(s),
        ),
    }
}

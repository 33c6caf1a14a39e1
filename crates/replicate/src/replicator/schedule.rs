//! When to take a snapshot, whom to send it to, when to try again: the pure core.
//!
//! It reads no clock, starts no task and holds no lock: events come in with the time, commands go
//! out. One snapshot of a volume and one stream to each of its replicas run at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flocker_base::{BootTime, Epoch, StoreId, VolumeId};

use crate::model::{Guid, ReplicaProgress, Retention, SnapshotInfo, VolumeProgress};

/// When things are tried again and pruned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduleConfig {
    /// Wait after the first failure; it doubles with each further one.
    pub retry_first: Duration,
    /// Longest wait between attempts.
    pub retry_most: Duration,
    /// The newest snapshots that pruning leaves.
    pub keep_newest: usize,
    /// Snapshots taken between two prunings.
    pub prune_every: u32,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self {
            retry_first: Duration::from_millis(500),
            retry_most: Duration::from_secs(30),
            keep_newest: Retention::NEWEST,
            prune_every: 16,
        }
    }
}

/// A duty without what only the shell needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DutySpec {
    pub(crate) volume: VolumeId,
    pub(crate) epoch: Epoch,
    pub(crate) interval: Duration,
    pub(crate) targets: BTreeSet<StoreId>,
}

/// What happened.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// The duties are these now.
    Duties(Vec<DutySpec>),
    /// An attempt at a snapshot ended; the newest one is this.
    Snapshotted(VolumeId, Result<Option<SnapshotInfo>, String>),
    /// A stream to a replica ended; it holds this snapshot durably.
    Sent(VolumeId, StoreId, Result<SnapshotInfo, String>),
    /// Time passed.
    Tick,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Snapshot(VolumeId),
    Send(VolumeId, StoreId),
    Prune(VolumeId, Retention),
}

/// The core.
#[derive(Debug)]
pub(crate) struct Schedule {
    config: ScheduleConfig,
    masters: BTreeMap<VolumeId, Master>,
}

#[derive(Debug)]
struct Master {
    epoch: Epoch,
    interval: Duration,
    newest: Option<SnapshotInfo>,
    due: BootTime,
    /// Since when a snapshot is being taken.
    taking: Option<BootTime>,
    failures: u32,
    error: Option<String>,
    since_pruned: u32,
    targets: BTreeMap<StoreId, Target>,
}

#[derive(Debug, Default)]
struct Target {
    progress: ReplicaProgress,
    /// The snapshot that was newest when the stream that runs now was begun.
    sending: Option<Guid>,
    failures: u32,
    retry_at: Option<BootTime>,
}

impl Schedule {
    pub(crate) fn new(config: ScheduleConfig) -> Self {
        Self { config, masters: BTreeMap::new() }
    }

    /// Takes the event in and answers what to do. `jitter` is any random number.
    pub(crate) fn step(&mut self, now: BootTime, jitter: u64, event: Event) -> Vec<Command> {
        match event {
            Event::Duties(duties) => self.set_duties(now, duties),
            Event::Snapshotted(volume, result) => self.snapshotted(now, jitter, volume, result),
            Event::Sent(volume, to, result) => self.sent(now, jitter, volume, to, result),
            Event::Tick => {}
        }
        self.commands(now)
    }

    /// When to step again at the latest.
    pub(crate) fn next_deadline(&self) -> BootTime {
        let of_master = |master: &Master| {
            let due = if master.taking.is_none() { master.due } else { BootTime::NEVER };
            master.targets.values().filter_map(|target| target.retry_at).fold(due, BootTime::min)
        };
        self.masters.values().map(of_master).min().unwrap_or(BootTime::NEVER)
    }

    /// How far everything has come.
    pub(crate) fn progress(&self) -> BTreeMap<VolumeId, VolumeProgress> {
        let of_master = |master: &Master| VolumeProgress {
            newest: master.newest.clone(),
            snapshot_error: master.error.clone(),
            replicas: master
                .targets
                .iter()
                .map(|(store, target)| (*store, target.progress.clone()))
                .collect(),
        };
        self.masters.iter().map(|(volume, master)| (*volume, of_master(master))).collect()
    }

    fn set_duties(&mut self, now: BootTime, duties: Vec<DutySpec>) {
        let volumes: BTreeSet<VolumeId> = duties.iter().map(|duty| duty.volume).collect();
        self.masters.retain(|volume, _| volumes.contains(volume));
        for duty in duties {
            let fresh = || Master {
                epoch: duty.epoch,
                interval: duty.interval,
                newest: None,
                due: now,
                taking: None,
                failures: 0,
                error: None,
                since_pruned: 0,
                targets: BTreeMap::new(),
            };
            let master = self.masters.entry(duty.volume).or_insert_with(fresh);
            if master.epoch != duty.epoch {
                let taking = master.taking;
                *master = Master { taking, ..fresh() };
            }
            if duty.interval < master.interval {
                master.due = master.due.min(now + duty.interval);
            }
            master.interval = duty.interval;
            master.targets.retain(|store, _| duty.targets.contains(store));
            for store in duty.targets {
                master.targets.entry(store).or_default();
            }
        }
    }

    fn snapshotted(
        &mut self,
        now: BootTime,
        jitter: u64,
        volume: VolumeId,
        result: Result<Option<SnapshotInfo>, String>,
    ) {
        let Some(master) = self.masters.get_mut(&volume) else { return };
        let began = master.taking.take().unwrap_or(now);
        match result {
            Ok(newest) => {
                master.failures = 0;
                master.error = None;
                // A slow disk leaves the service some time between two snapshots.
                master.due = (began + master.interval).max(now + master.interval / 4);
                if guid_of(&newest) != guid_of(&master.newest) {
                    master.since_pruned += 1;
                }
                master.newest = newest;
            }
            Err(error) => {
                master.failures += 1;
                master.error = Some(error);
                let wait = self.config.back_off(master.failures, jitter);
                master.due = now + wait.max(master.interval);
            }
        }
    }

    fn sent(
        &mut self,
        now: BootTime,
        jitter: u64,
        volume: VolumeId,
        to: StoreId,
        result: Result<SnapshotInfo, String>,
    ) {
        let master = self.masters.get_mut(&volume);
        let Some(target) = master.and_then(|master| master.targets.get_mut(&to)) else { return };
        target.sending = None;
        match result {
            Ok(info) => {
                target.failures = 0;
                target.retry_at = None;
                target.progress = ReplicaProgress {
                    acked: Some(info.head),
                    acked_guid: Some(info.guid),
                    acked_taken_at: Some(info.taken_at),
                    acked_at: now,
                    error: None,
                };
            }
            Err(error) => {
                target.failures += 1;
                target.retry_at = Some(now + self.config.back_off(target.failures, jitter));
                target.progress.error = Some(error);
            }
        }
    }

    fn commands(&mut self, now: BootTime) -> Vec<Command> {
        let mut commands = Vec::new();
        for (volume, master) in &mut self.masters {
            if master.taking.is_none() && master.due <= now {
                master.taking = Some(now);
                commands.push(Command::Snapshot(*volume));
            }
            let Some(newest) = guid_of(&master.newest) else { continue };
            for (store, target) in &mut master.targets {
                let waits = target.retry_at.is_some_and(|at| at > now);
                let behind = target.progress.acked_guid != Some(newest);
                if behind && !waits && target.sending.is_none() {
                    target.sending = Some(newest);
                    target.retry_at = None;
                    commands.push(Command::Send(*volume, *store));
                }
            }
            if master.since_pruned >= self.config.prune_every {
                master.since_pruned = 0;
                commands.push(Command::Prune(*volume, master.retention(self.config.keep_newest)));
            }
        }
        commands
    }
}

impl Master {
    fn retention(&self, newest: usize) -> Retention {
        let pins = |target: &Target| -> Vec<Guid> {
            target.progress.acked_guid.into_iter().chain(target.sending).collect()
        };
        // A replica that never answered yet leaves what is recorded for it standing: an empty
        // list, even if something is being sent to it now.
        let pinned = self
            .targets
            .iter()
            .map(|(store, target)| match target.progress.acked_guid {
                Some(_) => (*store, pins(target)),
                None => (*store, Vec::new()),
            })
            .collect();
        Retention { newest, pinned }
    }
}

impl ScheduleConfig {
    /// The wait before the next attempt, up to a fifth longer or shorter by chance.
    fn back_off(&self, failures: u32, jitter: u64) -> Duration {
        let doubled = self.retry_first.saturating_mul(1 << failures.saturating_sub(1).min(16));
        let wait = doubled.min(self.retry_most);
        let share = u32::try_from(jitter % 401).unwrap_or(0);
        wait * (800 + share) / 1000
    }
}

fn guid_of(info: &Option<SnapshotInfo>) -> Option<Guid> {
    info.as_ref().map(|info| info.guid)
}

#[cfg(test)]
mod tests;

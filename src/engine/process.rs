//! The engine that runs services as plain processes, each in a session of its own.
//!
//! A service outlives the agent: its next start finds the records and adopts what is proven to
//! be its own. It must never signal anything else, and never run a command before the record is
//! durable and the gate has admitted it.

use std::collections::BTreeMap;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use flocker_base::{Clock, ServiceId};
use rustix::process::Signal;
use tokio::sync::{broadcast, oneshot};
use tokio::task::JoinSet;

use super::cgroup::{Cgroup, Cgroups};
use super::group::Sent;
use super::record::{Record, boot_id};
use super::watch::Running;
use super::{Engine, EngineError, Exit, Hold, Instance, Launch, LaunchGate, mark, readiness};

mod start;

/// Exits told and not yet taken, at most.
const EXITS_QUEUED: usize = 256;
/// A killed group is gone after this, or hangs in the kernel.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// How the process engine is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessConfig {
    /// Records and logs are kept below it.
    pub state_dir: PathBuf,
    /// The `flocker` binary, which holds commands back until they may run.
    pub exe: PathBuf,
    /// The guard's runtime folder, absolute: the mark by which a guard that lost its table knows
    /// what to kill.
    pub guard_dir: PathBuf,
    /// Where ports are taken from.
    pub ports: RangeInclusive<u16>,
    /// A log is rotated when it is larger.
    pub log_limit_bytes: u64,
    /// A freeze that takes longer has failed.
    pub freeze_limit: Duration,
    /// A command that is not running after this has failed to start.
    pub start_limit: Duration,
    /// Whether services are put into control groups where that can be done.
    pub enclose: bool,
}

impl ProcessConfig {
    /// The defaults for this node.
    #[must_use]
    pub const fn new(state_dir: PathBuf, exe: PathBuf, guard_dir: PathBuf) -> Self {
        Self {
            state_dir,
            exe,
            guard_dir,
            ports: 20_000..=29_999,
            log_limit_bytes: 8 << 20,
            freeze_limit: Duration::from_millis(100),
            start_limit: Duration::from_secs(10),
            enclose: true,
        }
    }

    /// Checks the values against one another.
    ///
    /// # Errors
    /// What does not fit, in words.
    pub fn validate(&self) -> Result<(), String> {
        if self.ports.is_empty() || *self.ports.start() == 0 {
            return Err("the port range is empty: give one like 20000..=29999".to_owned());
        }
        for path in [&self.exe, &self.guard_dir] {
            if !path.is_absolute() {
                return Err(format!("{} must be an absolute path", path.display()));
            }
        }
        if self.freeze_limit.is_zero() || self.start_limit.is_zero() {
            return Err("freeze_limit and start_limit must be longer than zero".to_owned());
        }
        Ok(())
    }

    fn records(&self) -> PathBuf {
        self.state_dir.join("instances")
    }

    pub(super) fn log(&self, service: ServiceId) -> PathBuf {
        self.state_dir.join("logs").join(format!("{service}.log"))
    }
}

/// See the module.
#[derive(Clone)]
pub struct ProcessEngine {
    inner: Arc<Inner>,
    /// The watchers' owner. They hold `inner`, never this.
    tasks: Arc<Mutex<JoinSet<()>>>,
}

/// What the watchers share with the engine.
pub(super) struct Inner {
    pub(super) config: ProcessConfig,
    clock: Arc<dyn Clock>,
    gate: Option<Arc<dyn LaunchGate>>,
    boot: String,
    cgroups: Option<Cgroups>,
    services: Mutex<BTreeMap<ServiceId, Slot>>,
    exits: broadcast::Sender<Exit>,
}

enum Slot {
    /// The port is promised already.
    Starting(Option<u16>),
    Running(Arc<Running>),
}

impl std::fmt::Debug for ProcessEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProcessEngine").field("config", &self.inner.config).finish_non_exhaustive()
    }
}

impl ProcessEngine {
    /// Opens the engine and adopts what an earlier agent started and still runs. Needs a tokio
    /// runtime. With a gate, every command waits for its word; adopted services are not asked
    /// for: [`Engine::instances`] tells them.
    ///
    /// # Errors
    /// [`EngineError::Open`] for an unfit configuration, unreadable folders or a damaged record.
    pub fn open(
        config: ProcessConfig,
        clock: Arc<dyn Clock>,
        gate: Option<Arc<dyn LaunchGate>>,
    ) -> Result<Self, EngineError> {
        config.validate().map_err(EngineError::Open)?;
        let unusable = |path: &Path, e: io::Error| {
            EngineError::Open(format!("cannot use {}: {e}", path.display()))
        };
        for folder in [config.records(), config.state_dir.join("logs")] {
            std::fs::create_dir_all(&folder).map_err(|e| unusable(&folder, e))?;
        }
        let boot = boot_id().map_err(|e| unusable(Path::new("/proc"), e))?;
        let records = Record::load_all(&config.records()).map_err(EngineError::Open)?;
        let cgroups = Cgroups::open(&config.guard_dir).filter(|_| config.enclose);
        let inner = Arc::new(Inner {
            config,
            clock,
            gate,
            boot,
            cgroups,
            services: Mutex::default(),
            exits: broadcast::channel(EXITS_QUEUED).0,
        });
        let engine = Self { inner, tasks: Arc::default() };
        for record in records {
            engine.adopt(record);
        }
        Ok(engine)
    }

    /// Where this service's output is.
    #[must_use]
    pub fn log_path(&self, service: ServiceId) -> PathBuf {
        self.inner.config.log(service)
    }

    fn adopt(&self, record: Record) {
        let (service, pid) = (record.launch.service, record.pid);
        let group = record.group();
        let same_boot = record.boot == self.inner.boot;
        match Running::adopt(record).filter(|_| same_boot) {
            Some(running) => {
                if self.inner.cgroup(&running).is_some_and(|cgroup| cgroup.is_frozen()) {
                    running.hold_for_lease();
                }
                tracing::info!(%service, pid, "adopted a service that an earlier agent started");
                self.watch(Arc::new(running));
            }
            None => {
                if same_boot && matches!(group.signal(Signal::KILL), Ok(Sent::Delivered)) {
                    tracing::warn!(%service, pid, "killed what was left of a service whose first process is gone");
                } else {
                    tracing::info!(%service, pid, "a recorded service is gone; nothing was touched");
                }
                self.inner.forget(service);
            }
        }
    }

    /// From here on the service is seen by every call, and its end noticed.
    fn watch(&self, running: Arc<Running>) {
        let service = running.record.launch.service;
        self.inner.slots().insert(service, Slot::Running(Arc::clone(&running)));
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(super::watch::until_gone(Arc::clone(&self.inner), running));
    }

    async fn end(&self, running: &Running) -> Result<Exit, EngineError> {
        running.asked.store(true, Ordering::Release);
        running.signal("kill", Signal::KILL)?;
        self.inner.kill_enclosed(running);
        running.ended(KILL_LIMIT).await.ok_or(EngineError::Stuck {
            service: running.record.launch.service,
            pid: running.record.pid,
            action: "die",
            within: KILL_LIMIT,
        })
    }
}

impl Inner {
    fn slots(&self) -> MutexGuard<'_, BTreeMap<ServiceId, Slot>> {
        lock(&self.services)
    }

    fn running(&self, service: ServiceId) -> Result<Arc<Running>, EngineError> {
        match self.slots().get(&service) {
            Some(Slot::Running(running)) => Ok(Arc::clone(running)),
            _ => Err(EngineError::NotHere { service }),
        }
    }

    /// The control group that the service is in, if it is in one.
    pub(super) fn cgroup(&self, running: &Running) -> Option<Cgroup> {
        self.cgroups.as_ref()?.of(&running.record.group())
    }

    /// Kills what is in the service's control group. A frozen one hears of no signal before.
    fn kill_enclosed(&self, running: &Running) {
        if let Some(cgroup) = self.cgroup(running)
            && let Err(e) = cgroup.kill()
        {
            tracing::warn!(service = %running.record.launch.service, "cannot kill its control group: {e}");
        }
    }

    /// Nothing of the service is left: says so, in the order in which it is true.
    pub(super) fn has_ended(&self, running: &Running, exit: Exit) {
        if let (Some(cgroups), Some(cgroup)) = (&self.cgroups, self.cgroup(running)) {
            cgroup.remove();
            cgroups.close();
        }
        self.forget(exit.service);
        self.slots().remove(&exit.service);
        tracing::info!(service = %exit.service, pid = exit.pid, how = %exit.how, asked = exit.asked, "a service ended");
        running.exit.send_replace(Some(exit.clone()));
        self.exits.send(exit).ok();
    }

    fn forget(&self, service: ServiceId) {
        if let Err(e) = Record::remove(&self.config.records(), service) {
            tracing::warn!(%service, "cannot remove the record of a service that is gone: {e}");
        }
    }

    /// Ends children that left the group, too.
    pub(super) fn kill_strays(&self, running: &Running) {
        self.kill_enclosed(running);
        let launch = &running.record.launch;
        match mark::kill_strays(&self.config.guard_dir, &[(launch.service, launch.epoch)]) {
            Ok(0) => {}
            Ok(count) => {
                tracing::warn!(service = %launch.service, count, "killed processes that had left the service's group");
            }
            Err(e) => tracing::warn!(service = %launch.service, "cannot look for strays: {e}"),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl Engine for ProcessEngine {
    async fn start(&self, launch: &Launch) -> Result<Instance, EngineError> {
        let reserved = start::Reserved::new(&self.inner, launch)?;
        let (reply, started) = oneshot::channel();
        let (engine, launch) = (self.clone(), launch.clone());
        let name = launch.name.clone();
        lock(&self.tasks).spawn(async move {
            let result = start::start(&engine, reserved, launch).await;
            reply.send(result).ok();
        });
        let lost = || EngineError::Start { name, reason: "the engine is shutting down".to_owned() };
        started.await.unwrap_or_else(|_| Err(lost()))
    }

    async fn instances(&self) -> Vec<Instance> {
        let running: Vec<Arc<Running>> = {
            let slots = self.inner.slots();
            let all = slots.values().filter_map(|slot| match slot {
                Slot::Running(running) => Some(Arc::clone(running)),
                Slot::Starting(_) => None,
            });
            all.collect()
        };
        let instance = |running: &Arc<Running>| {
            let mut instance = running.instance();
            instance.frozen |= self.inner.cgroup(running).is_some_and(|c| c.is_frozen());
            instance
        };
        running.iter().map(instance).collect()
    }

    fn freeze(&self, service: ServiceId, hold: Hold) -> Result<(), EngineError> {
        self.inner.running(service)?.freeze(hold, self.inner.config.freeze_limit)
    }

    fn thaw(&self, service: ServiceId, hold: Hold) -> Result<(), EngineError> {
        self.inner.running(service)?.thaw(hold)
    }

    fn disown(&self, service: ServiceId, hold: Hold) -> Result<(), EngineError> {
        self.inner.running(service)?.disown(hold);
        Ok(())
    }

    async fn stop(&self, service: ServiceId, grace: Duration) -> Result<Exit, EngineError> {
        let running = self.inner.running(service)?;
        if running.ask_to_end()?
            && let Some(exit) = running.ended(grace).await
        {
            return Ok(exit);
        }
        self.end(&running).await
    }

    async fn kill(&self, service: ServiceId) -> Result<Exit, EngineError> {
        self.end(&*self.inner.running(service)?).await
    }

    async fn ready(&self, service: ServiceId, deadline: Duration) -> Result<(), EngineError> {
        let running = self.inner.running(service)?;
        let log = || self.log_path(service);
        let mut reason = "not probed yet".to_owned();
        let probing = async {
            let (address, launch) = (running.record.address, &running.record.launch);
            let mut pause = None;
            while let Err(why) = readiness::probe(address, launch.health_path.as_deref()).await {
                reason = why;
                let next = readiness::next_pause(pause);
                pause = Some(next);
                tokio::time::sleep(next).await;
            }
        };
        let ready = tokio::select! {
            exit = running.has_ended() => {
                return Err(EngineError::Ended { service, how: exit.how, log: log() });
            }
            outcome = tokio::time::timeout(deadline, probing) => outcome.is_ok(),
        };
        if ready {
            return Ok(());
        }
        Err(EngineError::NotReady { service, waited: deadline, reason, log: log() })
    }

    fn exits(&self) -> broadcast::Receiver<Exit> {
        self.inner.exits.subscribe()
    }
}

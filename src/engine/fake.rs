//! An engine that runs nothing, for the tests of those who use one. It keeps the rules of the
//! real one (the conformance suite runs on both) and fails when told to.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use flocker_base::{Clock, ServiceId};
use tokio::sync::{broadcast, watch};

use super::{Ended, Engine, EngineError, Exit, Hold, Instance, Launch};

/// What can be told to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// [`Engine::start`].
    Start,
    /// [`Engine::freeze`].
    Freeze,
    /// [`Engine::thaw`].
    Thaw,
    /// [`Engine::stop`].
    Stop,
    /// [`Engine::kill`].
    Kill,
    /// [`Engine::ready`].
    Ready,
}

/// The command that a fake cannot run, as a real engine could not.
pub const NO_SUCH_PROGRAM: &str = "/no/such/program";
/// The command that runs and never serves.
pub const NEVER_READY: &str = "never-ready";

/// See the module.
#[derive(Debug)]
pub struct FakeEngine {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    exits: broadcast::Sender<Exit>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    services: BTreeMap<ServiceId, Faked>,
    failures: BTreeMap<Operation, u32>,
    started: u32,
}

#[derive(Debug)]
struct Faked {
    launch: Launch,
    instance: Instance,
    holds: BTreeSet<Hold>,
}

impl FakeEngine {
    /// An engine that runs nothing yet.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            state: Mutex::default(),
            exits: broadcast::channel(256).0,
            changed: watch::Sender::new(()),
        }
    }

    /// The next `times` calls of this operation fail.
    pub fn fail_next(&self, operation: Operation, times: u32) {
        self.state().failures.insert(operation, times);
    }

    /// The service ends by itself, by signal 9.
    pub fn crash(&self, service: ServiceId) {
        self.end(service, Ended::Signal(9), false).ok();
    }

    /// Whether the service is here and not frozen.
    #[must_use]
    pub fn is_running(&self, service: ServiceId) -> bool {
        self.state().services.get(&service).is_some_and(|f| !f.instance.frozen)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, operation: Operation, service: ServiceId) -> Result<(), EngineError> {
        let mut state = self.state();
        let left = state.failures.entry(operation).or_default();
        if *left == 0 {
            return Ok(());
        }
        *left -= 1;
        let source = io::Error::other(format!("told to fail at {operation:?}"));
        Err(EngineError::System { action: "act on", service, source })
    }

    fn end(&self, service: ServiceId, how: Ended, asked: bool) -> Result<Exit, EngineError> {
        let ended = self.state().services.remove(&service);
        let instance = ended.ok_or(EngineError::NotHere { service })?.instance;
        let (volume, epoch, pid) = (instance.volume, instance.epoch, instance.pid);
        let exit = Exit { service, volume, epoch, pid, how, asked };
        self.exits.send(exit.clone()).ok();
        self.changed.send_replace(());
        Ok(exit)
    }

    fn hold(
        &self,
        service: ServiceId,
        change: impl FnOnce(&mut BTreeSet<Hold>),
    ) -> Result<(), EngineError> {
        let mut state = self.state();
        let faked = state.services.get_mut(&service).ok_or(EngineError::NotHere { service })?;
        change(&mut faked.holds);
        faked.instance.frozen = !faked.holds.is_empty();
        drop(state);
        self.changed.send_replace(());
        Ok(())
    }

    /// What the service would say now: `None` while frozen or never ready.
    fn serves(&self, service: ServiceId) -> Result<bool, EngineError> {
        let state = self.state();
        let faked = state.services.get(&service).ok_or(EngineError::NotHere { service })?;
        let never = faked.launch.command.first().is_some_and(|c| c == NEVER_READY);
        Ok(!never && !faked.instance.frozen)
    }
}

#[async_trait]
impl Engine for FakeEngine {
    async fn start(&self, launch: &Launch) -> Result<Instance, EngineError> {
        let service = launch.service;
        if let Some(faked) = self.state().services.get(&service) {
            return Err(EngineError::AlreadyRuns { service, pid: faked.instance.pid });
        }
        self.check(Operation::Start, service)?;
        if launch.command.first().is_none_or(|c| c == NO_SUCH_PROGRAM) {
            let reason = format!("cannot run {NO_SUCH_PROGRAM}: no such file");
            return Err(EngineError::Start { name: launch.name.clone(), reason });
        }
        let mut state = self.state();
        state.started += 1;
        let port = u16::try_from(20_000 + state.started % 10_000).unwrap_or(20_000);
        let instance = Instance {
            service,
            volume: launch.volume,
            epoch: launch.epoch,
            pid: 1_000_000 + state.started,
            start_ticks: u64::from(state.started),
            address: SocketAddr::new(launch.host, port),
            started: self.clock.boot(),
            frozen: false,
            held_for_lease: false,
        };
        let faked =
            Faked { launch: launch.clone(), instance: instance.clone(), holds: BTreeSet::new() };
        state.services.insert(service, faked);
        Ok(instance)
    }

    async fn instances(&self) -> Vec<Instance> {
        self.state().services.values().map(|f| f.instance.clone()).collect()
    }

    fn freeze(&self, service: ServiceId, hold: Hold) -> Result<(), EngineError> {
        self.check(Operation::Freeze, service)?;
        self.hold(service, |holds| {
            holds.insert(hold);
        })
    }

    fn thaw(&self, service: ServiceId, hold: Hold) -> Result<(), EngineError> {
        self.check(Operation::Thaw, service)?;
        self.hold(service, |holds| {
            holds.remove(&hold);
        })
    }

    fn disown(&self, service: ServiceId, hold: Hold) -> Result<(), EngineError> {
        self.hold(service, |holds| {
            holds.remove(&hold);
        })
    }

    async fn stop(&self, service: ServiceId, _grace: Duration) -> Result<Exit, EngineError> {
        self.check(Operation::Stop, service)?;
        let held =
            self.state().services.get(&service).is_some_and(|f| f.holds.contains(&Hold::Lease));
        let how = if held { Ended::Signal(9) } else { Ended::Code(0) };
        self.end(service, how, true)
    }

    async fn kill(&self, service: ServiceId) -> Result<Exit, EngineError> {
        self.check(Operation::Kill, service)?;
        self.end(service, Ended::Signal(9), true)
    }

    async fn ready(&self, service: ServiceId, deadline: Duration) -> Result<(), EngineError> {
        self.check(Operation::Ready, service)?;
        let (log, mut changed) = (std::path::PathBuf::from("/dev/null"), self.changed.subscribe());
        if !self.state().services.contains_key(&service) {
            return Err(EngineError::NotHere { service });
        }
        let serving = async {
            loop {
                match self.serves(service) {
                    Ok(true) => return Ok(()),
                    Ok(false) => {}
                    Err(_) => {
                        let how = Ended::Unknown;
                        return Err(EngineError::Ended { service, how, log: log.clone() });
                    }
                }
                changed.changed().await.ok();
            }
        };
        let reason = || "it never answers".to_owned();
        tokio::time::timeout(deadline, serving).await.unwrap_or_else(|_| {
            Err(EngineError::NotReady { service, waited: deadline, reason: reason(), log })
        })
    }

    fn exits(&self) -> broadcast::Receiver<Exit> {
        self.exits.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use flocker_base::{BootTime, ManualClock, WallTime};

    use super::*;

    #[tokio::test]
    async fn it_fails_as_often_as_told_and_changes_nothing_then() {
        let clock = ManualClock::new(BootTime::ZERO, WallTime::from_millis(0));
        let engine = FakeEngine::new(Arc::new(clock));
        let service = ServiceId::from_bytes([1; 16]);
        engine.fail_next(Operation::Freeze, 2);
        for _ in 0..2 {
            let error = engine.freeze(service, Hold::Lease).expect_err("told to").to_string();
            assert!(error.contains("told to fail at Freeze"), "{error}");
        }
        assert!(matches!(engine.freeze(service, Hold::Lease), Err(EngineError::NotHere { .. })));
        assert!(engine.instances().await.is_empty());
    }
}

//! One start of a service, in the order that leaves nothing behind at any crash: fork, record,
//! admit, run.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use flocker_base::ServiceId;
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::{Inner, ProcessEngine, Record, Slot};
use crate::engine::watch::Running;
use crate::engine::{EngineError, Instance, Launch, ProcessGroup, launch as shim, log, mark, port};

/// What of the agent's own environment a service may see.
const PASSED_ON: [&str; 3] = ["PATH", "HOME", "LANG"];
/// The longest word from a launcher that could not run its command.
const MOST_REPLY_BYTES: u64 = 4096;

/// Keeps a second start of the same service out until this one has ended either way.
pub(super) struct Reserved {
    inner: Arc<Inner>,
    service: ServiceId,
}

impl Reserved {
    pub(super) fn new(inner: &Arc<Inner>, launch: &Launch) -> Result<Self, EngineError> {
        let service = launch.service;
        let mut slots = inner.slots();
        match slots.get(&service) {
            Some(Slot::Running(running)) => {
                Err(EngineError::AlreadyRuns { service, pid: running.record.pid })
            }
            Some(Slot::Starting(_)) => Err(EngineError::Starting { service }),
            None => {
                slots.insert(service, Slot::Starting(None));
                Ok(Self { inner: Arc::clone(inner), service })
            }
        }
    }

    fn take_port(&self, launch: &Launch) -> Result<std::net::SocketAddr, String> {
        let mut slots = self.inner.slots();
        let taken = slots.values().filter_map(|slot| match slot {
            Slot::Starting(port) => *port,
            Slot::Running(running) => Some(running.record.address.port()),
        });
        let taken = taken.collect();
        let address = port::free(launch.host, &self.inner.config.ports, &taken, launch.service)
            .map_err(|e| format!("no port on {}: {e}", launch.host))?;
        slots.insert(self.service, Slot::Starting(Some(address.port())));
        Ok(address)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut slots = self.inner.slots();
        if matches!(slots.get(&self.service), Some(Slot::Starting(_))) {
            slots.remove(&self.service);
        }
    }
}

/// Runs on the engine's own task: a caller that goes away does not cut it short.
pub(super) async fn start(
    engine: &ProcessEngine,
    reserved: Reserved,
    launch: Launch,
) -> Result<Instance, EngineError> {
    let name = launch.name.clone();
    let limit = engine.inner.config.start_limit;
    let failed = |reason| EngineError::Start { name, reason };
    let mut held = match hold_back(&reserved, &launch) {
        Ok(held) => held,
        Err(reason) => return Err(failed(reason)),
    };
    let outcome = tokio::time::timeout(limit, held.release(&reserved, launch))
        .await
        .unwrap_or_else(|_| Err(format!("it did not start within {limit:?}")));
    match outcome {
        Ok(record) => {
            let running = Arc::new(held.into_running(record));
            let instance = running.instance();
            engine.watch(running);
            Ok(instance)
        }
        Err(reason) => {
            engine.inner.forget(reserved.service);
            held.abandon(&engine.inner, reserved.service).await;
            Err(failed(reason))
        }
    }
}

/// A process that waits for the word to run its command.
struct HeldBack {
    control: UnixStream,
    pid: u32,
    handle: OwnedFd,
    address: std::net::SocketAddr,
}

fn hold_back(reserved: &Reserved, launch: &Launch) -> Result<HeldBack, String> {
    let config = &reserved.inner.config;
    if launch.command.is_empty() {
        return Err("the manifest gives no command".to_owned());
    }
    let folder = &launch.folder;
    if !folder.is_dir() {
        return Err(format!("its volume's folder {} is not there", folder.display()));
    }
    let address = reserved.take_port(launch)?;
    let log = config.log(launch.service);
    log::rotate(&log, config.log_limit_bytes)
        .map_err(|e| format!("cannot rotate {}: {e}", log.display()))?;
    let opened = || log::open(&log).map_err(|e| format!("cannot open {}: {e}", log.display()));
    let (control, theirs) = StdStream::pair().map_err(|e| format!("cannot make a socket: {e}"))?;
    let mut command = Command::new(&config.exe);
    command.arg(shim::SUBCOMMAND).arg("--").args(&launch.command);
    command.stdin(OwnedFd::from(theirs)).stdout(opened()?).stderr(opened()?);
    set_environment(&mut command, launch, &config.guard_dir, address);
    let child = command.spawn().map_err(|e| format!("cannot run {}: {e}", config.exe.display()))?;
    drop(command);
    let pid = child.id();
    let handle = Running::handle(pid).map_err(|e| format!("cannot watch pid {pid}: {e}"))?;
    control.set_nonblocking(true).map_err(|e| format!("cannot set up a socket: {e}"))?;
    let control = UnixStream::from_std(control).map_err(|e| format!("cannot use a socket: {e}"))?;
    Ok(HeldBack { control, pid, handle, address })
}

fn set_environment(
    command: &mut Command,
    launch: &Launch,
    guard_dir: &Path,
    address: std::net::SocketAddr,
) {
    command.env_clear().current_dir(&launch.folder);
    command.envs(PASSED_ON.iter().filter_map(|n| Some((n, std::env::var_os(n)?))));
    command.envs(&launch.environment);
    command.env("HOST", address.ip().to_string()).env("PORT", address.port().to_string());
    command.env(mark::VOLUME, &launch.folder).env(mark::SERVICE, launch.service.to_string());
    command.env(mark::EPOCH, launch.epoch.to_string()).env(mark::GUARD, guard_dir);
}

impl HeldBack {
    /// Record, gate, go.
    async fn release(&mut self, reserved: &Reserved, launch: Launch) -> Result<Record, String> {
        let inner = &reserved.inner;
        let lost = |e: std::io::Error| format!("its process ended before the command ran: {e}");
        let mut word = [0];
        self.control.read_exact(&mut word).await.map_err(lost)?;
        if word != [shim::READY] {
            return Err(format!("{} is not this flocker", inner.config.exe.display()));
        }
        let group = ProcessGroup::led_by(launch.service, self.pid)
            .ok_or_else(|| "its process ended before the command ran".to_owned())?;
        if let Some(cgroups) = &inner.cgroups {
            let enclosed = cgroups.enclose(&group);
            enclosed.map_err(|e| format!("cannot put it into a control group: {e}"))?;
        }
        let record = Record {
            boot: inner.boot.clone(),
            pid: self.pid,
            start_ticks: group.start_ticks,
            address: self.address,
            started: inner.clock.boot(),
            launch,
        };
        let record = save(inner, record).await?;
        if let Some(gate) = &inner.gate {
            gate.admit(&record.launch, group).await?;
        }
        self.control.write_all(&[shim::GO]).await.map_err(lost)?;
        let mut reply = Vec::new();
        let read = (&mut self.control).take(MOST_REPLY_BYTES).read_to_end(&mut reply).await;
        read.map_err(lost)?;
        match reply.split_first() {
            None => Ok(record),
            Some((&shim::FAILED, text)) => Err(String::from_utf8_lossy(text).into_owned()),
            Some(_) => Err("its launcher said something unknown".to_owned()),
        }
    }

    fn into_running(self, record: Record) -> Running {
        Running::new(record, self.handle)
    }

    /// Ends the process whatever it is doing, and waits for it: it is our child.
    async fn abandon(self, inner: &Inner, service: ServiceId) {
        drop(self.control);
        // While the process stands, zombie or not, its number tells which group was its own.
        let group = ProcessGroup::led_by(service, self.pid);
        rustix::process::pidfd_send_signal(&self.handle, Signal::KILL).ok();
        let handle = self.handle;
        let reaped = tokio::task::spawn_blocking(move || Running::reap(&handle));
        tokio::time::timeout(Duration::from_secs(5), reaped).await.ok();
        let cgroup = group.and_then(|group| inner.cgroups.as_ref()?.of(&group));
        if let Some(cgroup) = cgroup {
            cgroup.remove();
        }
    }
}

/// Durable when it returns.
async fn save(inner: &Arc<Inner>, record: Record) -> Result<Record, String> {
    let folder = inner.config.records();
    let saved = tokio::task::spawn_blocking(move || record.save(&folder).map(|()| record)).await;
    match saved {
        Ok(Ok(record)) => Ok(record),
        Ok(Err(e)) => Err(format!("cannot record it: {e}")),
        Err(e) => Err(format!("cannot record it: {e}")),
    }
}

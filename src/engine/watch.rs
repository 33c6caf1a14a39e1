//! One running service: its holds, its signals, and the watch that notices its end.
//!
//! The leader is reaped last, for while it is there no one else can get the group's number.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use rustix::time::Timespec;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::process::Inner;
use super::record::Record;
use super::{Ended, EngineError, Exit, Hold, Instance, ProcessGroup, log};

const LOG_CHECK: Duration = Duration::from_millis(500);
/// Between two looks at a group that is being stopped.
const FREEZE_LOOK: Duration = Duration::from_micros(200);
/// What is left of a group when its leader has ended gets this long to go.
const REST_LIMIT: Duration = Duration::from_secs(5);

pub(super) struct Running {
    pub(super) record: Record,
    handle: OwnedFd,
    holds: Mutex<BTreeSet<Hold>>,
    pub(super) asked: AtomicBool,
    pub(super) exit: watch::Sender<Option<Exit>>,
}

impl Running {
    pub(super) fn new(record: Record, handle: OwnedFd) -> Self {
        Self {
            record,
            handle,
            holds: Mutex::default(),
            asked: AtomicBool::new(false),
            exit: watch::Sender::new(None),
        }
    }

    /// Takes the process over if it is proven to be the recorded one. The handle comes first, so
    /// that what is proven is what is held. One found frozen was frozen for its lease, as far as
    /// anyone knows.
    pub(super) fn adopt(record: Record) -> Option<Self> {
        let handle = Self::handle(record.pid).ok()?;
        let group = record.group();
        if !group.leader_stands() || group.is_gone() {
            return None;
        }
        let running = Self::new(record, handle);
        if group.is_frozen() {
            running.hold_for_lease();
        }
        Some(running)
    }

    /// It was found frozen: it does not run on before its lease is known to stand.
    pub(super) fn hold_for_lease(&self) {
        self.holds().insert(Hold::Lease);
    }

    pub(super) fn handle(pid: u32) -> io::Result<OwnedFd> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK)?)
    }

    /// Waits for the child to end and takes its status; anyone else's child tells nothing.
    pub(super) fn reap(handle: &OwnedFd) -> Ended {
        loop {
            let id = WaitId::PidFd(handle.as_fd());
            match rustix::process::waitid(id, WaitIdOptions::EXITED) {
                Ok(Some(status)) => {
                    let code = status.exit_status().map(Ended::Code);
                    let signal = || status.terminating_signal().map(Ended::Signal);
                    return code.or_else(signal).unwrap_or(Ended::Unknown);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => look_again(FREEZE_LOOK * 5),
                _ => return Ended::Unknown,
            }
        }
    }

    fn group(&self) -> ProcessGroup {
        self.record.group()
    }

    fn holds(&self) -> MutexGuard<'_, BTreeSet<Hold>> {
        self.holds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn instance(&self) -> Instance {
        let launch = &self.record.launch;
        Instance {
            service: launch.service,
            volume: launch.volume,
            epoch: launch.epoch,
            pid: self.record.pid,
            start_ticks: self.record.start_ticks,
            address: self.record.address,
            started: self.record.started,
            frozen: !self.holds().is_empty() || self.group().is_frozen(),
            held_for_lease: self.holds().contains(&Hold::Lease),
        }
    }

    pub(super) fn signal(&self, action: &'static str, signal: Signal) -> Result<(), EngineError> {
        let service = self.record.launch.service;
        let system = |source| EngineError::System { action, service, source };
        self.group().signal(signal).map(|_| ()).map_err(system)
    }

    /// Blocks for up to the limit, mostly for less than a millisecond.
    pub(super) fn freeze(&self, hold: Hold, limit: Duration) -> Result<(), EngineError> {
        let mut holds = self.holds();
        holds.insert(hold);
        self.signal("freeze", Signal::STOP)?;
        let looks = limit.as_micros() / FREEZE_LOOK.as_micros() + 1;
        for _ in 0..looks {
            if self.group().is_frozen() {
                return Ok(());
            }
            look_again(FREEZE_LOOK);
        }
        let (service, pid) = (self.record.launch.service, self.record.pid);
        Err(EngineError::Stuck { service, pid, action: "freeze", within: limit })
    }

    pub(super) fn thaw(&self, hold: Hold) -> Result<(), EngineError> {
        let mut holds = self.holds();
        self.lift(&mut holds, hold)
    }

    pub(super) fn disown(&self, hold: Hold) {
        self.holds().remove(&hold);
    }

    fn lift(&self, holds: &mut BTreeSet<Hold>, hold: Hold) -> Result<(), EngineError> {
        holds.remove(&hold);
        if holds.is_empty() { self.signal("thaw", Signal::CONT) } else { Ok(()) }
    }

    /// Asks the service to end; false if it may not run on to do so.
    pub(super) fn ask_to_end(&self) -> Result<bool, EngineError> {
        let mut holds = self.holds();
        self.asked.store(true, Ordering::Release);
        if holds.contains(&Hold::Lease) {
            return Ok(false);
        }
        self.signal("stop", Signal::TERM)?;
        self.lift(&mut holds, Hold::Snapshot)?;
        Ok(true)
    }

    /// Waits for the end at most this long. Cancel safe.
    pub(super) async fn ended(&self, limit: Duration) -> Option<Exit> {
        tokio::time::timeout(limit, self.has_ended()).await.ok()
    }

    /// Cancel safe.
    pub(super) async fn has_ended(&self) -> Exit {
        let mut exit = self.exit.subscribe();
        loop {
            if let Some(exit) = exit.borrow_and_update().clone() {
                return exit;
            }
            if exit.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// The watcher's whole life. Aborted, it leaves the service running and its record in place.
pub(super) async fn until_gone(inner: Arc<Inner>, running: Arc<Running>) {
    wait_for_exit(&inner, &running).await;
    if running.signal("kill the rest of", Signal::KILL).is_err() {
        tracing::warn!(service = %running.record.launch.service, "cannot kill the rest of the group");
    }
    let how = loop {
        let (shared, ended) = (Arc::clone(&inner), Arc::clone(&running));
        let gone = tokio::task::spawn_blocking(move || {
            shared.kill_strays(&ended);
            is_rest_gone(ended.group()).then(|| Running::reap(&ended.handle))
        });
        match gone.await {
            Ok(Some(how)) => break how,
            Ok(None) => {}
            Err(e) => tracing::error!("the look for what is left of a service failed: {e}"),
        }
    };
    let launch = &running.record.launch;
    let exit = Exit {
        service: launch.service,
        volume: launch.volume,
        epoch: launch.epoch,
        pid: running.record.pid,
        how,
        asked: running.asked.load(Ordering::Acquire),
    };
    inner.has_ended(&running, exit);
}

/// The handle becomes readable when the leader ends. Meanwhile the log is kept small.
async fn wait_for_exit(inner: &Inner, running: &Running) {
    let handle = match running.handle.try_clone().and_then(readable_fd) {
        Ok(handle) => Some(handle),
        Err(e) => {
            tracing::warn!("cannot wait for a process handle, so it is looked at by and by: {e}");
            None
        }
    };
    let mut look = tokio::time::interval(LOG_CHECK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let noticed = async {
            match &handle {
                Some(handle) => handle.readable().await.map(|_| ()).unwrap_or_default(),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = noticed => return,
            _ = look.tick() => {
                if handle.is_none() && running.group().is_gone() {
                    return;
                }
                rotate(inner, running).await;
            }
        }
    }
}

#[expect(unsafe_code, reason = "tokio has no safe way to wait for a process handle")]
fn readable_fd(handle: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open, and the same file, for as long as it lives, and the `AsyncFd`
    // owns this one.
    Ok(unsafe { AsyncFd::register_with_interest(handle, Interest::READABLE) }?)
}

async fn rotate(inner: &Inner, running: &Running) {
    let path = inner.config.log(running.record.launch.service);
    let limit = inner.config.log_limit_bytes;
    let rotated = tokio::task::spawn_blocking(move || log::rotate(&path, limit)).await;
    if let Ok(Err(e)) = rotated {
        tracing::warn!(service = %running.record.launch.service, "cannot rotate the service's log: {e}");
    }
}

/// Blocks until no other member runs, within a bound.
fn is_rest_gone(group: ProcessGroup) -> bool {
    const LOOK: Duration = Duration::from_millis(2);
    for _ in 0..REST_LIMIT.as_millis() / LOOK.as_millis() {
        if group.is_gone() {
            return true;
        }
        group.signal(Signal::KILL).ok();
        look_again(LOOK);
    }
    tracing::error!(
        service = %group.service, pid = group.leader,
        "a killed process of the service hangs in the kernel: until it goes, its volume is in use"
    );
    false
}

fn look_again(after: Duration) {
    let pause = Timespec { tv_sec: 0, tv_nsec: i64::from(after.subsec_nanos()) };
    let _ = rustix::thread::nanosleep(&pause);
}

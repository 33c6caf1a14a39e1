//! Waiting for a condition, with a deadline and a name for what did not happen.

use std::path::PathBuf;
use std::time::Duration;

use flocker_base::{BootTime, Clock, SystemClock};

/// Generous: the machine may be busy with other tests.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

pub(crate) fn now() -> BootTime {
    SystemClock.boot()
}

pub(crate) fn exe() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_flocker"))
}

/// Polls until it is so.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = now();
    while !condition() {
        assert!(now() - start < LIMIT, "did not happen within {LIMIT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

/// The state's letter; `None` once the process is gone or a zombie whose last thread has ended.
pub(crate) fn state_of(pid: u32) -> Option<u8> {
    let stat = flocker::engine::group::Stat::read(pid)?;
    let threads = || std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    (!matches!(stat.state, b'Z' | b'X') || threads() > 1).then_some(stat.state)
}

/// Whether it is stopped by a signal or by its control group.
pub(crate) fn is_stopped(pid: u32) -> bool {
    state_of(pid).is_some_and(|state| state == b'T' || flocker::engine::cgroup::is_frozen(pid))
}

pub(crate) fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
    rustix::process::kill_process(pid, signal).expect("signals");
}

/// A folder of one test. When it goes, so does every service that was started in it, by the mark
/// that it carries.
pub(crate) struct Sandbox(tempfile::TempDir);

impl Sandbox {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("folder"))
    }

    pub(crate) fn path(&self) -> &std::path::Path {
        self.0.path()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        flocker::engine::mark::kill_managed(&self.path().join("guard"), |_| false).ok();
    }
}

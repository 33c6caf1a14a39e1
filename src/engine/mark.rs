//! The marks that a service's processes carry in their environment, and what they prove.
//!
//! A process inherits them, so that a child which left its group is found too. A process without
//! the mark asked for must never be touched by what is found here.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use flocker_base::{Epoch, ServiceId};
use rustix::process::{Pid, PidfdFlags, Signal};

use super::group::every_pid;

/// Names the service.
pub const SERVICE: &str = "FLOCKER_SERVICE";
/// Names the volume's epoch under which the service was started.
pub const EPOCH: &str = "FLOCKER_EPOCH";
/// Names the volume's folder.
pub const VOLUME: &str = "FLOCKER_VOLUME";
/// Names the runtime folder of the guard that answers for the process.
pub const GUARD: &str = "FLOCKER_GUARD";

/// No more of an environment is read than this.
const MOST_ENVIRONMENT_BYTES: u64 = 2 << 20;

/// Whether the process was started for this service.
#[must_use]
pub fn is_of_service(pid: u32, service: ServiceId) -> bool {
    environment(pid).is_some_and(|e| holds(&e, SERVICE, service.to_string().as_bytes()))
}

/// Whether the process is of this start of the service, and this guard's.
#[must_use]
pub fn is_of_start(pid: u32, guard: &Path, service: ServiceId, epoch: Epoch) -> bool {
    environment(pid).is_some_and(|e| {
        holds(&e, GUARD, guard.as_os_str().as_bytes())
            && holds(&e, SERVICE, service.to_string().as_bytes())
            && holds(&e, EPOCH, epoch.to_string().as_bytes())
    })
}

/// Kills what is left of these starts of services anywhere on this machine, children that left
/// their group included; says how many it found.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn kill_strays(guard: &Path, starts: &[(ServiceId, Epoch)]) -> io::Result<usize> {
    let starts: Vec<(String, String)> =
        starts.iter().map(|(s, e)| (s.to_string(), e.to_string())).collect();
    kill_where(|_, environment| {
        holds(environment, GUARD, guard.as_os_str().as_bytes())
            && starts.iter().any(|(service, epoch)| {
                holds(environment, SERVICE, service.as_bytes())
                    && holds(environment, EPOCH, epoch.as_bytes())
            })
    })
}

/// Kills every process that this guard answers for and that `spare` does not name; says how
/// many it found.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn kill_managed(guard: &Path, spare: impl Fn(u32) -> bool) -> io::Result<usize> {
    kill_where(|pid, environment| {
        holds(environment, GUARD, guard.as_os_str().as_bytes()) && !spare(pid)
    })
}

/// The handle is taken before the proof is read, so that the process that is killed is the one
/// that was proven.
fn kill_where(proven: impl Fn(u32, &[u8]) -> bool) -> io::Result<usize> {
    let own = std::process::id();
    let mut found = 0;
    for pid in every_pid()?.filter(|pid| *pid > 1 && *pid != own) {
        if !environment(pid).is_some_and(|e| proven(pid, &e)) {
            continue;
        }
        let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { continue };
        let Ok(handle) = rustix::process::pidfd_open(number, PidfdFlags::empty()) else { continue };
        if environment(pid).is_some_and(|e| proven(pid, &e))
            && rustix::process::pidfd_send_signal(&handle, Signal::KILL).is_ok()
        {
            found += 1;
        }
    }
    Ok(found)
}

/// A zombie and another user's process have none.
fn environment(pid: u32) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(format!("/proc/{pid}/environ")).ok()?;
    file.take(MOST_ENVIRONMENT_BYTES).read_to_end(&mut bytes).ok()?;
    (!bytes.is_empty()).then_some(bytes)
}

fn holds(environment: &[u8], name: &str, value: &[u8]) -> bool {
    environment.split(|b| *b == 0).any(|entry| {
        entry
            .strip_prefix(OsStr::new(name).as_bytes())
            .and_then(|rest| rest.strip_prefix(b"="))
            .is_some_and(|found| found == value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_name_and_value_count() {
        let environment = b"PATH=/bin\0FLOCKER_SERVICE=ab\0XFLOCKER_EPOCH=1\0";
        assert!(holds(environment, SERVICE, b"ab"));
        for (name, value) in [(SERVICE, &b"a"[..]), (SERVICE, b"abc"), (EPOCH, b"1"), ("", b"")] {
            assert!(!holds(environment, name, value), "{name}");
        }
    }

    #[test]
    fn a_managed_process_dies_and_a_spared_or_strange_one_lives() {
        let folder = tempfile::tempdir().expect("folder");
        let start = |mark: &Path| {
            let mut command = std::process::Command::new("sleep");
            command.arg("1000").env(GUARD, mark).spawn().expect("sleep runs")
        };
        let (mut ours, mut spared) = (start(folder.path()), start(folder.path()));
        let mut strange = start(&folder.path().join("other"));
        while environment(strange.id()).is_none() {
            std::thread::yield_now();
        }
        let keep = spared.id();
        assert_eq!(kill_managed(folder.path(), |pid| pid == keep).expect("scans"), 1);
        assert!(!ours.wait().expect("ended").success());
        for child in [&mut spared, &mut strange] {
            assert!(child.try_wait().expect("asks").is_none());
            child.kill().expect("kills");
            child.wait().expect("ends");
        }
    }
}

//! What `/proc` says of the processes that a mesh started. Only processes that prove to be of that
//! mesh are ever signalled: they run its binary with its folder, or carry its mark.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flocker::engine::cgroup;
use rustix::process::{Pid, PidfdFlags, Signal};

const MARK_GUARD: &[u8] = b"FLOCKER_GUARD=";
const MARK_SERVICE: &[u8] = b"FLOCKER_SERVICE=";
const MARK_EPOCH: &[u8] = b"FLOCKER_EPOCH=";

/// A service's process at one instant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Instance {
    /// Its process id.
    pub pid: u32,
    /// When it started, in ticks since the boot: with the id, it names one process for ever.
    pub started: u64,
    /// The service, by id.
    pub service: String,
    /// The epoch that it was started under, as written.
    pub epoch: String,
    /// The folder of the guard that answers for it: tells the node.
    pub guard: PathBuf,
    /// Whether it can run: neither frozen nor dead.
    pub runs: bool,
}

/// Finds the services of one mesh, again and again. What a process is, it looks up once.
#[derive(Debug)]
pub struct Finder {
    folder: PathBuf,
    known: HashMap<(u32, u64), Option<Marks>>,
}

#[derive(Clone, Debug)]
struct Marks {
    service: String,
    epoch: String,
    guard: PathBuf,
}

impl Finder {
    /// For the mesh in this folder.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), known: HashMap::new() }
    }

    /// The instances at this instant, one a process. A launcher that has not become its service
    /// yet is none.
    ///
    /// # Errors
    /// If `/proc` cannot be read.
    pub fn instances(&mut self) -> Result<Vec<Instance>> {
        let mut found = Vec::new();
        let mut known = HashMap::new();
        for pid in every_pid()? {
            let Some(stat) = Stat::of(pid) else { continue };
            let key = (pid, stat.started);
            let marks = match self.known.get(&key) {
                Some(marks) => marks.clone(),
                None => match self.marks(pid) {
                    Looked::Is(marks) => Some(marks),
                    Looked::IsNot => None,
                    // Before its exec: look again.
                    Looked::NotYet => continue,
                },
            };
            known.insert(key, marks.clone());
            if let Some(Marks { service, epoch, guard }) = marks {
                let runs = stat.runs() && !cgroup::is_frozen(pid);
                found.push(Instance { pid, started: stat.started, service, epoch, guard, runs });
            }
        }
        self.known = known;
        Ok(found)
    }

    /// Whether this very process is there and can run, now.
    #[must_use]
    pub fn still_runs(instance: &Instance) -> bool {
        Stat::of(instance.pid).is_some_and(|s| s.started == instance.started && s.runs())
            && !cgroup::is_frozen(instance.pid)
    }

    fn marks(&self, pid: u32) -> Looked {
        let Some(environment) = read(pid, "environ") else { return Looked::IsNot };
        let guard = value(&environment, MARK_GUARD).map(path);
        let Some(guard) = guard.filter(|g| g.starts_with(&self.folder)) else {
            // The child of a fork has its parent's environment until it runs its own program.
            return if is_of(pid, &self.folder) { Looked::NotYet } else { Looked::IsNot };
        };
        let (Some(service), Some(epoch)) =
            (value(&environment, MARK_SERVICE), value(&environment, MARK_EPOCH))
        else {
            return Looked::IsNot;
        };
        let arguments = read(pid, "cmdline").unwrap_or_default();
        if arguments.split(|b| *b == 0).nth(1) != Some(b"tally") {
            return Looked::NotYet;
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Looked::Is(Marks { service: text(service), epoch: text(epoch), guard })
    }
}

enum Looked {
    Is(Marks),
    IsNot,
    NotYet,
}

/// SIGKILL to everything of the mesh in this folder: agents, guards, launchers, services. Says how
/// many it found.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn kill_all(folder: &Path, binary: &Path) -> Result<usize> {
    let mut found = 0;
    for pid in every_pid()? {
        if pid == std::process::id() || !belongs(pid, folder, binary) {
            continue;
        }
        let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { continue };
        // The handle comes before the second proof: what is killed is what was proven.
        let Ok(handle) = rustix::process::pidfd_open(number, PidfdFlags::empty()) else { continue };
        if belongs(pid, folder, binary)
            && rustix::process::pidfd_send_signal(&handle, Signal::KILL).is_ok()
        {
            found += 1;
        }
    }
    Ok(found)
}

/// SIGKILL to a service and all of its process group.
///
/// # Errors
/// If it cannot be killed; that it has ended already is none.
pub fn kill_group(pid: u32) -> Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("no process id")?;
    match rustix::process::kill_process_group(pid, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error).context("cannot kill the service"),
    }
}

fn belongs(pid: u32, folder: &Path, binary: &Path) -> bool {
    let marked = || {
        read(pid, "environ")
            .and_then(|environment| value(&environment, MARK_GUARD).map(path))
            .is_some_and(|guard| guard.starts_with(folder))
    };
    let runs_binary =
        || std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == binary);
    (runs_binary() && is_of(pid, folder)) || marked()
}

/// Whether its command line names something in the folder.
fn is_of(pid: u32, folder: &Path) -> bool {
    let folder = folder.as_os_str().as_bytes();
    read(pid, "cmdline").is_some_and(|arguments| {
        arguments.split(|b| *b == 0).any(|a| a.windows(folder.len()).any(|w| w == folder))
    })
}

fn every_pid() -> Result<impl Iterator<Item = u32>> {
    let entries = std::fs::read_dir("/proc").context("cannot read /proc")?;
    Ok(entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()))
}

fn read(pid: u32, what: &str) -> Option<Vec<u8>> {
    std::fs::read(format!("/proc/{pid}/{what}")).ok().filter(|bytes| !bytes.is_empty())
}

fn value<'a>(environment: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    environment.split(|b| *b == 0).find_map(|entry| entry.strip_prefix(name))
}

fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(std::ffi::OsStr::from_bytes(bytes))
}

struct Stat {
    state: char,
    started: u64,
}

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Self::parse(&text)
    }

    /// The name, in parentheses, may contain anything.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        let mut fields = rest.split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        let started = fields.nth(18)?.parse().ok()?;
        Some(Self { state, started })
    }

    const fn runs(&self) -> bool {
        !matches!(self.state, 'T' | 't' | 'Z' | 'X' | 'x')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_whatever_the_name() {
        let line = "7 (a) b (c)) T 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 8812 1 1 1";
        let stat = Stat::parse(line).expect("a stat line");
        assert_eq!((stat.state, stat.started, stat.runs()), ('T', 8812, false));
        let own = Stat::of(std::process::id()).expect("this process");
        assert!(own.runs() && own.started > 0);
    }

    #[test]
    fn only_what_carries_the_folders_mark_is_killed() {
        let folder = tempfile::tempdir().expect("folder");
        let start = |guard: &Path| {
            let mut command = std::process::Command::new("sleep");
            command.arg("1000").env("FLOCKER_GUARD", guard).spawn().expect("sleep runs")
        };
        let mut ours = start(&folder.path().join("a/guard"));
        let mut strange = start(Path::new("/nowhere"));
        while read(ours.id(), "cmdline").is_none_or(|c| !c.starts_with(b"sleep")) {
            std::thread::yield_now();
        }
        assert_eq!(kill_all(folder.path(), Path::new("/no/binary")).expect("scans"), 1);
        assert!(!ours.wait().expect("ended").success());
        assert!(strange.try_wait().expect("asks").is_none(), "another's process lives");
        strange.kill().expect("kills");
        strange.wait().expect("ends");
    }
}

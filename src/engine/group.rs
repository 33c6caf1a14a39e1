//! A service's process group and the proof that it is ours.
//!
//! A pid alone proves nothing: the system uses it again. A group is known by its leader's pid
//! *and* start time; once the leader is gone, by the mark in a member's environment. This must
//! never signal a process that neither proves.

use std::collections::BTreeSet;
use std::fs;
use std::io;

use flocker_base::ServiceId;
use rustix::process::{Pid, Signal};

use super::mark;

/// One process as `/proc/<pid>/stat` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The process.
    pub pid: u32,
    /// The kernel's letter for what it does: `R`, `S`, `D`, `T`, `Z` ...
    pub state: u8,
    /// Its process group.
    pub group: u32,
    /// When it was started, in clock ticks since the boot. It does not change at `exec`.
    pub start_ticks: u64,
}

impl Stat {
    /// Reads it; `None` if there is no such process.
    #[must_use]
    pub fn read(pid: u32) -> Option<Self> {
        parse(&fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    /// A zombie whose last thread has ended runs no code any more.
    fn is_living(&self) -> bool {
        !matches!(self.state, b'Z' | b'X') || thread_states(self.pid).any(|s| !is_dead(s))
    }

    fn is_stopped(&self) -> bool {
        thread_states(self.pid).all(|s| matches!(s, b'T' | b't') || is_dead(s))
    }

    /// Whether it runs no code: it is stopped, or dead.
    #[must_use]
    pub fn stands_still(&self) -> bool {
        !self.is_living() || self.is_stopped()
    }
}

/// The command's name stands in brackets and may hold brackets and spaces itself.
fn parse(text: &[u8]) -> Option<Stat> {
    let open = text.iter().position(|b| *b == b'(')?;
    let close = text.iter().rposition(|b| *b == b')')?;
    let pid = std::str::from_utf8(&text[..open]).ok()?.trim().parse().ok()?;
    let rest = std::str::from_utf8(text.get(close + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    let group = fields.nth(1)?.parse().ok()?;
    let start_ticks = fields.nth(16)?.parse().ok()?;
    Some(Stat { pid, state, group, start_ticks })
}

const fn is_dead(state: u8) -> bool {
    matches!(state, b'Z' | b'X')
}

fn thread_states(pid: u32) -> impl Iterator<Item = u8> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok().into_iter().flatten().flatten();
    threads.filter_map(|t| Some(parse(&fs::read(t.path().join("stat")).ok()?)?.state))
}

/// Every process of the machine that this one may see.
pub(crate) fn every_pid() -> io::Result<impl Iterator<Item = u32>> {
    let entries = fs::read_dir("/proc")?;
    Ok(entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()))
}

/// Every process of the machine that this one may see, as it is.
pub(crate) fn every_stat() -> io::Result<impl Iterator<Item = Stat>> {
    Ok(every_pid()?.filter_map(Stat::read))
}

/// The numbers of all groups of the machine in which something runs.
pub(crate) fn living_groups() -> io::Result<BTreeSet<u32>> {
    let living = every_pid()?.filter_map(Stat::read).filter(Stat::is_living);
    Ok(living.map(|s| s.group).collect())
}

/// What became of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The group has it.
    Delivered,
    /// No process is left that is proven to be of the group; nothing was touched.
    NothingOfOurs,
}

/// A service's process group: the leader's pid, which is the group's number too, with its start
/// time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessGroup {
    /// Whose it is.
    pub service: ServiceId,
    /// The leader's pid.
    pub leader: u32,
    /// The leader's start, in clock ticks since the boot.
    pub start_ticks: u64,
}

impl ProcessGroup {
    /// The group that this process leads; `None` if there is no such process or it leads none.
    #[must_use]
    pub fn led_by(service: ServiceId, pid: u32) -> Option<Self> {
        let stat = Stat::read(pid)?;
        let leads = stat.group == pid && pid > 1;
        leads.then_some(Self { service, leader: pid, start_ticks: stat.start_ticks })
    }

    /// Whether the leader is there, a zombie included: while it is, no one else can have its
    /// number.
    #[must_use]
    pub fn leader_stands(&self) -> bool {
        Stat::read(self.leader)
            .is_some_and(|s| s.start_ticks == self.start_ticks && s.group == self.leader)
    }

    /// Whether the group's number is proven to be this group's still.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        self.leader_stands() || (Stat::read(self.leader).is_none() && self.has_marked_member())
    }

    /// The living processes of the group; none if the number is not proven to be ours.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn members(&self) -> io::Result<Vec<Stat>> {
        if !self.is_proven() {
            return Ok(Vec::new());
        }
        Ok(self.numbered()?.filter(Stat::is_living).collect())
    }

    /// Whether no process of the group runs any more.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.members().is_ok_and(|m| m.is_empty())
    }

    /// Whether every thread of every member is stopped (and there is one).
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.members().is_ok_and(|m| !m.is_empty() && m.iter().all(Stat::is_stopped))
    }

    /// Signals the whole group, if it is proven to be ours.
    ///
    /// # Errors
    /// What the system said.
    pub fn signal(&self, signal: Signal) -> io::Result<Sent> {
        let number = i32::try_from(self.leader).ok().filter(|n| *n > 1).and_then(Pid::from_raw);
        let Some(number) = number.filter(|_| self.is_proven()) else {
            return Ok(Sent::NothingOfOurs);
        };
        match rustix::process::kill_process_group(number, signal) {
            Ok(()) => Ok(Sent::Delivered),
            Err(rustix::io::Errno::SRCH) => Ok(Sent::NothingOfOurs),
            Err(e) => Err(e.into()),
        }
    }

    fn numbered(&self) -> io::Result<impl Iterator<Item = Stat>> {
        let number = self.leader;
        Ok(every_pid()?.filter_map(Stat::read).filter(move |s| s.group == number))
    }

    fn has_marked_member(&self) -> bool {
        self.numbered().is_ok_and(|mut all| all.any(|s| mark::is_of_service(s.pid, self.service)))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command, Stdio};

    use super::*;

    const SERVICE: ServiceId = ServiceId::from_bytes([7; 16]);

    fn sleeper() -> Child {
        let mut command = Command::new("sleep");
        command.arg("1000").stdin(Stdio::null()).process_group(0);
        command.spawn().expect("sleep runs")
    }

    #[test]
    fn a_name_full_of_brackets_does_not_mislead() {
        let text = b"42 (a) R 9 (b) S 1 42 40 0 -1 4194304 101 0 0 0 0 0 0 0 20 0 1 0 145388 1 2";
        let stat = parse(text).expect("parses");
        assert_eq!((stat.pid, stat.state, stat.group, stat.start_ticks), (42, b'S', 42, 145_388));
        for cut in 0..text.len() - 12 {
            assert_eq!(parse(&text[..cut]), None, "cut at {cut}");
        }
    }

    #[test]
    fn another_start_time_proves_that_the_pid_was_used_again() {
        let mut child = sleeper();
        let ours = ProcessGroup::led_by(SERVICE, child.id()).expect("leads its group");
        let reused = ProcessGroup { start_ticks: ours.start_ticks - 1, ..ours };
        assert_eq!(reused.signal(Signal::KILL).expect("no error"), Sent::NothingOfOurs);
        assert!(reused.is_gone() && !reused.is_frozen());
        assert!(child.try_wait().expect("asks").is_none(), "the stranger runs on");
        assert_eq!(ours.signal(Signal::KILL).expect("kills"), Sent::Delivered);
        child.wait().expect("ends");
        assert_eq!(ours.signal(Signal::KILL).expect("no error"), Sent::NothingOfOurs);
    }

    #[test]
    fn numbers_that_mean_everyone_are_never_signalled() {
        for leader in [0, 1, u32::MAX] {
            let group = ProcessGroup { service: SERVICE, leader, start_ticks: 0 };
            assert_eq!(group.signal(Signal::KILL).expect("no error"), Sent::NothingOfOurs);
        }
        assert_eq!(ProcessGroup::led_by(SERVICE, 1), None);
    }

    #[test]
    fn a_leader_that_left_marked_members_still_proves_its_group() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 & exec true"]).stdin(Stdio::null()).process_group(0);
        command.env(mark::SERVICE, SERVICE.to_string());
        let mut child = command.spawn().expect("sh runs");
        let ours = ProcessGroup::led_by(SERVICE, child.id()).expect("leads");
        child.wait().expect("leader ends and is reaped");
        let other = ProcessGroup { service: ServiceId::from_bytes([8; 16]), ..ours };
        assert_eq!(other.signal(Signal::KILL).expect("no error"), Sent::NothingOfOurs);
        assert!(!ours.is_gone(), "the sleep is left");
        assert_eq!(ours.signal(Signal::KILL).expect("kills"), Sent::Delivered);
        while !ours.is_gone() {
            std::thread::yield_now();
        }
    }
}

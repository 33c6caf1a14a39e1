//! Control groups for services, where this process may make them: as root, with the unified
//! hierarchy (version 2) or the freezer's (version 1) mounted. What a service forks is in its group
//! too, though it left its session, and is frozen and killed with it; only who may write into the
//! hierarchy itself can leave.
//!
//! A service's group is found by the guard's runtime folder and its first process, so that engine
//! and guard, who never talk of it, mean the same one.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal};

use super::ProcessGroup;

/// Where the kernel says what is mounted.
const MOUNTS: &str = "/proc/self/mountinfo";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    /// The freezer's hierarchy.
    One,
    /// The unified hierarchy.
    Two,
}

/// The groups of one guard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroups {
    folder: PathBuf,
    version: Version,
}

/// One service's group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    folder: PathBuf,
    version: Version,
}

impl Cgroups {
    /// The groups of the guard with this runtime folder; `None` where none can be made: then
    /// services are stopped by signals.
    #[must_use]
    pub fn open(guard: &Path) -> Option<Self> {
        let mounts = fs::read_to_string(MOUNTS).ok()?;
        let below = |(version, mount): (Version, PathBuf)| Self::below(version, &mount, guard);
        let found = hierarchies(&mounts).into_iter().map(below).find(Self::works)?;
        found.sweep();
        Some(found)
    }

    /// Takes away what services that are gone have left, and the folder if that was all.
    pub fn sweep(&self) {
        let left = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        // One with something in it is not removed.
        left.for_each(|entry| drop(fs::remove_dir(entry.path())));
        self.close();
    }

    fn below(version: Version, mount: &Path, guard: &Path) -> Self {
        let name = blake3::hash(guard.as_os_str().as_encoded_bytes()).to_hex();
        Self { folder: mount.join(format!("flocker-{}", &name[..12])), version }
    }

    /// Whether a group can be made, frozen and thawed here.
    fn works(&self) -> bool {
        let probe = Cgroup {
            folder: self.folder.join(format!("probe-{}", std::process::id())),
            version: self.version,
        };
        if fs::create_dir_all(&probe.folder).is_err() {
            return false;
        }
        let works = probe.freeze().and_then(|()| probe.thaw()).is_ok();
        probe.remove();
        works
    }

    /// How services are frozen, for people.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self.version {
            Version::One => "cgroup v1 freezer",
            Version::Two => "cgroup v2",
        }
    }

    fn named(&self, group: &ProcessGroup) -> Cgroup {
        let ProcessGroup { service, leader, start_ticks } = group;
        let name = format!("{service}-{leader}-{start_ticks}");
        Cgroup { folder: self.folder.join(name), version: self.version }
    }

    /// The group of this service's processes, if they are in one.
    #[must_use]
    pub fn of(&self, group: &ProcessGroup) -> Option<Cgroup> {
        Some(self.named(group)).filter(|cgroup| cgroup.folder.is_dir())
    }

    /// Puts the leader, and with it all that it forks from now on, into a group of its own.
    ///
    /// # Errors
    /// What the system said.
    pub fn enclose(&self, group: &ProcessGroup) -> io::Result<Cgroup> {
        let cgroup = self.named(group);
        fs::create_dir_all(&cgroup.folder)?;
        let added = cgroup.say("cgroup.procs", &group.leader.to_string());
        // One that is there and empty would be frozen and killed in its place.
        added.inspect_err(|_why| cgroup.remove()).map(|()| cgroup)
    }

    /// Takes the folder away once it has no group any more.
    pub fn close(&self) {
        fs::remove_dir(&self.folder).ok();
    }
}

impl Cgroup {
    /// Begins to freeze it. [`Self::is_frozen`] says when it is.
    ///
    /// # Errors
    /// What the system said.
    pub fn freeze(&self) -> io::Result<()> {
        self.hold(true)
    }

    /// Lets it run on.
    ///
    /// # Errors
    /// What the system said.
    pub fn thaw(&self) -> io::Result<()> {
        self.hold(false)
    }

    /// Writes a word into one of its files, which the kernel made.
    fn say(&self, file: &str, word: &str) -> io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).open(self.folder.join(file))?;
        file.write_all(word.as_bytes())
    }

    fn hold(&self, frozen: bool) -> io::Result<()> {
        match (self.version, frozen) {
            (Version::One, true) => self.say("freezer.state", "FROZEN"),
            (Version::One, false) => self.say("freezer.state", "THAWED"),
            (Version::Two, true) => self.say("cgroup.freeze", "1"),
            (Version::Two, false) => self.say("cgroup.freeze", "0"),
        }
    }

    /// Whether the kernel says that nothing in it runs.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        let (file, line) = match self.version {
            Version::One => ("freezer.state", "FROZEN"),
            Version::Two => ("cgroup.events", "frozen 1"),
        };
        let text = fs::read_to_string(self.folder.join(file)).unwrap_or_default();
        text.lines().any(|found| found == line)
    }

    /// Kills all that is in it. It may have to be said again until nothing is left.
    ///
    /// # Errors
    /// What the system said.
    pub fn kill(&self) -> io::Result<()> {
        if self.version == Version::Two {
            match self.say("cgroup.kill", "1") {
                // Before Linux 5.14 there is no such file.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                outcome => return outcome,
            }
        }
        // Frozen, it forks no more; and what is in its list is nobody else's.
        self.freeze()?;
        for pid in self.pids()? {
            let pid = i32::try_from(pid).ok().filter(|pid| *pid > 1).and_then(Pid::from_raw);
            if let Some(pid) = pid {
                rustix::process::kill_process(pid, Signal::KILL).ok();
            }
        }
        self.thaw()
    }

    /// The processes in it.
    ///
    /// # Errors
    /// What the system said.
    pub fn pids(&self) -> io::Result<Vec<u32>> {
        let text = fs::read_to_string(self.folder.join("cgroup.procs"))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        match self.pids() {
            Ok(pids) => pids.is_empty(),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }

    /// Takes it away, if nothing is in it.
    pub fn remove(&self) {
        fs::remove_dir(&self.folder).ok();
    }
}

/// Whether this process is in a group that the kernel says is frozen, whoever made it.
#[must_use]
pub fn is_frozen(pid: u32) -> bool {
    let Ok(groups) = fs::read_to_string(format!("/proc/{pid}/cgroup")) else { return false };
    let Ok(mounts) = fs::read_to_string(MOUNTS) else { return false };
    hierarchies(&mounts).into_iter().any(|(version, mount)| {
        let path = groups.lines().find_map(|line| path_in(version, line));
        path.is_some_and(|path| {
            let folder = mount.join(path.trim_start_matches('/'));
            Cgroup { folder, version }.is_frozen()
        })
    })
}

/// Reads one line of a process's groups: `0::/a` or `7:freezer:/a`.
fn path_in(version: Version, line: &str) -> Option<&str> {
    let mut parts = line.splitn(3, ':');
    let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    let is_it = match version {
        Version::One => controllers.split(',').any(|controller| controller == "freezer"),
        Version::Two => number == "0" && controllers.is_empty(),
    };
    is_it.then_some(path)
}

/// The hierarchies that can freeze, the better one first.
fn hierarchies(mountinfo: &str) -> Vec<(Version, PathBuf)> {
    let mut found: Vec<_> = mountinfo.lines().filter_map(hierarchy).collect();
    found.sort_by_key(|(version, _)| *version == Version::One);
    found
}

/// Reads one line: `36 35 0:31 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw`.
fn hierarchy(line: &str) -> Option<(Version, PathBuf)> {
    let (before, after) = line.split_once(" - ")?;
    let mount = unescaped(before.split(' ').nth(4)?);
    let mut after = after.split(' ');
    let kind = after.next()?;
    let options = after.nth(1)?;
    match kind {
        "cgroup2" => Some((Version::Two, mount)),
        "cgroup" if options.split(',').any(|option| option == "freezer") => {
            Some((Version::One, mount))
        }
        _ => None,
    }
}

/// The kernel writes a space, a tab, a line's end and a backslash as octal numbers.
fn unescaped(path: &str) -> PathBuf {
    let coded = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    PathBuf::from(
        coded.iter().fold(path.to_owned(), |text, (code, plain)| text.replace(code, plain)),
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command, Stdio};
    use std::time::Duration;

    use flocker_base::{Clock as _, ServiceId, SystemClock};

    use super::*;
    use crate::engine::group::Stat;

    #[test]
    fn the_unified_hierarchy_is_preferred_and_others_are_no_choice() {
        let text = "24 1 0:22 / /proc rw - proc proc rw\n\
                    30 24 0:26 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu\n\
                    31 24 0:27 / /sys/fs/cgroup/a\\040b rw - cgroup cgroup rw,freezer\n\
                    32 24 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                    nonsense\n - \n";
        let expected = [
            (Version::Two, PathBuf::from("/sys/fs/cgroup/unified")),
            (Version::One, PathBuf::from("/sys/fs/cgroup/a b")),
        ];
        assert_eq!(hierarchies(text), expected);
        assert!(hierarchies("").is_empty());
        let line = |version| path_in(version, "7:cpu,freezer:/a:b");
        assert_eq!((line(Version::One), line(Version::Two)), (Some("/a:b"), None));
        assert_eq!(path_in(Version::Two, "0::/x"), Some("/x"));
    }

    fn until(what: &str, mut is_so: impl FnMut() -> bool) {
        let deadline = SystemClock.boot() + Duration::from_secs(10);
        while !is_so() {
            assert!(SystemClock.boot() < deadline, "never: {what}");
            std::thread::yield_now();
        }
    }

    /// A shell whose child leaves its session, as a daemon does.
    fn family() -> (Child, ProcessGroup) {
        let mut command = Command::new("sh");
        command.args(["-c", "read go; setsid sleep 1000 & sleep 1000"]);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.process_group(0).spawn().expect("sh runs");
        let service = ServiceId::from_bytes([7; 16]);
        let group = ProcessGroup::led_by(service, child.id()).expect("leads its group");
        (child, group)
    }

    /// Leaves nothing running, whatever fails.
    struct Ended(Cgroup);

    impl Drop for Ended {
        fn drop(&mut self) {
            self.0.kill().ok();
        }
    }

    /// Needs root and a mounted hierarchy; each that is there is tried.
    #[test]
    fn a_family_is_frozen_and_killed_whole_though_a_child_left_its_session() {
        let mounts = fs::read_to_string(MOUNTS).expect("readable");
        let guard = tempfile::tempdir().expect("a folder");
        let usable: Vec<_> = hierarchies(&mounts)
            .into_iter()
            .map(|(version, mount)| Cgroups::below(version, &mount, guard.path()))
            .filter(Cgroups::works)
            .collect();
        let may = rustix::process::geteuid().is_root() && !hierarchies(&mounts).is_empty();
        assert!(!may || !usable.is_empty(), "root may make no control group: {mounts}");
        for cgroups in usable {
            let (mut child, group) = family();
            assert_eq!(cgroups.of(&group), None);
            let cgroup = cgroups.enclose(&group).expect("encloses");
            let _ended = Ended(cgroup.clone());
            assert_eq!(cgroups.of(&group), Some(cgroup.clone()));
            drop(child.stdin.take());
            let left = |pid: &u32| Stat::read(*pid).is_some_and(|s| s.group != group.leader);
            until("three processes, of which one has left the process group", || {
                let pids = cgroup.pids().expect("listed");
                pids.len() == 3 && pids.iter().filter(|pid| left(pid)).count() == 1
            });
            let pids = cgroup.pids().expect("listed");
            assert!(!cgroup.is_frozen());
            cgroup.freeze().expect("freezes");
            until("frozen", || cgroup.is_frozen());
            assert!(pids.iter().all(|pid| is_frozen(*pid)) && !is_frozen(std::process::id()));
            cgroup.thaw().expect("thaws");
            until("thawed", || !cgroup.is_frozen());
            // Killed from the frozen state, and without it.
            cgroup.freeze().expect("freezes");
            until("frozen", || cgroup.is_frozen());
            until("killed", || {
                cgroup.kill().expect("kills");
                child.try_wait().expect("asks").is_some() && cgroup.is_empty()
            });
            cgroup.remove();
            assert_eq!(cgroups.of(&group), None, "{}", cgroups.name());
            cgroups.close();
            assert!(!cgroups.folder.exists());
        }
    }
}

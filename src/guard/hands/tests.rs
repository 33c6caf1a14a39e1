//! Whether what stands still is told from what moves, without a control group.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use flocker_base::{BootTime, Clock as _, Epoch, ServiceId, SystemClock};

use super::*;

const SERVICE: ServiceId = ServiceId::from_bytes([9; 16]);
const EPOCH: Epoch = Epoch::new(0, 4);
const HANDS: Hands = Hands { cgroups: None };

/// A shell that runs this under the marks of a service, and is to be killed when dropped.
struct Marked(Child);

impl Marked {
    fn start(script: &str, folder: &Path) -> (Self, Protected) {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        command.env(mark::GUARD, folder).env(mark::SERVICE, SERVICE.to_string());
        let child = command.env(mark::EPOCH, EPOCH.to_string()).spawn().expect("sh runs");
        let group = ProcessGroup::led_by(SERVICE, child.id()).expect("leads");
        let (freeze_at, deadline) = (BootTime::ZERO, BootTime::ZERO);
        (Self(child), Protected { group, epoch: EPOCH, freeze_at, deadline })
    }
}

impl Drop for Marked {
    fn drop(&mut self) {
        let group = ProcessGroup::led_by(SERVICE, self.0.id());
        drop(group.map(|group| group.signal(Signal::KILL)));
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn until(is_so: impl Fn() -> bool) {
    let deadline = SystemClock.boot() + Duration::from_secs(10);
    while !is_so() {
        assert!(SystemClock.boot() < deadline, "never");
        std::thread::yield_now();
    }
}

#[test]
fn what_is_stopped_stands_still_and_what_runs_or_is_gone_does_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut running, protected) = Marked::start("sleep 1000 & wait", folder.path());
    let moving = || HANDS.moving(&[protected], folder.path());
    assert_eq!(moving(), [protected]);
    HANDS.freeze(&protected.group).expect("stops");
    until(|| moving().is_empty());
    assert_eq!(HANDS.thaw(&protected.group, true, false).expect("kept"), Sent::NothingOfOurs);
    assert_eq!(moving(), []);
    HANDS.thaw(&protected.group, false, false).expect("continues");
    until(|| moving() == [protected]);
    HANDS.kill(&protected.group).expect("kills");
    running.0.wait().expect("ended");
    assert_eq!(moving(), [protected], "what is gone is not seen to stand still");
}

#[test]
fn a_child_that_left_its_group_and_runs_counts_as_moving() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_running, protected) = Marked::start("setsid sleep 1000 & wait", folder.path());
    let child = || {
        let mut all = every_stat().expect("readable");
        all.find(|stat| {
            stat.group != protected.group.leader
                && mark::is_of_start(stat.pid, folder.path(), SERVICE, EPOCH)
        })
    };
    until(|| child().is_some());
    HANDS.freeze(&protected.group).expect("stops");
    until(|| protected.group.is_frozen());
    assert_eq!(HANDS.moving(&[protected], folder.path()), [protected]);
    mark::kill_strays(folder.path(), &[(SERVICE, EPOCH)]).expect("scans");
}

//! An interrupted demo leaves no process, and no file outside its own folder, at whatever instant
//! it is interrupted. Real processes: what is waited for is polled, with a deadline.

use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Instants after the start, spread over the demo's first steps.
const INSTANTS_MS: [u64; 5] = [5, 400, 1_500, 3_000, 6_000];
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn sigint_ends_the_demo_and_all_that_it_started() {
    for (round, after) in INSTANTS_MS.into_iter().enumerate() {
        let round = Round::start(&format!("int-{round}"));
        pause(after);
        let (code, said) = round.end(Signal::INT);
        // Before it listens for signals it dies of it; after that it ends in order.
        assert!(matches!(code, Some(130) | None), "after {after} ms: {code:?}\n{said}");
    }
}

#[test]
fn a_killed_demo_takes_its_agents_along() {
    for (round, after) in [800, 4_000].into_iter().enumerate() {
        let round = Round::start(&format!("kill-{round}"));
        pause(after);
        round.end(Signal::KILL);
    }
}

struct Round {
    folder: tempfile::TempDir,
    demo: Child,
}

impl Round {
    fn start(name: &str) -> Self {
        let folder = tempfile::Builder::new().prefix(name).tempdir().expect("a folder");
        let demo = Command::new(env!("CARGO_BIN_EXE_flocker"))
            .args(["demo", "--once", "--dir"])
            .arg(folder.path().join("demo"))
            .env("TMPDIR", folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the demo starts");
        Self { folder, demo }
    }

    /// Sends the signal and checks what is left. Answers the exit code and what was said.
    fn end(mut self, signal: Signal) -> (Option<i32>, String) {
        let pid = i32::try_from(self.demo.id()).ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, signal).expect("a signal to our own child");
        let status = self.demo.wait().expect("it ends");
        let mut said = String::new();
        let folder = self.folder.path();
        let deadline = now() + PATIENCE;
        while let Some(left) = processes_of(folder).first() {
            assert!(now() < deadline, "still running: {left}");
            pause(50);
        }
        self.demo.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
        let beside: Vec<_> = std::fs::read_dir(folder)
            .expect("the folder")
            .map(|e| e.expect("an entry").file_name())
            .filter(|name| name != "demo")
            .collect();
        assert!(beside.is_empty(), "files outside its folder: {beside:?}");
        (status.code(), said)
    }
}

/// Every process, not a zombie, that names this folder in its arguments or environment.
fn processes_of(folder: &Path) -> Vec<String> {
    let wanted = folder.display().to_string();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc") {
        let path = entry.expect("an entry").path();
        let read = |name: &str| {
            let bytes = std::fs::read(path.join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).replace('\0', " ")
        };
        let (arguments, environment) = (read("cmdline"), read("environ"));
        if arguments.contains(&wanted) || environment.contains(&wanted) {
            found.push(format!("{} {arguments}", path.display()));
        }
    }
    found
}

#[expect(clippy::disallowed_methods, reason = "real processes run on real time")]
fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "real processes run on real time")]
fn pause(millis: u64) {
    std::thread::sleep(Duration::from_millis(millis));
}

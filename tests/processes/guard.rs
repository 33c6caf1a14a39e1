//! The guard as a real process: it acts though its agent is dead or stopped, and comes back.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use flocker::engine::process::{ProcessConfig, ProcessEngine};
use flocker::engine::{Engine, Hold, Instance, ProcessGroup};
use flocker::guard::wire::Request;
use flocker::guard::{
    ClientConfig, Extension, Guard, GuardError, GuardOptions, GuardStatus, Phase, Protected,
};
use flocker_base::{BootTime, Incarnation, SystemClock};
use rustix::process::Signal;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::engine::{config, launch};
use crate::stand_in::StandIn;
use crate::waiting::{Sandbox, exe, is_stopped, now, signal, state_of, until};

/// A kill may come this late on a busy machine. Never before the deadline.
const SLACK: Duration = Duration::from_secs(2);

fn guard_dir(folder: &Path) -> PathBuf {
    folder.join("guard")
}

/// The guard's own pid, from its lock file.
fn guard_pid(folder: &Path) -> Option<u32> {
    let text = std::fs::read_to_string(guard_dir(folder).join("guard.lock")).ok()?;
    let pid = text.split(' ').next()?.parse().ok()?;
    state_of(pid).map(|_| pid)
}

fn is_gone(pid: u32) -> bool {
    state_of(pid).is_none()
}

async fn guard_leaves(folder: &Path) {
    let socket = guard_dir(folder).join("guard.sock");
    until("the guard leaves by itself", || guard_pid(folder).is_none() && !socket.exists()).await;
}

/// An agent within the test: engine, handle, and the link on a task of its own.
struct Agent {
    engine: ProcessEngine,
    guard: Guard,
    links: JoinSet<Result<(), GuardError>>,
}

impl Agent {
    /// Its guard kills at the deadline.
    async fn new(folder: &Path, incarnation: u64) -> Self {
        Self::patient(folder, incarnation, Duration::ZERO, true).await
    }

    /// Its guard keeps what it froze in time for this long.
    async fn patient(
        folder: &Path,
        incarnation: u64,
        frozen_limit: Duration,
        enclose: bool,
    ) -> Self {
        let client = ClientConfig::new(exe(), guard_dir(folder), Incarnation(incarnation));
        let client = ClientConfig { frozen_limit, ..client };
        let (guard, link) = Guard::connect_or_spawn(client).await.expect("a guard");
        let mut links = JoinSet::new();
        links.spawn(link.run(CancellationToken::new()));
        let config = ProcessConfig { enclose, ..config(folder) };
        let engine = ProcessEngine::open(config, Arc::new(SystemClock), None);
        Self { engine: engine.expect("opens"), guard, links }
    }

    async fn service(&self, folder: &Path, service: u8) -> Instance {
        let wanted = launch(folder, service, &["sleep", "1000"]);
        self.engine.start(&wanted).await.expect("starts")
    }
}

fn protected(instance: &Instance, freeze_in: Duration, kill_in: Duration) -> Protected {
    Protected {
        group: ProcessGroup {
            service: instance.service,
            leader: instance.pid,
            start_ticks: instance.start_ticks,
        },
        epoch: instance.epoch,
        freeze_at: now() + freeze_in,
        deadline: now() + kill_in,
    }
}

const FAR: Duration = Duration::from_secs(3600);

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

async fn dies_at(pid: u32, deadline: BootTime) {
    until("the service is dead", || is_gone(pid)).await;
    let died = now();
    assert!(died >= deadline, "killed {:?} too early", deadline - died);
    assert!(died - deadline < SLACK, "killed {:?} late", died - deadline);
}

#[tokio::test]
async fn it_kills_at_the_deadline_though_the_agent_was_killed() {
    let folder = Sandbox::new();
    let mut stand_in = StandIn::start(folder.path()).await;
    let (pid, _) = stand_in.read().expect("runs");
    assert!(!is_gone(pid));
    stand_in.child.kill().expect("kills");
    stand_in.child.wait().expect("ends");
    let (_, deadline) = stand_in.read().expect("still written");
    until("the service is frozen first", || is_stopped(pid) || is_gone(pid)).await;
    dies_at(pid, deadline).await;
    guard_leaves(folder.path()).await;
}

#[tokio::test]
async fn it_kills_at_the_deadline_though_the_agent_was_stopped() {
    let folder = Sandbox::new();
    let stand_in = StandIn::start(folder.path()).await;
    let (pid, _) = stand_in.read().expect("runs");
    signal(stand_in.child.id(), Signal::STOP);
    until("the agent stands", || is_stopped(stand_in.child.id())).await;
    let (_, deadline) = stand_in.read().expect("still written");
    until("the service is frozen first", || is_stopped(pid)).await;
    dies_at(pid, deadline).await;
    signal(stand_in.child.id(), Signal::CONT);
}

#[tokio::test]
async fn an_extension_moves_the_deadline_and_thaws() {
    let folder = Sandbox::new();
    let agent = Agent::new(folder.path(), 1).await;
    let instance = agent.service(folder.path(), 1).await;
    let held = protected(&instance, ms(100), FAR);
    agent.guard.protect(held).await.expect("protects");
    until("it is frozen", || is_stopped(instance.pid)).await;
    signal(instance.pid, Signal::CONT);
    until("a thaw by someone else does not last", || is_stopped(instance.pid)).await;
    assert_eq!(agent.guard.list().await.expect("lists"), [(held, Phase::Frozen)]);
    let longer = Extension::of(&held, now() + FAR, now() + FAR * 2);
    assert_eq!(agent.guard.extend(vec![longer]).await.expect("extends"), []);
    until("it runs again", || !is_stopped(instance.pid)).await;
    let shorter = Extension::of(&held, now(), now());
    assert_eq!(agent.guard.extend(vec![shorter]).await.expect("no error"), []);
    let list = agent.guard.list().await.expect("lists");
    assert_eq!(list[0].0.deadline, longer.deadline, "it moves only forward");
    agent.guard.release(instance.service).await.expect_err("what runs stays held");
    agent.engine.kill(instance.service).await.expect("kills");
    agent.guard.release(instance.service).await.expect("releases");
    assert_eq!(agent.guard.list().await.expect("lists"), []);
    drop(agent);
    guard_leaves(folder.path()).await;
}

#[tokio::test]
async fn what_stands_still_past_its_deadline_goes_on_if_its_lease_is_renewed_after_all() {
    for enclose in [true, false] {
        let folder = Sandbox::new();
        let agent = Agent::patient(folder.path(), 1, FAR, enclose).await;
        let instance = agent.service(folder.path(), 1).await;
        let held = protected(&instance, ms(100), ms(400));
        agent.guard.protect(held).await.expect("protects");
        until("its deadline has passed", || now() > held.deadline + ms(300)).await;
        assert!(is_stopped(instance.pid), "it stands still");
        assert_eq!(agent.guard.list().await.expect("lists"), [(held, Phase::Frozen)]);
        assert!(agent.engine.instances().await[0].frozen);
        let other = Extension {
            epoch: instance.epoch.next(),
            ..Extension::of(&held, now() + FAR, now() + FAR)
        };
        assert_eq!(agent.guard.extend(vec![other]).await.expect("asks"), [instance.service]);
        assert!(is_stopped(instance.pid), "another epoch's lease is no reason");
        let renewed = Extension::of(&held, now() + FAR, now() + FAR * 2);
        assert_eq!(agent.guard.extend(vec![renewed]).await.expect("extends"), []);
        until("it runs again", || !is_stopped(instance.pid)).await;
        agent.engine.kill(instance.service).await.expect("kills");
    }
}

#[tokio::test]
async fn it_stands_still_for_the_limit_and_no_longer_though_the_agent_is_gone() {
    for enclose in [true, false] {
        let folder = Sandbox::new();
        let agent = Agent::patient(folder.path(), 1, ms(1500), enclose).await;
        let instance = agent.service(folder.path(), 1).await;
        let held = protected(&instance, ms(100), ms(400));
        agent.guard.protect(held).await.expect("protects");
        drop(agent);
        until("its deadline has passed", || now() > held.deadline + ms(100)).await;
        assert!(is_stopped(instance.pid), "it stands still");
        dies_at(instance.pid, held.freeze_at + ms(1500)).await;
        guard_leaves(folder.path()).await;
    }
}

#[tokio::test]
async fn a_service_that_is_held_frozen_is_killed_at_its_agents_word() {
    for enclose in [true, false] {
        let folder = Sandbox::new();
        let agent = Agent::patient(folder.path(), 1, FAR, enclose).await;
        let instance = agent.service(folder.path(), 1).await;
        agent.guard.protect(protected(&instance, ms(0), ms(200))).await.expect("protects");
        until("it stands still", || is_stopped(instance.pid)).await;
        agent.engine.kill(instance.service).await.expect("kills");
        agent.guard.release(instance.service).await.expect("releases");
        drop(agent);
        guard_leaves(folder.path()).await;
    }
}

#[tokio::test]
async fn the_agent_replaces_a_guard_that_died_or_hangs_and_nothing_is_lost() {
    let folder = Sandbox::new();
    let agent = Agent::new(folder.path(), 1).await;
    let instance = agent.service(folder.path(), 1).await;
    agent.guard.protect(protected(&instance, FAR, FAR)).await.expect("protects");
    for how in [Signal::KILL, Signal::STOP] {
        table_is_written(folder.path(), &instance).await;
        let old = guard_pid(folder.path()).expect("runs");
        let mut status = agent.guard.status();
        status.mark_unchanged();
        signal(old, how);
        until("another guard is there", || {
            guard_pid(folder.path()).is_some_and(|new| new != old) && is_gone(old)
        })
        .await;
        until("and is said to live", || *status.borrow() == GuardStatus::Live).await;
        assert!(status.has_changed().expect("open"), "it was down in between");
        let held = agent.guard.list().await.expect("lists");
        assert_eq!(held.len(), 1, "protected again");
        assert!(!is_gone(instance.pid) && !is_stopped(instance.pid));
    }
    let last = protected(&instance, FAR, FAR * 3);
    assert_eq!(
        agent
            .guard
            .extend(vec![Extension::of(&last, last.freeze_at, last.deadline)])
            .await
            .expect("extends"),
        []
    );
}

fn start_guard(folder: &Path) -> std::process::Child {
    let options = GuardOptions {
        runtime_dir: guard_dir(folder),
        linger: ms(200),
        frozen_limit: Duration::ZERO,
    };
    let mut command = Command::new(exe());
    command.arg("guard").args(options.to_arguments()).stderr(Stdio::null());
    command.spawn().expect("starts")
}

/// A guard that dies before that is followed by one that kills what it does not know.
async fn table_is_written(folder: &Path, instance: &Instance) {
    let table = guard_dir(folder).join("guard.table");
    let service = *instance.service.as_bytes();
    until("the table is written", || {
        std::fs::read(&table).is_ok_and(|t| t.windows(16).any(|w| w == service))
    })
    .await;
}

/// An agent and its guard die; the service is left.
async fn orphaned(folder: &Path, freeze_in: Duration, kill_in: Duration) -> (Instance, BootTime) {
    let agent = Agent::new(folder, 1).await;
    let instance = agent.service(folder, 1).await;
    let held = protected(&instance, freeze_in, kill_in);
    agent.guard.protect(held).await.expect("protects");
    table_is_written(folder, &instance).await;
    drop(agent);
    let guard = guard_pid(folder).expect("runs");
    signal(guard, Signal::KILL);
    until("the guard is dead", || is_gone(guard)).await;
    assert!(!is_gone(instance.pid));
    (instance, held.deadline)
}

#[tokio::test]
async fn a_guard_that_follows_another_kills_by_its_table() {
    let folder = Sandbox::new();
    let (instance, deadline) = orphaned(folder.path(), ms(1200), ms(1500)).await;
    let mut guard = start_guard(folder.path());
    dies_at(instance.pid, deadline).await;
    assert!(guard.wait().expect("ends").success(), "it leaves when nothing is held");
    guard_leaves(folder.path()).await;
}

#[tokio::test]
async fn a_guard_with_a_damaged_table_kills_all_that_is_managed_and_nothing_else() {
    let folder = Sandbox::new();
    let mut stranger = Command::new("sleep").arg("1000").spawn().expect("runs");
    let (instance, _) = orphaned(folder.path(), FAR, FAR).await;
    let table = guard_dir(folder.path()).join("guard.table");
    let mut bytes = std::fs::read(&table).expect("reads");
    bytes[20] ^= 1;
    flocker_base::durable::write_plain(&table, &bytes, 0o600).expect("writes");
    let mut guard = start_guard(folder.path());
    until("the service is dead", || is_gone(instance.pid)).await;
    assert!(stranger.try_wait().expect("asks").is_none(), "the stranger runs on");
    stranger.kill().expect("kills");
    stranger.wait().expect("ends");
    assert!(guard.wait().expect("ends").success());
}

#[tokio::test]
async fn a_process_that_is_not_the_one_named_is_refused_and_untouched() {
    let folder = Sandbox::new();
    let agent = Agent::new(folder.path(), 1).await;
    let instance = agent.service(folder.path(), 1).await;
    let mut reused = protected(&instance, ms(0), ms(0));
    reused.group.start_ticks -= 1;
    let refused = agent.guard.protect(reused).await.expect_err("refused").to_string();
    assert!(refused.contains("another process"), "{refused}");
    for leader in [0, 1, std::process::id(), u32::MAX] {
        let mut wrong = protected(&instance, ms(0), ms(0));
        wrong.group.leader = leader;
        agent.guard.protect(wrong).await.expect_err("refused");
    }
    assert_eq!(agent.guard.list().await.expect("lists"), []);
    assert!(!is_gone(instance.pid));
    agent.engine.kill(instance.service).await.expect("kills");
}

/// What the guard has frozen for its lease does not run for a moment, whatever the engine lets go of.
#[tokio::test]
async fn the_engine_does_not_thaw_what_the_guard_froze() {
    let folder = Sandbox::new();
    let agent = Agent::new(folder.path(), 1).await;
    let beats = folder.path().join("beats");
    let script = format!("while :; do echo . >> {}; sleep 0.001; done", beats.display());
    let wanted = launch(folder.path(), 1, &["sh", "-c", &script]);
    let instance = agent.engine.start(&wanted).await.expect("starts");
    until("it beats", || std::fs::metadata(&beats).is_ok_and(|b| b.len() > 10)).await;
    agent.guard.protect(protected(&instance, ms(50), FAR)).await.expect("protects");
    until("it is frozen", || is_stopped(instance.pid)).await;
    let length = || std::fs::metadata(&beats).expect("there").len();
    let before = length();
    agent.engine.disown(instance.service, Hold::Lease).expect("lets go");
    agent.engine.disown(instance.service, Hold::Snapshot).expect("lets go");
    if flocker::engine::cgroup::is_frozen(instance.pid) {
        // By signals it holds services for snapshots alone, and they do not reach what is frozen.
        agent.engine.thaw(instance.service, Hold::Lease).expect("thaws");
        agent.engine.thaw(instance.service, Hold::Snapshot).expect("thaws");
    }
    for _ in 0..50 {
        assert_eq!(length(), before, "it ran");
        tokio::time::sleep(ms(4)).await;
    }
    agent.engine.kill(instance.service).await.expect("kills");
}

/// A plain file in a watchdog's place.
#[tokio::test]
async fn a_watchdog_is_fed_until_nothing_is_held_and_by_the_next_guard_too() {
    let folder = Sandbox::new();
    let device = folder.path().join("watchdog");
    let client = ClientConfig::new(exe(), guard_dir(folder.path()), Incarnation(1));
    let client = ClientConfig { watchdog: Some(device.clone()), linger: ms(300), ..client };
    let refused = Guard::connect_or_spawn(client.clone()).await.map(|_| ());
    let refused = refused.expect_err("there is no such device").to_string();
    assert!(refused.contains("cannot open the watchdog"), "{refused}");
    guard_leaves(folder.path()).await;

    flocker_base::durable::write(&device, 1, b"").expect("a file");
    let (guard, link) = Guard::connect_or_spawn(client).await.expect("a guard");
    let stop = CancellationToken::new();
    let mut links = JoinSet::new();
    links.spawn(link.run(stop.clone()));
    let food = || std::fs::read(&device).expect("reads").iter().filter(|b| **b == 0).count();
    let before = food();
    until("it is fed", || food() > before + 3).await;
    let pid = guard_pid(folder.path()).expect("runs");
    signal(pid, Signal::KILL);
    until("another is there", || guard_pid(folder.path()).is_some_and(|p| p != pid)).await;
    guard.list().await.expect("it answers");
    until("that one stops it at its end", || {
        stop.cancel();
        std::fs::read(&device).expect("reads").contains(&b'V')
    })
    .await;
    links.join_next().await.expect("one").expect("no panic").expect("ends in order");
}

#[tokio::test]
async fn only_the_newest_agent_is_obeyed() {
    let folder = Sandbox::new();
    let mut old = Agent::new(folder.path(), 1).await;
    let instance = old.service(folder.path(), 1).await;
    let held = protected(&instance, FAR, FAR);
    old.guard.protect(held).await.expect("protects");
    let new = Agent::new(folder.path(), 2).await;
    let longer = Extension::of(&held, now() + FAR, now() + FAR * 2);
    let refused = old.guard.extend(vec![longer]).await;
    assert!(matches!(refused, Err(GuardError::Superseded(_))), "{refused:?}");
    let ended = old.links.join_next().await.expect("one").expect("no panic");
    assert!(matches!(ended, Err(GuardError::Superseded(_))), "{ended:?}");
    assert_eq!(*old.guard.status().borrow(), GuardStatus::Superseded);
    assert_eq!(new.guard.list().await.expect("lists")[0].0.deadline, held.deadline);
    let client = ClientConfig::new(exe(), guard_dir(folder.path()), Incarnation(1));
    let late = Guard::connect_or_spawn(client).await.map(|_| ());
    assert!(matches!(late, Err(GuardError::Superseded(_))), "{late:?}");
    assert_eq!(new.guard.extend(vec![longer]).await.expect("extends"), []);
    new.engine.kill(instance.service).await.expect("kills");
}

#[tokio::test]
async fn hostile_bytes_at_the_socket_change_nothing() {
    let folder = Sandbox::new();
    let agent = Agent::new(folder.path(), 1).await;
    let instance = agent.service(folder.path(), 1).await;
    let held = protected(&instance, FAR, FAR);
    agent.guard.protect(held).await.expect("protects");
    let pid = guard_pid(folder.path());
    let socket = guard_dir(folder.path()).join("guard.sock");
    let connect = || {
        let stream = UnixStream::connect(&socket).expect("connects");
        stream.set_read_timeout(Some(SLACK * 5)).expect("sets");
        stream
    };
    let without_hello = Request::Release(instance.service).to_frame();
    let closing: [&[u8]; 6] = [
        &u32::MAX.to_le_bytes(),
        &[0, 0, 0, 0],
        &[2, 0, 0, 0, 9, 9],
        &[2, 0, 0, 0, 1, 200],
        b"GET / HTTP/1.1\r\nHost: guard\r\n\r\n",
        &[6, 0, 0, 0, 1, 3, 255, 255, 255, 255],
    ];
    for bytes in closing {
        let mut stream = connect();
        stream.write_all(bytes).expect("sends");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok();
        assert_eq!(answer, b"", "closed without a word: {bytes:?}");
    }
    let mut stream = connect();
    stream.write_all(&without_hello).expect("sends");
    let mut answer = [0; 6];
    stream.read_exact(&mut answer).expect("answers");
    assert_eq!(answer[5], 130, "refused");
    let half: Vec<UnixStream> = (0..100)
        .map(|_| {
            let mut stream = connect();
            stream.write_all(&without_hello[..10]).ok();
            stream
        })
        .collect();
    assert_eq!(agent.guard.list().await.expect("answers all the same"), [(held, Phase::Running)]);
    drop(half);
    assert_eq!(guard_pid(folder.path()), pid, "it is the same guard");
    assert!(!is_gone(instance.pid));
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(&socket).expect("is there").permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    agent.engine.kill(instance.service).await.expect("kills");
}

#[tokio::test]
async fn one_guard_a_folder_and_it_leaves_when_it_is_not_needed() {
    let folder = Sandbox::new();
    let agent = Agent::new(folder.path(), 1).await;
    let pid = guard_pid(folder.path()).expect("runs");
    assert!(!start_guard(folder.path()).wait().expect("ends").success(), "the second is refused");
    assert_eq!(guard_pid(folder.path()), Some(pid));
    drop(agent);
    guard_leaves(folder.path()).await;
    let again = Agent::new(folder.path(), 2).await;
    assert_eq!(again.guard.list().await.expect("a new one answers"), []);
}

#[tokio::test]
async fn a_folder_with_a_very_long_name_will_do() {
    let folder = Sandbox::new();
    let deep = folder.path().join("x".repeat(120)).join("y".repeat(120));
    std::fs::create_dir_all(&deep).expect("makes");
    let agent = Agent::new(&deep, 1).await;
    assert_eq!(agent.guard.list().await.expect("answers"), []);
    drop(agent);
    guard_leaves(&deep).await;
}

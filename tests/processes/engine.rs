//! The conformance suite on both engines, and what only real processes can show.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use flocker::engine::fake::{FakeEngine, NEVER_READY, NO_SUCH_PROGRAM};
use flocker::engine::process::{ProcessConfig, ProcessEngine};
use flocker::engine::{
    Ended, Engine, EngineError, Hold, Instance, Launch, LaunchGate, ProcessGroup,
};
use flocker_base::{Epoch, Name, ServiceId, SystemClock, VolumeId};
use rustix::process::Signal;

use crate::conformance::{self, Bench};
use crate::waiting::{LIMIT, Sandbox, exe, is_stopped, signal, state_of, until};

pub(crate) fn launch(folder: &Path, service: u8, command: &[&str]) -> Launch {
    Launch {
        service: service_id(service),
        name: Name::new(format!("service-{service}")).expect("name"),
        volume: VolumeId::from_bytes([service; 16]),
        epoch: Epoch::new(0, 7),
        command: command.iter().map(|c| (*c).to_owned()).collect(),
        environment: [("COLOUR".to_owned(), "blue".to_owned())].into(),
        folder: folder.to_owned(),
        host: IpAddr::from([127, 0, 0, 1]),
        health_path: None,
        stop_grace: Duration::from_secs(5),
    }
}

fn service_id(service: u8) -> ServiceId {
    let pid = std::process::id().to_le_bytes();
    let mut bytes = [service; 16];
    bytes[..4].copy_from_slice(&pid);
    ServiceId::from_bytes(bytes)
}

pub(crate) fn config(folder: &Path) -> ProcessConfig {
    ProcessConfig::new(folder.join("engine"), exe(), folder.join("guard"))
}

fn open(folder: &Path) -> ProcessEngine {
    ProcessEngine::open(config(folder), Arc::new(SystemClock), None).expect("opens")
}

struct OnProcesses {
    folder: Sandbox,
    engine: ProcessEngine,
}

impl Bench for OnProcesses {
    fn engine(&self) -> &dyn Engine {
        &self.engine
    }
    fn serving(&self, service: u8) -> Launch {
        let volume = self.folder.path().join(format!("volume-{service}"));
        std::fs::create_dir_all(&volume).expect("folder");
        let exe = exe();
        let command = [exe.to_str().expect("text"), "tally"];
        Launch { health_path: Some("/healthz".to_owned()), ..launch(&volume, service, &command) }
    }
    fn silent(&self, service: u8) -> Launch {
        launch(self.folder.path(), service, &["sleep", "1000"])
    }
    fn broken(&self, service: u8) -> Launch {
        launch(self.folder.path(), service, &[NO_SUCH_PROGRAM])
    }
    fn crash(&self, instance: &Instance) {
        signal(instance.pid, Signal::KILL);
    }
    fn runs(&self, instance: &Instance) -> bool {
        state_of(instance.pid).is_some_and(|s| s != b'T')
    }
}

struct OnFake {
    engine: FakeEngine,
}

impl Bench for OnFake {
    fn engine(&self) -> &dyn Engine {
        &self.engine
    }
    fn serving(&self, service: u8) -> Launch {
        launch(Path::new("/v"), service, &["serve"])
    }
    fn silent(&self, service: u8) -> Launch {
        launch(Path::new("/v"), service, &[NEVER_READY])
    }
    fn broken(&self, service: u8) -> Launch {
        launch(Path::new("/v"), service, &[NO_SUCH_PROGRAM])
    }
    fn crash(&self, instance: &Instance) {
        self.engine.crash(instance.service);
    }
    fn runs(&self, instance: &Instance) -> bool {
        self.engine.is_running(instance.service)
    }
}

#[tokio::test]
async fn the_fake_conforms() {
    conformance::run(&OnFake { engine: FakeEngine::new(Arc::new(SystemClock)) }).await;
}

#[tokio::test]
async fn the_process_engine_conforms() {
    let folder = Sandbox::new();
    let engine = open(folder.path());
    conformance::run(&OnProcesses { folder, engine }).await;
}

#[tokio::test]
async fn a_service_sees_its_own_environment_and_not_the_agents() {
    let folder = Sandbox::new();
    let engine = open(folder.path());
    let script =
        "env > env.new; readlink /proc/self/fd/0 >> env.new; mv env.new env; exec sleep 1000";
    let mut wanted = launch(folder.path(), 1, &["sh", "-c", script]);
    wanted.environment.insert("FLOCKER_EPOCH".to_owned(), "forged".to_owned());
    let instance = engine.start(&wanted).await.expect("starts");
    until("it wrote its environment", || folder.path().join("env").exists()).await;
    let seen = std::fs::read_to_string(folder.path().join("env")).expect("reads");
    let (service, port) = (wanted.service.to_string(), instance.address.port().to_string());
    for (name, value) in [
        ("HOST", "127.0.0.1"),
        ("PORT", &port),
        ("FLOCKER_SERVICE", &service),
        ("FLOCKER_VOLUME", folder.path().to_str().expect("text")),
        ("FLOCKER_EPOCH", "7"),
        ("COLOUR", "blue"),
    ] {
        assert!(seen.lines().any(|l| l == format!("{name}={value}")), "{name} in {seen}");
    }
    assert!(!seen.contains("CARGO"), "{seen}");
    assert!(seen.ends_with("/dev/null\n"), "{seen}");
    engine.kill(wanted.service).await.expect("kills");
}

#[tokio::test]
async fn every_process_of_the_group_is_frozen_and_killed_and_strays_too() {
    let folder = Sandbox::new();
    let engine = open(folder.path());
    let script = "sleep 1000 & echo $! > a; setsid sleep 1000 & echo $! > b; mv b c; wait";
    let wanted = launch(folder.path(), 1, &["sh", "-c", script]);
    let instance = engine.start(&wanted).await.expect("starts");
    let read = |name: &str| -> Option<u32> {
        std::fs::read_to_string(folder.path().join(name)).ok()?.trim().parse().ok()
    };
    until("its children run", || read("a").is_some() && read("c").is_some()).await;
    let (child, stray) = (read("a").expect("pid"), read("c").expect("pid"));
    until("the stray left the group", || {
        let stat = flocker::engine::group::Stat::read(stray).expect("runs");
        stat.group == stray
    })
    .await;
    engine.freeze(wanted.service, Hold::Lease).expect("freezes");
    assert!(is_stopped(instance.pid) && is_stopped(child));
    engine.kill(wanted.service).await.expect("kills");
    for pid in [instance.pid, child] {
        assert_eq!(state_of(pid), None, "nothing is left when kill returns");
    }
    until("the stray is gone", || state_of(stray).is_none()).await;
}

#[tokio::test]
async fn one_that_ignores_sigterm_is_killed_after_the_grace() {
    let folder = Sandbox::new();
    let engine = open(folder.path());
    let script = "trap '' TERM; touch trapped; while :; do sleep 1000; done";
    let wanted = launch(folder.path(), 1, &["sh", "-c", script]);
    engine.start(&wanted).await.expect("starts");
    until("it ignores SIGTERM", || folder.path().join("trapped").exists()).await;
    let exit = engine.stop(wanted.service, Duration::from_millis(100)).await.expect("ends");
    assert_eq!((exit.how, exit.asked), (Ended::Signal(9), true));
}

#[tokio::test]
async fn a_service_outlives_its_agent_and_is_adopted() {
    let folder = Sandbox::new();
    let first = open(folder.path());
    let wanted = launch(folder.path(), 1, &["sleep", "1000"]);
    let held = launch(folder.path(), 2, &["sleep", "1000"]);
    let instance = first.start(&wanted).await.expect("starts");
    first.start(&held).await.expect("starts");
    first.freeze(held.service, Hold::Lease).expect("freezes");
    drop(first);
    assert!(state_of(instance.pid).is_some(), "it runs on without an engine");
    let second = open(folder.path());
    let adopted = second.instances().await;
    assert_eq!(adopted.len(), 2);
    assert!(adopted.contains(&instance));
    assert!(adopted.iter().any(|i| i.service == held.service && i.frozen));
    second.thaw(held.service, Hold::Lease).expect("thaws");
    let again = second.start(&wanted).await;
    assert!(matches!(again, Err(EngineError::AlreadyRuns { .. })), "{again:?}");
    let exit = second.stop(wanted.service, LIMIT).await.expect("stops");
    assert!(exit.asked);
    second.kill(held.service).await.expect("kills");
    drop(second);
    assert!(open(folder.path()).instances().await.is_empty(), "no record is left");
}

#[tokio::test]
async fn a_record_whose_pid_was_used_again_touches_nothing() {
    let folder = Sandbox::new();
    let first = open(folder.path());
    let wanted = launch(folder.path(), 1, &["sleep", "1000"]);
    first.start(&wanted).await.expect("starts");
    let records = config(folder.path()).state_dir.join("instances");
    let file = std::fs::read_dir(&records).expect("lists").next().expect("one").expect("entry");
    let (_, content) =
        flocker_base::durable::read(&file.path(), 1, 1 << 20).expect("reads").expect("is there");
    first.kill(wanted.service).await.expect("kills");
    let mut stranger = std::process::Command::new("sleep").arg("1000").spawn().expect("runs");
    let mut record: serde_json::Value = serde_json::from_slice(&content).expect("json");
    record["pid"] = stranger.id().into();
    let content = serde_json::to_vec(&record).expect("json");
    flocker_base::durable::write(&file.path(), 1, &content).expect("writes");
    let second = open(folder.path());
    assert!(second.instances().await.is_empty());
    assert!(!file.path().exists(), "the record is gone");
    assert!(stranger.try_wait().expect("asks").is_none(), "the stranger runs on");
    stranger.kill().expect("kills");
    stranger.wait().expect("ends");
}

struct Refuses;

#[async_trait::async_trait]
impl LaunchGate for Refuses {
    async fn admit(&self, launch: &Launch, group: ProcessGroup) -> Result<(), String> {
        assert!(group.leader_stands(), "the group is there to be guarded");
        assert!(!launch.folder.join("ran").exists(), "and has run nothing");
        Err("no guard".to_owned())
    }
}

#[tokio::test]
async fn a_command_that_the_gate_refuses_never_runs() {
    let folder = Sandbox::new();
    let gate: Arc<dyn LaunchGate> = Arc::new(Refuses);
    let engine = ProcessEngine::open(config(folder.path()), Arc::new(SystemClock), Some(gate))
        .expect("opens");
    let wanted = launch(folder.path(), 1, &["touch", "ran"]);
    let error = engine.start(&wanted).await.expect_err("refused").to_string();
    assert!(error.contains("no guard"), "{error}");
    assert!(!folder.path().join("ran").exists());
    let records = config(folder.path()).state_dir.join("instances");
    assert_eq!(std::fs::read_dir(records).expect("lists").count(), 0);
}

#[tokio::test]
async fn a_log_stays_small_while_its_service_writes() {
    let folder = Sandbox::new();
    let config = ProcessConfig { log_limit_bytes: 4096, ..config(folder.path()) };
    let engine = ProcessEngine::open(config, Arc::new(SystemClock), None).expect("opens");
    let wanted =
        launch(folder.path(), 1, &["sh", "-c", "while :; do echo line; sleep 0.001; done"]);
    engine.start(&wanted).await.expect("starts");
    let log = engine.log_path(wanted.service);
    let older = log.with_extension("log.1");
    until("it was rotated", || older.exists()).await;
    until("and goes on", || std::fs::metadata(&log).is_ok_and(|m| m.len() > 0)).await;
    engine.kill(wanted.service).await.expect("kills");
}

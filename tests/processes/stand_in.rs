//! A stand-in agent: a real process with a real engine, gate and guard, for tests to kill, stop
//! and continue.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use flocker::engine::process::{ProcessConfig, ProcessEngine};
use flocker::engine::{Engine, Launch, LaunchGate, ProcessGroup};
use flocker::guard::{ClientConfig, Extension, Guard, Protected};
use flocker_base::{BootTime, Incarnation, SystemClock};
use tokio_util::sync::CancellationToken;

use crate::engine::{config, launch};
use crate::waiting::{exe, now, until};

const FOLDER: &str = "STAND_IN_FOLDER";
pub(crate) const LEASE: Duration = Duration::from_millis(900);
pub(crate) const FREEZE_LEAD: Duration = Duration::from_millis(400);

/// The running stand-in; it is killed with the test.
pub(crate) struct StandIn {
    pub(crate) child: Child,
    folder: PathBuf,
}

impl StandIn {
    pub(crate) async fn start(folder: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this test"));
        command.args(["stand_in::agent", "--exact", "--ignored", "--nocapture"]);
        command.env(FOLDER, folder).stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().expect("starts");
        let stand_in = Self { child, folder: folder.to_owned() };
        until("the stand-in's service runs", || stand_in.read().is_some()).await;
        stand_in
    }

    /// The service's pid and the newest deadline that the guard has acknowledged.
    pub(crate) fn read(&self) -> Option<(u32, BootTime)> {
        let text = std::fs::read_to_string(self.folder.join("stand-in")).ok()?;
        let (pid, millis) = text.split_once(' ')?;
        Some((pid.parse().ok()?, BootTime::from_millis(millis.parse().ok()?)))
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

struct Gate(Guard);

#[async_trait::async_trait]
impl LaunchGate for Gate {
    async fn admit(&self, launch: &Launch, group: ProcessGroup) -> Result<(), String> {
        let deadline = now() + LEASE;
        let freeze_at = deadline.saturating_sub(FREEZE_LEAD);
        let protected = Protected { group, epoch: launch.epoch, freeze_at, deadline };
        self.0.protect(protected).await.map_err(|e| e.to_string())
    }
}

#[tokio::test]
#[ignore = "run by other tests, as a process"]
async fn agent() {
    let folder = PathBuf::from(std::env::var_os(FOLDER).expect("started by a test"));
    let client = ClientConfig::new(exe(), folder.join("guard"), Incarnation(1));
    let client = ClientConfig { frozen_limit: Duration::ZERO, ..client };
    let (guard, link) = Guard::connect_or_spawn(client).await.expect("a guard");
    let gate: Arc<dyn LaunchGate> = Arc::new(Gate(guard.clone()));
    let work = async {
        // Stopped by signals, as where there are no control groups.
        let config = ProcessConfig { enclose: false, ..config(&folder) };
        let engine = ProcessEngine::open(config, Arc::new(SystemClock), Some(gate)).expect("opens");
        let wanted = launch(&folder, 1, &["sleep", "1000"]);
        let instance = engine.start(&wanted).await.expect("starts");
        loop {
            let deadline = BootTime::from_millis(
                u64::try_from((now() + LEASE).since_boot().as_millis()).expect("small") + 1,
            );
            let extension = Extension {
                service: instance.service,
                epoch: instance.epoch,
                freeze_at: deadline.saturating_sub(FREEZE_LEAD),
                deadline,
                keep_frozen: false,
                resume: false,
            };
            if guard.extend(vec![extension]).await.expect("extends").is_empty() {
                let text = format!("{} {}", instance.pid, deadline.since_boot().as_millis());
                let new = folder.join("stand-in.new");
                flocker_base::durable::write_plain(&new, text.as_bytes(), 0o600).expect("writes");
                std::fs::rename(new, folder.join("stand-in")).expect("renames");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        ended = link.run(CancellationToken::new()) => ended.expect("the link runs"),
        () = work => {}
    }
}

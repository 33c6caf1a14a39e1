//! The demo's agents: real `flocker up` processes, each with its own folder and loopback address.
//! They hold the reading end of a pipe from this process and end when it closes, so that not even
//! a SIGKILL of the demo leaves one behind.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use flocker_base::{BootTime, Clock};
use tokio::process::{Child, Command};

use super::load::Target;
use super::network::HTTP_PORT;
use crate::api::Status;
use crate::api::client::Client;

/// How long an agent may take to answer after its start.
const START_DEADLINE: Duration = Duration::from_secs(20);
/// How long a guard may outlive its agent: until the leases of what it holds run out.
const GUARD_DEADLINE: Duration = Duration::from_secs(6);
/// How long the demo waits for one answer of an agent.
const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// How long an agent may take to end in good order.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// One agent of the demo.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) region: String,
    pub(super) address: Ipv4Addr,
    folder: PathBuf,
    process: Option<Child>,
}

impl Node {
    pub(super) fn new(name: &str, region: &str, address: Ipv4Addr, dir: &Path) -> Self {
        Self {
            name: name.to_owned(),
            region: region.to_owned(),
            address,
            folder: dir.join(name),
            process: None,
        }
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.folder.join("api.sock")
    }

    pub(super) fn state_dir(&self) -> PathBuf {
        self.folder.join("state")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.folder.join("agent.log")
    }

    pub(super) fn target(&self) -> Target {
        let address = SocketAddr::new(IpAddr::V4(self.address), HTTP_PORT);
        Target { node: self.name.clone(), address }
    }

    pub(super) fn client(&self) -> Client {
        Client::new(self.socket(), CALL_DEADLINE)
    }

    /// Starts the agent; it joins with `join` if it has no identity yet.
    pub(super) fn start(&mut self, join: Option<&str>) -> Result<()> {
        std::fs::create_dir_all(&self.folder)
            .with_context(|| format!("cannot make {}", self.folder.display()))?;
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log())
            .with_context(|| format!("cannot open {}", self.log().display()))?;
        let program = std::env::current_exe().context("cannot tell where this program is")?;
        let mut command = Command::new(program);
        command
            .arg("up")
            .args(["--name", &self.name, "--region", &self.region])
            .arg("--state-dir")
            .arg(self.state_dir())
            .arg("--socket")
            .arg(self.socket())
            .args(["--bind", &self.address.to_string()])
            .args(["--http", &self.target().address.to_string()])
            .arg("--exit-with-parent")
            .env_remove("FLOCKER_SOCKET")
            .stdin(Stdio::piped())
            .stdout(log.try_clone().context("cannot use the log twice")?)
            .stderr(log)
            // Ctrl-C at the terminal is for the demo, which stops the agents in order.
            .process_group(0)
            .kill_on_drop(true);
        if let Some(join) = join {
            // Not as an argument: those are visible to every user of the machine.
            command.env("FLOCKER_JOIN", join);
        }
        let process = command.spawn().context("cannot start an agent")?;
        self.process = Some(process);
        Ok(())
    }

    /// Waits until the agent answers, and fails with the end of its log if it ended instead.
    pub(super) async fn wait_until_up(&mut self, clock: &dyn Clock) -> Result<Status> {
        let deadline = clock.boot() + START_DEADLINE;
        loop {
            if let Ok(status) = self.client().status().await {
                return Ok(status);
            }
            let ended = match &mut self.process {
                Some(process) => process.try_wait().context("cannot ask for the agent's end")?,
                None => bail!("agent {} was not started", self.name),
            };
            if let Some(code) = ended {
                bail!("agent {} ended with {code}:\n{}", self.name, self.end_of_log());
            }
            if clock.boot() > deadline {
                bail!("agent {} does not answer:\n{}", self.name, self.end_of_log());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn end_of_log(&self) -> String {
        let text = std::fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(15).collect();
        lines.into_iter().rev().map(|l| format!("    {l}\n")).collect()
    }

    /// SIGKILL, at this instant.
    pub(super) async fn kill(&mut self, clock: &dyn Clock) -> Result<BootTime> {
        let Some(mut process) = self.process.take() else {
            bail!("agent {} does not run", self.name)
        };
        process.start_kill().context("cannot kill the agent")?;
        let at = clock.boot();
        process.wait().await.context("cannot wait for the agent's end")?;
        Ok(at)
    }

    /// Asks the agent to end in good order, by closing the pipe that it reads.
    pub(super) fn ask_to_end(&mut self) {
        if let Some(process) = &mut self.process {
            drop(process.stdin.take());
        }
    }

    /// Waits until nothing of the agent is left: neither itself nor its guard. Kills it if it does
    /// not end.
    pub(super) async fn ended(&mut self, clock: &dyn Clock) {
        if let Some(process) = self.process.take() {
            self.agent_ended(process).await;
        }
        let guard = self.state_dir().join("guard").join("guard.sock");
        let deadline = clock.boot() + GUARD_DEADLINE;
        while std::os::unix::net::UnixStream::connect(&guard).is_ok() {
            if clock.boot() > deadline {
                tracing::warn!(node = self.name, "the guard still holds a service");
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn agent_ended(&self, mut process: Child) {
        if tokio::time::timeout(STOP_DEADLINE, process.wait()).await.is_err() {
            tracing::warn!(node = self.name, "the agent does not end: killing it");
            if let Err(error) = process.kill().await {
                tracing::warn!(node = self.name, %error, "cannot kill the agent");
            }
        }
    }
}

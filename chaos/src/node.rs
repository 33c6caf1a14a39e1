//! One agent as a process of its own, with a folder and a loopback address. It ends with this
//! process, whatever ends that: it holds the reading end of a pipe from here.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use flocker::api::Status;
use flocker::api::client::Client;
use flocker_base::{BootTime, Clock, SystemClock};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use crate::log::Log;
use crate::network::{CONTROL_PORT, DATA_PORT, HTTP_PORT};

/// How long an agent may take to answer after its start.
pub const START_DEADLINE: Duration = Duration::from_secs(20);
/// How long a call to an agent may take.
const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// How long an agent may take to end in good order.
const STOP_DEADLINE: Duration = Duration::from_secs(15);
/// Variables that must not reach an agent from whoever runs the tests.
const NOT_PASSED_ON: [&str; 4] =
    ["FLOCKER_SOCKET", "FLOCKER_JOIN", "FLOCKER_STATE_DIR", "FLOCKER_LOG"];

/// An agent, running or not.
#[derive(Debug)]
pub struct Node {
    name: String,
    region: String,
    address: Ipv4Addr,
    folder: PathBuf,
    binary: PathBuf,
    environment: Vec<(String, OsString)>,
    options: Vec<OsString>,
    launcher: Vec<OsString>,
    process: Option<Child>,
    paused: bool,
}

impl Node {
    /// One that has not been started.
    #[must_use]
    pub fn new(name: &str, region: &str, address: Ipv4Addr, mesh: &Path, binary: &Path) -> Self {
        Self {
            name: name.to_owned(),
            region: region.to_owned(),
            address,
            folder: mesh.join(name),
            binary: binary.to_owned(),
            environment: Vec::new(),
            options: Vec::new(),
            launcher: Vec::new(),
            process: None,
            paused: false,
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its state is.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> Log {
        Log::new(self.folder.join("agent.log"))
    }

    /// Its control port.
    #[must_use]
    pub fn control(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.address), CONTROL_PORT)
    }

    /// Its data port.
    #[must_use]
    pub fn data(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.address), DATA_PORT)
    }

    /// Its proxy.
    #[must_use]
    pub fn http(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.address), HTTP_PORT)
    }

    /// A client of its API.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(self.folder.join("api.sock"), CALL_DEADLINE)
    }

    /// Its process's id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().and_then(Child::id)
    }

    /// Sets the variables that it is started with, besides its own. None of those before stays.
    pub fn set_environment(&mut self, variables: Vec<(String, OsString)>) {
        self.environment = variables;
    }

    /// Sets the arguments that it is started with, besides its own. None of those before stays.
    pub fn set_options(&mut self, options: Vec<OsString>) {
        self.options = options;
    }

    /// Sets the program, with its arguments, that becomes the agent.
    pub fn set_launcher(&mut self, launcher: Vec<OsString>) {
        self.launcher = launcher;
    }

    /// Starts it again if it has ended by itself.
    ///
    /// # Errors
    /// If it does not come up.
    pub async fn revive(&mut self) -> Result<()> {
        let ended = match &mut self.process {
            Some(process) => process.try_wait().context("cannot ask for the agent's end")?,
            None => None,
        };
        if ended.is_some() {
            self.process = None;
            self.start(None)?;
        }
        self.wait_until_up().await.map(drop)
    }

    /// Whether its process was started and neither killed nor stopped since.
    #[must_use]
    pub const fn is_started(&self) -> bool {
        self.process.is_some()
    }

    /// Starts it; with a join string it joins, if it has no identity yet.
    ///
    /// # Errors
    /// If it runs already or the system refuses.
    pub fn start(&mut self, join: Option<&str>) -> Result<()> {
        if self.process.is_some() {
            bail!("agent {} runs already", self.name);
        }
        std::fs::create_dir_all(&self.folder)
            .with_context(|| format!("cannot make {}", self.folder.display()))?;
        let output = self.log().open()?;
        let binary = self.binary.clone().into_os_string();
        let mut words = self.launcher.iter().chain([&binary]);
        let mut command = Command::new(words.next().context("no program")?);
        command
            .args(words)
            .arg("up")
            .args(["--name", &self.name, "--region", &self.region])
            .arg("--state-dir")
            .arg(self.state_dir())
            .arg("--socket")
            .arg(self.folder.join("api.sock"))
            .args(["--bind", &self.address.to_string()])
            .args(["--http", &self.http().to_string()])
            .args(&self.options)
            .arg("--exit-with-parent")
            .stdin(Stdio::piped())
            .stdout(output.try_clone().context("cannot use the log twice")?)
            .stderr(output)
            .process_group(0)
            .kill_on_drop(true);
        for name in NOT_PASSED_ON {
            command.env_remove(name);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Some(join) = join {
            command.env("FLOCKER_JOIN", join);
        }
        let process = command.spawn();
        let process = process.with_context(|| format!("cannot run {}", self.binary.display()))?;
        self.process = Some(process);
        self.paused = false;
        Ok(())
    }

    /// Waits until it answers.
    ///
    /// # Errors
    /// With the end of its log, if it ended or does not answer in time.
    pub async fn wait_until_up(&mut self) -> Result<Status> {
        let deadline = SystemClock.boot() + START_DEADLINE;
        loop {
            if let Ok(status) = self.client().status().await {
                return Ok(status);
            }
            let Some(process) = &mut self.process else {
                bail!("agent {} was not started", self.name)
            };
            if let Some(code) = process.try_wait().context("cannot ask for the agent's end")? {
                bail!("agent {} ended with {code}:\n{}", self.name, self.log().end());
            }
            if SystemClock.boot() > deadline {
                bail!("agent {} does not answer:\n{}", self.name, self.log().end());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// SIGKILL, at this instant; its services are not touched.
    ///
    /// # Errors
    /// If it does not run or has ended by itself before.
    pub async fn kill(&mut self) -> Result<BootTime> {
        let Some(mut process) = self.process.take() else {
            bail!("agent {} does not run", self.name)
        };
        if let Some(code) = process.try_wait().context("cannot ask for the agent's end")? {
            bail!("agent {} had ended by itself with {code}:\n{}", self.name, self.log().end());
        }
        process.start_kill().context("cannot kill the agent")?;
        let at = SystemClock.boot();
        process.wait().await.context("cannot wait for the agent's end")?;
        self.paused = false;
        Ok(at)
    }

    /// SIGSTOP: it hangs.
    ///
    /// # Errors
    /// If it does not run.
    pub fn pause(&mut self) -> Result<()> {
        self.signal(Signal::STOP)?;
        self.paused = true;
        Ok(())
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// If it does not run.
    pub fn resume(&mut self) -> Result<()> {
        self.signal(Signal::CONT)?;
        self.paused = false;
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.process.as_ref().and_then(Child::id);
        let pid = pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        let pid = pid.with_context(|| format!("agent {} does not run", self.name))?;
        kill_process(pid, signal).with_context(|| format!("cannot signal agent {}", self.name))
    }

    /// Ends it in good order.
    ///
    /// # Errors
    /// If it does not end in time; it is killed then.
    pub async fn stop(&mut self) -> Result<ExitStatus> {
        if self.paused {
            self.resume()?;
        }
        let Some(mut process) = self.process.take() else {
            bail!("agent {} does not run", self.name)
        };
        // The closed pipe asks it to end.
        drop(process.stdin.take());
        match tokio::time::timeout(STOP_DEADLINE, process.wait()).await {
            Ok(ended) => ended.context("cannot wait for the agent's end"),
            Err(_late) => {
                process.kill().await.context("cannot kill the agent")?;
                bail!("agent {} does not end in good order:\n{}", self.name, self.log().end())
            }
        }
    }

    /// SIGKILL without waiting, for the end of a test.
    pub fn abandon(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It may have ended already.
            drop(process.start_kill());
        }
    }
}

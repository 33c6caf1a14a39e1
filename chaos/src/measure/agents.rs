//! The agents of one mesh, ours or serf's, as processes on loopback addresses, and what they say
//! in their logs, each line with the instant of its arrival. Both kinds are started, killed and
//! listened to in the same way: no mesh may be measured by finer means than the other.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use flocker::api::TokenCreate;
use flocker::api::client::Client;
use flocker_base::{BootTime, Clock as _, SystemClock};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::said::{self, Said};

/// Lines that wait to be looked at; a mesh says far fewer between two looks.
const MAX_HEARD: usize = 65_536;
/// How long a single command to an agent may take.
const COMMAND_DEADLINE: Duration = Duration::from_secs(20);
/// A member lets one address, which all of these have in common, try to join five times a minute:
/// each member admits fewer.
const JOINS_AT_ONE: usize = 4;
const CONTROL_PORT: u16 = 4523;
const SERF_PORT: u16 = 7946;
const SERF_RPC_PORT: u16 = 7373;

/// Whose agents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Whose {
    /// Flocker's.
    Ours,
    /// Serf's.
    Serf,
}

impl Whose {
    /// As it is written in arguments and tables.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Serf => "serf",
        }
    }
}

/// Something that an agent said.
#[derive(Clone, Debug)]
pub struct Heard {
    /// The agent's number.
    pub node: usize,
    /// When its line arrived here.
    pub at: BootTime,
    /// What it says.
    pub said: Said,
}

/// The agents of one mesh.
#[derive(Debug)]
pub struct Agents {
    whose: Whose,
    folder: PathBuf,
    binary: PathBuf,
    processes: Vec<Option<Child>>,
    join: Option<String>,
    told: mpsc::Sender<Heard>,
    heard: mpsc::Receiver<Heard>,
    kept: VecDeque<Heard>,
    readers: JoinSet<()>,
}

impl Agents {
    /// None that runs yet.
    #[must_use]
    pub fn new(whose: Whose, nodes: usize, folder: &Path, binary: &Path) -> Self {
        let (told, heard) = mpsc::channel(MAX_HEARD);
        Self {
            whose,
            folder: folder.to_owned(),
            binary: binary.to_owned(),
            processes: std::iter::repeat_with(|| None).take(nodes).collect(),
            join: None,
            told,
            heard,
            kept: VecDeque::new(),
            readers: JoinSet::new(),
        }
    }

    /// How many there are to be.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.processes.len()
    }

    /// An agent's name.
    #[must_use]
    pub fn name(node: usize) -> String {
        format!("n{node}")
    }

    /// Starts an agent; all but the first join. It may have run before.
    ///
    /// # Errors
    /// If it runs or the system refuses.
    pub async fn start(&mut self, node: usize) -> Result<BootTime> {
        if !matches!(self.processes.get(node), Some(None)) {
            bail!("there is no agent {node} that could be started");
        }
        let folder = self.folder.join(Self::name(node));
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        let mut command = match self.whose {
            Whose::Ours => self.our_agent(node, &folder).await?,
            Whose::Serf => self.serf_agent(node),
        };
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.kill_on_drop(true);
        let at = SystemClock.boot();
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot run {}", command.as_std().get_program().display()))?;
        self.listen(node, &folder, child.stdout.take()).await?;
        self.listen(node, &folder, child.stderr.take()).await?;
        if let Some(slot) = self.processes.get_mut(node) {
            *slot = Some(child);
        }
        Ok(at)
    }

    async fn our_agent(&mut self, node: usize, folder: &Path) -> Result<Command> {
        let mut command = Command::new(&self.binary);
        command
            .arg("up")
            .args(["--name", &Self::name(node), "--region", "eu"])
            .arg("--state-dir")
            .arg(folder.join("state"))
            .arg("--socket")
            .arg(self.socket(node))
            .args(["--bind", &address(node)?.to_string()])
            .args(["--http", &format!("{}:8080", address(node)?)])
            .args(["--log", said::OUR_LOG])
            .arg("--exit-with-parent");
        for name in ["FLOCKER_SOCKET", "FLOCKER_STATE_DIR", "FLOCKER_LOG", "FLOCKER_JOIN"] {
            command.env_remove(name);
        }
        if node > 0 {
            if self.join.is_none() {
                let life = TokenCreate::lasting(3_600_000);
                let client = Client::new(self.socket(0), COMMAND_DEADLINE);
                self.join = Some(client.create_token(&life).await?.join);
            }
            let join = self.join.as_deref().unwrap_or_default();
            let (token, _) = join.split_once('@').context("a join string names an address")?;
            let seed = address((node - 1) / JOINS_AT_ONE)?;
            command.env("FLOCKER_JOIN", format!("{token}@{seed}:{CONTROL_PORT}"));
        }
        Ok(command)
    }

    fn serf_agent(&self, node: usize) -> Command {
        let mut command = Command::new("serf");
        let at = address(node).unwrap_or(Ipv4Addr::LOCALHOST);
        command
            .args(["agent", "-profile=lan"])
            .arg(format!("-node={}", Self::name(node)))
            .arg(format!("-bind={at}:{SERF_PORT}"))
            .arg(format!("-rpc-addr={at}:{SERF_RPC_PORT}"));
        if let (true, Ok(first)) = (node > 0, address(0)) {
            command.arg(format!("-join={first}:{SERF_PORT}"));
        }
        command
    }

    fn socket(&self, node: usize) -> PathBuf {
        self.folder.join(Self::name(node)).join("api.sock")
    }

    /// Reads what an agent writes: into its log file, and what is measured into the queue.
    async fn listen<R>(&mut self, node: usize, folder: &Path, from: Option<R>) -> Result<()>
    where
        R: AsyncRead + Send + Unpin + 'static,
    {
        let from = from.context("the agent has no output")?;
        let path = folder.join("agent.log");
        let mut log = tokio::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .await
            .with_context(|| format!("cannot open {}", path.display()))?;
        let (told, whose) = (self.told.clone(), self.whose);
        self.readers.spawn(async move {
            let mut lines = BufReader::new(from).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let at = SystemClock.boot();
                let said = match whose {
                    Whose::Ours => said::ours(&line),
                    Whose::Serf => said::serf(&line),
                };
                if let Some(said) = said {
                    // A full queue is a harness that does not look: a round then misses a line
                    // and fails.
                    drop(told.try_send(Heard { node, at, said }));
                }
                let _no_evidence = log.write_all(format!("{line}\n").as_bytes()).await;
            }
        });
        Ok(())
    }

    /// The next thing that any of them says; nothing if none does in time.
    pub async fn next(&mut self, until: BootTime) -> Option<Heard> {
        if let Some(kept) = self.kept.pop_front() {
            return Some(kept);
        }
        let left = until.saturating_since(SystemClock.boot());
        tokio::time::timeout(left, self.heard.recv()).await.ok().flatten()
    }

    /// Puts back what was said, to be looked at before anything else.
    pub fn keep(&mut self, heard: Vec<Heard>) {
        self.kept.extend(heard);
    }

    /// What was said and not yet looked at.
    pub fn unheard(&mut self) -> Vec<Heard> {
        let mut all: Vec<_> = self.kept.drain(..).collect();
        all.extend(std::iter::from_fn(|| self.heard.try_recv().ok()));
        all
    }

    /// SIGKILL, at the instant that is returned.
    ///
    /// # Errors
    /// If it does not run.
    pub async fn kill(&mut self, node: usize) -> Result<BootTime> {
        let process = self.processes.get_mut(node).and_then(Option::take);
        let mut process = process.with_context(|| format!("agent {node} does not run"))?;
        if let Some(code) = process.try_wait().context("cannot ask for the agent's end")? {
            bail!("agent {node} had ended by itself with {code}");
        }
        let at = SystemClock.boot();
        process.start_kill().context("cannot kill the agent")?;
        process.wait().await.context("cannot wait for the agent's end")?;
        Ok(at)
    }

    /// Has an agent tell all others something, by its own command line: of ours a change of the
    /// map (a token is made), of serf's a user event. Answers when the command was started.
    ///
    /// # Errors
    /// If the command fails.
    pub async fn tell(&mut self, node: usize, mark: &str) -> Result<BootTime> {
        let mut command = match self.whose {
            Whose::Ours => {
                let mut command = Command::new(&self.binary);
                command.arg("--socket").arg(self.socket(node)).args(["token", "create"]);
                command
            }
            Whose::Serf => {
                let mut command = Command::new("serf");
                command
                    .args(["event", "-coalesce=false"])
                    .arg(format!("-rpc-addr={}:{SERF_RPC_PORT}", address(node)?))
                    .arg(mark);
                command
            }
        };
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.kill_on_drop(true);
        let at = SystemClock.boot();
        let done = tokio::time::timeout(COMMAND_DEADLINE, command.output()).await;
        let done = done.context("the command does not end")?.context("cannot run the command")?;
        if !done.status.success() {
            bail!("{:?} failed: {}", command.as_std(), String::from_utf8_lossy(&done.stderr));
        }
        Ok(at)
    }

    /// Ends them all by their process ids, without ceremony.
    pub async fn end(&mut self) {
        for process in &mut self.processes {
            if let Some(mut process) = process.take() {
                // It may have ended already.
                drop(process.kill().await);
            }
        }
    }
}

fn address(node: usize) -> Result<Ipv4Addr> {
    let node = u16::try_from(node).ok().filter(|n| *n < 250 * 200).context("too many agents")?;
    let [third, host] = [node / 200, node % 200 + 1].map(|part| u8::try_from(part).unwrap_or(0));
    Ok(Ipv4Addr::new(127, 72, third, host))
}

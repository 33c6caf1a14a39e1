//! A mesh of real agents in one folder. When it is dropped, nothing that it started runs any more;
//! its folder stays if the test failed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use flocker::api::{DeployReply, Liveness, ServiceState, Status, TokenCreate};
use flocker_base::{BootTime, Clock as _, SystemClock};
use tempfile::TempDir;

use crate::log::Mark;
use crate::network::Network;
use crate::node::Node;
use crate::{binary, processes};

/// The host name of the service under test.
pub const HOST: &str = "tally.chaos";
/// The lease that the agents run with: the default.
pub const LEASE: Duration = Duration::from_secs(3);
/// How long the harness waits for a state that has to come about, if a test promises no time.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Set to keep the folders of tests that passed, too.
const KEEP: &str = "FLOCKER_CHAOS_KEEP";
/// The test's volume.
pub const VOLUME: &str = "data";

/// The agents.
#[derive(Debug)]
pub struct Mesh {
    nodes: Vec<Node>,
    folder: Option<TempDir>,
    path: PathBuf,
    binary: PathBuf,
    keep: bool,
    _network: Option<Network>,
}

impl Mesh {
    /// Starts one agent for each name and region; the first makes the cluster, the others join it.
    ///
    /// # Errors
    /// If there is no binary to test, or an agent does not come up.
    pub async fn start(of: &[(&str, &str)]) -> Result<Self> {
        Self::start_with(of, &[]).await
    }

    /// The same, each with these further arguments of `up`.
    ///
    /// # Errors
    /// As for [`Self::start`].
    pub async fn start_with(of: &[(&str, &str)], options: &[&str]) -> Result<Self> {
        Self::start_in(&std::env::temp_dir(), of, options, &binary::flocker()?).await
    }

    /// The same in a new folder of this one, with this binary.
    ///
    /// # Errors
    /// As for [`Self::start`].
    pub async fn start_in(
        folder: &Path,
        of: &[(&str, &str)],
        options: &[&str],
        binary: &Path,
    ) -> Result<Self> {
        let network = Network::claim(u8::try_from(of.len()).context("too many nodes")?)?;
        let folder = tempfile::Builder::new().prefix("flocker-chaos-").tempdir_in(folder);
        let folder = folder.context("cannot make a folder for the mesh")?;
        let path = folder.path();
        let nodes = of.iter().zip(1..).map(|((name, region), host)| {
            let mut node = Node::new(name, region, network.address(host), path, binary);
            node.set_options(options.iter().map(Into::into).collect());
            node
        });
        Self::found(nodes.collect(), folder, binary.to_owned(), Some(network)).await
    }

    /// One of these nodes, whose folders are in this one.
    ///
    /// # Errors
    /// If an agent does not come up.
    pub async fn of_nodes(nodes: Vec<Node>, folder: TempDir, binary: PathBuf) -> Result<Self> {
        Self::found(nodes, folder, binary, None).await
    }

    async fn found(
        nodes: Vec<Node>,
        folder: TempDir,
        binary: PathBuf,
        network: Option<Network>,
    ) -> Result<Self> {
        let path = folder.path().to_owned();
        let folder = Some(folder);
        let mut mesh = Self { nodes, folder, path, binary, keep: false, _network: network };
        let started = mesh.found_and_join().await;
        if let Err(error) = started {
            mesh.keep();
            return Err(error.context(format!("logs are in {}", mesh.path.display())));
        }
        Ok(mesh)
    }

    async fn found_and_join(&mut self) -> Result<()> {
        let mut nodes = self.nodes.iter_mut();
        let first = nodes.next().context("a mesh has a node at least")?;
        first.start(None)?;
        first.wait_until_up().await?;
        let life = TokenCreate::lasting(10 * 60 * 1000);
        let token = first.client().create_token(&life).await.context("cannot make a token")?;
        for node in nodes {
            node.start(Some(&token.join))?;
            node.wait_until_up().await?;
        }
        let all = self.nodes.len();
        for node in 0..all {
            self.until(node, PATIENCE, "all nodes live", |s| live(s) == all).await?;
        }
        Ok(())
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.path
    }

    /// The binary that the agents run.
    #[must_use]
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// The agents.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// One agent, to do something to.
    ///
    /// # Errors
    /// If there is none of this number.
    pub fn node_mut(&mut self, node: usize) -> Result<&mut Node> {
        self.nodes.get_mut(node).with_context(|| format!("there is no node {node}"))
    }

    /// The number of the node with this name.
    ///
    /// # Errors
    /// If there is none.
    pub fn number_of(&self, name: &str) -> Result<usize> {
        let found = self.nodes.iter().position(|n| n.name() == name);
        found.with_context(|| format!("there is no node {name}"))
    }

    /// What an agent says of the mesh.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn status(&self, node: usize) -> Result<Status> {
        let node = self.nodes.get(node).with_context(|| format!("there is no node {node}"))?;
        let status = node.client().status().await;
        status.with_context(|| format!("{} gives no status:\n{}", node.name(), node.log().end()))
    }

    /// Waits until an agent's status is as wanted.
    ///
    /// # Errors
    /// With the last status, if that does not come about in time.
    pub async fn until(
        &self,
        node: usize,
        within: Duration,
        what: &str,
        holds: impl Fn(&Status) -> bool,
    ) -> Result<Status> {
        let deadline = SystemClock.boot() + within;
        loop {
            let status = self.status(node).await;
            match &status {
                Ok(status) if holds(status) => return Ok(status.clone()),
                _ if SystemClock.boot() < deadline => {}
                Ok(status) => bail!(
                    "waited {} ms in vain until {what}; {} shows:\n{}",
                    within.as_millis(),
                    status.viewed_from,
                    shown(status)
                ),
                Err(_) => {
                    status.with_context(|| format!("waited in vain until {what}"))?;
                }
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    /// Deploys the stateful service under test with a local and a remote replica and a route, and
    /// waits until it runs and its replicas are up to date everywhere.
    ///
    /// # Errors
    /// If that does not come about.
    pub async fn deploy(&self, snapshot_every: Duration) -> Result<DeployReply> {
        let reply = self.deploy_at(0, snapshot_every).await?;
        let copies = self.nodes.len();
        for node in 0..copies {
            self.until(node, PATIENCE, "the service runs with all its replicas", |s| {
                settled(s, copies)
            })
            .await?;
            self.knows_all(node).await?;
        }
        Ok(reply)
    }

    /// Waits until a node's map has every node: membership tells of them sooner.
    async fn knows_all(&self, node: usize) -> Result<()> {
        let at = self.nodes.get(node).context("no such node")?;
        let began = SystemClock.boot();
        loop {
            let known = at.client().nodes().await.context("no list of nodes")?.nodes;
            if known.len() >= self.nodes.len() {
                return Ok(());
            }
            ensure!(since(began) < crate::millis(PATIENCE), "{} knows only {known:?}", at.name());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Has this node deploy the service, and does not wait for it.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn deploy_at(&self, node: usize, snapshot_every: Duration) -> Result<DeployReply> {
        let binary = self.binary.display().to_string();
        self.deploy_text(node, &manifest(&[&binary, "tally"], &[], snapshot_every)).await
    }

    /// Has the first node deploy the service with this command and environment.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn deploy_command(
        &self,
        command: &[&str],
        environment: &[(&str, &str)],
        snapshot_every: Duration,
    ) -> Result<DeployReply> {
        self.deploy_text(0, &manifest(command, environment, snapshot_every)).await
    }

    async fn deploy_text(&self, node: usize, text: &str) -> Result<DeployReply> {
        let at = self.nodes.get(node).context("no such node")?;
        let deployment = flocker::manifest::parse("chaos", text.as_bytes(), &|_| None);
        let deployment =
            deployment.map_err(|fault| anyhow!("the harness deploys nonsense: {fault}"))?;
        at.client().deploy(deployment).await.context("cannot deploy")
    }

    /// The node where the service runs, once this node shows one: a node that has just joined is
    /// told of the others before it is told what runs there.
    ///
    /// # Errors
    /// If it shows none.
    pub async fn master(&self, node: usize) -> Result<usize> {
        let runs = |s: &Status| running_on(s).is_some();
        let status = self.until(node, PATIENCE, "the service runs", runs).await?;
        self.number_of(running_on(&status).context("the service runs")?)
    }

    /// No agent may panic, whatever is done to it or its peers.
    ///
    /// # Errors
    /// With the line of the first panic in a log.
    pub fn judge_logs(&self) -> Result<()> {
        for node in &self.nodes {
            let text = node.log().since(Mark::START)?;
            if let Some(line) = text.lines().find(|line| line.contains("panicked")) {
                bail!("{} panicked: {line}", node.name());
            }
        }
        Ok(())
    }

    /// Keeps the folder.
    pub const fn keep(&mut self) {
        self.keep = true;
    }

    /// Ends all agents that run, in good order.
    ///
    /// # Errors
    /// If one does not end so.
    pub async fn stop(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            if node.is_started() {
                node.stop().await?;
            }
        }
        Ok(())
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            node.abandon();
        }
        // What is killed may have started something just before: until nothing is left.
        let deadline = SystemClock.boot() + Duration::from_secs(5);
        while matches!(processes::kill_all(&self.path, &self.binary), Ok(1..))
            && SystemClock.boot() < deadline
        {
            std::thread::yield_now();
        }
        if let Some(folder) = self.folder.take()
            && (self.keep || std::thread::panicking() || keeps_all())
        {
            let _kept: PathBuf = folder.keep();
        }
    }
}

/// Whether folders are kept even if all was good.
#[must_use]
pub fn keeps_all() -> bool {
    std::env::var_os(KEEP).is_some()
}

/// How many nodes a status shows as live.
#[must_use]
pub fn live(status: &Status) -> usize {
    status.nodes.iter().filter(|n| n.liveness == Liveness::Live).count()
}

/// Where the service runs, ready to answer.
#[must_use]
pub fn running_on(status: &Status) -> Option<&str> {
    let service = status.services.first().filter(|s| s.state == ServiceState::Running)?;
    service.node.as_ref().map(flocker_base::Name::as_str)
}

/// Whether all nodes live and report, the service runs, and this many copies are up to date.
#[must_use]
pub fn settled(status: &Status, copies: usize) -> bool {
    live(status) == status.nodes.len()
        && status.oldest_fact_ms.is_some()
        && running_on(status).is_some()
        && status
            .volumes
            .iter()
            .all(|v| v.master.is_some() && v.replicas.iter().filter(|r| r.acked).count() == copies)
}

/// Time since then, in milliseconds.
#[must_use]
pub fn since(then: BootTime) -> u64 {
    crate::millis(SystemClock.boot().saturating_since(then))
}

fn shown(status: &Status) -> String {
    let text = serde_json::to_string_pretty(status);
    text.unwrap_or_else(|error| format!("a status without JSON form: {error}"))
}

fn manifest(command: &[&str], environment: &[(&str, &str)], snapshot_every: Duration) -> String {
    // JSON is YAML: anything is quoted rightly.
    let command = serde_json::Value::from(command);
    let environment: serde_json::Map<String, serde_json::Value> =
        environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).into())).collect();
    let environment = serde_json::Value::from(environment);
    let every = snapshot_every.as_millis();
    format!(
        "services:
  tally:
    command: {command}
    environment: {environment}
    volumes: [\"{VOLUME}:/data\"]
    x-flocker:
      engine: process
      health: /healthz
      routes: [\"http://{HOST}\"]
volumes:
  {VOLUME}:
    x-flocker:
      replicas: 1
      remote-replicas: 1
      snapshot-every: {every}ms
"
    )
}

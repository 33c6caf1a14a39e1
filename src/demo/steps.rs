//! The demo's first steps, in the order in which a user meets them: the mesh, the service, the
//! load, the move. They use the agents' API and proxies alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use flocker_base::{BootTime, Clock, Name};

use super::load::{self, Load};
use super::network::Network;
use super::node::Node;
use super::report::{MOVE_WAIT_LIMIT_MS, MoveFigures, Report, SNAPSHOT_EVERY_MS};
use super::show::Show;
use super::tail::Tail;
use crate::api::{Destination, Liveness, MoveRequest, ServiceState, Status, TokenCreate};
use crate::cli::render;

pub(super) const HOST: &str = "tally.demo";
const CLIENTS_A_NODE: usize = 2;
/// Time for a state to come about that the demo waits for.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// The running demo: its agents, its load and what it knows.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) nodes: Vec<Node>,
    pub(super) folder: PathBuf,
    pub(super) clock: Arc<dyn Clock>,
    load: Option<Load>,
    began: BootTime,
    pub(super) lost: Tail,
    _network: Network,
}

impl Stage {
    pub(super) fn new(folder: &Path, clock: Arc<dyn Clock>) -> Result<Self> {
        let network = Network::claim()?;
        let nodes = [("eu-1", "eu"), ("eu-2", "eu"), ("us-1", "us")]
            .into_iter()
            .zip(network.addresses)
            .map(|((name, region), address)| Node::new(name, region, address, folder))
            .collect();
        let began = clock.boot();
        Ok(Self {
            nodes,
            folder: folder.to_owned(),
            clock,
            load: None,
            began,
            lost: Tail::default(),
            _network: network,
        })
    }

    /// Ends everything that was started, whatever state it is in.
    pub(super) async fn end(&mut self) {
        if let Some(load) = self.load.take() {
            load.stop().await;
        }
        for node in &mut self.nodes {
            node.ask_to_end();
        }
        for node in &mut self.nodes {
            node.ended(&*self.clock).await;
        }
    }

    pub(super) async fn start_mesh(&mut self, show: &mut Show, report: &mut Report) -> Result<()> {
        show.step("A mesh of three nodes in two regions");
        let first = &mut self.nodes[0];
        show.command(&format!("flocker up --name {} --region {}", first.name, first.region));
        first.start(None)?;
        first.wait_until_up(&*self.clock).await?;
        let token = first
            .client()
            .create_token(&TokenCreate::lasting(10 * 60 * 1_000))
            .await
            .context("cannot make a join token")?;
        let secret = token.join.split('@').next().unwrap_or_default().to_owned();
        let seeds: Vec<String> = self.nodes.iter().map(|n| n.address.to_string()).collect();
        for at in 1..self.nodes.len() {
            // Some of the seeds are not up yet: any one that is can admit.
            let join = format!("{secret}@{}", seeds[..=at].join(","));
            let node = &mut self.nodes[at];
            show.command(&format!(
                "flocker up --name {} --region {} --join TOKEN@{}",
                node.name,
                node.region,
                seeds[..=at].join(",")
            ));
            node.start(Some(&join))?;
            node.wait_until_up(&*self.clock).await?;
        }
        let status = self
            .until(0, "all three nodes live", |s| {
                s.nodes.iter().filter(|n| n.liveness == Liveness::Live).count() == 3
            })
            .await?;
        report.startup_ms = millis(self.clock.boot() - self.began);
        show.command(&format!("flocker status        (in {} ms)", report.startup_ms));
        show.block(&render::status(&status, show.style()));
        let held =
            self.nodes.iter().all(|n| status.nodes.iter().any(|s| s.name.as_str() == n.name));
        show.promise(&report.promise("the nodes found each other through the seeds", held));
        Ok(())
    }

    pub(super) async fn deploy(&mut self, show: &mut Show, report: &mut Report) -> Result<()> {
        show.step("A stateful service: one local replica, one remote, and a route");
        let program = std::env::current_exe().context("cannot tell where this program is")?;
        let text = manifest(&program);
        let file = self.folder.join("tally.yaml");
        flocker_base::durable::write_plain(&file, text.as_bytes(), 0o644)?;
        show.command("cat tally.yaml");
        show.block(&text);
        show.command("flocker deploy tally.yaml");
        let deployment =
            crate::manifest::parse(&file.display().to_string(), text.as_bytes(), &|_| None)
                .map_err(|fault| anyhow::anyhow!("{fault}"))
                .context("the demo's own deployment file")?;
        let reply = self.nodes[0].client().deploy(deployment).await.context("cannot deploy")?;
        for change in &reply.changes {
            show.say(
                &format!("{:?} {} {:?}", change.record, change.name, change.change).to_lowercase(),
            );
        }
        let status = self
            .until(0, "the service runs and its replicas are up to date", |s| {
                running(s).is_some()
                    && s.volumes
                        .iter()
                        .all(|v| v.replicas.len() == 3 && v.replicas.iter().all(|r| r.acked))
            })
            .await?;
        let host = running(&status).unwrap_or_default();
        let mut answered = 0;
        for node in &self.nodes {
            let got = load::get(&node.target(), HOST, "/", 64 * 1024).await;
            answered += usize::from(got.is_ok());
            let got = got.map_or_else(|e| e, |b| String::from_utf8_lossy(&b).trim().to_owned());
            show.say(&format!("through {}: {got}", node.name));
        }
        let text = format!("the service runs on {host} and answers through all three nodes");
        show.promise(&report.promise(text, answered == 3));
        Ok(())
    }

    pub(super) fn load(&mut self, show: &mut Show) {
        show.step("Load through all three nodes' proxies");
        let targets: Vec<_> = self.nodes.iter().map(Node::target).collect();
        for target in &targets {
            show.say(&format!(
                "{CLIENTS_A_NODE} clients POST to http://{HOST} through {} ({})",
                target.node, target.address
            ));
        }
        self.load = Some(Load::start(&targets, CLIENTS_A_NODE, HOST, Arc::clone(&self.clock)));
    }

    pub(super) async fn move_under_load(
        &mut self,
        show: &mut Show,
        report: &mut Report,
    ) -> Result<()> {
        show.step("The service moves to another node under that load");
        tokio::time::sleep(Duration::from_secs(2)).await;
        let status = self.nodes[0].client().status().await?;
        let from = running(&status).context("the service runs nowhere")?;
        let to = self.nodes.iter().find(|n| n.region == "eu" && n.name != from);
        let to = to.context("no second node in eu")?.name.clone();
        show.command(&format!("flocker move tally --to {to}"));
        // What happened before the move is not the move's.
        let before = self.running_load()?.take();
        let request = MoveRequest {
            service: Name::new("tally")?,
            to: Destination::Node(Name::new(to.clone())?),
        };
        let mut steps = Vec::new();
        let moved =
            self.nodes[2].client().move_service(&request, |step| steps.push(step.clone())).await;
        for step in &steps {
            show.say(
                &format!("{:>5} ms  {} ({:?})", step.elapsed_ms, step.text, step.state)
                    .to_lowercase(),
            );
        }
        let moved = moved.context("the move failed")?;
        // Requests that were held must have come back before they are counted.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let during = self.running_load()?.take();
        let failed = before.failed + during.failed;
        let figures = MoveFigures {
            from,
            to: moved.to.to_string(),
            sent: during.sent,
            failed,
            longest_wait_ms: millis(during.longest),
            pause_ms: moved.pause_ms,
        };
        show.say(&format!(
            "{} requests sent, {failed} failed, longest wait {} ms (held for {} ms)",
            figures.sent, figures.longest_wait_ms, figures.pause_ms
        ));
        for reason in before.reasons.iter().chain(&during.reasons) {
            show.say(reason);
        }
        let none_failed = failed == 0 && figures.sent > 0;
        show.promise(&report.promise("no request failed in the move", none_failed));
        let short = figures.longest_wait_ms < MOVE_WAIT_LIMIT_MS;
        show.promise(&report.promise("no request waited for a second", short));
        report.moved = Some(figures);
        Ok(())
    }

    /// Asks this node for its status until it shows what is waited for.
    pub(super) async fn until(
        &self,
        node: usize,
        what: &str,
        holds: impl Fn(&Status) -> bool,
    ) -> Result<Status> {
        let deadline = self.clock.boot() + PATIENCE;
        let mut last = None;
        while self.clock.boot() < deadline {
            match self.nodes[node].client().status().await {
                Ok(status) if holds(&status) => return Ok(status),
                Ok(status) => last = Some(status),
                Err(error) => tracing::debug!(%error, "no status yet"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let seen = last.map_or_else(
            || "no answer at all".to_owned(),
            |s| render::status(&s, &crate::cli::style::Style::default()),
        );
        bail!("waited {} s in vain until {what}; last seen:\n{seen}", PATIENCE.as_secs())
    }

    pub(super) fn running_load(&self) -> Result<&Load> {
        self.load.as_ref().context("the load does not run")
    }

    pub(super) async fn end_load(&mut self) -> Result<BTreeMap<String, BootTime>> {
        Ok(self.load.take().context("the load does not run")?.stop().await)
    }
}

/// The node on which the demo's service runs.
pub(super) fn running(status: &Status) -> Option<String> {
    let service = status.services.first().filter(|s| s.state == ServiceState::Running)?;
    service.node.as_ref().map(ToString::to_string)
}

pub(super) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn manifest(program: &Path) -> String {
    // JSON strings are YAML strings: any path is quoted rightly.
    let program = serde_json::Value::from(program.display().to_string());
    format!(
        "services:
  tally:
    command: [{program}, tally]
    volumes: [\"data:/data\"]
    x-flocker:
      engine: process
      health: /healthz
      routes: [\"http://{HOST}\"]
volumes:
  data:
    x-flocker:
      replicas: 1
      remote-replicas: 1
      snapshot-every: {SNAPSHOT_EVERY_MS}ms
"
    )
}

//! An agent killed with SIGKILL at any instant restarts with its identity, grants, epochs and map
//! intact. One mesh of three agents, a service under light load, 200 rounds
//! (`FLOCKER_CHAOS_ROUNDS`); replay a plan with `FLOCKER_CHAOS_SEED`.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use flocker::api::Status;
use flocker_base::{Clock as _, SystemClock};
use flocker_chaos::clients::{Clients, Load};
use flocker_chaos::evidence;
use flocker_chaos::invariants::epochs::Epochs;
use flocker_chaos::invariants::intact::Intact;
use flocker_chaos::invariants::writes::{Account, account};
use flocker_chaos::mesh::{HOST, Mesh, PATIENCE, live, settled, since};
use flocker_chaos::plan::{self, Fault, Plan, Round};
use flocker_chaos::processes::Finder;
use flocker_chaos::remains::Remains;
use flocker_chaos::say;
use flocker_chaos::watch::Watch;

const NODES: [(&str, &str); 3] = [("eu-1", "eu"), ("eu-2", "eu"), ("us-1", "us")];
const ROUNDS: u32 = 200;
const SNAPSHOT_EVERY: Duration = Duration::from_millis(500);
/// Promised: within this time of its answer, a restarted agent is live for its peers, and every
/// node's map is the same.
const BACK: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_at_random_instants() {
    let seed = plan::seed().expect("a seed");
    let rounds = plan::rounds(ROUNDS).expect("a number of rounds");
    say(&format!(
        "kill_at_random_instants: FLOCKER_CHAOS_SEED={seed} FLOCKER_CHAOS_ROUNDS={rounds}"
    ));
    let mut mesh = Mesh::start(&NODES).await.expect("a mesh");
    let mut run = Run { round: 0, kills: 0, slowest: 0, epochs: Epochs::default() };
    let began = SystemClock.boot();
    match run.all(&mut mesh, seed, rounds).await {
        Ok(account) => say(&format!(
            "kill_at_random_instants: {rounds} rounds, {} kills, {} elections, {} s; slowest round \
             {} ms; {} writes acknowledged: {} in the main line, {} in branches alone, none lost",
            run.kills,
            run.epochs.highest().counter,
            since(began) / 1000,
            run.slowest,
            account.acknowledged,
            account.in_main,
            account.in_branches,
        )),
        Err(error) => {
            mesh.keep();
            panic!(
                "round {} of {rounds}: {error:#}\nreplay with FLOCKER_CHAOS_SEED={seed}; logs and \
                 state are in {}",
                run.round,
                mesh.folder().display()
            );
        }
    }
}

struct Run {
    round: u32,
    kills: u64,
    slowest: u64,
    epochs: Epochs,
}

impl Run {
    async fn all(&mut self, mesh: &mut Mesh, seed: u64, rounds: u32) -> Result<Account> {
        mesh.deploy(SNAPSHOT_EVERY).await?;
        let mut intact = Intact::new(&mesh.status(0).await?);
        let mut watch = Watch::start(mesh.folder())?;
        let targets: Vec<_> =
            mesh.nodes().iter().map(|n| (n.name().to_owned(), n.http())).collect();
        let load = Load { host: HOST, clients: 1, pace: Duration::from_millis(40) };
        let clients = Clients::start(&targets, load, "kills");
        for round in Plan::new(seed, NODES.len()).take(rounds as usize) {
            self.round = round.number;
            let began = SystemClock.boot();
            self.one(mesh, &mut intact, round)
                .await
                .with_context(|| format!("{round:?} of {}", NODES[round.victim].0))?;
            watch.check()?;
            self.slowest = self.slowest.max(since(began));
            if round.number.is_multiple_of(20) {
                let done = clients.history().totals();
                say(&format!("  round {}: {} kills, {done:?}", round.number, self.kills));
            }
        }
        let history = clients.stop().await;
        let accounted = Self::judge_writes(mesh, &history.acknowledged())
            .await
            .with_context(|| format!("writes: {:?}, {:?}", history.totals(), history.reasons()))?;
        Self::one_instance_remains(mesh).await?;
        self.all_at_once(mesh, &mut intact).await.context("all killed at once")?;
        let after = Self::judge_writes(mesh, &history.acknowledged()).await?;
        ensure!(after == accounted, "{accounted:?} before and {after:?} after all were killed");
        watch.end()?;
        mesh.judge_logs()?;
        Ok(accounted)
    }

    async fn one(&mut self, mesh: &mut Mesh, intact: &mut Intact, round: Round) -> Result<()> {
        tokio::time::sleep(round.wait).await;
        if let Fault::HangThenKill(span) = round.fault {
            mesh.node_mut(round.victim)?.pause()?;
            tokio::time::sleep(span).await;
        }
        let dead_for = if let Fault::StayDead(span) = round.fault { span } else { Duration::ZERO };
        self.kill_and_start(mesh, intact, round.victim, dead_for).await?;
        let again = match round.fault {
            Fault::Kill | Fault::HangThenKill(_) | Fault::StayDead(_) => Vec::new(),
            Fault::KillInStart(after) => vec![after],
            Fault::KillInTwoStarts(first, second) => vec![first, second],
        };
        for after in again {
            tokio::time::sleep(after).await;
            self.kill_and_start(mesh, intact, round.victim, Duration::ZERO).await?;
        }
        let status = mesh.node_mut(round.victim)?.wait_until_up().await?;
        intact.judge_return(NODES[round.victim].0, &status)?;
        self.judge_epochs(&status)?;
        self.judge_peers(mesh, intact).await
    }

    /// The disk is judged while the agent is dead.
    async fn kill_and_start(
        &mut self,
        mesh: &mut Mesh,
        intact: &mut Intact,
        victim: usize,
        dead_for: Duration,
    ) -> Result<()> {
        mesh.node_mut(victim)?.kill().await?;
        self.kills += 1;
        self.judge_remains(mesh, intact, victim)?;
        tokio::time::sleep(dead_for).await;
        mesh.node_mut(victim)?.start(None)?;
        intact.started(NODES[victim].0);
        Ok(())
    }

    fn judge_remains(&mut self, mesh: &Mesh, intact: &mut Intact, dead: usize) -> Result<Remains> {
        let remains = Remains::read(&mesh.nodes()[dead].state_dir(), mesh.folder())?;
        intact.judge_remains(NODES[dead].0, &remains)?;
        self.epochs.judge(&remains)?;
        Ok(remains)
    }

    /// What a node that is back shows is not below what its disk had.
    fn judge_epochs(&self, status: &Status) -> Result<()> {
        let own = status.nodes.iter().find(|n| n.is_self).context("it does not know itself")?;
        for volume in &status.volumes {
            let (shown, had) =
                (volume.epoch.unwrap_or_default(), self.epochs.placed(own.store, volume.id));
            ensure!(shown >= had, "{} is back and shows epoch {shown} instead of {had}", own.name);
        }
        Ok(())
    }

    /// Every node sees every other live, hears its report, and has the same map.
    async fn judge_peers(&self, mesh: &Mesh, intact: &Intact) -> Result<()> {
        let back = |s: &Status| {
            live(s) == NODES.len() && s.oldest_fact_ms.is_some() && intact.judge_map(s).is_ok()
        };
        let deadline = SystemClock.boot() + BACK;
        for node in 0..NODES.len() {
            let left = deadline.saturating_since(SystemClock.boot());
            mesh.until(node, left, "all are live and report and the maps are equal", back).await?;
        }
        Ok(())
    }

    /// Once nobody writes any more, every copy has what the service has, and every acknowledged
    /// write is there or in a branch.
    async fn judge_writes(
        mesh: &Mesh,
        acknowledged: &std::collections::BTreeSet<String>,
    ) -> Result<Account> {
        for node in 0..NODES.len() {
            let what = "the service runs and all copies are current";
            mesh.until(node, PATIENCE, what, |s| settled(s, NODES.len())).await?;
        }
        let main = evidence::in_service(mesh, 0).await?;
        let deadline = SystemClock.boot() + PATIENCE;
        for (node, (name, _)) in NODES.iter().enumerate() {
            while evidence::in_copy(mesh, node).await? != main {
                ensure!(SystemClock.boot() < deadline, "{name}'s copy does not become current");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        let branches = evidence::in_branches(mesh, &mesh.status(0).await?).await?;
        account(acknowledged, &main, &branches)
    }

    async fn one_instance_remains(mesh: &Mesh) -> Result<()> {
        let deadline = SystemClock.boot() + PATIENCE;
        loop {
            let instances = Finder::new(mesh.folder()).instances()?;
            if instances.len() == 1 {
                return Ok(());
            }
            if SystemClock.boot() > deadline {
                bail!(
                    "at the end there is not one instance but {}: {instances:?}",
                    instances.len()
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// All agents die in one instant: their maps are equal to the byte, and the mesh comes back.
    async fn all_at_once(&mut self, mesh: &mut Mesh, intact: &mut Intact) -> Result<()> {
        for node in 0..NODES.len() {
            mesh.node_mut(node)?.kill().await?;
            self.kills += 1;
        }
        let mut roots = Vec::new();
        for node in 0..NODES.len() {
            roots.push(self.judge_remains(mesh, intact, node)?.root());
        }
        ensure!(roots.iter().all(|root| *root == roots[0]), "the maps' roots differ: {roots:?}");
        for (node, (name, _)) in NODES.iter().enumerate() {
            mesh.node_mut(node)?.start(None)?;
            intact.started(name);
        }
        for (node, (name, _)) in NODES.iter().enumerate() {
            let status = mesh.node_mut(node)?.wait_until_up().await?;
            intact.judge_return(name, &status)?;
            self.judge_epochs(&status)?;
        }
        self.judge_peers(mesh, intact).await
    }
}

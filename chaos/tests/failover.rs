//! A master is killed with SIGKILL, agent and service, and returns. Five rounds in one mesh, under
//! load (`FLOCKER_CHAOS_ROUNDS`).
//!
//! Promised, and measured at the clients: the service answers through every surviving node within
//! the lease + 2 s; no write that was acknowledged and replicated is lost; what is lost was
//! acknowledged within the snapshot interval + 1 s before the kill; all of it is in a branch once
//! the dead node is back, within 15 s of its start.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flocker_base::{BootTime, Clock as _, SystemClock};
use flocker_chaos::clients::{Clients, Load};
use flocker_chaos::history::History;
use flocker_chaos::invariants::writes::account;
use flocker_chaos::mesh::{HOST, LEASE, Mesh, PATIENCE, running_on, settled, since};
use flocker_chaos::plan::{self, Plan};
use flocker_chaos::watch::Watch;
use flocker_chaos::{evidence, millis, processes, say};

const NODES: [(&str, &str); 3] = [("eu-1", "eu"), ("eu-2", "eu"), ("us-1", "us")];
const ROUNDS: u32 = 5;
const SNAPSHOT_EVERY: Duration = Duration::from_secs(1);
const TAKEOVER_BEYOND_LEASE: Duration = Duration::from_secs(2);
const REPLICATION_ALLOWANCE: Duration = Duration::from_secs(1);
const RETURN: Duration = Duration::from_secs(15);
/// Time under load before each kill.
const BEFORE: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn master_killed_and_returns() {
    let seed = plan::seed().expect("a seed");
    let rounds = plan::rounds(ROUNDS).expect("a number of rounds");
    say(&format!("master_killed_and_returns: FLOCKER_CHAOS_SEED={seed}"));
    let mut mesh = Mesh::start(&NODES).await.expect("a mesh");
    let began = SystemClock.boot();
    match all(&mut mesh, seed, rounds).await {
        Ok(figures) => say(&format!(
            "master_killed_and_returns: {rounds} rounds, {rounds} kills, {} s; slowest takeover {} \
             ms of {} allowed, longest tail {} ms; {} writes acknowledged, {} of them in branches \
             alone, none lost",
            since(began) / 1000,
            figures.slowest,
            millis(LEASE + TAKEOVER_BEYOND_LEASE),
            figures.longest_tail,
            figures.acknowledged,
            figures.in_branches,
        )),
        Err(error) => {
            mesh.keep();
            panic!(
                "{error:#}\nreplay with FLOCKER_CHAOS_SEED={seed}; logs and state are in {}",
                mesh.folder().display()
            );
        }
    }
}

#[derive(Debug, Default)]
struct Figures {
    slowest: u64,
    longest_tail: u64,
    acknowledged: usize,
    in_branches: usize,
    /// Lines that earlier takeovers left to branches.
    lost: BTreeSet<String>,
}

async fn all(mesh: &mut Mesh, seed: u64, rounds: u32) -> Result<Figures> {
    mesh.deploy(SNAPSHOT_EVERY).await?;
    let mut watch = Watch::start(mesh.folder())?;
    let targets: Vec<_> = mesh.nodes().iter().map(|n| (n.name().to_owned(), n.http())).collect();
    let load = Load { host: HOST, clients: 2, pace: Duration::from_millis(10) };
    let clients = Clients::start(&targets, load, "failover");
    let history = clients.history();
    let mut figures = Figures::default();
    for round in Plan::new(seed, NODES.len()).take(rounds as usize) {
        tokio::time::sleep(BEFORE + round.wait).await;
        one(mesh, &history, &mut figures).await.with_context(|| {
            format!("round {}; clients saw {:?}", round.number, history.reasons())
        })?;
        watch.check()?;
    }
    let history = clients.stop().await;
    for node in 0..NODES.len() {
        mesh.until(node, PATIENCE, "all is well again", |s| settled(s, NODES.len())).await?;
    }
    let branches = evidence::in_branches(mesh, &mesh.status(0).await?).await?;
    let main = evidence::in_service(mesh, 0).await?;
    let account = account(&history.acknowledged(), &main, &branches)?;
    watch.end()?;
    mesh.judge_logs()?;
    (figures.acknowledged, figures.in_branches) = (account.acknowledged, account.in_branches);
    Ok(figures)
}

/// One kill and return.
async fn one(mesh: &mut Mesh, history: &History, figures: &mut Figures) -> Result<()> {
    let status = mesh.until(0, PATIENCE, "the service runs", |s| running_on(s).is_some()).await?;
    let host = running_on(&status).context("the service runs nowhere")?.to_owned();
    let victim = mesh.number_of(&host)?;
    let service = mesh.status(victim).await?.services.first().and_then(|s| s.pid);
    let service = service.context("the service's process is not known")?;
    let epoch = status.volumes.first().and_then(|v| v.epoch).context("no epoch is known")?;
    let survivors: Vec<usize> = (0..NODES.len()).filter(|node| *node != victim).collect();
    let mut replicated = BTreeSet::new();
    for node in &survivors {
        replicated.extend(evidence::in_copy(mesh, *node).await?);
    }
    let killed = mesh.node_mut(victim)?.kill().await?;
    processes::kill_group(service)?;

    let slowest = takeover(history, killed, &survivors).await.context("takeover")?;
    figures.slowest = figures.slowest.max(slowest);
    let witness = survivors[0];
    let elsewhere = |s: &flocker::api::Status| running_on(s).is_some_and(|node| node != host);
    let status = mesh.until(witness, PATIENCE, "the service runs elsewhere", elsewhere).await?;
    let new_epoch = status.volumes.first().and_then(|v| v.epoch).context("no epoch is known")?;
    ensure!(new_epoch > epoch, "epoch {epoch} before the takeover and {new_epoch} after it");

    let acknowledged = history.acknowledged_until(SystemClock.boot());
    let main: BTreeSet<String> = evidence::in_service(mesh, witness).await?.into_iter().collect();
    let lost: BTreeMap<&String, &BootTime> = acknowledged
        .iter()
        .filter(|(line, _)| !main.contains(*line) && !figures.lost.contains(*line))
        .collect();
    let worst: Vec<_> = lost.keys().filter(|line| replicated.contains(**line)).take(5).collect();
    ensure!(worst.is_empty(), "acknowledged and replicated writes are lost: {worst:?}");
    let oldest = lost.values().min().map_or(killed, |at| **at);
    let tail = killed.saturating_since(oldest);
    let allowed = SNAPSHOT_EVERY + REPLICATION_ALLOWANCE;
    ensure!(
        tail <= allowed,
        "the lost tail is {} ms long, allowed are {} ms",
        millis(tail),
        millis(allowed)
    );
    figures.longest_tail = figures.longest_tail.max(millis(tail));
    bring_back(mesh, victim, &host, &lost).await.context("the return")?;
    figures.lost.extend(lost.into_keys().cloned());
    Ok(())
}

/// From the kill to the last survivor's first answer to a request sent after it, in milliseconds.
async fn takeover(history: &History, killed: BootTime, survivors: &[usize]) -> Result<u64> {
    let allowed = LEASE + TAKEOVER_BEYOND_LEASE;
    loop {
        let first = history.first_acknowledged(killed);
        let times: Vec<_> = survivors.iter().filter_map(|n| first.get(NODES[*n].0)).collect();
        if let (true, Some(last)) = (times.len() == survivors.len(), times.iter().max()) {
            let took = last.saturating_since(killed);
            ensure!(
                took <= allowed,
                "took {} ms, promised are {} ms",
                millis(took),
                millis(allowed)
            );
            return Ok(millis(took));
        }
        ensure!(
            since(killed) <= millis(PATIENCE),
            "only {first:?} of the survivors answered within {} s of the kill at {killed:?}",
            PATIENCE.as_secs()
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn bring_back(
    mesh: &mut Mesh,
    victim: usize,
    name: &str,
    lost: &BTreeMap<&String, &BootTime>,
) -> Result<()> {
    let known: BTreeSet<String> =
        branches_on(&mesh.status((victim + 1) % NODES.len()).await?, name);
    mesh.node_mut(victim)?.start(None)?;
    mesh.node_mut(victim)?.wait_until_up().await?;
    let back = |s: &flocker::api::Status| {
        let kept = lost.is_empty() || branches_on(s, name).difference(&known).next().is_some();
        settled(s, NODES.len()) && running_on(s) != Some(name) && kept
    };
    let status = mesh.until(victim, RETURN, "it is a replica and its tail a branch", back).await?;
    let branches = evidence::in_branches(mesh, &status).await?;
    let kept: BTreeSet<&String> = branches.values().flatten().collect();
    let gone: Vec<_> = lost.keys().filter(|line| !kept.contains(**line)).take(5).collect();
    ensure!(gone.is_empty(), "lost and in no branch: {gone:?}");
    Ok(())
}

fn branches_on(status: &flocker::api::Status, name: &str) -> BTreeSet<String> {
    let branches = status.volumes.iter().flat_map(|v| &v.branches);
    branches.filter(|b| b.node.as_str() == name).map(|b| b.name.clone()).collect()
}

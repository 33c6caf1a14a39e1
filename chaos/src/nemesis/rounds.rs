//! The rounds of one fault, in namespaces of their own.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flocker::api::Status;

use super::beats;
use super::faults::{self, Done, Fault, HOSTS};
use super::hosts::{Hosts, address};
use super::probes::Probes;
use super::report::Report;
use crate::clients::{Clients, Load};
use crate::invariants::writes::account;
use crate::measure::ms;
use crate::mesh::{HOST, Mesh, PATIENCE, running_on, settled, since};
use crate::node::Node;
use crate::plan::Plan;
use crate::watch::Watch;
use crate::{evidence, millis, say};

const SNAPSHOT_EVERY: Duration = Duration::from_millis(500);
/// The copies that the service asks for, its master's among them.
const COPIES: usize = 3;
/// How long a mesh may take to be well again after a fault.
const WELL_WITHIN: Duration = Duration::from_secs(60);
/// Time under load before each fault.
const BEFORE: Duration = Duration::from_millis(1_500);

/// What is to be run.
#[derive(Clone, Copy, Debug)]
pub struct Rounds {
    /// What is done.
    pub fault: Fault,
    /// How often.
    pub rounds: u32,
    /// Says how long before each, and to whom.
    pub seed: u64,
}

/// Runs them all and judges them.
///
/// # Errors
/// What did not hold, in which round.
pub async fn run(plan: Rounds, word: &str) -> Result<Report> {
    // The hosts go first: a folder with a disk in it does not go.
    let (hosts, mut mesh) = *Box::pin(start()).await?;
    let (hosts, mesh) = (&hosts, &mut mesh);
    let outcome = Box::pin(all(mesh, hosts, plan, word)).await;
    if outcome.is_err() || crate::mesh::keeps_all() {
        mesh.keep();
        hosts.save(&mesh.folder().join("kept"))?;
    }
    outcome.with_context(|| format!("logs and state are in {}/kept", mesh.folder().display()))
}

async fn start() -> Result<Box<(Hosts, Mesh)>> {
    let folder = tempfile::Builder::new().prefix("flocker-nemesis-").tempdir();
    let folder = folder.context("cannot make a folder")?;
    let binary = crate::binary::flocker()?;
    let disks = HOSTS.iter().map(|(name, _)| folder.path().join(name)).collect();
    let hosts = Hosts::make(disks)?;
    std::fs::create_dir(folder.path().join("beats")).context("cannot make a folder")?;
    let mut nodes = Vec::new();
    for (host, (name, region)) in HOSTS.iter().enumerate() {
        let mut node = Node::new(name, region, address(host), folder.path(), &binary);
        node.set_launcher(hosts.launcher(host)?);
        nodes.push(node);
    }
    let mesh = Mesh::of_nodes(nodes, folder, binary).await?;
    Ok(Box::new((hosts, mesh)))
}

async fn all(mesh: &mut Mesh, hosts: &Hosts, plan: Rounds, word: &str) -> Result<Report> {
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    let beats = mesh.folder().join("beats");
    let own = own.to_str().context("a strange path")?.to_owned();
    let environment = [(beats::FOLDER, beats.to_str().context("a strange path")?)];
    mesh.deploy_command(&[&own, "tally"], &environment, SNAPSHOT_EVERY).await?;
    well(mesh).await.context("at the start")?;
    let mut watch = Watch::start(mesh.folder())?;
    let targets: Vec<_> = mesh.nodes().iter().map(|n| (n.name().to_owned(), n.http())).collect();
    let load = Load { host: HOST, clients: 1, pace: Duration::from_millis(40) };
    let clients = Clients::start(&targets, load, "nemesis");
    let history = clients.history();
    let mut report = Report { fault: word.to_owned(), seed: plan.seed, ..Report::default() };
    for round in Plan::new(plan.seed, HOSTS.len()).take(plan.rounds as usize) {
        tokio::time::sleep(BEFORE + round.wait).await;
        one(mesh, hosts, plan.fault, round.victim, &mut report).await.with_context(|| {
            format!(
                "{word}, round {} of seed {}; clients saw {:?}",
                round.number,
                plan.seed,
                history.reasons()
            )
        })?;
        watch.check()?;
        report.beats = beats::judge(beats::read(&beats)?)?;
        report.rounds += 1;
        if report.rounds.is_multiple_of(10) {
            say(&format!("{word}: {} rounds", report.rounds));
        }
    }
    let history = clients.stop().await;
    well(mesh).await.context("at the end")?;
    let branches = evidence::in_branches(mesh, &mesh.status(0).await?).await?;
    let main = evidence::in_service(mesh, 0).await?;
    let account = account(&history.acknowledged(), &main, &branches)?;
    (report.acknowledged, report.in_branches) = (account.acknowledged, account.in_branches);
    report.looks = watch.end()?;
    mesh.judge_logs()?;
    Ok(report)
}

/// One fault, what follows from it, and the return to normal.
async fn one(
    mesh: &mut Mesh,
    hosts: &Hosts,
    fault: Fault,
    pick: usize,
    report: &mut Report,
) -> Result<()> {
    let status = well(mesh).await?;
    let master = mesh.number_of(running_on(&status).context("the service runs nowhere")?)?;
    let epoch = status.volumes.first().and_then(|v| v.epoch).context("no epoch is known")?;
    let mut replicated = BTreeSet::new();
    for host in faults::copies(mesh, master).await? {
        replicated.extend(evidence::in_copy(mesh, host).await?);
    }
    let done = fault.strike(mesh, hosts, master, pick).await.context("the fault")?;
    let moves = done.moves;
    let took = served(mesh, &done).await?;
    let witness = (0..HOSTS.len()).find(|host| !done.out.contains(host)).context("no witness")?;
    if moves {
        let elsewhere = |s: &Status| running_on(s).is_some_and(|node| node != HOSTS[master].0);
        let status = mesh.until(witness, PATIENCE, "the service runs elsewhere", elsewhere).await?;
        let now = status.volumes.first().and_then(|v| v.epoch).context("no epoch is known")?;
        ensure!(now > epoch, "epoch {epoch} before and {now} after");
        report.moved += 1;
    } else if fault == Fault::CutFromRegion {
        let status = mesh.status(witness).await?;
        let now = status.volumes.first().and_then(|v| v.epoch);
        ensure!(now == Some(epoch), "a master with a majority lost its lease: {now:?}");
    }
    report.first_success_ms.push(took);
    done.mend(mesh, hosts).await.context("mending")?;
    well(mesh).await.context("after the fault")?;
    let main: BTreeSet<String> = evidence::in_service(mesh, witness).await?.into_iter().collect();
    let lost: Vec<_> = replicated.difference(&main).take(5).collect();
    ensure!(lost.is_empty(), "replicated writes are not in the main line: {lost:?}");
    Ok(())
}

/// From the fault to the first answer, through any host that can be expected to serve, to a client
/// that asks after it.
async fn served(mesh: &Mesh, done: &Done) -> Result<f64> {
    let able = |(host, _): &(usize, &Node)| !done.out.contains(host);
    let through = mesh.nodes().iter().enumerate().filter(able).map(|(_, node)| node.http());
    let probes = Probes::start(through.collect());
    loop {
        if let Some(at) = probes.first() {
            return Ok(ms(at.saturating_since(done.at)));
        }
        ensure!(since(done.at) < millis(PATIENCE), "nobody serves after {} s", PATIENCE.as_secs());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Every host sees every other, the service and all of its copies up to date, and all five vote.
async fn well(mesh: &Mesh) -> Result<Status> {
    let whole =
        |s: &Status| settled(s, COPIES) && s.volumes.iter().all(|v| v.voters.len() == HOSTS.len());
    for host in 0..HOSTS.len() {
        mesh.until(host, WELL_WITHIN, "all is well", whole).await?;
    }
    mesh.until(0, WELL_WITHIN, "all is well", whole).await
}

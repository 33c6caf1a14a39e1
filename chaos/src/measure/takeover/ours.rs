//! Three agents of one region. The master's processes are killed all at once, as the death of its host
//! would; a request is what ends the time.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flocker::api::{Destination, EventEntry, EventQuery, MoveRequest};
use flocker_base::{Clock as _, Name, SystemClock};

use super::{Plan, Samples};
use crate::measure::ms;
use crate::mesh::{Mesh, PATIENCE, running_on, settled, since};
use crate::nemesis::probes::Probes;
use crate::processes;

const NODES: [(&str, &str); 3] = [("a", "eu"), ("b", "eu"), ("c", "us")];
const SNAPSHOT_EVERY: Duration = Duration::from_millis(500);

pub(super) async fn run(plan: &Plan, folder: &Path) -> Result<Samples> {
    std::fs::create_dir_all(folder).context("cannot make a folder")?;
    let lease = format!("{}ms", plan.lease.as_millis());
    let options = ["--lease", &lease];
    let mut mesh = Mesh::start_in(folder, &NODES, &options, &plan.binary).await?;
    mesh.deploy(SNAPSHOT_EVERY).await?;
    let mut samples = Samples { lease: plan.lease, ..Samples::default() };
    for _ in 0..plan.handoffs {
        samples.released.push(release(&mesh).await?);
    }
    for _ in 0..plan.kills {
        samples.killed.push(kill(&mut mesh).await?);
    }
    Ok(samples)
}

async fn well(mesh: &Mesh) -> Result<usize> {
    for node in 0..NODES.len() {
        mesh.until(node, PATIENCE, "all is well", |s| settled(s, NODES.len())).await?;
    }
    mesh.master(0).await
}

/// From the kill to the first answer through another node.
async fn kill(mesh: &mut Mesh) -> Result<f64> {
    let master = well(mesh).await?;
    // At any moment between two heartbeats.
    let moment = SystemClock.boot().since_boot().subsec_micros() % 500_000;
    tokio::time::sleep(Duration::from_micros(u64::from(moment))).await;
    let others = (0..NODES.len()).filter(|n| *n != master);
    let through = others.map(|n| mesh.nodes()[n].http()).collect();
    let folder = mesh.folder().join(NODES[master].0);
    let at = mesh.node_mut(master)?.kill().await?;
    while processes::kill_all(&folder, mesh.binary())? > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let probes = Probes::start(through);
    let first = loop {
        if let Some(first) = probes.first() {
            break first;
        }
        ensure!(since(at) < crate::millis(PATIENCE), "nobody took over");
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    drop(probes);
    let witness = (master + 1) % NODES.len();
    let elsewhere = |s: &flocker::api::Status| running_on(s).is_some_and(|n| n != NODES[master].0);
    mesh.until(witness, PATIENCE, "another leads", elsewhere).await?;
    mesh.node_mut(master)?.start(None)?;
    mesh.node_mut(master)?.wait_until_up().await?;
    Ok(ms(first.saturating_since(at)))
}

/// From the moment when the master begins to hand the lease over to the target's election, by the
/// clock that both share.
async fn release(mesh: &Mesh) -> Result<f64> {
    let master = well(mesh).await?;
    let target = usize::from(master == 0);
    let (from, to) = (mesh.nodes()[master].client(), mesh.nodes()[target].client());
    let request = MoveRequest {
        service: Name::new("tally")?,
        to: Destination::Node(Name::new(NODES[target].0)?),
    };
    from.move_service(&request, |_| {}).await.context("the move failed")?;
    let newest = |events: Vec<EventEntry>, kind: &str| {
        events.into_iter().rev().find(|e| e.kind == kind).map(|e| e.at)
    };
    let given = newest(from.events(&EventQuery::default()).await?.events, "lease.given");
    let won = newest(to.events(&EventQuery::default()).await?.events, "election.won");
    let (given, won) = given.zip(won).context("the story of the move is not told")?;
    Ok(ms(won.saturating_since(given)))
}

//! What a mesh of real agents does about a copy that is lost: its vote and then its place go to others,
//! and when its node comes back, what it still has is given back to the disk and nothing else.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flocker::api::{EventQuery, Status};
use flocker_base::{Clock as _, SystemClock};
use flocker_chaos::mesh::{Mesh, PATIENCE, running_on, settled, since};
use flocker_chaos::say;

const NODES: [(&str, &str); 4] = [("eu-1", "eu"), ("eu-2", "eu"), ("eu-3", "eu"), ("us-1", "us")];
/// The copies that the service asks for, its master's among them.
const COPIES: usize = 3;
/// The shortest that there is.
const REPLACE_AFTER: &str = "10s";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_copy_is_made_again_elsewhere_and_the_old_one_given_up() {
    let options = ["--replace-after", REPLACE_AFTER];
    let mut mesh = Mesh::start_with(&NODES, &options).await.expect("a mesh");
    if let Err(error) = all(&mut mesh).await {
        mesh.keep();
        panic!("{error:#}\nlogs and state are in {}", mesh.folder().display());
    }
}

fn names(list: &[flocker_base::Name]) -> Vec<&str> {
    list.iter().map(flocker_base::Name::as_str).collect()
}

fn votes(status: &Status, node: &str) -> bool {
    status.volumes.iter().all(|v| names(&v.voters).contains(&node))
}

fn holds(status: &Status, node: &str) -> bool {
    status.volumes.iter().all(|v| v.replicas.iter().any(|r| r.node.as_str() == node))
}

async fn all(mesh: &mut Mesh) -> Result<()> {
    mesh.deploy_at(0, Duration::from_millis(500)).await?;
    let well = |s: &Status| settled(s, COPIES) && votes_are(s, 3);
    let status = mesh.until(0, PATIENCE, "the service runs with its replicas", well).await?;
    let master = running_on(&status).context("the service runs")?.to_owned();
    // Of the three in eu one leads, one has a copy, one has neither.
    let eu: Vec<usize> = (0..3).filter(|n| mesh.nodes()[*n].name() != master).collect();
    let (lost, spare) =
        if holds(&status, mesh.nodes()[eu[0]].name()) { (eu[0], eu[1]) } else { (eu[1], eu[0]) };
    let at = mesh.number_of(&master)?;
    let (gone, other) =
        (mesh.nodes()[lost].name().to_owned(), mesh.nodes()[spare].name().to_owned());
    ensure!(holds(&status, &gone) && !holds(&status, &other), "{:?}", status.volumes);

    let began = SystemClock.boot();
    mesh.node_mut(lost)?.kill().await?;
    let voted = |s: &Status| !votes(s, &gone) && votes(s, &other) && votes_are(s, 3);
    let status = mesh.until(at, PATIENCE, "its vote is another's", voted).await?;
    let voted_after = since(began);
    ensure!(holds(&status, &gone), "its copy goes no sooner than its vote: {:?}", status.volumes);
    let placed = |s: &Status| !holds(s, &gone) && holds(s, &other) && whole(s);
    let status = mesh.until(at, PATIENCE, "its copy is another's", placed).await?;
    ensure!(status.volumes[0].can_fail_over, "{:?}", status.volumes[0].why_not);
    let placed_after = since(began);

    // It comes back with a copy that nobody wants.
    let folder = mesh.nodes()[lost].state_dir().join("volumes").join("volumes");
    ensure!(copies_in(&folder)? == 1, "it had a copy");
    mesh.node_mut(lost)?.start(None)?;
    mesh.node_mut(lost)?.wait_until_up().await?;
    let back = SystemClock.boot();
    while copies_in(&folder)? > 0 {
        ensure!(since(back) < flocker_chaos::millis(PATIENCE), "the old copy stays");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let events = mesh.nodes()[lost].client().events(&EventQuery::default()).await?.events;
    ensure!(events.iter().any(|e| e.kind == "copy.discarded"), "{events:?}");

    // The new copy and the new vote count: the master dies.
    mesh.node_mut(at)?.kill().await?;
    let elsewhere = |s: &Status| running_on(s).is_some_and(|node| node != master);
    let status = mesh.until(spare, PATIENCE, "another leads", elsewhere).await?;
    ensure!(running_on(&status) == Some(&other), "the one in eu leads: {:?}", status.volumes);
    say(&format!(
        "mending: a lost copy's vote was another's after {voted_after} ms and its place after \
         {placed_after} ms"
    ));
    mesh.judge_logs()?;
    mesh.stop().await
}

fn votes_are(status: &Status, count: usize) -> bool {
    status.volumes.iter().all(|v| v.voters.len() == count)
}

/// All copies that are listed are up to date.
fn whole(status: &Status) -> bool {
    let acked = |v: &flocker::api::VolumeStatus| {
        v.replicas.len() == COPIES && v.replicas.iter().all(|r| r.acked)
    };
    running_on(status).is_some() && status.volumes.iter().all(acked)
}

fn copies_in(folder: &Path) -> Result<usize> {
    Ok(std::fs::read_dir(folder).context("no volumes")?.count())
}

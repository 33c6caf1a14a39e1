//! Edits of a volume while its master can't be reached, as real processes: they wait on the node that
//! was asked, are made by themselves when the master answers again, and never over an edit that
//! their author did not see.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use flocker::api::{ChangeKind, MapReply, MapRequest, PendingEdit, Status};
use flocker_base::Clock as _;
use flocker_base::SystemClock;
use flocker_chaos::mesh::{Mesh, PATIENCE, live, running_on, settled, since};
use flocker_chaos::say;

const NODES: [(&str, &str); 3] = [("eu-1", "eu"), ("eu-2", "eu"), ("us-1", "us")];
const FIRST: Duration = Duration::from_millis(500);
const SECOND: Duration = Duration::from_millis(700);
const THIRD: Duration = Duration::from_millis(900);
/// Longer than an edit takes that waits, once its master answers.
const SETTLED: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edit_waits_for_the_master_and_never_overwrites_another() {
    let mut mesh = Mesh::start(&NODES).await.expect("a mesh");
    if let Err(error) = all(&mut mesh).await {
        mesh.keep();
        panic!("{error:#}\nlogs and state are in {}", mesh.folder().display());
    }
}

async fn all(mesh: &mut Mesh) -> Result<()> {
    mesh.deploy(FIRST).await?;
    let began = SystemClock.boot();
    made_when_the_master_is_back(mesh).await?;
    refused_over_an_edit_that_was_not_seen(mesh).await?;
    say(&format!("pending edits: made and refused as they must, in {} ms", since(began)));
    mesh.judge_logs()?;
    mesh.stop().await
}

async fn waiting(mesh: &Mesh, node: usize) -> Result<Vec<PendingEdit>> {
    match mesh.nodes()[node].client().map(&MapRequest::Pending).await? {
        MapReply::Pending(list) => Ok(list.edits),
        other => bail!("another answer: {other:?}"),
    }
}

/// The node that is left when the master and another are killed.
async fn leave_one(mesh: &mut Mesh) -> Result<usize> {
    let left = (mesh.master(0).await? + 1) % NODES.len();
    for node in (0..NODES.len()).filter(|node| *node != left) {
        mesh.node_mut(node)?.kill().await?;
    }
    mesh.until(left, PATIENCE, "it is alone", |s| live(s) == 1).await?;
    Ok(left)
}

async fn start(mesh: &mut Mesh, nodes: impl Iterator<Item = usize>) -> Result<()> {
    for node in nodes {
        mesh.node_mut(node)?.start(None)?;
        mesh.node_mut(node)?.wait_until_up().await?;
    }
    Ok(())
}

/// Waits until every node is well and has the volume as this deployment says it, and that nothing
/// else is made of it then.
async fn is_everywhere(mesh: &Mesh, snapshot_every: Duration) -> Result<()> {
    let wanted = flocker_chaos::millis(snapshot_every);
    let is = |s: &Status| s.volumes.iter().all(|v| v.snapshot_every_ms == wanted);
    for node in 0..NODES.len() {
        let what = format!("all is well, with a snapshot every {wanted} ms");
        mesh.until(node, PATIENCE, &what, |s| settled(s, NODES.len()) && is(s)).await?;
    }
    tokio::time::sleep(SETTLED).await;
    for node in 0..NODES.len() {
        let reply = mesh.deploy_at(node, snapshot_every).await?;
        let same = reply.changes.iter().all(|change| change.change == ChangeKind::Unchanged);
        ensure!(same, "{} had another: {reply:?}", mesh.nodes()[node].name());
    }
    Ok(())
}

/// Waits until the edits that wait on this node are as they should be.
async fn until(
    mesh: &Mesh,
    node: usize,
    what: &str,
    is: impl Fn(&[PendingEdit]) -> bool,
) -> Result<Vec<PendingEdit>> {
    let began = SystemClock.boot();
    loop {
        let edits = waiting(mesh, node).await?;
        if is(&edits) {
            return Ok(edits);
        }
        ensure!(since(began) < flocker_chaos::millis(PATIENCE), "not {what}: {edits:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn made_when_the_master_is_back(mesh: &mut Mesh) -> Result<()> {
    let left = leave_one(mesh).await?;
    let reply = mesh.deploy_at(left, SECOND).await?;
    ensure!(reply.warnings.iter().any(|line| line.contains("flocker pending ls")), "{reply:?}");
    let edits = waiting(mesh, left).await?;
    ensure!(edits.len() == 1 && edits[0].refused.is_none(), "{edits:?}");
    // What waits is on disk.
    mesh.node_mut(left)?.kill().await?;
    start(mesh, [left].into_iter()).await?;
    ensure!(waiting(mesh, left).await? == edits, "it is not what it was after a restart");
    start(mesh, (0..NODES.len()).filter(|node| *node != left)).await?;
    until(mesh, left, "made", <[PendingEdit]>::is_empty).await?;
    is_everywhere(mesh, SECOND).await.context("the edit did not reach every node")
}

async fn refused_over_an_edit_that_was_not_seen(mesh: &mut Mesh) -> Result<()> {
    let left = leave_one(mesh).await?;
    mesh.deploy_at(left, FIRST).await?;
    mesh.node_mut(left)?.kill().await?;
    let others = || (0..NODES.len()).filter(move |node| *node != left);
    start(mesh, others()).await?;
    let other = others().next().context("another node")?;
    mesh.until(other, PATIENCE, "it is served again", |s| running_on(s).is_some()).await?;
    let reply = mesh.deploy_at(other, THIRD).await?;
    ensure!(waiting(mesh, other).await?.is_empty(), "{reply:?}");
    start(mesh, [left].into_iter()).await?;
    let refused = |edits: &[PendingEdit]| edits.first().is_some_and(|it| it.refused.is_some());
    let edits = until(mesh, left, "refused", refused).await?;
    ensure!(edits.len() == 1, "{edits:?}");
    let number = edits[0].number;
    is_everywhere(mesh, THIRD).await.context("overwritten by an edit that saw less")?;
    mesh.nodes()[left].client().map(&MapRequest::DropPending { number }).await?;
    ensure!(waiting(mesh, left).await?.is_empty(), "it is not dropped");
    Ok(())
}

//! A mesh of two nodes, whose volume has one voter: nobody can be elected when that dies. A person
//! promotes the other copy by force; the former master ends when it is back, and is a replica.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use flocker::api::{ApiError, ErrorCode, EventQuery, PromoteRequest, Promoted};
use flocker_base::{Clock as _, Name, SystemClock};
use flocker_chaos::http::HttpClient;
use flocker_chaos::mesh::{HOST, Mesh, PATIENCE, VOLUME, live, running_on, settled, since};
use flocker_chaos::{processes, say};

const NODES: [(&str, &str); 2] = [("eu-1", "eu"), ("us-1", "us")];
/// Longer than any promise that a voter makes.
const PROMISE: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_copy_of_a_mesh_of_two_is_promoted_by_force_and_the_other_comes_back_as_a_replica() {
    let mut mesh = Mesh::start(&NODES).await.expect("a mesh");
    if let Err(error) = all(&mut mesh).await {
        mesh.keep();
        panic!("{error:#}\nlogs and state are in {}", mesh.folder().display());
    }
}

async fn promote(
    mesh: &Mesh,
    at: usize,
    gone: Option<&str>,
    node: Option<&str>,
) -> Result<std::result::Result<Promoted, ApiError>> {
    let name = |text: &str| Name::new(text).context("a name");
    let request = PromoteRequest {
        volume: name(VOLUME)?,
        node: node.map(name).transpose()?,
        gone: gone.map(name).transpose()?,
    };
    Ok(mesh.nodes()[at].client().promote(&request).await)
}

async fn write(mesh: &Mesh, at: usize, line: &str) -> Result<()> {
    let mut client = HttpClient::new(mesh.nodes()[at].http(), HOST);
    let posted = client.post(line, PATIENCE).await;
    posted.map(drop).map_err(|why| anyhow::anyhow!("{line} is not taken: {why}"))
}

async fn all(mesh: &mut Mesh) -> Result<()> {
    mesh.deploy(Duration::from_millis(500)).await?;
    let gone = mesh.master(0).await?;
    let master = mesh.nodes()[gone].name().to_owned();
    let left = 1 - gone;
    let name = mesh.nodes()[left].name().to_owned();
    write(mesh, left, "before").await?;
    mesh.until(left, PATIENCE, "it is replicated", |s| settled(s, NODES.len())).await?;
    refusals(mesh, left, &master).await?;
    let pid = mesh.status(gone).await?.services.first().and_then(|s| s.pid);
    mesh.node_mut(gone)?.kill().await?;
    processes::kill_group(pid.context("the service has a process")?)?;
    mesh.until(left, PATIENCE, "the master is suspected", |s| live(s) == 1).await?;
    tokio::time::sleep(PROMISE).await;
    let Err(refused) = promote(mesh, left, None, None).await? else { bail!("without a quorum") };
    let text = refused.to_string();
    ensure!(refused.code == ErrorCode::Fenced && text.contains(&master), "{refused:?}");
    ensure!(refused.hint.contains("--force"), "{refused:?}");
    let began = SystemClock.boot();
    let promoted = promote(mesh, left, Some(&master), None).await??;
    let took = since(began);
    ensure!(promoted.forced && promoted.epoch.generation > 0, "{promoted:?}");
    ensure!(promoted.serving.is_some() && promoted.node.as_str() == name, "{promoted:?}");
    write(mesh, left, "after").await?;
    let events = mesh.nodes()[left].client().events(&EventQuery::default()).await?.events;
    ensure!(events.iter().any(|e| e.kind == "volume.promoted"), "{events:?}");
    comes_back(mesh, gone, left).await?;
    say(&format!("promotion: {name} leads by force after {took} ms, {master} is its replica"));
    mesh.judge_logs()?;
    mesh.stop().await
}

/// While the master lives, nothing of this moves it.
async fn refusals(mesh: &Mesh, left: usize, master: &str) -> Result<()> {
    let Err(held) = promote(mesh, left, Some(master), None).await? else {
        bail!("a master that lives was taken from by force")
    };
    ensure!(held.code == ErrorCode::Fenced && held.to_string().contains(master), "{held:?}");
    let other = mesh.nodes()[left].name();
    let Err(wrong) = promote(mesh, left, Some(other), None).await? else {
        bail!("another was named as gone")
    };
    ensure!(wrong.code == ErrorCode::Usage && wrong.hint.contains(master), "{wrong:?}");
    let Err(unknown) = promote(mesh, left, None, Some("nobody")).await? else {
        bail!("no such node")
    };
    ensure!(unknown.code == ErrorCode::NotFound, "{unknown:?}");
    let has_it = promote(mesh, left, None, Some(master)).await??;
    ensure!(!has_it.forced && has_it.epoch.generation == 0, "who leads is left alone: {has_it:?}");
    ensure!(running_on(&mesh.status(left).await?) == Some(master), "it moved");
    Ok(())
}

async fn comes_back(mesh: &mut Mesh, gone: usize, left: usize) -> Result<()> {
    mesh.node_mut(gone)?.start(None)?;
    mesh.node_mut(gone)?.wait_until_up().await?;
    let name = mesh.nodes()[left].name().to_owned();
    for node in [gone, left] {
        let what = "the promoted one leads alone, with a replica that is up to date";
        mesh.until(node, PATIENCE, what, |s| {
            settled(s, NODES.len()) && running_on(s) == Some(name.as_str())
        })
        .await?;
    }
    let status = mesh.status(gone).await?;
    let volume = status.volumes.first().context("the volume")?;
    ensure!(volume.epoch.is_some_and(|e| e.generation > 0), "{volume:?}");
    write(mesh, gone, "through the one that came back").await
}

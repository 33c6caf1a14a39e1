//! One agent's wall clock is a day ahead, then a day behind. Leases run on another clock, so
//! nothing moves; what the wrong clock stamps is refused with a line that is itself rare; and
//! neither the map of the others nor the service changes.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use flocker::api::Status;
use flocker_base::{Clock as _, SystemClock};
use flocker_chaos::http::HttpClient;
use flocker_chaos::mesh::{HOST, Mesh, PATIENCE, running_on, settled, since};
use flocker_chaos::{clock, say};

const NODES: [(&str, &str); 3] = [("eu-1", "eu"), ("eu-2", "eu"), ("us-1", "us")];
const DAY_SECS: i64 = 24 * 3600;
/// Which agent's clock is wrong: one that holds no lease, so that a restart moves nothing.
const WRONG: usize = 2;
/// How long the mesh runs with a wrong clock in it.
const SPAN: Duration = Duration::from_secs(25);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_a_day_off_changes_nothing() {
    let mut mesh = Mesh::start(&NODES).await.expect("a mesh");
    if let Err(error) = all(&mut mesh).await {
        mesh.keep();
        panic!("{error:#}\nlogs and state are in {}", mesh.folder().display());
    }
}

async fn all(mesh: &mut Mesh) -> Result<()> {
    mesh.deploy(Duration::from_millis(500)).await?;
    let library = clock::library(mesh.folder())?;
    for offset in [DAY_SECS, -DAY_SECS] {
        let wrong = vec![
            ("LD_PRELOAD".to_owned(), library.clone().into()),
            (clock::OFFSET.to_owned(), offset.to_string().into()),
        ];
        one(mesh, offset, wrong).await.with_context(|| format!("{offset} s off"))?;
    }
    restart(mesh, Vec::new()).await?;
    for node in 0..NODES.len() {
        mesh.until(node, PATIENCE, "all is well", |s| settled(s, NODES.len())).await?;
    }
    mesh.judge_logs()?;
    mesh.stop().await
}

async fn restart(mesh: &mut Mesh, variables: Vec<(String, std::ffi::OsString)>) -> Result<()> {
    let node = mesh.node_mut(WRONG)?;
    node.stop().await?;
    node.set_environment(variables);
    node.start(None)?;
    node.wait_until_up().await.map(drop)
}

async fn one(
    mesh: &mut Mesh,
    offset: i64,
    variables: Vec<(String, std::ffi::OsString)>,
) -> Result<()> {
    let before = what_counts(&mesh.status(0).await?);
    let marks: Vec<_> = mesh.nodes().iter().map(|node| node.log().mark()).collect();
    restart(mesh, variables).await?;
    ensure!(dates_differ(mesh), "the clock is not off: the test proves nothing");
    for node in 0..NODES.len() {
        mesh.until(node, PATIENCE, "all is well", |s| settled(s, NODES.len())).await?;
    }
    // What the wrong clock would stamp: a token, made there.
    let request = flocker::api::TokenCreate::lasting(60_000);
    let edited = mesh.nodes()[WRONG].client().create_token(&request).await;
    say(&format!("clocks: {offset} s off, an edit: {:?}", edited.as_ref().map(|_| "made")));
    let began = SystemClock.boot();
    let mut writes = 0;
    while since(began) < flocker_chaos::millis(SPAN) {
        for node in mesh.nodes() {
            writes += 1;
            let mut client = HttpClient::new(node.http(), HOST);
            let line = format!("clocks-{offset}-{writes}");
            let served = client.post(&line, PATIENCE).await;
            served.map_err(|why| anyhow!("{} does not serve: {why}", node.name()))?;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    ensure!(what_counts(&mesh.status(0).await?) == before, "it changed something");
    for (node, mark) in mesh.nodes().iter().zip(marks).take(WRONG) {
        let text = node.log().since(mark)?;
        let refusals = text.lines().filter(|line| line.contains("ahead of this node's clock"));
        // A push and pulls: a line in 10 s.
        let (count, most) = (refusals.count(), SPAN.as_secs() / 10 + 2);
        ensure!(count as u64 <= most, "{}: {count} lines in {SPAN:?}", node.name());
        ensure!(text.lines().count() < 100, "{} says too much:\n{text}", node.name());
        if offset > 0 {
            ensure!(edited.is_err() || count > 0, "{} took in a record of tomorrow", node.name());
        }
    }
    mesh.judge_logs()
}

/// The master, its epoch, its voters and replicas, and where the service is.
fn what_counts(status: &Status) -> impl PartialEq + std::fmt::Debug + use<> {
    let volume = |v: &flocker::api::VolumeStatus| {
        let replicas: Vec<_> = v.replicas.iter().map(|r| r.node.clone()).collect();
        (v.name.clone(), v.master.clone(), v.epoch, v.voters.clone(), replicas)
    };
    let volumes: Vec<_> = status.volumes.iter().map(volume).collect();
    (volumes, running_on(status).map(str::to_owned))
}

/// Whether the two agents date their newest log lines differently.
fn dates_differ(mesh: &Mesh) -> bool {
    let date = |node: usize| {
        let end = mesh.nodes()[node].log().end();
        end.lines().last().map(|line| line.trim().chars().take(10).collect::<String>())
    };
    date(WRONG) != date(0)
}

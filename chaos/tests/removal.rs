//! Nodes that are removed from the cluster, as real processes over real sockets: one while it lives
//! and is a volume's master, one while it is down and comes back. It is refused everywhere, stops its
//! services, keeps its data, can't come back as itself, and can as a new node, with a token for
//! exactly one that another node must not redeem.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use flocker::api::{
    ErrorCode, EventQuery, NodeList, NodeRemove, NodeState, Severity, Status, TokenCreate,
    TokenState,
};
use flocker_base::{Clock as _, SystemClock};
use flocker_chaos::mesh::{Mesh, PATIENCE, live, running_on, since};
use flocker_chaos::say;
use flocker_gossip::identity::NodeIdentity;
use flocker_quic::{Endpoint, EndpointConfig, REMOVED};

const NODES: [(&str, &str); 3] = [("eu-1", "eu"), ("eu-2", "eu"), ("us-1", "us")];
const EU_2: usize = 1;
const US_1: usize = 2;
const HOUR: u64 = 3_600_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_is_refused_stops_and_joins_as_new() {
    let mut mesh = Mesh::start(&NODES).await.expect("a mesh");
    if let Err(error) = all(&mut mesh).await {
        mesh.keep();
        panic!("{error:#}\nlogs and state are in {}", mesh.folder().display());
    }
}

async fn all(mesh: &mut Mesh) -> Result<()> {
    mesh.deploy(Duration::from_millis(500)).await?;
    while_it_lives_and_is_master(mesh).await?;
    back_as_new(mesh).await?;
    while_it_is_down(mesh).await?;
    mesh.judge_logs()
}

async fn nodes(mesh: &Mesh, at: usize) -> Result<NodeList> {
    mesh.nodes()[at].client().nodes().await.context("no list of nodes")
}

async fn remove(mesh: &Mesh, at: usize, node: &str, force: bool) -> Result<()> {
    let request = NodeRemove { node: node.to_owned(), force };
    mesh.nodes()[at].client().remove_node(&request).await.map(drop).context("not removed")
}

fn says_removed(status: &Status) -> bool {
    let first = status.attention.first();
    first.is_some_and(|a| {
        a.severity == Severity::Critical && a.text.contains("was removed from the cluster")
    })
}

/// The master of the volume is removed while it lives: the others take over, it stops.
async fn while_it_lives_and_is_master(mesh: &mut Mesh) -> Result<()> {
    let gone = mesh.master(0).await?;
    let master = mesh.nodes()[gone].name().to_owned();
    let other = (gone + 1) % NODES.len();
    let token = TokenCreate::lasting(HOUR);
    mesh.nodes()[gone].client().create_token(&token).await.context("no token")?;
    let Err(refused) = remove(mesh, other, &master, false).await else {
        bail!("a live master went without force")
    };
    let text = format!("{refused:#}");
    ensure!(text.contains("lives") && text.contains("master of volume data"), "{text}");
    let marks: Vec<_> = mesh.nodes().iter().map(|n| n.log().mark()).collect();
    let began = SystemClock.boot();
    remove(mesh, other, &master, true).await?;
    for peer in (0..NODES.len()).filter(|n| *n != gone) {
        mesh.until(peer, PATIENCE, "the removed node is not shown and another serves", |s| {
            s.nodes.len() == 2 && live(s) == 2 && running_on(s).is_some_and(|node| node != master)
        })
        .await?;
        let list = nodes(mesh, peer).await?;
        let removed = list.nodes.iter().find(|n| n.name.as_str() == master);
        ensure!(removed.is_some_and(|n| n.state == NodeState::Removed), "{list:?}");
        let log = mesh.nodes()[peer].log().since(marks[peer])?;
        // Whichever of the three comes first ends the connections.
        let ways = ["dropped the connections", "closed its connections", "refused a"];
        ensure!(ways.iter().any(|way| log.contains(way)), "{log}");
        let tokens = mesh.nodes()[peer].client().tokens().await?.tokens;
        ensure!(tokens.iter().any(|t| t.state == TokenState::Void), "{tokens:?}");
        let events = mesh.nodes()[peer].client().events(&EventQuery::default()).await?.events;
        let told = events.iter().filter(|e| e.kind == "node.removed" && e.subject == master);
        ensure!(told.count() == 1, "{events:?}");
    }
    let took = SystemClock.boot().saturating_since(began);
    for peer in (0..NODES.len()).filter(|n| *n != gone) {
        is_refused_on_both_ports(mesh, peer, gone).await?;
    }
    mesh.until(gone, PATIENCE, "the removed node says so and runs nothing", |s| {
        says_removed(s) && s.services.iter().all(|x| x.pid.is_none())
    })
    .await?;
    let log = mesh.nodes()[gone].log().since(marks[gone])?;
    ensure!(log.contains("THIS NODE WAS REMOVED FROM THE CLUSTER"), "{log}");
    let order = mesh.nodes()[gone].client().create_token(&token).await;
    ensure!(order.is_err_and(|e| e.code == ErrorCode::NotPermitted), "it still makes tokens");
    ensure!(has_data(&mesh.nodes()[gone].state_dir())?, "its data is gone");
    mesh.node_mut(gone)?.stop().await?;
    mesh.node_mut(gone)?.start(None)?;
    mesh.node_mut(gone)?.wait_until_up().await?;
    mesh.until(gone, PATIENCE, "it says so after a restart, and runs nothing", says_removed)
        .await?;
    say(&format!("removal: {master}, live and master, was replaced after {} ms", took.as_millis()));
    mesh.node_mut(gone)?.stop().await.map(drop)
}

/// Knocks at the node's ports with what identifies the removed one, whose process still runs.
async fn is_refused_on_both_ports(mesh: &Mesh, peer: usize, removed: usize) -> Result<()> {
    let own = |at: usize| NodeIdentity::load(&mesh.nodes()[at].state_dir());
    let identity = own(removed)?.context("its identity")?.to_quic();
    let to = own(peer)?.context("the peer's identity")?.store();
    let node = &mesh.nodes()[peer];
    let from = SocketAddr::from((node.control().ip(), 0));
    for (config, at) in
        [(EndpointConfig::control(from), node.control()), (EndpointConfig::data(from), node.data())]
    {
        let mark = node.log().mark();
        let endpoint = Endpoint::bind(&config, &identity)?;
        // Its certificate holds, so it may hear of the refusal while it connects or just after.
        let refusal = async {
            match endpoint.connect(to, at, PATIENCE).await {
                Ok(connection) => connection.closed().await,
                Err(refusal) => refusal,
            }
        };
        let refusal = tokio::time::timeout(PATIENCE, refusal).await;
        let reason = refusal.with_context(|| format!("{at} serves a removed node"))?.to_string();
        ensure!(reason.contains(REMOVED), "{at}: {reason}");
        let began = SystemClock.boot();
        while !node.log().since(mark)?.contains("this node was removed") {
            ensure!(since(began) < flocker_chaos::millis(PATIENCE), "{at}: it is not logged");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(())
}

/// Volumes' live folders hold files.
fn has_data(state: &Path) -> Result<bool> {
    let volumes = state.join("volumes").join("volumes");
    for volume in std::fs::read_dir(&volumes).context("no volumes")? {
        let live = volume?.path().join("live");
        if live.is_dir() && std::fs::read_dir(live)?.next().is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The machine of the removed node, under its old store in vain, under a new one with success.
async fn back_as_new(mesh: &mut Mesh) -> Result<()> {
    let (stays, gone) = {
        let list = nodes(mesh, live_node(mesh)?).await?;
        let removed = list.nodes.iter().find(|n| n.state == NodeState::Removed);
        let gone = mesh.number_of(removed.context("a removed node")?.name.as_str())?;
        ((gone + 1) % NODES.len(), gone)
    };
    let request = TokenCreate { uses: Some(1), ..TokenCreate::lasting(HOUR) };
    let made = mesh.nodes()[stays].client().create_token(&request).await?;
    let (token, _) = made.join.split_once('@').context("a join line")?;
    let elsewhere = (gone + 2) % NODES.len();
    let line = format!("{token}@{}", mesh.nodes()[elsewhere].control());

    let state = mesh.nodes()[gone].state_dir();
    std::fs::remove_file(state.join("identity")).context("its identity")?;
    refused(mesh, gone, &line, "was removed from this cluster").await?;

    std::fs::rename(&state, state.with_extension("removed")).context("its state folder")?;
    let mark = mesh.nodes()[elsewhere].log().mark();
    // The node that is asked first is not the token's maker: it says who is.
    let name = mesh.nodes()[gone].name().to_owned();
    let maker = mesh.nodes()[stays].control();
    mesh.node_mut(gone)?.start(Some(&line))?;
    mesh.node_mut(gone)?.wait_until_up().await?;
    let log = mesh.nodes()[elsewhere].log().since(mark)?;
    ensure!(
        log.contains("only the node that made it") && log.contains(&maker.to_string()),
        "{log}"
    );
    for node in 0..NODES.len() {
        mesh.until(node, PATIENCE, "three live again", |s| live(s) == 3 && s.nodes.len() == 3)
            .await?;
    }
    let tokens = mesh.nodes()[elsewhere].client().tokens().await?.tokens;
    let used = tokens.iter().find(|t| Some(t.id) == made.id).context("the token")?;
    ensure!(used.state == TokenState::UsedUp && used.uses_left == Some(0), "{used:?}");
    let list = nodes(mesh, stays).await?;
    let mut named = list.nodes.iter().filter(|n| n.name.as_str() == name);
    ensure!(named.any(|n| n.state == NodeState::Live), "its name is not its own again: {list:?}");
    Ok(())
}

fn live_node(mesh: &Mesh) -> Result<usize> {
    mesh.nodes().iter().position(|n| n.is_started()).context("no agent runs")
}

/// Starts a node that must be refused for this reason and end.
async fn refused(mesh: &mut Mesh, node: usize, join: &str, why: &str) -> Result<()> {
    mesh.node_mut(node)?.start(Some(join))?;
    let Err(error) = mesh.node_mut(node)?.wait_until_up().await else { bail!("it was admitted") };
    let text = format!("{error:#}");
    ensure!(text.contains(why), "{text}");
    mesh.node_mut(node)?.abandon();
    Ok(())
}

/// A node is removed while it is down. Its own map never hears of it: its peers tell it.
async fn while_it_is_down(mesh: &mut Mesh) -> Result<()> {
    let gone = if mesh.master(0).await? == EU_2 { US_1 } else { EU_2 };
    let name = mesh.nodes()[gone].name().to_owned();
    mesh.node_mut(gone)?.kill().await?;
    mesh.until(0, PATIENCE, "it is suspected", |s| live(s) == 2).await?;
    remove(mesh, 0, &name, true).await?;
    for peer in (0..NODES.len()).filter(|n| *n != gone) {
        mesh.until(peer, PATIENCE, "it is not shown", |s| s.nodes.len() == 2).await?;
    }
    let mark = mesh.nodes()[gone].log().mark();
    mesh.node_mut(gone)?.start(None)?;
    mesh.node_mut(gone)?.wait_until_up().await?;
    mesh.until(gone, PATIENCE, "it heard from its peers that it was removed", says_removed).await?;
    let log = mesh.nodes()[gone].log().since(mark)?;
    ensure!(log.contains("a peer refuses this node: it was removed from the cluster"), "{log}");
    for peer in (0..NODES.len()).filter(|n| *n != gone) {
        let status = mesh.status(peer).await?;
        ensure!(live(&status) == 2 && status.nodes.len() == 2, "it is back: {:?}", status.nodes);
    }
    Ok(())
}

//! Real gossip, recorded and sent again in any order, also across restarts of who said it and of
//! who hears it: the view stays as it was.

use std::sync::Mutex;

use async_trait::async_trait;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use super::*;
use crate::control::Handler;

/// Writes down what arrives on its way to the real handler.
struct Ear {
    handler: Arc<dyn Handler>,
    heard: Arc<Mutex<Vec<(StoreId, Bytes)>>>,
}

#[async_trait]
impl Handler for Ear {
    async fn on_message(&self, from: StoreId, payload: Bytes) {
        self.heard.lock().expect("no panic").push((from, payload.clone()));
        self.handler.on_message(from, payload).await;
    }

    async fn on_call(&self, from: StoreId, payload: Bytes) -> Result<Bytes, String> {
        self.handler.on_call(from, payload).await
    }
}

type Heard = Arc<Mutex<Vec<(StoreId, Bytes)>>>;

/// Listens in at a node.
fn listen(mesh: &Mesh, node: &Node) -> Heard {
    let heard = Heard::default();
    let handler: Arc<dyn Handler> = Arc::clone(&node.membership.inner.region_inlet) as _;
    let ear = Ear { handler, heard: Arc::clone(&heard) };
    mesh.net.handle(node.store, Kind::Membership, Arc::new(ear));
    heard
}

fn orders(heard: &Heard) -> Vec<(StoreId, Bytes)> {
    let heard = heard.lock().expect("no panic").clone();
    let mut all: Vec<_> = heard.iter().rev().cloned().collect();
    all.extend(heard.iter().cloned());
    let mut shuffled = heard;
    shuffled.shuffle(&mut StdRng::seed_from_u64(5));
    all.extend(shuffled);
    all
}

/// Sends it all to a node again, as those who said it, and lets the node take it in.
async fn replay(mesh: &Mesh, to: &Node, messages: &[(StoreId, Bytes)]) {
    for batch in messages.chunks(20) {
        for (from, payload) in batch {
            mesh.net.node(*from).send(to.store, Kind::Membership, payload.clone());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What the view says of each node.
fn known(node: &Node) -> Vec<(StoreId, Incarnation, Liveness, String)> {
    let view = node.membership.view().borrow().clone();
    let line = |(store, member): (&StoreId, &Arc<Member>)| {
        (*store, member.incarnation, member.liveness, member.facts.name.to_string())
    };
    view.nodes.iter().map(line).collect()
}

#[tokio::test(start_paused = true)]
async fn what_a_node_said_before_its_restart_is_not_believed_after_it() {
    let mut mesh = Mesh::new();
    let mut nodes = mesh.start_all(3);
    let heard = listen(&mesh, &nodes[0]);
    mesh.settled(&nodes).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    nodes[1].shutdown.cancel();
    mesh.tasks.join_next().await;
    mesh.net.remove(store(2));
    let before_restart = orders(&heard);
    assert!(before_restart.len() > 100, "{} messages are no traffic", before_restart.len());

    nodes[1] = mesh.start(2, 2, &[1], Mesh::book());
    let again = |view: &View| {
        view.nodes
            .get(&store(2))
            .is_some_and(|m| m.incarnation == Incarnation(2) && m.liveness == Liveness::Live)
    };
    nodes[0].wait("back", 20, again).await;
    let before = known(&nodes[0]);
    replay(&mesh, &nodes[0], &before_restart).await;
    assert_eq!(known(&nodes[0]), before, "old gossip is believed");
    assert_eq!(known(&nodes[2]), before, "or told to others");

    // The hearer restarts, and has nothing but the replay and its live peers to learn from.
    nodes[0].shutdown.cancel();
    mesh.tasks.join_next().await;
    nodes[0] = mesh.start(1, 2, &[2, 3], Mesh::book());
    replay(&mesh, &nodes[0], &before_restart).await;
    nodes[0].wait("all live", 20, again).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let mut expected = before;
    expected[0].1 = Incarnation(2);
    expected[0].3 = "n1-2".to_owned();
    assert_eq!(known(&nodes[0]), expected, "old gossip is believed by a node that forgot");
}

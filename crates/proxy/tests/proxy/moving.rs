//! A move under load: nothing fails, and every POST is counted once.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::StatusCode;
use tokio::task::JoinSet;

use crate::harness::{Backend, Client, Mesh, Node, SERVICE, Seen, config, post};

const CLIENTS: usize = 16;

#[derive(Default)]
struct Load {
    stop: AtomicBool,
    sent: AtomicUsize,
    failed: Mutex<Vec<String>>,
}

impl Load {
    /// One client: POSTs as fast as it can, each with a text of its own, on one connection.
    async fn client(self: Arc<Self>, node: Node, name: usize) {
        let mut client = Client::connect(node.address).await;
        let mut number = 0;
        while !self.stop.load(SeqCst) {
            number += 1;
            let failed = match client.send(post(format!("{name}/{number}"))).await {
                Ok(answer) if answer.status == StatusCode::OK => None,
                Ok(answer) => Some(format!("{} {}", answer.status, answer.text)),
                Err(error) => Some(error.to_string()),
            };
            self.sent.fetch_add(1, SeqCst);
            if let Some(failed) = failed {
                self.failed.lock().expect("lock").push(failed);
                return;
            }
        }
    }

    async fn reaches(&self, more: usize) {
        let target = self.sent.load(SeqCst) + more;
        crate::harness::eventually("the load goes on", || {
            self.sent.load(SeqCst) >= target || !self.failed.lock().expect("lock").is_empty()
        })
        .await;
    }
}

/// What the agents do in a move, the data aside.
async fn carry(
    mesh: &Mesh,
    from: &Node,
    to: &Node,
    nodes: &[Node],
    backend: &Backend,
    epoch: u64,
) -> Backend {
    from.proxy.hold(SERVICE);
    let drained = from.proxy.drain(SERVICE, Duration::from_secs(5)).await;
    assert_eq!(drained.in_flight_left, 0);
    backend.stop().await;
    let moved =
        Backend::start_on(mesh, Duration::ZERO, Arc::clone(&backend.seen), "127.0.0.1:0").await;
    to.local(&moved, epoch);
    from.remote(to.id);
    from.proxy.release(SERVICE);
    // The others learn of it later: until then they go by way of the old host.
    tokio::time::sleep(Duration::from_millis(20)).await;
    for node in nodes.iter().filter(|node| node.id != to.id && node.id != from.id) {
        node.remote(to.id);
    }
    moved
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_moves_to_and_fro_under_load_and_no_request_fails() {
    let mesh = Mesh::new();
    let mut backend = Backend::start(&mesh, Duration::ZERO).await;
    let mut nodes = Vec::new();
    for number in 1..=3 {
        nodes.push(mesh.node(number, config()).await);
    }
    nodes[0].local(&backend, 1);
    nodes[1].remote(nodes[0].id);
    nodes[2].remote(nodes[0].id);
    let load = Arc::new(Load::default());
    let mut clients = JoinSet::new();
    for name in 0..CLIENTS {
        clients.spawn(Arc::clone(&load).client(nodes[name % 3].clone(), name));
    }
    let path = [(0, 1), (1, 0), (0, 2), (2, 1), (1, 0)];
    for (epoch, (from, to)) in path.into_iter().enumerate() {
        load.reaches(200).await;
        let (from, to) = (&nodes[from], &nodes[to]);
        backend = carry(&mesh, from, to, &nodes, &backend, epoch as u64 + 2).await;
    }
    load.reaches(200).await;
    load.stop.store(true, SeqCst);
    clients.join_all().await;
    assert_eq!(*load.failed.lock().expect("lock"), Vec::<String>::new());
    let seen: Vec<Seen> = backend.seen.lock().expect("lock").clone();
    assert_eq!(seen.len(), load.sent.load(SeqCst), "each POST once");
    let mut bodies: Vec<_> = seen.into_iter().map(|seen| seen.body).collect();
    bodies.sort();
    bodies.dedup();
    assert_eq!(bodies.len(), load.sent.load(SeqCst), "and none twice");
    let longest = nodes.iter().map(|node| node.proxy.stats(SERVICE).longest_hold).max();
    assert!(longest > Some(Duration::ZERO), "the moves did hold requests");
    assert!(longest < Some(Duration::from_secs(2)), "{longest:?}");
}

//! The pool over real sockets on loopback: dialling, adopting, converging, losing a peer.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::*;
use crate::config::EndpointConfig;
use crate::endpoint::Accepted;
use crate::identity::Identity;
use crate::testing::{TestCa, capture_log, cluster, control, loopback, store};

const SOON: Duration = Duration::from_secs(10);

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("in time")
}

#[derive(Default)]
struct Book(Mutex<HashMap<StoreId, Vec<SocketAddr>>>);

impl Book {
    fn set(&self, store: StoreId, at: &[SocketAddr]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(store, at.to_vec());
    }
}

impl AddressBook for Book {
    fn addresses(&self, store: StoreId) -> Vec<SocketAddr> {
        let book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        book.get(&store).cloned().unwrap_or_default()
    }
}

/// A node that adopts whoever comes and keeps what it serves.
struct Node {
    identity: Identity,
    endpoint: Endpoint,
    peers: Peers,
    tasks: tokio::task::JoinSet<()>,
}

impl Node {
    fn new(ca: &TestCa, number: u8, book: &Arc<Book>) -> Self {
        Self::start(ca.identity(store(number)), &control(), book)
    }

    fn start(identity: Identity, config: &EndpointConfig, book: &Arc<Book>) -> Self {
        let endpoint = Endpoint::bind(config, &identity).expect("bound");
        book.set(identity.store, &[endpoint.local_addr()]);
        let peers = Peers::new(endpoint.clone(), Arc::clone(book) as Arc<dyn AddressBook>);
        let mut tasks = tokio::task::JoinSet::new();
        let (accepting, adopting) = (endpoint.clone(), peers.clone());
        tasks.spawn_on(
            async move {
                while let Some(accepted) = accepting.accept().await {
                    if let Accepted::Peer(connection) = accepted {
                        adopting.adopt(connection);
                    }
                }
            },
            endpoint.runtime(),
        );
        Self { identity, endpoint, peers, tasks }
    }

    /// Starts once the port is free: a socket outlives its endpoint by a moment.
    async fn restart(identity: Identity, config: &EndpointConfig, book: &Arc<Book>) -> Self {
        while matches!(std::net::UdpSocket::bind(config.bind), Err(e) if e.kind() == std::io::ErrorKind::AddrInUse)
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Self::start(identity, config, book)
    }

    fn store(&self) -> StoreId {
        self.identity.store
    }

    async fn connected_to(&self, other: &Self) -> Connection {
        self.peers.connection(other.store(), SOON).await.expect("connected")
    }
}

/// Waits until the pools' connections of two nodes are the two ends of one.
async fn converged(a: &Node, b: &Node) -> (Connection, Connection) {
    for _ in 0..2000 {
        if let (Some(x), Some(y)) = (a.peers.existing(b.store()), b.peers.existing(a.store()))
            && x.session() == y.session()
        {
            return (x, y);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("they use different connections");
}

#[tokio::test]
async fn one_connection_serves_both_ways_and_every_caller() {
    let (ca, book) = (cluster(), Arc::new(Book::default()));
    let (a, b) = (Node::new(&ca, 1, &book), Node::new(&ca, 2, &book));
    let (x, y) = within(async { tokio::join!(a.connected_to(&b), a.connected_to(&b)) }).await;
    assert_eq!(x.session(), y.session(), "one dial for two callers");
    converged(&a, &b).await;
    assert_eq!(within(b.connected_to(&a)).await.session(), x.session(), "the inbound one is used");
    assert_eq!(within(a.peers.dialled()).await.session(), x.session(), "it is there to be served");
    assert_eq!((a.peers.connected(), b.peers.connected()), (vec![store(2)], vec![store(1)]));
}

#[tokio::test]
async fn dials_at_the_same_time_end_in_one_connection() {
    let (ca, book) = (cluster(), Arc::new(Book::default()));
    let mut superseded = None;
    for round in 0..20_u8 {
        let (a, b) = (Node::new(&ca, 10 + 2 * round, &book), Node::new(&ca, 11 + 2 * round, &book));
        within(async { tokio::join!(a.connected_to(&b), b.connected_to(&a)) }).await;
        let (kept, _) = within(converged(&a, &b)).await;
        assert!(!kept.is_closed());
        let both = async { tokio::join!(a.peers.dialled(), b.peers.dialled()) };
        if let Ok((x, y)) = tokio::time::timeout(Duration::from_millis(50), both).await {
            let (kept, _) = within(converged(&a, &b)).await;
            assert_eq!(kept.session(), x.session(), "the dial of the lower store is kept");
            superseded = Some((y, kept, a, b));
            break;
        }
    }
    let (other, kept, _a, _b) = superseded.expect("two dials crossed");
    assert!(!other.is_closed(), "what is under way on it may end");
    let ended = within(other.closed()).await.to_string();
    assert!(ended.contains("another connection is in use") || ended.ends_with("closed"), "{ended}");
    assert!(!kept.is_closed());
}

#[tokio::test]
async fn a_store_that_connects_again_and_again_keeps_few_connections() {
    let (ca, book) = (cluster(), Arc::new(Book::default()));
    let node = Node::new(&ca, 1, &book);
    let other = Endpoint::bind(&control(), &ca.identity(store(2))).expect("other");
    let at = node.endpoint.local_addr();
    let mut connections = Vec::new();
    for _ in 0..10 {
        connections.push(within(other.connect(store(1), at, SOON)).await.expect("connected"));
    }
    let newest = connections.last().expect("ten").session();
    for _ in 0..2000 {
        if node.peers.existing(store(2)).is_some_and(|c| c.session() == newest) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let in_use = node.peers.existing(store(2)).expect("one");
    assert_eq!(in_use.session(), newest, "the peer's newest is in use");
    for old in &connections[..6] {
        let ended = within(old.closed()).await.to_string();
        assert!(ended.contains("too many connections from this node"), "{ended}");
    }
    assert!(!connections[9].is_closed());
}

#[tokio::test]
async fn every_address_is_tried_and_a_dead_one_costs_little() {
    let (ca, book) = (cluster(), Arc::new(Book::default()));
    let (a, b) = (Node::new(&ca, 1, &book), Node::new(&ca, 2, &book));
    let silent = tokio::net::UdpSocket::bind(loopback()).await.expect("socket");
    let closed = tokio::net::UdpSocket::bind(loopback()).await.expect("socket");
    let other_cluster = Node::new(&cluster(), 2, &Arc::new(Book::default()));
    let mut addresses = vec![
        silent.local_addr().expect("address"),
        closed.local_addr().expect("address"),
        other_cluster.endpoint.local_addr(),
    ];
    drop(closed);
    book.set(store(3), &addresses);
    let error = within(a.peers.connection(store(3), SOON)).await.expect_err("none of them");
    let QuicError::Unreachable { tried, .. } = &error else { panic!("{error}") };
    assert_eq!(tried.len(), 3, "each is named: {error}");
    addresses.push(b.endpoint.local_addr());
    book.set(store(2), &addresses);
    let connection = within(a.connected_to(&b)).await;
    assert_eq!(connection.remote_addr(), b.endpoint.local_addr());
}

#[tokio::test]
async fn a_node_that_is_away_is_an_error_at_once_and_found_when_it_is_back() {
    let log = capture_log();
    let (ca, book) = (cluster(), Arc::new(Book::default()));
    let a = Node::new(&ca, 1, &book);
    assert!(matches!(
        a.peers.connection(store(2), SOON).await,
        Err(QuicError::Unreachable { .. } | QuicError::NoAddress { .. })
    ));
    let socket = tokio::net::UdpSocket::bind(loopback()).await.expect("socket");
    let at = socket.local_addr().expect("address");
    drop(socket);
    book.set(store(3), &[at]);
    for _ in 0..6 {
        let dial = a.peers.connection(store(3), Duration::from_millis(50));
        let error = tokio::time::timeout(SOON, dial).await.expect("quick").expect_err("away");
        assert!(error.to_string().contains("nothing listens there"), "{error}");
    }
    let lines = log.lines_with(&["WARN", "cannot connect to node", "nothing listens there"]);
    assert!((1..=4).contains(&lines.len()), "{}", log.text());
    let config = EndpointConfig { bind: at, ..control() };
    let b = within(Node::restart(ca.identity(store(3)), &config, &book)).await;
    within(a.connected_to(&b)).await;
}

#[tokio::test]
async fn a_killed_peer_is_noticed_before_the_idle_timeout_and_found_again_at_its_address() {
    let log = capture_log();
    let (ca, book) = (cluster(), Arc::new(Book::default()));
    let slow = EndpointConfig { idle_timeout: Duration::from_secs(120), ..control() };
    let a = Node::start(ca.identity(store(1)), &slow, &book);
    // A runtime of its own, so that the peer can vanish without a word.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("runtime");
    let b = {
        let _inside = runtime.enter();
        Node::start(ca.identity(store(2)), &slow, &book)
    };
    let (at, identity) = (b.endpoint.local_addr(), b.identity.clone());
    let connection = within(a.connected_to(&b)).await;
    // In this order: a handle dropped while the runtime runs would say goodbye.
    runtime.shutdown_background();
    drop(b);
    say_something(&connection).await;
    // 120 s would be the idle timeout: it is the closed port that tells.
    within(connection.closed()).await;
    let lines = log.lines_with(&["WARN", "nothing listens there any more"]);
    assert_eq!(lines.len(), 1, "{}", log.text());
    assert!(a.peers.existing(store(2)).is_none());
    let error = a.peers.connection(store(2), SOON).await.expect_err("it is gone");
    assert!(error.to_string().contains("nothing listens"), "{error}");
    let config = EndpointConfig { bind: at, ..slow };
    let again = within(Node::restart(identity, &config, &book)).await;
    within(a.connected_to(&again)).await;
    within(converged(&a, &again)).await;
}

#[tokio::test]
async fn a_peer_that_answers_nothing_is_dropped_and_an_idle_connection_is_kept() {
    let log = capture_log();
    let (ca, book) = (cluster(), Arc::new(Book::default()));
    let config = EndpointConfig { silence: Duration::from_secs(1), ..control() };
    let a = Node::start(ca.identity(store(1)), &config, &book);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("runtime");
    let b = {
        let _inside = runtime.enter();
        Node::start(ca.identity(store(2)), &config, &book)
    };
    let connection = within(a.connected_to(&b)).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(!connection.is_closed(), "{}", log.text());
    // Its port stays open, and nobody reads there.
    let (wake, asleep) = std::sync::mpsc::sync_channel::<()>(0);
    runtime.spawn(async move { assert!(asleep.recv().is_err(), "woken by the end of the test") });
    say_something(&connection).await;
    within(connection.closed()).await;
    assert_eq!(log.lines_with(&["WARN", "it answers nothing"]).len(), 1, "{}", log.text());
    drop(wake);
    runtime.shutdown_background();
}

/// Unless the connection has ended: what QUIC itself had under way may have told that already.
async fn say_something(connection: &Connection) {
    let Ok(mut stream) = within(connection.open_uni()).await else { return };
    if within(tokio::io::AsyncWriteExt::write_all(&mut stream, b"?")).await.is_ok() {
        stream.finish();
    }
}

#[tokio::test]
async fn a_peer_that_says_goodbye_is_replaced_at_once() {
    let (ca, book) = (cluster(), Arc::new(Book::default()));
    let (a, mut b) = (Node::new(&ca, 1, &book), Node::new(&ca, 2, &book));
    let first = within(a.connected_to(&b)).await;
    let (at, identity) = (b.endpoint.local_addr(), b.identity.clone());
    b.endpoint.close();
    within(b.endpoint.wait_idle(SOON)).await;
    b.tasks.shutdown().await;
    drop(b);
    let ended = within(first.closed()).await.to_string();
    assert!(ended.contains("the node shuts down"), "{ended}");
    let config = EndpointConfig { bind: at, ..control() };
    let b = within(Node::restart(identity, &config, &book)).await;
    let second = within(a.connected_to(&b)).await;
    assert_ne!(first.session(), second.session());
}

#[tokio::test]
async fn a_dropped_peers_connections_close_and_a_pool_leaves_no_task() {
    let (ca, book) = (cluster(), Arc::new(Book::default()));
    let (a, b) = (Node::new(&ca, 1, &book), Node::new(&ca, 2, &book));
    let connection = within(a.connected_to(&b)).await;
    let (_, other_end) = within(converged(&a, &b)).await;
    a.peers.drop_peer(store(2));
    assert!(connection.is_closed());
    let ended = within(other_end.closed()).await.to_string();
    assert!(ended.contains("removed from the cluster"), "{ended}");
    let weak = Arc::downgrade(&a.peers.pool);
    let Node { peers, tasks, .. } = a;
    drop(peers);
    drop(tasks);
    within(async {
        while weak.upgrade().is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

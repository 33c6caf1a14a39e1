//! The control endpoint over real sockets: hostile peers, removed peers, joiners, restarts.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use flocker_quic::testing::{TestCa, capture_log, cluster, control};
use flocker_quic::{
    AddressBook, Connection, Endpoint, EndpointConfig, Identity, JOIN_EXPORTER_LABEL,
    MAX_JOIN_REQUEST, connect_to_join,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::*;

#[derive(Default)]
struct World {
    addresses: Mutex<HashMap<StoreId, SocketAddr>>,
    removed: Mutex<BTreeSet<StoreId>>,
    refused_by: Mutex<BTreeSet<StoreId>>,
}

impl AddressBook for World {
    fn addresses(&self, store: StoreId) -> Vec<SocketAddr> {
        let addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        addresses.get(&store).copied().into_iter().collect()
    }
}

impl Admission for World {
    fn is_removed(&self, store: StoreId) -> bool {
        self.removed.lock().unwrap_or_else(PoisonError::into_inner).contains(&store)
    }

    fn refused_by(&self, peer: StoreId) {
        self.refused_by.lock().unwrap_or_else(PoisonError::into_inner).insert(peer);
    }
}

/// Nodes of one cluster on loopback.
pub(super) struct Mesh {
    ca: TestCa,
    world: Arc<World>,
    tasks: JoinSet<()>,
    shutdown: CancellationToken,
}

impl Mesh {
    pub(super) fn new() -> Self {
        Self {
            ca: cluster(),
            world: Arc::default(),
            tasks: JoinSet::new(),
            shutdown: CancellationToken::new(),
        }
    }

    /// Starts a node with this handler for every kind but `Agent`.
    pub(super) fn node(&mut self, number: u8, echo: &Arc<Echo>) -> Arc<dyn Wire> {
        let identity = self.ca.identity(store(number));
        let shutdown = self.shutdown.clone();
        self.start(&identity, &control(), echo, None, shutdown)
    }

    fn start(
        &mut self,
        identity: &Identity,
        config: &EndpointConfig,
        echo: &Arc<Echo>,
        joiners: Option<Arc<dyn JoinHandler>>,
        shutdown: CancellationToken,
    ) -> Arc<dyn Wire> {
        let endpoint = Endpoint::bind(config, identity).expect("bound");
        self.know(identity.store, endpoint.local_addr());
        let mut control =
            Control::new(endpoint, Arc::clone(&self.world) as _, Arc::clone(&self.world) as _);
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Agent) {
            control = control.handle(kind, Arc::clone(echo) as Arc<dyn Handler>);
        }
        if let Some(joiners) = joiners {
            control = control.joiners(joiners);
        }
        let wire = control.wire();
        self.tasks.spawn(control.run(shutdown));
        wire
    }

    fn know(&self, store: StoreId, at: SocketAddr) {
        let mut addresses = self.world.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        addresses.insert(store, at);
    }

    fn at(&self, number: u8) -> SocketAddr {
        self.world.addresses(store(number))[0]
    }

    fn remove(&self, number: u8) {
        self.world.removed.lock().unwrap_or_else(PoisonError::into_inner).insert(store(number));
    }

    /// A member of the cluster that speaks bytes of its own choice to node 1.
    async fn rogue(&self, number: u8) -> (Endpoint, Connection) {
        let endpoint = Endpoint::bind(&control(), &self.ca.identity(store(number))).expect("bound");
        let connection = endpoint.connect(store(1), self.at(1), SOON).await.expect("connected");
        (endpoint, connection)
    }

    pub(super) async fn stop(mut self) {
        self.shutdown.cancel();
        within(async { while self.tasks.join_next().await.is_some() {} }).await;
    }
}

/// Sends these bytes as a call and gives what comes back, if anything.
async fn say(connection: &Connection, bytes: &[u8], finish: bool) -> Vec<u8> {
    let Ok((mut send, mut recv)) = connection.open_bi().await else { return Vec::new() };
    // The other side may stop reading halfway.
    let _ = send.write_all(bytes).await;
    if finish {
        send.finish();
    }
    let mut answer = Vec::new();
    let _ = within(recv.read_to_end(&mut answer)).await;
    answer
}

fn frame_of(kind: u8, length: u32, payload: &[u8]) -> Vec<u8> {
    [&[kind][..], &length.to_le_bytes(), payload].concat()
}

#[tokio::test]
async fn a_request_that_breaks_the_protocol_is_refused_named_and_changes_nothing() {
    let mut mesh = Mesh::new();
    let echo = Echo::new();
    let _one = mesh.node(1, &echo);
    let over = u32::try_from(Kind::Membership.max_frame() + 1).expect("fits");
    for (bytes, reason) in [
        (frame_of(1, over, &[]), "98305 bytes, where 98304 are allowed"),
        (frame_of(2, u32::MAX, &[]), "are allowed"),
        (frame_of(0, 1, b"x"), "0 is no kind of message"),
        (frame_of(77, 1, b"x"), "77 is no kind of message"),
        (frame_of(2, 10, b"short"), "cut short"),
        (vec![2, 1], "cut short"),
        (vec![], "ended before a kind"),
    ] {
        let log = capture_log();
        let (_rogue, connection) = mesh.rogue(66).await;
        let answer = say(&connection, &bytes, true).await;
        assert_eq!(answer.first(), Some(&1), "a refusal: {answer:?}");
        assert!(String::from_utf8_lossy(&answer[5..]).contains(reason), "{answer:?}");
        let lines = log.lines_with(&["WARN", "refused a request", reason, &store(66).to_string()]);
        assert_eq!(lines.len(), 1, "{}", log.text());
        // The same as a message; and the connection lives on.
        let mut stream = connection.open_uni().await.expect("stream");
        let _ = stream.write_all(&bytes).await;
        stream.finish();
        let good = say(&connection, &frame_of(2, 2, b"hi"), true).await;
        assert_eq!((good[0], &good[21..]), (0, &b"hi"[..]));
    }
    assert_eq!(echo.calls(), 7, "the good ones alone");
    let mut inbox = echo.inbox.lock().await;
    let nothing = tokio::time::timeout(Duration::from_millis(50), inbox.recv());
    assert!(nothing.await.is_err(), "no message reached the handler");
    mesh.stop().await;
}

#[tokio::test]
async fn the_bytes_of_a_message_and_of_a_call_are_these() {
    let mut mesh = Mesh::new();
    let echo = Echo::new();
    let one = mesh.node(1, &echo);
    let (_raw, connection) = mesh.rogue(2).await;
    one.send(store(2), Kind::Lease, Bytes::from_static(b"abc"));
    let mut bytes = Vec::new();
    let mut stream = within(connection.accept_uni()).await.expect("stream");
    within(stream.read_to_end(&mut bytes)).await.expect("read");
    assert_eq!(bytes, [2, 3, 0, 0, 0, b'a', b'b', b'c']);
    let call = one.call(store(2), Kind::MapPull, Bytes::from_static(b"?"), SOON);
    let serve = async {
        let (mut send, mut recv) = connection.accept_bi().await.expect("stream");
        let mut bytes = Vec::new();
        recv.read_to_end(&mut bytes).await.expect("read");
        send.write_all(&[0, 1, 0, 0, 0, b'!']).await.expect("written");
        send.finish();
        bytes
    };
    let (answer, bytes) = within(async { tokio::join!(call, serve) }).await;
    assert_eq!(bytes, [4, 1, 0, 0, 0, b'?']);
    assert_eq!(answer, Ok(Bytes::from_static(b"!")));
    mesh.stop().await;
}

#[tokio::test]
async fn an_answer_over_the_limit_or_of_no_sense_is_an_error_for_the_caller() {
    let mut mesh = Mesh::new();
    let echo = Echo::new();
    let one = mesh.node(1, &echo);
    let (_raw, connection) = mesh.rogue(2).await;
    for answer in [vec![0, 255, 255, 255, 255], vec![9, 0, 0, 0, 0], vec![0, 9], vec![]] {
        let call = one.call(store(2), Kind::Lease, Bytes::from_static(b"?"), SOON);
        let serve = async {
            let (mut send, _recv) = connection.accept_bi().await.expect("stream");
            send.write_all(&answer).await.expect("written");
            send.finish();
        };
        let (result, ()) = within(async { tokio::join!(call, serve) }).await;
        assert!(matches!(result, Err(WireError::Broken { .. })), "{result:?}");
    }
    mesh.stop().await;
}

#[tokio::test]
async fn one_peer_and_kind_is_bounded_and_holds_up_no_other() {
    let mut mesh = Mesh::new();
    let echo = Echo::new();
    let _one = mesh.node(1, &echo);
    let (_rogue, connection) = mesh.rogue(66).await;
    let mut flood = JoinSet::new();
    for _ in 0..100 {
        let connection = connection.clone();
        flood.spawn(async move { say(&connection, &frame_of(4, 4, b"wait"), true).await });
    }
    while echo.calls() < Kind::MapPull.at_once() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The same peer's leases, on the same connection, are served meanwhile.
    for _ in 0..20 {
        let answer = within(say(&connection, &frame_of(2, 1, b"x"), true)).await;
        assert_eq!(answer[0], 0);
    }
    assert!(echo.most_at_once.load(Ordering::Relaxed) <= Kind::MapPull.at_once() + 1);
    echo.go.add_permits(100);
    let mut served = 0;
    while let Some(answer) = within(flood.join_next()).await {
        served += usize::from(answer.expect("no panic")[0] == 0);
    }
    assert_eq!(served, 100, "those that waited had their turn");
    mesh.stop().await;
}

#[tokio::test]
async fn a_removed_node_is_dropped_refused_and_not_called() {
    let log = capture_log();
    let mut mesh = Mesh::new();
    let echo = Echo::new();
    let one = mesh.node(1, &echo);
    let (rogue, connection) = mesh.rogue(66).await;
    assert_eq!(say(&connection, &frame_of(2, 1, b"x"), true).await[0], 0);
    let calls = echo.calls();
    mesh.remove(66);
    // At the latest with its next request, at once by the sweep.
    let ended = within(connection.closed()).await.to_string();
    assert!(ended.contains("removed from the cluster"), "{ended}");
    let again = rogue.connect(store(1), mesh.at(1), SOON).await;
    if let Ok(connection) = again {
        let answer = say(&connection, &frame_of(2, 1, b"x"), true).await;
        assert_eq!(answer, Vec::<u8>::new());
        let ended = within(connection.closed()).await.to_string();
        assert!(ended.contains("removed from the cluster"), "{ended}");
    }
    assert_eq!(echo.calls(), calls, "nothing of it was handled");
    let call = one.call(store(66), Kind::Lease, Bytes::new(), SOON).await;
    assert_eq!(call, Err(WireError::Removed { to: store(66) }));
    let who = store(66).to_string();
    assert!(
        !log.lines_with(&["WARN", "closed its connections", &who]).is_empty()
            && !log.lines_with(&["WARN", "refused a connection", &who]).is_empty(),
        "{}",
        log.text()
    );
    mesh.stop().await;
}

/// Nodes 1 and 2 remove node 3, which does not know and goes on dialling, in its own world.
#[tokio::test]
async fn a_removed_node_hears_from_each_peer_that_it_was_removed() {
    let mut mesh = Mesh::new();
    let echo = Echo::new();
    let (_one, _two) = (mesh.node(1, &echo), mesh.node(2, &echo));
    let mut apart = Mesh::new();
    let (identity, shutdown) = (mesh.ca.identity(store(3)), apart.shutdown.clone());
    let three = apart.start(&identity, &control(), &echo, None, shutdown);
    for number in [1, 2] {
        apart.know(store(number), mesh.at(number));
        let call = three.call(store(number), Kind::Lease, Bytes::from_static(b"x"), SOON).await;
        call.expect("a member is answered");
    }
    let heard = || apart.world.refused_by.lock().expect("lock").clone();
    assert!(heard().is_empty());
    let calls = echo.calls();
    mesh.remove(3);
    within(async {
        while heard().len() < 2 {
            for number in [1, 2] {
                let again = three.call(store(number), Kind::Lease, Bytes::new(), SOON).await;
                assert!(again.is_err() || echo.calls() > calls, "refused, or just before");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(heard(), BTreeSet::from([store(1), store(2)]));
    apart.stop().await;
    mesh.stop().await;
}

#[tokio::test]
async fn a_dialled_connection_carries_the_other_sides_calls_too() {
    let mut mesh = Mesh::new();
    let echo = Echo::new();
    let (one, two) = (mesh.node(1, &echo), mesh.node(2, &echo));
    // Node 2 knows no address of node 1, as behind address translation.
    one.call(store(2), Kind::Lease, Bytes::from_static(b"x"), SOON).await.expect("answered");
    mesh.world.addresses.lock().unwrap_or_else(PoisonError::into_inner).clear();
    two.call(store(1), Kind::Lease, Bytes::from_static(b"x"), SOON).await.expect("answered");
    mesh.stop().await;
}

#[tokio::test]
async fn a_node_that_dies_is_an_error_soon_and_serves_again_once_it_is_back() {
    let mut mesh = Mesh::new();
    let echo = Echo::new();
    let one = mesh.node(1, &echo);
    let identity = mesh.ca.identity(store(2));
    let first = CancellationToken::new();
    let two = mesh.start(&identity, &control(), &echo, None, first.clone());
    let hi = || Bytes::from_static(b"hi");
    one.call(store(2), Kind::Lease, hi(), SOON).await.expect("answered");
    first.cancel();
    within(mesh.tasks.join_next()).await.expect("it ended").expect("well");
    drop(two);
    let config = EndpointConfig { bind: mesh.at(2), ..control() };
    let gone = within(one.call(store(2), Kind::Lease, hi(), SOON)).await;
    assert!(matches!(gone, Err(WireError::Unreachable { .. })), "{gone:?}");
    within(async {
        while std::net::UdpSocket::bind(config.bind).is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let shutdown = mesh.shutdown.clone();
    let _two = mesh.start(&identity, &config, &echo, None, shutdown);
    one.send(store(2), Kind::Lease, Bytes::from_static(b"may be lost"));
    let answer = within(one.call(store(2), Kind::Lease, hi(), SOON)).await;
    assert!(answer.is_ok(), "{answer:?}");
    mesh.stop().await;
}

#[tokio::test]
async fn a_stopped_control_lets_go_of_its_handlers() {
    let mut mesh = Mesh::new();
    let echo = Echo::new();
    let wire = mesh.node(1, &echo);
    let weak = Arc::downgrade(&echo);
    drop(echo);
    mesh.stop().await;
    assert!(weak.upgrade().is_none(), "though the wire lives on");
    assert_eq!(wire.local(), store(1));
}

/// Answers a joiner with the secret and what it asked.
struct Door;

#[async_trait]
impl JoinHandler for Door {
    async fn on_join(&self, remote: SocketAddr, exporter: [u8; 32], request: Bytes) -> Bytes {
        assert!(remote.ip().is_loopback());
        [&exporter[..], &request].concat().into()
    }
}

#[tokio::test]
async fn a_joiner_reaches_the_door_and_only_the_door() {
    let log = capture_log();
    let mut mesh = Mesh::new();
    let echo = Echo::new();
    let (identity, shutdown) = (mesh.ca.identity(store(1)), mesh.shutdown.clone());
    mesh.start(&identity, &control(), &echo, Some(Arc::new(Door)), shutdown);
    let pin = mesh.ca.fingerprint();
    let joiner = connect_to_join(mesh.at(1), pin, SOON).await.expect("connected");
    let secret = joiner.exporter(JOIN_EXPORTER_LABEL).expect("exporter");
    let answer = joiner.exchange(b"please", SOON).await.expect("answered");
    assert_eq!((&answer[..32], &answer[32..]), (&secret[..], &b"please"[..]));
    let joiner = connect_to_join(mesh.at(1), pin, SOON).await.expect("connected");
    joiner.exchange(&vec![0; MAX_JOIN_REQUEST + 1], SOON).await.expect_err("too large");
    let lines = log.lines_with(&["WARN", "a request to join came to nothing", "are allowed"]);
    assert_eq!(lines.len(), 1, "{}", log.text());
    let closed = mesh.node(2, &echo);
    let joiner = connect_to_join(mesh.at(2), pin, SOON).await.expect("connected");
    joiner.exchange(b"please", SOON).await.expect_err("it has no door");
    assert_eq!(closed.local(), store(2));
    assert_eq!(log.lines_with(&["WARN", "this node admits none"]).len(), 1, "{}", log.text());
    assert_eq!(echo.calls(), 0);
    mesh.stop().await;
}

#[tokio::test]
async fn a_node_of_another_cluster_is_refused_and_changes_nothing() {
    let log = capture_log();
    let mut mesh = Mesh::new();
    let echo = Echo::new();
    let _one = mesh.node(1, &echo);
    let mut other = Mesh::new();
    let theirs = other.node(2, &echo);
    other.know(store(1), mesh.at(1));
    let call = theirs.call(store(1), Kind::Lease, Bytes::from_static(b"hi"), SOON).await;
    assert!(matches!(call, Err(WireError::Unreachable { .. })), "{call:?}");
    assert_eq!(echo.calls(), 0);
    assert!(!log.lines_with(&["WARN", "cannot connect", "not trusted"]).is_empty());
    other.stop().await;
    mesh.stop().await;
}

//! Replication over real QUIC connections on loopback.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use flocker_base::{Clock, Epoch, StoreId, SystemClock, VolumeId};
use flocker_quic::testing::{TestCa, cluster, loopback, store};
use flocker_quic::{Accepted, Connection, Endpoint, EndpointConfig};
use flocker_replicate::{
    Backend, DirBackend, Fence, FenceRefusal, ReplicateError, Replicator, ReplicatorConfig, Stream,
    Transport,
};
use tokio::task::JoinSet;

const V: VolumeId = VolumeId::from_bytes([3; 16]);

/// One epoch for everyone; only the first node holds it.
#[derive(Debug)]
struct OneMaster(StoreId, StoreId);

impl Fence for OneMaster {
    fn may_write(&self, _: VolumeId) -> Option<Epoch> {
        (self.0 == self.1).then_some(Epoch::new(0, 1))
    }

    fn admit(&self, volume: VolumeId, _: StoreId, offered: Epoch) -> Result<(), FenceRefusal> {
        let highest = Epoch::new(0, 1);
        if offered < highest {
            Err(FenceRefusal::LowerEpoch { volume, offered, highest })
        } else {
            Ok(())
        }
    }
}

#[derive(Debug)]
struct Dialer {
    endpoint: Endpoint,
    book: Arc<Mutex<BTreeMap<StoreId, std::net::SocketAddr>>>,
    open: tokio::sync::Mutex<BTreeMap<StoreId, Connection>>,
}

#[async_trait]
impl Transport for Dialer {
    async fn open(&self, to: StoreId) -> io::Result<Box<dyn Stream>> {
        let mut open = self.open.lock().await;
        let connection = match open.get(&to).filter(|connection| !connection.is_closed()) {
            Some(connection) => connection.clone(),
            None => {
                let at = self.book.lock().expect("lock").get(&to).copied();
                let at = at.ok_or(io::ErrorKind::NotFound)?;
                let deadline = Duration::from_secs(5);
                let connection =
                    self.endpoint.connect(to, at, deadline).await.map_err(io::Error::other)?;
                open.insert(to, connection.clone());
                connection
            }
        };
        let (send, receive) = connection.open_bi().await.map_err(io::Error::other)?;
        Ok(Box::new(tokio::io::join(receive, send)))
    }
}

struct Node {
    id: StoreId,
    backend: Arc<DirBackend>,
    replicator: Replicator,
    endpoint: Endpoint,
    _folder: tempfile::TempDir,
}

type Book = Arc<Mutex<BTreeMap<StoreId, std::net::SocketAddr>>>;

fn node(ca: &TestCa, book: &Book, number: u8, tasks: &mut JoinSet<()>) -> Node {
    let id = store(number);
    let folder = tempfile::tempdir().expect("folder");
    let backend = Arc::new(DirBackend::open(folder.path()).expect("opens"));
    let endpoint =
        Endpoint::bind(&EndpointConfig::data(loopback()), &ca.identity(id)).expect("binds");
    book.lock().expect("lock").insert(id, endpoint.local_addr());
    let dialer = Dialer {
        endpoint: endpoint.clone(),
        book: book.clone(),
        open: tokio::sync::Mutex::default(),
    };
    let replicator = Replicator::new(
        ReplicatorConfig::default(),
        backend.clone(),
        Arc::new(OneMaster(id, store(1))),
        Arc::new(dialer),
        Arc::new(SystemClock),
        [number; 32],
    )
    .expect("replicator");
    tasks.spawn(accept(endpoint.clone(), replicator.clone()));
    Node { id, backend, replicator, endpoint, _folder: folder }
}

async fn accept(endpoint: Endpoint, replicator: Replicator) {
    let mut tasks = JoinSet::new();
    while let Some(accepted) = endpoint.accept().await {
        let Accepted::Peer(connection) = accepted else { continue };
        let replicator = replicator.clone();
        tasks.spawn(async move {
            let mut streams = JoinSet::new();
            while let Ok((send, receive)) = connection.accept_bi().await {
                let (replicator, from) = (replicator.clone(), connection.peer());
                streams.spawn(async move {
                    replicator.serve(from, Box::new(tokio::io::join(receive, send))).await;
                });
            }
        });
    }
}

fn noise(seed: u8, len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|n| (n.wrapping_mul(6_364_136_223_846_793_005) >> 40).to_le_bytes()[0] ^ seed)
        .collect()
}

fn same(a: &Path, b: &Path, name: &str) {
    assert!(fs::read(a.join(name)).expect("read") == fs::read(b.join(name)).expect("read"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_go_over_real_connections_and_resume_after_one_dies() {
    let (ca, book, mut tasks) = (cluster(), Book::default(), JoinSet::new());
    let a = node(&ca, &book, 1, &mut tasks);
    let b = node(&ca, &book, 2, &mut tasks);
    a.backend.create(V).expect("create");
    let live = a.backend.promote(V).expect("promote");
    for number in 0..20 {
        put(live.join(format!("file-{number}")), noise(number, 300_000)).expect("write");
    }
    let minute = Duration::from_secs(60);
    a.replicator.snapshot_now(V).await.expect("snapshot").expect("changed");
    // The first attempts are cut short by their deadline, at whatever byte.
    let mut cut = 0;
    for millis in [3, 6, 12, 25] {
        let within = Duration::from_millis(millis);
        if a.replicator.bring_up_to_date(V, b.id, within).await.is_err() {
            cut += 1;
        }
    }
    assert!(cut > 0, "at least the first was cut");
    let head = loop {
        match a.replicator.bring_up_to_date(V, b.id, minute).await {
            Ok(head) => break head,
            // The peer has not yet noticed that the last attempt ended.
            Err(ReplicateError::Session { .. }) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(b.replicator.head(V).map(|(head, _)| head), Some(head));
    put(live.join("file-3"), b"changed").expect("write");
    a.replicator.bring_up_to_date(V, b.id, minute).await.expect("incremental");
    // A node that was never there fetches it from the replica.
    let c = node(&ca, &book, 3, &mut tasks);
    let fetched = c.replicator.fetch(V, b.id, minute).await.expect("fetch");
    assert!(fetched > head);
    for replica in [&b, &c] {
        let copy = replica.backend.promote(V).expect("promote");
        for number in 0..20 {
            same(&live, &copy, &format!("file-{number}"));
        }
    }
    for node in [&a, &b, &c] {
        node.endpoint.close();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by hand: a measurement, not a test"]
async fn figures() {
    let (ca, book, mut tasks) = (cluster(), Book::default(), JoinSet::new());
    let a = node(&ca, &book, 1, &mut tasks);
    let b = node(&ca, &book, 2, &mut tasks);
    a.backend.create(V).expect("create");
    let live = a.backend.promote(V).expect("promote");
    for number in 0..100 {
        put(live.join(format!("file-{number}")), noise(number, 10_000)).expect("write");
    }
    let minute = Duration::from_secs(60);
    a.replicator.bring_up_to_date(V, b.id, minute).await.expect("full");
    for (what, len) in [("no change", 0), ("4 KiB", 4096), ("200 KiB", 200 * 1024)] {
        let mut spans = Vec::new();
        for round in 0..50_u8 {
            if len > 0 {
                put(live.join("file-7"), noise(round.wrapping_add(100), len)).expect("write");
            }
            let start = SystemClock.boot();
            a.replicator.bring_up_to_date(V, b.id, minute).await.expect("sent");
            spans.push(SystemClock.boot() - start);
        }
        spans.sort_unstable();
        println!("{what}: median {:?}, worst {:?}", spans[25], spans[49]);
    }
    for number in 0..1000_u64 {
        let name = live.join(format!("large-{number}"));
        let content: Vec<u8> =
            noise(7, 1 << 20).iter().map(|b| b ^ number.to_le_bytes()[0]).collect();
        put(name, content).expect("write");
        if number == 255 {
            break;
        }
    }
    let start = SystemClock.boot();
    a.replicator.snapshot_now(V).await.expect("snapshot");
    let taken = SystemClock.boot();
    a.replicator.bring_up_to_date(V, b.id, minute).await.expect("sent");
    println!(
        "256 MiB in 256 files: snapshot {:?}, sent {:?}",
        taken - start,
        SystemClock.boot() - taken
    );
}

/// Writes a file as a user would.
#[expect(clippy::disallowed_methods, reason = "a user's file, not a state file")]
fn put(path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> io::Result<()> {
    fs::write(path, content)
}

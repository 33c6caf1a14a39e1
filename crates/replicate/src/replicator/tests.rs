//! Replicators that talk to each other through memory, on the `dir` and the in-memory backend.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::task::{Context, Poll};

use async_trait::async_trait;
use flocker_base::SystemClock;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::task::JoinSet;

use super::*;
use crate::DirBackend;
use crate::backend::memory::{MemoryBackend, Operation};
use crate::fence::FenceRefusal;
use crate::model::Keep;

mod faults;
mod together;

const V: VolumeId = VolumeId::from_bytes([9; 16]);

fn store(number: u8) -> StoreId {
    StoreId::from_bytes([number; 16])
}

fn epoch(counter: u64) -> Epoch {
    Epoch::new(0, counter)
}

/// Leases as a test says they are.
#[derive(Debug, Default)]
struct TestFence {
    held: Mutex<BTreeMap<VolumeId, Epoch>>,
    seen: Mutex<BTreeMap<VolumeId, Epoch>>,
    /// How often `may_write` still answers yes, and `admit`; negative: always.
    writes_left: AtomicI64,
    admits_left: AtomicI64,
}

impl TestFence {
    fn hold(&self, counter: u64) {
        self.held.lock().expect("lock").insert(V, epoch(counter));
    }

    fn lose(&self) {
        self.held.lock().expect("lock").clear();
    }

    fn see(&self, counter: u64) {
        self.seen.lock().expect("lock").insert(V, epoch(counter));
    }
}

fn spend(left: &AtomicI64) -> bool {
    left.load(Ordering::SeqCst) < 0 || left.fetch_sub(1, Ordering::SeqCst) > 0
}

impl Fence for TestFence {
    fn may_write(&self, volume: VolumeId) -> Option<Epoch> {
        if !spend(&self.writes_left) {
            self.writes_left.store(0, Ordering::SeqCst);
            return None;
        }
        self.held.lock().expect("lock").get(&volume).copied()
    }

    fn admit(&self, volume: VolumeId, _: StoreId, offered: Epoch) -> Result<(), FenceRefusal> {
        let mut seen = self.seen.lock().expect("lock");
        let highest = seen.get(&volume).copied().unwrap_or_default();
        if !spend(&self.admits_left) {
            self.admits_left.store(0, Ordering::SeqCst);
            return Err(FenceRefusal::LowerEpoch { volume, offered, highest });
        }
        if offered < highest {
            return Err(FenceRefusal::LowerEpoch { volume, offered, highest });
        }
        seen.insert(volume, offered);
        Ok(())
    }
}

/// Streams through memory to every node of a test.
#[derive(Debug, Default)]
struct Net {
    nodes: Mutex<BTreeMap<StoreId, Replicator>>,
    serving: Mutex<JoinSet<()>>,
    /// The next streams break after so many bytes from the opener.
    cuts: Mutex<Vec<usize>>,
    opened: AtomicU32,
}

#[derive(Debug)]
struct Dialer {
    net: Arc<Net>,
    me: StoreId,
}

#[async_trait]
impl Transport for Dialer {
    async fn open(&self, to: StoreId) -> io::Result<Box<dyn Stream>> {
        let node = self.net.nodes.lock().expect("lock").get(&to).cloned();
        let node = node.ok_or(io::ErrorKind::ConnectionRefused)?;
        self.net.opened.fetch_add(1, Ordering::SeqCst);
        let (near, far) = tokio::io::duplex(64 * 1024);
        let me = self.me;
        self.net
            .serving
            .lock()
            .expect("lock")
            .spawn(async move { node.serve(me, Box::new(far)).await });
        let left = self.net.cuts.lock().expect("lock").pop();
        Ok(Box::new(CutStream { stream: near, left }))
    }
}

/// Breaks after so many bytes were written.
struct CutStream {
    stream: DuplexStream,
    left: Option<usize>,
}

impl AsyncRead for CutStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for CutStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let most = self.left.unwrap_or(data.len()).min(data.len());
        if most == 0 && !data.is_empty() {
            // The far side sees the end at the same byte.
            let _closed = Pin::new(&mut self.stream).poll_shutdown(context);
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let written = Pin::new(&mut self.stream).poll_write(context, &data[..most]);
        if let (Poll::Ready(Ok(len)), Some(left)) = (&written, &mut self.left) {
            *left -= len;
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

struct Node {
    id: StoreId,
    backend: Arc<dyn Backend>,
    fence: Arc<TestFence>,
    replicator: Replicator,
    _folder: Option<tempfile::TempDir>,
}

fn config() -> ReplicatorConfig {
    let mut config = ReplicatorConfig::default();
    config.schedule.retry_first = Duration::from_millis(5);
    config.schedule.retry_most = Duration::from_millis(20);
    config
}

fn node_on(
    net: &Arc<Net>,
    number: u8,
    backend: Arc<dyn Backend>,
    folder: Option<tempfile::TempDir>,
) -> Node {
    let id = store(number);
    let fence = Arc::new(TestFence::default());
    fence.writes_left.store(-1, Ordering::SeqCst);
    fence.admits_left.store(-1, Ordering::SeqCst);
    let replicator = Replicator::new(
        config(),
        backend.clone(),
        fence.clone(),
        Arc::new(Dialer { net: net.clone(), me: id }),
        Arc::new(SystemClock),
        [number; 32],
    )
    .expect("replicator");
    net.nodes.lock().expect("lock").insert(id, replicator.clone());
    Node { id, backend, fence, replicator, _folder: folder }
}

fn dir_node(net: &Arc<Net>, number: u8) -> Node {
    let folder = tempfile::tempdir().expect("folder");
    let backend = DirBackend::open(folder.path()).expect("dir");
    node_on(net, number, Arc::new(backend), Some(folder))
}

fn memory_node(net: &Arc<Net>, number: u8) -> (Node, Arc<MemoryBackend>) {
    let backend = Arc::new(MemoryBackend::new().expect("memory"));
    (node_on(net, number, backend.clone(), None), backend)
}

impl Node {
    /// Becomes master at this epoch and answers its live folder.
    fn lead(&self, counter: u64) -> PathBuf {
        self.fence.hold(counter);
        self.fence.see(counter);
        if !self.backend.exists(V).expect("exists") {
            self.backend.create(V).expect("create");
        }
        self.backend.promote(V).expect("promote")
    }

    fn duty(&self, counter: u64, interval_millis: u64, targets: &[&Node]) {
        self.replicator.set_duties(vec![Duty {
            volume: V,
            epoch: epoch(counter),
            interval: Duration::from_millis(interval_millis),
            targets: targets.iter().map(|node| node.id).collect(),
            quiesce: Arc::new(Still),
        }]);
    }

    fn guids(&self) -> Vec<Guid> {
        match self.backend.list(V) {
            Ok(line) => line.iter().map(|info| info.guid).collect(),
            Err(_) => Vec::new(),
        }
    }

    async fn to(&self, other: &Node) -> Result<Head, ReplicateError> {
        self.replicator.bring_up_to_date(V, other.id, Duration::from_secs(20)).await
    }
}

fn put(folder: &Path, name: &str, content: &str) {
    fs::write(folder.join(name), content).expect("write");
}

fn get(folder: &Path, name: &str) -> String {
    fs::read_to_string(folder.join(name)).expect("read")
}

fn keep(number: u8) -> Keep {
    let now = WallTime::from_millis(1);
    Keep { name: "tail".into(), epoch: epoch(1), now, guid: [number; 16] }
}

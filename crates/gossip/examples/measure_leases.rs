//! What the leases of up to 10,000 volumes on one node cost, and how long all of them take to have
//! another holder when it dies: three nodes with real disks in one process, over a network in memory that
//! counts. It prints a line a figure for `docs/PERFORMANCE.md`, and must never be a test: it asserts what
//! it measures to be right, not to be fast. Run it by `scripts/measure-leases`.

use std::collections::HashSet;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_trait::async_trait;
use bytes::Bytes;
use flocker_base::{BootTime, Clock as _, Head, StoreId, SystemClock, VolumeId, WallTime};
use flocker_gossip::control::{Handler, Kind, MemoryNet};
use flocker_gossip::lease::{LeaseConfig, LeaseEvent, Leases, VolumeFacts, start};
use flocker_gossip::model::{VoterConfig, Voters};
use flocker_gossip::store::StateDb;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const SIZES: [u32; 4] = [1, 100, 1_000, 10_000];
/// For how long the leases are renewed while nothing else happens.
const IDLE: Duration = Duration::from_secs(10);
/// How long all volumes may take to be held.
const WITHIN: Duration = Duration::from_secs(120);

fn main() -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    for volumes in SIZES {
        let folder =
            std::env::temp_dir().join(format!("measure-leases-{}-{volumes}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let measured = runtime.block_on(Box::pin(measure(&folder, volumes)));
        std::fs::remove_dir_all(&folder).context("cannot remove what was measured")?;
        measured?;
    }
    Ok(())
}

/// Counts what arrives, and passes it on.
struct Counting {
    inner: Arc<dyn Handler>,
    traffic: Arc<Traffic>,
}

#[derive(Default)]
struct Traffic {
    bytes: AtomicU64,
    frames: AtomicU64,
}

#[async_trait]
impl Handler for Counting {
    async fn on_message(&self, from: StoreId, payload: Bytes) {
        self.traffic.bytes.fetch_add(payload.len() as u64, Ordering::Relaxed);
        self.traffic.frames.fetch_add(1, Ordering::Relaxed);
        self.inner.on_message(from, payload).await;
    }

    async fn on_call(&self, from: StoreId, payload: Bytes) -> Result<Bytes, String> {
        self.inner.on_call(from, payload).await
    }
}

struct Node {
    db: StateDb,
    leases: Leases,
    events: mpsc::Receiver<LeaseEvent>,
    stop: CancellationToken,
}

fn volume(number: u32) -> VolumeId {
    let mut bytes = [7; 16];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    VolumeId::from_bytes(bytes)
}

async fn measure(folder: &Path, volumes: u32) -> Result<()> {
    let (net, traffic) = (MemoryNet::new(), Arc::new(Traffic::default()));
    let mut tasks = JoinSet::new();
    let mut nodes = Vec::new();
    for number in 0..3_u8 {
        let path = folder.join(format!("{number}.redb"));
        let db = StateDb::open(&path, WallTime::from_millis(1), [number; 10])?;
        let store = db.store_id();
        let clock = Arc::new(SystemClock);
        let (leases, driver, inner) =
            start(LeaseConfig::default(), &db, net.node(store), clock, u64::from(number))?;
        let counting = Counting { inner, traffic: Arc::clone(&traffic) };
        net.handle(store, Kind::Lease, Arc::new(counting));
        let stop = CancellationToken::new();
        tasks.spawn(driver.run(stop.clone()));
        let events = leases.events();
        nodes.push(Node { db, leases, events, stop });
    }
    let voters: Voters = nodes.iter().map(|n| n.db.store_id()).collect();
    for node in &nodes {
        for number in 0..volumes {
            node.leases.observe(VolumeFacts {
                volume: volume(number),
                config: VoterConfig::birth(voters.clone()),
                lag_limit: Duration::from_secs(60),
            });
            node.leases.set_local_head(volume(number), Head::NONE, WallTime::default());
        }
    }
    let began = SystemClock.boot();
    for number in 0..volumes {
        nodes[0].leases.campaign(volume(number), 0, "measured");
    }
    won(&mut nodes, 0, volumes, None).await?;
    say(volumes, &format!("first holder of all: {} ms", since(began)))?;
    idle(&nodes, &traffic, volumes).await;
    take_over(&net, nodes, volumes).await?;
    tasks.shutdown().await;
    Ok(())
}

async fn idle(nodes: &[Node], traffic: &Traffic, volumes: u32) {
    // What the elections left to be written is written.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let seen = || (traffic.bytes.load(Ordering::Relaxed), traffic.frames.load(Ordering::Relaxed));
    let (bytes, frames) = seen();
    let written: u64 = nodes.iter().map(|n| n.db.writes()).sum();
    tokio::time::sleep(IDLE).await;
    let (all_bytes, all_frames) = seen();
    let rewritten: u64 = nodes.iter().map(|n| n.db.writes()).sum();
    let per_second = |count: u64| count as f64 / IDLE.as_secs_f64();
    let text = format!(
        "renewing all: {:.0} bytes/s and {:.1} messages/s between three nodes, {:.1} commits/s",
        per_second(all_bytes - bytes),
        per_second(all_frames - frames),
        per_second(rewritten - written)
    );
    drop(say(volumes, &text));
}

/// The holder dies; the second asks for each volume whose promise has ended.
async fn take_over(net: &MemoryNet, mut nodes: Vec<Node>, volumes: u32) -> Result<()> {
    let before: u64 = nodes[1..].iter().map(|n| n.db.writes()).sum();
    let died = SystemClock.boot();
    nodes[0].stop.cancel();
    net.remove(nodes[0].db.store_id());
    let (first, last) = won(&mut nodes, 1, volumes, Some(died)).await?;
    let after: u64 = nodes[1..].iter().map(|n| n.db.writes()).sum();
    say(
        volumes,
        &format!(
            "after the holder's death: first taken over after {first} ms, all after {last} ms, \
             {} commits at the two voters left",
            after - before
        ),
    )?;
    for node in &nodes {
        node.stop.cancel();
    }
    Ok(())
}

/// Waits until this node holds all volumes; asks for those of which it hears that nobody does, if
/// somebody has died. Answers when it had the first and the last, from then on.
async fn won(
    nodes: &mut [Node],
    at: usize,
    volumes: u32,
    died: Option<BootTime>,
) -> Result<(u64, u64)> {
    let mut held = HashSet::new();
    let (mut first, mut last) = (0, 0);
    let all = async {
        while held.len() < volumes as usize {
            let event = nodes[at].events.recv().await.context("the driver has ended")?;
            match event {
                LeaseEvent::HolderSilent { volume, .. } if died.is_some() => {
                    nodes[at].leases.campaign(volume, 0, "its holder is silent");
                }
                LeaseEvent::Won { volume, .. } => {
                    held.insert(volume);
                    last = died.map_or(0, since);
                    if held.len() == 1 {
                        first = last;
                    }
                }
                _ => {}
            }
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(WITHIN, all).await.context("not all were won in time")??;
    ensure!(held.len() == volumes as usize, "some were won twice");
    Ok((first, last))
}

fn since(then: BootTime) -> u64 {
    u64::try_from(SystemClock.boot().saturating_since(then).as_millis()).unwrap_or(u64::MAX)
}

fn say(volumes: u32, what: &str) -> Result<()> {
    writeln!(std::io::stdout().lock(), "volumes={volumes}: {what}").context("cannot print")
}

//! What a map of up to 100,000 volumes costs: one change, a start from disk, memory, a newcomer. It
//! prints a line a figure for `docs/PERFORMANCE.md`, and must never be a test: it asserts what it
//! measures to be right, not to be fast. Run it by `scripts/measure-map`.
//!
//! Each figure has the time that passed and the time that the processors worked for it; on a busy
//! machine only the second says anything.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use flocker_base::{
    BootTime, Clock, Epoch, Head, ManualClock, Name, ServiceId, StoreId, SystemClock, VolumeId,
    WallTime,
};
use flocker_gossip::control::{Kind, MemoryNet};
use flocker_gossip::map::record::Record;
use flocker_gossip::map::sync::{Peer, PeerView, build};
use flocker_gossip::map::{Edit, Map, RecordKey, typed};
use flocker_gossip::model::{
    Birth, EngineKind, Placement, PlacementState, ServiceSpec, VolumeMount, VolumePolicy,
    VolumeSpec, VoterConfig,
};
use flocker_gossip::store::{MAP_FILE, StateDb};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Nodes among which the volumes are spread.
const NODES: u32 = 1_000;
const BORN: WallTime = WallTime::from_millis(1_700_000_000_000);

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next()) {
        (Some("start"), Some(folder)) => measure_start(Path::new(&folder)),
        (Some("newcomer"), Some(folder)) => measure_newcomer(Path::new(&folder)),
        _ => measure_all(),
    }
}

fn measure_all() -> Result<()> {
    let folder = std::env::temp_dir().join(format!("measure-map-{}", std::process::id()));
    for volumes in [1_000, 10_000, 100_000] {
        let there = folder.join(volumes.to_string());
        std::fs::create_dir_all(&there)?;
        let map = open(&there, 4)?;
        let began = Spent::now()?;
        fill(&map, volumes)?;
        say(&format!("fill volumes={volumes} {}", began.until_now()?))?;
        measure_changes(&map, volumes)?;
    }
    for part in ["start", "newcomer"] {
        // In a process of its own, whose memory and work are the part's alone.
        let ended = Command::new(std::env::current_exe()?).arg(part).arg(&folder).status()?;
        ensure!(ended.success(), "{part} failed");
    }
    std::fs::remove_dir_all(&folder).context("cannot remove what was measured")
}

/// Changes volumes of a map, one a change.
fn measure_changes(map: &Map, volumes: u32) -> Result<()> {
    let began = Spent::now()?;
    let mut times = Vec::new();
    for turn in 0..500_u32 {
        let mut spec = volume(turn * 7919 % volumes)?;
        spec.policy.local_replicas = 2 + u8::try_from(turn % 200)?;
        let before = SystemClock.boot();
        map.edit([Edit::PutVolume(spec)])?;
        times.push(SystemClock.boot().saturating_since(before));
    }
    times.sort();
    let spent = began.until_now()?;
    say(&format!(
        "change volumes={volumes} p50_us={} p99_us={} of 500: {spent}",
        times[times.len() / 2].as_micros(),
        times[times.len() * 99 / 100].as_micros()
    ))
}

/// Opens a map from disk, as an agent does at its start.
fn measure_start(folder: &Path) -> Result<()> {
    let folder = folder.join("100000");
    let bytes = std::fs::metadata(folder.join(MAP_FILE))?.len();
    let (began, before) = (Spent::now()?, resident()?);
    let db = StateDb::open(&folder.join("state.redb"), BORN, [4; 10])?;
    let database = db.open_map()?;
    let checked = began.until_now()?;
    let map = Map::open(database, db.store_id(), Arc::new(SystemClock))?;
    let whole = began.until_now()?;
    let memory = (resident()? - before) / 1024;
    let records = map.view().records();
    ensure!(map.view().volumes().count() == 100_000, "volumes are missing");
    say(&format!("start records={records} {whole}, of it checking the file {checked}"))?;
    say(&format!("memory_mib={memory} file_mib={}", bytes >> 20))
}

/// Brings an empty newcomer up to date, over a network in memory, both on disk.
fn measure_newcomer(folder: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let empty = folder.join("empty");
    std::fs::create_dir(&empty)?;
    let maps = vec![open(&folder.join("100000"), 4)?, open(&empty, 5)?];
    runtime.block_on(async {
        let (net, stop, mut tasks) = (MemoryNet::new(), CancellationToken::new(), JoinSet::new());
        let began = Spent::now()?;
        for map in &maps {
            let (me, peers) = (map.actor(), Arc::new(All(maps.clone(), Name::new("eu")?)));
            let (sync, push, pull) = build(map.clone(), net.node(me), peers, 7);
            net.handle(me, Kind::MapPush, push);
            net.handle(me, Kind::MapPull, pull);
            tasks.spawn(sync.run(stop.clone()));
        }
        let mut changes = maps[1].watch();
        while maps[1].root() != maps[0].root() {
            changes.changed().await?;
        }
        let records = maps[1].view().records();
        say(&format!("newcomer records={records} {}", began.until_now()?))?;
        stop.cancel();
        while tasks.join_next().await.is_some() {}
        Ok(())
    })
}

/// Every map, as membership would list its node.
struct All(Vec<Map>, Name);

impl PeerView for All {
    fn live(&self) -> Vec<Peer> {
        let peer =
            |map: &Map| Peer { store: map.actor(), region: self.1.clone(), root: Some(map.root()) };
        self.0.iter().map(peer).collect()
    }

    fn region(&self) -> Name {
        self.1.clone()
    }
}

fn open(folder: &Path, number: u8) -> Result<Map> {
    let path: PathBuf = folder.join("state.redb");
    let db = StateDb::open(&path, BORN, [number; 10])?;
    let clock = Arc::new(ManualClock::new(BootTime::ZERO, BORN));
    Ok(Map::open(db.open_map()?, db.store_id(), clock)?)
}

fn fill(map: &Map, volumes: u32) -> Result<()> {
    for chunk in (0..volumes).collect::<Vec<_>>().chunks(5_000) {
        let specs: Vec<_> = chunk.iter().map(|n| volume(*n)).collect::<Result<_>>()?;
        let placements = specs.iter().map(placement).collect();
        map.edit(specs.into_iter().map(Edit::PutVolume).collect::<Vec<_>>())?;
        let merged = map.merge(store(1), placements)?;
        ensure!(merged.refused.is_empty(), "a placement was refused: {:?}", merged.refused[0]);
    }
    let services = (0..200_u8).map(service).collect::<Result<Vec<_>>>()?;
    Ok(map.edit(services)?)
}

fn store(number: u32) -> StoreId {
    StoreId::new(BORN, random(0x5a, number % NODES))
}

fn random(byte: u8, number: u32) -> [u8; 10] {
    let mut random = [byte; 10];
    random[6..].copy_from_slice(&number.to_be_bytes());
    random
}

fn volume(number: u32) -> Result<VolumeSpec> {
    let replicas: Vec<_> = (0..3).map(|n| store(number.wrapping_mul(31) + n * 7)).collect();
    let voters = replicas.iter().copied().collect();
    Ok(VolumeSpec {
        id: VolumeId::new(BORN, random(0x33, number.wrapping_mul(2_654_435_761))),
        name: Name::new(format!("volume-{number:06}"))?,
        policy: VolumePolicy::default(),
        birth: Birth { master: replicas[0], voters, replicas },
    })
}

fn placement(spec: &VolumeSpec) -> (RecordKey, Record) {
    let epoch = Epoch::new(0, 3);
    let said = Placement {
        volume: spec.id,
        epoch,
        sequence: 17,
        holder: spec.birth.master,
        voters: VoterConfig::birth(spec.birth.voters.clone()),
        replicas: spec.birth.replicas.clone(),
        head: Head::new(epoch, 120_000),
        state: PlacementState::Active,
    };
    (typed::placement_key(said.volume), Record::Placed(typed::placed(&said)))
}

fn service(number: u8) -> Result<Edit> {
    Ok(Edit::PutService(ServiceSpec {
        id: ServiceId::new(BORN, random(0x44, u32::from(number))),
        name: Name::new(format!("service-{number}"))?,
        command: vec!["/usr/bin/serve".to_owned(), "--port".to_owned(), "$PORT".to_owned()],
        environment: [("MODE".to_owned(), "production".to_owned())].into(),
        volume: VolumeMount { volume: volume(u32::from(number))?.id, path: "/data".to_owned() },
        health_path: Some("/healthz".to_owned()),
        stop_grace: Duration::from_secs(10),
        engine: EngineKind::Process,
    }))
}

/// The time that passed since a moment, and the time that this process worked.
struct Spent {
    at: BootTime,
    worked: u64,
}

impl Spent {
    fn now() -> Result<Self> {
        Ok(Self { at: SystemClock.boot(), worked: worked_ms()? })
    }

    fn until_now(&self) -> Result<String> {
        let passed = SystemClock.boot().saturating_since(self.at).as_millis();
        Ok(format!("ms={passed} cpu_ms={}", worked_ms()? - self.worked))
    }
}

/// Processor time of this process so far. The kernel counts in hundredths of a second.
fn worked_ms() -> Result<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, after_name) = stat.rsplit_once(')').context("no name in /proc/self/stat")?;
    let ticks = after_name.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
    Ok(ticks.collect::<Result<Vec<_>, _>>()?.iter().sum::<u64>() * 10)
}

/// Resident memory of this process, in KiB.
fn resident() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    Ok(line.split_whitespace().nth(1).context("no number")?.parse()?)
}

fn say(line: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout().lock(), "{line}")?)
}

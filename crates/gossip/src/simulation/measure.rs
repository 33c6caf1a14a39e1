//! How long one change takes to be everywhere, and what that costs. The figures are for
//! `docs/PERFORMANCE.md`: run `scripts/measure-sync`.

use super::disk::Disk;
use super::faults::route;
use super::mutants::Mutant;
use super::world::{Change, MILLISECOND, Micros, SECOND, Traffic, Work, World};
use crate::map::{Edit, Map, RecordKey};

/// Records that every map begins with.
const RECORDS: u8 = 100;

/// What a run of single changes in a healthy mesh gave.
pub(super) struct Spread {
    /// Times from the acknowledgement of a change to its being on disk elsewhere, sorted: one for
    /// each change and other node.
    pub(super) times: Vec<Micros>,
    /// Changes that some node had not got in time, and how many.
    pub(super) missing: usize,
    pub(super) traffic: Traffic,
    pub(super) idle: Traffic,
}

/// A healthy mesh of equal maps, in which everyone knows everyone.
fn healthy(seed: u64, count: usize, regions: usize, mutant: Option<Mutant>) -> World {
    let mut world = World::new(seed, count, regions, mutant);
    let disk = Disk::default();
    let clock = flocker_base::ManualClock::new(
        flocker_base::BootTime::ZERO,
        flocker_base::WallTime::from_millis(1_600_000_000_000),
    );
    let author = flocker_base::StoreId::from_bytes([9; 16]);
    let map = Map::open(disk.open(), author, std::sync::Arc::new(clock)).expect("opens");
    let edits: Vec<Edit> = (0..RECORDS).map(|n| route(&format!("old{n}.test"), n)).collect();
    map.edit(edits).expect("edits");
    for node in 0..count {
        world.nodes[node].disk = disk.after_crash();
        world.start(node);
    }
    world.tell_views(SECOND);
    world.run_until(8 * SECOND);
    world
}

/// Makes single changes, three seconds apart, and watches each spread.
pub(super) fn spread(
    seed: u64,
    count: usize,
    regions: usize,
    changes: u32,
    mutant: Option<Mutant>,
) -> Spread {
    let mut world = healthy(seed, count, regions, mutant);
    world.traffic = Traffic::default();
    world.run_until(world.now + 20 * SECOND);
    let idle = std::mem::take(&mut world.traffic);
    let mut keys: Vec<RecordKey> = Vec::new();
    world.arrivals = Some(std::collections::BTreeMap::new());
    for change in 0..changes {
        let node = usize::try_from(change).expect("small") * 7_919 % count;
        let edit = route(&format!("h{change}.test"), 1);
        keys.push(edit.key());
        world.work(node, Work::Change(Change::Edit(edit)));
        world.run_until(world.now + 3 * SECOND);
    }
    let arrivals = world.arrivals.take().unwrap_or_default();
    let (mut times, mut missing) = (Vec::new(), 0);
    for key in keys {
        let of_key = arrivals.get(&key).cloned().unwrap_or_default();
        missing += count - of_key.len();
        let born = of_key.values().min().copied().unwrap_or_default();
        let mut later: Vec<Micros> = of_key.values().map(|at| at - born).collect();
        later.sort_unstable();
        times.extend(later.into_iter().skip(1));
    }
    times.sort_unstable();
    Spread { times, missing, traffic: world.traffic, idle }
}

pub(super) fn percentile(sorted: &[Micros], hundredths: usize) -> Micros {
    sorted
        .get((sorted.len() * hundredths / 100).min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or(0)
}

#[test]
#[ignore = "run by scripts/measure-sync: a measurement, not a test"]
fn one_change_in_meshes_of_all_sizes() {
    let sizes = std::env::var("FLOCKER_SIMULATION_NODES");
    let sizes = sizes.unwrap_or_else(|_| "10,100,300,1000,3000".to_owned());
    println!(
        "| nodes | regions | changes | p50 ms | p99 ms | last ms | missed | pushes a node | push bytes a node | pull bytes a node | idle bytes/s a node |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    for size in sizes.split(',').filter_map(|size| size.trim().parse::<usize>().ok()) {
        let regions = match size {
            ..100 => 1,
            100..300 => 3,
            300..1_000 => 5,
            _ => 10,
        };
        let changes = if size > 1_000 { 20 } else { 40 };
        let spread = spread(1, size, regions, changes, None);
        let shown = |at: Micros| format!("{}.{}", at / MILLISECOND, at % MILLISECOND / 100);
        let each = u64::from(changes) * size as u64;
        println!(
            "| {size} | {regions} | {changes} | {} | {} | {} | {} | {}.{:02} | {} | {} | {} |",
            shown(percentile(&spread.times, 50)),
            shown(percentile(&spread.times, 99)),
            shown(percentile(&spread.times, 100)),
            spread.missing,
            spread.traffic.pushes / each,
            spread.traffic.pushes * 100 / each % 100,
            spread.traffic.push_bytes / each,
            spread.traffic.pull_bytes / each,
            (spread.idle.push_bytes + spread.idle.pull_bytes) / 20 / size as u64,
        );
    }
}

//! What a change costs as the map grows. The figures are for `docs/PERFORMANCE.md`:
//! `cargo test --release -p flocker-gossip map::tests::cost -- --ignored --nocapture`

use std::path::Path;
use std::process::Command;

use super::*;

/// Resident memory of this process, in KiB.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a line");
    line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
}

fn timed<T>(clock: &flocker_base::SystemClock, work: impl FnOnce() -> T) -> (Duration, T) {
    let before = clock.boot();
    let value = work();
    (clock.boot().saturating_since(before), value)
}

fn database(file: Option<&Path>) -> Arc<Database> {
    let mut builder = Database::builder();
    builder.set_cache_size(32 << 20);
    let memory = redb::backends::InMemoryBackend::new;
    Arc::new(match file {
        Some(file) => builder.create(file).expect("opens"),
        None => builder.create_with_backend(memory()).expect("opens"),
    })
}

/// Fills a map and changes it.
fn measure_changes(records: u32, file: Option<&Path>) {
    let real = flocker_base::SystemClock;
    let map = Map::open(database(file), store_id(1), clock()).expect("opens");
    let (fill, ()) = timed(&real, || {
        for chunk in (0..records).collect::<Vec<_>>().chunks(5_000) {
            let edits: Vec<_> =
                chunk.iter().map(|n| Edit::PutVolume(volume(*n, &format!("v{n}")))).collect();
            map.edit(edits).expect("edits");
        }
    });
    let mut times: Vec<Duration> = (0..300_u32)
        .map(|turn| {
            let number = turn * 7919 % records;
            let mut spec = volume(number, &format!("v{number}"));
            spec.policy.local_replicas = 2 + u8::try_from(turn % 200).expect("small");
            timed(&real, || map.edit([Edit::PutVolume(spec)]).expect("edits")).0
        })
        .collect();
    times.sort();
    let mut tree_times: Vec<Duration> = (0..1_000_u32)
        .map(|turn| {
            let key = Edit::DeleteVolume(volume_id(turn * 7919 % records)).key();
            timed(&real, || map.tree().set(key, [1; 32])).0
        })
        .collect();
    tree_times.sort();
    println!(
        "{records} records {}: filled in {fill:?}; one change p50 {:?} p99 {:?}; hash tree p50 {:?}",
        if file.is_some() { "on disk" } else { "in memory" },
        times[times.len() / 2],
        times[times.len() * 99 / 100],
        tree_times[tree_times.len() / 2],
    );
}

/// Opens a map from disk and brings an empty newcomer up to date.
fn measure_start(file: &Path) {
    let real = flocker_base::SystemClock;
    let before = resident();
    let db = database(Some(file));
    let (open, map) = timed(&real, || Map::open(db, store_id(1), clock()).expect("opens"));
    let (size, records) = (resident(), map.view().records());
    println!("  opened {records} records in {open:?}; memory {before} -> {size} KiB");
    let db = database(Some(&file.with_extension("newcomer")));
    let newcomer = Map::open(db, store_id(2), clock()).expect("opens");
    let (fill, ()) = timed(&real, || {
        let mut after = None;
        loop {
            let page = map.inner.store.page(after.as_ref(), 2 << 20).expect("reads");
            let Some((last, _)) = page.last() else { break };
            after = Some(last.clone());
            let read = |(key, bytes): (RecordKey, Vec<u8>)| {
                (key, crate::map::encoding::decode(&bytes).expect("decodes"))
            };
            newcomer.merge(store_id(1), page.into_iter().map(read).collect()).expect("merges");
        }
    });
    assert_eq!(newcomer.root(), map.root());
    println!("  an empty newcomer read, merged and stored all in {fill:?}");
}

#[test]
#[ignore = "run by hand: a measurement, not a test"]
fn one_change_in_maps_of_all_sizes() {
    for records in [1_000, 10_000, 100_000] {
        measure_changes(records, None);
    }
    let folder = tempfile::tempdir().expect("a folder");
    for records in [10_000, 100_000] {
        let file = folder.path().join(format!("{records}.redb"));
        measure_changes(records, Some(&file));
        // In a process of its own, whose memory is the map's alone.
        let ended = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "map::tests::cost::a_start_from_disk", "--ignored", "--nocapture"])
            .env(FILE, &file)
            .status()
            .expect("starts");
        assert!(ended.success());
    }
}

const FILE: &str = "FLOCKER_MAP_COST_FILE";

/// Not a measurement by itself: run by the one above.
#[test]
#[ignore = "run by one_change_in_maps_of_all_sizes"]
fn a_start_from_disk() {
    if let Some(file) = std::env::var_os(FILE) {
        measure_start(Path::new(&file));
    }
}

/// The same by a count instead of a clock.
#[test]
fn a_change_writes_one_row_whatever_the_size_of_the_map() {
    for records in [10, 1_000] {
        let (map, _) = map(1);
        let edits: Vec<_> =
            (0..records).map(|n| Edit::PutVolume(volume(n, &format!("v{n}")))).collect();
        map.edit(edits).expect("edits");
        let before = map.inner.store.page(None, usize::MAX).expect("reads");
        let mut spec = volume(5, "v5");
        spec.policy.local_replicas = 9;
        map.edit([Edit::PutVolume(spec)]).expect("edits");
        let after = map.inner.store.page(None, usize::MAX).expect("reads");
        let changed: Vec<_> = before.iter().zip(&after).filter(|(old, new)| old != new).collect();
        assert_eq!((before.len(), changed.len()), (after.len(), 1));
    }
}

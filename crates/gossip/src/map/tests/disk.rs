//! What the disk may do to the map: kills at any instant, lost writes, flipped bits, missing
//! rows, a full disk. The map is then what was announced, or the fault is named.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use redb::{ReadableTable, TableDefinition};

use super::*;

const ROWS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("map_records");

/// Changes a row behind the map's back.
fn tamper(db: &Database, key: &RecordKey, change: impl FnOnce(&mut Vec<u8>)) {
    let txn = db.begin_write().expect("writes");
    {
        let mut table = txn.open_table(ROWS).expect("the table");
        let mut row = table.get(key.as_bytes()).expect("reads").expect("there").value().to_vec();
        change(&mut row);
        if row.is_empty() {
            table.remove(key.as_bytes()).expect("removes");
        } else {
            table.insert(key.as_bytes(), row.as_slice()).expect("inserts");
        }
    }
    txn.commit().expect("commits");
}

fn filled(count: u32) -> (Arc<Database>, Map) {
    let db = memory_db();
    let map = Map::open(Arc::clone(&db), store_id(1), clock()).expect("opens");
    let edits: Vec<_> = (0..count).map(|n| Edit::PutVolume(volume(n, &format!("v{n}")))).collect();
    map.edit(edits).expect("edits");
    (db, map)
}

#[test]
fn what_was_written_is_there_after_a_restart() {
    let (db, map) = filled(50);
    map.edit([Edit::DeleteVolume(volume_id(7))]).expect("deletes");
    map.place(placement(1, Epoch::new(0, 1), 1, 1)).expect("places");
    let (root, records) = (map.root(), map.view().records());
    drop(map);
    let map = Map::open(db, store_id(1), clock()).expect("opens again");
    assert_eq!((map.root(), map.view().records()), (root, records));
    assert!(map.view().is_volume_deleted(&volume_id(7)));
    assert_eq!(map.view().volume_named(&name("v8")).expect("there").spec, volume(8, "v8"));
}

#[test]
fn every_flipped_bit_of_a_record_is_refused_by_name_and_healed_from_a_peer() {
    let key = Edit::DeleteVolume(volume_id(3)).key();
    let (_, peer) = filled(5);
    let length = peer.inner.store.get(&key).expect("reads").expect("there").len() + 16;
    for at in (0..length).step_by(7) {
        let (db, map) = filled(5);
        drop(map);
        tamper(&db, &key, |row| row[at] ^= 1 << (at % 8));
        let refused = Map::open(Arc::clone(&db), store_id(1), clock()).expect_err("damaged");
        assert!(refused.to_string().contains(&key.to_string()), "{refused}");
        assert!(!refused.is_fatal(), "a person can heal it");
        let dropped = Map::drop_damaged(&db).expect("heals");
        assert_eq!(dropped, [key.to_string()]);
        let map = Map::open(db, store_id(1), clock()).expect("opens");
        assert_eq!(map.view().volumes().count(), 4);
        carry(&peer, &map);
        assert_eq!(map.root(), peer.root());
    }
}

#[test]
fn a_missing_row_is_missed() {
    let key = Edit::DeleteVolume(volume_id(3)).key();
    let (db, map) = filled(5);
    drop(map);
    tamper(&db, &key, Vec::clear);
    let refused = Map::open(Arc::clone(&db), store_id(1), clock()).expect_err("missing");
    assert!(refused.to_string().contains("4 records of 5"), "{refused}");
    assert_eq!(Map::drop_damaged(&db).expect("heals"), Vec::<String>::new());
    assert_eq!(Map::open(db, store_id(1), clock()).expect("opens").view().records(), 4);
}

#[test]
fn damage_found_while_running_is_refused_and_changes_nothing() {
    let key = Edit::DeleteVolume(volume_id(3)).key();
    let (db, map) = filled(5);
    tamper(&db, &key, |row| row[20] ^= 1);
    let root = map.root();
    let mut spec = volume(3, "v3");
    spec.policy.local_replicas = 9;
    let refused = map.edit([Edit::PutVolume(volume(9, "v9")), Edit::PutVolume(spec)]);
    assert!(matches!(refused, Err(MapError::Damaged { .. })));
    assert_eq!(map.root(), root);
    map.edit([Edit::PutVolume(volume(9, "v9"))]).expect("other records go on");
}

/// A disk that stops after some operations and, like a machine that loses power, forgets any
/// part of what was not synced.
#[derive(Debug, Default)]
pub(super) struct Disk {
    synced: Vec<u8>,
    pub(super) now: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
    operations_left: usize,
}

#[derive(Clone, Debug)]
pub(super) struct Unsteady(Arc<Mutex<Disk>>);

impl Unsteady {
    pub(super) fn new(image: Vec<u8>, operations: usize) -> Self {
        let disk = Disk { synced: image.clone(), now: image, ..Disk::default() };
        Self(Arc::new(Mutex::new(Disk { operations_left: operations, ..disk })))
    }

    pub(super) fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().expect("no panic under it")
    }

    fn spend(disk: &mut Disk) -> Result<(), std::io::Error> {
        match disk.operations_left.checked_sub(1) {
            Some(left) => disk.operations_left = left,
            None => return Err(std::io::Error::from(std::io::ErrorKind::StorageFull)),
        }
        Ok(())
    }

    /// What the disk holds after the power comes back: of what was not synced, anything.
    fn after_power_loss(&self, random: &mut StdRng) -> Vec<u8> {
        let disk = self.disk();
        let mut image = disk.synced.clone();
        image.resize(image.len().max(disk.now.len()), 0);
        for (offset, data) in &disk.unsynced {
            let kept = match random.random_range(0..3) {
                0 => 0,
                1 => random.random_range(0..=data.len()),
                _ => data.len(),
            };
            image[*offset..*offset + kept].copy_from_slice(&data[..kept]);
        }
        image
    }
}

impl redb::StorageBackend for Unsteady {
    fn len(&self) -> Result<u64, std::io::Error> {
        Ok(self.disk().now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), std::io::Error> {
        let at = usize::try_from(offset).expect("small");
        out.copy_from_slice(&self.disk().now[at..at + out.len()]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), std::io::Error> {
        let mut disk = self.disk();
        Self::spend(&mut disk)?;
        disk.now.resize(usize::try_from(len).expect("small"), 0);
        Ok(())
    }

    fn sync_data(&self) -> Result<(), std::io::Error> {
        let mut disk = self.disk();
        Self::spend(&mut disk)?;
        disk.synced = disk.now.clone();
        disk.unsynced.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), std::io::Error> {
        let mut disk = self.disk();
        Self::spend(&mut disk)?;
        let at = usize::try_from(offset).expect("small");
        disk.now[at..at + data.len()].copy_from_slice(data);
        disk.unsynced.push((at, data.to_vec()));
        Ok(())
    }
}

#[test]
fn power_lost_at_any_write_loses_nothing_that_was_announced() {
    let mut random = StdRng::seed_from_u64(11);
    let (mut image, mut announced, mut rounds_that_failed) = (Vec::new(), 0_u32, 0);
    for round in 0..120 {
        let disk = Unsteady::new(image.clone(), random.random_range(0..90));
        let opened = Database::builder()
            .create_with_backend(disk.clone())
            .map_err(|why| why.to_string())
            .and_then(|db| {
                Map::open(Arc::new(db), store_id(1), clock()).map_err(|why| why.to_string())
            });
        if let Ok(map) = opened {
            let there = u32::try_from(map.view().volumes().count()).expect("few");
            assert!(
                there == announced || there == announced + 1,
                "{there} of {announced}, {round}"
            );
            announced = there;
            for _ in 0..10 {
                let root = map.root();
                let edit = Edit::PutVolume(volume(announced, &format!("v{announced}")));
                match map.edit([edit.clone()]) {
                    Ok(()) => announced += 1,
                    Err(failure) => {
                        assert!(failure.is_fatal(), "{failure}");
                        assert_eq!(map.root(), root, "nothing is shown that is not on disk");
                        assert!(map.edit([edit]).is_err(), "nothing more is written");
                        rounds_that_failed += 1;
                        break;
                    }
                }
            }
            drop(map);
        }
        image = disk.after_power_loss(&mut random);
    }
    let disk = Unsteady::new(image, usize::MAX);
    let db = Database::builder().create_with_backend(disk).expect("a sound database");
    let map = Map::open(Arc::new(db), store_id(1), clock()).expect("opens");
    let there = u32::try_from(map.view().volumes().count()).expect("few");
    assert!(there == announced || there == announced + 1, "{there} of {announced}");
    assert!(rounds_that_failed > 20, "the fault happened only {rounds_that_failed} times");
    assert!(announced > 50, "only {announced} edits got through");
}

/// How a disk fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// The process is killed: what it wrote stays.
    Kill,
    /// The power goes: of what was not synced, anything stays.
    Power,
}

/// Fails each single operation of a change in turn: the map is as before or as after, the map that
/// met the failure says so and writes no more.
#[test]
fn every_write_and_sync_of_a_change_can_fail() {
    let mut random = StdRng::seed_from_u64(5);
    let healthy = Unsteady::new(Vec::new(), usize::MAX);
    let db = Database::builder().create_with_backend(healthy.clone()).expect("a database");
    let map = Map::open(Arc::new(db), store_id(1), clock()).expect("opens");
    map.edit((0..30).map(|n| Edit::PutVolume(volume(n, &format!("v{n}")))).collect::<Vec<_>>())
        .expect("edits");
    let before = map.root();
    drop(map);
    let image = healthy.disk().now.clone();
    let change = || {
        let changed = (0..3).map(|n| {
            let mut spec = volume(n, &format!("v{n}"));
            spec.policy.local_replicas = 9;
            Edit::PutVolume(spec)
        });
        changed.chain([Edit::PutVolume(volume(99, "new"))]).collect::<Vec<_>>()
    };
    let open = |disk: &Unsteady| {
        let db = Database::builder().create_with_backend(disk.clone()).expect("sound");
        Map::open(Arc::new(db), store_id(1), clock()).expect("opens")
    };
    let whole = open(&Unsteady::new(image.clone(), usize::MAX));
    whole.edit(change()).expect("edits");
    let after = whole.root();
    let (mut failed, mut kept, mut survived) = (0, 0, 0);
    for failure in [Failure::Kill, Failure::Power] {
        for operations in 0.. {
            let disk = Unsteady::new(image.clone(), usize::MAX);
            let map = open(&disk);
            disk.disk().operations_left = operations;
            match map.edit(change()) {
                Ok(()) => {
                    survived += 1;
                    break;
                }
                Err(why) => {
                    assert!(why.is_fatal(), "{why}");
                    assert_eq!(map.root(), before, "nothing is shown that may not be there");
                    disk.disk().operations_left = usize::MAX;
                    let again = map.edit([Edit::PutVolume(volume(98, "more"))]);
                    assert!(again.is_err(), "nothing more is written after operation {operations}");
                    failed += 1;
                }
            }
            drop(map);
            let image = match failure {
                Failure::Kill => disk.disk().now.clone(),
                Failure::Power => disk.after_power_loss(&mut random),
            };
            let root = open(&Unsteady::new(image, usize::MAX)).root();
            assert!(root == before || root == after, "{failure:?} at {operations}: half a change");
            kept += u32::from(root == before);
        }
    }
    assert!(failed > 10 && kept > 10, "{failed} failures, {kept} of them left it as it was");
    assert_eq!(survived, 2);
}

const VICTIM: &str = "FLOCKER_MAP_VICTIM";

/// Not a test: the process that the next one kills. It writes for ever and says what is on disk.
#[test]
#[ignore = "run by killed_at_any_instant"]
fn victim() {
    let Ok(path) = std::env::var(VICTIM) else { return };
    let db = Arc::new(Database::create(Path::new(&path)).expect("opens the database"));
    let map = Map::open(db, store_id(1), clock()).expect("opens the map");
    println!("opened {}", map.view().volumes().count());
    for number in u32::try_from(map.view().volumes().count()).expect("few").. {
        map.edit([
            Edit::PutVolume(volume(number, &format!("v{number}"))),
            Edit::PutRoute(route(&format!("h{number}"), 1)),
        ])
        .expect("edits");
        println!("durable {number}");
    }
}

#[test]
fn killed_at_any_instant_it_restarts_with_all_that_it_announced() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("state.redb");
    let mut random = StdRng::seed_from_u64(3);
    let (mut announced, mut opens) = (0, 0);
    for round in 0..40 {
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "map::tests::disk::victim", "--ignored", "--nocapture"])
            .env(VICTIM, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut until = random.random_range(1..12_u32);
        for line in lines.map_while(Result::ok) {
            // The test harness may print its own words on the same line.
            if let Some((_, opened)) = line.split_once("opened ") {
                let there: u32 = opened.parse().expect("a number");
                assert!(there >= announced && there <= announced + 12, "round {round}: {opened}");
                announced = there;
                opens += 1;
            } else if let Some((_, number)) = line.split_once("durable ") {
                announced = number.parse::<u32>().expect("a number") + 1;
                until -= 1;
            }
            if until == 0 {
                // Some work for this process, so that the kill falls at another instant each time.
                for turn in 0..random.random_range(0..400_000_u64) {
                    std::hint::black_box(turn);
                }
                child.kill().expect("kills");
                break;
            }
        }
        child.wait().expect("ends");
    }
    let db = Arc::new(Database::create(&path).expect("opens the database"));
    let map = Map::open(db, store_id(1), clock()).expect("opens the map");
    let view = map.view();
    assert!(u32::try_from(view.volumes().count()).expect("few") >= announced);
    assert_eq!(view.volumes().count(), view.routes().count(), "each change whole or not at all");
    assert_eq!(opens, 40, "each round opened the map");
    assert!(announced >= 40, "only {announced} changes in all");
    for number in 0..announced {
        let there = view.volume(&volume_id(number)).expect("what was announced is there");
        assert_eq!(there.spec, volume(number, &format!("v{number}")));
    }
}

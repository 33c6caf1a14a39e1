//! The map's own file: born, taken over from the store's file, refused when damaged, repaired.

use flocker_base::{Name, SystemClock, VolumeId, WallTime};

use super::*;
use crate::map::Edit;
use crate::model::{Birth, VolumePolicy, VolumeSpec};

fn store(folder: &Path) -> StateDb {
    let path = folder.join("state.redb");
    StateDb::open(&path, WallTime::from_millis(1_000), [7; 10]).expect("opens")
}

fn open_map(db: &StateDb, database: Arc<Database>) -> Map {
    Map::open(database, db.store_id(), Arc::new(SystemClock)).expect("opens the map")
}

fn fill(map: &Map, count: u16) {
    let volume = |number: u16| {
        let mut id = [9; 16];
        id[14..].copy_from_slice(&number.to_be_bytes());
        Edit::PutVolume(VolumeSpec {
            id: VolumeId::from_bytes(id),
            name: Name::new(format!("v{number}")).expect("a name"),
            policy: VolumePolicy::default(),
            birth: Birth {
                master: map.actor(),
                replicas: vec![map.actor()],
                voters: [map.actor()].into(),
            },
        })
    };
    map.edit((0..count).map(volume).collect::<Vec<_>>()).expect("edits");
}

/// A folder with a closed store whose map has so many volumes.
fn filled(count: u16) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let db = store(folder.path());
    fill(&open_map(&db, db.open_map().expect("a map")), count);
    let path = folder.path().join(MAP_FILE);
    (folder, path)
}

#[test]
fn the_map_has_a_file_of_its_own_and_keeps_it() {
    let (folder, _) = filled(20);
    let db = store(folder.path());
    let map = open_map(&db, db.open_map().expect("opens again"));
    assert_eq!(map.view().volumes().count(), 20);
    assert!(!has_tables(&db.database()).expect("looks"), "nothing of it is in the store's file");
}

#[test]
fn a_map_in_the_stores_own_file_is_taken_over_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let db = store(folder.path());
    let old = open_map(&db, db.database());
    fill(&old, 20);
    let root = old.root();
    drop(old);
    let map = open_map(&db, db.open_map().expect("takes it over"));
    assert_eq!((map.root(), map.view().volumes().count()), (root, 20));
    assert!(!has_tables(&db.database()).expect("looks"), "the old one is gone");
    fill(&map, 25);
    drop(map);
    assert_eq!(open_map(&db, db.open_map().expect("opens")).view().volumes().count(), 25);
}

#[test]
fn a_crash_while_it_is_taken_over_loses_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let db = store(folder.path());
    fill(&open_map(&db, db.database()), 20);
    // As if the new file had been put in place, and nothing more was done.
    db.make(&folder.path().join(MAP_FILE)).expect("makes it");
    durable::write_plain(&folder.path().join("map.redb.new"), b"half", 0o600).expect("writes");
    let map = open_map(&db, db.open_map().expect("goes on"));
    assert_eq!(map.view().volumes().count(), 20);
    assert!(!has_tables(&db.database()).expect("looks"));
}

#[test]
fn a_file_that_is_gone_or_another_nodes_is_refused_by_name() {
    let (folder, path) = filled(3);
    let kept = std::fs::read(&path).expect("reads");
    std::fs::remove_file(&path).expect("removes");
    let db = store(folder.path());
    let refused = db.open_map().expect_err("gone");
    assert!(refused.to_string().contains("map.redb is damaged (it is gone)"), "{refused}");
    assert!(refused.to_string().contains("flocker repair map"), "{refused}");
    drop(db);
    let foreign = tempfile::tempdir().expect("a folder");
    let born = WallTime::from_millis(5);
    let foreign_db =
        StateDb::open(&foreign.path().join("state.redb"), born, [1; 10]).expect("opens");
    drop(foreign_db.open_map().expect("a map"));
    std::fs::copy(foreign.path().join(MAP_FILE), &path).expect("copies");
    let db = store(folder.path());
    assert!(matches!(db.open_map(), Err(StoreError::Foreign { .. })));
    assert!(matches!(db.repair_map(), Err(StoreError::Foreign { .. })), "nor repaired");
    durable::write_plain(&path, &kept, 0o600).expect("puts it back");
    assert_eq!(open_map(&db, db.open_map().expect("opens")).view().volumes().count(), 3);
}

#[test]
fn a_flipped_bit_is_refused_by_file_and_repaired() {
    let (folder, path) = filled(400);
    let good = std::fs::read(&path).expect("reads");
    let (mut refused, mut salvaged, mut named) = (0, 0, 0);
    for at in (0..good.len()).step_by(good.len() / 60 + 1) {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        durable::write_plain(&path, &bad, 0o600).expect("writes");
        let db = store(folder.path());
        match db.open_map() {
            Ok(database) => assert_eq!(open_map(&db, database).view().volumes().count(), 400),
            Err(why @ StoreError::MapDamaged { .. }) => {
                assert!(why.to_string().contains("map.redb"), "{why}");
                refused += 1;
                let repaired = db.repair_map().expect("repairs");
                let map = open_map(&db, db.open_map().expect("opens"));
                assert_eq!(map.view().records(), repaired.kept, "byte {at}");
                salvaged += u32::from(repaired.kept > 300);
                named += repaired.dropped.len();
                let gone = repaired.unnamed.unwrap_or(0);
                if repaired.kept < 400 && gone != u64::MAX {
                    let sum = u64::try_from(repaired.dropped.len()).expect("few") + gone;
                    assert_eq!(repaired.kept + sum, 400, "each is kept, named or counted");
                }
                let old = repaired.old_file.expect("the damaged file is kept");
                assert_eq!(std::fs::read(&old).expect("reads").len(), bad.len());
                std::fs::remove_file(old).expect("removes");
            }
            Err(other) => panic!("byte {at}: {other}"),
        }
    }
    assert!(refused > 5, "only {refused} were refused");
    assert!(salvaged > 0 && named > 0, "{salvaged} of {refused} salvaged, {named} named");
}

#[test]
fn a_damaged_store_is_never_repaired() {
    let (folder, _) = filled(3);
    let path = folder.path().join("state.redb");
    let mut bytes = std::fs::read(&path).expect("reads");
    let middle = bytes.len() / 2;
    bytes.truncate(middle);
    durable::write_plain(&path, &bytes, 0o600).expect("writes");
    let refused = StateDb::open(&path, WallTime::from_millis(1), [7; 10]).expect_err("damaged");
    assert!(refused.to_string().contains("join again as a new node"), "{refused}");
}

#[test]
fn repairing_what_is_whole_changes_nothing() {
    let (folder, _) = filled(10);
    let db = store(folder.path());
    let repaired = db.repair_map().expect("repairs");
    assert_eq!((repaired.kept, repaired.dropped.len(), repaired.unnamed), (10, 0, None));
    assert_eq!(repaired.old_file, None);
}

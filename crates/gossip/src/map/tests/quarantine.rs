//! What a node that was away for long brings, through the whole map: kept apart, shown, kept over
//! a restart, then admitted or dropped everywhere.

use super::*;
use crate::map::quarantine::MAX_QUARANTINED;
use crate::map::room::{Disk, MIN_FREE};

const DAY: Duration = Duration::from_secs(86_400);

fn aged(number: u32, at: WallTime) -> VolumeSpec {
    let mut random = [0x11; 10];
    random[6..].copy_from_slice(&number.to_be_bytes());
    VolumeSpec { id: VolumeId::new(at, random), ..volume(number, &format!("v{number}")) }
}

/// Two nodes that are in touch for ten days, and one that is away and makes a volume with its
/// placement on the first of them.
struct Late {
    present: [(Map, Arc<ManualClock>); 2],
    away: (Map, Arc<ManualClock>),
    spec: VolumeSpec,
}

impl Late {
    fn new() -> Self {
        let late = Self { present: [map(1), map(2)], away: map(3), spec: aged(1, NOON) };
        late.away.0.edit([Edit::PutVolume(late.spec.clone())]).expect("edits");
        late.away.0.place(late.placement()).expect("places");
        late.pass(10);
        late
    }

    fn placement(&self) -> Placement {
        Placement { volume: self.spec.id, ..placement(1, Epoch::new(0, 1), 1, 3) }
    }

    /// Lets days pass in which the present ones hear of each other.
    fn pass(&self, days: u32) {
        for _ in 0..days {
            for (map, clock) in &self.present {
                clock.advance(DAY);
                map.note_contact_now().expect("notes");
            }
            self.away.1.advance(DAY);
        }
    }

    fn key(&self) -> RecordKey {
        Edit::DeleteVolume(self.spec.id).key()
    }
}

#[test]
fn what_a_node_brings_after_a_long_absence_is_kept_apart_with_its_placement() {
    let late = Late::new();
    let (one, _) = &late.present[0];
    let root = one.root();
    let merged = carry(&late.away.0, one);
    assert_eq!((merged.changed.len(), merged.quarantined.len()), (0, 2), "{merged:?}");
    assert_eq!(one.root(), root, "the map is as it was");
    let view = one.view();
    assert_eq!((view.volumes().count(), view.placements().count()), (0, 0));
    let shown = view.quarantined_record(&late.key()).expect("shown");
    assert_eq!((shown.from, shown.name.as_deref()), (store_id(3), Some("v1")));
    assert_eq!(shown.written.map(|stamp| stamp.wall()), Some(NOON));
    let again = carry(&late.away.0, one);
    assert!(again.quarantined.is_empty(), "once");
    assert!(carry(one, &late.present[1].0).changed.is_empty(), "no peer is told");
}

#[test]
fn a_restart_keeps_the_quarantine() {
    let (db, clock) = (memory_db(), clock());
    let one = Map::open(Arc::clone(&db), store_id(1), clock.clone()).expect("opens");
    let (away, _) = map(3);
    let spec = aged(1, NOON);
    away.edit([Edit::PutVolume(spec.clone())]).expect("edits");
    for _ in 0..10 {
        clock.advance(DAY);
        one.note_contact_now().expect("notes");
    }
    assert_eq!(carry(&away, &one).quarantined.len(), 1);
    drop(one);
    let one = Map::open(db, store_id(1), clock).expect("opens again");
    assert_eq!(one.view().quarantined().count(), 1);
    let later = aged(2, NOON);
    away.edit([Edit::PutVolume(later)]).expect("edits");
    assert_eq!(carry(&away, &one).quarantined.len(), 1, "it still knows how long it was there");
    one.admit_quarantined(&Edit::DeleteVolume(spec.id).key()).expect("admits");
    assert_eq!(one.view().volume(&spec.id).expect("there").spec, spec);
}

#[test]
fn an_admitted_volume_spreads_with_its_placement_and_all_maps_meet() {
    let late = Late::new();
    let [(one, _), (two, _)] = &late.present;
    carry(&late.away.0, one);
    carry(&late.away.0, two);
    one.admit_quarantined(&late.key()).expect("admits");
    let view = one.view();
    assert_eq!(view.volume(&late.spec.id).expect("there").spec, late.spec);
    assert_eq!(**view.placement(&late.spec.id).expect("there"), late.placement());
    assert_eq!(view.quarantined().count(), 0);
    assert!(view.conflicts().next().is_none(), "admitting settles nothing and disputes nothing");
    assert!(!carry(one, two).changed.is_empty());
    assert_eq!(two.view().quarantined().count(), 0, "let in there as well");
    carry(one, &late.away.0);
    carry(&late.away.0, one);
    assert_eq!(one.root(), two.root());
    assert_eq!(one.root(), late.away.0.root());
}

#[test]
fn a_dropped_volume_is_deleted_on_the_node_that_brought_it() {
    let late = Late::new();
    let [(one, _), (two, _)] = &late.present;
    carry(&late.away.0, one);
    carry(&late.away.0, two);
    one.drop_quarantined(&late.key()).expect("drops");
    assert!(one.view().is_volume_deleted(&late.spec.id));
    for map in [two, &late.away.0] {
        carry(one, map);
        assert!(map.view().is_volume_deleted(&late.spec.id));
        assert_eq!(map.view().quarantined().count(), 0);
    }
    carry(&late.away.0, one);
    assert_eq!(one.root(), late.away.0.root());
    let refused = one.drop_quarantined(&late.key());
    assert!(matches!(refused, Err(MapError::NotQuarantined { .. })));
}

#[test]
fn a_placement_is_not_decided_on_alone() {
    let late = Late::new();
    let (one, _) = &late.present[0];
    carry(&late.away.0, one);
    let key = typed::placement_key(late.spec.id);
    assert!(matches!(one.admit_quarantined(&key), Err(MapError::GoesWithVolume { .. })));
    assert!(matches!(one.drop_quarantined(&key), Err(MapError::GoesWithVolume { .. })));
}

#[test]
fn a_newcomer_and_the_returning_node_itself_take_everything() {
    let late = Late::new();
    let (newcomer, clock) = map(4);
    clock.advance(DAY * 10);
    assert!(carry(&late.away.0, &newcomer).quarantined.is_empty());
    let (one, _) = &late.present[0];
    one.edit([Edit::PutVolume(aged(5, NOON))]).expect("edits");
    late.pass(9);
    assert!(carry(one, &late.away.0).quarantined.is_empty(), "it was away itself");
}

#[test]
fn a_whole_mesh_after_a_long_pause_takes_everything() {
    let late = Late::new();
    for (_, clock) in late.present.iter().chain([&late.away]) {
        clock.advance(DAY * 60);
    }
    assert!(carry(&late.away.0, &late.present[0].0).quarantined.is_empty());
}

#[test]
fn a_map_that_was_healed_takes_back_what_it_lost() {
    let (db, clock) = (memory_db(), clock());
    let one = Map::open(Arc::clone(&db), store_id(1), clock.clone()).expect("opens");
    let (peer, _) = map(2);
    peer.edit([Edit::PutVolume(aged(1, NOON))]).expect("edits");
    for _ in 0..10 {
        clock.advance(DAY);
        one.note_contact_now().expect("notes");
    }
    drop(one);
    Map::drop_damaged(&db).expect("heals");
    let one = Map::open(db, store_id(1), clock).expect("opens");
    assert!(carry(&peer, &one).quarantined.is_empty());
    assert_eq!(one.view().volumes().count(), 1);
}

#[test]
fn the_quarantine_is_bounded() {
    let late = Late::new();
    let (one, _) = &late.present[0];
    let most = u32::try_from(MAX_QUARANTINED).expect("small");
    let edits: Vec<_> = (10..most + 20).map(|n| Edit::PutVolume(aged(n, NOON))).collect();
    let (flood, _) = map(9);
    flood.edit(edits).expect("edits");
    let merged = carry(&flood, one);
    assert_eq!(merged.quarantined.len(), MAX_QUARANTINED);
    assert_eq!(merged.refused.len(), 10);
    assert!(merged.refused[0].why.contains("quarantine"), "{:?}", merged.refused[0]);
}

/// A disk whose room the test sets.
#[derive(Debug, Default)]
struct Room(std::sync::atomic::AtomicU64);

impl Disk for Room {
    fn free_bytes(&self) -> Option<u64> {
        Some(self.0.load(std::sync::atomic::Ordering::Relaxed))
    }
}

#[test]
fn a_full_disk_is_told_before_anything_is_begun_and_the_map_goes_on_with_room() {
    let room = Arc::new(Room::default());
    let config = MapConfig { disk: room.clone(), ..MapConfig::default() };
    room.0.store(MIN_FREE, std::sync::atomic::Ordering::Relaxed);
    let full = Map::open_with(memory_db(), store_id(1), clock(), config).expect("opens");
    full.edit([Edit::PutVolume(volume(1, "a"))]).expect("there is room");
    room.0.store(MIN_FREE - 1, std::sync::atomic::Ordering::Relaxed);
    let refused = full.edit([Edit::PutVolume(volume(2, "b"))]).expect_err("full");
    assert!(!refused.is_fatal(), "{refused}");
    assert!(refused.to_string().contains("free some space"), "{refused}");
    let (peer, _) = map(2);
    peer.edit([Edit::PutVolume(volume(3, "c"))]).expect("edits");
    let merged = carry(&peer, &full);
    assert_eq!((merged.changed.len(), merged.refused.len()), (0, 1));
    full.note_contact_now().expect("passed over");
    room.0.store(MIN_FREE, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(carry(&peer, &full).changed.len(), 1);
    full.edit([Edit::PutVolume(volume(2, "b"))]).expect("there is room again");
    assert_eq!(full.view().volumes().count(), 3);
}

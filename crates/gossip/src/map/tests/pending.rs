//! Edits that wait for a master, and changes that are made only where nobody made others.

use super::*;
use crate::map::pending::MAX_PENDING;

fn with_replicas(spec: &VolumeSpec, replicas: u8) -> VolumeSpec {
    let mut spec = spec.clone();
    spec.policy.local_replicas = replicas;
    spec
}

fn amend(map: &Map, amendment: &Amendment) -> Result<(), MapError> {
    map.edit([Edit::Amend(amendment.clone())])
}

#[test]
fn a_change_is_made_where_its_fields_are_as_its_author_saw_them() {
    let (map, _) = map(1);
    let seen = volume(1, "pg");
    map.edit([Edit::PutVolume(seen.clone())]).expect("edits");
    let change = Amendment::change(&seen, &with_replicas(&seen, 3));
    assert_eq!(change.describe(), "local replicas to 3");
    // Somebody else changed another field meanwhile: both stay.
    let mut other = seen.clone();
    other.policy.remote_replicas = 2;
    map.edit([Edit::PutVolume(other)]).expect("edits");
    amend(&map, &change).expect("amends");
    amend(&map, &change).expect("again: it is made already");
    let view = map.view();
    let policy = &view.volume(&seen.id).expect("there").policy;
    assert_eq!((policy.local_replicas, policy.remote_replicas), (3, 2));
}

#[test]
fn a_change_over_another_change_is_refused_by_field() {
    let (map, _) = map(1);
    let seen = volume(1, "pg");
    map.edit([Edit::PutVolume(seen.clone())]).expect("edits");
    map.edit([Edit::PutVolume(with_replicas(&seen, 2))]).expect("edits");
    let root = map.root();
    let refused = amend(&map, &Amendment::change(&seen, &with_replicas(&seen, 3)));
    let refused = refused.expect_err("someone else was first");
    assert!(refused.to_string().contains("local replicas"), "{refused}");
    assert!(matches!(refused, MapError::ChangedMeanwhile { .. }));
    let refused = amend(&map, &Amendment::deletion(&seen)).expect_err("it is another now");
    assert!(matches!(refused, MapError::ChangedMeanwhile { .. }));
    assert_eq!(map.root(), root);
    amend(&map, &Amendment::deletion(&with_replicas(&seen, 2))).expect("deletes what it saw");
    assert!(map.view().is_volume_deleted(&seen.id));
    amend(&map, &Amendment::deletion(&seen)).expect("done already");
    let refused = amend(&map, &Amendment::change(&seen, &with_replicas(&seen, 3)));
    assert!(matches!(refused, Err(MapError::Deleted { .. })));
}

#[test]
fn a_change_keeps_births_and_names_as_an_edit_does() {
    let (map, _) = map(1);
    let (one, two) = (volume(1, "one"), volume(2, "two"));
    map.edit([Edit::PutVolume(one.clone()), Edit::PutVolume(two)]).expect("edits");
    let renamed = VolumeSpec { name: name("two"), ..one.clone() };
    let refused = amend(&map, &Amendment::change(&one, &renamed));
    assert!(matches!(refused, Err(MapError::NameTaken { .. })));
    let mut reborn = one.clone();
    reborn.birth.master = store_id(9);
    let refused = amend(&map, &Amendment::change(&one, &reborn));
    assert!(matches!(refused, Err(MapError::BirthFixed { .. })));
    let unknown = volume(3, "three");
    let refused = amend(&map, &Amendment::change(&unknown, &with_replicas(&unknown, 4)));
    assert!(matches!(refused, Err(MapError::Unknown { .. })));
}

#[test]
fn waiting_edits_are_kept_over_a_restart_and_told_to_no_peer() {
    let db = memory_db();
    let map = Map::open(Arc::clone(&db), store_id(1), clock()).expect("opens");
    let seen = volume(1, "pg");
    map.edit([Edit::PutVolume(seen.clone())]).expect("edits");
    let root = map.root();
    let change = Amendment::change(&seen, &with_replicas(&seen, 3));
    let first = map.add_pending(change.clone()).expect("waits");
    assert_eq!(map.add_pending(change.clone()).expect("the same"), first, "once");
    let second = map.add_pending(Amendment::deletion(&seen)).expect("waits");
    assert_eq!(map.root(), root, "the map is as it was");
    map.refuse_pending(second, "no".to_owned()).expect("refused");
    drop(map);
    let map = Map::open(db, store_id(1), clock()).expect("opens");
    let view = map.view();
    let waiting = view.pending_edit(first).expect("there");
    assert_eq!((&waiting.amendment, waiting.made, &waiting.refused), (&change, NOON, &None));
    assert_eq!(view.pending_edit(second).expect("there").refused.as_deref(), Some("no"));
    map.remove_pending(first).expect("drops");
    map.remove_pending(second).expect("drops");
    assert!(matches!(map.remove_pending(first), Err(MapError::NotPending { .. })));
    let third = map.add_pending(change).expect("waits");
    assert!(third > second, "numbers are not used again");
}

#[test]
fn waiting_edits_are_bounded() {
    let (map, _) = map(1);
    let seen = volume(1, "pg");
    let change = |n: usize| {
        let mut wanted = seen.clone();
        wanted.policy.lag_limit = Duration::from_millis(u64::try_from(n).expect("small"));
        Amendment::change(&seen, &wanted)
    };
    for n in 0..MAX_PENDING {
        map.add_pending(change(n)).expect("waits");
    }
    assert!(matches!(map.add_pending(change(MAX_PENDING)), Err(MapError::TooManyPending)));
}

#[test]
fn a_conflict_is_settled_on_any_of_its_values() {
    let (one, _) = map(1);
    let (two, clock) = map(2);
    let base = volume(1, "pg");
    one.edit([Edit::PutVolume(base.clone())]).expect("edits");
    carry(&one, &two);
    clock.advance(Duration::from_secs(1));
    one.edit([Edit::PutVolume(with_replicas(&base, 3))]).expect("edits");
    two.edit([Edit::PutVolume(with_replicas(&base, 4))]).expect("edits");
    carry(&two, &one);
    let view = one.view();
    let conflict = Arc::clone(view.conflicts().next().expect("a conflict"));
    let loser = &conflict.contenders[1];
    assert_eq!(loser.text, "3");
    let (key, field) = (conflict.key.clone(), conflict.field);
    let nobodys = Some((store_id(7), loser.at));
    let refused = one.edit([Edit::Settle { key: key.clone(), field, to: nobodys }]);
    assert!(matches!(refused, Err(MapError::NoSuchValue { .. })));
    one.edit([Edit::Settle { key, field, to: Some((loser.by, loser.at)) }]).expect("settles");
    carry(&one, &two);
    for map in [&one, &two] {
        assert!(map.view().conflicts().next().is_none());
        assert_eq!(map.view().volume(&base.id).expect("there").policy.local_replicas, 3);
    }
}

#[test]
fn names_taken_twice_are_listed() {
    let ((one, _), (two, clock)) = (map(1), map(2));
    clock.advance(Duration::from_secs(1));
    one.edit([Edit::PutVolume(volume(1, "pg"))]).expect("edits");
    two.edit([Edit::PutVolume(volume(2, "pg"))]).expect("edits");
    carry(&two, &one);
    let view = one.view();
    let renamed: Vec<_> = view.renamed().collect();
    assert_eq!(renamed.len(), 1);
    let (key, shown, wanted) = &renamed[0];
    assert_eq!(key, &Edit::DeleteVolume(volume_id(2)).key());
    assert_eq!((wanted.as_str(), shown.as_str()), ("pg", "pg-00000002"));
}

#[test]
fn golden_bytes_of_a_waiting_edit() {
    let seen = route("a", 1);
    let amendment = Amendment::change(&seen, &route("a", 2));
    let edit = Pending { amendment, made: NOON, refused: Some("no".to_owned()) };
    let bytes = edit.encode();
    assert_eq!(Pending::decode(&bytes).expect("decodes"), edit);
    assert_eq!(data_encoding::HEXLOWER.encode(&bytes), GOLDEN);
    for cut in 0..bytes.len() {
        assert!(Pending::decode(&bytes[..cut]).is_none(), "cut at {cut}");
    }
    let json = serde_json::to_string(&edit.amendment).expect("encodes");
    assert_eq!(serde_json::from_str::<Amendment>(&json).expect("decodes"), edit.amendment);
    let placement = r#"{"key":[0,6,1],"base":{},"wanted":null}"#;
    assert!(serde_json::from_str::<Amendment>(placement).is_err(), "no placement is edited");
}

const GOLDEN: &str = "010400036861010211100101010101010101010101010101010101010211100202020202020202020202020202020280d095ffbc3101026e6f";

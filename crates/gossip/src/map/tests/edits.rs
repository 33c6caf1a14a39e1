//! What edits write and what the view shows.

use proptest::prelude::*;

use super::*;
use crate::map::record::{Intent, IntentState, Placed};
use crate::map::register::Register;
use crate::map::stamp::Stamp;

#[test]
fn what_is_put_is_shown_by_id_and_name() {
    let (map, _) = map(1);
    map.edit(vec![
        Edit::PutVolume(volume(1, "pg")),
        Edit::PutService(service(1, "web")),
        Edit::PutRoute(route("example.org", 1)),
        Edit::PutToken(token(1)),
        Edit::PutNode(node(1, "n1")),
    ])
    .expect("edits");
    let view = map.view();
    assert_eq!(view.volume_named(&name("pg")).expect("there").spec, volume(1, "pg"));
    assert_eq!(view.service_named(&name("web")).expect("there").spec, service(1, "web"));
    assert_eq!(view.node_named(&name("n1")).expect("there").spec, node(1, "n1"));
    assert_eq!(
        view.route(&route("example.org", 1).key).expect("there").service,
        service(1, "x").id
    );
    assert_eq!(view.token(&token(1).id).expect("there").spec, token(1));
    assert_eq!((view.records(), view.conflicts().count()), (5, 0));
}

#[test]
fn an_edit_that_changes_nothing_writes_nothing() {
    let (map, clock) = map(1);
    map.edit([Edit::PutVolume(volume(1, "pg"))]).expect("edits");
    let root = map.root();
    clock.advance(Duration::from_secs(1));
    map.edit([Edit::PutVolume(volume(1, "pg"))]).expect("edits");
    assert_eq!(map.root(), root);
}

#[test]
fn edits_of_different_fields_on_two_sides_both_survive() {
    let ((a, _), (b, _)) = (map(1), map(2));
    a.edit(vec![Edit::PutVolume(volume(1, "pg")), Edit::PutService(service(1, "web"))])
        .expect("edits");
    carry(&a, &b);
    let mut spec = volume(1, "pg");
    spec.policy.local_replicas = 3;
    let mut web = service(1, "web");
    web.command = vec!["other".to_owned()];
    a.edit(vec![Edit::PutVolume(spec), Edit::PutService(web)]).expect("edits");
    let mut spec = volume(1, "pg");
    spec.policy.lag_limit = Duration::from_secs(5);
    let mut web = service(1, "web");
    web.stop_grace = Duration::from_secs(77);
    b.edit(vec![Edit::PutVolume(spec), Edit::PutService(web)]).expect("edits");
    carry(&a, &b);
    carry(&b, &a);
    for map in [&a, &b] {
        let view = map.view();
        let policy = view.volume(&volume_id(1)).expect("there").policy.clone();
        assert_eq!((policy.local_replicas, policy.lag_limit), (3, Duration::from_secs(5)));
        let web = view.service_named(&name("web")).expect("there");
        assert_eq!((web.command.len(), web.stop_grace), (1, Duration::from_secs(77)));
        assert_eq!(view.conflicts().count(), 0);
    }
    assert_eq!(a.root(), b.root());
}

#[test]
fn edits_of_one_field_on_two_sides_are_shown_until_settled() {
    let ((a, _), (b, clock)) = (map(1), map(2));
    a.edit([Edit::PutRoute(route("h", 1))]).expect("edits");
    carry(&a, &b);
    clock.advance(Duration::from_secs(1));
    a.edit([Edit::PutRoute(route("h", 2))]).expect("edits");
    b.edit([Edit::PutRoute(route("h", 3))]).expect("edits");
    carry(&a, &b);
    carry(&b, &a);
    let key = Edit::PutRoute(route("h", 1)).key();
    for map in [&a, &b] {
        let view = map.view();
        let shown = view.route(&route("h", 1).key).expect("there").service;
        assert_eq!(shown, service(3, "x").id, "the later write is acted on");
        let conflict = view.conflicts().next().expect("a conflict");
        assert_eq!((&conflict.key, conflict.field_name()), (&key, "service"));
        let by: Vec<_> = conflict.contenders.iter().map(|one| one.by).collect();
        assert_eq!(by, [store_id(2), store_id(1)]);
    }
    // Writing what is shown anyway settles nothing by accident; asking for it does.
    a.edit([Edit::PutRoute(route("h", 3))]).expect("edits");
    assert_eq!(a.view().conflicts().count(), 1);
    a.edit([Edit::Settle { key, field: 2, to: None }]).expect("settles");
    carry(&a, &b);
    assert_eq!((a.view().conflicts().count(), b.view().conflicts().count()), (0, 0));
    assert_eq!(b.view().route(&route("h", 1).key).expect("there").service, service(3, "x").id);
}

#[test]
fn a_revocation_beats_what_was_written_beside_it() {
    let ((a, _), (b, clock)) = (map(1), map(2));
    a.edit(vec![Edit::PutToken(token(1)), Edit::PutNode(node(9, "n9"))]).expect("edits");
    carry(&a, &b);
    a.edit(vec![
        Edit::PutToken(TokenSpec { revoked: true, ..token(1) }),
        Edit::PutNode(NodeSpec { removed: true, ..node(9, "n9") }),
    ])
    .expect("edits");
    // The other side revokes and takes it back, later by every clock.
    clock.advance(Duration::from_secs(30));
    for revoked in [true, false] {
        b.edit(vec![
            Edit::PutToken(TokenSpec { revoked, ..token(1) }),
            Edit::PutNode(NodeSpec { removed: revoked, ..node(9, "n9") }),
        ])
        .expect("edits");
    }
    carry(&a, &b);
    let view = b.view();
    assert!(view.token(&token(1).id).expect("there").revoked);
    assert!(view.node(&store_id(9)).expect("there").removed);
    assert!(view.node_named(&name("n9")).is_none(), "a removed node's name is free");
    assert_eq!(view.conflicts().count(), 2);
}

#[test]
fn a_name_taken_twice_stays_with_the_first_and_neither_is_dropped() {
    let ((a, _), (b, clock)) = (map(1), map(2));
    clock.advance(Duration::from_secs(5));
    a.edit([Edit::PutVolume(volume(2, "pg"))]).expect("edits");
    b.edit([Edit::PutVolume(volume(1, "pg"))]).expect("edits");
    carry(&a, &b);
    carry(&b, &a);
    for map in [&a, &b] {
        let view = map.view();
        assert_eq!(view.volume_named(&name("pg")).expect("there").id, volume_id(2));
        let later = view.volume(&volume_id(1)).expect("still there");
        assert_eq!(later.renamed_from, Some(name("pg")));
        assert_eq!(later.name, name("pg-00000001"));
        assert_eq!(view.volume_named(&name("pg-00000001")).expect("there").id, volume_id(1));
    }
    // An edit under the made-up name changes the policy and no name.
    let mut spec = a.view().volume(&volume_id(1)).expect("there").spec.clone();
    spec.policy.local_replicas = 9;
    a.edit([Edit::PutVolume(spec)]).expect("edits");
    assert_eq!(a.view().volume(&volume_id(1)).expect("there").renamed_from, Some(name("pg")));
    // Once the first is gone the name is the other's.
    a.edit([Edit::DeleteVolume(volume_id(2))]).expect("deletes");
    let heir = a.view().volume_named(&name("pg")).cloned().expect("there");
    assert_eq!((heir.id, heir.renamed_from.clone()), (volume_id(1), None));
    assert!(a.view().volume_named(&name("pg-00000001")).is_none());
}

#[test]
fn an_edit_may_not_take_a_name_that_it_can_see() {
    let (map, _) = map(1);
    map.edit([Edit::PutVolume(volume(1, "pg"))]).expect("edits");
    let root = map.root();
    let both = vec![Edit::PutVolume(volume(3, "ok")), Edit::PutVolume(volume(2, "pg"))];
    let refused = map.edit(both).expect_err("taken");
    assert!(matches!(refused, MapError::NameTaken { .. }), "{refused}");
    assert_eq!(map.root(), root, "all or none");
    // Deleted and made anew in one go, the name is free.
    let again = vec![Edit::DeleteVolume(volume_id(1)), Edit::PutVolume(volume(2, "pg"))];
    map.edit(again).expect("edits");
    assert_eq!(map.view().volume_named(&name("pg")).expect("there").id, volume_id(2));
}

#[test]
fn what_was_deleted_stays_deleted_whatever_comes_late() {
    let ((a, _), (b, clock)) = (map(1), map(2));
    a.edit([Edit::PutVolume(volume(1, "pg"))]).expect("edits");
    let old = copy(&a);
    carry(&a, &b);
    a.edit([Edit::DeleteVolume(volume_id(1))]).expect("deletes");
    clock.advance(Duration::from_secs(40));
    let mut spec = volume(1, "pg");
    spec.policy.local_replicas = 5;
    b.edit([Edit::PutVolume(spec)]).expect("edits beside the deletion");
    carry(&b, &a);
    a.merge(store_id(2), old).expect("merges");
    carry(&a, &b);
    for map in [&a, &b] {
        let view = map.view();
        assert!(view.volume(&volume_id(1)).is_none() && view.is_volume_deleted(&volume_id(1)));
        assert_eq!(view.all_deleted().next().expect("a tombstone").1.label, "pg");
        assert!(matches!(
            map.edit([Edit::PutVolume(volume(1, "pg"))]),
            Err(MapError::Deleted { .. })
        ));
    }
    let (_, bytes) = a.inner.store.page(None, usize::MAX).expect("reads").remove(0);
    assert!(bytes.len() < 64, "a tombstone has {} bytes", bytes.len());
}

#[test]
fn a_route_comes_back_when_it_is_put_again() {
    let ((a, _), (b, _)) = (map(1), map(2));
    a.edit([Edit::PutRoute(route("h", 1))]).expect("edits");
    carry(&a, &b);
    a.edit([Edit::DeleteRoute(route("h", 1).key)]).expect("deletes");
    assert!(a.view().route(&route("h", 1).key).is_none());
    a.edit([Edit::PutRoute(route("h", 2))]).expect("edits");
    carry(&b, &a);
    assert_eq!(a.view().route(&route("h", 1).key).expect("there").service, service(2, "x").id);
}

#[test]
fn a_birth_is_written_once() {
    let (map, _) = map(1);
    map.edit([Edit::PutVolume(volume(1, "pg"))]).expect("edits");
    let mut spec = volume(1, "pg");
    spec.birth.master = store_id(7);
    assert!(matches!(map.edit([Edit::PutVolume(spec)]), Err(MapError::BirthFixed { .. })));
}

#[test]
fn the_highest_placement_stays() {
    let (map, _) = map(1);
    map.place(placement(1, Epoch::new(0, 3), 9, 1)).expect("places");
    map.place(placement(1, Epoch::new(0, 4), 1, 2)).expect("places");
    map.place(placement(1, Epoch::new(0, 3), 900, 1)).expect("an old one is no error");
    assert_eq!(map.view().placement(&volume_id(1)).expect("there").holder, store_id(2));
    map.place(placement(1, Epoch::new(1, 1), 1, 3)).expect("places");
    assert_eq!(map.view().placement(&volume_id(1)).expect("there").holder, store_id(3));
}

#[test]
fn a_poisoned_epoch_is_refused() {
    let (map, _) = map(1);
    map.place(placement(1, Epoch::new(0, 3), 1, 1)).expect("places");
    let root = map.root();
    for epoch in [Epoch::new(0, 4 + (1 << 26)), Epoch::new(0, u64::MAX), Epoch::new(1 << 28, 1)] {
        let said = typed::placed(&placement(1, epoch, 1, 2));
        let key = typed::placement_key(volume_id(1));
        let merged = map.merge(store_id(2), vec![(key, Record::Placed(said))]).expect("merges");
        assert_eq!((merged.changed.len(), merged.refused.len()), (0, 1));
        assert!(merged.refused[0].why.contains("jumps from epoch 3"), "{}", merged.refused[0].why);
    }
    assert_eq!(map.root(), root);
}

#[test]
fn stamps_over_a_minute_ahead_are_refused_and_leave_no_mark() {
    let ((slow, clock), (fast, ahead)) = (map(1), map(2));
    ahead.advance(Duration::from_secs(86_400));
    fast.edit([Edit::PutVolume(volume(1, "pg"))]).expect("edits");
    let merged = carry(&fast, &slow);
    assert_eq!((merged.changed.len(), merged.refused.len()), (0, 1));
    assert!(merged.refused[0].why.contains("set the clocks"), "{}", merged.refused[0].why);
    slow.edit([Edit::PutVolume(volume(2, "ok"))]).expect("its own clock is untouched");
    clock.advance(Duration::from_secs(86_400));
    assert_eq!(carry(&fast, &slow).changed.len(), 1);
}

#[test]
fn an_edit_is_refused_while_the_clock_stands_behind_what_was_written() {
    let db = memory_db();
    let ahead = clock();
    ahead.advance(Duration::from_secs(3_600));
    let map = Map::open(Arc::clone(&db), store_id(1), ahead).expect("opens");
    map.edit([Edit::PutVolume(volume(1, "pg"))]).expect("edits");
    drop(map);
    let map = Map::open(db, store_id(1), clock()).expect("opens with the mark");
    let refused = map.edit([Edit::PutVolume(volume(2, "ok"))]).expect_err("behind");
    assert!(matches!(refused, MapError::ClockBehind { .. }), "{refused}");
}

#[test]
fn records_of_unknown_kinds_and_fields_are_kept_merged_and_passed_on() {
    let field = |actor: u8, stamp: u64, value: &[u8]| {
        let mut register = Register::default();
        register.write(store_id(actor), Stamp::from_u64(stamp), value.to_vec());
        register
    };
    let intent = |fields: Vec<(u16, Register)>| {
        let state = IntentState::Live(fields.into_iter().collect());
        Record::Intent(Intent { life: 0, state })
    };
    let ((a, _), (b, _), (c, _)) = (map(1), map(2), map(3));
    a.edit([Edit::PutVolume(volume(1, "pg"))]).expect("edits");
    let known = Edit::PutVolume(volume(1, "pg")).key();
    let strange = RecordKey::new(Kind(4_000), b"id");
    let said = Placed {
        epoch: Epoch::new(0, 1),
        sequence: 1,
        holder: store_id(1),
        content: [(77, vec![1])].into(),
    };
    let placed = RecordKey::new(Kind(4_001), b"id");
    let news = vec![
        (known.clone(), intent(vec![(900, field(9, 5, b"new"))])),
        (strange.clone(), intent(vec![(1, field(9, 6, b"x"))])),
        (placed.clone(), Record::Placed(said)),
    ];
    assert_eq!(a.merge(store_id(9), news).expect("merges").changed.len(), 3);
    // An edit by a node that does not know the field leaves it alone.
    let mut spec = volume(1, "pg");
    spec.policy.local_replicas = 4;
    a.edit([Edit::PutVolume(spec)]).expect("edits");
    carry(&a, &b);
    b.merge(store_id(9), vec![(strange.clone(), intent(vec![(1, field(8, 6, b"y"))]))])
        .expect("merges what it does not know");
    carry(&b, &c);
    let all: std::collections::BTreeMap<_, _> = copy(&c).into_iter().collect();
    let Record::Intent(volume) = &all[&known] else { panic!("an intent") };
    assert_eq!(volume.fields().expect("lives")[&900].siblings()[0].bytes, b"new");
    let Record::Intent(other) = &all[&strange] else { panic!("an intent") };
    assert_eq!(other.fields().expect("lives")[&1].siblings().len(), 2);
    assert!(all.contains_key(&placed));
    assert_eq!(c.view().volume(&volume_id(1)).expect("there").policy.local_replicas, 4);
    assert_eq!(c.root(), b.root());
}

#[test]
fn a_record_that_this_version_cannot_read_is_kept_and_named() {
    let (map, _) = map(1);
    let key = Edit::PutVolume(volume(1, "pg")).key();
    let mut register = Register::default();
    register.write(store_id(9), Stamp::from_u64(5), b"\xff\xff".to_vec());
    let state = IntentState::Live([(1, register)].into());
    let record = Record::Intent(Intent { life: 0, state });
    map.merge(store_id(9), vec![(key.clone(), record)]).expect("merges");
    let view = map.view();
    assert_eq!(view.volumes().count(), 0);
    assert_eq!(view.unreadable().next().expect("named").0, &key);
    assert_eq!(view.records(), 1);
}

#[test]
fn one_id_used_from_two_stores_is_reported_where_it_shows() {
    let ((a, _), (twin, _), (c, _)) = (map(1), map(1), map(3));
    a.edit([Edit::PutRoute(route("h", 1))]).expect("edits");
    twin.edit([Edit::PutRoute(route("h", 2))]).expect("edits");
    carry(&a, &c);
    carry(&twin, &c);
    let view = c.view();
    let alarm = view.alarms().first().expect("an alarm");
    assert_eq!((alarm.actor, alarm.field), (store_id(1), Some(2)));
    assert!(alarm.to_string().contains("copied or restored"), "{alarm}");
    carry(&twin, &a);
    carry(&c, &twin);
    assert_eq!((a.root(), twin.root()), (c.root(), c.root()), "all keep the same one of the two");
    // The same epoch and sequence with another content: the same fault in a placement.
    a.place(placement(1, Epoch::new(0, 1), 1, 1)).expect("places");
    let mut other = placement(1, Epoch::new(0, 1), 1, 1);
    other.replicas.push(store_id(5));
    twin.place(other).expect("places");
    carry(&a, &c);
    carry(&twin, &c);
    assert_eq!(c.view().alarms().len(), 2);
}

#[test]
fn a_store_restored_from_an_old_copy_reuses_no_stamp() {
    let (peer, _) = map(2);
    let (db, clock) = (memory_db(), clock());
    let map = Map::open(Arc::clone(&db), store_id(1), clock.clone()).expect("opens");
    map.edit([Edit::PutRoute(route("h", 1))]).expect("edits");
    let backup = copy(&map);
    clock.advance(Duration::from_secs(1));
    map.edit([Edit::PutRoute(route("h", 2))]).expect("edits");
    carry(&map, &peer);
    // The disk is lost; a copy from before the second edit takes its place and writes on.
    let restored = Map::open(memory_db(), store_id(1), clock.clone()).expect("opens");
    restored.merge(store_id(1), backup).expect("merges");
    clock.advance(Duration::from_secs(1));
    restored.edit([Edit::PutRoute(route("h", 3))]).expect("edits");
    carry(&restored, &peer);
    carry(&peer, &restored);
    assert_eq!(peer.root(), restored.root());
    assert_eq!(peer.view().route(&route("h", 1).key).expect("there").service, service(3, "x").id);
    assert!(peer.view().alarms().is_empty());
}

#[test]
fn an_edit_over_the_limit_is_refused() {
    let (map, _) = map(1);
    let mut web = service(1, "web");
    web.environment.insert("BIG".to_owned(), "x".repeat(MAX_EDITED));
    assert!(matches!(map.edit([Edit::PutService(web)]), Err(MapError::TooLarge { .. })));
    let host = "h".repeat(400);
    assert!(matches!(
        map.edit([Edit::PutRoute(route(&host, 1))]),
        Err(MapError::KeyTooLong { .. })
    ));
    assert_eq!(map.view().records(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// The view kept by changes is the view made anew from the records.
    #[test]
    fn the_view_does_not_depend_on_the_way_there(
        steps in prop::collection::vec((0..5_u32, 0..3_u8, 0..4_u8, any::<bool>()), 1..40),
    ) {
        let db = memory_db();
        let (a, clock) = (Map::open(Arc::clone(&db), store_id(1), clock()).expect("opens"), clock());
        let b = Map::open(memory_db(), store_id(2), clock.clone()).expect("opens");
        for (number, called, what, at_b) in steps {
            clock.advance(Duration::from_millis(1));
            let spec = volume(number, &format!("n{called}"));
            let map = if at_b { &b } else { &a };
            match what {
                0 => drop(map.edit([Edit::DeleteVolume(spec.id)])),
                1 => drop(carry(&b, &a)),
                _ => drop(map.edit([Edit::PutVolume(spec)])),
            }
        }
        carry(&b, &a);
        let kept: Vec<_> = a.view().volumes().cloned().collect();
        let named = |map: &Map| (0..3)
            .map(|n| map.view().volume_named(&name(&format!("n{n}"))).map(|v| v.id))
            .collect::<Vec<_>>();
        let (names, root) = (named(&a), a.root());
        drop(a);
        let anew = Map::open(db, store_id(1), clock).expect("opens");
        prop_assert_eq!(kept, anew.view().volumes().cloned().collect::<Vec<_>>());
        prop_assert_eq!(names, named(&anew));
        prop_assert_eq!(root, anew.root());
    }
}

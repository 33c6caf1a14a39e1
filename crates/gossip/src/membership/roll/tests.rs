//! The roll: which run of a node counts, when it is suspected, and what is told to whom.

use flocker_base::{Incarnation, Name};

use super::*;
use crate::membership::EventKind;
use crate::model::NodeFacts;

/// The watch suspects nobody.
const NONE: Suspicions = Suspicions::new();

const START: BootTime = BootTime::from_millis(1000);
const LATER: BootTime = BootTime::from_millis(2000);

fn store(byte: u8) -> StoreId {
    StoreId::from_bytes([byte; 16])
}

fn generation(start: u64) -> u64 {
    chat_id::generation(Incarnation(start), 0).expect("small")
}

fn facts_of(name: &str) -> String {
    facts::encode(&NodeFacts {
        name: Name::new(name).expect("name"),
        region: Name::new("eu").expect("name"),
        control: "10.0.0.1:4523".parse().expect("address"),
        data: "10.0.0.1:4524".parse().expect("address"),
        http: None,
        version: "1".to_owned(),
        zone: None,
        public: None,
        capacity: None,
    })
    .expect("encodes")
}

fn seen<'a>(id: u8, start: u64, live: bool, values: &[(&'a str, &'a str)]) -> Sighting<'a> {
    let version = u64::try_from(values.len()).expect("small");
    let generation = generation(start);
    Sighting { store: store(id), generation, live, version, values: values.to_vec() }
}

/// An update by the region's pool alone.
fn update(
    roll: &mut Roll,
    now: BootTime,
    region: &[Sighting<'_>],
    suspected: &Suspicions,
) -> Changes {
    let own = Name::new("eu").expect("name");
    let reading =
        Reading { own: &own, region, between: &[], rosters: Vec::new(), revision: 0, suspected };
    roll.update(now, &reading)
}

fn roll() -> Roll {
    Roll::new(store(1), generation(5), View::default())
}

#[test]
fn the_newest_run_whose_facts_have_come_counts() {
    let (old, new) = (facts_of("old"), facts_of("new"));
    let mut roll = roll();
    let first = seen(2, 1, true, &[("f", &old)]);
    let view = update(&mut roll, START, std::slice::from_ref(&first), &NONE).view.expect("changed");
    assert_eq!(view.nodes[&store(2)].incarnation, Incarnation(1));
    let announced = seen(2, 2, false, &[]);
    assert!(
        update(&mut roll, LATER, &[first.clone(), announced], &NONE).view.is_none(),
        "no facts yet"
    );
    let restarted = seen(2, 2, false, &[("f", &new)]);
    let view =
        update(&mut roll, LATER, &[first.clone(), restarted.clone()], &NONE).view.expect("changed");
    let member = &view.nodes[&store(2)];
    assert_eq!((member.incarnation, member.facts.name.as_str()), (Incarnation(2), "new"));
    assert_eq!(member.liveness, Liveness::Live, "the old run still counts as live");
    assert_eq!(member.since, START, "it was live all along");
    let gone = Sighting { live: false, ..first };
    let view = update(&mut roll, LATER, &[gone, restarted], &NONE).view.expect("changed");
    assert_eq!(view.nodes[&store(2)].liveness, Liveness::Suspected);
    assert_eq!(view.nodes[&store(2)].since, LATER);
}

#[test]
fn nothing_new_makes_no_new_view_and_a_forgotten_node_leaves_it() {
    let facts = facts_of("a");
    let mut roll = roll();
    let sighting = seen(2, 1, true, &[("f", &facts)]);
    assert!(update(&mut roll, START, std::slice::from_ref(&sighting), &NONE).view.is_some());
    assert!(update(&mut roll, LATER, &[sighting], &NONE).view.is_none());
    let view = update(&mut roll, LATER, &[], &NONE).view.expect("changed");
    assert!(view.nodes.is_empty());
}

#[test]
fn addresses_are_told_when_they_are_new_and_never_ones_own() {
    let (facts, other) = (facts_of("a"), facts_of("b"));
    let mut roll = roll();
    let both = [seen(1, 5, true, &[("f", &facts)]), seen(2, 1, true, &[("f", &facts)])];
    let reached = update(&mut roll, START, &both, &NONE).reached;
    assert_eq!(reached.len(), 1);
    assert_eq!(reached[0].store, store(2));
    let renamed = seen(2, 1, true, &[("f", &other), ("load", "1")]);
    assert!(
        update(&mut roll, START, &[renamed], &NONE).reached.is_empty(),
        "the addresses are the same"
    );
}

#[test]
fn roots_and_other_values_are_read_and_bad_ones_left_out() {
    let (facts, root) = (facts_of("a"), facts::encode_root(&[7; 32]));
    let mut roll = roll();
    let values = [("f", facts.as_str()), ("m", root.as_str()), ("load", "3")];
    let view = update(&mut roll, START, &[seen(2, 1, true, &values)], &NONE).view.expect("changed");
    let member = &view.nodes[&store(2)];
    assert_eq!(member.map_root, Some([7; 32]));
    assert_eq!(member.values, [("load".to_owned(), "3".to_owned())].into());
    let bad = [("f", facts.as_str()), ("m", "no root")];
    let view = update(&mut roll, START, &[seen(2, 1, true, &bad)], &NONE).view.expect("changed");
    assert_eq!(view.nodes[&store(2)].map_root, None);
    let unreadable = seen(3, 1, true, &[("f", "???")]);
    assert!(update(&mut roll, START, &[seen(2, 1, true, &bad), unreadable], &NONE).view.is_none());
    assert_eq!(roll.unreadable.len(), 1);
    update(&mut roll, START, &[], &NONE);
    assert!(roll.unreadable.is_empty(), "what is gone is forgotten");
}

#[test]
fn this_nodes_other_runs_are_not_itself() {
    let (mine, other) = (facts_of("me"), facts_of("copy"));
    let mut roll = roll();
    let own = seen(1, 5, true, &[("f", &mine)]);
    let earlier = seen(1, 4, true, &[("f", &other)]);
    let copy = seen(1, 6, true, &[("f", &other)]);
    let view = update(&mut roll, START, &[earlier, own, copy], &NONE).view.expect("changed");
    assert_eq!(view.nodes[&store(1)].facts.name.as_str(), "me");
    assert_eq!(roll.copy_warned, Some(START), "and a copied store is called out");
}

#[test]
fn too_many_states_are_called_out_now_and_then() {
    let mut roll = roll();
    assert_eq!(roll.alarm(START, ALARM_STATES - 1), None);
    assert_eq!(roll.alarm(START, ALARM_STATES), Some(ALARM_STATES));
    assert_eq!(roll.alarm(START + Duration::from_secs(1), ALARM_STATES), None);
    assert_eq!(roll.alarm(START + QUIET, 400), Some(400));
}

fn kinds(changes: &Changes) -> Vec<EventKind> {
    changes.events.iter().map(|event| event.kind).collect()
}

#[test]
fn a_suspicion_of_the_watch_counts_for_its_incarnation_alone() {
    let (facts, new) = (facts_of("a"), facts_of("b"));
    let mut roll = roll();
    let first = seen(2, 1, true, &[("f", &facts)]);
    let changes = update(&mut roll, START, std::slice::from_ref(&first), &NONE);
    assert_eq!(kinds(&changes), [EventKind::Joined]);
    let suspected = Suspicions::from([(store(2), Incarnation(1))]);
    let changes = update(&mut roll, LATER, std::slice::from_ref(&first), &suspected);
    assert_eq!(kinds(&changes), [EventKind::Suspected]);
    let view = changes.view.expect("changed");
    assert_eq!(view.nodes[&store(2)].liveness, Liveness::Suspected);
    assert_eq!(view.nodes[&store(2)].since, LATER);
    let changes = update(&mut roll, LATER, std::slice::from_ref(&first), &NONE);
    assert_eq!(kinds(&changes), [EventKind::Returned]);
    let second = seen(2, 2, true, &[("f", &new)]);
    let changes = update(&mut roll, LATER, &[first, second], &suspected);
    assert_eq!(kinds(&changes), [EventKind::Restarted], "the new run is not the suspected one");
    assert_eq!(changes.view.expect("changed").nodes[&store(2)].liveness, Liveness::Live);
}

#[test]
fn a_node_that_says_so_has_left_though_it_still_seems_alive() {
    let facts = facts_of("a");
    let mut roll = roll();
    update(&mut roll, START, &[seen(2, 1, true, &[("f", &facts)])], &NONE);
    let leaves = seen(2, 1, true, &[("f", &facts), ("x", "")]);
    let changes = update(&mut roll, LATER, &[leaves], &NONE);
    assert_eq!(kinds(&changes), [EventKind::Left]);
    let view = changes.view.expect("changed");
    assert_eq!(view.nodes[&store(2)].liveness, Liveness::Left);
    assert!(view.nodes[&store(2)].values.is_empty(), "the key is membership's own");
    let silent = seen(2, 1, false, &[("f", &facts), ("x", "")]);
    assert_eq!(kinds(&update(&mut roll, LATER, &[silent], &NONE)), [], "and is no suspicion later");
}

//! The laws of the merge over generated histories: writes, deletions, re-creations and
//! placements on four stores, copies that are reordered, duplicated, late or lost, and one
//! store's id used from two places.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::strategy::ValueTree;

use super::*;
use crate::map::record::{FieldId, Intent, IntentState, Placed, Tombstone};
use crate::map::stamp::Stamp;

const STORES: usize = 4;

#[derive(Clone, Debug)]
enum Step {
    Write {
        at: usize,
        as_actor: usize,
        field: FieldId,
        value: u8,
        reuse_stamp: bool,
    },
    /// Both stores know the same, and both write under the id of `at` at the same time.
    Twins {
        at: usize,
        to: usize,
        field: FieldId,
    },
    Delete {
        at: usize,
    },
    Revive {
        at: usize,
    },
    Send {
        from: usize,
    },
    Deliver {
        message: usize,
        to: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let at = 0..STORES;
    prop_oneof![
        6 => (at.clone(), 0..STORES, 1..4_u16, 0..3_u8, prop::bool::weighted(0.2)).prop_map(
            |(at, other, field, value, reuse_stamp)| Step::Write {
                at,
                // Mostly its own id, sometimes one that another store uses too.
                as_actor: if reuse_stamp { other } else { at },
                field,
                value,
                reuse_stamp,
            }
        ),
        2 => (at.clone(), 0..STORES, 1..4_u16)
            .prop_map(|(at, to, field)| Step::Twins { at, to, field }),
        1 => at.clone().prop_map(|at| Step::Delete { at }),
        1 => at.clone().prop_map(|at| Step::Revive { at }),
        3 => at.clone().prop_map(|from| Step::Send { from }),
        5 => (any::<usize>(), at).prop_map(|(message, to)| Step::Deliver { message, to }),
    ]
}

fn actor(at: usize) -> StoreId {
    store_id(u8::try_from(at).expect("few stores") + 1)
}

/// Every state that a history passes through on any store, the last ones at the end.
fn play(steps: &[Step]) -> (Vec<Record>, Vec<Record>) {
    let mut stores = vec![Intent::empty(); STORES];
    let mut sent: Vec<Record> = Vec::new();
    let mut seen = Vec::new();
    let mut now = 10;
    for step in steps {
        now += 1;
        let at = match step {
            Step::Write { at, as_actor, field, value, reuse_stamp } => {
                let stamp = Stamp::from_u64(if *reuse_stamp { now / 16 * 16 } else { now });
                if let IntentState::Live(fields) = &mut stores[*at].state {
                    let register = fields.entry(*field).or_default();
                    register.write(actor(*as_actor), stamp.max(next(register)), vec![*value]);
                }
                *at
            }
            Step::Twins { at, to, field } => {
                let both = join(
                    &Record::Intent(stores[*at].clone()),
                    &Record::Intent(stores[*to].clone()),
                );
                let Record::Intent(both) = both else { unreachable!("an intent") };
                stores[*at] = both.clone();
                stores[*to] = both;
                for (store, value) in [(*at, 8), (*to, 9)] {
                    if let IntentState::Live(fields) = &mut stores[store].state {
                        let register = fields.entry(*field).or_default();
                        let stamp = Stamp::from_u64(now).max(next(register));
                        register.write(actor(*at), stamp, vec![value]);
                    }
                }
                *at
            }
            Step::Delete { at } => {
                let stamp = Stamp::from_u64(now);
                let label = String::new();
                stores[*at].delete(Tombstone { stamp, actor: actor(*at), label });
                *at
            }
            Step::Revive { at } => {
                stores[*at].revive();
                *at
            }
            Step::Send { from } => {
                sent.push(Record::Intent(stores[*from].clone()));
                *from
            }
            Step::Deliver { message, to } => {
                if !sent.is_empty() {
                    let copy = sent[message % sent.len()].clone();
                    let mut record = Record::Intent(stores[*to].clone());
                    record.merge(copy);
                    let Record::Intent(intent) = record else { unreachable!("an intent") };
                    stores[*to] = intent;
                }
                *to
            }
        };
        seen.push(Record::Intent(stores[at].clone()));
    }
    (seen, stores.into_iter().map(Record::Intent).collect())
}

/// A write never takes a stamp below what its register has seen.
fn next(register: &register::Register) -> Stamp {
    Stamp::from_u64(register.newest().as_u64() + 1)
}

fn join(a: &Record, b: &Record) -> Record {
    let mut both = a.clone();
    both.merge(b.clone());
    both
}

fn bytes(record: &Record) -> Vec<u8> {
    crate::map::encoding::encode(record).expect("encodes")
}

fn holds(a: &Record, b: &Record, c: &Record) -> Result<(), TestCaseError> {
    prop_assert_eq!(bytes(&join(a, b)), bytes(&join(b, a)), "commutative");
    prop_assert_eq!(bytes(&join(&join(a, b), c)), bytes(&join(a, &join(b, c))), "associative");
    prop_assert_eq!(bytes(&join(a, a)), bytes(a), "idempotent");
    let both = join(a, b);
    prop_assert_eq!(bytes(&join(&both, a)), bytes(&both), "monotonic: both holds a");
    prop_assert_eq!(bytes(&join(&both, b)), bytes(&both), "monotonic: both holds b");
    // Equal values and equal bytes are the same thing, and bytes come back as they went.
    prop_assert_eq!(both == *a, bytes(&both) == bytes(a));
    prop_assert_eq!(crate::map::encoding::decode(&bytes(&both)).expect("decodes"), both);
    Ok(())
}

fn placed() -> impl Strategy<Value = Record> {
    (0..2_u32, 0..3_u64, 0..3_u64, 1..3_u8, prop::collection::btree_map(0..3_u16, 0..2_u8, 0..3))
        .prop_map(|(generation, counter, sequence, holder, content)| {
            let content = content.into_iter().map(|(id, byte)| (id, vec![byte])).collect();
            let epoch = Epoch::new(generation, counter);
            Record::Placed(Placed { epoch, sequence, holder: store_id(holder), content })
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn intents_obey_the_laws(
        steps in prop::collection::vec(step(), 1..60),
        picks in prop::collection::vec(any::<(usize, usize, usize)>(), 8),
    ) {
        let (seen, _) = play(&steps);
        for (a, b, c) in picks {
            holds(&seen[a % seen.len()], &seen[b % seen.len()], &seen[c % seen.len()])?;
        }
    }

    #[test]
    fn placements_obey_the_laws(a in placed(), b in placed(), c in placed()) {
        holds(&a, &b, &c)?;
    }

    #[test]
    fn shapes_mixed_by_a_fault_still_obey_the_laws(
        steps in prop::collection::vec(step(), 1..20), b in placed(), c in placed(),
    ) {
        let (_, last) = play(&steps);
        holds(&last[0], &b, &c)?;
        holds(&b, &last[0], &last[1])?;
    }

    #[test]
    fn stores_meet_in_one_value_in_every_order(
        steps in prop::collection::vec(step(), 1..60),
        order in Just((0..STORES).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let (seen, last) = play(&steps);
        let all = |order: &mut dyn Iterator<Item = &Record>| {
            bytes(&order.fold(Record::Intent(Intent::empty()), |sum, one| join(&sum, one)))
        };
        let straight = all(&mut last.iter());
        prop_assert_eq!(&straight, &all(&mut order.iter().map(|at| &last[*at])));
        // Old copies that come late, again, and in reverse change nothing.
        prop_assert_eq!(&straight, &all(&mut last.iter().chain(seen.iter().rev())));
    }

    #[test]
    fn two_maps_that_exchange_what_they_have_are_equal_whatever_was_lost_before(
        edits in prop::collection::vec((0..2_usize, 0..4_u32, 0..6_u8), 1..24),
    ) {
        let (maps, clocks): (Vec<_>, Vec<_>) = [map(1), map(2)].into_iter().unzip();
        let mut lost = BTreeMap::new();
        for (at, number, what) in edits {
            clocks[at].advance(Duration::from_millis(1));
            let mut spec = volume(number, &format!("v{number}"));
            spec.policy.local_replicas = what;
            let edit = match what {
                0 => Edit::DeleteVolume(spec.id),
                1 => Edit::PutRoute(route(&format!("h{number}"), 1)),
                2 => Edit::DeleteRoute(RouteKey::HttpHost(format!("h{number}"))),
                3 => { spec.name = name(&format!("w{number}")); Edit::PutVolume(spec) }
                _ => Edit::PutVolume(spec),
            };
            match maps[at].edit([edit]) {
                Ok(()) => *lost.entry(at).or_insert(0) += 1,
                Err(MapError::Unknown { .. } | MapError::Deleted { .. }) => {}
                Err(other) => prop_assert!(false, "{}", other),
            }
        }
        carry(&maps[0], &maps[1]);
        carry(&maps[1], &maps[0]);
        prop_assert_eq!(maps[0].root(), maps[1].root());
        let shown = |map: &Map| -> Vec<_> { map.view().volumes().cloned().collect() };
        prop_assert_eq!(shown(&maps[0]), shown(&maps[1]));
    }
}

/// The histories contain what they are meant to: real conflicts, deletions, and two values under
/// one stamp.
#[test]
fn the_faults_of_the_histories_happen() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let histories = prop::collection::vec(step(), 1..60);
    let (mut conflicts, mut deletions, mut doubles) = (0, 0, 0);
    for _ in 0..300 {
        let steps = histories.new_tree(&mut runner).expect("a history").current();
        let (_, last) = play(&steps);
        for (a, b) in last.iter().flat_map(|a| last.iter().map(move |b| (a, b))) {
            let mut both = a.clone();
            doubles += both.merge(b.clone()).double_writes.len();
            let Record::Intent(intent) = &both else { continue };
            deletions += usize::from(intent.fields().is_none());
            conflicts += intent
                .fields()
                .into_iter()
                .flatten()
                .filter(|(_, register)| register.siblings().len() > 1)
                .count();
        }
    }
    assert!(conflicts > 100 && deletions > 100, "{conflicts} conflicts, {deletions} deletions");
    assert!(doubles > 10, "{doubles} double writes");
}

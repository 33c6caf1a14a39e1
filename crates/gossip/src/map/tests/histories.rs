//! Generated histories of whole maps: edits, deletions, copies that are late, twice or lost,
//! restores from old backups, a store that runs twice. In the end all maps meet in one state, and
//! no write that anybody still knew is gone, unless a later one replaced it, its store ran twice, or
//! a restore took it from its own store, whose next write of the field then replaces it unseen.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::strategy::ValueTree;

use super::disk::Unsteady;
use super::*;
use crate::map::record::{Intent, IntentState};
use crate::map::register::Register;
use crate::map::stamp::Stamp;

const STORES: usize = 3;
const VOLUMES: u32 = 3;

#[derive(Clone, Debug)]
enum Step {
    Write {
        at: usize,
        volume: u32,
    },
    Delete {
        at: usize,
        volume: u32,
    },
    PutRoute {
        at: usize,
        host: u8,
    },
    DeleteRoute {
        at: usize,
        host: u8,
    },
    /// A record of a kind, and a field, that no binary of today knows.
    Unknown {
        at: usize,
        value: u8,
    },
    Send {
        from: usize,
    },
    Deliver {
        message: usize,
        to: usize,
    },
    Backup {
        at: usize,
    },
    /// The store comes back as it was at its last backup.
    Restore {
        at: usize,
    },
    /// The store's last backup is started beside it.
    Twin {
        at: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let (at, volume, host) = (0..STORES, 0..VOLUMES, 0..3_u8);
    prop_oneof![
        8 => (at.clone(), volume.clone()).prop_map(|(at, volume)| Step::Write { at, volume }),
        1 => (at.clone(), volume).prop_map(|(at, volume)| Step::Delete { at, volume }),
        2 => (at.clone(), host.clone()).prop_map(|(at, host)| Step::PutRoute { at, host }),
        1 => (at.clone(), host).prop_map(|(at, host)| Step::DeleteRoute { at, host }),
        1 => (at.clone(), any::<u8>()).prop_map(|(at, value)| Step::Unknown { at, value }),
        4 => at.clone().prop_map(|from| Step::Send { from }),
        6 => (any::<usize>(), 0..STORES + 1).prop_map(|(message, to)| Step::Deliver { message, to }),
        2 => at.clone().prop_map(|at| Step::Backup { at }),
        1 => at.clone().prop_map(|at| Step::Restore { at }),
        1 => at.prop_map(|at| Step::Twin { at }),
    ]
}

/// A write of a volume's lag limit, which is unique.
#[derive(Clone, Debug)]
struct Write {
    volume: u32,
    by: StoreId,
    /// The writes that its author had seen.
    over: BTreeSet<u64>,
}

struct Node {
    map: Map,
    disk: Unsteady,
    seen: BTreeSet<u64>,
}

#[derive(Clone)]
struct Backup {
    image: Vec<u8>,
    seen: BTreeSet<u64>,
}

struct World {
    clock: Arc<ManualClock>,
    nodes: Vec<Node>,
    backups: BTreeMap<usize, Backup>,
    sent: Vec<(StoreId, Vec<(RecordKey, Record)>, BTreeSet<u64>)>,
    writes: BTreeMap<u64, Write>,
    doubled: BTreeSet<StoreId>,
    /// Writes that their own store has forgotten by a restore.
    forgotten: BTreeSet<u64>,
    restores: usize,
}

fn start(image: Vec<u8>, actor: StoreId, clock: &Arc<ManualClock>) -> (Map, Unsteady) {
    let disk = Unsteady::new(image, usize::MAX);
    let db = Database::builder().create_with_backend(disk.clone()).expect("a database");
    (Map::open(Arc::new(db), actor, clock.clone()).expect("opens"), disk)
}

impl World {
    fn new() -> Self {
        let clock = clock();
        let nodes = (1..=STORES)
            .map(|n| {
                let actor = store_id(u8::try_from(n).expect("few"));
                let (map, disk) = start(Vec::new(), actor, &clock);
                Node { map, disk, seen: BTreeSet::new() }
            })
            .collect();
        Self {
            clock,
            nodes,
            backups: BTreeMap::new(),
            sent: Vec::new(),
            writes: BTreeMap::new(),
            doubled: BTreeSet::new(),
            forgotten: BTreeSet::new(),
            restores: 0,
        }
    }

    fn step(&mut self, step: &Step) {
        self.clock.advance(Duration::from_millis(1));
        match step {
            Step::Write { at, volume } => self.write(*at, *volume),
            Step::Delete { at, volume } => self.edit(*at, Edit::DeleteVolume(volume_id(*volume))),
            Step::PutRoute { at, host } => {
                self.edit(*at, Edit::PutRoute(route(&host_of(*host), 1)));
            }
            Step::DeleteRoute { at, host } => {
                self.edit(*at, Edit::DeleteRoute(RouteKey::HttpHost(host_of(*host))));
            }
            Step::Unknown { at, value } => self.unknown(*at, *value),
            Step::Send { from } => {
                let node = &self.nodes[*from];
                self.sent.push((node.map.actor(), copy(&node.map), node.seen.clone()));
            }
            Step::Deliver { message, to } => {
                if let (Some(node), false) = (self.nodes.get_mut(*to), self.sent.is_empty()) {
                    let (from, records, seen) = self.sent[message % self.sent.len()].clone();
                    let merged = node.map.merge(from, records).expect("merges");
                    assert!(merged.refused.is_empty(), "{merged:?}");
                    node.seen.extend(seen);
                }
            }
            Step::Backup { at } => {
                let node = &self.nodes[*at];
                let image = node.disk.disk().now.clone();
                self.backups.insert(*at, Backup { image, seen: node.seen.clone() });
            }
            Step::Restore { at } => {
                if let Some(Backup { image, seen }) = self.backups.get(at).cloned() {
                    let actor = self.nodes[*at].map.actor();
                    let (map, disk) = start(image, actor, &self.clock);
                    let own = self.writes.iter().filter(|(_, write)| write.by == actor);
                    let gone = own.map(|(id, _)| *id).filter(|id| !seen.contains(id));
                    self.forgotten.extend(gone);
                    self.nodes[*at] = Node { map, disk, seen };
                    self.restores += 1;
                }
            }
            Step::Twin { at } => {
                if let (Some(Backup { image, seen }), STORES) =
                    (self.backups.get(at).cloned(), self.nodes.len())
                {
                    let actor = self.nodes[*at].map.actor();
                    let (map, disk) = start(image, actor, &self.clock);
                    self.nodes.push(Node { map, disk, seen });
                    self.doubled.insert(actor);
                }
            }
        }
    }

    fn edit(&self, at: usize, edit: Edit) {
        match self.nodes[at].map.edit([edit]) {
            Ok(()) | Err(MapError::Unknown { .. } | MapError::Deleted { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }

    fn write(&mut self, at: usize, number: u32) {
        let id = u64::try_from(self.writes.len()).expect("few") + 1_000_000;
        let mut spec = volume(number, &format!("v{number}"));
        spec.policy.lag_limit = Duration::from_millis(id);
        let node = &mut self.nodes[at];
        match node.map.edit([Edit::PutVolume(spec)]) {
            Ok(()) => {
                let (by, over) = (node.map.actor(), node.seen.clone());
                self.writes.insert(id, Write { volume: number, by, over });
                node.seen.insert(id);
            }
            Err(MapError::Deleted { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }

    fn unknown(&self, at: usize, value: u8) {
        let node = &self.nodes[at];
        let mut register = Register::default();
        register.write(node.map.actor(), Stamp::at(self.clock.wall()), vec![value]);
        let state = IntentState::Live([(900, register)].into());
        let record = Record::Intent(Intent { life: 0, state });
        let key = RecordKey::new(Kind(77), b"x");
        node.map.merge(store_id(99), vec![(key, record)]).expect("merges");
    }

    /// Everybody gives all to everybody, until nothing changes.
    fn meet(&mut self) {
        for _ in 0..3 {
            for from in 0..self.nodes.len() {
                let (records, seen) = (copy(&self.nodes[from].map), self.nodes[from].seen.clone());
                let actor = self.nodes[from].map.actor();
                for to in &mut self.nodes {
                    to.map.merge(actor, records.clone()).expect("merges");
                    to.seen.extend(seen.iter().copied());
                }
            }
        }
    }

    /// The writes that have to be there: known to somebody, and by no known write replaced.
    fn expected(&self) -> BTreeMap<u64, &Write> {
        let known: BTreeSet<u64> = self.nodes.iter().flat_map(|n| n.seen.clone()).collect();
        let replaced = |id: &u64, write: &Write| {
            let later = known.iter().filter_map(|id| self.writes.get(id));
            later.filter(|later| later.volume == write.volume).any(|later| later.over.contains(id))
        };
        let there = self.writes.iter().filter(|(id, _)| known.contains(id));
        there.filter(|(id, write)| !replaced(id, write)).map(|(id, w)| (*id, w)).collect()
    }
}

fn host_of(number: u8) -> String {
    format!("h{number}")
}

/// The lag limits that a map holds of a volume; nothing if it is deleted.
fn values(map: &Map, number: u32) -> Option<BTreeSet<u64>> {
    let key = Edit::DeleteVolume(volume_id(number)).key();
    let bytes = map.inner.store.get(&key).expect("reads")?;
    let Ok(Record::Intent(intent)) = crate::map::encoding::decode(&bytes) else {
        panic!("an intent")
    };
    let millis = |bytes: &Vec<u8>| {
        let span: Duration = postcard::from_bytes(bytes).expect("a time");
        u64::try_from(span.as_millis()).expect("small")
    };
    let register = intent.fields()?.get(&6)?;
    Some(register.siblings().iter().map(|sibling| millis(&sibling.bytes)).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn all_maps_meet_and_no_known_write_is_lost(
        steps in prop::collection::vec(step(), 1..50),
    ) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
        world.meet();
        let first = &world.nodes[0].map;
        for node in &world.nodes {
            prop_assert_eq!(node.map.root(), first.root());
            let shown = |map: &Map| -> Vec<_> { map.view().volumes().cloned().collect() };
            prop_assert_eq!(shown(&node.map), shown(first));
            prop_assert_eq!(node.map.view().quarantined().count(), 0);
        }
        for (id, write) in world.expected() {
            if first.view().is_volume_deleted(&volume_id(write.volume))
                || world.doubled.contains(&write.by)
                || world.forgotten.contains(&id)
            {
                continue;
            }
            let there = values(first, write.volume);
            // A store that runs twice may also replace what it had not seen.
            let held = there.is_some_and(|values| values.contains(&id));
            prop_assert!(held || !world.doubled.is_empty(), "write {} is lost: {:?}", id, write);
        }
    }
}

/// The histories contain what they are meant to.
#[test]
fn the_faults_of_the_histories_happen() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let histories = prop::collection::vec(step(), 1..50);
    let (mut twins, mut restores, mut conflicts, mut deleted, mut checked) = (0, 0, 0, 0, 0);
    for _ in 0..60 {
        let steps = histories.new_tree(&mut runner).expect("a history").current();
        let mut world = World::new();
        steps.iter().for_each(|step| world.step(step));
        world.meet();
        twins += world.doubled.len();
        restores += world.restores;
        let view = world.nodes[0].map.view();
        conflicts += view.conflicts().count();
        deleted += view.all_deleted().count();
        checked += world.expected().len();
    }
    assert!(twins > 5 && restores > 5, "{twins} twins, {restores} restores");
    assert!(conflicts > 20 && deleted > 20, "{conflicts} conflicts, {deleted} deleted");
    assert!(checked > 50, "only {checked} writes were looked for");
}

/// Two copies of one store that write under one stamp are found out.
#[test]
fn a_store_that_runs_twice_is_reported_where_it_shows() {
    let mut world = World::new();
    world.step(&Step::Write { at: 0, volume: 1 });
    world.step(&Step::Backup { at: 0 });
    world.step(&Step::Twin { at: 0 });
    let at_once = |at: usize, millis: u64| {
        let mut spec = volume(1, "v1");
        spec.policy.lag_limit = Duration::from_millis(millis);
        world.nodes[at].map.edit([Edit::PutVolume(spec)]).expect("edits");
    };
    at_once(0, 1);
    at_once(STORES, 2);
    world.meet();
    for node in &world.nodes {
        assert_eq!(node.map.root(), world.nodes[0].map.root());
    }
    assert!(world.nodes.iter().any(|node| !node.map.view().alarms().is_empty()));
}

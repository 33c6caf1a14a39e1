//! The pure core of the view: what chitchat holds goes in, the view and what changed come out. It
//! reads no clock and no chitchat.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use flocker_base::{BootTime, StoreId};

use super::event::{Event, Told};
use super::guard::StateId;
use super::{
    ALARM_STATES, KEY_FACTS, KEY_LEFT, KEY_ROOT, Liveness, Member, Suspicions, View, chat_id, facts,
};
use crate::join::KnownNode;

#[cfg(test)]
mod tests;

/// Time between two warnings of one kind.
const QUIET: Duration = Duration::from_secs(300);

/// A state as chitchat holds it: one run of one node.
#[derive(Clone, Debug)]
pub(super) struct Sighting<'a> {
    pub(super) store: StoreId,
    pub(super) generation: u64,
    pub(super) live: bool,
    pub(super) version: u64,
    pub(super) values: Vec<(&'a str, &'a str)>,
}

impl Sighting<'_> {
    fn value(&self, key: &str) -> Option<&str> {
        self.values.iter().find(|(k, _)| *k == key).map(|(_, v)| *v)
    }
}

/// What a reading changed.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// The new view, if it is another.
    pub(super) view: Option<Arc<View>>,
    /// Nodes whose addresses are new or have changed.
    pub(super) reached: Vec<KnownNode>,
    /// What happened to nodes, in order.
    pub(super) events: Vec<Event>,
}

/// The roll of members.
#[derive(Debug)]
pub(super) struct Roll {
    me: StoreId,
    generation: u64,
    members: BTreeMap<StoreId, Entry>,
    /// States whose facts can't be read, warned of once each.
    unreadable: BTreeSet<StateId>,
    alarmed: Option<BootTime>,
    copy_warned: Option<BootTime>,
}

#[derive(Clone, Debug)]
struct Entry {
    generation: u64,
    version: u64,
    member: Member,
    told: Told,
    /// Whether this run said that it stops.
    left: bool,
}

impl Roll {
    /// A roll with this node alone on it, as the view says of it.
    pub(super) fn new(me: StoreId, generation: u64, mut view: View) -> Self {
        let own = view.nodes.remove(&me);
        let entry = own.map(|member| {
            (me, Entry { generation, version: 0, member, told: Told::default(), left: false })
        });
        Self {
            me,
            generation,
            members: entry.into_iter().collect(),
            unreadable: BTreeSet::new(),
            alarmed: None,
            copy_warned: None,
        }
    }

    /// Takes a whole reading of chitchat's states, and what the watch suspects: a node is live
    /// that chitchat counts as live and the watch does not suspect.
    pub(super) fn update(
        &mut self,
        now: BootTime,
        sightings: &[Sighting<'_>],
        suspected: &Suspicions,
    ) -> Changes {
        self.unreadable.retain(|id| sightings.iter().any(|s| (s.store, s.generation) == *id));
        let mut changes = Changes::default();
        let mut changed = false;
        let mut of_store: BTreeMap<StoreId, Vec<&Sighting<'_>>> = BTreeMap::new();
        for sighting in sightings {
            of_store.entry(sighting.store).or_default().push(sighting);
        }
        for (store, mut runs) in of_store {
            if store == self.me {
                self.warn_of_copies(now, &runs);
                runs.retain(|run| run.generation == self.generation);
            }
            runs.sort_unstable_by_key(|run| std::cmp::Reverse(run.generation));
            // An earlier run that still counts as live is a node that has just restarted.
            let live = runs.iter().any(|run| run.live);
            changed |= self.update_facts(now, store, live, &runs, &mut changes.reached);
            changed |= self.update_liveness(now, store, live, suspected, &mut changes.events);
        }
        let present: BTreeSet<StoreId> = sightings.iter().map(|s| s.store).collect();
        let before = self.members.len();
        self.members.retain(|store, _| *store == self.me || present.contains(store));
        changed |= before != self.members.len();
        if changed {
            let nodes = self.members.iter().map(|(s, e)| (*s, e.member.clone())).collect();
            changes.view = Some(Arc::new(View { nodes }));
        }
        changes
    }

    /// Whether the operator is to be warned of this many states.
    pub(super) fn alarm(&mut self, now: BootTime, states: usize) -> Option<usize> {
        let due = self.alarmed.is_none_or(|last| now.saturating_since(last) >= QUIET);
        if states < ALARM_STATES || !due {
            return None;
        }
        self.alarmed = Some(now);
        Some(states)
    }

    /// The next of these stores, after this one and round again, that is not seen alive.
    pub(super) fn next_missing(
        &self,
        stores: &[StoreId],
        after: Option<StoreId>,
    ) -> Option<StoreId> {
        let missing = |store: &&StoreId| {
            **store != self.me
                && self
                    .members
                    .get(store)
                    .is_none_or(|entry| entry.member.liveness != Liveness::Live)
        };
        let mut later = stores.iter().filter(|store| after.is_none_or(|last| **store > last));
        later.find(missing).or_else(|| stores.iter().find(missing)).copied()
    }

    /// Takes the runs of one store, the newest first: the newest whose facts have arrived counts.
    fn update_facts(
        &mut self,
        now: BootTime,
        store: StoreId,
        live: bool,
        runs: &[&Sighting<'_>],
        reached: &mut Vec<KnownNode>,
    ) -> bool {
        let mut changed = false;
        for run in runs {
            let same = |e: &Entry| (e.generation, e.version) == (run.generation, run.version);
            if self.members.get(&store).is_some_and(same) {
                break;
            }
            let known = self.members.get(&store).cloned();
            let liveness = if live { Liveness::Live } else { Liveness::Suspected };
            let Some(mut member) = self.read(now, liveness, run) else { continue };
            let addresses = |m: &Member| (m.facts.control, m.facts.data);
            if let Some(known) = &known {
                member.since = known.member.since;
                member.liveness = known.member.liveness;
            }
            if store != self.me
                && known.as_ref().map(|e| addresses(&e.member)) != Some(addresses(&member))
            {
                let (control, data) = addresses(&member);
                reached.push(KnownNode { store, control: vec![control], data: vec![data] });
            }
            changed |= known.as_ref().map(|e| &e.member) != Some(&member);
            let told = known.map(|e| e.told).unwrap_or_default();
            let left = run.value(KEY_LEFT).is_some();
            let entry =
                Entry { generation: run.generation, version: run.version, member, told, left };
            self.members.insert(store, entry);
            break;
        }
        changed
    }

    /// Judges whether a node is alive, and says what that is news of.
    fn update_liveness(
        &mut self,
        now: BootTime,
        store: StoreId,
        live: bool,
        suspected: &Suspicions,
        events: &mut Vec<Event>,
    ) -> bool {
        let Some(entry) = self.members.get_mut(&store) else { return false };
        let watched = suspected.contains(&(store, entry.member.incarnation));
        let liveness = match (entry.left, live && !watched) {
            (true, _) => Liveness::Left,
            (false, true) => Liveness::Live,
            (false, false) => Liveness::Suspected,
        };
        let changed = entry.member.liveness != liveness;
        if changed {
            entry.member.liveness = liveness;
            entry.member.since = now;
        }
        if store != self.me
            && let Some(event) = entry.told.next(store, &entry.member)
        {
            event.log();
            events.push(event);
        }
        changed
    }

    fn read(&mut self, now: BootTime, liveness: Liveness, run: &Sighting<'_>) -> Option<Member> {
        let text = run.value(KEY_FACTS)?;
        let Some(facts) = facts::decode(text) else {
            if self.unreadable.insert((run.store, run.generation)) {
                tracing::warn!(
                    store = %run.store,
                    "what a node says of itself can't be read, and it is left out: it may run a \
                     newer flocker; upgrade this node"
                );
            }
            return None;
        };
        let own = [KEY_FACTS, KEY_ROOT, KEY_LEFT];
        let others = run.values.iter().filter(|(key, _)| !own.contains(key));
        Some(Member {
            facts,
            liveness,
            since: now,
            incarnation: chat_id::incarnation(run.generation),
            map_root: run.value(KEY_ROOT).and_then(facts::decode_root),
            values: others.map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        })
    }

    fn warn_of_copies(&mut self, now: BootTime, own: &[&Sighting<'_>]) {
        let copied = own.iter().any(|run| run.generation > self.generation && run.live);
        let due = self.copy_warned.is_none_or(|last| now.saturating_since(last) >= QUIET);
        if copied && due {
            self.copy_warned = Some(now);
            tracing::error!(
                store = %self.me,
                "another node runs with this node's store: a copied or restored disk; stop one of \
                 them, move its state folder away and join it as a new node"
            );
        }
    }
}

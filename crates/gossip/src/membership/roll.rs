//! The pure core of the view: what chitchat holds goes in, the view and what changed come out. It
//! reads no clock and no chitchat.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use flocker_base::{BootTime, Incarnation, Name, StoreId};

use super::event::{Event, Told};
use super::guard::StateId;
use super::roster::{Line, Lines};
use super::{
    ALARM_STATES, KEY_FACTS, KEY_LEFT, KEY_LOAD, KEY_ROOT, Liveness, Member, OWN_KEYS,
    STEPPED_DOWN, Suspicions, View, chat_id, facts,
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
    /// Whether it is no bridge any more, and lives on in its region.
    pub(super) fn has_stepped_down(&self) -> bool {
        self.value(KEY_LEFT) == Some(STEPPED_DOWN)
    }

    /// Whether it says that it goes, from the pool or altogether.
    pub(super) fn is_leaving(&self) -> bool {
        self.value(KEY_LEFT).is_some()
    }

    pub(super) const fn incarnation(&self) -> Incarnation {
        chat_id::incarnation(self.generation)
    }

    pub(super) fn value(&self, key: &str) -> Option<&str> {
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

/// What chitchat, the rosters and the watch say at one moment.
#[derive(Debug)]
pub(super) struct Reading<'a> {
    /// This node's region.
    pub(super) own: &'a Name,
    /// The pool of this node's region.
    pub(super) region: &'a [Sighting<'a>],
    /// The pool between regions, if this node is in it.
    pub(super) between: &'a [Sighting<'a>],
    /// The other regions' rosters: name, whether it can be reached, lines.
    pub(super) rosters: Vec<(&'a Name, bool, &'a Lines)>,
    /// Rises whenever the rosters change.
    pub(super) revision: u64,
    /// What the watch suspects.
    pub(super) suspected: &'a Suspicions,
}

/// What is said of a node's life: that it is live, and whether it left, if its own state doesn't
/// say that.
#[derive(Clone, Copy, Debug)]
struct Said {
    live: bool,
    left: Option<bool>,
}

/// What is known of other regions' nodes beside their entries.
#[derive(Debug, Default)]
struct Remote {
    stores: BTreeSet<StoreId>,
    /// Those that are seen in the pool between regions and are not alive.
    silent: BTreeMap<StoreId, Liveness>,
    /// Runs in the pool between regions that have seemed alive: silence of others says nothing.
    seen_live: BTreeSet<StateId>,
}

/// What an update was made from: while it is the same, nothing changes.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    revision: u64,
    region: Vec<(StoreId, u64, u64, bool)>,
    between: Vec<(StoreId, u64, u64, bool)>,
    suspected: Suspicions,
}

impl Stamp {
    fn of(reading: &Reading<'_>) -> Self {
        let states = |sightings: &[Sighting<'_>]| {
            sightings.iter().map(|s| (s.store, s.generation, s.version, s.live)).collect()
        };
        Self {
            revision: reading.revision,
            region: states(reading.region),
            between: states(reading.between),
            suspected: reading.suspected.clone(),
        }
    }
}

impl Remote {
    fn note_live(&mut self, between: &[Sighting<'_>]) {
        let ids = |live: bool| {
            let runs = between.iter().filter(move |run| !live || run.live);
            runs.map(|run| (run.store, run.generation)).collect::<BTreeSet<_>>()
        };
        let present = ids(false);
        self.seen_live.extend(ids(true));
        self.seen_live.retain(|id| present.contains(id));
    }

    /// Whether these runs of a store say that it lives, if they say anything.
    fn word_on(&self, runs: &[&Sighting<'_>]) -> Option<bool> {
        let live = runs.iter().any(|run| run.live);
        let newest = runs.first().map(|run| (run.store, run.generation));
        let ever = newest.is_some_and(|id| self.seen_live.contains(&id));
        (live || ever).then_some(live)
    }
}

/// Each store's runs, the newest first.
fn by_store<'a, 'b>(sightings: &'b [Sighting<'a>]) -> BTreeMap<StoreId, Vec<&'b Sighting<'a>>> {
    let mut of_store: BTreeMap<StoreId, Vec<&Sighting<'_>>> = BTreeMap::new();
    for sighting in sightings {
        of_store.entry(sighting.store).or_default().push(sighting);
    }
    for runs in of_store.values_mut() {
        runs.sort_unstable_by_key(|run| std::cmp::Reverse(run.generation));
    }
    of_store
}

/// The roll of members.
#[derive(Debug)]
pub(super) struct Roll {
    me: StoreId,
    generation: u64,
    members: BTreeMap<StoreId, Entry>,
    remote: Remote,
    stamp: Option<Stamp>,
    /// States whose facts can't be read, warned of once each.
    unreadable: BTreeSet<StateId>,
    alarmed: Option<BootTime>,
    copy_warned: Option<BootTime>,
}

#[derive(Clone, Debug)]
struct Entry {
    generation: u64,
    version: u64,
    /// The roster's line that it was read from, if it was.
    line: Option<Arc<Line>>,
    member: Arc<Member>,
    told: Told,
    /// Whether this run said that it stops.
    left: bool,
}

impl Entry {
    fn of_self(generation: u64, member: Arc<Member>) -> Self {
        Self { generation, version: 0, line: None, member, told: Told::default(), left: false }
    }
}

impl Roll {
    /// A roll with this node alone on it, as the view says of it.
    pub(super) fn new(me: StoreId, generation: u64, mut view: View) -> Self {
        let own = view.nodes.remove(&me);
        let entry = own.map(|member| (me, Entry::of_self(generation, member)));
        Self {
            me,
            generation,
            members: entry.into_iter().collect(),
            remote: Remote::default(),
            stamp: None,
            unreadable: BTreeSet::new(),
            alarmed: None,
            copy_warned: None,
        }
    }

    /// Takes a whole reading: a node is live that its pool or its region's roster counts as live
    /// and the watch does not suspect.
    pub(super) fn update(&mut self, now: BootTime, reading: &Reading<'_>) -> Changes {
        self.warn_of_copies(now, reading.region);
        let stamp = Stamp::of(reading);
        if self.stamp.as_ref() == Some(&stamp) {
            return Changes::default();
        }
        self.stamp = Some(stamp);
        self.unreadable.retain(|id| {
            let mut all = reading.region.iter().chain(reading.between);
            all.any(|s| (s.store, s.generation) == *id)
        });
        let mut changes = Changes::default();
        let mut changed = self.update_region(now, reading, &mut changes);
        let present: BTreeSet<StoreId> = reading.region.iter().map(|s| s.store).collect();
        changed |= self.update_remote(now, reading, &present, &mut changes);
        let before = self.members.len();
        let (me, remote) = (self.me, &self.remote.stores);
        self.members.retain(|s, _| *s == me || present.contains(s) || remote.contains(s));
        changed |= before != self.members.len();
        if changed {
            let nodes = self.members.iter().map(|(s, e)| (*s, Arc::clone(&e.member))).collect();
            changes.view = Some(Arc::new(View { nodes }));
        }
        changes
    }

    /// The members of this node's region, as other regions are told of them.
    pub(super) fn own_lines(&self, region: &Name, sightings: &[Sighting<'_>]) -> Lines {
        let line = |run: &Sighting<'_>| {
            let entry = self.members.get(&run.store)?;
            let counts = entry.generation == run.generation && entry.member.facts.region == *region;
            let facts = run.value(KEY_FACTS).filter(|_| counts)?.to_owned();
            Some((run.store, Arc::new(Line::new(run.generation, entry.member.liveness, facts))))
        };
        sightings.iter().filter_map(line).collect()
    }

    /// Nodes of other regions that this node, as a bridge, sees itself and that are not alive.
    pub(super) const fn silent(&self) -> &BTreeMap<StoreId, Liveness> {
        &self.remote.silent
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

    /// Takes what this node's region's pool holds.
    fn update_region(
        &mut self,
        now: BootTime,
        reading: &Reading<'_>,
        changes: &mut Changes,
    ) -> bool {
        let mut changed = false;
        for (store, mut runs) in by_store(reading.region) {
            if store == self.me {
                runs.retain(|run| run.generation == self.generation);
            }
            // An earlier run that still counts as live is a node that has just restarted.
            let live = runs.iter().any(|run| run.live);
            changed |= self.update_facts(now, store, live, &runs, &mut changes.reached);
            let said = Said { live, left: None };
            changed |= self.update_liveness(now, store, said, reading.suspected, changes);
        }
        changed
    }

    /// Takes what the pool between regions and the rosters say of nodes of other regions.
    fn update_remote(
        &mut self,
        now: BootTime,
        reading: &Reading<'_>,
        present: &BTreeSet<StoreId>,
        changes: &mut Changes,
    ) -> bool {
        self.remote.note_live(reading.between);
        let mut changed = false;
        let mut stores = BTreeSet::new();
        self.remote.silent.clear();
        let mut between = by_store(reading.between);
        between.retain(|store, runs| {
            // Whoever stepped down lives on in its region, and its earlier runs here say nothing.
            let goes_on = runs.first().is_some_and(|newest| !newest.has_stepped_down());
            runs.retain(|run| goes_on && !run.has_stepped_down());
            *store != self.me && !present.contains(store) && !runs.is_empty()
        });
        let me = self.me;
        for (region, reachable, lines) in &reading.rosters {
            for (store, line) in lines.iter().filter(|(s, _)| **s != me && !present.contains(s)) {
                let runs = between.remove(store).unwrap_or_default();
                let line = Some((*region, *reachable, line));
                changed |= self.update_other(now, *store, &runs, line, reading, changes);
                stores.insert(*store);
            }
        }
        for (store, runs) in between {
            changed |= self.update_other(now, store, &runs, None, reading, changes);
            stores.insert(store);
        }
        self.remote.stores = stores;
        changed
    }

    /// A node of another region: what it says itself in the pool between regions counts before
    /// what its region's roster says, unless the roster knows of a later run.
    fn update_other(
        &mut self,
        now: BootTime,
        store: StoreId,
        runs: &[&Sighting<'_>],
        line: Option<(&Name, bool, &Arc<Line>)>,
        reading: &Reading<'_>,
        changes: &mut Changes,
    ) -> bool {
        let mut said = None;
        let mut changed = false;
        let newest = runs
            .first()
            .filter(|run| line.is_none_or(|(.., line)| run.generation >= line.generation));
        if let Some(newest) = newest
            && let Some(live) = self.remote.word_on(runs)
        {
            let own: Vec<_> =
                runs.iter().copied().filter(|run| self.is_of_another(run, reading.own)).collect();
            changed |= self.update_facts(now, store, live, &own, &mut changes.reached);
            let left = line.filter(|(.., line)| line.incarnation() == newest.incarnation());
            let left = left.map(|(.., line)| line.liveness() == Liveness::Left);
            said = (!own.is_empty()).then_some(Said { live, left: left.filter(|left| *left) });
        }
        if let (None, Some((region, reachable, line))) = (said, line) {
            // Of a run that is over its roster knows no more than this node.
            let is_over = runs.first().is_some_and(|run| run.generation > line.generation);
            let known = self.members.get(&store).filter(|_| is_over);
            let liveness = known.map_or_else(|| line.liveness(), |entry| entry.member.liveness);
            let live = reachable && liveness == Liveness::Live;
            let mut left = None;
            if known.is_none() {
                changed |= self.take_line(now, store, region, live, line, &mut changes.reached);
                left = Some(line.liveness() == Liveness::Left);
            }
            said = Some(Said { live, left });
        }
        let own_word = said.is_some() && newest.is_some();
        if let Some(said) = said {
            changed |= self.update_liveness(now, store, said, reading.suspected, changes);
        }
        if let Some(entry) = self.members.get(&store)
            && own_word
            && entry.line.is_none()
            && entry.member.liveness != Liveness::Live
        {
            self.remote.silent.insert(store, entry.member.liveness);
        }
        changed
    }

    /// Whether a run's facts have come and are of a region other than this node's, whose members
    /// count by its own pool alone.
    fn is_of_another(&self, run: &Sighting<'_>, own: &Name) -> bool {
        let known = self.members.get(&run.store);
        if known.is_some_and(|e| (e.generation, e.version) == (run.generation, run.version)) {
            return true;
        }
        let facts = run.value(KEY_FACTS).and_then(facts::decode);
        facts.is_some_and(|facts| facts.region != *own)
    }

    fn take_line(
        &mut self,
        now: BootTime,
        store: StoreId,
        region: &Name,
        live: bool,
        line: &Arc<Line>,
        reached: &mut Vec<KnownNode>,
    ) -> bool {
        let known = self.members.get(&store);
        if known.is_some_and(|e| e.line.as_ref().is_some_and(|known| Arc::ptr_eq(known, line))) {
            return false;
        }
        let Some(facts) = line.facts_in(region) else { return false };
        let liveness = if live { Liveness::Live } else { Liveness::Suspected };
        let member = Member {
            facts,
            liveness,
            since: now,
            incarnation: line.incarnation(),
            map_root: None,
            load: None,
            values: BTreeMap::new(),
        };
        let entry = Entry {
            generation: line.generation,
            version: 0,
            line: Some(Arc::clone(line)),
            member: Arc::new(member),
            told: Told::default(),
            left: line.liveness() == Liveness::Left,
        };
        self.put(store, entry, reached)
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
        for run in runs {
            let same = |e: &Entry| {
                e.line.is_none() && (e.generation, e.version) == (run.generation, run.version)
            };
            if self.members.get(&store).is_some_and(same) {
                break;
            }
            let liveness = if live { Liveness::Live } else { Liveness::Suspected };
            let Some(member) = self.read(now, liveness, run) else { continue };
            let entry = Entry {
                generation: run.generation,
                version: run.version,
                line: None,
                member: Arc::new(member),
                told: Told::default(),
                left: run.value(KEY_LEFT).is_some(),
            };
            return self.put(store, entry, reached);
        }
        false
    }

    /// Puts what a node says of itself in place of what it said before.
    fn put(&mut self, store: StoreId, mut entry: Entry, reached: &mut Vec<KnownNode>) -> bool {
        let addresses = |m: &Member| (m.facts.control, m.facts.data, m.facts.public);
        let own = self.members.get(&self.me).map(|own| own.member.facts.region.clone());
        let known = self.members.get(&store);
        if let Some(known) = known {
            let member = Arc::make_mut(&mut entry.member);
            (member.since, member.liveness) = (known.member.since, known.member.liveness);
            entry.told = known.told;
        }
        let said = addresses(&entry.member);
        if store != self.me && known.map(|e| addresses(&e.member)) != Some(said) {
            let is_near = own.as_ref() == Some(&entry.member.facts.region);
            reached.push(facts::whereabouts(store, &entry.member.facts, is_near));
        }
        let changed = known.map(|e| &e.member) != Some(&entry.member);
        self.members.insert(store, entry);
        changed
    }

    /// Judges whether a node is alive, and says what that is news of.
    fn update_liveness(
        &mut self,
        now: BootTime,
        store: StoreId,
        said: Said,
        suspected: &Suspicions,
        changes: &mut Changes,
    ) -> bool {
        let Some(entry) = self.members.get_mut(&store) else { return false };
        let watched = suspected.contains(&(store, entry.member.incarnation));
        let liveness = match (said.left.unwrap_or(entry.left), said.live && !watched) {
            (true, _) => Liveness::Left,
            (false, true) => Liveness::Live,
            (false, false) => Liveness::Suspected,
        };
        let changed = entry.member.liveness != liveness;
        if changed {
            let member = Arc::make_mut(&mut entry.member);
            (member.liveness, member.since) = (liveness, now);
        }
        if store != self.me {
            changes.events.extend(entry.told.next(store, &entry.member));
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
        let others = run.values.iter().filter(|(key, _)| !OWN_KEYS.contains(key));
        Some(Member {
            facts,
            liveness,
            since: now,
            incarnation: chat_id::incarnation(run.generation),
            map_root: run.value(KEY_ROOT).and_then(facts::decode_root),
            load: run.value(KEY_LOAD).and_then(facts::decode_load),
            values: others.map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        })
    }

    fn warn_of_copies(&mut self, now: BootTime, region: &[Sighting<'_>]) {
        let mut own = region.iter().filter(|run| run.store == self.me);
        let copied = own.any(|run| run.generation > self.generation && run.live);
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

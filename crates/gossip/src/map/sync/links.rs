//! Whom this node pushes changes to. Pure. It must never cost more than a fixed number of
//! messages a change and node, however large the mesh is.
//!
//! Own region and regions are each a ring with random chords (Voulgaris and van Steen, "Hybrid
//! Dissemination: Adding Determinism to Probabilistic Multicasting in Large-Scale P2P Systems",
//! 2007): the ring lets a push reach everyone, the chords make it quick. A node passes what is new
//! to it to its two neighbours on the ring of its region and to a few others there. Only where a
//! change was born, and where it enters a region, does it go to others: to the two neighbours on the
//! ring of regions and to a few more, to one node of each. Links stay as they are while their ends
//! live, so that connections last, and are drawn anew one at a time, so that no bad choice does.

use std::collections::BTreeMap;
use std::sync::Arc;

use flocker_base::{Name, StoreId};
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

/// Random peers of the own region that each change goes to, besides two neighbours on the ring.
const CHORDS: usize = 2;
/// Random regions that a change goes to, besides two neighbours on the ring of regions.
const REGION_CHORDS: usize = 2;
/// Nodes that hear of a change in all other regions, if there are so many: with one other region
/// alone, two of its nodes do.
const LEAST_ABROAD: usize = 2;

/// A live node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) store: StoreId,
    pub(crate) region: Name,
}

/// The links of one node.
#[derive(Debug)]
pub(super) struct Links {
    me: StoreId,
    region: Name,
    neighbours: Vec<StoreId>,
    chords: Vec<StoreId>,
    /// Peers of the own region.
    own: Vec<StoreId>,
    /// Nodes of the other regions.
    others: BTreeMap<Name, Vec<StoreId>>,
    /// The regions that changes go to, each with the nodes that get them.
    abroad: BTreeMap<Name, Vec<StoreId>>,
}

impl Links {
    pub(super) const fn new(me: StoreId, region: Name) -> Self {
        Self {
            me,
            region,
            neighbours: Vec::new(),
            chords: Vec::new(),
            own: Vec::new(),
            others: BTreeMap::new(),
            abroad: BTreeMap::new(),
        }
    }

    /// The live peers of all regions, in number.
    pub(super) fn peers(&self) -> usize {
        self.own.len() + self.others.values().map(Vec::len).sum::<usize>()
    }

    /// Takes in who lives; links whose ends live stay.
    pub(super) fn on_members(&mut self, members: &Arc<[Member]>, random: &mut StdRng) {
        self.own.clear();
        self.others.values_mut().for_each(Vec::clear);
        for Member { store, region } in members.iter().filter(|member| member.store != self.me) {
            if *region == self.region {
                self.own.push(*store);
            } else if let Some(there) = self.others.get_mut(region) {
                there.push(*store);
            } else {
                self.others.insert(region.clone(), vec![*store]);
            }
        }
        self.others.retain(|_, there| !there.is_empty());
        self.own.sort_unstable();
        self.others.values_mut().for_each(|there| there.sort_unstable());
        self.neighbours = neighbours(&self.own, |store| place(*store), &place(self.me));
        let lives = |store: &StoreId| self.own.binary_search(store).is_ok();
        self.chords.retain(lives);
        let others = &self.others;
        self.abroad.retain(|region, nodes| {
            let there = others.get(region);
            nodes.retain(|store| there.is_some_and(|there| there.binary_search(store).is_ok()));
            !nodes.is_empty()
        });
        self.complete(random);
    }

    /// Lets one random link of each sort go and draws another.
    pub(super) fn redraw(&mut self, random: &mut StdRng) {
        if !self.chords.is_empty() {
            let gone = random.random_range(0..self.chords.len());
            self.chords.swap_remove(gone);
        }
        let regions: Vec<Name> = self.abroad.keys().cloned().collect();
        if let Some(gone) = regions.choose(random) {
            self.abroad.remove(gone);
        }
        self.complete(random);
    }

    fn complete(&mut self, random: &mut StdRng) {
        self.chords.retain(|store| !self.neighbours.contains(store));
        let free: Vec<StoreId> = self
            .own
            .iter()
            .filter(|store| !self.neighbours.contains(store) && !self.chords.contains(store))
            .copied()
            .collect();
        let missing = CHORDS.saturating_sub(self.chords.len());
        self.chords.extend(free.sample(random, missing));
        self.complete_abroad(random);
    }

    fn complete_abroad(&mut self, random: &mut StdRng) {
        let regions: Vec<Name> = self.others.keys().cloned().collect();
        let mut wanted = neighbours(&regions, Name::clone, &self.region);
        let ring = wanted.len();
        let kept = self.abroad.keys().filter(|region| !wanted.contains(region));
        let kept: Vec<Name> = kept.take(REGION_CHORDS).cloned().collect();
        wanted.extend(kept);
        let free: Vec<Name> =
            regions.iter().filter(|region| !wanted.contains(region)).cloned().collect();
        let missing = (ring + REGION_CHORDS).saturating_sub(wanted.len());
        wanted.extend(free.sample(random, missing).cloned());
        self.abroad.retain(|region, _| wanted.contains(region));
        let each = LEAST_ABROAD.div_ceil(wanted.len().max(1));
        for region in wanted {
            let Some(there) = self.others.get(&region) else { continue };
            let nodes = self.abroad.entry(region).or_default();
            let free: Vec<StoreId> =
                there.iter().filter(|store| !nodes.contains(store)).copied().collect();
            nodes.extend(free.sample(random, each.saturating_sub(nodes.len())));
            nodes.truncate(each);
        }
    }

    /// The peers of the own region that a change goes to, without the one that it came from.
    pub(super) fn near(&self, from: Option<StoreId>) -> Vec<StoreId> {
        let all = self.neighbours.iter().chain(&self.chords);
        all.copied().filter(|store| Some(*store) != from).collect()
    }

    /// The nodes of other regions that a change goes to, without the region that it came from.
    pub(super) fn far(&self, from: Option<StoreId>) -> Vec<StoreId> {
        let from = from.and_then(|store| self.region_of(store));
        let regions = self.abroad.iter().filter(|(region, _)| Some(*region) != from);
        regions.flat_map(|(_, nodes)| nodes).copied().collect()
    }

    /// Whether this peer is known to be of another region.
    pub(super) fn is_abroad(&self, store: StoreId) -> bool {
        self.region_of(store).is_some()
    }

    /// The other region that this peer is of.
    fn region_of(&self, store: StoreId) -> Option<&Name> {
        if self.own.binary_search(&store).is_ok() {
            return None;
        }
        let has = |there: &Vec<StoreId>| there.binary_search(&store).is_ok();
        self.others.iter().find(|(_, there)| has(there)).map(|(region, _)| region)
    }
}

/// Where a store stands on the ring: neighbours are no neighbours in age or rack.
fn place(store: StoreId) -> (u64, StoreId) {
    let mut bits = [0; 8];
    let bytes = store.as_bytes();
    for (number, bit) in bits.iter_mut().enumerate() {
        *bit = bytes[number] ^ bytes[number + 8].rotate_left(3);
    }
    // The finalizer of SplitMix64 (Steele, Lea and Flood, 2014).
    let mixed = u64::from_le_bytes(bits).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 31), store)
}

/// The next and the one before on the ring that `all` form with `me`.
fn neighbours<T: Clone + PartialEq, K: Ord>(all: &[T], place: impl Fn(&T) -> K, me: &K) -> Vec<T> {
    let order = |one: &&T, other: &&T| place(one).cmp(&place(other));
    let after = all.iter().filter(|one| place(one) > *me).min_by(order);
    let before = all.iter().filter(|one| place(one) < *me).max_by(order);
    let next = after.or_else(|| all.iter().min_by(order));
    let previous = before.or_else(|| all.iter().max_by(order));
    let mut found: Vec<T> = next.into_iter().chain(previous).cloned().collect();
    found.dedup();
    found
}

#[cfg(test)]
mod tests;

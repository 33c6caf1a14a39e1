//! What nodes are told of each other. In a running node that is chitchat's work, which cannot be
//! seeded; here it is a trait with one simulated implementation, that is as late as the real one.
//! It must never tell what the simulated network could not have carried.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use flocker_base::{Name, StoreId};

use super::world::{MILLISECOND, Micros, SECOND};
use crate::map::sync::links::Member;
use crate::map::tree::Hash;

/// Nodes of a region, the first by number, that take part in the pool between regions.
const BRIDGES: usize = 3;
/// Roots of a node that are remembered, to be told late.
const REMEMBERED: usize = 64;
/// Shortest time between two announcements of a node.
const ANNOUNCE_EVERY: Micros = SECOND;

/// Membership as the map's synchronisation needs it.
pub(super) trait Membership {
    /// A node came up, went down or changed sides.
    fn on_state(&mut self, node: usize, up: bool, side: u8);
    /// A node's map has a new root.
    fn on_root(&mut self, now: Micros, node: usize, root: Hash);
    /// Who lives, for each side: what the nodes of that side will be told.
    fn sides(&self) -> BTreeMap<u8, Arc<[Member]>>;
    /// The roots that this node has been told by now, of these live members.
    fn roots(&self, now: Micros, node: usize, members: &[Member]) -> Vec<(StoreId, Hash)>;
}

/// A pool a region, and one of bridges between regions: a node hears the roots of its own region,
/// a bridge those of other bridges too, and of all others only that they live.
#[derive(Debug, Default)]
pub(super) struct Pools {
    nodes: Vec<Subject>,
    by_region: Vec<Vec<usize>>,
}

#[derive(Debug)]
struct Subject {
    store: StoreId,
    region: usize,
    name: Name,
    up: bool,
    side: u8,
    roots: VecDeque<(Micros, Hash)>,
}

impl Pools {
    pub(super) fn add(&mut self, store: StoreId, region: usize, name: Name) {
        while self.by_region.len() <= region {
            self.by_region.push(Vec::new());
        }
        self.by_region[region].push(self.nodes.len());
        let roots = VecDeque::new();
        self.nodes.push(Subject { store, region, name, up: false, side: 0, roots });
    }

    fn bridges(&self, region: usize) -> impl Iterator<Item = usize> {
        let up = |node: &&usize| self.nodes[**node].up;
        self.by_region[region].iter().filter(up).take(BRIDGES).copied()
    }

    /// What `node` knows of `other`'s root.
    fn root(&self, now: Micros, node: usize, other: usize) -> Option<Hash> {
        // From pair to pair otherwise, as gossip is.
        let mixed = (node as u64 * 0x9e37_79b9 + other as u64).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let delay = 300 * MILLISECOND + (mixed >> 33) % (2_200 * MILLISECOND);
        let told = now.checked_sub(delay)?;
        let known = self.nodes[other].roots.partition_point(|(at, _)| *at <= told);
        self.nodes[other].roots.get(known.checked_sub(1)?).map(|(_, root)| *root)
    }
}

impl Membership for Pools {
    fn on_state(&mut self, node: usize, up: bool, side: u8) {
        self.nodes[node].up = up;
        self.nodes[node].side = side;
    }

    fn on_root(&mut self, now: Micros, node: usize, root: Hash) {
        let roots = &mut self.nodes[node].roots;
        match roots.back_mut() {
            Some((_, last)) if *last == root => return,
            Some((at, last)) if *at > now => {
                *last = root;
                return;
            }
            _ => {}
        }
        let at = roots.back().map_or(now, |(at, _)| now.max(at + ANNOUNCE_EVERY));
        roots.push_back((at, root));
        if roots.len() > REMEMBERED {
            roots.pop_front();
        }
    }

    fn sides(&self) -> BTreeMap<u8, Arc<[Member]>> {
        let mut sides: BTreeMap<u8, Vec<Member>> = BTreeMap::new();
        for subject in self.nodes.iter().filter(|subject| subject.up) {
            let member = Member { store: subject.store, region: subject.name.clone() };
            sides.entry(subject.side).or_default().push(member);
        }
        let mut sorted = BTreeMap::new();
        for (side, mut members) in sides {
            members.sort_by_key(|member| member.store);
            sorted.insert(side, members.into());
        }
        sorted
    }

    fn roots(&self, now: Micros, node: usize, members: &[Member]) -> Vec<(StoreId, Hash)> {
        let region = self.nodes[node].region;
        let is_bridge = self.bridges(region).any(|bridge| bridge == node);
        let abroad = (0..self.by_region.len()).filter(|other| is_bridge && *other != region);
        let heard = self.by_region[region].iter().copied();
        let heard = heard.chain(abroad.flat_map(|other| self.bridges(other)));
        let heard = heard.filter(|other| *other != node);
        heard
            .filter_map(|other| {
                let store = self.nodes[other].store;
                members.binary_search_by_key(&store, |member| member.store).ok()?;
                self.root(now, node, other).map(|root| (store, root))
            })
            .collect()
    }
}

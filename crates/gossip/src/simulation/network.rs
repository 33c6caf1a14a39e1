//! The simulated network: what is lost, doubled, overtaken, delayed and cut. Nodes are numbered; a
//! region is a number too.

use std::collections::{BTreeMap, BTreeSet};

use rand::RngExt;
use rand::rngs::StdRng;

use super::world::{MILLISECOND, Micros};

/// What a message costs beside its bytes: headers of QUIC, UDP and IP, and its acknowledgement.
pub(super) const OVERHEAD: usize = 100;
/// Bytes that a link carries in a millisecond: 1 Gbit/s.
const BYTES_PER_MILLISECOND: usize = 125_000;

/// Losses, delays and cuts, as they are now.
#[derive(Debug)]
pub(super) struct Network {
    /// The region of each node.
    pub(super) regions: Vec<usize>,
    /// The way between two regions, the lower first, takes at least this long.
    distances: BTreeMap<(usize, usize), Micros>,
    /// The side of a partition that each node is on.
    pub(super) sides: Vec<u8>,
    /// From which node to which nothing travels.
    pub(super) one_way: BTreeSet<(usize, usize)>,
    /// From which region to which nothing travels.
    pub(super) one_way_regions: BTreeSet<(usize, usize)>,
    /// In a thousand: lost for good.
    pub(super) loss: u32,
    /// In a thousand: lost, and sent again by the transport.
    pub(super) resent: u32,
    /// In a thousand.
    pub(super) doubling: u32,
    /// The longest delay added.
    pub(super) slowness: Micros,
}

impl Network {
    /// A good network of so many regions.
    pub(super) fn good(random: &mut StdRng, regions: usize) -> Self {
        let pairs = (0..regions).flat_map(|one| (0..one).map(move |other| (other, one)));
        let far = |pair| (pair, random.random_range(8 * MILLISECOND..80 * MILLISECOND));
        let distances = pairs.map(far).collect();
        Self {
            regions: Vec::new(),
            distances,
            sides: Vec::new(),
            one_way: BTreeSet::new(),
            one_way_regions: BTreeSet::new(),
            loss: 0,
            resent: 5,
            doubling: 0,
            slowness: 0,
        }
    }

    pub(super) fn repair(&mut self) {
        self.sides.fill(0);
        self.one_way.clear();
        self.one_way_regions.clear();
        (self.loss, self.doubling, self.slowness) = (0, 0, 0);
    }

    pub(super) fn is_cut(&self, from: usize, to: usize) -> bool {
        self.sides[from] != self.sides[to]
            || self.one_way.contains(&(from, to))
            || self.one_way_regions.contains(&(self.regions[from], self.regions[to]))
    }

    /// When copies of a message arrive, from now; none if it is lost.
    pub(super) fn carry(
        &self,
        random: &mut StdRng,
        from: usize,
        to: usize,
        size: usize,
    ) -> Vec<Micros> {
        if self.is_cut(from, to) || random.random_range(0..1_000) < self.loss {
            return Vec::new();
        }
        let [one, other] = [from, to].map(|node| self.regions[node]);
        let way = self.distances.get(&(one.min(other), one.max(other)));
        let way = way.copied().unwrap_or(MILLISECOND / 5);
        let copies = if random.random_range(0..1_000) < self.doubling { 2 } else { 1 };
        let sending = u64::try_from(size / BYTES_PER_MILLISECOND).expect("small") * MILLISECOND;
        let mut one = || {
            let mut delay = way + random.random_range(0..=way / 5 + MILLISECOND / 2) + sending;
            if random.random_range(0..1_000) < self.resent {
                // A probe timeout, and the way once more.
                delay += 4 * way + 25 * MILLISECOND;
            }
            delay + random.random_range(0..=self.slowness)
        };
        (0..copies).map(|_| one()).collect()
    }
}

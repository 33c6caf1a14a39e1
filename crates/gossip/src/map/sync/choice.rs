//! Which peers to push to and which to pull from, and when again. Pure: time, roots and
//! randomness come in. It must never pull from one peer again and again for nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use flocker_base::{BootTime, StoreId};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use crate::map::tree::Hash;

const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// What made a pull worth trying.
type Difference = (Option<Hash>, Hash);

#[derive(Debug)]
struct Fruitless {
    difference: Difference,
    wait: Duration,
    until: BootTime,
}

/// Chooses peers.
#[derive(Debug)]
pub(super) struct Choice {
    random: StdRng,
    fruitless: BTreeMap<StoreId, Fruitless>,
}

impl Choice {
    pub(super) fn new(seed: u64) -> Self {
        Self { random: StdRng::seed_from_u64(seed), fruitless: BTreeMap::new() }
    }

    /// So many of the peers, at random.
    pub(super) fn some(&mut self, peers: &[StoreId], count: usize) -> Vec<StoreId> {
        peers.sample(&mut self.random, count).copied().collect()
    }

    /// A peer to pull from: one whose root is another than ours and from whom we did not just
    /// learn that he has nothing for us.
    pub(super) fn source(
        &mut self,
        peers: &[(StoreId, Option<Hash>)],
        ours: Hash,
        now: BootTime,
    ) -> Option<StoreId> {
        self.fruitless.retain(|store, _| peers.iter().any(|(peer, _)| peer == store));
        let worth = |(store, root): &&(StoreId, Option<Hash>)| {
            *root != Some(ours)
                && self
                    .fruitless
                    .get(store)
                    .is_none_or(|tried| tried.until <= now || tried.difference != (*root, ours))
        };
        let worth: Vec<StoreId> = peers.iter().filter(worth).map(|(store, _)| *store).collect();
        worth.choose(&mut self.random).copied()
    }

    /// Notes that a pull brought nothing, or failed.
    pub(super) fn nothing_from(
        &mut self,
        store: StoreId,
        root: Option<Hash>,
        ours: Hash,
        now: BootTime,
    ) {
        let before = self.fruitless.get(&store).filter(|old| old.difference == (root, ours));
        let wait = before.map_or(FIRST_WAIT, |old| (old.wait * 2).min(LONGEST_WAIT));
        let difference = (root, ours);
        self.fruitless.insert(store, Fruitless { difference, wait, until: now + wait });
    }

    /// Notes that a pull brought something.
    pub(super) fn something_from(&mut self, store: StoreId) {
        self.fruitless.remove(&store);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(number: u8) -> StoreId {
        StoreId::from_bytes([number; 16])
    }

    #[test]
    fn a_peer_with_our_root_is_never_pulled_from() {
        let mut choice = Choice::new(1);
        let peers = [(store(1), Some([1; 32])), (store(2), Some([2; 32]))];
        for _ in 0..20 {
            assert_eq!(choice.source(&peers, [1; 32], BootTime::ZERO), Some(store(2)));
        }
    }

    #[test]
    fn a_fruitless_pull_waits_longer_each_time_until_a_root_changes() {
        let mut choice = Choice::new(1);
        let peers = [(store(2), Some([2; 32]))];
        let mut now = BootTime::ZERO;
        for wait in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert_eq!(choice.source(&peers, [1; 32], now), Some(store(2)));
            choice.nothing_from(store(2), Some([2; 32]), [1; 32], now);
            let wait = Duration::from_secs(wait);
            assert_eq!(
                choice.source(
                    &peers,
                    [1; 32],
                    (now + wait).saturating_sub(Duration::from_millis(1))
                ),
                None
            );
            now = now + wait;
        }
        choice.nothing_from(store(2), Some([2; 32]), [1; 32], now);
        assert_eq!(choice.source(&peers, [9; 32], now), Some(store(2)), "our root changed");
        let changed = [(store(2), Some([3; 32]))];
        assert_eq!(choice.source(&changed, [1; 32], now), Some(store(2)), "its root changed");
    }

    #[test]
    fn a_push_goes_to_different_peers_at_random() {
        let mut choice = Choice::new(7);
        let peers: Vec<_> = (1..=9).map(store).collect();
        let mut met = std::collections::BTreeSet::new();
        for _ in 0..50 {
            let some = choice.some(&peers, 3);
            assert_eq!(some.iter().collect::<std::collections::BTreeSet<_>>().len(), 3);
            met.extend(some);
        }
        assert_eq!(met.len(), 9);
        assert_eq!(choice.some(&peers[..2], 3).len(), 2);
    }
}

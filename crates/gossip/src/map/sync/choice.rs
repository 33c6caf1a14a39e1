//! Which peer to pull from, and when again. Pure: time, roots and randomness come in. It must
//! never pull from one peer again and again for nothing, nor because of what it does not know.
//!
//! A peer's root is as old as membership is slow. One that was ours before says that the peer lacks
//! something, not we; and what differs only for a moment is on its way by push.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use flocker_base::{BootTime, StoreId};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use crate::map::tree::Hash;

/// How long a root must differ before it is worth a pull: pushes take less, so that in a healthy
/// mesh one change makes no pull.
const SETTLE: Duration = Duration::from_secs(1);
/// The wait after a first pull that brought nothing, and after one that failed.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The longest wait after pulls that brought nothing.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// The longest wait after pulls that failed.
const LONGEST_AFTER_FAILURE: Duration = Duration::from_secs(8);
/// Roots of our own that are remembered.
const FORMER: usize = 256;
/// The root of an empty map.
const EMPTY: Hash = [0; 32];

/// What made a pull worth trying: the peer's root and ours.
pub(super) type Difference = (Hash, Hash);

#[derive(Debug)]
struct Fruitless {
    difference: Difference,
    wait: Duration,
    until: BootTime,
}

/// Chooses peers.
#[derive(Debug, Default)]
pub(super) struct Choice {
    roots: BTreeMap<StoreId, Hash>,
    /// Since when each peer's root has been another than ours.
    differs: BTreeMap<StoreId, BootTime>,
    former: VecDeque<Hash>,
    fruitless: BTreeMap<StoreId, Fruitless>,
}

impl Choice {
    /// Notes our root.
    pub(super) fn on_own_root(&mut self, ours: Hash) {
        if self.former.back() != Some(&ours) {
            if self.former.len() >= FORMER {
                self.former.pop_front();
            }
            self.former.push_back(ours);
        }
    }

    /// Notes the roots that the live peers announce.
    pub(super) fn on_roots(&mut self, roots: Vec<(StoreId, Hash)>, now: BootTime) {
        self.roots = roots.into_iter().collect();
        let gains = |root: &Hash| *root != EMPTY && !self.former.contains(root);
        let differs = self.roots.iter().filter(|(_, root)| gains(root));
        let since = |peer: &StoreId| self.differs.get(peer).copied().unwrap_or(now);
        self.differs = differs.map(|(peer, _)| (*peer, since(peer))).collect();
        self.fruitless.retain(|peer, _| self.roots.contains_key(peer));
    }

    /// A peer to pull from, other than `busy`: one whose root has differed from ours for a while
    /// and from whom we did not just learn that he has nothing for us.
    pub(super) fn source(
        &self,
        ours: Hash,
        busy: impl Fn(&StoreId) -> bool,
        now: BootTime,
        random: &mut StdRng,
    ) -> Option<(StoreId, Difference)> {
        // An empty map has nobody's pushes to wait for.
        let settle = if ours == EMPTY { Duration::ZERO } else { SETTLE };
        let worth = |(peer, since): (&StoreId, &BootTime)| {
            let difference = (*self.roots.get(peer)?, ours);
            let is_due = |tried: &Fruitless| tried.until <= now || tried.difference != difference;
            let is_worth = difference.0 != ours
                && *since + settle <= now
                && !self.former.contains(&difference.0)
                && self.fruitless.get(peer).is_none_or(is_due)
                && !busy(peer);
            is_worth.then_some((*peer, difference))
        };
        let worth: Vec<_> = self.differs.iter().filter_map(worth).collect();
        worth.choose(random).copied()
    }

    /// Notes that a pull brought nothing.
    pub(super) fn nothing_from(&mut self, peer: StoreId, difference: Difference, now: BootTime) {
        self.put_off(peer, difference, LONGEST_WAIT, now);
    }

    /// Notes that a pull failed.
    pub(super) fn failed(&mut self, peer: StoreId, difference: Difference, now: BootTime) {
        self.put_off(peer, difference, LONGEST_AFTER_FAILURE, now);
    }

    fn put_off(&mut self, peer: StoreId, difference: Difference, longest: Duration, now: BootTime) {
        let before = self.fruitless.get(&peer).filter(|old| old.difference == difference);
        let wait = before.map_or(FIRST_WAIT, |old| (old.wait * 2).min(longest));
        self.fruitless.insert(peer, Fruitless { difference, wait, until: now + wait });
    }

    /// Notes that a pull brought something.
    pub(super) fn something_from(&mut self, peer: StoreId) {
        self.fruitless.remove(&peer);
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn store(number: u8) -> StoreId {
        StoreId::from_bytes([number; 16])
    }

    fn at(millis: u64) -> BootTime {
        BootTime::from_millis(millis)
    }

    /// A choice that has seen these roots since the boot, and whom it takes.
    struct Case {
        choice: Choice,
        random: StdRng,
    }

    impl Case {
        fn new(ours: Hash, roots: &[(u8, Hash)]) -> Self {
            let mut choice = Choice::default();
            choice.on_own_root(ours);
            let mut case = Self { choice, random: StdRng::seed_from_u64(1) };
            case.see(roots, BootTime::ZERO);
            case
        }

        fn see(&mut self, roots: &[(u8, Hash)], now: BootTime) {
            let roots = roots.iter().map(|(peer, root)| (store(*peer), *root)).collect();
            self.choice.on_roots(roots, now);
        }

        fn source(&mut self, ours: Hash, now: BootTime) -> Option<StoreId> {
            self.choice.on_own_root(ours);
            let found = self.choice.source(ours, |_| false, now, &mut self.random);
            found.map(|(peer, _)| peer)
        }
    }

    #[test]
    fn a_peer_with_our_root_or_a_former_one_or_none_is_never_pulled_from() {
        let mut case = Case::new([7; 32], &[(1, [1; 32]), (2, [2; 32]), (3, EMPTY), (4, [7; 32])]);
        for _ in 0..20 {
            assert_eq!(case.source([1; 32], at(5_000)), Some(store(2)));
        }
        case.see(&[(1, [1; 32])], at(6_000));
        assert_eq!(case.source([1; 32], at(9_000)), None, "the others announce nothing any more");
    }

    #[test]
    fn what_differs_for_a_moment_is_left_to_the_push() {
        let mut case = Case::new([1; 32], &[(1, [2; 32])]);
        assert_eq!(case.source([1; 32], at(999)), None);
        assert_eq!(case.source([1; 32], at(1_000)), Some(store(1)));
        // Its root changes all the time, and never to ours: that is still worth a look.
        case.see(&[(1, [3; 32])], at(900));
        assert_eq!(case.source([1; 32], at(1_000)), Some(store(1)));
        case.see(&[(1, [1; 32])], at(1_500));
        case.see(&[(1, [4; 32])], at(2_000));
        assert_eq!(case.source([1; 32], at(2_500)), None, "we were equal meanwhile");
        // A newcomer waits for nothing.
        let mut case = Case::new(EMPTY, &[(1, [2; 32])]);
        assert_eq!(case.source(EMPTY, BootTime::ZERO), Some(store(1)));
    }

    #[test]
    fn a_fruitless_pull_waits_longer_each_time_until_a_root_changes() {
        let difference = ([2; 32], [1; 32]);
        for (longest, waits) in [(60, [1, 2, 4, 8, 16, 32, 60, 60]), (8, [1, 2, 4, 8, 8, 8, 8, 8])]
        {
            let mut case = Case::new([1; 32], &[(2, [2; 32])]);
            let mut now = at(1_000);
            for wait in waits {
                assert_eq!(case.source([1; 32], now), Some(store(2)));
                if longest == 60 {
                    case.choice.nothing_from(store(2), difference, now);
                } else {
                    case.choice.failed(store(2), difference, now);
                }
                now = now + Duration::from_secs(wait);
                let just_before = now.saturating_sub(Duration::from_millis(1));
                assert_eq!(case.source([1; 32], just_before), None);
            }
            case.choice.nothing_from(store(2), difference, now);
            assert_eq!(case.source([9; 32], now), Some(store(2)), "our root changed");
        }
    }
}

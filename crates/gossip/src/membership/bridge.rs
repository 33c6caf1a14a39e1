//! Who carries between regions: the few live members of a region whose ids hash lowest, by the
//! same rule everywhere. It decides when this node enters and leaves the pool between regions, and
//! starts nothing itself.
//!
//! A node enters as soon as it is chosen, and leaves only once it has long not been chosen and all
//! that are chosen are in: there is no moment without a bridge that a healthy rule could avoid.
//! Each entry makes a state in that pool that stays for a while, so a node that goes in and out
//! stays longer each time.

use std::collections::BTreeSet;
use std::time::Duration;

use flocker_base::{BootTime, StoreId};

/// How many bridges a region has, if it has so many live members.
pub(super) const BRIDGES: usize = 3;

/// How long a starting node waits for the members of its region that it has been told of.
const SETTLING: Duration = Duration::from_secs(3);

/// While a node is this young, what it sees of its region is incomplete, and it enters only after
/// it has been chosen for [`YOUNG_HOLD`].
const YOUNG: Duration = Duration::from_secs(10);
const YOUNG_HOLD: Duration = Duration::from_secs(1);

/// How long a bridge stays that is no longer chosen, the first time and at most.
const HOLD: Duration = Duration::from_secs(15);
const LONGEST_HOLD: Duration = Duration::from_secs(600);

/// Without an entry for this long, those before are forgotten.
const CALM: Duration = Duration::from_secs(1800);

/// Where a store stands among others: lower is chosen first. A hash, so that it does not follow
/// the order in which nodes joined.
fn rank(store: StoreId) -> [u8; 8] {
    let mut hash = [0; 8];
    hash.copy_from_slice(&blake3::hash(store.as_bytes()).as_bytes()[..8]);
    hash
}

/// The bridges among these live members of one region.
pub(super) fn chosen(live: impl IntoIterator<Item = StoreId>) -> BTreeSet<StoreId> {
    let mut ranked: Vec<_> = live.into_iter().map(|store| (rank(store), store)).collect();
    ranked.sort_unstable();
    ranked.into_iter().take(BRIDGES).map(|(_, store)| store).collect()
}

/// Which of these servers a node asks: spread evenly, and the same as long as they are the same.
pub(super) fn nearest(me: StoreId, servers: impl IntoIterator<Item = StoreId>) -> Option<StoreId> {
    servers.into_iter().min_by_key(|server| {
        let mut hasher = blake3::Hasher::new();
        hasher.update(me.as_bytes()).update(server.as_bytes());
        (*hasher.finalize().as_bytes(), *server)
    })
}

/// What a node sees of its region.
#[derive(Clone, Debug, Default)]
pub(super) struct RegionSight {
    /// Its live members, this node among them.
    pub(super) live: BTreeSet<StoreId>,
    /// Those of them that are seen alive in the pool between regions, if this node is in it.
    pub(super) inside: BTreeSet<StoreId>,
    /// Whether there may be members that are not seen yet.
    pub(super) unsettled: bool,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Enter the pool between regions.
    Enter,
    /// Leave it.
    Leave,
}

/// Whether this node is a bridge.
#[derive(Debug)]
pub(super) struct Bridge {
    me: StoreId,
    started: BootTime,
    inside: bool,
    /// Since when it is chosen, or not chosen.
    chosen: Option<(bool, BootTime)>,
    entries: u32,
    entered: BootTime,
}

impl Bridge {
    pub(super) fn new(me: StoreId, now: BootTime) -> Self {
        Self { me, started: now, inside: false, chosen: None, entries: 0, entered: now }
    }

    pub(super) const fn is_inside(&self) -> bool {
        self.inside
    }

    /// Whether it matters to this node that members may be missing.
    pub(super) fn is_settling(&self, now: BootTime) -> bool {
        !self.inside && now.saturating_since(self.started) < SETTLING
    }

    /// The pool ended by itself.
    pub(super) fn fell_out(&mut self) {
        self.inside = false;
    }

    pub(super) fn step(&mut self, now: BootTime, sight: &RegionSight) -> Option<Step> {
        let chosen = chosen(sight.live.iter().copied().chain([self.me]));
        let is_chosen = chosen.contains(&self.me);
        let since = match self.chosen {
            Some((before, since)) if before == is_chosen => since,
            _ => now,
        };
        self.chosen = Some((is_chosen, since));
        let held = now.saturating_since(since);
        let age = now.saturating_since(self.started);
        if !self.inside {
            let alone = sight.live.len() <= 1;
            let wait = if age < YOUNG && !alone { YOUNG_HOLD } else { Duration::ZERO };
            let settled = !sight.unsettled || age >= SETTLING;
            if is_chosen && settled && held >= wait {
                self.enter(now);
                return Some(Step::Enter);
            }
            return None;
        }
        let all_in = chosen.iter().all(|store| sight.inside.contains(store));
        if !is_chosen && all_in && held >= self.hold() {
            self.inside = false;
            return Some(Step::Leave);
        }
        None
    }

    fn enter(&mut self, now: BootTime) {
        let calm = now.saturating_since(self.entered) >= CALM;
        self.entries = if calm { 1 } else { self.entries.saturating_add(1) };
        self.entered = now;
        self.inside = true;
    }

    fn hold(&self) -> Duration {
        let doubled = 1_u32.checked_shl(self.entries.saturating_sub(1)).unwrap_or(u32::MAX);
        HOLD.saturating_mul(doubled).min(LONGEST_HOLD)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(byte: u8) -> StoreId {
        StoreId::from_bytes([byte; 16])
    }

    fn at(secs: u64) -> BootTime {
        BootTime::from_millis(secs * 1000)
    }

    /// Stores 1 to 9, the first chosen first.
    fn by_rank() -> Vec<StoreId> {
        let mut stores: Vec<_> = (1..10).map(store).collect();
        stores.sort_by_key(|s| rank(*s));
        stores
    }

    fn sight(live: &[StoreId], inside: &[StoreId]) -> RegionSight {
        let set = |stores: &[StoreId]| stores.iter().copied().collect();
        RegionSight { live: set(live), inside: set(inside), unsettled: false }
    }

    #[test]
    fn the_rule_is_the_same_everywhere_and_few_are_chosen() {
        let stores = by_rank();
        let first: BTreeSet<_> = stores[..3].iter().copied().collect();
        assert_eq!(chosen(stores.iter().copied()), first);
        assert_eq!(chosen(stores.iter().rev().copied()), first, "in any order");
        assert_eq!(chosen([store(1)]), [store(1)].into(), "a region of one");
        let without = chosen(stores[1..].iter().copied());
        assert_eq!(without.intersection(&first).count(), 2, "one goes, one comes");
    }

    #[test]
    fn a_node_alone_enters_at_once_and_one_told_of_others_waits_for_them() {
        let mut alone = Bridge::new(store(1), at(0));
        assert_eq!(alone.step(at(0), &sight(&[store(1)], &[])), Some(Step::Enter));
        let mut told = Bridge::new(store(1), at(0));
        let mut unsettled = sight(&[store(1)], &[]);
        unsettled.unsettled = true;
        assert_eq!(told.step(at(0), &unsettled), None);
        assert_eq!(told.step(at(2), &unsettled), None);
        assert_eq!(told.step(at(3), &unsettled), Some(Step::Enter), "they may all be gone");
    }

    #[test]
    fn a_bridge_that_died_is_replaced_at_once() {
        let stores = by_rank();
        let fourth = stores[3];
        let mut bridge = Bridge::new(fourth, at(0));
        assert_eq!(bridge.step(at(100), &sight(&stores, &[])), None);
        assert_eq!(bridge.step(at(101), &sight(&stores[1..], &[])), Some(Step::Enter));
        assert!(bridge.is_inside());
    }

    #[test]
    fn a_bridge_leaves_only_once_the_others_are_in_and_some_time_has_passed() {
        let stores = by_rank();
        let fourth = stores[3];
        let mut bridge = Bridge::new(fourth, at(0));
        assert_eq!(bridge.step(at(100), &sight(&stores[1..], &[])), Some(Step::Enter));
        let back_but_out = sight(&stores, &stores[1..4]);
        assert_eq!(bridge.step(at(101), &back_but_out), None);
        assert_eq!(bridge.step(at(500), &back_but_out), None, "the first is not in");
        let all_in = sight(&stores, &stores[..4]);
        assert_eq!(bridge.step(at(501), &all_in), Some(Step::Leave));
        assert_eq!(bridge.step(at(502), &all_in), None);
    }

    #[test]
    fn a_rule_that_flaps_makes_few_entries() {
        let stores = by_rank();
        let mut bridge = Bridge::new(stores[3], at(0));
        let mut entries = 0;
        for second in 100..3700 {
            // The first member is away ten seconds in every forty.
            let away = second % 40 < 10;
            let live = if away { &stores[1..] } else { &stores[..] };
            let inside = if away { &stores[1..4] } else { &stores[..4] };
            let step = bridge.step(at(second), &sight(live, inside));
            entries += u32::from(step == Some(Step::Enter));
        }
        assert!((1..5).contains(&entries), "{entries} entries in an hour");
    }

    #[test]
    fn servers_are_spread_and_stay() {
        let servers = [store(101), store(102), store(103)];
        let mut asked = std::collections::BTreeMap::<StoreId, usize>::new();
        for n in 0..90 {
            let chosen = nearest(store(n), servers).expect("some");
            *asked.entry(chosen).or_default() += 1;
            let fewer = servers.iter().copied().filter(|s| *s == chosen || *s == store(101));
            assert_eq!(
                nearest(store(n), fewer),
                Some(nearest(store(n), [chosen, store(101)]).expect("some"))
            );
        }
        assert!(asked.values().all(|n| *n > 15), "{asked:?}");
        assert_eq!(nearest(store(1), []), None);
    }
}

//! Who carries between regions: the few live members of a region whose ids hash lowest, by the
//! same rule everywhere. It decides when this node enters and leaves the pool between regions, and
//! starts nothing itself.
//!
//! A node enters as soon as it is chosen, and leaves only once it has long not been chosen and all
//! that are chosen are in: there is no moment without a bridge that a healthy rule could avoid.
//! Each entry makes a state in that pool that stays for a while, so a node that goes in and out
//! stays longer each time; and a node that sees and hears nobody at all does not enter. Where a
//! switch has failed or power comes back each member of a large region is alone for a moment: if
//! each entered, their states would fill the pool as soon as they hear each other.

use std::collections::BTreeSet;
use std::time::Duration;

use flocker_base::{BootTime, StoreId};

/// How many bridges a region has, if it has so many live members.
pub(super) const BRIDGES: usize = 3;

/// How long a node that has just come into company waits for the members of its region that it has
/// been told of.
const SETTLING: Duration = Duration::from_secs(3);

/// While a node's company is this young, what it sees of its region is incomplete, and it enters
/// only after it has been chosen for [`YOUNG_HOLD`].
const YOUNG: Duration = Duration::from_secs(10);
const YOUNG_HOLD: Duration = Duration::from_secs(1);

/// How long another must have been chosen: those before it may only seem dead to a node that is
/// itself being cut off, which it notices within this time. There are other bridges meanwhile.
const REPLACE_HOLD: Duration = Duration::from_secs(3);

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
#[derive(Clone, Debug)]
pub(super) struct RegionSight<'a> {
    /// Its live members, this node among them.
    pub(super) live: &'a BTreeSet<StoreId>,
    /// Those of them that are seen alive in the pool between regions, if this node is in it.
    pub(super) inside: BTreeSet<StoreId>,
    /// Whether there may be members that are not seen yet.
    pub(super) unsettled: bool,
    /// Whether there is nobody else, as far as this node sees its region and hears others.
    pub(super) cut_off: bool,
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
    /// Until when it was alone.
    alone_until: BootTime,
    inside: bool,
    /// The members that were seen alive last, and who is chosen among them and this node.
    rule: (BTreeSet<StoreId>, BTreeSet<StoreId>),
    /// Since when it is chosen, or not chosen.
    chosen: Option<(bool, BootTime)>,
    entries: u32,
    entered: BootTime,
}

impl Bridge {
    pub(super) fn new(me: StoreId, now: BootTime) -> Self {
        Self {
            me,
            alone_until: now,
            inside: false,
            rule: (BTreeSet::new(), [me].into()),
            chosen: None,
            entries: 0,
            entered: now,
        }
    }

    pub(super) const fn is_inside(&self) -> bool {
        self.inside
    }

    /// Whether it matters to this node that members may be missing.
    pub(super) fn is_settling(&self, now: BootTime) -> bool {
        !self.inside && now.saturating_since(self.alone_until) < SETTLING
    }

    /// The pool ended by itself.
    pub(super) fn fell_out(&mut self) {
        self.inside = false;
    }

    pub(super) fn step(&mut self, now: BootTime, sight: &RegionSight<'_>) -> Option<Step> {
        if self.rule.0 != *sight.live {
            let chosen = chosen(sight.live.iter().copied().chain([self.me]));
            self.rule = (sight.live.clone(), chosen);
        }
        let is_chosen = self.rule.1.contains(&self.me);
        let since = match self.chosen {
            Some((before, since)) if before == is_chosen => since,
            _ => now,
        };
        self.chosen = Some((is_chosen, since));
        let held = now.saturating_since(since);
        if sight.cut_off {
            self.alone_until = now;
        }
        let age = now.saturating_since(self.alone_until);
        if !self.inside {
            if sight.cut_off {
                return None;
            }
            let alone = sight.live.len() <= 1;
            let wait = match (alone, age < YOUNG) {
                (true, _) => Duration::ZERO,
                (false, true) => YOUNG_HOLD,
                (false, false) => REPLACE_HOLD,
            };
            let settled = !sight.unsettled || age >= SETTLING;
            if is_chosen && settled && held >= wait {
                self.enter(now);
                return Some(Step::Enter);
            }
            return None;
        }
        let all_in = self.rule.1.iter().all(|store| sight.inside.contains(store));
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

    /// What a node sees, with its live members kept beside it.
    struct Seen(BTreeSet<StoreId>, BTreeSet<StoreId>);

    impl Seen {
        fn now(&self) -> RegionSight<'_> {
            let Self(live, inside) = self;
            RegionSight { live, inside: inside.clone(), unsettled: false, cut_off: false }
        }
    }

    fn sight(live: &[StoreId], inside: &[StoreId]) -> Seen {
        let set = |stores: &[StoreId]| stores.iter().copied().collect();
        Seen(set(live), set(inside))
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
        assert_eq!(alone.step(at(0), &sight(&[store(1)], &[]).now()), Some(Step::Enter));
        let mut told = Bridge::new(store(1), at(0));
        let alone = sight(&[store(1)], &[]);
        let unsettled = RegionSight { unsettled: true, ..alone.now() };
        assert_eq!(told.step(at(0), &unsettled), None);
        assert_eq!(told.step(at(2), &unsettled), None);
        assert_eq!(told.step(at(3), &unsettled), Some(Step::Enter), "they may all be gone");
    }

    #[test]
    fn a_node_cut_off_from_all_does_not_enter_and_settles_anew_once_it_hears_others() {
        let stores = by_rank();
        let mut bridge = Bridge::new(stores[3], at(0));
        let alone = sight(&stores[3..4], &[]);
        let alone = RegionSight { cut_off: true, ..alone.now() };
        for second in 0..100 {
            assert_eq!(bridge.step(at(second), &alone), None);
        }
        assert!(bridge.is_settling(at(100)));
        let some = sight(&stores[3..6], &[]);
        let some = RegionSight { unsettled: true, ..some.now() };
        assert_eq!(bridge.step(at(100), &some), None, "it is told of more");
        assert_eq!(bridge.step(at(101), &sight(&stores, &[]).now()), None, "they are better");
        assert_eq!(bridge.step(at(102), &sight(&stores[1..], &[]).now()), None, "for a moment");
        assert_eq!(bridge.step(at(103), &sight(&stores[1..], &[]).now()), Some(Step::Enter));
        // Once inside it stays: others have no other way to its region.
        assert_eq!(bridge.step(at(200), &alone), None);
        assert!(bridge.is_inside());
    }

    #[test]
    fn a_bridge_that_died_is_replaced_soon_but_not_by_one_that_loses_all() {
        let stores = by_rank();
        let fourth = stores[3];
        let mut bridge = Bridge::new(fourth, at(0));
        assert_eq!(bridge.step(at(100), &sight(&stores, &[]).now()), None);
        for second in [101, 102, 103] {
            assert_eq!(bridge.step(at(second), &sight(&stores[1..], &[]).now()), None);
        }
        assert_eq!(bridge.step(at(104), &sight(&stores[1..], &[]).now()), Some(Step::Enter));
        assert!(bridge.is_inside());
        let mut losing = Bridge::new(fourth, at(0));
        assert_eq!(losing.step(at(100), &sight(&stores, &[]).now()), None);
        assert_eq!(losing.step(at(101), &sight(&stores[2..], &[]).now()), None);
        assert_eq!(losing.step(at(103), &sight(&stores[3..5], &[]).now()), None);
        let cut = sight(&[fourth], &[]);
        let cut = RegionSight { cut_off: true, ..cut.now() };
        assert_eq!(losing.step(at(104), &cut), None);
    }

    #[test]
    fn a_bridge_leaves_only_once_the_others_are_in_and_some_time_has_passed() {
        let stores = by_rank();
        let fourth = stores[3];
        let mut bridge = Bridge::new(fourth, at(0));
        assert_eq!(bridge.step(at(90), &sight(&stores[1..], &[]).now()), None);
        assert_eq!(bridge.step(at(100), &sight(&stores[1..], &[]).now()), Some(Step::Enter));
        let back_but_out = sight(&stores, &stores[1..4]);
        assert_eq!(bridge.step(at(101), &back_but_out.now()), None);
        assert_eq!(bridge.step(at(500), &back_but_out.now()), None, "the first is not in");
        let all_in = sight(&stores, &stores[..4]);
        assert_eq!(bridge.step(at(501), &all_in.now()), Some(Step::Leave));
        assert_eq!(bridge.step(at(502), &all_in.now()), None);
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
            let step = bridge.step(at(second), &sight(live, inside).now());
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

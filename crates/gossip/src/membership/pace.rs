//! How often a pool's rounds of gossip go out: often while there is news, rarely while there is
//! none. The core: it reads no clock and sends nothing. It decides nothing about who lives.
//!
//! A round's first message carries a digest of every state, so what a round costs grows with the
//! pool. While nothing changes a round only repairs what was lost and carries heartbeats, on which
//! nothing depends within minutes: deaths are the watch's affair. So its frequency falls as the
//! pool grows, and what an idle node sends does not.
//!
//! Chitchat takes a node for alive until its heartbeats have long been missed, and would spend a
//! round's three messages on those that have left or died. Each of these goes to a living peer.

use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use flocker_base::{BootTime, StoreId};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::guard::StateId;
use super::roll::Sighting;
use super::{KEY_LOAD, KEY_ROOT, MembershipConfig, Suspicions};

/// How long every round goes out after something has changed: enough for news to reach all of a
/// large pool, with three peers a round.
const HOT: Duration = Duration::from_secs(3);

/// How long, and how often, rounds go out after a root has changed: pushes carry the change
/// itself, so the root is in no hurry.
const WARM: Duration = Duration::from_secs(4);
const WARM_EVERY: Duration = Duration::from_secs(1);

/// How long a new state may keep rounds frequent because nobody has vouched for it yet.
const SETTLING: Duration = Duration::from_secs(30);

/// What a round takes from first to last message, in lengths of the first, in fifths: the answer
/// carries a digest too, and both some news.
const ROUND_FIFTHS: u32 = 13;

/// The shortest time between two rounds at rest.
const SHORTEST_REST: Duration = Duration::from_secs(10);

/// The most peers that are waited for with an exchange that was asked for.
const MAX_WANTED: usize = 256;

/// The pace of one pool.
#[derive(Debug)]
pub(super) struct Pace {
    rest_rate: u32,
    longest_rest: Duration,
    random: StdRng,
    seen: HashMap<StateId, Seen>,
    hot_until: BootTime,
    warm_until: BootTime,
    /// When the next round at rest may begin.
    next: BootTime,
    /// Peers with whom an exchange was asked for.
    wanted: BTreeSet<StoreId>,
    /// Peers that seem alive.
    living: Vec<StoreId>,
    /// Peers that have left or are held for dead.
    gone: BTreeSet<StoreId>,
}

/// What a state said when it was last looked at.
#[derive(Clone, Copy, Debug)]
struct Seen {
    version: u64,
    since: BootTime,
    said: u64,
    root: u64,
}

impl Pace {
    /// The pace of a pool that is entered now. The seed decides its jitter.
    pub(super) fn new(now: BootTime, config: &MembershipConfig, seed: u64) -> Self {
        Self {
            rest_rate: config.rest_rate,
            longest_rest: config.longest_rest,
            random: StdRng::seed_from_u64(seed),
            seen: HashMap::new(),
            hot_until: now + HOT,
            warm_until: now,
            next: now,
            wanted: BTreeSet::new(),
            living: Vec::new(),
            gone: BTreeSet::new(),
        }
    }

    /// There is news: rounds go out as they come for a while.
    pub(super) fn heat(&mut self, now: BootTime) {
        self.hot_until = self.hot_until.max(now + HOT);
    }

    /// An exchange with this peer is asked for.
    pub(super) fn want(&mut self, peer: StoreId) {
        if self.wanted.len() < MAX_WANTED {
            self.wanted.insert(peer);
        }
    }

    /// Takes a look at all states of the pool. `vouched` are those that someone says are alive,
    /// `suspected` those that are held for dead.
    pub(super) fn note(
        &mut self,
        now: BootTime,
        states: &[Sighting<'_>],
        vouched: &Suspicions,
        suspected: &Suspicions,
    ) {
        let mut seen = HashMap::with_capacity(states.len());
        for state in states {
            let id = (state.store, state.generation);
            let before = self.seen.get(&id).copied();
            let after = match before {
                Some(same) if same.version == state.version => same,
                _ => Seen::of(state, before.map_or(now, |before| before.since)),
            };
            if before.is_none_or(|before| before.said != after.said) {
                self.heat(now);
            } else if before.is_some_and(|before| before.root != after.root) {
                self.warm_until = now + WARM;
                self.next = self.next.min(now + WARM_EVERY);
            }
            let run = (state.store, state.incarnation());
            let unsettled = !state.live && !state.is_leaving();
            if unsettled
                && !vouched.contains(&run)
                && !suspected.contains(&run)
                && now.saturating_since(after.since) < SETTLING
            {
                self.hot_until = self.hot_until.max(now + WARM_EVERY);
            }
            seen.insert(id, after);
        }
        self.seen = seen;
    }

    /// Whether an exchange with this peer may begin now, with a first message of so many bytes.
    fn begins(&mut self, now: BootTime, peer: StoreId, bytes: usize) -> bool {
        if self.wanted.remove(&peer) || now < self.hot_until {
            return true;
        }
        if now < self.next {
            return false;
        }
        let rest = if now < self.warm_until { WARM_EVERY } else { self.rest(bytes) };
        self.next = now + rest.mul_f64(self.random.random_range(0.75..1.25));
        true
    }

    /// Takes which of the pool's states are alive, all told. Who is neither that nor gone may be
    /// new, and has yet to be heard.
    pub(super) fn keep_peers(
        &mut self,
        me: StoreId,
        states: &[Sighting<'_>],
        suspected: &Suspicions,
    ) {
        let living = states.iter().filter(|run| run.live && !run.is_leaving());
        let living: BTreeSet<_> = living.map(|run| run.store).filter(|s| *s != me).collect();
        let is_over = |run: &&Sighting<'_>| {
            run.is_leaving() || suspected.contains(&(run.store, run.incarnation()))
        };
        let over = states.iter().filter(is_over).map(|run| run.store);
        self.gone = over.filter(|store| !living.contains(store)).collect();
        self.living = living.into_iter().collect();
    }

    /// Some peers that seem alive, at random.
    pub(super) fn some_living(&mut self, most: usize) -> Vec<StoreId> {
        self.living.sample(&mut self.random, most).copied().collect()
    }

    /// With whom an exchange begins now that chitchat would begin with this peer, by a first
    /// message of so many bytes.
    pub(super) fn aim(&mut self, now: BootTime, peer: StoreId, bytes: usize) -> Option<StoreId> {
        let is_meant = self.wanted.contains(&peer) || !self.gone.contains(&peer);
        if !self.begins(now, peer, bytes) {
            return None;
        }
        let other = if is_meant { None } else { self.living.choose(&mut self.random) };
        Some(other.copied().unwrap_or(peer))
    }

    /// The mean time between two rounds that this node begins at rest.
    fn rest(&self, bytes: usize) -> Duration {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let round = bytes.saturating_mul(ROUND_FIFTHS) / 5;
        let rest = Duration::from_secs(1).saturating_mul(round) / self.rest_rate.max(1);
        rest.clamp(SHORTEST_REST, self.longest_rest.max(SHORTEST_REST))
    }
}

impl Seen {
    fn of(state: &Sighting<'_>, since: BootTime) -> Self {
        let (mut said, mut root) = (DefaultHasher::new(), DefaultHasher::new());
        for (key, value) in &state.values {
            match *key {
                KEY_LOAD => {}
                KEY_ROOT => value.hash(&mut root),
                key => (key, value).hash(&mut said),
            }
        }
        Self { version: state.version, since, said: said.finish(), root: root.finish() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::KEY_FACTS;

    const NONE: Suspicions = Suspicions::new();

    fn at(seconds: u64) -> BootTime {
        BootTime::ZERO + Duration::from_secs(100_000 + seconds)
    }

    fn store(byte: u8) -> StoreId {
        StoreId::from_bytes([byte; 16])
    }

    fn state<'a>(byte: u8, version: u64, values: &[(&'a str, &'a str)]) -> Sighting<'a> {
        let values = values.to_vec();
        Sighting { store: store(byte), generation: 1 << 16, live: true, version, values }
    }

    fn pace() -> Pace {
        Pace::new(at(0), &MembershipConfig::default(), 1)
    }

    /// How many of the rounds, one each half second, with three peers, begin in these seconds.
    fn begun(pace: &mut Pace, seconds: std::ops::Range<u64>, bytes: usize) -> usize {
        let ticks = seconds.flat_map(|s| [at(s), at(s) + Duration::from_millis(500)]);
        let tries = ticks.flat_map(|now| [1, 2, 3].map(|peer| (now, store(peer))));
        tries.filter(|(now, peer)| pace.begins(*now, *peer, bytes)).count()
    }

    #[test]
    fn what_an_idle_node_sends_does_not_grow_with_the_pool() {
        for nodes in [20_usize, 50, 80] {
            let bytes = 54 * nodes + 20;
            let mut pace = pace();
            begun(&mut pace, 0..100, bytes);
            let rounds = begun(&mut pace, 100..10_100, bytes);
            // Each is answered by as much.
            let rate = 2 * rounds * bytes / 10_000;
            assert!((50..=90).contains(&rate), "{nodes}: {rate} B/s");
        }
        let mut pace = pace();
        assert!(begun(&mut pace, 100..10_100, 900 * 54) >= 60, "never rarer than every 2 min");
    }

    #[test]
    fn news_make_rounds_frequent_and_their_end_rare_again() {
        let mut pace = pace();
        pace.note(at(0), &[state(1, 1, &[(KEY_FACTS, "a")])], &NONE, &NONE);
        assert_eq!(begun(&mut pace, 0..3, 1_000), 18);
        assert!(begun(&mut pace, 3..63, 1_000) <= 4);
        pace.note(at(63), &[state(1, 2, &[(KEY_FACTS, "b")])], &NONE, &NONE);
        assert_eq!(begun(&mut pace, 63..66, 1_000), 18);
        pace.note(at(66), &[state(1, 2, &[(KEY_FACTS, "b")])], &NONE, &NONE);
        assert!(begun(&mut pace, 66..126, 1_000) <= 4, "nothing new");
        let two = [state(1, 2, &[(KEY_FACTS, "b")]), state(2, 1, &[(KEY_FACTS, "c")])];
        pace.note(at(126), &two, &NONE, &NONE);
        assert_eq!(begun(&mut pace, 126..129, 1_000), 18, "a state more");
        pace.note(at(129), &two[..1], &NONE, &NONE);
        assert!(begun(&mut pace, 129..189, 1_000) <= 4, "one less is no news");
    }

    #[test]
    fn a_root_is_told_soon_and_load_when_it_suits() {
        let mut pace = pace();
        let facts = (KEY_FACTS, "a");
        pace.note(at(0), &[state(1, 1, &[facts, (KEY_ROOT, "r"), (KEY_LOAD, "1")])], &NONE, &NONE);
        begun(&mut pace, 0..20, 10_000);
        pace.note(at(20), &[state(1, 2, &[facts, (KEY_ROOT, "r"), (KEY_LOAD, "2")])], &NONE, &NONE);
        assert!(begun(&mut pace, 20..60, 10_000) <= 1);
        pace.note(at(60), &[state(1, 3, &[facts, (KEY_ROOT, "s"), (KEY_LOAD, "2")])], &NONE, &NONE);
        assert!((2..=6).contains(&begun(&mut pace, 60..70, 10_000)));
    }

    #[test]
    fn rounds_go_to_the_living_and_to_the_gone_only_if_asked_for() {
        let mut pace = pace();
        let left = state(1, 2, &[(crate::membership::KEY_LEFT, "stopped")]);
        let (dead, new) = (Sighting { live: false, ..state(2, 1, &[]) }, state(3, 1, &[]));
        let new = Sighting { live: false, ..new };
        let suspected = [(dead.store, dead.incarnation())].into();
        let alone = [left.clone(), dead.clone(), new.clone()];
        pace.keep_peers(store(9), &alone, &suspected);
        assert_eq!(pace.aim(at(0), store(1), 100), Some(store(1)), "there is nobody else");
        let all = [left, dead, new, state(4, 1, &[]), state(5, 1, &[]), state(9, 1, &[])];
        pace.keep_peers(store(9), &all, &suspected);
        let mut aimed = BTreeSet::new();
        for gone in [1, 2] {
            aimed.extend((0..50).filter_map(|_| pace.aim(at(0), store(gone), 100)));
        }
        assert_eq!(aimed, [store(4), store(5)].into(), "both, and never this node itself");
        for there in [3, 4, 6] {
            assert_eq!(pace.aim(at(0), store(there), 100), Some(store(there)));
        }
        pace.want(store(2));
        assert_eq!(pace.aim(at(60), store(2), 100), Some(store(2)));
        assert_eq!(pace.some_living(8).into_iter().collect::<BTreeSet<_>>(), aimed);
        assert_eq!(pace.some_living(1).len(), 1);
    }

    #[test]
    fn who_is_asked_for_is_met_and_who_is_not_vouched_for_keeps_rounds_frequent_for_a_while() {
        let mut pace = pace();
        begun(&mut pace, 0..20, 10_000);
        pace.want(store(9));
        assert!(pace.begins(at(20), store(9), 10_000));
        assert!(!pace.begins(at(20), store(9), 10_000), "once");
        let silent = Sighting { live: false, ..state(4, 1, &[]) };
        let mut rounds = 0;
        for second in 20..80 {
            pace.note(at(second), std::slice::from_ref(&silent), &NONE, &NONE);
            rounds += begun(&mut pace, second..second + 1, 10_000);
        }
        assert!((180..=200).contains(&rounds), "{rounds}");
        let run = (silent.store, silent.incarnation());
        for (vouched, suspected) in [([run].into(), NONE), (NONE, [run].into())] {
            let mut pace = self::pace();
            let mut rounds = 0;
            for second in 0..60 {
                pace.note(at(second), std::slice::from_ref(&silent), &vouched, &suspected);
                rounds += begun(&mut pace, second..second + 1, 10_000);
            }
            assert!(rounds <= 24, "{rounds}");
        }
    }
}

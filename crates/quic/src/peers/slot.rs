//! What this node knows about its connections to one peer, and what is to be done: the decisions
//! alone. It reads no clock, dials nothing and holds no connection, only their numbers.

use std::time::Duration;

use flocker_base::BootTime;

/// A connection dialled by either side within this time of another is taken for a dial at the same
/// time; later, for that of a peer that has lost the other connection.
const SIMULTANEOUS: Duration = Duration::from_secs(5);
/// A connection that ends sooner than this counts as a failed dial.
const STABLE: Duration = Duration::from_secs(1);
/// Most superseded connections of one peer; past it the oldest is closed at once.
const MOST_RETIRED: usize = 3;
/// The pause after the first failed dial; each further one doubles it.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A connection's number: see [`crate::Connection::id`].
pub(super) type LinkId = usize;

/// The connections to one peer.
#[derive(Debug)]
pub(super) struct Slot {
    /// Whether this node's dials win over the peer's, both at the same time. Exactly one of the
    /// two sides has this.
    prefer_ours: bool,
    current: Option<Link>,
    /// Superseded, oldest first, still in use by the streams on them.
    retired: Vec<Link>,
    dialling: bool,
    failures: u32,
    rest_until: BootTime,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    id: LinkId,
    ours: bool,
    since: BootTime,
}

/// What someone who wants a connection shall do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Use this one.
    Use(LinkId),
    /// Dial, and report what came of it.
    Dial,
    /// Wait: a dial is under way.
    Wait,
    /// Wait until then: the last dial failed.
    Rest(BootTime),
}

/// What became superfluous.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Superfluous {
    /// Close it once nothing uses it.
    Retire(LinkId),
    /// Close it now.
    Close(LinkId),
}

impl Slot {
    pub(super) const fn new(prefer_ours: bool) -> Self {
        Self {
            prefer_ours,
            current: None,
            retired: Vec::new(),
            dialling: false,
            failures: 0,
            rest_until: BootTime::ZERO,
        }
    }

    pub(super) fn current(&self) -> Option<LinkId> {
        self.current.map(|link| link.id)
    }

    /// How many dials in a row have failed.
    pub(super) const fn failures(&self) -> u32 {
        self.failures
    }

    pub(super) fn wanted(&mut self, now: BootTime) -> Wanted {
        match self.current {
            Some(link) => Wanted::Use(link.id),
            None if self.dialling => Wanted::Wait,
            None if now < self.rest_until => Wanted::Rest(self.rest_until),
            None => {
                self.dialling = true;
                Wanted::Dial
            }
        }
    }

    /// The dial failed. `jitter` spreads those who failed together: a part of 256.
    pub(super) fn dial_failed(&mut self, now: BootTime, jitter: u8) {
        self.dialling = false;
        self.count_failure(now, jitter);
    }

    /// A connection came about, dialled by this node (`ours`) or by the peer.
    pub(super) fn arrived(&mut self, now: BootTime, id: LinkId, ours: bool) -> Vec<Superfluous> {
        if ours {
            self.dialling = false;
        }
        if self.holds(id) {
            return Vec::new();
        }
        let new = Link { id, ours, since: now };
        let superseded = match self.current {
            None => {
                self.current = Some(new);
                return Vec::new();
            }
            Some(old) if self.keeps(old, new) => new,
            Some(old) => {
                self.current = Some(new);
                old
            }
        };
        self.retired.push(superseded);
        let mut superfluous = vec![Superfluous::Retire(superseded.id)];
        if self.retired.len() > MOST_RETIRED {
            superfluous.push(Superfluous::Close(self.retired.remove(0).id));
        }
        superfluous
    }

    /// A connection ended. A superseded one that still lives takes its place.
    pub(super) fn closed(&mut self, now: BootTime, id: LinkId, jitter: u8) {
        self.retired.retain(|link| link.id != id);
        if let Some(link) = self.current
            && link.id == id
        {
            self.current = self.retired.pop();
            if now.saturating_since(link.since) >= STABLE {
                self.failures = 0;
            } else if self.current.is_none() {
                self.count_failure(now, jitter);
            }
        }
    }

    /// Whether this superseded connection, which nothing uses any more, shall be closed.
    pub(super) fn discard(&mut self, id: LinkId) -> bool {
        let before = self.retired.len();
        self.retired.retain(|link| link.id != id);
        self.retired.len() < before
    }

    /// Whether this connection is superseded and not closed yet.
    pub(super) fn is_retired(&self, id: LinkId) -> bool {
        self.retired.iter().any(|link| link.id == id)
    }

    fn holds(&self, id: LinkId) -> bool {
        self.current() == Some(id) || self.is_retired(id)
    }

    /// Whether the one in use stays in use. Both sides must come to the same answer.
    fn keeps(&self, old: Link, new: Link) -> bool {
        old.ours != new.ours
            && old.ours == self.prefer_ours
            && new.since.saturating_since(old.since) < SIMULTANEOUS
    }

    fn count_failure(&mut self, now: BootTime, jitter: u8) {
        self.failures = self.failures.saturating_add(1);
        let pause = FIRST_PAUSE.saturating_mul(1 << (self.failures - 1).min(16)).min(LONGEST_PAUSE);
        self.rest_until = now + pause * (192 + u32::from(jitter) / 4) / 256;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(millis: u64) -> BootTime {
        BootTime::from_millis(millis)
    }

    #[test]
    fn one_dial_serves_all_and_its_failure_is_followed_by_a_growing_rest() {
        let mut slot = Slot::new(true);
        assert_eq!(slot.wanted(at(0)), Wanted::Dial);
        assert_eq!(slot.wanted(at(1)), Wanted::Wait);
        slot.dial_failed(at(10), 255);
        let Wanted::Rest(until) = slot.wanted(at(10)) else { panic!("no rest") };
        assert!(until <= at(110) && until >= at(85), "{until:?}");
        assert_eq!(slot.wanted(until), Wanted::Dial);
        for _ in 0..40 {
            slot.dial_failed(at(1000), 255);
        }
        let Wanted::Rest(until) = slot.wanted(at(1000)) else { panic!("no rest") };
        assert!(until <= at(2000) && until > at(1900), "at most the longest pause: {until:?}");
    }

    #[test]
    fn an_inbound_connection_ends_the_rest_and_a_stable_one_the_count() {
        let mut slot = Slot::new(true);
        assert_eq!(slot.wanted(at(0)), Wanted::Dial);
        slot.dial_failed(at(0), 0);
        assert_eq!(slot.arrived(at(1), 7, false), Vec::new());
        assert_eq!(slot.wanted(at(2)), Wanted::Use(7));
        slot.closed(at(500), 7, 0);
        assert_eq!(slot.failures(), 2, "it did not last");
        assert_eq!(slot.arrived(at(600), 8, false), Vec::new());
        slot.closed(at(5000), 8, 0);
        assert_eq!(slot.failures(), 0);
        assert_eq!(slot.wanted(at(5000)), Wanted::Dial);
    }

    #[test]
    fn a_peer_that_dials_later_has_lost_the_old_connection() {
        let mut slot = Slot::new(true);
        slot.arrived(at(0), 1, true);
        assert_eq!(slot.arrived(at(6000), 2, false), vec![Superfluous::Retire(1)]);
        assert_eq!(slot.current(), Some(2));
        assert!(slot.discard(1));
        assert!(!slot.discard(1), "once");
    }

    #[test]
    fn a_superseded_connection_takes_over_when_the_one_in_use_dies() {
        let mut slot = Slot::new(true);
        slot.arrived(at(0), 1, true);
        assert_eq!(slot.arrived(at(10), 2, false), vec![Superfluous::Retire(2)]);
        slot.closed(at(2000), 1, 0);
        assert_eq!(slot.current(), Some(2));
        assert!(!slot.discard(2), "it is in use now");
    }

    proptest! {
        /// Both sides dial at the same time and see the two connections in any order.
        #[test]
        fn both_sides_keep_the_same_of_two(
            orders in any::<[bool; 2]>(),
            gaps in prop::array::uniform2(0_u64..4999),
        ) {
            let kept: Vec<_> = [true, false]
                .into_iter()
                .zip(orders)
                .zip(gaps)
                .map(|((prefer_ours, mine_first), gap)| {
                    let mut slot = Slot::new(prefer_ours);
                    // Connection 1 is the preferred side's dial, 2 the other's.
                    let (mine, theirs) = if prefer_ours { (1, 2) } else { (2, 1) };
                    let sequence = if mine_first {
                        [(mine, true), (theirs, false)]
                    } else {
                        [(theirs, false), (mine, true)]
                    };
                    slot.arrived(at(0), sequence[0].0, sequence[0].1);
                    slot.arrived(at(gap), sequence[1].0, sequence[1].1);
                    slot.current()
                })
                .collect();
            prop_assert_eq!(kept, vec![Some(1), Some(1)]);
        }

        /// Whatever happens, no connection is both in use and superseded, and few are kept.
        #[test]
        fn a_slot_keeps_few_and_forgets_none_twice(
            events in prop::collection::vec((0_u8..4, 0_usize..6, any::<bool>(), 0_u64..3000), 0..60),
        ) {
            let mut slot = Slot::new(true);
            let mut now = BootTime::ZERO;
            for (event, id, ours, pause) in events {
                now = now + Duration::from_millis(pause);
                match event {
                    0 => { slot.arrived(now, id, ours); }
                    1 => slot.closed(now, id, 0),
                    2 => { slot.discard(id); }
                    _ => { slot.wanted(now); }
                }
                prop_assert!(slot.retired.len() <= MOST_RETIRED);
                if let Some(current) = slot.current() {
                    prop_assert!(!slot.is_retired(current));
                }
                let ids: std::collections::BTreeSet<_> = slot.retired.iter().map(|l| l.id).collect();
                prop_assert_eq!(ids.len(), slot.retired.len());
            }
        }
    }
}

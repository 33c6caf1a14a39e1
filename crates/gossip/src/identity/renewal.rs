//! When this node's certificate is to be made anew, and how that goes: the decisions alone. It
//! reads no clock, makes no key and touches no file.

use std::time::Duration;

use flocker_base::{BootTime, WallTime};

use super::{BACKDATED, IdentityError, NODE_VALIDITY, parse};

/// A certificate is made anew once a new one would last so much longer. With a year's validity
/// that is after four months, so that eight months are always left: for a node whose clock is
/// behind or ahead by that much, and for a fault that keeps it from renewing.
pub const RENEWAL_GAIN: Duration = Duration::from_secs(121 * 24 * 3600);

/// The longest time between two looks at the certificate.
pub const LOOK_EVERY: Duration = Duration::from_secs(6 * 3600);

/// The pause after the first attempt that failed; each further one doubles it.
const FIRST_RETRY: Duration = Duration::from_secs(60);

/// What is longer than a certificate of ours lasts was made by an older binary.
const ROUNDING: Duration = Duration::from_secs(24 * 3600);

/// From when to when a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// It is refused by clocks before this.
    pub from: WallTime,
    /// It is refused by clocks after this.
    pub until: WallTime,
}

impl Validity {
    /// The dates of this certificate (DER).
    ///
    /// # Errors
    /// [`IdentityError::Inconsistent`] if it can't be read.
    pub fn of(cert_der: &[u8]) -> Result<Self, IdentityError> {
        let validity = parse(cert_der)?.validity().clone();
        let at = |secs: i64| WallTime::from_millis(u64::try_from(secs).unwrap_or(0) * 1000);
        Ok(Self {
            from: at(validity.not_before.timestamp()),
            until: at(validity.not_after.timestamp()),
        })
    }

    /// What is left of it.
    #[must_use]
    pub const fn left(&self, now: WallTime) -> Duration {
        self.until.saturating_since(now)
    }

    /// When one of our own was made: they count as valid from long before.
    pub(super) fn made(&self) -> WallTime {
        self.from + BACKDATED
    }
}

/// Whether a certificate of ours with these dates is to be made anew. One that would not last
/// longer is never made: a clock that is far behind changes nothing, and an authority near its own
/// end is not asked again and again.
#[must_use]
pub fn is_due(own: &Validity, authority: &Validity, now: WallTime) -> bool {
    let issued = now.max(own.made());
    let until = (issued + NODE_VALIDITY).min(authority.until);
    let gain = until.saturating_since(own.until);
    let of_an_older_binary = own.until.saturating_since(own.made()) > NODE_VALIDITY + ROUNDING;
    gain >= RENEWAL_GAIN || of_an_older_binary && until > now
}

/// What the shell tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A deadline has passed.
    Due,
    /// What was asked for is done, or there was nothing to do.
    Settled,
    /// It was attempted and failed.
    Failed,
}

/// What the shell is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Look at the certificate and renew it if it is due; then tell how that went.
    Look,
}

/// Looks every [`LOOK_EVERY`], and after failures sooner.
#[derive(Clone, Copy, Debug)]
pub struct Renewal {
    every: Duration,
    next: BootTime,
    failures: u32,
    looking: bool,
}

impl Renewal {
    /// Looks first after one interval: a start has just looked.
    #[must_use]
    pub fn new(now: BootTime, every: Duration) -> Self {
        Self { every, next: now + every, failures: 0, looking: false }
    }

    /// When to come back with [`Event::Due`].
    #[must_use]
    pub const fn next_deadline(&self) -> BootTime {
        self.next
    }

    /// Takes an event in.
    pub fn step(&mut self, now: BootTime, event: &Event) -> Vec<Command> {
        match event {
            Event::Due if self.looking || now < self.next => Vec::new(),
            Event::Due => {
                self.looking = true;
                vec![Command::Look]
            }
            Event::Settled => {
                *self = Self::new(now, self.every);
                Vec::new()
            }
            Event::Failed => {
                self.looking = false;
                let pause = FIRST_RETRY.saturating_mul(1 << self.failures.min(16)).min(self.every);
                self.failures = self.failures.saturating_add(1);
                self.next = now + pause;
                Vec::new()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);
    const NOW: WallTime = WallTime::from_millis(1_800_000_000_000);

    fn made(at: WallTime, lasts: Duration) -> Validity {
        let from = WallTime::from_millis(at.as_millis() - 2 * 365 * 24 * 3_600_000);
        Validity { from, until: at + lasts }
    }

    fn authority() -> Validity {
        made(NOW, DAY * 10_000)
    }

    #[test]
    fn a_certificate_is_renewed_after_four_months_and_two_thirds_are_always_left() {
        let own = made(NOW, NODE_VALIDITY);
        for (days, due) in
            [(0, false), (1, false), (120, false), (121, true), (364, true), (900, true)]
        {
            assert_eq!(is_due(&own, &authority(), NOW + DAY * days), due, "after {days} days");
        }
        assert!(own.left(NOW + RENEWAL_GAIN) >= DAY * 240);
        assert_eq!(own.left(NOW + DAY * 900), Duration::ZERO, "one that has ended is renewed, too");
    }

    #[test]
    fn a_clock_that_is_behind_never_shortens_a_certificate() {
        let own = made(NOW, NODE_VALIDITY);
        for days in [1, 100, 700, 5000] {
            let behind = WallTime::from_millis(NOW.as_millis() - days * 24 * 3_600_000);
            assert!(!is_due(&own, &authority(), behind), "{days} days behind");
        }
    }

    #[test]
    fn nothing_outlasts_the_authority_so_nothing_is_made_at_its_end() {
        let own = made(NOW, NODE_VALIDITY);
        let ends_with_it = Validity { until: own.until + DAY, ..authority() };
        for days in [121, 300, 400] {
            assert!(!is_due(&own, &ends_with_it, NOW + DAY * days), "after {days} days");
        }
    }

    #[test]
    fn the_ten_years_of_an_older_binary_are_exchanged_once() {
        let own = made(NOW, DAY * 3650);
        assert!(is_due(&own, &authority(), NOW + DAY * 10));
        assert!(!is_due(&made(NOW + DAY * 10, NODE_VALIDITY), &authority(), NOW + DAY * 10));
    }

    #[test]
    fn it_looks_at_each_interval_and_sooner_after_failures() {
        let at = |secs: u64| BootTime::from_millis(secs * 1000);
        let mut core = Renewal::new(at(0), LOOK_EVERY);
        assert_eq!(core.step(at(1), &Event::Due), vec![]);
        let due = core.next_deadline();
        assert_eq!(core.step(due, &Event::Due), vec![Command::Look]);
        assert_eq!(core.step(due, &Event::Due), vec![], "one at a time");
        for pause in [60, 120, 240] {
            let before = core.next_deadline();
            assert_eq!(core.step(before, &Event::Failed), vec![]);
            assert_eq!(core.next_deadline(), before + Duration::from_secs(pause));
            assert_eq!(core.step(core.next_deadline(), &Event::Due), vec![Command::Look]);
        }
        for _ in 0..40 {
            core.step(at(0), &Event::Failed);
        }
        assert_eq!(
            core.next_deadline(),
            at(0) + LOOK_EVERY,
            "never less often than without faults"
        );
        core.step(at(50), &Event::Settled);
        assert_eq!(core.next_deadline(), at(50) + LOOK_EVERY);
    }

    proptest! {
        /// Whatever the clock does, what is due lasts longer once made, and is then not due.
        #[test]
        fn renewing_settles_it(made_ms in 100_000_000_000_u64..4_000_000_000_000, now_ms: u32) {
            let now = WallTime::from_millis(u64::from(now_ms) * 1000);
            let own = made(WallTime::from_millis(made_ms), NODE_VALIDITY);
            let authority = Validity { until: WallTime::from_millis(7_000_000_000_000), ..own };
            if is_due(&own, &authority, now) {
                let issued = now.max(own.made());
                let from = WallTime::from_millis(issued.as_millis().saturating_sub(2 * 365 * 24 * 3_600_000));
                let new = Validity { from, until: (issued + NODE_VALIDITY).min(authority.until) };
                prop_assert!(new.until > own.until);
                prop_assert!(!is_due(&new, &authority, now));
            }
        }
    }
}

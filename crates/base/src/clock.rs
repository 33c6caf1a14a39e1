//! Clocks. Leases run on [`BootTime`], which counts suspend; wall time is for people, for
//! certificates and for hybrid clocks only.

use std::fmt;
use std::ops::{Add, Sub};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

/// An instant of this machine's `CLOCK_BOOTTIME`. Meaningless on any other machine and after a
/// reboot.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct BootTime(Duration);

impl BootTime {
    /// The instant of the boot.
    pub const ZERO: Self = Self(Duration::ZERO);
    /// Later than every instant that occurs: a deadline that never comes.
    pub const NEVER: Self = Self(Duration::MAX);

    /// The instant this long after the boot.
    #[must_use]
    pub const fn from_duration(since_boot: Duration) -> Self {
        Self(since_boot)
    }

    /// The instant this many milliseconds after the boot.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    /// Time since the boot.
    #[must_use]
    pub const fn since_boot(self) -> Duration {
        self.0
    }

    /// How long ago `earlier` was; zero if it lies ahead.
    #[must_use]
    pub const fn saturating_since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// The instant `span` before this one, at the earliest the boot.
    #[must_use]
    pub const fn saturating_sub(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(span))
    }
}

impl Add<Duration> for BootTime {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span))
    }
}

impl Sub for BootTime {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.saturating_since(earlier)
    }
}

/// Milliseconds since the Unix epoch by this machine's wall clock, which may be wrong and may
/// jump.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct WallTime(u64);

impl WallTime {
    /// The wall time this many milliseconds after the Unix epoch.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// How long ago `earlier` was; zero if it lies ahead.
    #[must_use]
    pub const fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for WallTime {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// Where time comes from. Cores never read it; shells pass its readings in.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Now, by the clock that leases run on.
    fn boot(&self) -> BootTime;
    /// Now, by the wall clock.
    fn wall(&self) -> WallTime;
}

/// The machine's own clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn boot(&self) -> BootTime {
        BootTime(to_duration(rustix::time::clock_gettime(rustix::time::ClockId::Boottime)))
    }

    /// Read through libc, as everything else in the process reads it, so that a test that shifts
    /// libc's clock shifts this one with it.
    #[expect(clippy::disallowed_methods, reason = "this is the clock that others are to take")]
    fn wall(&self) -> WallTime {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        WallTime(u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
    }
}

/// A clock before the Unix epoch reads as the epoch itself.
fn to_duration(time: rustix::time::Timespec) -> Duration {
    match (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec)) {
        (Ok(secs), Ok(nanos)) => Duration::new(secs, nanos),
        _ => Duration::ZERO,
    }
}

/// A clock that moves only when told to, for tests and simulations.
#[derive(Debug)]
pub struct ManualClock {
    now: Mutex<(BootTime, WallTime)>,
}

impl ManualClock {
    /// A clock that stands at these readings.
    #[must_use]
    pub const fn new(boot: BootTime, wall: WallTime) -> Self {
        Self { now: Mutex::new((boot, wall)) }
    }

    /// Moves both clocks forward.
    pub fn advance(&self, span: Duration) {
        let mut now = self.now.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *now = (now.0 + span, now.1 + span);
    }

    fn read(&self) -> (BootTime, WallTime) {
        *self.now.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Clock for ManualClock {
    fn boot(&self) -> BootTime {
        self.read().0
    }

    fn wall(&self) -> WallTime {
        self.read().1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_clock_moves_forward() {
        let first = SystemClock.boot();
        assert!(first > BootTime::ZERO);
        assert!(SystemClock.boot() >= first);
        assert!(SystemClock.wall() > WallTime::from_millis(1_600_000_000_000));
    }

    #[test]
    fn arithmetic_saturates_at_both_ends() {
        assert_eq!(BootTime::NEVER + Duration::from_secs(1), BootTime::NEVER);
        assert_eq!(BootTime::ZERO - BootTime::from_millis(5), Duration::ZERO);
        assert_eq!(BootTime::from_millis(1).saturating_sub(Duration::MAX), BootTime::ZERO);
    }

    #[test]
    fn a_manual_clock_stands_still_until_moved() {
        let clock = ManualClock::new(BootTime::from_millis(10), WallTime::from_millis(20));
        assert_eq!(clock.boot(), BootTime::from_millis(10));
        clock.advance(Duration::from_millis(5));
        assert_eq!(
            (clock.boot(), clock.wall()),
            (BootTime::from_millis(15), WallTime::from_millis(25))
        );
    }
}

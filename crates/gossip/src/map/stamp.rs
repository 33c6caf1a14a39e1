//! Hybrid logical clock (Kulkarni et al., "Logical Physical Clocks", 2014): stamps that follow
//! the wall clock, never repeat and never run backwards on one node. It must never decide who
//! owns anything exclusive.

use std::fmt;
use std::time::Duration;

use flocker_base::WallTime;
use serde::{Deserialize, Serialize};

/// How far ahead of this node's wall clock a peer's stamp may lie.
pub const MAX_AHEAD: Duration = Duration::from_secs(60);

const LOGICAL_BITS: u32 = 16;

/// When a value was written: 48 bits of milliseconds since the Unix epoch, then a 16-bit
/// counter that tells apart what happened in one millisecond.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Stamp(u64);

impl Stamp {
    /// Before every stamp that is given out.
    pub const ZERO: Self = Self(0);

    /// The first stamp of this millisecond.
    #[must_use]
    pub const fn at(wall: WallTime) -> Self {
        let most = u64::MAX >> LOGICAL_BITS;
        let millis = if wall.as_millis() > most { most } else { wall.as_millis() };
        Self(millis << LOGICAL_BITS)
    }

    /// The stamp with these 64 bits.
    #[must_use]
    pub const fn from_u64(bits: u64) -> Self {
        Self(bits)
    }

    /// Its 64 bits, ordered as the stamp is.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The wall time it was taken at, by the clock of the node that took it.
    #[must_use]
    pub const fn wall(self) -> WallTime {
        WallTime::from_millis(self.0 >> LOGICAL_BITS)
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.wall().as_millis(), self.0 & 0xffff)
    }
}

/// This node's clock. Its mark is stored with every change that raised it.
#[derive(Clone, Copy, Debug, Default)]
pub struct HybridClock {
    mark: Stamp,
}

/// The wall clock stands further behind the stamps already given out or accepted than
/// [`MAX_AHEAD`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockBehind {
    /// By how much.
    pub by: Duration,
}

impl HybridClock {
    /// A clock that goes on after this mark.
    #[must_use]
    pub const fn resume(mark: Stamp) -> Self {
        Self { mark }
    }

    /// The highest stamp given out or accepted.
    #[must_use]
    pub const fn mark(&self) -> Stamp {
        self.mark
    }

    /// The next stamp.
    ///
    /// # Errors
    /// [`ClockBehind`] if peers would refuse the stamp as too far ahead of the true time: this
    /// clock was ahead before, or is behind now.
    pub fn tick(&mut self, now: WallTime) -> Result<Stamp, ClockBehind> {
        if self.mark.wall() > now + MAX_AHEAD {
            return Err(ClockBehind { by: self.mark.wall().saturating_since(now) });
        }
        self.mark = Stamp::at(now).max(Stamp(self.mark.0 + 1));
        Ok(self.mark)
    }

    /// The highest stamp that may be accepted now. What was accepted once stays acceptable, so
    /// a clock that is set back refuses nothing that is already here.
    #[must_use]
    pub fn limit(&self, now: WallTime) -> Stamp {
        Stamp::at(now + MAX_AHEAD).max(self.mark)
    }

    /// Takes note of an accepted stamp.
    pub fn observe(&mut self, seen: Stamp) {
        self.mark = self.mark.max(seen);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: WallTime = WallTime::from_millis(1_700_000_000_000);

    #[test]
    fn stamps_rise_while_the_wall_clock_stands_or_falls() {
        let mut clock = HybridClock::default();
        let first = clock.tick(NOON).expect("ticks");
        let second = clock.tick(NOON).expect("ticks");
        let back = clock.tick(WallTime::from_millis(NOON.as_millis() - 30_000)).expect("ticks");
        assert!(first < second && second < back);
        assert_eq!(back.wall(), NOON);
    }

    #[test]
    fn the_limit_lies_a_minute_ahead_and_does_not_ratchet() {
        let mut clock = HybridClock::default();
        assert_eq!(clock.limit(NOON), Stamp::at(NOON + MAX_AHEAD));
        clock.observe(Stamp::at(NOON + MAX_AHEAD));
        assert_eq!(clock.limit(NOON), Stamp::at(NOON + MAX_AHEAD));
    }

    #[test]
    fn a_clock_set_back_a_day_gives_no_stamp_that_peers_would_refuse() {
        let mut clock = HybridClock::resume(Stamp::at(NOON + Duration::from_secs(86_400)));
        assert_eq!(clock.tick(NOON), Err(ClockBehind { by: Duration::from_secs(86_400) }));
    }
}

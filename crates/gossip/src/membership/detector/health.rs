//! How well this node itself does: a node that is late or misses answers from several peers gives
//! everyone more time, as Lifeguard has it. It judges no one else.

use std::time::Duration;

/// The worst score: times grow by as much, and one.
const WORST: u32 = 7;

/// How late a timer of this node is when that counts.
const LATE: Duration = Duration::from_millis(150);

/// Local health: 0 is good.
#[derive(Debug, Default)]
pub(super) struct Health {
    score: u32,
}

impl Health {
    /// A timer came this much too late.
    pub(super) fn was_late(&mut self, late: Duration) {
        if late >= LATE {
            self.score = (self.score + 1).min(WORST);
        }
    }

    /// An answer did not come in time.
    pub(super) fn missed(&mut self) {
        self.score = (self.score + 1).min(WORST);
    }

    /// An answer came in time.
    pub(super) fn answered(&mut self) {
        self.score = self.score.saturating_sub(1);
    }

    /// This time, stretched.
    pub(super) fn stretch(&self, time: Duration) -> Duration {
        time * (self.score + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_stretch_up_to_a_bound_and_shrink_again() {
        let mut health = Health::default();
        let second = Duration::from_secs(1);
        health.was_late(Duration::from_millis(100));
        assert_eq!(health.stretch(second), second, "that is not late");
        for _ in 0..100 {
            health.missed();
            health.was_late(second);
        }
        assert_eq!(health.stretch(second), 8 * second);
        for _ in 0..100 {
            health.answered();
        }
        assert_eq!(health.stretch(second), second);
    }
}

//! The times that leases run on, and the relations between them. Nothing here reads a clock.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The longest lease that a voter promises to anyone.
pub const LONGEST_LEASE: Duration = Duration::from_secs(600);

/// The times that leases run on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LeaseConfig {
    /// How long a heartbeat's acknowledgement is good for, before the margin for clocks.
    pub lease: Duration,
    /// Time between heartbeats.
    pub heartbeat: Duration,
    /// How much faster or slower than true time any clock may run, in percent. Holders take this
    /// much less than the lease, voters promise this much more.
    pub drift_percent: u32,
    /// How long a voter keeps a volume for the candidate that it granted an epoch to.
    pub reservation: Duration,
    /// How long before the end of a lease its service is frozen.
    pub freeze_lead: Duration,
    /// What a candidate of each further rank waits more than the one before it.
    pub rank_step: Duration,
    /// How long a released volume is kept for the successor named.
    pub successor_hold: Duration,
    /// How long a holder stays frozen before it gives its epoch up; only as long as a lease once a
    /// voter went past the epoch.
    pub frozen_limit: Duration,
    /// The longest pause between attempts.
    pub retry_limit: Duration,
    /// Most volumes that one heartbeat offers for confirmation or carries hints for.
    pub batch: usize,
}

impl Default for LeaseConfig {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(3),
            heartbeat: Duration::from_millis(500),
            drift_percent: 10,
            reservation: Duration::from_secs(1),
            freeze_lead: Duration::from_millis(500),
            rank_step: Duration::from_millis(500),
            successor_hold: Duration::from_secs(30),
            frozen_limit: Duration::from_secs(60),
            retry_limit: Duration::from_secs(8),
            batch: 4_096,
        }
    }
}

/// Why a [`LeaseConfig`] can't work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the lease times do not fit together: {0}")]
pub struct LeaseConfigError(String);

impl LeaseConfig {
    /// The times for leases of this length, in proportion to the usual ones, and none but the
    /// lease's own longer than them. Not every length works: see [`Self::validate`].
    #[must_use]
    pub fn of(lease: Duration) -> Self {
        let usual = Self::default();
        let part = |span: Duration| span.min(span.mul_f64(lease.div_duration_f64(usual.lease)));
        Self {
            lease,
            heartbeat: part(usual.heartbeat),
            reservation: part(usual.reservation),
            freeze_lead: part(usual.freeze_lead),
            rank_step: part(usual.rank_step),
            successor_hold: usual.successor_hold.max(lease),
            frozen_limit: usual.frozen_limit.max(lease),
            ..usual
        }
    }

    /// Checks the relations between the values.
    ///
    /// # Errors
    /// [`LeaseConfigError`] names the first relation that does not hold.
    pub fn validate(&self) -> Result<(), LeaseConfigError> {
        let usable = self.holder_share(self.lease).saturating_sub(self.freeze_lead);
        let rules = [
            (self.heartbeat >= Duration::from_millis(10), "heartbeat is under 10 ms"),
            (self.drift_percent >= 1, "drift_percent is 0, and no clock is perfect"),
            (self.drift_percent <= 40, "drift_percent is over 40"),
            (self.lease <= LONGEST_LEASE, "lease is over 10 minutes"),
            (
                self.heartbeat * 3 <= usable,
                "lease, less drift and freeze_lead, must hold three heartbeats",
            ),
            (self.reservation <= self.lease, "reservation is longer than lease"),
            (self.reservation >= self.heartbeat, "reservation is shorter than heartbeat"),
            (self.freeze_lead >= Duration::from_millis(10), "freeze_lead is under 10 ms"),
            (self.successor_hold >= self.lease, "successor_hold is shorter than lease"),
            (self.frozen_limit >= self.lease, "frozen_limit is shorter than lease"),
            (self.retry_limit >= self.reservation, "retry_limit is shorter than reservation"),
            (self.batch > 0, "batch is 0"),
            (self.batch <= 10_000, "batch is over 10,000, more than a frame holds"),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, broken)) => Err(LeaseConfigError((*broken).to_owned())),
            None => Ok(()),
        }
    }

    /// What a holder counts on, from when it sent the heartbeat: the lease less the drift.
    #[must_use]
    pub fn holder_share(&self, lease: Duration) -> Duration {
        lease * 100_u32.saturating_sub(self.drift_percent) / 100
    }

    /// What a voter promises, from when the heartbeat came: the lease and the drift.
    #[must_use]
    pub fn voter_share(&self, lease: Duration) -> Duration {
        lease * (100 + self.drift_percent) / 100
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_of_any_length_from_a_second_on_can_work() {
        assert_eq!(LeaseConfig::of(Duration::from_secs(3)), LeaseConfig::default());
        for millis in (1_000..=600_000).step_by(100) {
            let config = LeaseConfig::of(Duration::from_millis(millis));
            config.validate().unwrap_or_else(|why| panic!("{millis} ms: {why}"));
        }
        let long = LeaseConfig::of(Duration::from_secs(600));
        assert_eq!(long.heartbeat, LeaseConfig::default().heartbeat, "a death is noticed as soon");
    }

    #[test]
    fn the_defaults_hold_and_each_broken_relation_is_named() {
        LeaseConfig::default().validate().expect("valid");
        type Spoil = fn(&mut LeaseConfig);
        let cases: [(&str, Spoil); 6] = [
            ("three heartbeats", |c| c.heartbeat = Duration::from_secs(1)),
            ("drift_percent is 0", |c| c.drift_percent = 0),
            ("reservation is longer", |c| c.reservation = Duration::from_secs(4)),
            ("successor_hold", |c| c.successor_hold = Duration::from_secs(1)),
            ("over 10 minutes", |c| c.lease = Duration::from_secs(601)),
            ("batch is 0", |c| c.batch = 0),
        ];
        for (text, spoil) in cases {
            let mut config = LeaseConfig::default();
            spoil(&mut config);
            let error = config.validate().expect_err(text).to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    /// F15: two clocks at opposite ends of the drift.
    #[test]
    fn a_slow_holder_ends_before_a_fast_voter() {
        let config = LeaseConfig::default();
        let true_end_of_holder = config.holder_share(config.lease).as_secs_f64() / 0.91;
        let true_end_of_voter = config.voter_share(config.lease).as_secs_f64() / 1.09;
        assert!(true_end_of_holder < true_end_of_voter);
    }
}

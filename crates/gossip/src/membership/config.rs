//! The times of membership and the relations between them. Nothing here acts.

use std::time::Duration;

use super::MembershipError;

/// The times and bounds of membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MembershipConfig {
    /// Time between two rounds of gossip with up to three peers, while there is news.
    pub gossip_interval: Duration,
    /// Bytes a second that a node may send in rounds while there is none, if `longest_rest` allows.
    pub rest_rate: u32,
    /// The longest time between two rounds that a node begins.
    pub longest_rest: Duration,
    /// How long a node may be silent before its heartbeats alone make it dead. Well before that a
    /// watch finds out: see [`super::lookout`].
    pub heartbeat_lasts: Duration,
    /// How long the state of a node that is dead by its heartbeats is kept. Until half of this has
    /// passed it is still told to others.
    pub dead_node_grace: Duration,
    /// Time between two readings of chitchat's state into the view.
    pub view_interval: Duration,
    /// Time between two tries to reach a node that is in the address book and not seen alive.
    pub reconnect_interval: Duration,
}

impl Default for MembershipConfig {
    fn default() -> Self {
        Self {
            gossip_interval: Duration::from_millis(500),
            rest_rate: 90,
            longest_rest: Duration::from_secs(120),
            heartbeat_lasts: Duration::from_secs(20 * 60),
            dead_node_grace: Duration::from_secs(10 * 60),
            view_interval: Duration::from_millis(250),
            reconnect_interval: Duration::from_secs(2),
        }
    }
}

impl MembershipConfig {
    /// Checks the relations between the values.
    ///
    /// # Errors
    /// [`MembershipError::Config`] says which does not hold.
    pub fn validate(&self) -> Result<(), MembershipError> {
        let ms = Duration::from_millis;
        let rules = [
            (self.gossip_interval >= ms(50), "gossip_interval must be 50 ms or more"),
            (self.gossip_interval <= ms(5_000), "gossip_interval must be 5 s or less"),
            ((16..=1 << 20).contains(&self.rest_rate), "rest_rate must be from 16 B/s to 1 MiB/s"),
            (
                self.longest_rest >= self.gossip_interval,
                "longest_rest must be gossip_interval or more",
            ),
            (
                self.heartbeat_lasts >= self.longest_rest * 8
                    && self.heartbeat_lasts <= Duration::from_secs(3600),
                "heartbeat_lasts must be 8 times longest_rest or more, and at most an hour: \
                 heartbeats come by way of several nodes",
            ),
            (
                self.dead_node_grace >= Duration::from_secs(60)
                    && self.dead_node_grace <= Duration::from_secs(3600),
                "dead_node_grace must be from 1 to 60 min: every restart's state stays that long",
            ),
            (
                self.view_interval >= ms(20) && self.view_interval <= self.gossip_interval * 2,
                "view_interval must be from 20 ms to twice gossip_interval",
            ),
            (
                self.reconnect_interval >= self.gossip_interval,
                "reconnect_interval must be gossip_interval or more",
            ),
        ];
        match rules.into_iter().find(|(holds, _)| !holds) {
            Some((_, rule)) => Err(MembershipError::Config(rule)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_relation_of_the_configuration_is_checked() {
        let good = MembershipConfig::default();
        good.validate().expect("the default holds");
        let ms = Duration::from_millis;
        let bad = [
            MembershipConfig { gossip_interval: ms(10), ..good },
            MembershipConfig { gossip_interval: ms(9_000), ..good },
            MembershipConfig { rest_rate: 0, ..good },
            MembershipConfig { longest_rest: ms(10), ..good },
            MembershipConfig { longest_rest: ms(600_000), ..good },
            MembershipConfig { heartbeat_lasts: ms(60_000), ..good },
            MembershipConfig { heartbeat_lasts: ms(3_700_000), ..good },
            MembershipConfig { dead_node_grace: ms(1_000), ..good },
            MembershipConfig { dead_node_grace: Duration::from_secs(86_400), ..good },
            MembershipConfig { view_interval: ms(5_000), ..good },
            MembershipConfig { reconnect_interval: ms(100), ..good },
        ];
        for config in bad {
            assert!(matches!(config.validate(), Err(MembershipError::Config(_))), "{config:?}");
        }
    }
}

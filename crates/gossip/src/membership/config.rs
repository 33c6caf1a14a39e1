//! The times of membership and the relations between them. Nothing here acts.

use std::time::Duration;

use super::MembershipError;

/// The times and bounds of membership.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MembershipConfig {
    /// Time between two rounds of gossip with up to three peers.
    pub gossip_interval: Duration,
    /// How many mean heartbeat intervals a node may be silent before it is suspected. With the
    /// defaults a dead node is suspected after 2 to 3 s in meshes of 3 to 5 nodes, and after 3 to
    /// 5 s in one of 20 (measured in virtual time, without loss).
    pub phi_threshold: f64,
    /// The heartbeat interval assumed before there are samples.
    pub initial_interval: Duration,
    /// How long the state of a dead node is kept. Until half of this has passed it is still told
    /// to others.
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
            phi_threshold: 10.0,
            initial_interval: Duration::from_millis(500),
            dead_node_grace: Duration::from_secs(20 * 60),
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
            (
                (3.0..=30.0).contains(&self.phi_threshold),
                "phi_threshold must be from 3 to 30: less suspects healthy nodes, more finds none",
            ),
            (
                self.initial_interval >= self.gossip_interval
                    && self.initial_interval <= self.gossip_interval * 10,
                "initial_interval must be from one to ten times gossip_interval",
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
            MembershipConfig { phi_threshold: f64::NAN, ..good },
            MembershipConfig { phi_threshold: 1.0, ..good },
            MembershipConfig { initial_interval: ms(100), ..good },
            MembershipConfig { initial_interval: ms(60_000), ..good },
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

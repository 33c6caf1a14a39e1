//! What happened, as a node saw it.

use std::time::Duration;

use flocker_base::WallTime;
use serde::{Deserialize, Serialize};

use super::Schema;

/// Which events are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EventQuery {
    /// Those with a higher number.
    pub after: u64,
    /// How long to wait for one if there is none, in milliseconds.
    pub wait_ms: u64,
}

impl EventQuery {
    /// How long to wait.
    #[must_use]
    pub const fn wait(&self) -> Duration {
        Duration::from_millis(self.wait_ms)
    }
}

/// Events in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventList {
    /// The events.
    pub events: Vec<EventEntry>,
    /// The number of the newest that the node has: what to ask for next.
    pub newest: u64,
    /// How many of those asked for the node no longer has.
    pub missed: u64,
}

/// An event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventEntry {
    /// Its number on this node, since the agent started.
    pub sequence: u64,
    /// When this node saw it, by its clock.
    pub at: WallTime,
    /// What kind it is, such as `node.suspected`. Others may come.
    pub kind: String,
    /// What it is about: a node's name.
    pub subject: String,
    /// It, for people.
    pub text: String,
}

impl Schema for EventList {
    const SCHEMA: &'static str = "flocker.events/1";
}

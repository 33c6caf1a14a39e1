//! Who has died, found out quickly: a failure detector above chitchat. It notices and tells; it
//! never decides who owns what, and never touches chitchat's state.
//!
//! ```text
//!   neighbours on a ring ──ping──▶ no answer ──▶ is its port closed? ──yes──▶ obituary ─┐
//!                                      │                                                ├▶ flood
//!                                      └──▶ ask its other neighbours ──they agree────▶──┘    │
//!                                                                                            ▼
//!   the subject, if it lives: refutation with a higher round ◀──────────────────────────── all
//! ```
//!
//! Each member is watched by its neighbours on a ring whose order all members compute alike, so
//! the cost a node does not grow with the mesh. A neighbour that does not answer is *convicted* on
//! hard evidence (its host says that nothing listens on its port) or when a second neighbour has
//! not heard it either. A node that hears of its own death refutes it. The ideas are those of SWIM
//! (Das, Gupta, Motivala 2002) and Lifeguard (Dadgar, Phillips, Currey 2018); the differences and
//! their reasons are in `docs/adr/0003-failure-detection.md`.
//!
//! Invariants:
//! - A node that hears no one convicts no one: it only says for itself whom it does not hear.
//! - Time during which this node did not run counts against nobody.
//! - An obituary can be refuted by its subject always: see [`news::MAX_ROUND`].
//! - Every table, message and rate has a limit, whatever peers send.

mod health;
mod message;
mod neighbour;
mod news;
mod ring;
mod watch;

#[cfg(test)]
mod simulation;

use std::collections::BTreeMap;
use std::time::Duration;

use flocker_base::{Incarnation, StoreId};

pub(super) use self::message::Message;
pub(super) use self::watch::Watch;

/// A short hash: equal on two nodes that hold the same.
pub(super) type Digest = [u8; 4];

/// The times of the watch, before the factor of local health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WatchConfig {
    /// Neighbours on each side of the ring.
    pub(super) reach: usize,
    /// Time between two exchanges with one neighbour, for each neighbour that there is: so the
    /// traffic of a node is the same in small and large meshes.
    pub(super) period_share: Duration,
    /// The shortest such time.
    pub(super) least_period: Duration,
    /// How long a neighbour has for its first answer. A miss costs a probe and a few questions.
    pub(super) answer: Duration,
    /// Time between two tries after that.
    pub(super) retry: Duration,
    /// How long a neighbour must have left every ping unanswered before the word of a second one
    /// convicts it.
    pub(super) silence: Duration,
    /// How long a second neighbour must not have heard it to agree.
    pub(super) agreement: Duration,
    /// After how long a silent neighbour is suspected by this node for itself, if none agrees.
    pub(super) alone: Duration,
    /// How long nobody at all must be unheard before this node takes itself to be cut off. Not
    /// stretched: that all others are silent is no matter of how fast this node is.
    pub(super) cut_off: Duration,
}

impl Default for WatchConfig {
    fn default() -> Self {
        let ms = Duration::from_millis;
        Self {
            reach: 2,
            period_share: ms(375),
            least_period: ms(500),
            answer: ms(300),
            retry: ms(250),
            silence: ms(2_000),
            agreement: ms(1_000),
            alone: ms(4_000),
            cut_off: ms(6_000),
        }
    }
}

impl WatchConfig {
    /// For bridges: few, of whom those of one region may all be lost at once. More of them watch
    /// each, so that some of other regions do.
    pub(super) fn of_bridges() -> Self {
        Self { reach: 4, ..Self::default() }
    }
}

/// What happens to the watch.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// The members by chitchat's word and their runs, this node among them or not.
    Members(BTreeMap<StoreId, Incarnation>),
    /// A message of a peer. Who it is comes from the wire.
    Message { from: StoreId, message: Message },
    /// Whether a member's host says that nothing listens on its port.
    Probed { store: StoreId, refused: bool },
    /// Time has passed.
    Tick,
}

/// What the watch wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Send a message, if it can be sent.
    Send { to: StoreId, message: Message },
    /// Ask a member's host whether its port is closed; answer with [`Event::Probed`].
    Probe { store: StoreId },
    /// Some verdict has changed.
    Changed,
    /// For the log and the operator.
    Report(Report),
}

/// What an operator may want to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Report {
    /// A member was convicted, by this node or another.
    Convicted { store: StoreId, by: StoreId, why: Why },
    /// A member that was convicted lives.
    Returned { store: StoreId },
    /// This node does not hear a member, and nobody agreed or disagreed.
    Unheard { store: StoreId },
    /// Someone said that this node is dead, and it says no.
    Refuted { by: StoreId, why: Why },
}

/// What a conviction rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// The host says that nothing listens on its port.
    Refused,
    /// Two neighbours do not hear it, or a reason that a newer version gave.
    Silent,
}

/// Whether a run of a member lives, as far as the watch knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It has said so, to this node or to others.
    Alive,
    /// It was convicted, or this node does not hear it.
    Dead,
    /// Nothing was heard of it yet.
    Unknown,
}

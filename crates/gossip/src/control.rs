//! Messages and calls between nodes, on the control endpoint: how the other parts of this crate
//! talk to their peers. It carries bytes from authenticated peers to the part they are for, and
//! understands none of them.
//!
//! ```text
//!   membership, lease, map, agent
//!      │ send, call                 ▲ on_message, on_call
//!      ▼                            │
//!    Wire ──▶ outbox ──▶ Peers ══ QUIC ══▶ serve ──▶ Handler of the kind
//!                                    └──▶ JoinHandler (clients without a certificate)
//! ```
//!
//! On the wire, a message is a stream to the peer: the kind's byte and a frame. A call is a stream
//! in both directions: the kind's byte and a frame, answered by 0 (done) or 1 (refused) and a
//! frame. Messages and calls overtake each other; a message may get lost, and arrives at most
//! once.

mod dispatch;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod memory;
mod node;
mod outbox;
mod quiet;
mod serve;
mod wire;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flocker_base::StoreId;

pub use memory::MemoryNet;
pub use node::Control;
pub(crate) use quiet::Quiet;

/// What a message or call is about, and so who handles it. The numbers are on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Who lives: [`crate::membership`].
    Membership = 1,
    /// Who owns which volume: [`crate::lease`].
    Lease = 2,
    /// Changes of the placement map, pushed: [`crate::map`].
    MapPush = 3,
    /// Parts of the placement map, asked for: [`crate::map`].
    MapPull = 4,
    /// What agents ask of each other.
    Agent = 5,
    /// Who is in another region, and where the pools are: [`crate::membership`].
    Roster = 6,
    /// Who lives, between regions: [`crate::membership`].
    Bridges = 7,
    /// Who has died: [`crate::membership::Lookout`].
    Watch = 8,
    /// Which bridges have died: [`crate::membership::Lookout`].
    BridgeWatch = 9,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 9] = [
        Self::Membership,
        Self::Lease,
        Self::MapPush,
        Self::MapPull,
        Self::Agent,
        Self::Roster,
        Self::Bridges,
        Self::Watch,
        Self::BridgeWatch,
    ];

    /// The kind with this number on the wire.
    #[must_use]
    pub fn from_wire(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == number)
    }

    /// The largest payload, request or answer, in bytes.
    #[must_use]
    pub const fn max_frame(self) -> usize {
        match self {
            Self::Membership | Self::Bridges => 96 << 10,
            Self::Lease | Self::MapPush | Self::Agent | Self::Roster => 1 << 20,
            Self::MapPull => 4 << 20,
            Self::Watch | Self::BridgeWatch => 8 << 10,
        }
    }

    /// How many messages and calls of one peer are handled at once, and how many calls this node
    /// has under way to one peer.
    const fn at_once(self) -> usize {
        match self {
            Self::Lease => 32,
            Self::Membership | Self::Bridges | Self::MapPush | Self::Agent => 16,
            Self::Watch | Self::BridgeWatch => 16,
            Self::MapPull | Self::Roster => 4,
        }
    }

    /// How many messages wait for one peer at most.
    const fn queue(self) -> usize {
        match self {
            Self::MapPush => 256,
            _ => 64,
        }
    }

    /// Which goes out first when not all can: the higher.
    const fn priority(self) -> i32 {
        match self {
            Self::Lease | Self::Watch | Self::BridgeWatch => 2,
            Self::Membership | Self::Bridges => 1,
            Self::MapPush | Self::MapPull | Self::Agent | Self::Roster => 0,
        }
    }

    /// Its place in [`Self::ALL`].
    const fn index(self) -> usize {
        let mut index = 0;
        while index < Self::ALL.len() && Self::ALL[index] as u8 != self as u8 {
            index += 1;
        }
        index
    }
}

/// Why a call did not give an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The peer refused the call, in its own words. It may have acted in part.
    #[error("the node refused: {0}")]
    Refused(String),
    /// No connection to the peer: the call did not reach it.
    #[error("node {to} can't be reached: {reason}")]
    Unreachable {
        /// The peer.
        to: StoreId,
        /// Why.
        reason: String,
    },
    /// No answer in time. The peer may have acted.
    #[error("node {to} did not answer within {after:?}")]
    Deadline {
        /// The peer.
        to: StoreId,
        /// The time allowed.
        after: Duration,
    },
    /// The connection broke, or the answer made no sense. The peer may have acted.
    #[error("the call to node {to} broke: {reason}")]
    Broken {
        /// The peer.
        to: StoreId,
        /// Why.
        reason: String,
    },
    /// The request is larger than the kind allows. It was not sent.
    #[error("a request of {length} bytes, where {max} are allowed")]
    TooLarge {
        /// The request's size, in bytes.
        length: usize,
        /// The largest allowed, in bytes.
        max: usize,
    },
    /// The peer was removed from the cluster. Nothing was sent.
    #[error("node {to} was removed from the cluster")]
    Removed {
        /// The peer.
        to: StoreId,
    },
}

/// The way to other nodes. A node may talk to itself: its own handler then answers.
#[async_trait]
pub trait Wire: Send + Sync + 'static {
    /// This node.
    fn local(&self) -> StoreId;

    /// Sends a message, if it can be sent. It only enqueues: it never blocks and never fails. Too
    /// many waiting ones of one kind for one peer push the oldest out.
    fn send(&self, to: StoreId, kind: Kind, payload: Bytes);

    /// Asks and waits for the answer. Cancel safe: the peer may act all the same.
    async fn call(
        &self,
        to: StoreId,
        kind: Kind,
        payload: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, WireError>;

    /// Whether the peer's host says within this time that nothing listens on its control port.
    /// Only a yes is evidence. Cancel safe.
    async fn nothing_listens(&self, _to: StoreId, _within: Duration) -> bool {
        false
    }
}

/// Who handles one kind of messages and calls. Several run at once, in any order; `from` is who
/// the sender's certificate names.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Takes a message.
    async fn on_message(&self, from: StoreId, payload: Bytes);

    /// Answers a call. An error's text reaches the caller as [`WireError::Refused`]. An answer
    /// beyond [`Kind::max_frame`] is not sent: the caller sees a refusal.
    async fn on_call(&self, from: StoreId, payload: Bytes) -> Result<Bytes, String>;
}

/// Whose certificate no longer counts.
pub trait Admission: Send + Sync {
    /// Whether this node was removed from the cluster. It is asked often and must not block.
    fn is_removed(&self, store: StoreId) -> bool;

    /// A peer has refused this node as removed. It may say so often; this must not block.
    fn refused_by(&self, _peer: StoreId) {}

    /// Whether it has a certificate and was never admitted, as far as is known here. With an
    /// authority outside the cluster a certificate alone makes nobody a member.
    fn is_stranger(&self, _store: StoreId) -> bool {
        false
    }
}

/// Who answers those that ask to join. It may be asked by anyone: it must bound tries itself.
#[async_trait]
pub trait JoinHandler: Send + Sync + 'static {
    /// Answers a request, made from this address over the TLS session with this secret (exported
    /// under [`flocker_quic::JOIN_EXPORTER_LABEL`]).
    async fn on_join(&self, remote: SocketAddr, exporter: [u8; 32], request: Bytes) -> Bytes;
}

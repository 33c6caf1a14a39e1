//! What can go wrong here, in words for the operator: what was attempted, why it failed, what to
//! do. Errors are `Clone` because one dial may have many waiters.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use flocker_base::StoreId;

use crate::frame::FrameError;

/// Why something on this transport failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum QuicError {
    /// A setting, or the relation of two, is wrong.
    #[error("the transport's settings are wrong: {0}")]
    Config(String),
    /// The node's own certificate, key or CA can't be used.
    #[error("this node's identity can't be used ({0}): restore it, or join again as a new node")]
    Identity(String),
    /// Another program listens there.
    #[error("UDP port {} on {} is taken by another program: stop it, or choose another port",
        at.port(), at.ip())]
    PortTaken {
        /// The address asked for.
        at: SocketAddr,
    },
    /// The system refused a socket.
    #[error("cannot {action} {at}: {source}")]
    Socket {
        /// What was attempted, as a verb phrase.
        action: &'static str,
        /// The address asked for.
        at: SocketAddr,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// There is no tokio runtime to run on.
    #[error("the transport needs a tokio runtime and there is none on this thread")]
    NoRuntime,
    /// One address was tried in vain.
    #[error("cannot connect to node {to} at {at}: {reason}")]
    Dial {
        /// The node.
        to: StoreId,
        /// Where it was sought.
        at: SocketAddr,
        /// Why it failed.
        reason: DialFailure,
    },
    /// Whoever is at an address could not be reached.
    #[error("cannot find a node of this cluster at {at}: {reason}")]
    Seek {
        /// Where.
        at: SocketAddr,
        /// Why it failed.
        reason: DialFailure,
    },
    /// Every known address was tried in vain.
    #[error("cannot connect to node {to}: {}", attempts(tried))]
    Unreachable {
        /// The node.
        to: StoreId,
        /// Each address and why it failed there.
        tried: Vec<(SocketAddr, DialFailure)>,
    },
    /// No address of the node is known.
    #[error("cannot connect to node {to}: no address of it is known")]
    NoAddress {
        /// The node.
        to: StoreId,
    },
    /// The node asked for is this one.
    #[error("cannot connect to node {to}: that is this node itself")]
    Itself {
        /// This node.
        to: StoreId,
    },
    /// Nothing came of it in time.
    #[error("no connection to node {to} within {after:?}")]
    Deadline {
        /// The node.
        to: StoreId,
        /// The time allowed.
        after: Duration,
    },
    /// The connection ended.
    #[error("the connection to node {peer} ended: {reason}")]
    Closed {
        /// The node.
        peer: StoreId,
        /// Who ended it and why.
        reason: String,
    },
    /// A node could not be asked for admission.
    #[error("cannot ask {at} for admission: {reason}")]
    Join {
        /// Where.
        at: SocketAddr,
        /// Why it failed.
        reason: DialFailure,
    },
    /// A frame of the exchange for admission could not be sent or read.
    #[error("the exchange for admission with {at} broke: {source}")]
    JoinFrame {
        /// The other side.
        at: SocketAddr,
        /// Why.
        source: Arc<FrameError>,
    },
}

/// Why an address did not lead to a connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialFailure {
    /// The host answered that nothing listens on that port.
    #[error("nothing listens there (port unreachable): is flocker running on it?")]
    NothingListens,
    /// Nothing came back in time.
    #[error("no answer within {0:?}: is it up, and may UDP pass?")]
    Silent(Duration),
    /// This side does not trust the other.
    #[error("what answers there is not trusted: {0}")]
    Untrusted(String),
    /// The other side refused this one.
    #[error("it refused this node: {0}")]
    Refused(String),
    /// This node itself is there.
    #[error("that is this node itself")]
    Itself,
    /// It could not be tried from here.
    #[error("it can't be tried from here: {0}")]
    Local(String),
    /// The connection broke while it was set up.
    #[error("it broke: {0}")]
    Broken(String),
}

impl DialFailure {
    /// Reads quinn's account of a connection that did not come about.
    pub(crate) fn from_handshake(error: &quinn::ConnectionError, after: Duration) -> Self {
        match error {
            quinn::ConnectionError::TimedOut => Self::Silent(after),
            quinn::ConnectionError::TransportError(e) => Self::Untrusted(e.to_string()),
            quinn::ConnectionError::ConnectionClosed(_)
            | quinn::ConnectionError::ApplicationClosed(_) => Self::Refused(error.to_string()),
            other => Self::Broken(other.to_string()),
        }
    }
}

fn attempts(tried: &[(SocketAddr, DialFailure)]) -> String {
    let mut text = String::new();
    for (at, reason) in tried {
        let separator = if text.is_empty() { "" } else { "; " };
        // Writing to a String can't fail.
        let _ = write!(text, "{separator}{at}: {reason}");
    }
    text
}

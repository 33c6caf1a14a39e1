//! Flocker's transport between nodes: QUIC with mutual TLS, on quinn and rustls.
//!
//! ```text
//!   Identity ──▶ tls ──▶ Endpoint ──accept──▶ Accepted::Peer(Connection) ──┐
//!                           │    └──────────▶ Accepted::Joiner             │ adopt
//!                           └──connect──▶ Connection ◀──dial── Peers ◀─────┘
//!                                            │                   ▲
//!                                          frame            AddressBook
//! ```
//!
//! Invariants:
//! - A [`Connection`] exists only for a peer that showed a certificate of this cluster's CA; its
//!   name in that certificate, not its address nor what it says, is who it is.
//! - No byte of a stream is read before that. The one exception is [`JoinerConnection`]: one
//!   bounded frame each way.
//! - What an unauthenticated client can make this node hold (handshakes, bytes, log lines) is
//!   bounded, and does not keep peers out.
//! - Sessions are never resumed: each connection checks certificates anew.
//! - This crate knows no protocol above frames, and decides nothing about who is alive or who
//!   owns what.

pub mod config;
pub mod connection;
pub mod endpoint;
pub mod error;
pub mod frame;
pub mod identity;
pub mod join;
pub mod peers;

mod handshakes;
mod probe;
mod refusals;
mod socket;
mod tls;

#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use config::{EndpointConfig, Purpose};
pub use connection::{CloseCode, Connection, REMOVED, RecvStream, SendStream};
pub use endpoint::{Accepted, Endpoint};
pub use error::{DialFailure, QuicError};
pub use identity::{Identity, server_name, store_of_certificate};
pub use join::{
    JOIN_EXPORTER_LABEL, JoinerConnection, MAX_JOIN_REPLY, MAX_JOIN_REQUEST, connect_to_join,
};
pub use peers::{AddressBook, Peers};

//! How a node becomes a member: the join token, the member that admits, and the newcomer.
//!
//! ```text
//!   newcomer                                     any member
//!   Token@seeds ── TLS, the authority pinned ──▶ Doorkeeper
//!   key, request ── proof bound to this TLS ───▶ judges, signs, records durably
//!   NodeIdentity ◀── certificate, authority ──── replies
//! ```
//!
//! Invariants:
//! - The secret of a token never crosses the wire: the newcomer proves it by an HMAC over this TLS
//!   session's exporter and the whole request, so that a proof is worth nothing elsewhere.
//! - A request is bounded in size before it is read, and in tries before it is decoded.
//! - A newcomer is recorded durably before its certificate leaves this node.
//! - A token for a limited number of nodes is redeemed by its issuer alone, which spends a use
//!   durably before it signs.

mod client;
mod door;
mod doorkeeper;
mod exchange;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod limiter;
mod reach;
mod redemptions;
mod token;

use std::net::SocketAddr;

use flocker_base::StoreId;
use serde::{Deserialize, Serialize};

pub use client::{Attempt, JoinError, Joined, Newcomer, join, join_as};
pub use door::{Admitted, Preset, Refusal};
pub use doorkeeper::{BlockedTokens, Doorkeeper, Roster, TokenSource};
pub use exchange::{MAX_REPLY_BYTES, MAX_REQUEST_BYTES, Takes};
pub use redemptions::{RedeemError, Redemptions};
pub use token::{DEFAULT_PORT, JoinString, JoinStringError, Seed, Token, TokenError};

#[cfg(test)]
mod live;
#[cfg(test)]
mod outside;
#[cfg(test)]
mod tests;

/// A node and where it is reached, as one node tells another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownNode {
    /// Its store.
    pub store: StoreId,
    /// Where its control port is reached, the best first.
    pub control: Vec<SocketAddr>,
    /// Where its data port is reached, the best first.
    pub data: Vec<SocketAddr>,
}

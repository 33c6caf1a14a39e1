//! The control plane: who the nodes are, which of them live, who owns which volume.
//!
//! ```text
//!            identity, join ──▶ certificates
//!                                   │
//!   membership ─┐             ┌─────▼──────┐
//!   map ────────┼──── Wire ───│  control   │── QUIC, mutual TLS ── peers
//!   lease ──────┘             └────────────┘
//!     │    │
//!     └────┴──▶ store (one durable database a node)
//! ```
//!
//! Invariants:
//! - Only an authenticated peer's bytes reach a decoder ([`control`]).
//! - Suspicion ([`membership`]) never decides ownership; leases ([`lease`]) do.
//! - The map ([`map`]) informs and is never authority.
//! - Nothing is announced before it is durable ([`store`]).

pub mod addresses;
pub mod control;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod identity;
pub mod join;
pub mod lease;
pub mod map;
pub mod membership;
pub mod model;
pub mod seeds;
#[cfg(test)]
mod simulation;
pub mod store;

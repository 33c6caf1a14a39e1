//! Flocker's agent, API and command line.
//!
//! ```text
//!   cli ─▶ api::client ──unix socket──▶ api::server ─▶ agent ─▶ engine, guard
//!    └▶ demo (starts agents, is a client of theirs)      └─▶ the crates: gossip, replicate, proxy
//! ```
//!
//! Invariants:
//! - Only [`agent`] composes concrete parts.
//! - Nothing outside [`engine`] and [`guard`] signals a process.
//! - Only [`supervisor`] starts tasks that nobody awaits.

pub mod agent;
pub mod api;
pub mod cli;
pub mod demo;
pub mod engine;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod guard;
pub mod manifest;
pub mod supervisor;
pub mod tally;

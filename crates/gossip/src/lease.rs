//! Leases: which node owns which volume, decided by each volume's own voters.
//!
//! ```text
//!   agent ── Leases ──▶ driver ── events ──▶ core ── commands ──▶ driver ──▶ Wire, disk, agent
//!                                     (voter, candidate, holder)
//! ```
//!
//! The core is pure; the driver owns it and does what it says. Invariants:
//! - At most one node ever holds an epoch of a volume.
//! - At most one node at a time believes its lease valid, as long as clocks run within the
//!   configured drift.
//! - A voter's epoch and configuration never fall, and nothing is announced before it is durable.
//! - A closed epoch never has a lease again.

pub mod config;
pub mod core;
pub mod event;
pub mod message;
pub mod record;

mod beat;
mod candidate;
mod change;
mod driver;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod handle;
mod holder;
mod outbox;
mod promotion;
mod release;
mod state;
mod table;
mod voter;

pub use change::MOST_VOTERS;
pub use config::{LeaseConfig, LeaseConfigError};
pub use core::LeaseCore;
pub use driver::{LeaseDriver, StartError, start};
pub use event::{CampaignFailure, Election, Held, LeaseError, LeaseEvent, LeaseView, VolumeFacts};
pub use handle::Leases;
pub use record::{Stamp, Start};

#[cfg(test)]
mod model;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

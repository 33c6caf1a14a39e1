//! The ground that every Flocker crate stands on: ids, epochs, clocks and the durable file
//! writer. Nothing else may live here.
//!
//! ```text
//!   ids ─ epoch ─ clock ─ durable
//!    ▲      ▲       ▲        ▲
//!    └──────┴── every other crate
//! ```
//!
//! Invariants:
//! - No task, socket or runtime is started here.
//! - Time and randomness come in as arguments; [`SystemClock`] is the one reader of real clocks.
//! - A state file is either the old content or the new, whole and checksummed: see [`durable`].

pub mod clock;
pub mod durable;
pub mod epoch;
pub mod ids;

pub use clock::{BootTime, Clock, ManualClock, SystemClock, WallTime};
pub use epoch::{Epoch, Head, SnapshotSeq};
pub use ids::{ClusterId, Incarnation, Name, NameError, ServiceId, StoreId, TokenId, VolumeId};

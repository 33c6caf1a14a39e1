//! Keeping the maps of all nodes equal: each change is pushed at once to a few peers, who pass
//! on what was new to them; what that misses is pulled where hash trees differ. It must never
//! let a peer's bytes, slowness or number of messages hold up this node or its map.
//!
//! ```text
//!   map's outbox, wire, membership ─▶ shell ─ events ─▶ core: waiting, inbox, links, choice, pull
//!                 work (disk), wire ◀─ shell ◀─ commands ─┘
//! ```
//!
//! `core` decides everything and is pure; `shell` waits and carries out; `work` is what takes the
//! disk. The simulation runs `core` and `work` as they are.

use flocker_base::{Name, StoreId};

use super::tree::Hash;

mod choice;
pub(crate) mod core;
mod descent;
pub(crate) mod event;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod inbox;
pub(crate) mod links;
mod message;
mod pull;
mod refusals;
mod shell;
mod waiting;
pub(crate) mod work;

#[cfg(test)]
pub(crate) use message::Request;
pub use shell::{MapSync, build};

/// A live node, as membership sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Who.
    pub store: StoreId,
    /// Its region.
    pub region: Name,
    /// The root of its map that it last announced to this node. None if that is not known, as of
    /// most nodes of other regions: they are pushed to, and never pulled from because of it.
    pub root: Option<Hash>,
}

/// Who lives, and the root that each last announced.
pub trait PeerView: Send + Sync + 'static {
    /// The live peers, with or without this node, in a fixed order.
    fn live(&self) -> Vec<Peer>;

    /// This node's region.
    fn region(&self) -> Name;
}

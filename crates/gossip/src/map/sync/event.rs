//! What the core is told and what it asks for. Nothing here acts.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flocker_base::StoreId;

use super::links::Member;
use super::message::{Request, Sent};
use crate::map::key::RecordKey;
use crate::map::tree::Hash;

/// A question to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ask(pub(crate) u64);

/// A peer's question that is to be answered; the shell numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Reply(pub(crate) u64);

/// What happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// These records were changed on this node, and are on disk.
    Changed(Vec<RecordKey>),
    /// Other nodes live than before.
    Members(Arc<[Member]>),
    /// The roots that live peers announce, of those that announce one to this node.
    Roots(Vec<(StoreId, Hash)>),
    /// A push came.
    Pushed { from: StoreId, bytes: Bytes },
    /// [`Command::Read`] is done: the records that are here, and those left for later.
    Read { records: Vec<Sent>, left: Vec<RecordKey> },
    /// [`Command::Merge`] is done, and on disk.
    Merged(Outcome),
    /// [`Command::Ask`] was answered, or why not.
    Answered(Ask, Result<Bytes, String>),
    /// A peer asks.
    Asked { from: StoreId, reply: Reply, bytes: Bytes },
    /// [`Command::Answer`] is done.
    Replied { to: StoreId },
    /// The deadline has come.
    Tick,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Look who lives and what they announce: [`Event::Members`] if it changed, [`Event::Roots`].
    Look,
    /// Read these records.
    Read(Vec<RecordKey>),
    /// Send this push.
    Push { to: Vec<StoreId>, bytes: Bytes },
    /// Read and merge these.
    Merge(Vec<Parcel>),
    /// Ask a peer.
    Ask { ask: Ask, peer: StoreId, bytes: Bytes, within: Duration },
    /// Answer a peer from what is on disk.
    Answer { to: StoreId, reply: Reply, request: Request },
    /// Answer a peer that it gets no answer.
    Refuse { reply: Reply, why: String },
    /// Log that something of a peer was refused.
    Warn { from: StoreId, what: String, why: String },
}

/// What a peer sent, not looked at yet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Parcel {
    pub(crate) from: StoreId,
    pub(crate) content: Content,
}

/// How a parcel came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Push(Bytes),
    Pulled(Vec<Sent>),
}

/// What became of parcels.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// The records that changed here: who brought each, and through how many nodes it came.
    pub(crate) changed: Vec<(RecordKey, StoreId, u8)>,
    /// What was refused: of whom, what, and why.
    pub(crate) refused: Vec<(StoreId, String, String)>,
    /// Whether a whole parcel was.
    pub(crate) hostile: bool,
}

//! What the parts of replication tell each other: snapshots, branches, stream headers, duties and
//! progress. Plain data; nothing here may touch a disk or a clock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use flocker_base::{BootTime, Epoch, Head, StoreId, VolumeId, WallTime};
use serde::{Deserialize, Serialize};

use crate::backend::Quiesce;

/// The identity of a snapshot, the same on every node that holds it. Random, never reused.
pub type Guid = [u8; 16];

/// The first eight hexadecimal digits of a guid, for people and for names.
#[must_use]
pub fn short_guid(guid: &Guid) -> String {
    guid[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One snapshot of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// The volume that it shows.
    pub volume: VolumeId,
    /// The epoch under which it was taken, and its place in the volume's history.
    pub head: Head,
    /// Its identity on every node.
    pub guid: Guid,
    /// The snapshot that it follows, held here or not. `None` for the first.
    pub parent: Option<Guid>,
    /// When it was taken, by the wall clock of the node that took it.
    pub taken_at: WallTime,
    /// Size of all files, in bytes, holes included.
    pub bytes: u64,
    /// How many files, folders, links and fifos it holds.
    pub files: u64,
}

impl SnapshotInfo {
    /// This snapshot as an entry of a line of descent.
    #[must_use]
    pub const fn ancestor(&self) -> Ancestor {
        Ancestor { guid: self.guid, head: self.head }
    }
}

/// A snapshot that the main line has passed through, whether it is still held or pruned since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ancestor {
    /// Its identity.
    pub guid: Guid,
    /// Its epoch and sequence.
    pub head: Head,
}

/// Snapshots that left the main line and are kept under a name until a person drops them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BranchInfo {
    /// Its name, unique in the volume.
    pub name: String,
    /// The last snapshot of the main line that the branch shares, if any is known.
    pub forked_from: Option<Guid>,
    /// When it was set aside, by this node's wall clock.
    pub kept_at: WallTime,
    /// Its snapshots, oldest first, never empty.
    pub snapshots: Vec<SnapshotInfo>,
}

/// How a branch is to be called and labelled when a live tail has to be set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keep {
    /// The name wished for; a number is added when it is taken.
    pub name: String,
    /// The epoch under which the tail was written.
    pub epoch: Epoch,
    /// Now.
    pub now: WallTime,
    /// The identity of the snapshot to be made of it.
    pub guid: Guid,
}

/// What opens a stream: enough for the receiver to refuse it before a byte of content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamHeader {
    /// The snapshot that the stream builds.
    pub snapshot: SnapshotInfo,
    /// The snapshot that it builds on; `None` for a full copy.
    pub base: Option<Guid>,
    /// The newest ancestors of the snapshot, oldest first: they tell a continuation from a
    /// divergence. At most [`MAX_LINEAGE`].
    pub lineage: Vec<Ancestor>,
    /// Length of the stream in bytes.
    pub length: u64,
    /// What only the backend reads. At most [`MAX_DETAIL`] bytes.
    pub detail: Vec<u8>,
}

/// Most ancestors that a volume remembers and a header carries.
pub const MAX_LINEAGE: usize = 256;
/// Largest backend part of a stream header, in bytes.
pub const MAX_DETAIL: usize = 4096;

/// Which snapshots pruning must leave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retention {
    /// The newest so many of the main line are kept. At least one always is.
    pub newest: usize,
    /// Kept besides, for each replica: the base that it still needs, and what is being sent to
    /// it. They are recorded durably, so that a restart does not forget them; an empty list
    /// means that they are not known now, and what is recorded stands.
    pub pinned: BTreeMap<StoreId, Vec<Guid>>,
}

impl Retention {
    /// The newest snapshots that are kept unless told otherwise.
    pub const NEWEST: usize = 16;
}

impl Default for Retention {
    fn default() -> Self {
        Self { newest: Self::NEWEST, pinned: BTreeMap::new() }
    }
}

/// How much room a volume takes on this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Size of the files in the newest snapshot, in bytes.
    pub referenced_bytes: u64,
    /// What the snapshots take on the disk, in bytes, the live folder not counted.
    pub stored_bytes: u64,
    /// Snapshots held, branches included.
    pub snapshots: u64,
    /// The size limit recorded for the volume, in bytes.
    pub limit_bytes: Option<u64>,
}

/// Whether a volume may be destroyed although this node alone may hold some of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destroy {
    /// Only if it has no branch, nothing newer in its live folder, and its newest snapshot is one
    /// of these, which other nodes are known to hold.
    OnlyIfHeldElsewhere(Vec<Guid>),
    /// Whatever it holds. A person said so.
    Everything,
}

/// A volume that this node is master of and must replicate.
#[derive(Clone, Debug)]
pub struct Duty {
    /// The volume.
    pub volume: VolumeId,
    /// The epoch that this node holds.
    pub epoch: Epoch,
    /// Time from one snapshot to the next, if anything changed.
    pub interval: Duration,
    /// The replicas to send to.
    pub targets: Vec<StoreId>,
    /// How to freeze the service for the moment in which a snapshot is completed.
    pub quiesce: Arc<dyn Quiesce>,
}

/// How far the replication of one volume has come, seen from its master.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeProgress {
    /// The newest snapshot here.
    pub newest: Option<SnapshotInfo>,
    /// Why the last attempt at a snapshot failed, until one succeeds.
    pub snapshot_error: Option<String>,
    /// Each replica.
    pub replicas: BTreeMap<StoreId, ReplicaProgress>,
}

/// How far one replica of a volume has come, seen from its master.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicaProgress {
    /// The newest snapshot that it acknowledged as durable.
    pub acked: Option<Head>,
    /// The identity of that snapshot.
    pub acked_guid: Option<Guid>,
    /// When that snapshot was taken, by the master's wall clock.
    pub acked_taken_at: Option<WallTime>,
    /// When the acknowledgement came, by this machine's clock.
    pub acked_at: BootTime,
    /// Why the last attempt failed, until one succeeds.
    pub error: Option<String>,
}

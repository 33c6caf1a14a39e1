//! Volumes and their replication.
//!
//! ```text
//!   replicator (what to do when: schedule core, tasks) ──► session (one stream to or from a peer)
//!        │                                                   │ hello, have, offer, want, data, ack
//!        ▼                                                   ▼
//!   backend (trait) ◄── dir (folders, chunks) ...       transport, fence (given by the agent)
//! ```
//!
//! Invariants:
//! - A stream is sent only while the fence says that this node may write, and taken in only while
//!   the fence admits its epoch; both are asked again before it counts.
//! - A snapshot is acknowledged only when it is durable, and is visible only when it is whole.
//! - Nothing that a user wrote is destroyed: what leaves the main line becomes a branch.
//! - Nothing here decides who is master, and nothing here starts or stops a service.

pub mod backend;
pub mod dir;
pub mod fence;
pub mod model;
pub mod replicator;
pub mod session;
pub mod transport;

pub use backend::{Backend, BackendError, Quiesce, Still};
pub use dir::DirBackend;
pub use fence::{Fence, FenceRefusal};
pub use model::{
    Ancestor, BranchInfo, Destroy, Duty, Guid, Keep, ReplicaProgress, Retention, SnapshotInfo,
    StreamHeader, Usage, VolumeProgress, short_guid,
};
pub use replicator::{Heads, Limits, ReplicateError, Replicator, ReplicatorConfig, ScheduleConfig};
pub use session::{Reason, SessionConfig, SessionError};
pub use transport::{Stream, Transport};

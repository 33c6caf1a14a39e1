//! The trait that every storage backend implements, and its errors.
//!
//! All calls block and belong on blocking threads. A backend never talks to the network, never
//! decides who is master, and never destroys what a user wrote unless told by [`Destroy`] or by
//! [`Backend::drop_branch`].

use std::fmt::Debug;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use flocker_base::{Epoch, Head, VolumeId, WallTime};

use crate::model::{
    Ancestor, BranchInfo, Destroy, Guid, Keep, Retention, SnapshotInfo, StreamHeader, Usage,
    short_guid,
};

#[cfg(any(test, feature = "testing"))]
pub mod conformance;
#[cfg(any(test, feature = "testing"))]
pub mod memory;

/// Stops the writers of a volume for the moment in which a snapshot is completed.
pub trait Quiesce: Send + Sync + Debug {
    /// Stops them. `false` if they cannot be stopped: the snapshot is then taken all the same and
    /// a file written meanwhile may be torn in it.
    fn freeze(&self) -> bool;
    /// Lets them go on. Called once for each [`Quiesce::freeze`] that returned `true`.
    fn thaw(&self);
}

/// Nothing writes, so nothing has to be stopped.
#[derive(Clone, Copy, Debug, Default)]
pub struct Still;

impl Quiesce for Still {
    fn freeze(&self) -> bool {
        true
    }

    fn thaw(&self) {}
}

/// What a backend answers.
pub type Result<T> = std::result::Result<T, BackendError>;

/// Where volumes, their snapshots and their streams live.
///
/// A volume is *standing* (a replica, its live folder follows what is received) or *writable* (a
/// service runs on it). [`Backend::promote`] and [`Backend::demote`] lead from one to the other.
pub trait Backend: Send + Sync + Debug {
    /// The backend's short name, as users type it.
    fn name(&self) -> &'static str;

    /// Every volume held here.
    ///
    /// # Errors
    /// [`BackendError::Io`].
    fn volumes(&self) -> Result<Vec<VolumeId>>;

    /// Makes an empty, standing volume.
    ///
    /// # Errors
    /// [`BackendError::Exists`], or what the disk said.
    fn create(&self, volume: VolumeId) -> Result<()>;

    /// Whether the volume is held here.
    ///
    /// # Errors
    /// [`BackendError::Io`].
    fn exists(&self, volume: VolumeId) -> Result<bool>;

    /// Takes a snapshot of the writable volume. `None` if nothing changed since the newest one
    /// and that one was taken under the same epoch.
    ///
    /// # Errors
    /// [`BackendError::NotWritable`], [`BackendError::StaleEpoch`] if the line has a newer epoch,
    /// [`BackendError::Superseded`] if the line went on elsewhere, or what the disk said.
    fn snapshot(
        &self,
        volume: VolumeId,
        epoch: Epoch,
        now: WallTime,
        guid: Guid,
        quiesce: &dyn Quiesce,
    ) -> Result<Option<SnapshotInfo>>;

    /// The snapshots of the main line, oldest first.
    ///
    /// # Errors
    /// [`BackendError::NoVolume`].
    fn list(&self, volume: VolumeId) -> Result<Vec<SnapshotInfo>>;

    /// The newest ancestors of the main line's head, itself included, oldest first.
    ///
    /// # Errors
    /// [`BackendError::NoVolume`].
    fn lineage(&self, volume: VolumeId) -> Result<Vec<Ancestor>>;

    /// Describes the stream that leads from `base` to `to`.
    ///
    /// # Errors
    /// [`BackendError::NoSnapshot`] if either is not on the main line here.
    fn plan(&self, volume: VolumeId, base: Option<Guid>, to: Guid) -> Result<StreamHeader>;

    /// Writes the planned stream from this byte on.
    ///
    /// # Errors
    /// [`BackendError::Output`] with what `out` said, or as [`Backend::plan`].
    fn send(&self, header: &StreamHeader, offset: u64, out: &mut dyn Write) -> Result<()>;

    /// The stream that was begun here and not finished.
    ///
    /// # Errors
    /// What the disk said.
    fn partial(&self, volume: VolumeId) -> Result<Option<StreamHeader>>;

    /// How much of this stream is held already: where it has to go on.
    ///
    /// # Errors
    /// What the disk said.
    fn received(&self, header: &StreamHeader) -> Result<u64>;

    /// Takes in the stream from byte `offset` on, which is what [`Backend::received`] said, makes the volume if there is none,
    /// and returns when the snapshot is durable. Until then nothing of it is visible. What the
    /// line here has beyond the stream's ancestry is kept as a branch. The live folder is left
    /// to [`Backend::settle`].
    ///
    /// An end of `input` counts as the end of the stream: a caller who wants to cut it returns an
    /// error from `read`.
    ///
    /// # Errors
    /// [`BackendError::Cut`] (what came is kept for a resume), [`BackendError::BadStream`] (it is
    /// thrown away), [`BackendError::NotNewer`], [`BackendError::NoSnapshot`] for a base that is
    /// not held, [`BackendError::Busy`] while another stream comes in, or what the disk said.
    fn receive(
        &self,
        header: &StreamHeader,
        offset: u64,
        input: &mut dyn Read,
    ) -> Result<SnapshotInfo>;

    /// Brings a standing volume's live folder up to its newest snapshot.
    ///
    /// # Errors
    /// What the disk said.
    fn settle(&self, volume: VolumeId) -> Result<()>;

    /// Makes the volume writable at its newest snapshot and returns its live folder. Does nothing
    /// more if it is writable already.
    ///
    /// # Errors
    /// [`BackendError::Superseded`] if it is writable and its line went on elsewhere.
    fn promote(&self, volume: VolumeId) -> Result<PathBuf>;

    /// The live folder of a writable volume, `None` if it is standing.
    ///
    /// # Errors
    /// [`BackendError::NoVolume`].
    fn live(&self, volume: VolumeId) -> Result<Option<PathBuf>>;

    /// Makes the volume standing again. What its live folder holds beyond its last snapshot is
    /// first kept as a branch. Nothing may write to it any more.
    ///
    /// # Errors
    /// What the disk said; the volume is then writable still.
    fn demote(&self, volume: VolumeId, keep: &Keep) -> Result<Option<BranchInfo>>;

    /// Keeps what the live folder holds beyond its last snapshot as a named read-only branch.
    /// `None` if there is nothing beyond. The volume stays as it is.
    ///
    /// # Errors
    /// What the disk said.
    fn branch(&self, volume: VolumeId, keep: &Keep) -> Result<Option<BranchInfo>>;

    /// The branches kept, oldest first.
    ///
    /// # Errors
    /// [`BackendError::NoVolume`].
    fn branches(&self, volume: VolumeId) -> Result<Vec<BranchInfo>>;

    /// Drops a branch for good. A person said so.
    ///
    /// # Errors
    /// [`BackendError::NoBranch`].
    fn drop_branch(&self, volume: VolumeId, name: &str) -> Result<()>;

    /// Takes a writable volume, on which nothing runs, back to an older snapshot. The state before
    /// is kept as a branch; the new state is a new snapshot with this guid, which replicas simply
    /// follow.
    ///
    /// # Errors
    /// [`BackendError::NotWritable`], [`BackendError::NoSnapshot`], or what the disk said.
    fn rollback(&self, volume: VolumeId, to: Guid, guid: Guid, keep: &Keep)
    -> Result<SnapshotInfo>;

    /// Makes a new standing volume from any snapshot of another, a branch's included, at no cost
    /// in snapshot storage.
    ///
    /// # Errors
    /// [`BackendError::NoSnapshot`], [`BackendError::Exists`], or what the disk said.
    fn clone_volume(
        &self,
        from: VolumeId,
        snapshot: Guid,
        to: VolumeId,
        now: WallTime,
        guid: Guid,
    ) -> Result<SnapshotInfo>;

    /// Writes any snapshot, a branch's included, into a new folder, for people to look at.
    ///
    /// # Errors
    /// [`BackendError::NoSnapshot`], or what the disk said.
    fn export(&self, volume: VolumeId, snapshot: Guid, into: &Path) -> Result<()>;

    /// Drops old snapshots of the main line and gives back their room. Answers how many went.
    ///
    /// # Errors
    /// What the disk said; every snapshot that is still listed is then whole.
    fn prune(&self, volume: VolumeId, retention: &Retention) -> Result<usize>;

    /// Removes the volume and all that it holds.
    ///
    /// # Errors
    /// [`BackendError::Unique`] if it may hold something that is nowhere else.
    fn destroy(&self, volume: VolumeId, mode: &Destroy) -> Result<()>;

    /// How much room the volume takes.
    ///
    /// # Errors
    /// [`BackendError::NoVolume`].
    fn usage(&self, volume: VolumeId) -> Result<Usage>;

    /// Records the volume's size limit. A backend that cannot enforce it says so in its
    /// documentation; [`Backend::usage`] then still tells who is over.
    ///
    /// # Errors
    /// [`BackendError::NoVolume`].
    fn limit(&self, volume: VolumeId, bytes: Option<u64>) -> Result<()>;
}

/// Why a backend did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The volume is not held here.
    #[error("volume {0} is not held on this node")]
    NoVolume(VolumeId),
    /// The volume is held here already.
    #[error("volume {0} is held on this node already")]
    Exists(VolumeId),
    /// The snapshot is not held here.
    #[error("volume {volume} has no snapshot {} here: it may have been pruned", short_guid(guid))]
    NoSnapshot {
        /// The volume.
        volume: VolumeId,
        /// The snapshot asked for.
        guid: Guid,
    },
    /// There is no branch of this name.
    #[error("volume {volume} has no branch '{name}' here: see its list of branches")]
    NoBranch {
        /// The volume.
        volume: VolumeId,
        /// The name asked for.
        name: String,
    },
    /// The volume is a replica here.
    #[error("volume {0} is a replica on this node: promote it before writing to it")]
    NotWritable(VolumeId),
    /// The volume is writable here, and its line has gone on elsewhere.
    #[error(
        "volume {volume} went on to {newest} on another node while it was writable here: demote \
         it, which keeps what was written here as a branch"
    )]
    Superseded {
        /// The volume.
        volume: VolumeId,
        /// The newest snapshot received.
        newest: Head,
    },
    /// A snapshot was asked for under an epoch older than the line's.
    #[error("volume {volume} has reached epoch {newest}: epoch {epoch} may no longer add to it")]
    StaleEpoch {
        /// The volume.
        volume: VolumeId,
        /// The epoch of the attempt.
        epoch: Epoch,
        /// The epoch of the newest snapshot.
        newest: Epoch,
    },
    /// The stream's snapshot is not newer than what is held.
    #[error("volume {volume} is at {newest} here, and the stream offers {offered}: nothing to do")]
    NotNewer {
        /// The volume.
        volume: VolumeId,
        /// What the stream offers.
        offered: Head,
        /// The newest snapshot here.
        newest: Head,
    },
    /// Another stream for the volume is coming in.
    #[error("volume {0} is receiving another stream: try again when it has ended")]
    Busy(VolumeId),
    /// The stream is not one that an honest sender makes.
    #[error("the stream for volume {volume} is refused: {why}")]
    BadStream {
        /// The volume.
        volume: VolumeId,
        /// What is wrong with it.
        why: String,
    },
    /// The stream broke off. What came is kept.
    #[error("the stream for volume {volume} broke off at byte {at}: {source}")]
    Cut {
        /// The volume.
        volume: VolumeId,
        /// Bytes held.
        at: u64,
        /// What the input said.
        source: io::Error,
    },
    /// The receiving end of a stream that is being sent is gone.
    #[error("the stream of volume {volume} could not be sent on: {source}")]
    Output {
        /// The volume.
        volume: VolumeId,
        /// What the output said.
        source: io::Error,
    },
    /// Something is there that no other node is known to hold.
    #[error("volume {volume} is not destroyed: {what} may be nowhere else")]
    Unique {
        /// The volume.
        volume: VolumeId,
        /// What would be lost.
        what: String,
    },
    /// Stored data is not what was written.
    #[error(
        "{} is damaged ({reason}): move the volume's folder away and let replication make it anew",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file of the volume is of a form that cannot be kept.
    #[error("volume {volume} cannot be kept: {what}")]
    Unsupported {
        /// The volume.
        volume: VolumeId,
        /// The file and why.
        what: String,
    },
    /// The disk is full.
    #[error("no room to {action} {}: free some space, replication then goes on", path.display())]
    Full {
        /// What was attempted, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was attempted, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl BackendError {
    /// Wraps what the system said about this path.
    pub fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<io::Error>,
    ) -> Self {
        let (path, source) = (path.into(), source.into());
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::Full { action, path }
            }
            _ => Self::Io { action, path, source },
        }
    }
}

impl From<flocker_base::durable::DurableError> for BackendError {
    fn from(error: flocker_base::durable::DurableError) -> Self {
        use flocker_base::durable::DurableError;
        match error {
            DurableError::Io { action, path, source } => Self::io(action, path, source),
            DurableError::Damaged { path, reason } => {
                Self::Damaged { path, reason: reason.to_owned() }
            }
            DurableError::Version { path, found, .. } => {
                Self::Damaged { path, reason: format!("its version {found} is not known here") }
            }
            DurableError::TooLarge { path, limit } => {
                Self::Damaged { path, reason: format!("it is larger than {limit} bytes") }
            }
        }
    }
}

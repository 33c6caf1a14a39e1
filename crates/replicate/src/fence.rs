//! Who may write and who may be listened to: answered by the agent out of its leases, asked by
//! every session. Nothing here decides it.

use flocker_base::{Epoch, StoreId, VolumeId};

use crate::session::Reason;

/// The leases, as replication sees them.
pub trait Fence: Send + Sync + std::fmt::Debug {
    /// The epoch under which this node may write the volume at this moment, if it may.
    fn may_write(&self, volume: VolumeId) -> Option<Epoch>;

    /// Whether a stream of this epoch may be taken in. An admitted epoch is remembered as seen.
    ///
    /// # Errors
    /// [`FenceRefusal`] if a higher epoch has been granted or seen here.
    fn admit(&self, volume: VolumeId, from: StoreId, epoch: Epoch) -> Result<(), FenceRefusal>;
}

/// Why a stream is refused by the leases.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FenceRefusal {
    /// Its epoch is over.
    #[error(
        "epoch {offered} of volume {volume} is over: epoch {highest} has been granted or seen here"
    )]
    LowerEpoch {
        /// The volume.
        volume: VolumeId,
        /// The epoch of the stream.
        offered: Epoch,
        /// The highest epoch granted or seen here.
        highest: Epoch,
    },
    /// Another node has sent under this epoch, and an epoch has one master.
    #[error("epoch {epoch} of volume {volume} belongs to node {master}")]
    OtherMaster {
        /// The volume.
        volume: VolumeId,
        /// The epoch of the stream.
        epoch: Epoch,
        /// Whose epoch it is.
        master: StoreId,
    },
    /// The copy here is still writable: its tail has to be kept first. Try again in a moment.
    #[error("the copy of volume {0} here is still being made a replica: try again in a moment")]
    NotYet(VolumeId),
    /// This node has not heard of the volume. Try again once its map is up to date.
    #[error("this node does not know volume {0} yet: try again in a moment")]
    UnknownVolume(VolumeId),
}

impl FenceRefusal {
    /// What it is for a program.
    pub(crate) const fn reason(&self) -> Reason {
        match self {
            Self::LowerEpoch { .. } | Self::OtherMaster { .. } => Reason::LowerEpoch,
            Self::NotYet(_) | Self::UnknownVolume(_) => Reason::Busy,
        }
    }
}

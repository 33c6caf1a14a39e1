//! One session: snapshots of one volume going one way over one stream.
//!
//! ```text
//!   pusher                         taker        puller                          giver
//!   hello(push, epoch) ──────────►              hello(pull) ──────────────────►
//!                      ◄────────── have         have ─────────────────────────►
//!   offer ────────────────────────►                     ◄────────────────────── offer
//!                      ◄────────── want(offset)  ... and so on, the same way
//!   data ... end(checksum) ───────►
//!                      ◄────────── ack           (durable)
//!   done ─────────────────────────►
//! ```
//!
//! A pusher asks the fence before it begins and again before the end mark; a taker asks before it
//! touches anything and again before the snapshot counts. Every read and write has a deadline.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use flocker_base::{Epoch, Head, VolumeId};

use crate::backend::{Backend, BackendError};

mod give;
mod pipe;
mod take;
pub(crate) mod wire;

#[cfg(test)]
mod tests;

pub(crate) use give::{Right, give, push};
pub(crate) use take::{Admit, pull, take};

/// Limits of one session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionConfig {
    /// Longest wait for the peer to send or take the next frame.
    pub idle: Duration,
    /// Longest wait for the peer to check a whole snapshot and make it durable.
    pub commit: Duration,
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self { idle: Duration::from_secs(15), commit: Duration::from_secs(120) }
    }
}

/// Why a peer refused, for a program to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Reason {
    /// The epoch is over.
    LowerEpoch,
    /// The peer speaks another version or stores volumes otherwise.
    Incompatible,
    /// The peer is at work on the volume.
    Busy,
    /// The peer does not hold what was asked for.
    NotHeld,
    /// What was sent is not sound.
    BadStream,
    /// The peer's own storage failed.
    Failed,
}

/// Why a session ended without its purpose.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The peer refused.
    #[error("the peer refuses: {text}")]
    Refused {
        /// For programs.
        reason: Reason,
        /// For people.
        text: String,
    },
    /// This node may no longer write the volume.
    #[error("this node does not hold volume {volume} at epoch {epoch} any more: nothing is sent")]
    Fenced {
        /// The volume.
        volume: VolumeId,
        /// The epoch of the session.
        epoch: Epoch,
    },
    /// The peer is ahead of this node.
    #[error("the peer holds {theirs} of volume {volume}, newer than {ours} here: fetch it first")]
    Ahead {
        /// The volume.
        volume: VolumeId,
        /// The peer's newest snapshot.
        theirs: Head,
        /// The newest snapshot here.
        ours: Head,
    },
    /// There is no snapshot to send.
    #[error("volume {0} has no snapshot to send yet")]
    Nothing(VolumeId),
    /// The backend here failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The stream broke.
    #[error("the stream broke while {doing}: {source}")]
    Broken {
        /// What was going on.
        doing: &'static str,
        /// What the stream said.
        source: io::Error,
    },
    /// The peer did not answer in time.
    #[error("the peer did not answer within {0:?} while {1}")]
    TimedOut(Duration, &'static str),
    /// The peer does not speak as it should.
    #[error("the peer does not follow the protocol: {0}")]
    Protocol(String),
    /// Another session for the volume took over.
    #[error("a newer stream for volume {0} took this one's place")]
    Replaced(VolumeId),
}

impl SessionError {
    /// What to tell the peer.
    fn reason(&self) -> Reason {
        match self {
            Self::Backend(BackendError::Busy(_)) | Self::Replaced(_) => Reason::Busy,
            Self::Backend(BackendError::NoVolume(_) | BackendError::NoSnapshot { .. })
            | Self::Nothing(_) => Reason::NotHeld,
            Self::Backend(BackendError::BadStream { .. }) | Self::Protocol(_) => Reason::BadStream,
            Self::Fenced { .. } => Reason::LowerEpoch,
            Self::Refused { reason, .. } => *reason,
            _ => Reason::Failed,
        }
    }
}

/// Runs blocking work of the backend where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    backend: &Arc<dyn Backend>,
    work: impl FnOnce(&dyn Backend) -> crate::backend::Result<T> + Send + 'static,
) -> Result<T, SessionError> {
    let backend = backend.clone();
    match tokio::task::spawn_blocking(move || work(&*backend)).await {
        Ok(result) => Ok(result?),
        Err(_ended) => Err(SessionError::Backend(BackendError::io(
            "work in",
            "the backend",
            io::Error::other("its thread ended early"),
        ))),
    }
}

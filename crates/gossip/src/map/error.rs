//! What can go wrong with the map, in words that say what to do. It must never show a value.

use std::sync::Arc;
use std::time::Duration;

use flocker_base::{Name, VolumeId};

use super::MAX_EDITED;
use super::key::RecordKey;

/// What can go wrong with the map.
#[derive(Clone, Debug, thiserror::Error)]
pub enum MapError {
    /// The database failed. If a commit failed the process must end: see [`MapError::is_fatal`].
    #[error("{what} failed: {source}; check the disk")]
    Storage {
        /// What was attempted.
        what: &'static str,
        /// Why it failed.
        source: Arc<redb::Error>,
    },
    /// Stored bytes are not what was written.
    #[error(
        "the placement map on this disk is damaged at {what}: {why}; stop the agent and run \
         'flocker repair map', which drops what is damaged and lets the peers bring it back"
    )]
    Damaged {
        /// The record.
        what: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A setting is out of its range.
    #[error("the placement map's settings: {why}")]
    Config {
        /// What is wrong.
        why: &'static str,
    },
    /// A former change failed half-way.
    #[error("an earlier change of the placement map failed on disk; restart this node")]
    Stopped,
    /// The edit is too large.
    #[error("{key} would have {size} bytes, the limit is {MAX_EDITED}")]
    TooLarge {
        /// The record.
        key: RecordKey,
        /// Its size.
        size: usize,
    },
    /// The record's key is too long: a host name over some 290 bytes.
    #[error("a key of {length} bytes is too long, the limit is {}", RecordKey::MAX_LEN)]
    KeyTooLong {
        /// Its length.
        length: usize,
    },
    /// There is no such record or field.
    #[error("there is no {key}, or not what was to be changed of it")]
    Unknown {
        /// The record.
        key: RecordKey,
    },
    /// Ids of deleted records are not used again.
    #[error("{key} was deleted; make a new one, ids are never reused")]
    Deleted {
        /// The record.
        key: RecordKey,
    },
    /// The name is taken.
    #[error("the name '{name}' is taken by {by}; choose another")]
    NameTaken {
        /// The name.
        name: Name,
        /// Who has it.
        by: RecordKey,
    },
    /// A birth is written once.
    #[error("the birth of volume {volume} cannot be changed")]
    BirthFixed {
        /// The volume.
        volume: VolumeId,
    },
    /// The node would have too many labels.
    #[error("{key} would have {count} labels, the limit is {}", crate::model::MAX_LABELS)]
    TooManyLabels {
        /// The record.
        key: RecordKey,
        /// How many it would have.
        count: usize,
    },
    /// Placements are not edited.
    #[error("{key} is not edited: only a volume's master places it")]
    NotEditable {
        /// The record.
        key: RecordKey,
    },
    /// Someone else changed the same meanwhile.
    #[error(
        "{key} was changed by someone else since this edit was made, in: {fields}; look at it and \
         make the edit again"
    )]
    ChangedMeanwhile {
        /// The record.
        key: RecordKey,
        /// The names of the fields.
        fields: String,
    },
    /// The list of waiting edits is full.
    #[error("{} edits wait already; see 'flocker pending ls'", super::pending::MAX_PENDING)]
    TooManyPending,
    /// There is no such waiting edit.
    #[error("no edit with the number {number} waits here; see 'flocker pending ls'")]
    NotPending {
        /// The number asked for.
        number: u64,
    },
    /// There is no such record in quarantine.
    #[error("{key} is not in quarantine here; see 'flocker quarantine ls'")]
    NotQuarantined {
        /// The record.
        key: RecordKey,
    },
    /// A placement goes with its volume.
    #[error("{key} goes with its volume: decide on that")]
    GoesWithVolume {
        /// The placement.
        key: RecordKey,
    },
    /// The value to settle on is none of those that were written.
    #[error("the value chosen for {key} is not one of those that are there now; list them again")]
    NoSuchValue {
        /// The record.
        key: RecordKey,
    },
    /// The disk has too little room for a change to be begun safely.
    #[error(
        "the disk of the state folder has {} MiB left, and the map is not changed with less than \
         {} MiB: free some space; nothing was changed",
        free >> 20,
        needed >> 20
    )]
    NoRoom {
        /// Bytes left.
        free: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// This node's clock is wrong, or was.
    #[error(
        "this node's clock is {by:?} behind what it wrote or accepted before, so peers would \
         refuse the edit: set the clock"
    )]
    ClockBehind {
        /// By how much.
        by: Duration,
    },
}

impl MapError {
    /// Whether the process must end, because nobody knows what the disk holds.
    #[must_use]
    pub const fn is_fatal(&self) -> bool {
        matches!(self, Self::Storage { .. } | Self::Stopped)
    }
}

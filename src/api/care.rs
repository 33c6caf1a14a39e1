//! What people settle in the placement map: fields that two sides wrote, names taken twice,
//! records of nodes that were away for long, edits that wait for a master. One call; each answer
//! is a document of its own.
//!
//! Records are called `KIND/NAME`, such as `volume/pg`, or `KIND/ID` with the id in hexadecimal.

use flocker_base::{Name, StoreId, WallTime};
use serde::{Deserialize, Serialize};

use super::Schema;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum MapRequest {
    /// List what needs settling.
    Conflicts,
    /// Settle a field on one of its values.
    Settle {
        /// The record.
        record: String,
        /// The field, as listed.
        field: String,
        /// Who wrote the value.
        by: StoreId,
        /// The value's stamp, as listed.
        stamp: u64,
    },
    /// Give a volume, a service or a node's record another name.
    Rename {
        /// The record.
        record: String,
        /// The name.
        name: Name,
    },
    /// List what is in quarantine on this node.
    Quarantine,
    /// Take a record out of quarantine into the map.
    Admit {
        /// The record.
        record: String,
    },
    /// Delete a record in quarantine everywhere.
    Drop {
        /// The record.
        record: String,
    },
    /// List the edits that wait on this node.
    Pending,
    /// Forget such an edit.
    DropPending {
        /// Its number.
        number: u64,
    },
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MapReply {
    /// To [`MapRequest::Conflicts`].
    Conflicts(ConflictList),
    /// To [`MapRequest::Quarantine`].
    Quarantine(QuarantineList),
    /// To [`MapRequest::Pending`].
    Pending(PendingList),
    /// To the others.
    Settled(Settled),
}

impl Schema for MapReply {
    const SCHEMA: &'static str = "flocker.map/1";
}

/// What needs settling.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConflictList {
    /// Fields that were written on two sides.
    #[serde(default)]
    pub fields: Vec<FieldConflict>,
    /// Records that go by another name because theirs was taken.
    #[serde(default)]
    pub names: Vec<NameConflict>,
    /// Records that this node's version cannot read.
    #[serde(default)]
    pub unreadable: Vec<UnreadableRecord>,
    /// Stores whose id is in use twice, a sentence each.
    #[serde(default)]
    pub alarms: Vec<String>,
}

impl Schema for ConflictList {
    const SCHEMA: &'static str = "flocker.conflicts/1";
}

/// A field with several values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldConflict {
    /// The record.
    pub record: String,
    /// The field.
    pub field: String,
    /// Its values; the first is the one that is used.
    pub values: Vec<FieldValue>,
}

/// One of the values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldValue {
    /// What to give to `--to`, counted from 1.
    pub number: u32,
    /// The value; a secret is not shown.
    pub text: String,
    /// The node that wrote it.
    pub node: Name,
    /// Its store.
    pub store: StoreId,
    /// When, by that node's clock.
    #[serde(rename = "at_unix_ms")]
    pub at: WallTime,
    /// Its stamp.
    pub stamp: u64,
}

/// A record that goes by another name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameConflict {
    /// The record, under the name that it goes by.
    pub record: String,
    /// The name that it was given.
    pub wanted: Name,
}

/// A record that cannot be read here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnreadableRecord {
    /// The record.
    pub record: String,
    /// Why.
    pub why: String,
}

/// What is in quarantine on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantineList {
    /// The records.
    pub records: Vec<QuarantinedRecord>,
}

impl Schema for QuarantineList {
    const SCHEMA: &'static str = "flocker.quarantine/1";
}

/// A record in quarantine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantinedRecord {
    /// The record, as the commands take it.
    pub record: String,
    /// The name that it wants.
    pub name: Option<String>,
    /// The node that brought it first.
    pub from: Name,
    /// When it came.
    #[serde(rename = "came_unix_ms")]
    pub came: WallTime,
    /// When it was last written; of a placement that is not known.
    #[serde(rename = "written_unix_ms")]
    pub written: Option<WallTime>,
}

/// The edits that wait on this node, and those that were refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingList {
    /// In the order in which they were made.
    pub edits: Vec<PendingEdit>,
}

impl Schema for PendingList {
    const SCHEMA: &'static str = "flocker.pending/1";
}

/// An edit that waits or was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingEdit {
    /// Its number on this node.
    pub number: u64,
    /// The record that it changes.
    pub record: String,
    /// What it does, for people.
    pub change: String,
    /// The node whose master it waits for, if one is known.
    pub master: Option<Name>,
    /// When it was made.
    #[serde(rename = "made_unix_ms")]
    pub made: WallTime,
    /// Why the master refused it; nothing while it waits.
    pub refused: Option<String>,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settled {
    /// The record; of a waiting edit, its number.
    pub record: String,
    /// What was done, in a sentence.
    pub text: String,
}

impl Schema for Settled {
    const SCHEMA: &'static str = "flocker.settled/1";
}

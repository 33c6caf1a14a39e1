//! Making a copy of a volume its master, because a person says so.

use flocker_base::{Epoch, Name};
use serde::{Deserialize, Serialize};

use super::Schema;

/// Have this copy lead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromoteRequest {
    /// The volume.
    pub volume: Name,
    /// The node whose copy is to lead; the one that is asked if not given.
    pub node: Option<Name>,
    /// The former master, which the caller says is off for good. Then no quorum of the voters is
    /// needed: force.
    pub gone: Option<Name>,
}

/// It leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promoted {
    /// The volume.
    pub volume: Name,
    /// Its master now.
    pub node: Name,
    /// The epoch that it holds it under.
    pub epoch: Epoch,
    /// Whether it was by force.
    pub forced: bool,
    /// The voters from now on, if it was.
    #[serde(default)]
    pub voters: Vec<Name>,
    /// What runs with the volume, if it serves already.
    #[serde(default)]
    pub serving: Option<Name>,
}

impl Schema for Promoted {
    const SCHEMA: &'static str = "flocker.promoted/1";
}

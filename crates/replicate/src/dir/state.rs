//! A volume's durable record: its line of snapshots, its branches, what its live folder holds.
//!
//! It is replaced whole, and a snapshot exists from the moment in which the record that lists it
//! is durable. A damaged record stops the volume; it is never taken for an empty one.

use std::collections::BTreeMap;
use std::path::Path;

use flocker_base::{StoreId, VolumeId, WallTime, durable};
use serde::{Deserialize, Serialize};

use super::chunk::ChunkHash;
use super::crash;
use crate::backend::{BackendError, Result};
use crate::model::{Ancestor, BranchInfo, Guid, MAX_LINEAGE, SnapshotInfo};

const VERSION: u8 = 1;
/// Largest record, in bytes: far above any volume's.
const LIMIT: usize = 64 * 1024 * 1024;

/// A snapshot and the root of its tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub(crate) info: SnapshotInfo,
    pub(crate) root: ChunkHash,
}

/// Snapshots set aside under a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Branch {
    pub(crate) name: String,
    pub(crate) forked_from: Option<Guid>,
    pub(crate) kept_at: WallTime,
    pub(crate) snapshots: Vec<Kept>,
}

/// What the live folder holds. Snapshots are named by guid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Live {
    /// It follows what is received, and equals this snapshot (`None`: it is empty).
    Standing { at: Option<Guid> },
    /// A service may write to it. It began as, or was last captured as, this snapshot.
    Writable { base: Option<Guid> },
    /// It was being led from one snapshot to another: what differs between them is unknown.
    Changing { from: Option<Guid>, to: Option<Guid>, writable: bool },
}

/// The whole record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) volume: VolumeId,
    /// The main line, oldest first.
    pub(crate) line: Vec<Kept>,
    pub(crate) branches: Vec<Branch>,
    /// The newest ancestors of the line's head, itself included, held or not.
    pub(crate) lineage: Vec<Ancestor>,
    pub(crate) live: Live,
    /// Snapshots that pruning must leave, by the replica that needs them.
    pub(crate) pinned: BTreeMap<StoreId, Vec<Guid>>,
    pub(crate) limit_bytes: Option<u64>,
}

impl State {
    pub(crate) fn empty(volume: VolumeId) -> Self {
        Self {
            volume,
            line: Vec::new(),
            branches: Vec::new(),
            lineage: Vec::new(),
            live: Live::Standing { at: None },
            pinned: BTreeMap::new(),
            limit_bytes: None,
        }
    }

    pub(crate) fn load(path: &Path) -> Result<Option<Self>> {
        let Some((_, bytes)) = durable::read(path, VERSION, LIMIT)? else { return Ok(None) };
        let state = postcard::from_bytes(&bytes).map_err(|error| BackendError::Damaged {
            path: path.to_owned(),
            reason: format!("it cannot be decoded: {error}"),
        })?;
        Ok(Some(state))
    }

    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        let bytes = postcard::to_stdvec(self).map_err(|error| BackendError::Damaged {
            path: path.to_owned(),
            reason: format!("it cannot be encoded: {error}"),
        })?;
        crash::point("write the record").map_err(|e| BackendError::io("write", path, e))?;
        durable::write(path, VERSION, &bytes)?;
        Ok(())
    }

    pub(crate) fn newest(&self) -> Option<&Kept> {
        self.line.last()
    }

    /// A snapshot of the main line.
    pub(crate) fn on_line(&self, guid: &Guid) -> Result<&Kept> {
        self.line
            .iter()
            .find(|kept| kept.info.guid == *guid)
            .ok_or(BackendError::NoSnapshot { volume: self.volume, guid: *guid })
    }

    /// Any snapshot, a branch's included.
    pub(crate) fn anywhere(&self, guid: &Guid) -> Result<&Kept> {
        self.everything()
            .find(|kept| kept.info.guid == *guid)
            .ok_or(BackendError::NoSnapshot { volume: self.volume, guid: *guid })
    }

    pub(crate) fn everything(&self) -> impl Iterator<Item = &Kept> {
        self.line.iter().chain(self.branches.iter().flat_map(|branch| &branch.snapshots))
    }

    /// Adds the newest snapshot of the line.
    pub(crate) fn push(&mut self, kept: Kept) {
        self.lineage.push(kept.info.ancestor());
        let beyond = self.lineage.len().saturating_sub(MAX_LINEAGE);
        self.lineage.drain(..beyond);
        self.line.push(kept);
    }

    /// Sets snapshots aside, under this name or one with a number added.
    pub(crate) fn set_aside(
        &mut self,
        name: &str,
        forked_from: Option<Guid>,
        kept_at: WallTime,
        snapshots: Vec<Kept>,
    ) -> BranchInfo {
        let taken = |name: &str| self.branches.iter().any(|branch| branch.name == name);
        let name = std::iter::once(name.to_owned())
            .chain((2_u64..).map(|number| format!("{name}-{number}")))
            .find(|name| !taken(name))
            .unwrap_or_else(|| name.to_owned());
        let branch = Branch { name, forked_from, kept_at, snapshots };
        let info = branch.info();
        self.branches.push(branch);
        info
    }
}

impl Branch {
    pub(crate) fn info(&self) -> BranchInfo {
        BranchInfo {
            name: self.name.clone(),
            forked_from: self.forked_from,
            kept_at: self.kept_at,
            snapshots: self.snapshots.iter().map(|kept| kept.info.clone()).collect(),
        }
    }
}

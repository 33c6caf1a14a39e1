//! One volume of the backend in memory: its line of snapshots and its branches. Plain values, which
//! must never be shared without the backend's lock.

use flocker_base::WallTime;

use super::tree::Tree;
use crate::model::{Ancestor, BranchInfo, Guid, SnapshotInfo, StreamHeader};

#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub(super) info: SnapshotInfo,
    pub(super) tree: Tree,
}

#[derive(Clone, Debug)]
pub(super) struct Branch {
    pub(super) info: BranchInfo,
    pub(super) snapshots: Vec<Kept>,
}

#[derive(Debug, Default)]
pub(super) struct Memory {
    pub(super) line: Vec<Kept>,
    pub(super) lineage: Vec<Ancestor>,
    pub(super) branches: Vec<Branch>,
    pub(super) writable: bool,
    pub(super) base: Option<Guid>,
    pub(super) partial: Option<(StreamHeader, Vec<u8>)>,
    pub(super) limit: Option<u64>,
}

impl Memory {
    pub(super) fn find(&self, guid: &Guid) -> Option<&Kept> {
        self.line
            .iter()
            .chain(self.branches.iter().flat_map(|branch| &branch.snapshots))
            .find(|kept| kept.info.guid == *guid)
    }

    pub(super) fn set_aside(
        &mut self,
        name: &str,
        forked_from: Option<Guid>,
        kept_at: WallTime,
        mut snapshots: Vec<Kept>,
    ) -> BranchInfo {
        let tip = snapshots.last().map(|kept| kept.info.guid);
        if let Some(branch) = self.branches.iter_mut().find(|b| b.info.forked_from == tip) {
            snapshots.append(&mut branch.snapshots);
            branch.snapshots = snapshots;
            branch.info.forked_from = forked_from;
            branch.info.snapshots = branch.snapshots.iter().map(|k| k.info.clone()).collect();
            return branch.info.clone();
        }
        let mut unique = name.to_owned();
        let mut number = 1;
        while self.branches.iter().any(|branch| branch.info.name == unique) {
            number += 1;
            unique = format!("{name}-{number}");
        }
        let info = BranchInfo {
            name: unique,
            forked_from,
            kept_at,
            snapshots: snapshots.iter().map(|kept| kept.info.clone()).collect(),
        };
        self.branches.push(Branch { info: info.clone(), snapshots });
        info
    }

    pub(super) fn push(&mut self, kept: Kept) {
        self.lineage.push(kept.info.ancestor());
        self.line.push(kept);
    }

    pub(super) fn newest(&self) -> Option<Guid> {
        self.line.last().map(|kept| kept.info.guid)
    }
}

//! Pruning, and the room that it gives back.
//!
//! A snapshot leaves the record first, durably; only then do chunks go that no snapshot of the
//! record needs. A crash in between costs room until the next pruning, never data.

use std::collections::HashSet;

use super::chunk::ChunkHash;
use super::manifest::{self, own};
use super::state::{Kept, Live, State};
use super::volume::{Volume, Work};
use crate::backend::{BackendError, Quiesce, Result, Still};
use crate::model::{Destroy, Guid, Retention, Usage};

impl Volume {
    pub(crate) fn prune(&self, retention: &Retention) -> Result<usize> {
        let mut work = self.work();
        let state = self.state();
        let mut pins = retention.pinned.clone();
        for (replica, pins) in &mut pins {
            if let Some(recorded) = state.pinned.get(replica).filter(|_| pins.is_empty()) {
                pins.clone_from(recorded);
            }
        }
        let mut pinned: HashSet<Guid> = pins.values().flatten().copied().collect();
        pinned.extend(live_guids(&state.live));
        let first_kept = state.line.len().saturating_sub(retention.newest.max(1));
        let (keep, drop): (Vec<(usize, Kept)>, Vec<(usize, Kept)>) = state
            .line
            .iter()
            .cloned()
            .enumerate()
            .partition(|(at, kept)| *at >= first_kept || pinned.contains(&kept.info.guid));
        if drop.is_empty() {
            return Ok(0);
        }
        let mut state = State::clone(&state);
        state.line = keep.into_iter().map(|(_, kept)| kept).collect();
        state.pinned = pins;
        self.commit(&mut work, state)?;
        self.reclaim(&mut work)?;
        Ok(drop.len())
    }

    /// Gives back the room of chunks that no snapshot needs.
    pub(crate) fn reclaim(&self, work: &mut Work) -> Result<()> {
        let state = self.state();
        let mut used: HashSet<ChunkHash> = HashSet::new();
        let mut reader = work.store.reader();
        let packs = self.path("packs");
        for kept in state.everything() {
            if !used.insert(kept.root) {
                continue;
            }
            for page in self.load(&mut reader, kept.root)?.pages {
                if !used.insert(page) {
                    continue;
                }
                for entry in own(manifest::read_page(&mut reader, &page), &packs)? {
                    let visited = manifest::chunks_of(&mut reader, &entry, &mut |hash| {
                        used.insert(hash);
                    });
                    own(visited, &packs)?;
                }
            }
        }
        drop(reader);
        work.store.compact(&used)
    }

    pub(crate) fn drop_branch(&self, name: &str) -> Result<()> {
        let mut work = self.work();
        self.settle(&mut work)?;
        let mut state = State::clone(&self.state());
        let Some(at) = state.branches.iter().position(|branch| branch.name == name) else {
            return Err(BackendError::NoBranch { volume: self.id, name: name.to_owned() });
        };
        let branch = state.branches.remove(at);
        let live = live_guids(&state.live);
        if branch.snapshots.iter().any(|kept| live.contains(&kept.info.guid)) {
            return Err(BackendError::Unique {
                volume: self.id,
                what: format!("the live folder still rests on branch '{name}': demote it first;"),
            });
        }
        self.commit(&mut work, state)?;
        self.reclaim(&mut work)
    }

    /// Why the volume must not be destroyed, if it must not.
    pub(crate) fn unique(&self, mode: &Destroy) -> Result<Option<String>> {
        let Destroy::OnlyIfHeldElsewhere(elsewhere) = mode else { return Ok(None) };
        let mut work = self.work();
        let state = self.state();
        if let Some(branch) = state.branches.first() {
            return Ok(Some(format!("its branch '{}'", branch.name)));
        }
        if let Some(newest) = state.newest().filter(|kept| !elsewhere.contains(&kept.info.guid)) {
            return Ok(Some(format!("its snapshot {}", newest.info.head)));
        }
        if self.written_since(&mut work, &Still)? {
            return Ok(Some("what was written since its newest snapshot".to_owned()));
        }
        Ok(None)
    }

    fn written_since(&self, work: &mut Work, quiesce: &dyn Quiesce) -> Result<bool> {
        let state = self.state();
        let Live::Writable { base } = state.live else { return Ok(false) };
        let root = base.map(|guid| state.anywhere(&guid).map(|kept| kept.root)).transpose()?;
        let captured = self.capture(work, root, quiesce)?;
        Ok(captured.is_some_and(|captured| base.is_some() || captured.files > 1))
    }

    pub(crate) fn usage(&self) -> Usage {
        let state = self.state();
        Usage {
            referenced_bytes: state.newest().map_or(0, |kept| kept.info.bytes),
            stored_bytes: self.work().store.stored_bytes(),
            snapshots: state.everything().count() as u64,
            limit_bytes: state.limit_bytes,
        }
    }

    pub(crate) fn limit(&self, bytes: Option<u64>) -> Result<()> {
        let mut work = self.work();
        let mut state = State::clone(&self.state());
        state.limit_bytes = bytes;
        self.commit(&mut work, state)
    }
}

/// The snapshots that the live folder rests on.
fn live_guids(live: &Live) -> Vec<Guid> {
    let (a, b) = match *live {
        Live::Standing { at } => (at, None),
        Live::Writable { base } => (base, None),
        Live::Changing { from, to, .. } => (from, to),
    };
    a.into_iter().chain(b).collect()
}

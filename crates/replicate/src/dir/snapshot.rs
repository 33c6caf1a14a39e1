//! Snapshots of a writable live folder, and what is made of one: a branch, a roll-back.
//!
//! The first pass reads with the service running; the service is frozen only while the second
//! pass reads what changed meanwhile, and it is thawed whatever happens.

use flocker_base::{Epoch, Head, WallTime};

use super::beneath::Root;
use super::capture::{Cached, Capture, unchanged};
use super::chunk::ChunkHash;
use super::manifest::{Manifest, ManifestError};
use super::pack::PackWriter;
use super::scan;
use super::state::{Kept, Live, State};
use super::store::ChunkStore;
use super::tree::Kind;
use super::volume::{Volume, Work};
use crate::backend::{BackendError, Quiesce, Result, Still};
use crate::model::{BranchInfo, Guid, Keep, SnapshotInfo};

/// What a live folder was found to hold.
pub(crate) struct Captured {
    root: ChunkHash,
    bytes: u64,
    pub(crate) files: u64,
}

/// The service, frozen for as long as this lives.
struct Frozen<'a>(Option<&'a dyn Quiesce>);

impl<'a> Frozen<'a> {
    fn new(quiesce: &'a dyn Quiesce) -> Self {
        Self(quiesce.freeze().then_some(quiesce))
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if let Some(quiesce) = self.0 {
            quiesce.thaw();
        }
    }
}

impl Volume {
    pub(crate) fn snapshot(
        &self,
        epoch: Epoch,
        now: WallTime,
        guid: Guid,
        quiesce: &dyn Quiesce,
    ) -> Result<Option<SnapshotInfo>> {
        let mut work = self.work();
        let state = self.writable()?;
        let newest = state.newest();
        if let Some(newest) = newest.filter(|newest| newest.info.head.epoch > epoch) {
            let newest = newest.info.head.epoch;
            return Err(BackendError::StaleEpoch { volume: self.id, epoch, newest });
        }
        let base = newest.map(|kept| kept.root);
        let captured = self.capture(&mut work, base, quiesce)?;
        let captured = match (captured, newest) {
            (Some(captured), _) => captured,
            (None, Some(newest)) if newest.info.head.epoch == epoch => return Ok(None),
            // A new epoch opens with a snapshot of its own, so that every replica can tell whose
            // line is the newer.
            (None, Some(newest)) => {
                Captured { root: newest.root, bytes: newest.info.bytes, files: newest.info.files }
            }
            (None, None) => return Ok(None),
        };
        let seq = newest.map_or(0, |kept| kept.info.head.seq.0) + 1;
        let info = SnapshotInfo {
            volume: self.id,
            head: Head::new(epoch, seq),
            guid,
            parent: newest.map(|kept| kept.info.guid),
            taken_at: now,
            bytes: captured.bytes,
            files: captured.files,
        };
        let mut state = State::clone(&state);
        state.push(Kept { info: info.clone(), root: captured.root });
        state.live = Live::Writable { base: Some(guid) };
        self.commit(&mut work, state)?;
        Ok(Some(info))
    }

    /// The record of a volume that is writable at its newest snapshot.
    fn writable(&self) -> Result<std::sync::Arc<State>> {
        let state = self.state();
        let newest = state.newest().map(|kept| kept.info.clone());
        match state.live {
            Live::Writable { base } if base == newest.as_ref().map(|info| info.guid) => Ok(state),
            Live::Writable { .. } => Err(BackendError::Superseded {
                volume: self.id,
                newest: newest.map_or(Head::NONE, |info| info.head),
            }),
            _ => Err(BackendError::NotWritable(self.id)),
        }
    }

    /// Reads what the live folder holds and makes its tree durable. `None` if it is the tree of
    /// this root.
    pub(crate) fn capture(
        &self,
        work: &mut Work,
        base: Option<ChunkHash>,
        quiesce: &dyn Quiesce,
    ) -> Result<Option<Captured>> {
        let known = work.cache.take();
        let read = self.read_twice(&work.store, known.as_deref(), base.is_some(), quiesce);
        let (taken, root, pack) = match read {
            Ok(Some(read)) => read,
            other => {
                work.cache = known;
                return other.map(|_unchanged| None);
            }
        };
        if base == Some(root) {
            if let Some(pack) = pack {
                // Chunks of the first pass that the second found gone.
                pack.discard();
            }
            work.cache = Some(taken);
            return Ok(None);
        }
        if let Err(error) = work.store.seal(pack) {
            work.cache = known;
            return Err(error);
        }
        let captured =
            Captured { root, bytes: taken.iter().map(size).sum(), files: taken.len() as u64 };
        work.cache = Some(taken);
        Ok(Some(captured))
    }

    /// Both passes over the live folder. `None` if the first walk finds just what is known.
    fn read_twice(
        &self,
        store: &ChunkStore,
        known: Option<&[Cached]>,
        may_skip: bool,
        quiesce: &dyn Quiesce,
    ) -> Result<Option<(Vec<Cached>, ChunkHash, Option<PackWriter>)>> {
        let live = self.path("live");
        let root = Root::open(&live).map_err(|e| BackendError::io("open", &live, e))?;
        let mark_path = self.path("mark");
        let mark = scan::file_system_now(&mark_path)?;
        let seen = scan::walk(&root)?;
        if may_skip && known.is_some_and(|known| unchanged(known, &seen)) {
            return Ok(None);
        }
        let mut writer = store.writer();
        let mut pass = Capture { root: &root, writer: &mut writer, mark };
        let first = pass.pass(seen, known.unwrap_or(&[]))?;
        let taken = {
            let _frozen = Frozen::new(quiesce);
            let mark = scan::file_system_now(&mark_path)?;
            let seen = scan::walk(&root)?;
            Capture { root: &root, writer: &mut writer, mark }.pass(seen, &first)?
        };
        let manifest = Manifest::store(&mut writer, taken.iter().map(|cached| &cached.entry))
            .map_err(|error| match error {
                ManifestError::Store(error) => error,
                ManifestError::Bad(reason) => {
                    BackendError::Unsupported { volume: self.id, what: reason.to_owned() }
                }
            })?;
        Ok(Some((taken, manifest.root, writer.finish())))
    }

    /// Keeps what a writable live folder holds beyond its base as a branch.
    pub(crate) fn branch(&self, work: &mut Work, keep: &Keep) -> Result<Option<BranchInfo>> {
        self.settle(work)?;
        let state = self.state();
        let Live::Writable { base } = state.live else { return Ok(None) };
        let base = base.map(|guid| state.anywhere(&guid).cloned()).transpose()?;
        let captured = self.capture(work, base.as_ref().map(|kept| kept.root), &Still)?;
        let Some(captured) = captured else { return Ok(None) };
        if base.is_none() && captured.files <= 1 {
            // A folder in which nothing was ever made.
            return Ok(None);
        }
        let kept = self.tail(keep, base.as_ref(), &captured);
        let mut state = State::clone(&state);
        state.live = Live::Writable { base: Some(keep.guid) };
        let from = base.map(|kept| kept.info.guid);
        let of_branch = |branch: &&mut super::state::Branch| {
            branch.snapshots.last().map(|kept| kept.info.guid) == from && from.is_some()
        };
        let info = match state.branches.iter_mut().find(of_branch) {
            Some(branch) => {
                branch.snapshots.push(kept);
                branch.info()
            }
            None => state.set_aside(&keep.name, from, keep.now, vec![kept]),
        };
        self.commit(work, state)?;
        Ok(Some(info))
    }

    fn tail(&self, keep: &Keep, base: Option<&Kept>, captured: &Captured) -> Kept {
        let seq = base.map_or(0, |kept| kept.info.head.seq.0) + 1;
        let info = SnapshotInfo {
            volume: self.id,
            head: Head::new(keep.epoch, seq),
            guid: keep.guid,
            parent: base.map(|kept| kept.info.guid),
            taken_at: keep.now,
            bytes: captured.bytes,
            files: captured.files,
        };
        Kept { info, root: captured.root }
    }

    pub(crate) fn demote(&self, keep: &Keep) -> Result<Option<BranchInfo>> {
        let mut work = self.work();
        let kept = self.branch(&mut work, keep)?;
        let state = self.state();
        if let Live::Writable { base } = state.live {
            let newest = state.newest().map(|kept| kept.info.guid);
            if base == newest {
                let mut state = State::clone(&state);
                state.live = Live::Standing { at: newest };
                self.commit(&mut work, state)?;
                work.cache = None;
            } else {
                self.announce(&mut work, base, newest, false)?;
                self.lead(&mut work, base, newest, false)?;
            }
        }
        Ok(kept)
    }

    pub(crate) fn rollback(&self, to: Guid, guid: Guid, keep: &Keep) -> Result<SnapshotInfo> {
        let mut work = self.work();
        let state = self.writable()?;
        let target = state.anywhere(&to)?.clone();
        let newest = state.newest().cloned();
        let captured = self.capture(&mut work, newest.as_ref().map(|kept| kept.root), &Still)?;
        let unsaved = captured.is_some();
        let before = match (captured, &newest) {
            (Some(captured), newest) => self.tail(keep, newest.as_ref(), &captured),
            (None, Some(newest)) => {
                let captured = Captured {
                    root: newest.root,
                    bytes: newest.info.bytes,
                    files: newest.info.files,
                };
                self.tail(keep, Some(newest), &captured)
            }
            (None, None) => return Err(BackendError::NoSnapshot { volume: self.id, guid: to }),
        };
        let parent = newest.as_ref().map(|kept| kept.info.guid);
        let seq = newest.map_or(0, |kept| kept.info.head.seq.0) + 1;
        let info = SnapshotInfo {
            head: Head::new(keep.epoch, seq),
            guid,
            parent,
            taken_at: keep.now,
            ..target.info
        };
        let mut state = State::clone(&state);
        let from = Some(before.info.guid);
        state.set_aside(&keep.name, parent, keep.now, vec![before]);
        state.push(Kept { info: info.clone(), root: target.root });
        state.live = Live::Changing { from, to: Some(guid), writable: true };
        self.commit(&mut work, state)?;
        tracing::info!(volume = %self.id, to = %info.head, unsaved, "rolled back");
        work.unbegun = true;
        self.lead(&mut work, from, Some(guid), true)?;
        self.recognise(&mut work, Some(guid))?;
        Ok(info)
    }
}

fn size(cached: &Cached) -> u64 {
    match &cached.entry.kind {
        Kind::File { size, .. } => *size,
        _ => 0,
    }
}

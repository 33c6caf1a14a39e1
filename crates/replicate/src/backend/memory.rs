//! A backend in memory that fails when a test asks it to. Its live folders are real, so that the
//! same tests can write to them; nothing else of it outlives the process, and it must never be
//! used outside tests.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use flocker_base::{Epoch, Head, VolumeId, WallTime};

use crate::backend::{Backend, BackendError, Quiesce, Result};
use crate::model::{
    Ancestor, BranchInfo, Destroy, Guid, Keep, Retention, SnapshotInfo, StreamHeader, Usage,
    short_guid,
};

mod line;
mod tree;

use line::{Kept, Memory};
use tree::{Tree, encoded, read_tree, write_tree};

/// The operations that a test can let fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Taking a snapshot.
    Snapshot,
    /// Sending a stream.
    Send,
    /// Completing the receipt of a stream.
    Receive,
    /// Bringing a live folder up to date.
    Settle,
    /// Pruning.
    Prune,
}

/// Volumes in memory.
#[derive(Debug)]
pub struct MemoryBackend {
    live: tempfile::TempDir,
    volumes: Mutex<BTreeMap<VolumeId, Memory>>,
    failures: Mutex<BTreeMap<Operation, u32>>,
}

impl MemoryBackend {
    /// An empty backend, its live folders in a new temporary folder.
    ///
    /// # Errors
    /// If that folder cannot be made.
    pub fn new() -> Result<Self> {
        let live = tempfile::tempdir().map_err(|e| BackendError::io("create", "temporary", e))?;
        Ok(Self { live, volumes: Mutex::default(), failures: Mutex::default() })
    }

    /// Lets the next so many attempts at the operation fail with a full disk.
    pub fn fail(&self, operation: Operation, times: u32) {
        lock(&self.failures).insert(operation, times);
    }

    /// How many of the failures asked for are still to come.
    pub fn failures_left(&self, operation: Operation) -> u32 {
        lock(&self.failures).get(&operation).copied().unwrap_or(0)
    }

    fn may(&self, operation: Operation) -> Result<()> {
        match lock(&self.failures).get_mut(&operation) {
            Some(left) if *left > 0 => {
                *left -= 1;
                Err(BackendError::Full { action: "write", path: "memory".into() })
            }
            _ => Ok(()),
        }
    }

    fn folder(&self, volume: VolumeId) -> PathBuf {
        self.live.path().join(volume.to_string())
    }

    fn with<T>(&self, volume: VolumeId, work: impl FnOnce(&mut Memory) -> Result<T>) -> Result<T> {
        let mut volumes = lock(&self.volumes);
        work(volumes.get_mut(&volume).ok_or(BackendError::NoVolume(volume))?)
    }

    fn capture(&self, volume: VolumeId) -> Result<Tree> {
        let folder = self.folder(volume);
        let mut tree = Tree::new();
        read_tree(&folder, &folder, &mut tree)?;
        Ok(tree)
    }

    fn bring(&self, volume: VolumeId, memory: &mut Memory) -> Result<()> {
        if memory.writable {
            return Ok(());
        }
        let newest = memory.line.last();
        let tree = newest.map(|kept| kept.tree.clone()).unwrap_or_default();
        memory.base = newest.map(|kept| kept.info.guid);
        write_tree(&self.folder(volume), &tree)
    }

    fn keep_tail(
        &self,
        volume: VolumeId,
        memory: &mut Memory,
        keep: &Keep,
    ) -> Result<Option<BranchInfo>> {
        let tree = self.capture(volume)?;
        let base = memory.base.and_then(|guid| memory.find(&guid).cloned());
        let before = base.as_ref().map(|kept| kept.tree.clone()).unwrap_or_default();
        if !memory.writable || before == tree {
            return Ok(None);
        }
        let seq = base.as_ref().map_or(0, |kept| kept.info.head.seq.0) + 1;
        let kept = Kept {
            info: info(volume, Head::new(keep.epoch, seq), keep.guid, memory.base, keep.now, &tree),
            tree,
        };
        memory.base = Some(keep.guid);
        Ok(Some(memory.set_aside(&keep.name, kept.info.parent, keep.now, vec![kept])))
    }
}

impl Backend for MemoryBackend {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn volumes(&self) -> Result<Vec<VolumeId>> {
        Ok(lock(&self.volumes).keys().copied().collect())
    }

    fn create(&self, volume: VolumeId) -> Result<()> {
        let mut volumes = lock(&self.volumes);
        if volumes.contains_key(&volume) {
            return Err(BackendError::Exists(volume));
        }
        let folder = self.folder(volume);
        fs::create_dir_all(&folder).map_err(|e| BackendError::io("create", folder, e))?;
        volumes.insert(volume, Memory::default());
        Ok(())
    }

    fn exists(&self, volume: VolumeId) -> Result<bool> {
        Ok(lock(&self.volumes).contains_key(&volume))
    }

    fn snapshot(
        &self,
        volume: VolumeId,
        epoch: Epoch,
        now: WallTime,
        guid: Guid,
        quiesce: &dyn Quiesce,
    ) -> Result<Option<SnapshotInfo>> {
        self.may(Operation::Snapshot)?;
        self.with(volume, |memory| {
            if !memory.writable {
                return Err(BackendError::NotWritable(volume));
            }
            let newest = memory.line.last();
            let head = newest.map_or(Head::NONE, |kept| kept.info.head);
            if memory.base != memory.newest() {
                return Err(BackendError::Superseded { volume, newest: head });
            }
            if head.epoch > epoch {
                return Err(BackendError::StaleEpoch { volume, epoch, newest: head.epoch });
            }
            let frozen = quiesce.freeze();
            let tree = self.capture(volume);
            if frozen {
                quiesce.thaw();
            }
            let tree = tree?;
            if newest.is_some_and(|kept| kept.tree == tree && head.epoch == epoch) {
                return Ok(None);
            }
            let head = Head::new(epoch, head.seq.0 + 1);
            let info = info(volume, head, guid, memory.newest(), now, &tree);
            memory.push(Kept { info: info.clone(), tree });
            memory.base = Some(guid);
            Ok(Some(info))
        })
    }

    fn list(&self, volume: VolumeId) -> Result<Vec<SnapshotInfo>> {
        self.with(volume, |memory| Ok(memory.line.iter().map(|kept| kept.info.clone()).collect()))
    }

    fn lineage(&self, volume: VolumeId) -> Result<Vec<Ancestor>> {
        self.with(volume, |memory| Ok(memory.lineage.clone()))
    }

    fn plan(&self, volume: VolumeId, base: Option<Guid>, to: Guid) -> Result<StreamHeader> {
        self.with(volume, |memory| {
            let on_line = |guid: Guid| {
                memory
                    .line
                    .iter()
                    .find(|kept| kept.info.guid == guid)
                    .ok_or(BackendError::NoSnapshot { volume, guid })
            };
            let kept = on_line(to)?;
            base.map(on_line).transpose()?;
            let at = memory.lineage.iter().position(|known| known.guid == to).unwrap_or(0);
            let bytes = encoded(volume, &kept.tree)?;
            let (length, detail) = (bytes.len() as u64, blake3::hash(&bytes).as_bytes().to_vec());
            let lineage = memory.lineage[..=at].to_vec();
            Ok(StreamHeader { snapshot: kept.info.clone(), base, lineage, length, detail })
        })
    }

    fn send(&self, header: &StreamHeader, offset: u64, out: &mut dyn Write) -> Result<()> {
        self.may(Operation::Send)?;
        let volume = header.snapshot.volume;
        let bytes = self.with(volume, |memory| {
            let guid = header.snapshot.guid;
            let kept = memory.find(&guid).ok_or(BackendError::NoSnapshot { volume, guid })?;
            encoded(volume, &kept.tree)
        })?;
        let offset = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        out.write_all(&bytes[offset..])
            .and_then(|()| out.flush())
            .map_err(|source| BackendError::Output { volume, source })
    }

    fn partial(&self, volume: VolumeId) -> Result<Option<StreamHeader>> {
        let volumes = lock(&self.volumes);
        let partial = volumes.get(&volume).and_then(|memory| memory.partial.as_ref());
        Ok(partial.map(|(header, _)| header.clone()))
    }

    fn received(&self, header: &StreamHeader) -> Result<u64> {
        let volumes = lock(&self.volumes);
        let partial =
            volumes.get(&header.snapshot.volume).and_then(|memory| memory.partial.as_ref());
        Ok(match partial {
            Some((known, bytes)) if known == header => bytes.len() as u64,
            _ => 0,
        })
    }

    fn receive(
        &self,
        header: &StreamHeader,
        offset: u64,
        input: &mut dyn Read,
    ) -> Result<SnapshotInfo> {
        let volume = header.snapshot.volume;
        let bad = |why: &str| BackendError::BadStream { volume, why: why.to_owned() };
        match self.create(volume) {
            Ok(()) | Err(BackendError::Exists(_)) => {}
            Err(error) => return Err(error),
        }
        let mut bytes = self.with(volume, |memory| {
            acceptable(volume, memory, header)?;
            match memory.partial.take() {
                Some((known, bytes)) if known == *header && bytes.len() as u64 == offset => {
                    Ok(bytes)
                }
                _ if offset == 0 => Ok(Vec::new()),
                _ => Err(BackendError::Busy(volume)),
            }
        })?;
        let mut rest = Vec::new();
        let read = input.take(header.length + 1).read_to_end(&mut rest);
        bytes.append(&mut rest);
        let short = (bytes.len() as u64) < header.length;
        let cut = match read {
            Err(error) => Some(error),
            Ok(_) if short => Some(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => None,
        };
        if let Some(source) = cut {
            let at = bytes.len() as u64;
            self.with(volume, |memory| {
                memory.partial = Some((header.clone(), bytes));
                Ok(())
            })?;
            return Err(BackendError::Cut { volume, at, source });
        }
        if bytes.len() as u64 > header.length {
            return Err(bad("it goes on beyond its length"));
        }
        if blake3::hash(&bytes).as_bytes().as_slice() != header.detail {
            return Err(bad("it does not match its checksum"));
        }
        self.may(Operation::Receive)?;
        let tree: Tree = postcard::from_bytes(&bytes).map_err(|_cause| bad("it is no tree"))?;
        self.with(volume, |memory| {
            acceptable(volume, memory, header)?;
            let known = |kept: &Kept| {
                header.base == Some(kept.info.guid)
                    || header.lineage.iter().any(|known| known.guid == kept.info.guid)
            };
            let keep = memory.line.iter().rposition(known).map_or(0, |at| at + 1);
            let extra = memory.line.split_off(keep);
            if let Some(last) = extra.last().map(|kept| kept.info.clone()) {
                let name = format!("diverged-{}-{}", last.head.epoch, short_guid(&last.guid));
                memory.set_aside(&name, memory.newest(), last.taken_at, extra);
            }
            memory.line.push(Kept { info: header.snapshot.clone(), tree });
            memory.lineage.clone_from(&header.lineage);
            Ok(header.snapshot.clone())
        })
    }

    fn settle(&self, volume: VolumeId) -> Result<()> {
        self.may(Operation::Settle)?;
        self.with(volume, |memory| self.bring(volume, memory))
    }

    fn promote(&self, volume: VolumeId) -> Result<PathBuf> {
        self.with(volume, |memory| {
            self.bring(volume, memory)?;
            if memory.base != memory.newest() {
                let newest = memory.line.last().map_or(Head::NONE, |kept| kept.info.head);
                return Err(BackendError::Superseded { volume, newest });
            }
            memory.writable = true;
            Ok(self.folder(volume))
        })
    }

    fn live(&self, volume: VolumeId) -> Result<Option<PathBuf>> {
        self.with(volume, |memory| Ok(memory.writable.then(|| self.folder(volume))))
    }

    fn demote(&self, volume: VolumeId, keep: &Keep) -> Result<Option<BranchInfo>> {
        self.with(volume, |memory| {
            let kept = self.keep_tail(volume, memory, keep)?;
            memory.writable = false;
            self.bring(volume, memory)?;
            Ok(kept)
        })
    }

    fn branch(&self, volume: VolumeId, keep: &Keep) -> Result<Option<BranchInfo>> {
        self.with(volume, |memory| self.keep_tail(volume, memory, keep))
    }

    fn branches(&self, volume: VolumeId) -> Result<Vec<BranchInfo>> {
        self.with(volume, |memory| Ok(memory.branches.iter().map(|b| b.info.clone()).collect()))
    }

    fn drop_branch(&self, volume: VolumeId, name: &str) -> Result<()> {
        self.with(volume, |memory| {
            let at = memory.branches.iter().position(|branch| branch.info.name == name);
            let no = || BackendError::NoBranch { volume, name: name.to_owned() };
            memory.branches.remove(at.ok_or_else(no)?);
            Ok(())
        })
    }

    fn rollback(
        &self,
        volume: VolumeId,
        to: Guid,
        guid: Guid,
        keep: &Keep,
    ) -> Result<SnapshotInfo> {
        self.with(volume, |memory| {
            if !memory.writable {
                return Err(BackendError::NotWritable(volume));
            }
            let no = || BackendError::NoSnapshot { volume, guid: to };
            let tree = memory.find(&to).ok_or_else(no)?.tree.clone();
            let before = self.capture(volume)?;
            let newest = memory.line.last().map_or(Head::NONE, |kept| kept.info.head);
            let head = Head::new(keep.epoch, newest.seq.0 + 1);
            let parent = memory.newest();
            let kept = Kept {
                info: info(volume, head, keep.guid, parent, keep.now, &before),
                tree: before,
            };
            memory.set_aside(&keep.name, parent, keep.now, vec![kept]);
            let info = info(volume, head, guid, parent, keep.now, &tree);
            write_tree(&self.folder(volume), &tree)?;
            memory.push(Kept { info: info.clone(), tree });
            memory.base = Some(guid);
            Ok(info)
        })
    }

    fn clone_volume(
        &self,
        from: VolumeId,
        snapshot: Guid,
        to: VolumeId,
        now: WallTime,
        guid: Guid,
    ) -> Result<SnapshotInfo> {
        let no = BackendError::NoSnapshot { volume: from, guid: snapshot };
        let kept = self.with(from, |memory| memory.find(&snapshot).cloned().ok_or(no))?;
        self.create(to)?;
        self.with(to, |memory| {
            let info = info(to, Head::new(Epoch::ZERO, 1), guid, None, now, &kept.tree);
            memory.push(Kept { info: info.clone(), tree: kept.tree });
            Ok(info)
        })
    }

    fn export(&self, volume: VolumeId, snapshot: Guid, into: &Path) -> Result<()> {
        let no = BackendError::NoSnapshot { volume, guid: snapshot };
        let kept = self.with(volume, |memory| memory.find(&snapshot).cloned().ok_or(no))?;
        fs::create_dir(into).map_err(|e| BackendError::io("create", into, e))?;
        write_tree(into, &kept.tree)
    }

    fn prune(&self, volume: VolumeId, retention: &Retention) -> Result<usize> {
        self.may(Operation::Prune)?;
        self.with(volume, |memory| {
            let before = memory.line.len();
            let first = before.saturating_sub(retention.newest.max(1));
            let base = memory.base;
            let mut at = 0;
            memory.line.retain(|kept| {
                at += 1;
                at > first
                    || Some(kept.info.guid) == base
                    || retention.pinned.values().flatten().any(|guid| *guid == kept.info.guid)
            });
            Ok(before - memory.line.len())
        })
    }

    fn destroy(&self, volume: VolumeId, mode: &Destroy) -> Result<()> {
        let tree = self.capture(volume)?;
        self.with(volume, |memory| {
            let Destroy::OnlyIfHeldElsewhere(elsewhere) = mode else { return Ok(()) };
            let unique = |what: &str| BackendError::Unique { volume, what: what.to_owned() };
            let base = memory.base.and_then(|guid| memory.find(&guid));
            if !memory.branches.is_empty() {
                return Err(unique("a branch"));
            }
            if memory.newest().is_some_and(|newest| !elsewhere.contains(&newest)) {
                return Err(unique("its newest snapshot"));
            }
            let before = base.map(|kept| kept.tree.clone()).unwrap_or_default();
            if memory.writable && before != tree { Err(unique("its tail")) } else { Ok(()) }
        })?;
        lock(&self.volumes).remove(&volume);
        let folder = self.folder(volume);
        fs::remove_dir_all(&folder).map_err(|e| BackendError::io("remove", folder, e))
    }

    fn usage(&self, volume: VolumeId) -> Result<Usage> {
        self.with(volume, |memory| {
            let bytes = memory.line.last().map_or(0, |kept| kept.info.bytes);
            let branched: usize = memory.branches.iter().map(|b| b.snapshots.len()).sum();
            Ok(Usage {
                referenced_bytes: bytes,
                stored_bytes: memory.line.iter().map(|kept| kept.info.bytes).sum(),
                snapshots: (memory.line.len() + branched) as u64,
                limit_bytes: memory.limit,
            })
        })
    }

    fn limit(&self, volume: VolumeId, bytes: Option<u64>) -> Result<()> {
        self.with(volume, |memory| {
            memory.limit = bytes;
            Ok(())
        })
    }
}

fn acceptable(volume: VolumeId, memory: &Memory, header: &StreamHeader) -> Result<()> {
    let offered = header.snapshot.head;
    let newest = memory.line.last().map_or(Head::NONE, |kept| kept.info.head);
    if newest >= offered {
        return Err(BackendError::NotNewer { volume, offered, newest });
    }
    match header.base {
        Some(guid) if !memory.line.iter().any(|kept| kept.info.guid == guid) => {
            Err(BackendError::NoSnapshot { volume, guid })
        }
        _ => Ok(()),
    }
}

fn info(
    volume: VolumeId,
    head: Head,
    guid: Guid,
    parent: Option<Guid>,
    taken_at: WallTime,
    tree: &Tree,
) -> SnapshotInfo {
    let bytes = tree::size(tree);
    SnapshotInfo { volume, head, guid, parent, taken_at, bytes, files: tree.len() as u64 }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

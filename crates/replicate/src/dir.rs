//! The `dir` backend: volumes as plain folders on any file system, without root.
//!
//! Files are cut into content-defined chunks (FastCDC 2020) named by BLAKE3 hash, so that a
//! snapshot stores, and a stream carries, only what changed. The live folder is a copy besides
//! the chunks: a volume takes its size twice.
//!
//! Limits, plainly: a snapshot is not atomic under writes unless the service is frozen meanwhile,
//! which the backend does where it can; a change made through a shared memory mapping shows only
//! when the system writes it back; a size limit is recorded and reported, not enforced; sockets
//! and devices are not kept, nor are extended attributes; a file is at most half a tebibyte.
//!
//! One process at a time owns the folder, by a lock on it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flocker_base::{Epoch, Head, VolumeId, WallTime, durable};

use crate::backend::{Backend, BackendError, Quiesce, Result};
use crate::model::{
    Ancestor, BranchInfo, Destroy, Guid, Keep, Retention, SnapshotInfo, StreamHeader, Usage,
};

mod apply;
mod beneath;
mod capture;
mod chunk;
mod crash;
mod feed;
mod incoming;
mod manifest;
mod outgoing;
mod pack;
mod retention;
mod scan;
mod snapshot;
mod state;
mod store;
mod tree;
mod volume;

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests write the files that users would")]
mod tests;

use apply::Apply;
use beneath::Root;
use manifest::own;
use state::{Kept, Live, State};
use volume::Volume;

/// Volumes in one folder. See the module for what it can and cannot do.
#[derive(Debug)]
pub struct DirBackend {
    folder: PathBuf,
    /// Opened volumes. An entry's lock is held while one is opened, made or destroyed.
    volumes: Mutex<HashMap<VolumeId, Arc<Volume>>>,
    _lock: File,
}

impl DirBackend {
    /// Opens the backend in this folder, made if need be, and removes what an interrupted
    /// creation or destruction left.
    ///
    /// # Errors
    /// [`BackendError::Io`]; also if another process uses the folder.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self> {
        let folder = folder.into();
        fs::create_dir_all(&folder).map_err(|e| BackendError::io("create", &folder, e))?;
        let path = folder.join("lock");
        let io = |action| move |e: std::io::Error| (action, e);
        let lock = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(io("open"))
            .and_then(|file| {
                let flags = rustix::fs::FlockOperation::NonBlockingLockExclusive;
                rustix::fs::flock(&file, flags)
                    .map_err(|e| ("lock, for another process uses it,", e.into()))?;
                Ok(file)
            })
            .map_err(|(action, e)| BackendError::io(action, &path, e))?;
        let volumes = folder.join("volumes");
        fs::create_dir_all(&volumes).map_err(|e| BackendError::io("create", &volumes, e))?;
        for entry in fs::read_dir(&volumes).map_err(|e| BackendError::io("list", &volumes, e))? {
            let path = entry.map_err(|e| BackendError::io("list", &volumes, e))?.path();
            let extension = path.extension().and_then(|extension| extension.to_str());
            if matches!(extension, Some("new" | "gone")) {
                fs::remove_dir_all(&path).map_err(|e| BackendError::io("remove", &path, e))?;
            }
        }
        Ok(Self { folder, volumes: Mutex::new(HashMap::new()), _lock: lock })
    }

    fn path(&self, volume: VolumeId) -> PathBuf {
        self.folder.join("volumes").join(volume.to_string())
    }

    fn opened(&self) -> MutexGuard<'_, HashMap<VolumeId, Arc<Volume>>> {
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn volume(&self, id: VolumeId) -> Result<Arc<Volume>> {
        let mut opened = self.opened();
        if let Some(volume) = opened.get(&id) {
            return Ok(volume.clone());
        }
        let volume = Arc::new(Volume::open(self.path(id), id)?);
        opened.insert(id, volume.clone());
        Ok(volume)
    }

    /// Writes one snapshot into an empty folder.
    fn export_into(volume: &Volume, snapshot: &Guid, into: &Path) -> Result<()> {
        let work = volume.work();
        let mut reader = work.store.reader();
        let manifest = volume.manifest(&mut reader, snapshot)?;
        let packs = volume.path("packs");
        let changes = own(manifest::diff(&mut reader, None, Some(&manifest)), &packs)?;
        let root = Root::open(into).map_err(|e| BackendError::io("open", into, e))?;
        let strays = into.with_extension("strays");
        let mut apply = Apply { root: &root, source: &mut reader, trusted: true, strays: &strays };
        own(apply.run(&changes, Some(&manifest)), &packs)
    }
}

impl Backend for DirBackend {
    fn name(&self) -> &'static str {
        "dir"
    }

    fn volumes(&self) -> Result<Vec<VolumeId>> {
        let folder = self.folder.join("volumes");
        let io = |e| BackendError::io("list", &folder, e);
        let mut volumes = Vec::new();
        for entry in fs::read_dir(&folder).map_err(io)? {
            let name = entry.map_err(io)?.file_name();
            volumes.extend(name.to_str().and_then(|name| name.parse::<VolumeId>().ok()));
        }
        volumes.sort_unstable();
        Ok(volumes)
    }

    fn create(&self, volume: VolumeId) -> Result<()> {
        let _opened = self.opened();
        Volume::create(&self.path(volume), &State::empty(volume), |_packs| Ok(()))
    }

    fn exists(&self, volume: VolumeId) -> Result<bool> {
        let path = self.path(volume);
        path.try_exists().map_err(|e| BackendError::io("look at", path, e))
    }

    fn snapshot(
        &self,
        volume: VolumeId,
        epoch: Epoch,
        now: WallTime,
        guid: Guid,
        quiesce: &dyn Quiesce,
    ) -> Result<Option<SnapshotInfo>> {
        self.volume(volume)?.snapshot(epoch, now, guid, quiesce)
    }

    fn list(&self, volume: VolumeId) -> Result<Vec<SnapshotInfo>> {
        let state = self.volume(volume)?.state();
        Ok(state.line.iter().map(|kept| kept.info.clone()).collect())
    }

    fn lineage(&self, volume: VolumeId) -> Result<Vec<Ancestor>> {
        Ok(self.volume(volume)?.state().lineage.clone())
    }

    fn plan(&self, volume: VolumeId, base: Option<Guid>, to: Guid) -> Result<StreamHeader> {
        self.volume(volume)?.plan(base, to)
    }

    fn send(&self, header: &StreamHeader, offset: u64, out: &mut dyn Write) -> Result<()> {
        self.volume(header.snapshot.volume)?.send(header, offset, out)
    }

    fn partial(&self, volume: VolumeId) -> Result<Option<StreamHeader>> {
        match self.volume(volume) {
            Ok(volume) => volume.partial(),
            Err(BackendError::NoVolume(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn received(&self, header: &StreamHeader) -> Result<u64> {
        match self.volume(header.snapshot.volume) {
            Ok(volume) => volume.received(header),
            Err(BackendError::NoVolume(_)) => Ok(0),
            Err(error) => Err(error),
        }
    }

    fn receive(
        &self,
        header: &StreamHeader,
        offset: u64,
        input: &mut dyn Read,
    ) -> Result<SnapshotInfo> {
        incoming::check_header(header)?;
        let id = header.snapshot.volume;
        match self.create(id) {
            Ok(()) | Err(BackendError::Exists(_)) => {}
            Err(error) => return Err(error),
        }
        self.volume(id)?.receive(header, offset, input)
    }

    fn settle(&self, volume: VolumeId) -> Result<()> {
        let volume = self.volume(volume)?;
        let mut work = volume.work();
        volume.settle(&mut work)
    }

    fn promote(&self, volume: VolumeId) -> Result<PathBuf> {
        self.volume(volume)?.promote()
    }

    fn live(&self, volume: VolumeId) -> Result<Option<PathBuf>> {
        let volume = self.volume(volume)?;
        let writable = match volume.state().live {
            Live::Writable { .. } => true,
            Live::Changing { writable, .. } => writable,
            Live::Standing { .. } => false,
        };
        Ok(writable.then(|| volume.path("live")))
    }

    fn demote(&self, volume: VolumeId, keep: &Keep) -> Result<Option<BranchInfo>> {
        self.volume(volume)?.demote(keep)
    }

    fn branch(&self, volume: VolumeId, keep: &Keep) -> Result<Option<BranchInfo>> {
        let volume = self.volume(volume)?;
        let mut work = volume.work();
        volume.branch(&mut work, keep)
    }

    fn branches(&self, volume: VolumeId) -> Result<Vec<BranchInfo>> {
        Ok(self.volume(volume)?.state().branches.iter().map(state::Branch::info).collect())
    }

    fn drop_branch(&self, volume: VolumeId, name: &str) -> Result<()> {
        self.volume(volume)?.drop_branch(name)
    }

    fn rollback(
        &self,
        volume: VolumeId,
        to: Guid,
        guid: Guid,
        keep: &Keep,
    ) -> Result<SnapshotInfo> {
        self.volume(volume)?.rollback(to, guid, keep)
    }

    fn clone_volume(
        &self,
        from: VolumeId,
        snapshot: Guid,
        to: VolumeId,
        now: WallTime,
        guid: Guid,
    ) -> Result<SnapshotInfo> {
        let source = self.volume(from)?;
        // Packs are immutable, so both volumes may share them; none goes while this is held.
        let work = source.work();
        let kept = source.state().anywhere(&snapshot)?.clone();
        let info = SnapshotInfo {
            volume: to,
            head: Head::new(Epoch::ZERO, 1),
            guid,
            parent: None,
            taken_at: now,
            ..kept.info
        };
        let mut state = State::empty(to);
        state.push(Kept { info: info.clone(), root: kept.root });
        Volume::create(&self.path(to), &state, |packs| work.store.link_into(packs))?;
        Ok(info)
    }

    fn export(&self, volume: VolumeId, snapshot: Guid, into: &Path) -> Result<()> {
        let volume = self.volume(volume)?;
        volume.state().anywhere(&snapshot)?;
        fs::create_dir(into).map_err(|e| BackendError::io("create", into, e))?;
        Self::export_into(&volume, &snapshot, into)
    }

    fn prune(&self, volume: VolumeId, retention: &Retention) -> Result<usize> {
        self.volume(volume)?.prune(retention)
    }

    fn destroy(&self, id: VolumeId, mode: &Destroy) -> Result<()> {
        let volume = self.volume(id)?;
        if let Some(what) = volume.unique(mode)? {
            return Err(BackendError::Unique { volume: id, what });
        }
        let mut opened = self.opened();
        let (path, gone) = (self.path(id), self.path(id).with_extension("gone"));
        fs::rename(&path, &gone).map_err(|e| BackendError::io("remove", &path, e))?;
        opened.remove(&id);
        durable::sync_parent(&path)?;
        fs::remove_dir_all(&gone).map_err(|e| BackendError::io("remove", &gone, e))
    }

    fn usage(&self, volume: VolumeId) -> Result<Usage> {
        Ok(self.volume(volume)?.usage())
    }

    fn limit(&self, volume: VolumeId, bytes: Option<u64>) -> Result<()> {
        self.volume(volume)?.limit(bytes)
    }
}

//! One volume of the `dir` backend: its folder, its record, and its live folder's way from one
//! snapshot to the next.
//!
//! ```text
//!   <volume>/state      the record (state.rs)      <volume>/live/      what services see
//!   <volume>/packs/     chunks (store.rs)          <volume>/incoming/  a stream on its way in
//!   <volume>/strays/    what was in the way        <volume>/mark       tells the disk's time
//! ```
//!
//! The record is replaced only with the work lock held. A writable live folder is never changed
//! except by rollback and demotion, on which nothing runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use flocker_base::{VolumeId, durable};

use super::apply::Apply;
use super::beneath::Root;
use super::capture::{Cached, settled};
use super::chunk::ChunkHash;
use super::manifest::{self, Manifest, own};
use super::outgoing::Plan;
use super::scan;
use super::state::{Live, State};
use super::store::{ChunkStore, Reader};
use super::tree::Kind;
use crate::backend::{BackendError, Result};
use crate::model::{Guid, short_guid};

/// One volume, opened.
#[derive(Debug)]
pub(crate) struct Volume {
    pub(crate) id: VolumeId,
    folder: PathBuf,
    state: RwLock<Arc<State>>,
    work: Mutex<Work>,
    /// Held while a stream comes in.
    pub(crate) incoming: Mutex<()>,
    /// The stream planned last.
    pub(crate) planned: Mutex<Option<Arc<Plan>>>,
}

/// What one operation at a time may touch.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) store: ChunkStore,
    /// What the writable live folder held at the last snapshot; `None` if it has to be read.
    pub(crate) cache: Option<Vec<Cached>>,
    /// The change that the record announces has not been begun: the folder still equals the
    /// snapshot that it begins at.
    pub(crate) unbegun: bool,
}

impl Volume {
    /// Makes a volume with this record in a folder that appears whole or not at all. `fill` adds
    /// packs to the folder given.
    pub(crate) fn create(
        folder: &Path,
        state: &State,
        fill: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        if folder.exists() {
            return Err(BackendError::Exists(state.volume));
        }
        let fresh = folder.with_extension("new");
        if fresh.exists() {
            fs::remove_dir_all(&fresh).map_err(|e| BackendError::io("remove", &fresh, e))?;
        }
        for path in [fresh.clone(), fresh.join("packs"), fresh.join("live"), fresh.join("incoming")]
        {
            fs::create_dir_all(&path).map_err(|e| BackendError::io("create", &path, e))?;
        }
        fill(&fresh.join("packs"))?;
        durable::sync_parent(&fresh.join("packs/x"))?;
        state.save(&fresh.join("state"))?;
        fs::rename(&fresh, folder).map_err(|e| BackendError::io("rename", &fresh, e))?;
        durable::sync_parent(folder)?;
        Ok(())
    }

    /// Opens the volume in this folder.
    pub(crate) fn open(folder: PathBuf, id: VolumeId) -> Result<Self> {
        let state = match State::load(&folder.join("state"))? {
            Some(state) if state.volume == id => state,
            Some(state) => {
                return Err(BackendError::Damaged {
                    path: folder.join("state"),
                    reason: format!("it is the record of volume {}", state.volume),
                });
            }
            None if folder.exists() => {
                return Err(BackendError::Damaged {
                    path: folder.join("state"),
                    reason: "it is missing".to_owned(),
                });
            }
            None => return Err(BackendError::NoVolume(id)),
        };
        let store = ChunkStore::open(&folder.join("packs"))?;
        Ok(Self {
            id,
            folder,
            state: RwLock::new(Arc::new(state)),
            work: Mutex::new(Work { store, cache: None, unbegun: false }),
            incoming: Mutex::new(()),
            planned: Mutex::new(None),
        })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The record as it stands.
    pub(crate) fn state(&self) -> Arc<State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for its turn to work on the volume.
    pub(crate) fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the record, durably. Whoever calls it holds the work lock.
    pub(crate) fn commit(&self, _work: &mut Work, state: State) -> Result<()> {
        state.save(&self.path("state"))?;
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(state);
        Ok(())
    }

    /// The tree of a snapshot held here.
    pub(crate) fn manifest(&self, reader: &mut Reader<'_>, guid: &Guid) -> Result<Manifest> {
        let root = self.state().anywhere(guid)?.root;
        self.load(reader, root)
    }

    pub(crate) fn load(&self, reader: &mut Reader<'_>, root: ChunkHash) -> Result<Manifest> {
        own(Manifest::load(reader, root), &self.path("packs"))
    }

    /// Brings a standing live folder up to the newest snapshot, and ends any change that a crash
    /// interrupted.
    pub(crate) fn settle(&self, work: &mut Work) -> Result<()> {
        let state = self.state();
        if let Live::Changing { from, to, writable } = state.live {
            self.lead(work, from, to, writable)?;
        }
        let state = self.state();
        let newest = state.newest().map(|kept| kept.info.guid);
        match state.live {
            Live::Standing { at } if at != newest => {
                self.announce(work, at, newest, false)?;
                self.lead(work, at, newest, false)
            }
            _ => Ok(()),
        }
    }

    /// Records that the live folder, which equals `from`, is about to be led to `to`.
    pub(crate) fn announce(
        &self,
        work: &mut Work,
        from: Option<Guid>,
        to: Option<Guid>,
        writable: bool,
    ) -> Result<()> {
        let mut state = State::clone(&self.state());
        state.live = Live::Changing { from, to, writable };
        self.commit(work, state)?;
        work.unbegun = true;
        Ok(())
    }

    /// Goes the way that the record announces.
    pub(crate) fn lead(
        &self,
        work: &mut Work,
        from: Option<Guid>,
        to: Option<Guid>,
        writable: bool,
    ) -> Result<()> {
        let trusted = std::mem::take(&mut work.unbegun);
        work.cache = None;
        let mut reader = work.store.reader();
        let load = |reader: &mut Reader<'_>, guid: Option<Guid>| {
            guid.map(|guid| self.manifest(reader, &guid)).transpose()
        };
        let (old, new) = (load(&mut reader, from)?, load(&mut reader, to)?);
        let packs = self.path("packs");
        let changes = own(manifest::diff(&mut reader, old.as_ref(), new.as_ref()), &packs)?;
        let live = self.path("live");
        let root = Root::open(&live).map_err(|e| BackendError::io("open", &live, e))?;
        let strays = self.path("strays").join(to.as_ref().map_or("none".into(), short_guid));
        let mut apply = Apply { root: &root, source: &mut reader, trusted, strays: &strays };
        own(apply.run(&changes, new.as_ref()), &packs)?;
        drop(reader);
        let mut state = State::clone(&self.state());
        state.live = if writable { Live::Writable { base: to } } else { Live::Standing { at: to } };
        self.commit(work, state)
    }

    /// Takes the live folder, which equals this snapshot, as read: its files are recognised by
    /// size and time, and those that differ are read at the next snapshot.
    pub(crate) fn recognise(&self, work: &mut Work, guid: Option<Guid>) -> Result<()> {
        let mark = scan::file_system_now(&self.path("mark"))?;
        let Some(guid) = guid else {
            work.cache = Some(Vec::new());
            return Ok(());
        };
        let mut reader = work.store.reader();
        let manifest = self.manifest(&mut reader, &guid)?;
        let entries = own(manifest.entries(&mut reader), &self.path("packs"))?;
        let live = self.path("live");
        let root = Root::open(&live).map_err(|e| BackendError::io("open", &live, e))?;
        let mut seen = scan::walk(&root)?.into_iter().peekable();
        let mut cache = Vec::with_capacity(entries.len());
        for entry in entries {
            while seen
                .next_if(|seen| super::tree::compare(&seen.path, &entry.path).is_lt())
                .is_some()
            {}
            let Some(seen) = seen.next_if(|seen| seen.path == entry.path) else { continue };
            let signature = seen.signature;
            let same = signature.mtime == entry.mtime
                && signature.mode == entry.mode
                && match &entry.kind {
                    Kind::File { size, .. } => *size == signature.size,
                    _ => true,
                };
            if same {
                let settled = settled(signature.ctime, mark);
                cache.push(Cached { entry, signature, settled });
            }
        }
        drop(reader);
        work.cache = Some(cache);
        Ok(())
    }

    /// Makes the volume writable at its newest snapshot.
    pub(crate) fn promote(&self) -> Result<PathBuf> {
        let mut work = self.work();
        let live = self.path("live");
        self.settle(&mut work)?;
        let state = self.state();
        let newest = state.newest().map(|kept| kept.info.clone());
        let base = newest.as_ref().map(|info| info.guid);
        match (state.live, newest) {
            (Live::Writable { base: at }, _) if at == base => return Ok(live),
            (Live::Writable { .. }, newest) => {
                let newest = newest.map_or(flocker_base::Head::NONE, |info| info.head);
                return Err(BackendError::Superseded { volume: self.id, newest });
            }
            _ => {}
        }
        self.recognise(&mut work, base)?;
        let mut state = State::clone(&state);
        state.live = Live::Writable { base };
        self.commit(&mut work, state)?;
        Ok(live)
    }
}

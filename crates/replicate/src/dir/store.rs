//! The chunk store of one volume: its packs, and the index that tells where each chunk is.
//!
//! A chunk that a listed snapshot needs is never removed: packs are dropped or rewritten only by
//! [`ChunkStore::compact`], which is given every chunk in use, and a rewritten pack is durable
//! before the old ones go.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::chunk::{self, ChunkHash, FRAME_HEADER, Packer};
use super::pack::{self, PackWriter, Slot};
use crate::backend::{BackendError, Result};

/// More packs than this and the smallest are merged.
const PACKS_MAX: usize = 64;

/// Where a chunk is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) pack: u64,
    pub(crate) slot: Slot,
}

/// All chunks of one volume.
#[derive(Debug)]
pub(crate) struct ChunkStore {
    folder: PathBuf,
    index: HashMap<ChunkHash, Place>,
    /// Length of each pack's frames.
    packs: BTreeMap<u64, u64>,
    next: u64,
}

impl ChunkStore {
    /// Opens the store in this folder, and removes what a crash left half written.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let io = |e| BackendError::io("list", folder, e);
        let mut store = Self {
            folder: folder.to_owned(),
            index: HashMap::new(),
            packs: BTreeMap::new(),
            next: 1,
        };
        for entry in fs::read_dir(folder).map_err(io)? {
            let path = entry.map_err(io)?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if let Some(number) = name.strip_suffix(".pack") {
                let Ok(number) = u64::from_str_radix(number, 16) else { continue };
                let slots = pack::index(&path)?;
                store.add(number, &slots);
            } else if name.ends_with(".tmp") {
                fs::remove_file(&path).map_err(|e| BackendError::io("remove", &path, e))?;
            }
        }
        Ok(store)
    }

    /// Whether the chunk is held.
    pub(crate) fn contains(&self, hash: &ChunkHash) -> bool {
        self.index.contains_key(hash)
    }

    /// Where the chunk is.
    pub(crate) fn place(&self, hash: &ChunkHash) -> Result<Place> {
        self.index.get(hash).copied().ok_or_else(|| pack::missing(&self.folder, *hash))
    }

    /// The file of a pack.
    pub(crate) fn pack_path(&self, pack: u64) -> PathBuf {
        self.folder.join(format!("{pack:016x}.pack"))
    }

    /// Bytes of all packs.
    pub(crate) fn stored_bytes(&self) -> u64 {
        self.packs.values().sum()
    }

    /// Reads chunks, with the packs' files kept open between reads.
    pub(crate) fn reader(&self) -> Reader<'_> {
        Reader { store: self, open: HashMap::new() }
    }

    /// Begins to add chunks.
    pub(crate) fn writer(&self) -> Writer<'_> {
        let temporary = self.folder.join(format!("{:016x}.tmp", self.next));
        Writer { store: self, temporary, pack: None, packer: Packer::new(), fresh: HashSet::new() }
    }

    /// Completes what [`Writer::finish`] handed over; from then on its chunks are held.
    pub(crate) fn seal(&mut self, pack: Option<PackWriter>) -> Result<()> {
        let Some(pack) = pack else { return Ok(()) };
        let number = self.next;
        let slots = pack.seal(&self.pack_path(number))?;
        self.add(number, &slots);
        Ok(())
    }

    /// Takes over a file of frames as a pack, durably.
    pub(crate) fn adopt(&mut self, file: File, path: &Path, slots: &[Slot]) -> Result<()> {
        let number = self.next;
        pack::seal(file, path, slots, &self.pack_path(number))?;
        self.add(number, slots);
        Ok(())
    }

    /// Gives another store, in this folder, every pack by a hard link.
    pub(crate) fn link_into(&self, folder: &Path) -> Result<()> {
        for pack in self.packs.keys() {
            let path = self.pack_path(*pack);
            let to = folder.join(path.file_name().unwrap_or_default());
            fs::hard_link(&path, &to).map_err(|e| BackendError::io("link", &path, e))?;
        }
        Ok(())
    }

    /// Drops packs that hold no chunk in use, and rewrites those that hold mostly others.
    pub(crate) fn compact(&mut self, used: &HashSet<ChunkHash>) -> Result<()> {
        let mut live: BTreeMap<u64, u64> = self.packs.keys().map(|pack| (*pack, 0)).collect();
        for (hash, place) in &self.index {
            if used.contains(hash) {
                *live.entry(place.pack).or_default() += place.slot.header.frame_len();
            }
        }
        let mut rewrite: Vec<u64> = live
            .iter()
            .filter(|(pack, live)| **live * 2 < self.packs.get(pack).copied().unwrap_or(0))
            .map(|(pack, _)| *pack)
            .collect();
        if self.packs.len() - rewrite.len() > PACKS_MAX {
            let mut by_size: Vec<(u64, u64)> = live
                .iter()
                .filter(|(pack, _)| !rewrite.contains(pack))
                .map(|(pack, live)| (*live, *pack))
                .collect();
            by_size.sort_unstable();
            rewrite.extend(by_size.iter().take(PACKS_MAX / 2 + 1).map(|(_, pack)| *pack));
        }
        if rewrite.is_empty() { Ok(()) } else { self.rewrite(&rewrite, used) }
    }

    fn rewrite(&mut self, old: &[u64], used: &HashSet<ChunkHash>) -> Result<()> {
        let keep: Vec<Place> = {
            let mut keep: Vec<Place> = self
                .index
                .iter()
                .filter(|(hash, place)| old.contains(&place.pack) && used.contains(hash))
                .map(|(_, place)| *place)
                .collect();
            keep.sort_unstable_by_key(|place| (place.pack, place.slot.offset));
            keep
        };
        let mut writer = None;
        let mut reader = self.reader();
        for place in keep {
            let payload = reader.payload(&place)?;
            let temporary = self.folder.join(format!("{:016x}.tmp", self.next));
            let pack = match &mut writer {
                Some(pack) => pack,
                none => none.insert(PackWriter::create(temporary)?),
            };
            pack.put(place.slot.header, &payload)?;
        }
        drop(reader);
        self.index.retain(|_, place| !old.contains(&place.pack));
        if let Err(error) = self.seal(writer) {
            // The old packs stand; the index is made anew from them.
            *self = Self::open(&self.folder.clone())?;
            return Err(error);
        }
        for pack in old {
            let path = self.pack_path(*pack);
            self.packs.remove(pack);
            fs::remove_file(&path).map_err(|e| BackendError::io("remove", &path, e))?;
        }
        Ok(())
    }

    fn add(&mut self, pack: u64, slots: &[Slot]) {
        let mut len = 0;
        for slot in slots {
            len += slot.header.frame_len();
            self.index.insert(slot.header.hash, Place { pack, slot: *slot });
        }
        self.packs.insert(pack, len);
        self.next = self.next.max(pack + 1);
    }
}

/// Where chunks can be read from: a store, or a store and a stream that is coming in.
pub(crate) trait Source {
    /// The chunk's content, checked against its hash.
    fn read(&mut self, hash: &ChunkHash) -> Result<Vec<u8>>;

    /// The length of the chunk's content, `None` if it is not held.
    fn len_of(&self, hash: &ChunkHash) -> Option<u32>;
}

/// Reads chunks of a store.
pub(crate) struct Reader<'a> {
    store: &'a ChunkStore,
    open: HashMap<u64, File>,
}

/// Most packs that a reader keeps open.
const OPEN_MAX: usize = 128;

impl Reader<'_> {
    /// The chunk's stored bytes, unchecked.
    pub(crate) fn payload(&mut self, place: &Place) -> Result<Vec<u8>> {
        let path = self.store.pack_path(place.pack);
        if self.open.len() > OPEN_MAX {
            self.open.clear();
        }
        let file = match self.open.entry(place.pack) {
            std::collections::hash_map::Entry::Occupied(file) => file.into_mut(),
            std::collections::hash_map::Entry::Vacant(gap) => {
                gap.insert(File::open(&path).map_err(|e| BackendError::io("open", &path, e))?)
            }
        };
        pack::payload(file, &path, &place.slot)
    }
}

impl Source for Reader<'_> {
    fn read(&mut self, hash: &ChunkHash) -> Result<Vec<u8>> {
        let place = self.store.place(hash)?;
        let payload = self.payload(&place)?;
        chunk::open(&place.slot.header, payload).map_err(|reason| BackendError::Damaged {
            path: self.store.pack_path(place.pack),
            reason: reason.to_owned(),
        })
    }

    fn len_of(&self, hash: &ChunkHash) -> Option<u32> {
        self.store.index.get(hash).map(|place| place.slot.header.raw)
    }
}

/// Adds chunks to a store, each once.
pub(crate) struct Writer<'a> {
    store: &'a ChunkStore,
    temporary: PathBuf,
    pack: Option<PackWriter>,
    packer: Packer,
    fresh: HashSet<ChunkHash>,
}

impl Writer<'_> {
    /// Adds the chunk unless it is held, and answers its hash.
    pub(crate) fn put(&mut self, content: &[u8]) -> Result<ChunkHash> {
        let hash = ChunkHash::of(content);
        if self.store.contains(&hash) || self.fresh.contains(&hash) {
            return Ok(hash);
        }
        let (header, payload) = self.packer.pack(hash, content);
        let pack = match &mut self.pack {
            Some(pack) => pack,
            none => none.insert(PackWriter::create(self.temporary.clone())?),
        };
        pack.put(header, &payload)?;
        self.fresh.insert(hash);
        Ok(hash)
    }

    /// What has to be given to [`ChunkStore::seal`], if anything was new.
    pub(crate) fn finish(self) -> Option<PackWriter> {
        self.pack.filter(|pack| !pack.is_empty())
    }
}

/// Length of a frame that holds this many stored bytes.
pub(crate) const fn frame_len(stored: u32) -> u64 {
    FRAME_HEADER as u64 + stored as u64
}

//! Packs: files of chunk frames, written once, named when they are whole and durable, and never
//! changed after.
//!
//! ```text
//!   magic+version (8) | frame | frame | ... | index (49 each) | index length (8) | blake3 (32)
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use flocker_base::durable;

use super::chunk::{ChunkHash, FRAME_HEADER, FrameHeader};
use super::crash;
use crate::backend::{BackendError, Result};

/// What a pack, and a stream kept on disk, begins with. The last byte is the version.
pub(crate) const MAGIC: &[u8; 8] = b"FLKPACK\x01";
const INDEX_ENTRY: usize = 32 + 8 + 1 + 4 + 4;
const TRAILER: usize = 8 + 32;
/// Largest index that is read: ten million chunks.
const INDEX_MAX: u64 = 10_000_000 * INDEX_ENTRY as u64;

/// A chunk's place in a pack.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    /// Where its payload begins.
    pub(crate) offset: u64,
    pub(crate) header: FrameHeader,
}

/// Writes a pack beside its place.
pub(crate) struct PackWriter {
    path: PathBuf,
    file: BufWriter<File>,
    at: u64,
    slots: Vec<Slot>,
}

impl PackWriter {
    /// Begins a pack in this temporary file, whatever it held before.
    pub(crate) fn create(path: PathBuf) -> Result<Self> {
        let io = |e| BackendError::io("create", &path, e);
        crash::point("create a pack").map_err(io)?;
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .map_err(io)?;
        let mut file = BufWriter::with_capacity(256 * 1024, file);
        file.write_all(MAGIC).map_err(io)?;
        Ok(Self { path, file, at: MAGIC.len() as u64, slots: Vec::new() })
    }

    /// Appends a frame.
    pub(crate) fn put(&mut self, header: FrameHeader, payload: &[u8]) -> Result<()> {
        let io = |e| BackendError::io("write", &self.path, e);
        crash::point("write a chunk").map_err(io)?;
        self.file.write_all(&header.encode()).map_err(io)?;
        self.file.write_all(payload).map_err(io)?;
        self.slots.push(Slot { offset: self.at + FRAME_HEADER as u64, header });
        self.at += header.frame_len();
        Ok(())
    }

    /// Whether nothing was put into it.
    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Completes the pack under its final name, durably.
    pub(crate) fn seal(self, to: &Path) -> Result<Vec<Slot>> {
        let path = self.path;
        let file =
            self.file.into_inner().map_err(|e| BackendError::io("write", &path, e.into_error()))?;
        seal(file, &path, &self.slots, to)?;
        Ok(self.slots)
    }

    /// Removes what was written.
    pub(crate) fn discard(self) {
        drop(self.file);
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove an unused pack");
        }
    }
}

/// Appends the index to the file of frames at `path`, syncs it and moves it to its final name.
pub(crate) fn seal(mut file: File, path: &Path, slots: &[Slot], to: &Path) -> Result<()> {
    let io = |action, e| BackendError::io(action, path, e);
    let mut index = Vec::with_capacity(slots.len() * INDEX_ENTRY + TRAILER);
    for slot in slots {
        let frame = slot.header.encode();
        index.extend_from_slice(&frame[..32]);
        index.extend_from_slice(&slot.offset.to_le_bytes());
        index.extend_from_slice(&frame[32..]);
    }
    let hash = blake3::hash(&index);
    let len = index.len() as u64;
    index.extend_from_slice(&len.to_le_bytes());
    index.extend_from_slice(hash.as_bytes());
    file.seek(SeekFrom::End(0)).map_err(|e| io("write", e))?;
    crash::point("write a pack's index").map_err(|e| io("write", e))?;
    file.write_all(&index).map_err(|e| io("write", e))?;
    crash::point("sync a pack").map_err(|e| io("sync", e))?;
    file.sync_all().map_err(|e| io("sync", e))?;
    crash::point("name a pack").map_err(|e| io("rename", e))?;
    fs::rename(path, to).map_err(|e| io("rename", e))?;
    crash::point("sync the folder of packs").map_err(|e| io("sync", e))?;
    durable::sync_parent(to)?;
    Ok(())
}

/// Reads a pack's index. Its frames are checked when they are read.
pub(crate) fn index(path: &Path) -> Result<Vec<Slot>> {
    let io = |e| BackendError::io("read", path, e);
    let damaged =
        |reason: &str| BackendError::Damaged { path: path.to_owned(), reason: reason.to_owned() };
    let mut file = File::open(path).map_err(io)?;
    let len = file.metadata().map_err(io)?.len();
    let mut magic = [0; MAGIC.len()];
    let least = (MAGIC.len() + TRAILER) as u64;
    if len < least {
        return Err(damaged("it is too short for a pack"));
    }
    file.read_exact(&mut magic).map_err(io)?;
    if &magic != MAGIC {
        return Err(damaged("it does not begin as a pack of a known version does"));
    }
    let mut trailer = [0; TRAILER];
    file.read_exact_at(&mut trailer, len - TRAILER as u64).map_err(io)?;
    let (index_len, hash) = trailer.split_at(8);
    let index_len = u64::from_le_bytes(index_len.try_into().unwrap_or([0xff; 8]));
    if index_len > INDEX_MAX || index_len > len - least {
        return Err(damaged("its index is longer than it is"));
    }
    let end = len - TRAILER as u64 - index_len;
    let mut index = vec![0; usize::try_from(index_len).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut index, end).map_err(io)?;
    if blake3::hash(&index).as_bytes() != hash {
        return Err(damaged("its index does not match its checksum"));
    }
    let mut slots = Vec::with_capacity(index.len() / INDEX_ENTRY);
    for entry in index.chunks_exact(INDEX_ENTRY) {
        let mut frame = [0; FRAME_HEADER];
        frame[..32].copy_from_slice(&entry[..32]);
        frame[32..].copy_from_slice(&entry[40..]);
        let header = FrameHeader::decode(&frame).map_err(damaged)?;
        let offset = u64::from_le_bytes(entry[32..40].try_into().unwrap_or([0xff; 8]));
        if offset.saturating_add(u64::from(header.stored)) > end {
            return Err(damaged("its index points beyond its end"));
        }
        slots.push(Slot { offset, header });
    }
    Ok(slots)
}

/// Reads the stored bytes of one chunk, unchecked.
pub(crate) fn payload(file: &File, path: &Path, slot: &Slot) -> Result<Vec<u8>> {
    let mut payload = vec![0; slot.header.stored as usize];
    file.read_exact_at(&mut payload, slot.offset).map_err(|e| BackendError::io("read", path, e))?;
    Ok(payload)
}

/// Names a chunk in an error.
pub(crate) fn missing(path: &Path, hash: ChunkHash) -> BackendError {
    BackendError::Damaged { path: path.to_owned(), reason: format!("chunk {hash:?} is missing") }
}

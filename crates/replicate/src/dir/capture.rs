//! Turns a live folder into a snapshot's entries, reading only files that changed since they were
//! last read.
//!
//! A file whose change time lies so close to the reading that a later write could leave it the
//! same is marked unsettled and read again the next time. A file is never believed unchanged by
//! its size and modification time alone.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek};

use rustix::fs::{Mode, OFlags, SeekFrom, fstat, readlinkat, seek};

use super::beneath::Root;
use super::chunk::{DATA_AVERAGE, DATA_MAX, DATA_MIN};
use super::manifest::{self, ManifestError};
use super::scan::{Seen, SeenKind, Signature, kind, signature, vanished};
use super::store::Writer;
use super::tree::{self, Content, Entry, Extent, FileTime, Kind, compare};
use crate::backend::{BackendError, Result};

/// Attempts to read a file that changes meanwhile, before it is taken as it comes.
const ATTEMPTS: u32 = 3;
/// More than a tick of any kernel's clock: writes closer together may have one change time.
const TICK_NANOS: i128 = 20_000_000;

/// An entry, and what its file looked like when it was read.
#[derive(Clone, Debug)]
pub(crate) struct Cached {
    pub(crate) entry: Entry,
    pub(crate) signature: Signature,
    /// Whether any later write must show in the signature.
    pub(crate) settled: bool,
}

impl Cached {
    fn still(&self, seen: &Seen) -> bool {
        self.settled && self.signature == seen.signature && self.is_kind(seen.kind)
    }

    fn is_kind(&self, kind: SeenKind) -> bool {
        matches!(
            (&self.entry.kind, kind),
            (Kind::Folder, SeenKind::Folder)
                | (Kind::File { .. } | Kind::Link(_), SeenKind::File)
                | (Kind::Symlink(_), SeenKind::Symlink)
                | (Kind::Fifo, SeenKind::Fifo)
        )
    }
}

/// Whether the walk found just what is cached.
pub(crate) fn unchanged(cache: &[Cached], seen: &[Seen]) -> bool {
    cache.len() == seen.len()
        && cache
            .iter()
            .zip(seen)
            .all(|(cached, seen)| cached.entry.path == seen.path && cached.still(seen))
}

/// Whether a write after `mark` must get a later change time than this one.
pub(crate) fn settled(ctime: FileTime, mark: FileTime) -> bool {
    let nanos = |time: FileTime| i128::from(time.0) * 1_000_000_000 + i128::from(time.1);
    nanos(ctime) + TICK_NANOS < nanos(mark)
}

/// One pass over what a walk saw.
pub(crate) struct Capture<'a, 'b> {
    pub(crate) root: &'a Root,
    pub(crate) writer: &'a mut Writer<'b>,
    /// The file system's time before the walk.
    pub(crate) mark: FileTime,
}

impl Capture<'_, '_> {
    /// The entries of what was seen, taken from the cache where they still hold.
    pub(crate) fn pass(&mut self, seen: Vec<Seen>, cache: &[Cached]) -> Result<Vec<Cached>> {
        let mut all: Vec<Cached> = Vec::with_capacity(seen.len());
        // The first path of each file that has several, as an index into `all`.
        let mut linked: HashMap<(u64, u64), usize> = HashMap::new();
        let mut old = cache.iter().peekable();
        for seen in seen {
            while old.next_if(|old| compare(&old.entry.path, &seen.path).is_lt()).is_some() {}
            let known = old.next_if(|old| old.entry.path == seen.path);
            let several = seen.kind == SeenKind::File && seen.signature.links > 1;
            let identity = (seen.signature.dev, seen.signature.ino);
            if let Some(first) = linked.get(&identity).filter(|_| several) {
                let first = &mut all[*first];
                if let Kind::File { links, .. } = &mut first.entry.kind {
                    *links += 1;
                }
                let to = first.entry.path.clone();
                let (signature, settled) = (first.signature, first.settled);
                let entry = self.entry(&seen.path, &signature, Kind::Link(to));
                all.push(Cached { entry, signature, settled });
                continue;
            }
            let mut taken = match known.filter(|known| known.still(&seen)) {
                Some(known) if !matches!(known.entry.kind, Kind::Link(_)) => known.clone(),
                _ => match self.take(&seen)? {
                    Some(taken) => taken,
                    None => continue,
                },
            };
            if let Kind::File { links, .. } = &mut taken.entry.kind {
                *links = 1;
            }
            if several {
                linked.insert(identity, all.len());
            }
            all.push(taken);
        }
        Ok(all)
    }

    fn entry(&self, path: &[u8], signature: &Signature, kind: Kind) -> Entry {
        Entry {
            path: path.to_vec(),
            mode: signature.mode,
            uid: signature.uid,
            gid: signature.gid,
            mtime: signature.mtime,
            kind,
        }
    }

    fn take(&mut self, seen: &Seen) -> Result<Option<Cached>> {
        let failed = |e| BackendError::io("read", self.root.display(&seen.path), e);
        let kind = match seen.kind {
            SeenKind::Folder => Kind::Folder,
            SeenKind::Fifo => Kind::Fifo,
            SeenKind::Symlink => match self.target(&seen.path) {
                Ok(target) => Kind::Symlink(target),
                Err(error) if vanished(&error) => return Ok(None),
                // It is no longer a symbolic link; the next walk shows what it is.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(None),
                Err(error) => return Err(failed(error)),
            },
            SeenKind::File => return self.file(&seen.path),
        };
        let entry = self.entry(&seen.path, &seen.signature, kind);
        let settled = settled(seen.signature.ctime, self.mark);
        Ok(Some(Cached { entry, signature: seen.signature, settled }))
    }

    fn target(&self, path: &[u8]) -> io::Result<Vec<u8>> {
        let (parent, name) = tree::split(path).unwrap_or((b"", b"."));
        let folder = self.root.folder(parent)?;
        Ok(readlinkat(&folder, name, Vec::new())?.into_bytes())
    }

    fn file(&mut self, path: &[u8]) -> Result<Option<Cached>> {
        let failed = |e| BackendError::io("read", self.root.display(path), e);
        // A fifo that took the file's place must not block the opening.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = match self.root.file(path, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(error) if vanished(&error) => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let mut file = File::from(fd);
        let mut attempt = 0;
        loop {
            attempt += 1;
            let before = fstat(&file).map_err(|e| failed(e.into()))?;
            if kind(&before) != Some(SeenKind::File) {
                return Ok(None);
            }
            let before = signature(&before);
            file.rewind().map_err(failed)?;
            let (content, size) = self.content(&mut file, path, &before)?;
            let after = signature(&fstat(&file).map_err(|e| failed(e.into()))?);
            let calm = after == before;
            if calm || attempt == ATTEMPTS {
                if !calm {
                    tracing::debug!(
                        path = %self.root.display(path).display(),
                        "the file changes while it is read: this snapshot may hold it torn"
                    );
                }
                let entry = self.entry(path, &before, Kind::File { size, links: 1, content });
                let settled = calm && settled(before.ctime, self.mark);
                return Ok(Some(Cached { entry, signature: before, settled }));
            }
        }
    }

    fn content(
        &mut self,
        file: &mut File,
        path: &[u8],
        signature: &Signature,
    ) -> Result<(Content, u64)> {
        let failed = |e: io::Error| BackendError::io("read", self.root.display(path), e);
        let mut extents = Vec::new();
        let mut size = 0;
        let sparse = signature.blocks.saturating_mul(512) < signature.size;
        while size < signature.size {
            let (data, end) = match sparse.then(|| segment(file, size, signature.size)) {
                Some(segment) => segment.map_err(failed)?,
                None => (size, signature.size),
            };
            if data > size {
                extents.push(Extent::Hole { len: data - size });
                size = data;
            }
            file.seek(io::SeekFrom::Start(size)).map_err(failed)?;
            let read =
                chunks(file.take(end - size), self.writer, &mut extents).map_err(|error| {
                    match error {
                        ChunkError::Read(error) => failed(error),
                        ChunkError::Store(error) => error,
                    }
                })?;
            size += read;
            if size < end {
                // It became shorter while it was read.
                break;
            }
        }
        let content = manifest::content(self.writer, extents).map_err(|error| match error {
            ManifestError::Store(error) => error,
            ManifestError::Bad(reason) => BackendError::io(
                "keep",
                self.root.display(path),
                io::Error::new(io::ErrorKind::FileTooLarge, reason),
            ),
        })?;
        Ok((content, size))
    }
}

/// The next stretch of data at or after this byte.
fn segment(file: &File, from: u64, size: u64) -> io::Result<(u64, u64)> {
    let data = match seek(file, SeekFrom::Data(from)) {
        Ok(data) => data.min(size),
        // Nothing but a hole is left.
        Err(rustix::io::Errno::NXIO) => return Ok((size, size)),
        Err(error) => return Err(error.into()),
    };
    let end = seek(file, SeekFrom::Hole(data))?.min(size);
    Ok((data, end))
}

enum ChunkError {
    Read(io::Error),
    Store(BackendError),
}

fn chunks(
    input: impl Read,
    writer: &mut Writer<'_>,
    extents: &mut Vec<Extent>,
) -> std::result::Result<u64, ChunkError> {
    let mut total = 0;
    for chunk in fastcdc::v2020::StreamCDC::new(input, DATA_MIN, DATA_AVERAGE, DATA_MAX) {
        let chunk = chunk.map_err(|error| ChunkError::Read(error.into()))?;
        if chunk.data.is_empty() {
            continue;
        }
        let hash = writer.put(&chunk.data).map_err(ChunkError::Store)?;
        let len = u32::try_from(chunk.data.len()).unwrap_or(u32::MAX);
        extents.push(Extent::Data { hash, len });
        total += u64::from(len);
    }
    Ok(total)
}

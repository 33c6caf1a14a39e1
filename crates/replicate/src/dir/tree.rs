//! What a snapshot says of each file: the stored form of a tree, and the check that every entry
//! must pass before anything is done with it.
//!
//! Paths are bytes, relative to the volume, and ordered so that a folder comes right before what
//! it holds. No path with `..`, an empty part or a leading slash passes.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use super::chunk::{ChunkHash, DATA_MAX};

/// Longest path, in bytes: what the system takes, its end mark included.
pub(crate) const PATH_MAX: usize = 4095;
/// Longest part of a path, in bytes.
const NAME_MAX: usize = 255;
/// A file of up to so many extents has them in its entry; a larger one in pages.
pub(crate) const DIRECT_MAX: usize = 128;

/// Seconds and nanoseconds since the Unix epoch, as the file system keeps them.
pub(crate) type FileTime = (i64, u32);

/// One file, folder, link or fifo of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Its path in the volume; empty for the volume's folder itself.
    pub(crate) path: Vec<u8>,
    /// Permission bits, with set-id and sticky bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: FileTime,
    pub(crate) kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    Folder,
    File {
        size: u64,
        /// How many paths of the volume lead to it.
        links: u32,
        content: Content,
    },
    Symlink(Vec<u8>),
    /// A further name of the file at this path, which comes earlier in the order.
    Link(Vec<u8>),
    Fifo,
}

/// A file's content, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Content {
    Direct(Vec<Extent>),
    /// Chunks that hold lists of extents.
    Paged(Vec<ChunkHash>),
}

/// A stretch of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Extent {
    Data { hash: ChunkHash, len: u32 },
    Hole { len: u64 },
}

impl Extent {
    pub(crate) const fn len(&self) -> u64 {
        match self {
            Self::Data { len, .. } => *len as u64,
            Self::Hole { len } => *len,
        }
    }
}

impl Entry {
    /// Checks what the entry says by itself.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        check_path(&self.path)?;
        if self.mode & !0o7777 != 0 {
            return Err("a mode holds more than permission bits");
        }
        if self.mtime.1 >= 1_000_000_000 {
            return Err("a time has too many nanoseconds");
        }
        match &self.kind {
            Kind::Folder => Ok(()),
            _ if self.path.is_empty() => Err("the volume itself is not a folder"),
            Kind::Symlink(target) if target.is_empty() || target.len() > PATH_MAX => {
                Err("a symbolic link's target is empty or too long")
            }
            Kind::Symlink(target) if target.contains(&0) => {
                Err("a symbolic link's target holds a zero byte")
            }
            Kind::Link(to) => {
                check_path(to)?;
                if compare(to, &self.path) == Ordering::Less && !to.is_empty() {
                    Ok(())
                } else {
                    Err("a hard link points forward")
                }
            }
            Kind::File { content: Content::Direct(extents), .. } if extents.len() > DIRECT_MAX => {
                Err("an entry holds too many extents")
            }
            Kind::File { links: 0, .. } => Err("a file has no name"),
            Kind::File { .. } | Kind::Symlink(_) | Kind::Fifo => Ok(()),
        }
    }

    /// Roughly how many bytes the entry takes.
    pub(crate) fn weight(&self) -> usize {
        let kind = match &self.kind {
            Kind::File { content: Content::Direct(extents), .. } => extents.len() * 36,
            Kind::File { content: Content::Paged(pages), .. } => pages.len() * 32,
            Kind::Symlink(path) | Kind::Link(path) => path.len(),
            Kind::Folder | Kind::Fifo => 0,
        };
        self.path.len() + kind + 32
    }
}

/// Adds up a file's extents and checks each.
#[derive(Debug, Default)]
pub(crate) struct ExtentCheck {
    total: u64,
}

impl ExtentCheck {
    pub(crate) fn next(&mut self, extent: &Extent) -> Result<(), &'static str> {
        if matches!(extent, Extent::Data { len, .. } if *len as usize > DATA_MAX) {
            return Err("an extent is larger than the limit");
        }
        if extent.len() == 0 {
            return Err("an extent is empty");
        }
        self.total = self.total.checked_add(extent.len()).ok_or("a file's extents overflow")?;
        Ok(())
    }

    pub(crate) fn end(&self, size: u64) -> Result<(), &'static str> {
        if self.total == size && i64::try_from(size).is_ok() {
            Ok(())
        } else {
            Err("a file's extents do not add up to its size")
        }
    }
}

/// Checks that the path stays in the volume.
pub(crate) fn check_path(path: &[u8]) -> Result<(), &'static str> {
    if path.is_empty() {
        return Ok(());
    }
    if path.len() > PATH_MAX {
        return Err("a path is too long");
    }
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" => return Err("a path is absolute or has an empty part"),
            b"." | b".." => return Err("a path climbs"),
            part if part.len() > NAME_MAX => return Err("a name is too long"),
            part if part.contains(&0) => return Err("a path holds a zero byte"),
            _ => {}
        }
    }
    Ok(())
}

/// The order of a snapshot: each folder right before what it holds.
pub(crate) fn compare(a: &[u8], b: &[u8]) -> Ordering {
    let key = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
    a.iter().map(key).cmp(b.iter().map(key))
}

/// The folder that holds this path, and its last part. `None` for the volume itself.
pub(crate) fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.is_empty() {
        return None;
    }
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => Some((&path[..at], &path[at + 1..])),
        None => Some((b"", path)),
    }
}

/// Checks a whole tree, entry by entry, in order.
#[derive(Debug, Default)]
pub(crate) struct TreeCheck {
    last: Option<Vec<u8>>,
    folders: Vec<Vec<u8>>,
    linked: std::collections::HashMap<Vec<u8>, u32>,
    pub(crate) bytes: u64,
    pub(crate) files: u64,
}

impl TreeCheck {
    pub(crate) fn next(&mut self, entry: &Entry) -> Result<(), &'static str> {
        entry.check()?;
        match &self.last {
            None if !entry.path.is_empty() => return Err("the volume's own folder is missing"),
            Some(last) if compare(last, &entry.path) != Ordering::Less => {
                return Err("paths are out of order");
            }
            _ => {}
        }
        if let Some((parent, _)) = split(&entry.path) {
            while self.folders.last().is_some_and(|folder| folder != parent) {
                self.folders.pop();
            }
            if self.folders.is_empty() {
                return Err("a path lies in no folder of the volume");
            }
        }
        match &entry.kind {
            Kind::Folder => self.folders.push(entry.path.clone()),
            Kind::File { size, links, .. } => {
                self.bytes = self.bytes.checked_add(*size).ok_or("the sizes overflow")?;
                if *links > 1 {
                    self.linked.insert(entry.path.clone(), links - 1);
                }
            }
            Kind::Link(to) => match self.linked.get_mut(to) {
                Some(left) if *left > 0 => *left -= 1,
                _ => return Err("a hard link leads to no file that expects it"),
            },
            Kind::Symlink(_) | Kind::Fifo => {}
        }
        self.files += 1;
        self.last = Some(entry.path.clone());
        Ok(())
    }

    pub(crate) fn end(&self) -> Result<(), &'static str> {
        if self.last.is_none() {
            return Err("the snapshot is empty");
        }
        if self.linked.values().any(|left| *left > 0) {
            return Err("a file lacks one of its hard links");
        }
        Ok(())
    }
}

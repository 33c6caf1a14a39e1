//! The stat walk over a live folder: what is there, without reading any content.
//!
//! It never leaves the folder: every folder is opened beneath the root, no symbolic link is
//! followed, and no other file system that is mounted inside is entered.

use std::io;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Stat, fstat, statat};

use super::beneath::Root;
use super::tree::{FileTime, PATH_MAX};
use crate::backend::{BackendError, Result};

/// What tells whether a file is still the one that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Signature {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
    pub(crate) ctime: FileTime,
    pub(crate) mtime: FileTime,
    pub(crate) size: u64,
    /// 512-byte blocks on the disk: fewer than the size needs means holes.
    pub(crate) blocks: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) links: u64,
}

/// The kinds of file that a snapshot keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SeenKind {
    Folder,
    File,
    Symlink,
    Fifo,
}

/// One path as the walk saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: SeenKind,
    pub(crate) signature: Signature,
}

pub(crate) fn signature(stat: &Stat) -> Signature {
    let time = |secs: i64, nanos: u64| (secs, u32::try_from(nanos).unwrap_or(0));
    Signature {
        dev: stat.st_dev,
        ino: stat.st_ino,
        ctime: time(stat.st_ctime, stat.st_ctime_nsec),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        size: u64::try_from(stat.st_size).unwrap_or(0),
        blocks: u64::try_from(stat.st_blocks).unwrap_or(0),
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        links: stat.st_nlink,
    }
}

pub(crate) fn kind(stat: &Stat) -> Option<SeenKind> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Some(SeenKind::Folder),
        FileType::RegularFile => Some(SeenKind::File),
        FileType::Symlink => Some(SeenKind::Symlink),
        FileType::Fifo => Some(SeenKind::Fifo),
        _ => None,
    }
}

/// Walks everything below the root, in the order of a snapshot.
pub(crate) fn walk(root: &Root) -> Result<Vec<Seen>> {
    let fd = root.folder(b"").map_err(|e| BackendError::io("open", root.display(b""), e))?;
    let stat = fstat(&fd).map_err(|e| BackendError::io("look at", root.display(b""), e))?;
    let top = signature(&stat);
    let mut waiting = vec![Seen { path: Vec::new(), kind: SeenKind::Folder, signature: top }];
    let mut all = Vec::new();
    while let Some(seen) = waiting.pop() {
        if seen.kind == SeenKind::Folder && seen.signature.dev == top.dev {
            let mut children = match list(root, &seen.path) {
                Ok(children) => children,
                // It went away, or became something else, since its own folder was listed: that
                // change shows in the next walk.
                Err(error) if vanished(&error) => continue,
                Err(error) => {
                    return Err(BackendError::io("list", root.display(&seen.path), error));
                }
            };
            children.sort_unstable_by(|a, b| b.path.cmp(&a.path));
            waiting.append(&mut children);
        }
        all.push(seen);
    }
    Ok(all)
}

fn list(root: &Root, path: &[u8]) -> io::Result<Vec<Seen>> {
    let fd = root.folder(path)?;
    let mut children = Vec::new();
    for entry in Dir::read_from(&fd)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = match statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(error) if vanished(&error.into()) => continue,
            Err(error) => return Err(error.into()),
        };
        let mut child = path.to_vec();
        if !child.is_empty() {
            child.push(b'/');
        }
        child.extend_from_slice(name.to_bytes());
        if child.len() > PATH_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidFilename,
                format!("a path in it is longer than {PATH_MAX} bytes"),
            ));
        }
        match kind(&stat) {
            Some(kind) => children.push(Seen { path: child, kind, signature: signature(&stat) }),
            None => {
                let path = root.display(&child);
                tracing::debug!(path = %path.display(), "sockets and devices are not kept");
            }
        }
    }
    Ok(children)
}

pub(crate) fn vanished(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        || error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

/// The file system's idea of now: the change time that it gives to a file touched now. Every
/// write after this call gets a change time no earlier.
pub(crate) fn file_system_now(mark: &Path) -> Result<FileTime> {
    use std::os::unix::fs::OpenOptionsExt;
    let io = |e| BackendError::io("touch", mark, e);
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(mark)
        .map_err(io)?;
    let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
    let times = rustix::fs::Timestamps { last_access: now, last_modification: now };
    rustix::fs::futimens(&file, &times).map_err(|e| io(e.into()))?;
    Ok(signature(&fstat(&file).map_err(|e| io(e.into()))?).ctime)
}

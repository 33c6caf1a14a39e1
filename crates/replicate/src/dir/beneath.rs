//! Opens paths beneath one folder and never outside it: no `..`, no absolute path, no symbolic
//! link on the way, whoever swaps what meanwhile.
//!
//! `openat2` does it in the kernel; where it is missing the path is walked part by part.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

use super::tree;

static NO_OPENAT2: AtomicBool = AtomicBool::new(false);

/// A folder beneath which paths are opened.
#[derive(Debug)]
pub(crate) struct Root {
    fd: OwnedFd,
    path: PathBuf,
}

const FOLDER: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Root {
    /// Opens the folder itself.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let fd = openat(CWD, path, FOLDER, Mode::empty())?;
        Ok(Self { fd, path: path.to_owned() })
    }

    /// A path below, for messages alone.
    pub(crate) fn display(&self, path: &[u8]) -> PathBuf {
        use std::os::unix::ffi::OsStrExt;
        self.path.join(std::ffi::OsStr::from_bytes(path))
    }

    /// Opens a folder below; the empty path is the root.
    pub(crate) fn folder(&self, path: &[u8]) -> io::Result<OwnedFd> {
        self.open_at(path, FOLDER, Mode::empty())
    }

    /// Opens a file below. A symbolic link in its place is refused.
    pub(crate) fn file(&self, path: &[u8], flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        self.open_at(path, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, mode)
    }

    fn open_at(&self, path: &[u8], flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        tree::check_path(path)
            .map_err(|reason| io::Error::new(io::ErrorKind::InvalidInput, reason))?;
        let path = if path.is_empty() { b"." } else { path };
        if !NO_OPENAT2.load(Ordering::Relaxed) {
            let resolve =
                ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
            loop {
                match openat2(&self.fd, path, flags, mode, resolve) {
                    Ok(fd) => return Ok(fd),
                    // A rename elsewhere got in the way of the kernel's check.
                    Err(Errno::AGAIN) => {}
                    Err(Errno::NOSYS) => {
                        NO_OPENAT2.store(true, Ordering::Relaxed);
                        break;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
        step_by_step(self.fd.as_fd(), path, flags, mode)
    }
}

/// Walks the path part by part, refusing every symbolic link.
fn step_by_step(
    root: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    mode: Mode,
) -> io::Result<OwnedFd> {
    let mut parts = path.split(|byte| *byte == b'/').peekable();
    let mut at: Option<OwnedFd> = None;
    while let Some(part) = parts.next() {
        let from = at.as_ref().map_or(root, AsFd::as_fd);
        let last = parts.peek().is_none();
        let flags = if last { flags | OFlags::NOFOLLOW } else { FOLDER };
        let mode = if last { mode } else { Mode::empty() };
        at = Some(openat(from, part, flags, mode)?);
    }
    at.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "an empty path"))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests write the files that users would")]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn nothing_outside_is_reached_by_either_way() {
        let folder = tempfile::tempdir().expect("folder");
        let inside = folder.path().join("in");
        fs::create_dir_all(inside.join("a")).expect("folders");
        fs::write(folder.path().join("secret"), "x").expect("write");
        fs::write(inside.join("a/file"), "y").expect("write");
        symlink("..", inside.join("up")).expect("link");
        symlink("a", inside.join("over")).expect("link");
        symlink("../secret", inside.join("leak")).expect("link");
        let root = Root::open(&inside).expect("root");
        assert!(root.file(b"a/file", OFlags::RDONLY, Mode::empty()).is_ok());
        assert!(step_by_step(root.fd.as_fd(), b"a/file", OFlags::RDONLY, Mode::empty()).is_ok());
        for bad in [&b"../secret"[..], b"/etc/passwd", b"up/secret", b"over/file", b"leak"] {
            assert!(root.file(bad, OFlags::RDONLY, Mode::empty()).is_err(), "{bad:?}");
            if tree::check_path(bad).is_ok() {
                let way = step_by_step(root.fd.as_fd(), bad, OFlags::RDONLY, Mode::empty());
                assert!(way.is_err(), "{bad:?}");
            }
        }
    }
}

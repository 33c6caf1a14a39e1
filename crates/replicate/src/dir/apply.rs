//! Leads a live folder from one snapshot to another, writing only what differs.
//!
//! Every path is opened beneath the folder and no symbolic link is followed. What lies in the way
//! and belongs to neither snapshot is moved aside, not destroyed. When this returns, files and
//! folders are durable.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, FallocateFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid, chmodat, chownat,
    fallocate, fchmod, fchown, fstat, fsync, ftruncate, futimens, linkat, mkdirat, mkfifoat,
    symlinkat, syncfs, unlinkat, utimensat,
};

use super::beneath::Root;
use super::crash;
use super::manifest::{self, Change, Manifest, ManifestError};
use super::scan::{signature, vanished};
use super::store::Source;
use super::tree::{self, Content, Entry, Extent, FileTime, Kind};
use crate::backend::BackendError;

/// With more changes than this, one sync of the file system is cheaper than one a file.
const SYNC_EACH: usize = 64;

/// Why a folder could not be led to a snapshot.
pub(crate) type Result<T> = std::result::Result<T, ManifestError>;

/// One way from a snapshot to another.
pub(crate) struct Apply<'a> {
    pub(crate) root: &'a Root,
    pub(crate) source: &'a mut dyn Source,
    /// The folder surely equals the snapshot that the way begins at. If not, every file on the
    /// way is written whole.
    pub(crate) trusted: bool,
    /// Where what is in the way is moved to.
    pub(crate) strays: &'a Path,
}

/// A folder that is written to without being changed itself: put back afterwards.
struct Touched {
    mtime: FileTime,
    mode: u32,
}

struct Way<'a, 'b> {
    apply: &'b mut Apply<'a>,
    touched: BTreeMap<Vec<u8>, Touched>,
    /// Files with several names that were made anew: all their names have to be made anew.
    relink: HashSet<Vec<u8>>,
    folders: Vec<Entry>,
    sync_each: bool,
    superuser: bool,
}

impl Apply<'_> {
    /// Goes the way to `to`, along these changes.
    pub(crate) fn run(&mut self, changes: &[Change], to: Option<&Manifest>) -> Result<()> {
        let sync_each = changes.len() <= SYNC_EACH;
        let trusted = self.trusted;
        let mut way = Way {
            apply: self,
            touched: BTreeMap::new(),
            relink: HashSet::new(),
            folders: Vec::new(),
            sync_each,
            superuser: rustix::process::geteuid().is_root(),
        };
        for change in changes.iter().rev() {
            way.remove(change)?;
        }
        for change in changes {
            way.put(change)?;
        }
        if let Some(to) = to {
            way.link_again(to)?;
            if !trusted {
                way.every_folder(to)?;
            }
        }
        way.finish()
    }
}

impl Way<'_, '_> {
    fn failed(
        &self,
        action: &'static str,
        path: &[u8],
        error: impl Into<io::Error>,
    ) -> ManifestError {
        BackendError::io(action, self.apply.root.display(path), error.into()).into()
    }

    /// Whether the file at the path can stay and be changed in place.
    fn in_place(&self, change: &Change) -> bool {
        let kinds = (change.old.as_ref().map(|e| &e.kind), change.new.as_ref().map(|e| &e.kind));
        match kinds {
            (Some(Kind::Folder), Some(Kind::Folder)) => true,
            (Some(Kind::File { .. }), Some(Kind::File { .. })) => self.apply.trusted,
            _ => false,
        }
    }

    /// Opens the folder that holds the path, and remembers how to put it back.
    fn parent<'p>(&mut self, path: &'p [u8]) -> Result<Option<(OwnedFd, &'p [u8])>> {
        let Some((parent, name)) = tree::split(path) else { return Ok(None) };
        let fd = self
            .apply
            .root
            .folder(parent)
            .map_err(|e| self.failed("open the folder", parent, e))?;
        if !self.touched.contains_key(parent) {
            let stat = fstat(&fd).map_err(|e| self.failed("look at", parent, e))?;
            let now = signature(&stat);
            if !self.superuser && now.mode & 0o300 != 0o300 {
                fchmod(&fd, Mode::from_raw_mode(now.mode | 0o700))
                    .map_err(|e| self.failed("open up", parent, e))?;
            }
            self.touched.insert(parent.to_vec(), Touched { mtime: now.mtime, mode: now.mode });
        }
        Ok(Some((fd, name)))
    }

    fn remove(&mut self, change: &Change) -> Result<()> {
        let Some(old) = change.old.as_ref().filter(|_| !self.in_place(change)) else {
            return Ok(());
        };
        crash::point("remove a file").map_err(|e| self.failed("remove", &old.path, e))?;
        let parent = match self.parent(&old.path) {
            Ok(Some(parent)) => parent,
            Ok(None) => return Ok(()),
            // Its folder went away in an interrupted attempt.
            Err(ManifestError::Store(BackendError::Io { source, .. }))
                if vanished(&source) && !self.apply.trusted =>
            {
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.clear(&parent.0, parent.1, &old.path, old.kind == Kind::Folder)
    }

    /// Removes what an old snapshot put at the path; anything else is moved aside.
    fn clear(&self, folder: &OwnedFd, name: &[u8], path: &[u8], is_folder: bool) -> Result<()> {
        let flags = if is_folder { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        match unlinkat(folder, name, flags) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(
                rustix::io::Errno::NOTEMPTY
                | rustix::io::Errno::EXIST
                | rustix::io::Errno::ISDIR
                | rustix::io::Errno::NOTDIR,
            ) => self.set_aside(folder, name, path),
            Err(error) => Err(self.failed("remove", path, error)),
        }
    }

    fn set_aside(&self, folder: &OwnedFd, name: &[u8], path: &[u8]) -> Result<()> {
        let strays = self.apply.strays;
        let failed = |e: io::Error| self.failed("move aside", path, e);
        fs::create_dir_all(strays).map_err(failed)?;
        let into = Root::open(strays).map_err(failed)?.folder(b"").map_err(failed)?;
        for number in 1_u32..10_000 {
            let flags = rustix::fs::RenameFlags::NOREPLACE;
            match rustix::fs::renameat_with(folder, name, &into, format!("{number}"), flags) {
                Ok(()) => {
                    tracing::warn!(
                        path = %self.apply.root.display(path).display(),
                        kept = %strays.join(number.to_string()).display(),
                        "a file that is in no snapshot was in the way and is moved aside"
                    );
                    return Ok(());
                }
                Err(rustix::io::Errno::NOENT) => return Ok(()),
                Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(failed(error.into())),
            }
        }
        Err(failed(io::Error::other("ten thousand files were moved aside already")))
    }

    fn put(&mut self, change: &Change) -> Result<()> {
        let Some(new) = &change.new else { return Ok(()) };
        let in_place = self.in_place(change);
        crash::point("write a file").map_err(|e| self.failed("write", &new.path, e))?;
        let Some((folder, name)) = self.parent(&new.path)? else {
            self.folders.push(new.clone());
            return Ok(());
        };
        match &new.kind {
            Kind::Folder => {
                if !in_place {
                    self.make_folder(&folder, name, &new.path)?;
                }
                self.folders.push(new.clone());
                Ok(())
            }
            Kind::File { content, size, links } => {
                let old =
                    change.old.as_ref().filter(|_| in_place).and_then(|old| match &old.kind {
                        Kind::File { content, .. } => Some(content),
                        _ => None,
                    });
                if old.is_none() && *links > 1 {
                    self.relink.insert(new.path.clone());
                }
                self.write_file(&folder, name, new, *size, content, old)
            }
            Kind::Symlink(target) => {
                self.retry(&folder, name, &new.path, |folder, name| {
                    symlinkat(target.as_slice(), folder, name)
                })?;
                self.finish_special(&folder, name, new)
            }
            Kind::Fifo => {
                self.retry(&folder, name, &new.path, |folder, name| {
                    mkfifoat(folder, name, Mode::from_raw_mode(new.mode & 0o777))
                })?;
                chmodat(&folder, name, Mode::from_raw_mode(new.mode), AtFlags::empty())
                    .map_err(|e| self.failed("set the mode of", &new.path, e))?;
                self.finish_special(&folder, name, new)
            }
            Kind::Link(to) => self.link(&folder, name, &new.path, to),
        }
    }

    /// Makes something at a path; what an interrupted attempt or someone else left there goes
    /// out of the way first.
    fn retry(
        &self,
        folder: &OwnedFd,
        name: &[u8],
        path: &[u8],
        make: impl Fn(&OwnedFd, &[u8]) -> rustix::io::Result<()>,
    ) -> Result<()> {
        match make(folder, name) {
            Err(rustix::io::Errno::EXIST) => {
                self.out_of_the_way(folder, name, path)?;
                make(folder, name).map_err(|e| self.failed("make", path, e))
            }
            other => other.map_err(|e| self.failed("make", path, e)),
        }
    }

    fn out_of_the_way(&self, folder: &OwnedFd, name: &[u8], path: &[u8]) -> Result<()> {
        if self.apply.trusted {
            self.set_aside(folder, name, path)
        } else {
            self.clear(folder, name, path, false)
        }
    }

    fn make_folder(&self, folder: &OwnedFd, name: &[u8], path: &[u8]) -> Result<()> {
        match mkdirat(folder, name, Mode::RWXU) {
            Err(rustix::io::Errno::EXIST) => {
                if self.apply.root.folder(path).is_ok() {
                    return Ok(());
                }
                self.set_aside(folder, name, path)?;
                mkdirat(folder, name, Mode::RWXU).map_err(|e| self.failed("make", path, e))
            }
            other => other.map_err(|e| self.failed("make", path, e)),
        }
    }

    fn link(&self, folder: &OwnedFd, name: &[u8], path: &[u8], to: &[u8]) -> Result<()> {
        let (from, first) = tree::split(to).ok_or(ManifestError::Bad("a link to the volume"))?;
        let from = self.apply.root.folder(from).map_err(|e| self.failed("open", to, e))?;
        self.retry(folder, name, path, |folder, name| {
            linkat(&from, first, folder, name, AtFlags::empty())
        })
    }

    fn open_file(&self, folder: &OwnedFd, name: &[u8], path: &[u8], old: bool) -> Result<File> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY;
        let own = Mode::RUSR | Mode::WUSR;
        // The kernel refuses a mode where nothing can be made.
        let open = |extra: OFlags| {
            let mode = if extra.contains(OFlags::CREATE) { own } else { Mode::empty() };
            self.apply.root.file(path, flags | extra, mode)
        };
        if !old {
            let make = OFlags::CREATE | OFlags::EXCL;
            let file = match open(make) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    self.out_of_the_way(folder, name, path)?;
                    open(make)
                }
                other => other,
            };
            return file.map(File::from).map_err(|e| self.failed("make", path, e));
        }
        let file = match open(OFlags::empty()) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                chmodat(folder, name, own, AtFlags::empty())
                    .map_err(|e| self.failed("open up", path, e))?;
                open(OFlags::empty())
            }
            other => other,
        };
        file.map(File::from).map_err(|e| self.failed("open", path, e))
    }

    fn write_file(
        &mut self,
        folder: &OwnedFd,
        name: &[u8],
        new: &Entry,
        size: u64,
        content: &Content,
        old: Option<&Content>,
    ) -> Result<()> {
        let mut known: HashMap<u64, Extent> = HashMap::new();
        if let Some(old) = old.filter(|old| *old != content) {
            let mut at = 0;
            manifest::extents(self.apply.source, old, &mut |_, extent| {
                known.insert(at, extent);
                at += extent.len();
                Ok(())
            })?;
        }
        let file = self.open_file(folder, name, &new.path, old.is_some())?;
        let shown = self.apply.root.display(&new.path);
        let failed =
            |e: io::Error| ManifestError::Store(BackendError::io("write", shown.clone(), e));
        if old != Some(content) {
            ftruncate(&file, size).map_err(|e| failed(e.into()))?;
            let mut at = 0;
            let patch = old.is_some();
            manifest::extents(self.apply.source, content, &mut |source, extent| {
                let same = known.get(&at) == Some(&extent);
                match extent {
                    _ if same => {}
                    Extent::Data { hash, .. } => {
                        crash::point("write an extent").map_err(failed)?;
                        file.write_all_at(&source.read(&hash)?, at).map_err(failed)?;
                    }
                    Extent::Hole { len } if patch => punch(&file, at, len).map_err(failed)?,
                    Extent::Hole { .. } => {}
                }
                at += extent.len();
                Ok(())
            })?;
        }
        if self.superuser {
            fchown(&file, Some(Uid::from_raw(new.uid)), Some(Gid::from_raw(new.gid)))
                .map_err(|e| failed(e.into()))?;
        }
        fchmod(&file, Mode::from_raw_mode(new.mode)).map_err(|e| failed(e.into()))?;
        futimens(&file, &times(new.mtime)).map_err(|e| failed(e.into()))?;
        if self.sync_each {
            fsync(&file).map_err(|e| failed(e.into()))?;
        }
        Ok(())
    }

    /// Sets what a symbolic link or a fifo has besides its kind.
    fn finish_special(&self, folder: &OwnedFd, name: &[u8], new: &Entry) -> Result<()> {
        if self.superuser {
            let (uid, gid) = (Uid::from_raw(new.uid), Gid::from_raw(new.gid));
            chownat(folder, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|e| self.failed("set the owner of", &new.path, e))?;
        }
        utimensat(folder, name, &times(new.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| self.failed("set the time of", &new.path, e))
    }

    /// Makes all names anew of those files with several that were made anew.
    fn link_again(&mut self, to: &Manifest) -> Result<()> {
        if self.relink.is_empty() {
            return Ok(());
        }
        for entry in to.entries(self.apply.source)? {
            let Kind::Link(first) = &entry.kind else { continue };
            if !self.relink.contains(first) {
                continue;
            }
            if let Some((folder, name)) = self.parent(&entry.path)? {
                self.clear(&folder, name, &entry.path, false)?;
                self.link(&folder, name, &entry.path, first)?;
            }
        }
        Ok(())
    }

    fn every_folder(&mut self, to: &Manifest) -> Result<()> {
        let all = to.entries(self.apply.source)?;
        self.folders = all.into_iter().filter(|entry| entry.kind == Kind::Folder).collect();
        Ok(())
    }

    /// Gives folders their modes and times, the deepest first, and makes everything durable.
    fn finish(mut self) -> Result<()> {
        let mut ends: BTreeMap<Vec<u8>, (Touched, Option<(u32, u32)>)> =
            std::mem::take(&mut self.touched)
                .into_iter()
                .map(|(path, touched)| (path, (touched, None)))
                .collect();
        for folder in std::mem::take(&mut self.folders) {
            let touched = Touched { mtime: folder.mtime, mode: folder.mode };
            ends.insert(folder.path, (touched, Some((folder.uid, folder.gid))));
        }
        for (path, (end, owner)) in ends.into_iter().rev() {
            let fd = match self.apply.root.folder(&path) {
                Ok(fd) => fd,
                // It was one of those removed.
                Err(error) if owner.is_none() && vanished(&error) => continue,
                Err(error) => return Err(self.failed("open the folder", &path, error)),
            };
            if let Some((uid, gid)) = owner.filter(|_| self.superuser) {
                fchown(&fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                    .map_err(|e| self.failed("set the owner of", &path, e))?;
            }
            fchmod(&fd, Mode::from_raw_mode(end.mode))
                .map_err(|e| self.failed("set the mode of", &path, e))?;
            futimens(&fd, &times(end.mtime))
                .map_err(|e| self.failed("set the time of", &path, e))?;
            self.sync_folder(&fd, &path)?;
        }
        if !self.sync_each {
            let fd = self.apply.root.folder(b"").map_err(|e| self.failed("open", b"", e))?;
            syncfs(&fd).map_err(|e| self.failed("sync", b"", e))?;
        }
        Ok(())
    }

    fn sync_folder(&self, fd: &OwnedFd, path: &[u8]) -> Result<()> {
        if self.sync_each {
            fsync(fd).map_err(|e| self.failed("sync", path, e))?;
        }
        Ok(())
    }
}

fn times(mtime: FileTime) -> Timestamps {
    let at = Timespec { tv_sec: mtime.0, tv_nsec: i64::from(mtime.1) };
    Timestamps { last_access: at, last_modification: at }
}

fn punch(file: &File, at: u64, len: u64) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match fallocate(file, flags, at, len) {
        Ok(()) => return Ok(()),
        Err(rustix::io::Errno::OPNOTSUPP) => {}
        Err(error) => return Err(error.into()),
    }
    let zeros = vec![0; 64 * 1024];
    let mut done = 0;
    while done < len {
        let part = usize::try_from(len - done).unwrap_or(zeros.len()).min(zeros.len());
        file.write_all_at(&zeros[..part], at + done)?;
        done += part as u64;
    }
    Ok(())
}

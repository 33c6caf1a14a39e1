//! A stream coming in: kept on disk as it comes, frame by frame checked, and taken over as a pack
//! only when the whole snapshot has been found complete and sound.
//!
//! Until the volume's record lists the snapshot nothing of the stream is visible. A cut stream
//! goes on where it broke; a bad one is thrown away.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use flocker_base::durable;

use super::chunk::{self, ChunkHash};
use super::feed::Feed;
use super::manifest::{self, Manifest, ManifestError};
use super::outgoing::Detail;
use super::pack::{self, MAGIC, Slot};
use super::state::{Kept, Live, State};
use super::store::{Reader, Source};
use super::tree::{Entry, Extent, ExtentCheck, Kind, TreeCheck};
use super::volume::{Volume, Work};
use crate::backend::{BackendError, Result};
use crate::model::{MAX_DETAIL, MAX_LINEAGE, SnapshotInfo, StreamHeader, short_guid};

const OFFER_VERSION: u8 = 1;
const OFFER_LIMIT: usize = 64 * 1024;

/// Checks what a header says by itself.
pub(crate) fn check_header(header: &StreamHeader) -> Result<Detail> {
    let bad =
        |why: &str| BackendError::BadStream { volume: header.snapshot.volume, why: why.to_owned() };
    if header.lineage.len() > MAX_LINEAGE || header.detail.len() > MAX_DETAIL {
        return Err(bad("its header is larger than the limit"));
    }
    if header.lineage.last().map(|last| last.guid) != Some(header.snapshot.guid) {
        return Err(bad("its lineage does not end in its snapshot"));
    }
    if header.base == Some(header.snapshot.guid) {
        return Err(bad("it builds on itself"));
    }
    match postcard::take_from_bytes(&header.detail) {
        Ok((detail, [])) => Ok(detail),
        _ => Err(bad("its header is of another format")),
    }
}

impl Volume {
    fn offer_path(&self) -> PathBuf {
        self.path("incoming/offer")
    }

    fn part_path(&self) -> PathBuf {
        self.path("incoming/part")
    }

    pub(crate) fn partial(&self) -> Result<Option<StreamHeader>> {
        let Some((_, bytes)) = durable::read(&self.offer_path(), OFFER_VERSION, OFFER_LIMIT)?
        else {
            return Ok(None);
        };
        // What it describes can be sent again, so an unreadable one is worth no more than none.
        Ok(postcard::from_bytes(&bytes).ok())
    }

    pub(crate) fn received(&self, header: &StreamHeader) -> Result<u64> {
        if self.partial()?.as_ref() != Some(header) {
            return Ok(0);
        }
        let path = self.part_path();
        match fs::metadata(&path) {
            Ok(found) => Ok(found.len().saturating_sub(MAGIC.len() as u64).min(header.length)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(BackendError::io("look at", path, error)),
        }
    }

    fn forget_part(&self) -> Result<()> {
        for path in [self.offer_path(), self.part_path()] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(BackendError::io("remove", path, error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    pub(crate) fn receive(
        &self,
        header: &StreamHeader,
        offset: u64,
        input: &mut dyn Read,
    ) -> Result<SnapshotInfo> {
        let detail = check_header(header)?;
        let _alone = self.incoming.try_lock().map_err(|_taken| BackendError::Busy(self.id))?;
        self.acceptable(header)?;
        if offset != self.received(header)? {
            // Another stream came in since the sender was told where to begin.
            return Err(BackendError::Busy(self.id));
        }
        if offset == 0 {
            self.begin(header)?;
        }
        let result = self
            .take_in(header, offset, input)
            .and_then(|slots| self.take_over(header, &detail, &slots));
        match result {
            Ok(info) => Ok(info),
            Err(error @ BackendError::BadStream { .. }) => {
                self.forget_part()?;
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the snapshot may follow what is held.
    fn acceptable(&self, header: &StreamHeader) -> Result<()> {
        let state = self.state();
        let offered = header.snapshot.head;
        if let Some(newest) = state.newest().filter(|newest| newest.info.head >= offered) {
            let newest = newest.info.head;
            return Err(BackendError::NotNewer { volume: self.id, offered, newest });
        }
        if let Some(base) = header.base {
            let base = state.on_line(&base)?;
            if base.info.head >= offered {
                return Err(self.bad("it builds on a snapshot that is newer than its own"));
            }
        }
        match state.limit_bytes.filter(|limit| header.snapshot.bytes > *limit) {
            Some(limit) => {
                Err(self.bad(&format!("it exceeds the volume's limit of {limit} bytes")))
            }
            None => Ok(()),
        }
    }

    fn bad(&self, why: &str) -> BackendError {
        BackendError::BadStream { volume: self.id, why: why.to_owned() }
    }

    fn begin(&self, header: &StreamHeader) -> Result<()> {
        self.forget_part()?;
        let path = self.part_path();
        let io = |e| BackendError::io("create", &path, e);
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(io)?;
        file.write_all(MAGIC).map_err(io)?;
        let bytes = postcard::to_stdvec(header)
            .map_err(|error| self.bad(&format!("its header cannot be kept: {error}")))?;
        durable::write(&self.offer_path(), OFFER_VERSION, &bytes)?;
        Ok(())
    }

    /// Reads the stream to its end and checks every frame.
    fn take_in(
        &self,
        header: &StreamHeader,
        offset: u64,
        input: &mut dyn Read,
    ) -> Result<Vec<Slot>> {
        let mut feed = Feed::open(self.id, &self.part_path(), offset, input)?;
        let slots = feed.frames(header.length);
        let flushed = feed.flush();
        let slots = slots?;
        flushed?;
        Ok(slots)
    }

    /// Checks the snapshot as a whole, and makes it the newest of the line, durably.
    fn take_over(
        &self,
        header: &StreamHeader,
        detail: &Detail,
        slots: &[Slot],
    ) -> Result<SnapshotInfo> {
        let mut work = self.work();
        if matches!(self.state().live, Live::Changing { .. }) && !work.unbegun {
            self.settle(&mut work)?;
        }
        // The line may have moved while the stream came in.
        self.acceptable(header)?;
        let path = self.part_path();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|e| BackendError::io("open", &path, e))?;
        self.verify(&work, header, detail, slots, &file)?;
        work.store.adopt(file, &path, slots)?;
        let mut state = State::clone(&self.state());
        rebase(&mut state, header);
        let guid = header.snapshot.guid;
        state.line.push(Kept { info: header.snapshot.clone(), root: detail.root });
        state.lineage.clone_from(&header.lineage);
        match state.live {
            Live::Standing { at } => {
                state.live = Live::Changing { from: at, to: Some(guid), writable: false };
                work.unbegun = true;
            }
            Live::Changing { from, writable: false, .. } => {
                state.live = Live::Changing { from, to: Some(guid), writable: false };
            }
            Live::Writable { .. } | Live::Changing { .. } => {}
        }
        self.commit(&mut work, state)?;
        self.forget_part()?;
        Ok(header.snapshot.clone())
    }

    fn verify(
        &self,
        work: &Work,
        header: &StreamHeader,
        detail: &Detail,
        slots: &[Slot],
        file: &File,
    ) -> Result<()> {
        let path = self.part_path();
        let mut both = Both {
            volume: self,
            reader: work.store.reader(),
            fresh: slots.iter().map(|slot| (slot.header.hash, *slot)).collect(),
            file,
            path: &path,
        };
        let state = self.state();
        let trusted: HashSet<ChunkHash> = match header.base {
            Some(base) => {
                let root = state.on_line(&base)?.root;
                let mut reader = work.store.reader();
                self.load(&mut reader, root)?.pages.into_iter().collect()
            }
            None => HashSet::new(),
        };
        let checked = check_tree(&mut both, detail.root, &trusted, header);
        checked.map_err(|error| match error {
            ManifestError::Store(error) => error,
            ManifestError::Bad(why) => self.bad(why),
        })
    }
}

/// Checks every entry of the tree, and that every chunk of pages not known before is there.
fn check_tree(
    both: &mut Both<'_>,
    root: ChunkHash,
    trusted: &HashSet<ChunkHash>,
    header: &StreamHeader,
) -> std::result::Result<(), ManifestError> {
    let manifest = Manifest::load(both, root)?;
    let mut check = TreeCheck::default();
    for page in &manifest.pages {
        for entry in manifest::read_page(both, page)? {
            check.next(&entry).map_err(ManifestError::Bad)?;
            if !trusted.contains(page) {
                check_content(both, &entry)?;
            }
        }
    }
    check.end().map_err(ManifestError::Bad)?;
    let told = &header.snapshot;
    if (check.bytes, check.files) != (told.bytes, told.files) {
        return Err(ManifestError::Bad("its tree is not of the size that its header tells"));
    }
    Ok(())
}

fn check_content(both: &mut Both<'_>, entry: &Entry) -> std::result::Result<(), ManifestError> {
    let Kind::File { size, content, .. } = &entry.kind else { return Ok(()) };
    let mut check = ExtentCheck::default();
    manifest::extents(both, content, &mut |source, extent| {
        check.next(&extent).map_err(ManifestError::Bad)?;
        match extent {
            Extent::Data { hash, len } if source.len_of(&hash) != Some(len) => {
                Err(ManifestError::Bad("a chunk is missing, or is not of its extent's length"))
            }
            _ => Ok(()),
        }
    })?;
    check.end(*size).map_err(ManifestError::Bad)
}

/// The chunks of the store, and those of the stream that came in.
struct Both<'a> {
    volume: &'a Volume,
    reader: Reader<'a>,
    fresh: HashMap<ChunkHash, Slot>,
    file: &'a File,
    path: &'a Path,
}

impl Source for Both<'_> {
    fn read(&mut self, hash: &ChunkHash) -> Result<Vec<u8>> {
        let Some(slot) = self.fresh.get(hash) else {
            if self.reader.len_of(hash).is_none() {
                return Err(self.volume.bad("a chunk is missing"));
            }
            return self.reader.read(hash);
        };
        let payload = pack::payload(self.file, self.path, slot)?;
        chunk::open(&slot.header, payload).map_err(|why| self.volume.bad(why))
    }

    fn len_of(&self, hash: &ChunkHash) -> Option<u32> {
        let fresh = self.fresh.get(hash).map(|slot| slot.header.raw);
        fresh.or_else(|| self.reader.len_of(hash))
    }
}

/// Takes what the line has beyond the stream's ancestry off it and keeps it as a branch.
fn rebase(state: &mut State, header: &StreamHeader) {
    let ancestor = |kept: &Kept| {
        let guid = kept.info.guid;
        header.base == Some(guid) || header.lineage.iter().any(|known| known.guid == guid)
    };
    let keep = state.line.iter().rposition(ancestor).map_or(0, |at| at + 1);
    let extra = state.line.split_off(keep);
    let (Some(first), Some(last)) = (extra.first(), extra.last()) else { return };
    let forked_from = state.line.last().map(|kept| kept.info.guid);
    let epoch = last.info.head.epoch.to_string().replace('.', "-");
    let name = format!("diverged-{epoch}-{}", short_guid(&last.info.guid));
    tracing::warn!(
        volume = %state.volume, first = %first.info.head, last = %last.info.head,
        received = %header.snapshot.head, branch = name,
        "snapshots that the master's line does not have are kept as a branch"
    );
    let tip = Some(last.info.guid);
    let kept_at = last.info.taken_at;
    // A live tail that was set aside on top of them belongs to the same branch.
    match state.branches.iter_mut().find(|branch| branch.forked_from == tip) {
        Some(branch) => {
            branch.forked_from = forked_from;
            branch.snapshots.splice(0..0, extra);
        }
        None => {
            state.set_aside(&name, forked_from, kept_at, extra);
        }
    }
}

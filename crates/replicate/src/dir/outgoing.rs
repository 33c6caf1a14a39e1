//! Streams going out: the chunks of one snapshot that another lacks, in a fixed order, as frames
//! just as they are stored. The same two snapshots give the same bytes until a pack is rewritten.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Write;
use std::sync::{Arc, PoisonError};

use serde::{Deserialize, Serialize};

use super::chunk::{ChunkHash, FrameHeader};
use super::manifest::{self, Manifest, own};
use super::pack;
use super::store::{Place, Reader, frame_len};
use super::volume::Volume;
use crate::backend::{BackendError, Result};
use crate::model::{Guid, StreamHeader};

/// The frames of one stream, in order.
#[derive(Debug)]
pub(crate) struct Plan {
    base: Option<Guid>,
    to: Guid,
    frames: Vec<FrameHeader>,
    header: StreamHeader,
}

/// The backend's part of a stream header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Detail {
    /// The root of the snapshot's tree.
    pub(crate) root: ChunkHash,
    /// Hash of all frame headers: two streams with the same one have the same bytes.
    pub(crate) stream: [u8; 32],
}

impl Volume {
    pub(crate) fn plan(&self, base: Option<Guid>, to: Guid) -> Result<StreamHeader> {
        Ok(self.planned(base, to)?.header.clone())
    }

    fn planned(&self, base: Option<Guid>, to: Guid) -> Result<Arc<Plan>> {
        let mut planned = self.planned.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plan) = planned.as_ref().filter(|plan| plan.base == base && plan.to == to) {
            return Ok(plan.clone());
        }
        let plan = Arc::new(self.make_plan(base, to)?);
        *planned = Some(plan.clone());
        Ok(plan)
    }

    fn make_plan(&self, base: Option<Guid>, to: Guid) -> Result<Plan> {
        let work = self.work();
        let state = self.state();
        let kept = state.on_line(&to)?.clone();
        let old_root = base.map(|base| state.on_line(&base).map(|kept| kept.root)).transpose()?;
        let mut reader = work.store.reader();
        let new = self.load(&mut reader, kept.root)?;
        let old = old_root.map(|root| self.load(&mut reader, root)).transpose()?;
        let hashes = own(missing(&mut reader, old.as_ref(), &new), &self.path("packs"))?;
        let mut frames = Vec::with_capacity(hashes.len());
        let mut hasher = blake3::Hasher::new();
        let mut length = 0;
        for hash in hashes {
            let header = work.store.place(&hash)?.slot.header;
            hasher.update(&header.encode());
            length += frame_len(header.stored);
            frames.push(header);
        }
        let detail = Detail { root: kept.root, stream: *hasher.finalize().as_bytes() };
        let at = state.lineage.iter().position(|ancestor| ancestor.guid == to);
        let lineage = state.lineage[..at.map_or(0, |at| at + 1)].to_vec();
        let header = StreamHeader {
            snapshot: kept.info,
            base,
            lineage,
            length,
            detail: postcard::to_stdvec(&detail).map_err(|error| BackendError::BadStream {
                volume: self.id,
                why: format!("its header cannot be encoded: {error}"),
            })?,
        };
        Ok(Plan { base, to, frames, header })
    }

    pub(crate) fn send(
        &self,
        header: &StreamHeader,
        offset: u64,
        out: &mut dyn Write,
    ) -> Result<()> {
        let plan = self.planned(header.base, header.snapshot.guid)?;
        let changed = || BackendError::BadStream {
            volume: self.id,
            why: "the chunks have been stored anew since it was planned: plan it again".to_owned(),
        };
        if plan.header.detail != header.detail || offset > header.length {
            return Err(changed());
        }
        // The files are opened with the lock held: once open, they may be removed.
        let (places, files) = {
            let work = self.work();
            let mut places: Vec<Place> = Vec::with_capacity(plan.frames.len());
            let mut files: HashMap<u64, File> = HashMap::new();
            for frame in &plan.frames {
                let place = work.store.place(&frame.hash)?;
                if place.slot.header != *frame {
                    *self.planned.lock().unwrap_or_else(PoisonError::into_inner) = None;
                    return Err(changed());
                }
                if let std::collections::hash_map::Entry::Vacant(gap) = files.entry(place.pack) {
                    let path = work.store.pack_path(place.pack);
                    gap.insert(File::open(&path).map_err(|e| BackendError::io("open", path, e))?);
                }
                places.push(place);
            }
            (places, files)
        };
        let mut skip = offset;
        for place in places {
            let len = place.slot.header.frame_len();
            if skip >= len {
                skip -= len;
                continue;
            }
            let file = files.get(&place.pack).ok_or_else(changed)?;
            let mut frame = place.slot.header.encode().to_vec();
            frame.extend(pack::payload(file, &self.path("packs"), &place.slot)?);
            let from = usize::try_from(std::mem::take(&mut skip)).unwrap_or(0);
            out.write_all(&frame[from..])
                .map_err(|source| BackendError::Output { volume: self.id, source })?;
        }
        out.flush().map_err(|source| BackendError::Output { volume: self.id, source })
    }
}

/// The chunks of `new` that `old` does not have, in the order in which they are sent.
fn missing(
    reader: &mut Reader<'_>,
    old: Option<&Manifest>,
    new: &Manifest,
) -> std::result::Result<Vec<ChunkHash>, manifest::ManifestError> {
    let new_pages: HashSet<ChunkHash> = new.pages.iter().copied().collect();
    // What the receiver has: the base's pages, and the chunks of those pages that are read here.
    let mut held: HashSet<ChunkHash> = HashSet::new();
    if let Some(old) = old {
        held.insert(old.root);
        held.extend(&old.pages);
        for page in old.pages.iter().filter(|page| !new_pages.contains(page)) {
            for entry in manifest::read_page(reader, page)? {
                manifest::chunks_of(reader, &entry, &mut |hash| {
                    held.insert(hash);
                })?;
            }
        }
    }
    let mut order = Vec::new();
    let mut add = |hash: ChunkHash, order: &mut Vec<ChunkHash>| {
        if held.insert(hash) {
            order.push(hash);
        }
    };
    let shared: HashSet<ChunkHash> =
        old.map(|old| old.pages.iter().copied().collect()).unwrap_or_default();
    add(new.root, &mut order);
    for page in &new.pages {
        if shared.contains(page) {
            continue;
        }
        add(*page, &mut order);
        for entry in manifest::read_page(reader, page)? {
            manifest::chunks_of(reader, &entry, &mut |hash| add(hash, &mut order))?;
        }
    }
    Ok(order)
}

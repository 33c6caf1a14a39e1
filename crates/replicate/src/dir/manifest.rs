//! A snapshot's tree as chunks: pages of entries under one root, so that two snapshots share the
//! pages that are alike and the root's hash vouches for everything.
//!
//! Pages end at entries whose path says so, not at counts: a file added or removed changes one
//! page. Nothing here reads the live folder.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};

use super::chunk::{CHUNK_MAX, ChunkHash};
use super::store::{Source, Writer};
use super::tree::{Content, DIRECT_MAX, Entry, Extent, Kind, PATH_MAX, compare};
use crate::backend::Result;

const VERSION: u8 = 1;
/// A page is ended early when it weighs more, in bytes.
const PAGE_WEIGHT: usize = 32 * 1024;
/// A page ends after one path in this many.
const PAGE_ENTRIES: u8 = 32;
/// Most pages of a tree, and of one file's extents.
const PAGES_MAX: usize = (CHUNK_MAX - PATH_MAX - 1024) / 32;

/// Most extents of a page of them.
const EXTENTS_PAGE: usize = 1024;
/// Most extents of a file: half a tebibyte in chunks of the aimed-at size.
const EXTENTS_MAX: usize = 16 * 1024 * 1024;

/// Why a tree could not be put into or read out of chunks.
#[derive(Debug)]
pub(crate) enum ManifestError {
    /// It is not what was written.
    Bad(&'static str),
    /// The store failed.
    Store(crate::backend::BackendError),
}

impl From<crate::backend::BackendError> for ManifestError {
    fn from(error: crate::backend::BackendError) -> Self {
        Self::Store(error)
    }
}

/// The pages of one snapshot's tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) root: ChunkHash,
    pub(crate) pages: Vec<ChunkHash>,
}

/// A path whose entry differs between two snapshots.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) old: Option<Entry>,
    pub(crate) new: Option<Entry>,
}

impl Manifest {
    /// Reads the list of pages under this root.
    pub(crate) fn load(
        source: &mut dyn Source,
        root: ChunkHash,
    ) -> std::result::Result<Self, ManifestError> {
        let pages = decode(&source.read(&root)?)?;
        Ok(Self { root, pages })
    }

    /// Puts these entries, which must be in order, into chunks.
    pub(crate) fn store<'a>(
        writer: &mut Writer<'_>,
        entries: impl Iterator<Item = &'a Entry>,
    ) -> std::result::Result<Self, ManifestError> {
        let mut pages = Vec::new();
        let mut page: Vec<&Entry> = Vec::new();
        let mut weight = 0;
        for entry in entries {
            page.push(entry);
            weight += entry.weight();
            let ends = blake3::hash(&entry.path).as_bytes()[0].is_multiple_of(PAGE_ENTRIES);
            if ends || weight > PAGE_WEIGHT {
                pages.push(writer.put(&encode(&page)?)?);
                page.clear();
                weight = 0;
            }
        }
        if !page.is_empty() {
            pages.push(writer.put(&encode(&page)?)?);
        }
        if pages.len() > PAGES_MAX {
            return Err(ManifestError::Bad("it has too many files"));
        }
        let root = writer.put(&encode(&pages)?)?;
        Ok(Self { root, pages })
    }

    /// Every entry, in order.
    pub(crate) fn entries(
        &self,
        source: &mut dyn Source,
    ) -> std::result::Result<Vec<Entry>, ManifestError> {
        let mut all = Vec::new();
        for page in &self.pages {
            all.extend(read_page(source, page)?);
        }
        Ok(all)
    }
}

/// A path as a key in the order of a snapshot.
#[derive(PartialEq, Eq)]
struct Key(Vec<u8>);

impl Ord for Key {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        compare(&self.0, &other.0)
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// What differs between two trees, in order. Pages that both have are not read.
pub(crate) fn diff(
    source: &mut dyn Source,
    from: Option<&Manifest>,
    to: Option<&Manifest>,
) -> std::result::Result<Vec<Change>, ManifestError> {
    let pages = |manifest: Option<&Manifest>| -> HashSet<ChunkHash> {
        manifest.map(|manifest| manifest.pages.iter().copied().collect()).unwrap_or_default()
    };
    let (old_pages, new_pages) = (pages(from), pages(to));
    let mut changes: BTreeMap<Key, Change> = BTreeMap::new();
    for page in from.into_iter().flat_map(|manifest| &manifest.pages) {
        if !new_pages.contains(page) {
            for entry in read_page(source, page)? {
                let key = Key(entry.path.clone());
                changes.insert(key, Change { old: Some(entry), new: None });
            }
        }
    }
    for page in to.into_iter().flat_map(|manifest| &manifest.pages) {
        if !old_pages.contains(page) {
            for entry in read_page(source, page)? {
                let key = Key(entry.path.clone());
                changes.entry(key).or_insert(Change { old: None, new: None }).new = Some(entry);
            }
        }
    }
    Ok(changes.into_values().filter(|change| change.old != change.new).collect())
}

/// Hands a file's extents over, in order, a page at a time.
pub(crate) fn extents(
    source: &mut dyn Source,
    content: &Content,
    visit: &mut dyn FnMut(&mut dyn Source, Extent) -> std::result::Result<(), ManifestError>,
) -> std::result::Result<(), ManifestError> {
    match content {
        Content::Direct(extents) => extents.iter().try_for_each(|extent| visit(source, *extent)),
        Content::Paged(pages) => {
            let mut left = EXTENTS_MAX;
            for page in pages {
                let page = decode::<Vec<Extent>>(&source.read(page)?)?;
                if page.len() > EXTENTS_PAGE || page.len() > left {
                    return Err(ManifestError::Bad("a file has too many extents"));
                }
                left -= page.len();
                page.into_iter().try_for_each(|extent| visit(source, extent))?;
            }
            Ok(())
        }
    }
}

/// The stored form of a file's extents.
pub(crate) fn content(
    writer: &mut Writer<'_>,
    extents: Vec<Extent>,
) -> std::result::Result<Content, ManifestError> {
    if extents.len() <= DIRECT_MAX {
        return Ok(Content::Direct(extents));
    }
    if extents.len() > EXTENTS_MAX {
        return Err(ManifestError::Bad("it holds a file that is too large"));
    }
    let mut pages = Vec::new();
    let mut page = Vec::new();
    for extent in extents {
        page.push(extent);
        // The content decides where a page ends, so that an insertion changes one page.
        let ends = matches!(&extent, Extent::Data { hash, .. } if hash.0[0] % 128 == 0);
        if ends || page.len() == EXTENTS_PAGE {
            pages.push(writer.put(&encode(&page)?)?);
            page.clear();
        }
    }
    if !page.is_empty() {
        pages.push(writer.put(&encode(&page)?)?);
    }
    if pages.len() > PAGES_MAX {
        return Err(ManifestError::Bad("it holds a file that is too large"));
    }
    Ok(Content::Paged(pages))
}

/// Every chunk that an entry needs.
pub(crate) fn chunks_of(
    source: &mut dyn Source,
    entry: &Entry,
    visit: &mut dyn FnMut(ChunkHash),
) -> std::result::Result<(), ManifestError> {
    let Kind::File { content, .. } = &entry.kind else { return Ok(()) };
    if let Content::Paged(pages) = content {
        pages.iter().for_each(|page| visit(*page));
    }
    extents(source, content, &mut |_, extent| {
        if let Extent::Data { hash, .. } = extent {
            visit(hash);
        }
        Ok(())
    })
}

pub(crate) fn read_page(
    source: &mut dyn Source,
    page: &ChunkHash,
) -> std::result::Result<Vec<Entry>, ManifestError> {
    decode(&source.read(page)?)
}

fn encode<T: Serialize + ?Sized>(value: &T) -> std::result::Result<Vec<u8>, ManifestError> {
    let bytes = postcard::to_extend(value, vec![VERSION])
        .map_err(|_cause| ManifestError::Bad("it cannot be encoded"))?;
    if bytes.len() > CHUNK_MAX {
        return Err(ManifestError::Bad("it holds a file that is too large"));
    }
    Ok(bytes)
}

fn decode<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> std::result::Result<T, ManifestError> {
    match bytes.split_first() {
        Some((&VERSION, bytes)) => match postcard::take_from_bytes(bytes) {
            Ok((value, [])) => Ok(value),
            Ok(_) => Err(ManifestError::Bad("bytes follow its end")),
            Err(_) => Err(ManifestError::Bad("it cannot be decoded")),
        },
        _ => Err(ManifestError::Bad("its version is not known here")),
    }
}

/// Turns a damaged tree of our own into an error that names where it lies.
pub(crate) fn own<T>(
    result: std::result::Result<T, ManifestError>,
    path: &std::path::Path,
) -> Result<T> {
    result.map_err(|error| match error {
        ManifestError::Store(error) => error,
        ManifestError::Bad(reason) => crate::backend::BackendError::Damaged {
            path: path.to_owned(),
            reason: format!("a snapshot's tree: {reason}"),
        },
    })
}

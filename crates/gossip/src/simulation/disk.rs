//! A simulated disk under the real database: what was not synced is gone after a crash, and an
//! empty page costs nothing, so that thousands fit into memory. It never loses what was synced.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::{Database, StorageBackend};
use std::io;

const PAGE: usize = 4096;

type Page = Arc<[u8; PAGE]>;

/// A disk. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk {
    content: Arc<Mutex<Content>>,
}

#[derive(Clone, Debug, Default)]
struct Content {
    synced: Image,
    written: Image,
}

/// Pages by number; what is not there is zero.
#[derive(Clone, Debug, Default)]
struct Image {
    length: u64,
    pages: BTreeMap<u64, Page>,
}

impl Disk {
    /// What a crash at this moment leaves.
    pub(super) fn after_crash(&self) -> Self {
        let synced = self.content().synced.clone();
        let content = Content { written: synced.clone(), synced };
        Self { content: Arc::new(Mutex::new(content)) }
    }

    /// Opens the database on it, with a cache of the smallest useful size.
    pub(super) fn open(&self) -> Arc<Database> {
        let mut builder = Database::builder();
        builder.set_cache_size(64 << 10);
        Arc::new(builder.create_with_backend(self.clone()).expect("a database on a sound disk"))
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Image {
    /// The parts of this span, a page each: number, place in the page, place in the span, length.
    fn parts(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, usize, usize)> {
        let page = u64::try_from(PAGE).expect("small");
        let mut done = 0;
        std::iter::from_fn(move || {
            let at = offset + u64::try_from(done).expect("small");
            let within = usize::try_from(at % page).expect("small");
            let part = (length - done).min(PAGE - within);
            let start = done;
            done += part;
            (part > 0).then_some((at / page, within, start, part))
        })
    }

    fn read(&self, offset: u64, out: &mut [u8]) {
        for (number, within, start, length) in Self::parts(offset, out.len()) {
            let target = &mut out[start..start + length];
            match self.pages.get(&number) {
                Some(page) => target.copy_from_slice(&page[within..within + length]),
                None => target.fill(0),
            }
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (number, within, start, length) in Self::parts(offset, data.len()) {
            let page = self.pages.entry(number).or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(page)[within..within + length]
                .copy_from_slice(&data[start..start + length]);
        }
    }

    fn set_length(&mut self, length: u64) {
        let page = u64::try_from(PAGE).expect("small");
        if length < self.length {
            let whole = length / page;
            let rest = usize::try_from(length % page).expect("small");
            let _gone = self.pages.split_off(&(whole + u64::from(rest > 0)));
            if let Some(last) = self.pages.get_mut(&whole) {
                Arc::make_mut(last)[rest..].fill(0);
            }
        }
        self.length = length;
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.content().written.length)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.content().written.read(offset, out);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.content().written.set_length(len);
        Ok(())
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        let mut content = self.content();
        content.synced = content.written.clone();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.content().written.write(offset, data);
        Ok(())
    }
}

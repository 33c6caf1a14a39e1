//! The placement map: what the cluster is to run and where it is, a CRDT that every node stores
//! whole and serves from memory. It informs and must never be taken as authority to grant,
//! start or destroy.
//!
//! ```text
//!   edit ─▶ register, record (merge) ─▶ encoding ─▶ store (redb) ─▶ tree, view ─▶ sync ─▶ peers
//!                    ▲                                                             │
//!                    └──────────────── admission ◀─────────────────────────────────┘
//! ```
//!
//! Invariants:
//! - What view, root and peers show is on disk.
//! - Merge is commutative, associative, idempotent and monotonic, whatever the records hold.
//! - Records and fields of newer versions are kept and passed on.
//! - A store's id writes from one place. Stamps follow the clock, so a store restored from an
//!   old copy goes on without reusing one; two live copies lose writes, which is reported
//!   ([`conflict::Alarm`]) where two values meet under one stamp and cannot be seen otherwise.

use std::borrow::Borrow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flocker_base::{Clock, Name, StoreId, VolumeId};
use redb::Database;
use tokio::sync::watch;

pub mod admission;
pub mod conflict;
mod edit;
pub mod encoding;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
pub mod key;
mod outbox;
pub mod record;
pub mod register;
pub mod stamp;
mod store;
pub mod sync;
mod table;
pub mod tree;
pub mod typed;
pub mod view;

pub use edit::{Edit, NodeChange, TokenChange};
pub use key::{Kind, RecordKey};
pub use view::{Listed, MapView};

use self::conflict::Alarm;
use self::encoding::DecodeError;
use self::outbox::Outbox;
use self::record::{Found, Record};
use self::stamp::HybridClock;
use self::store::{Change, MapStore};
use self::tree::{Hash, HashTree};
use crate::model::Placement;

/// Largest record that an edit may make, in bytes: some such edits of one record on many sides
/// of a partition still fit into [`encoding::MAX_RECORD`] together.
pub const MAX_EDITED: usize = 32 * 1024;

/// What can go wrong with the map.
#[derive(Clone, Debug, thiserror::Error)]
pub enum MapError {
    /// The database failed. If a commit failed the process must end: see [`MapError::is_fatal`].
    #[error("{what} failed: {source}; check the disk")]
    Storage {
        /// What was attempted.
        what: &'static str,
        /// Why it failed.
        source: Arc<redb::Error>,
    },
    /// Stored bytes are not what was written.
    #[error(
        "the placement map on this disk is damaged at {what}: {why}; restore the state folder, \
         or drop the damaged records to take them from the peers"
    )]
    Damaged {
        /// The record.
        what: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A former change failed half-way.
    #[error("an earlier change of the placement map failed on disk; restart this node")]
    Stopped,
    /// The edit is too large.
    #[error("{key} would have {size} bytes, the limit is {MAX_EDITED}")]
    TooLarge {
        /// The record.
        key: RecordKey,
        /// Its size.
        size: usize,
    },
    /// The record's key is too long: a host name over some 290 bytes.
    #[error("a key of {length} bytes is too long, the limit is {}", RecordKey::MAX_LEN)]
    KeyTooLong {
        /// Its length.
        length: usize,
    },
    /// There is no such record or field.
    #[error("there is no {key}, or not what was to be changed of it")]
    Unknown {
        /// The record.
        key: RecordKey,
    },
    /// Ids of deleted records are not used again.
    #[error("{key} was deleted; make a new one, ids are never reused")]
    Deleted {
        /// The record.
        key: RecordKey,
    },
    /// The name is taken.
    #[error("the name '{name}' is taken by {by}; choose another")]
    NameTaken {
        /// The name.
        name: Name,
        /// Who has it.
        by: RecordKey,
    },
    /// A birth is written once.
    #[error("the birth of volume {volume} cannot be changed")]
    BirthFixed {
        /// The volume.
        volume: VolumeId,
    },
    /// The node would have too many labels.
    #[error("{key} would have {count} labels, the limit is {}", crate::model::MAX_LABELS)]
    TooManyLabels {
        /// The record.
        key: RecordKey,
        /// How many it would have.
        count: usize,
    },
    /// Placements are not edited.
    #[error("{key} is not edited: only a volume's master places it")]
    NotEditable {
        /// The record.
        key: RecordKey,
    },
    /// This node's clock is wrong, or was.
    #[error(
        "this node's clock is {by:?} behind what it wrote or accepted before, so peers would \
         refuse the edit: set the clock"
    )]
    ClockBehind {
        /// By how much.
        by: Duration,
    },
}

impl MapError {
    /// Whether the process must end, because nobody knows what the disk holds.
    #[must_use]
    pub const fn is_fatal(&self) -> bool {
        matches!(self, Self::Storage { .. } | Self::Stopped)
    }
}

/// What became of a peer's records.
#[derive(Debug, Default)]
pub struct Merged {
    /// Records that changed here.
    pub changed: Vec<RecordKey>,
    /// Records that were refused.
    pub refused: Vec<Refused>,
}

/// A peer's record that was not merged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Who sent it.
    pub from: StoreId,
    /// The record.
    pub key: RecordKey,
    /// Why.
    pub why: String,
}

/// A record on its way in.
#[derive(Debug)]
struct Arrived {
    from: StoreId,
    key: RecordKey,
    record: Record,
}

/// A handle on the map of this node. Changes block until they are on disk: call them where
/// blocking is allowed.
#[derive(Clone, Debug)]
pub struct Map {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: MapStore,
    actor: StoreId,
    clock: Arc<dyn Clock>,
    /// Held for a whole change, its time on disk included: never by what must not block.
    writer: Mutex<Writer>,
    /// Held for a look or the noting of a change.
    tree: Mutex<HashTree>,
    shown: watch::Sender<Arc<MapView>>,
    outbox: Outbox,
}

#[derive(Debug, Default)]
struct Writer {
    hybrid: HybridClock,
    stopped: bool,
}

/// A change on its way to disk, and what is shown once it is there.
struct Draft {
    change: Change,
    view: MapView,
    hybrid: HybridClock,
    hashes: Vec<(RecordKey, Hash)>,
}

impl Draft {
    fn record(&self, key: &RecordKey) -> Result<Option<(Record, Vec<u8>)>, MapError> {
        let Some(bytes) = self.change.get(key)? else { return Ok(None) };
        Ok(Some((stored(key, &bytes)?, bytes)))
    }

    fn put(&mut self, key: &RecordKey, record: &Record, bytes: &[u8]) -> Result<(), MapError> {
        self.change.put(key, bytes)?;
        self.view.show(key, record);
        self.hashes.push((key.clone(), tree::value_hash(bytes)));
        Ok(())
    }

    fn report(&mut self, key: &RecordKey, found: Found) {
        for (field, double) in found.double_writes {
            let alarm = Alarm { key: key.clone(), field, actor: double.actor };
            tracing::error!(%key, actor = %double.actor, "{alarm}");
            self.view.raise(alarm);
        }
    }
}

/// Checksummed bytes that do not decode were written by a newer version, or by a fault.
fn stored(key: &RecordKey, bytes: &[u8]) -> Result<Record, MapError> {
    encoding::decode_own(bytes).map_err(|why| match why {
        DecodeError::Newer(_) => {
            MapError::Damaged { what: key.to_string(), why: "a newer version wrote it" }
        }
        DecodeError::TooLarge(_) => MapError::Damaged { what: key.to_string(), why: "too large" },
        DecodeError::Malformed(why) => MapError::Damaged { what: key.to_string(), why },
    })
}

impl Map {
    /// Opens the map in this database, under the id of this store.
    ///
    /// # Errors
    /// [`MapError`] if the database cannot be read or a record in it is damaged.
    pub fn open(
        db: Arc<Database>,
        actor: StoreId,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, MapError> {
        let store = MapStore::new(db);
        let mut hashes = Vec::new();
        let mut view = MapView::default();
        let totals = store.load(|key, bytes| {
            view.show(&key, &stored(&key, bytes)?);
            hashes.push((key, tree::value_hash(bytes)));
            Ok(())
        })?;
        let tree = HashTree::of(hashes);
        view.set_root(tree.root(), tree.count());
        let writer = Writer { hybrid: HybridClock::resume(totals.mark), stopped: false };
        let (writer, tree) = (Mutex::new(writer), Mutex::new(tree));
        let (shown, _) = watch::channel(Arc::new(view));
        let outbox = Outbox::default();
        Ok(Self { inner: Arc::new(Inner { store, actor, clock, writer, tree, shown, outbox }) })
    }

    /// Drops damaged records from the map in this database and names them, so that
    /// [`Map::open`] succeeds and the peers bring them back. For a person's explicit command:
    /// what no peer has is lost.
    ///
    /// # Errors
    /// [`MapError`] if the database fails.
    pub fn drop_damaged(db: Arc<Database>) -> Result<Vec<String>, MapError> {
        MapStore::new(db).drop_damaged()
    }

    /// The store in whose name this map writes.
    #[must_use]
    pub fn actor(&self) -> StoreId {
        self.inner.actor
    }

    /// The map as it is.
    #[must_use]
    pub fn view(&self) -> Arc<MapView> {
        Arc::clone(&self.inner.shown.borrow())
    }

    /// The map as it changes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<MapView>> {
        self.inner.shown.subscribe()
    }

    /// The root of the hash tree, to be announced.
    #[must_use]
    pub fn root(&self) -> Hash {
        self.inner.shown.borrow().root()
    }

    /// Makes these edits, all or none. They are on disk when this returns and go to the peers at
    /// once.
    ///
    /// # Errors
    /// [`MapError`]; nothing has changed then.
    pub fn edit(&self, edits: impl AsRef<[Edit]>) -> Result<(), MapError> {
        self.change(0, |draft| {
            let now = self.inner.clock.wall();
            let behind = |behind: stamp::ClockBehind| MapError::ClockBehind { by: behind.by };
            for edit in edits.as_ref() {
                let key = edit.key();
                let present = draft.record(&key)?;
                let before = present.as_ref().map(|(_, bytes)| bytes.clone());
                let stamp = draft.hybrid.tick(now).map_err(behind)?;
                let author = edit::Author { actor: self.inner.actor, stamp, view: &draft.view };
                let record = edit.apply(present.map(|(record, _)| record), &author)?;
                let bytes = fit(&key, &record)?;
                if before.as_ref() != Some(&bytes) {
                    draft.put(&key, &record, &bytes)?;
                }
            }
            Ok(())
        })
    }

    /// Notes where a volume is. Only its master calls this, under its lease. An older placement
    /// than the one that is here changes nothing.
    ///
    /// # Errors
    /// [`MapError`]; nothing has changed then.
    pub fn place(&self, placement: impl Borrow<Placement>) -> Result<(), MapError> {
        let placement = placement.borrow();
        let key = typed::placement_key(placement.volume);
        let record = Record::Placed(typed::placed(placement));
        fit(&key, &record)?;
        self.change(0, |draft| draft.take_in(&key, record).map(drop))
    }

    /// Merges a peer's records: those that are sound are on disk when this returns. They are not
    /// passed on to other peers.
    ///
    /// # Errors
    /// [`MapError`] if the disk fails; nothing has changed then.
    pub fn merge(
        &self,
        from: StoreId,
        records: Vec<(RecordKey, Record)>,
    ) -> Result<Merged, MapError> {
        let arrived = |(key, record)| Arrived { from, key, record };
        self.take_in(records.into_iter().map(arrived).collect(), outbox::MAX_HOPS)
    }

    /// Merges what peers sent, as one change, and passes on what changed if it came fewer than
    /// the most hops.
    fn take_in(&self, arrived: Vec<Arrived>, hops: u8) -> Result<Merged, MapError> {
        let mut merged = Merged::default();
        self.change(hops, |draft| {
            let limit = draft.hybrid.limit(self.inner.clock.wall());
            for Arrived { from, key, record } in arrived {
                let present = draft.record(&key)?.map(|(record, _)| record);
                if let Err(why) = admission::admit(&key, present.as_ref(), &record, limit) {
                    merged.refused.push(Refused { from, key, why: why.to_string() });
                    continue;
                }
                draft.hybrid.observe(record.newest());
                match draft.take_in(&key, record) {
                    Ok(true) => merged.changed.push(key),
                    Ok(false) => {}
                    Err(MapError::TooLarge { key, size }) => {
                        let why = format!("merged it has {size} bytes: settle its conflicts");
                        merged.refused.push(Refused { from, key, why });
                    }
                    Err(other) => return Err(other),
                }
            }
            Ok(())
        })?;
        Ok(merged)
    }

    /// One change, from the lock to what everybody sees.
    fn change(
        &self,
        hops: u8,
        make: impl FnOnce(&mut Draft) -> Result<(), MapError>,
    ) -> Result<(), MapError> {
        let mut writer = locked(&self.inner.writer);
        if writer.stopped {
            return Err(MapError::Stopped);
        }
        let change = self.inner.store.begin()?;
        let view = MapView::clone(&self.inner.shown.borrow());
        let mut draft = Draft { change, view, hybrid: writer.hybrid, hashes: Vec::new() };
        make(&mut draft)?;
        let Draft { change, mut view, hybrid, hashes } = draft;
        let alarmed = view.alarms().len() != self.inner.shown.borrow().alarms().len();
        if hashes.is_empty() {
            if alarmed {
                self.inner.shown.send_replace(Arc::new(view));
            }
            return Ok(());
        }
        if let Err(failure) = change.commit(hybrid.mark()) {
            writer.stopped = true;
            return Err(failure);
        }
        writer.hybrid = hybrid;
        {
            let mut tree = self.tree();
            for (key, hash) in &hashes {
                tree.set(key.clone(), *hash);
            }
            view.set_root(tree.root(), tree.count());
        }
        self.inner.shown.send_replace(Arc::new(view));
        drop(writer);
        self.inner.outbox.add(hashes.into_iter().map(|(key, _)| key), hops);
        Ok(())
    }

    fn tree(&self) -> MutexGuard<'_, HashTree> {
        locked(&self.inner.tree)
    }
}

/// A panic under one of the map's locks left what it guards as it was or as it is on disk.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Draft {
    /// Merges a record into what is here. Says whether that changed anything.
    fn take_in(&mut self, key: &RecordKey, record: Record) -> Result<bool, MapError> {
        let Some((mut present, before)) = self.record(key)? else {
            let bytes = encoded(key, &record)?;
            self.put(key, &record, &bytes)?;
            return Ok(true);
        };
        let found = present.merge(record);
        self.report(key, found);
        let bytes = encoded(key, &present)?;
        if bytes == before {
            return Ok(false);
        }
        self.put(key, &present, &bytes)?;
        Ok(true)
    }
}

fn encoded(key: &RecordKey, record: &Record) -> Result<Vec<u8>, MapError> {
    let too_large = |size| MapError::TooLarge { key: key.clone(), size };
    encoding::encode(record).map_err(|why| match why {
        DecodeError::TooLarge(size) => too_large(size),
        DecodeError::Newer(_) | DecodeError::Malformed(_) => too_large(usize::MAX),
    })
}

fn fit(key: &RecordKey, record: &Record) -> Result<Vec<u8>, MapError> {
    let bytes = encoded(key, record)?;
    if RecordKey::from_bytes(key.as_bytes()).is_none() {
        return Err(MapError::KeyTooLong { length: key.as_bytes().len() });
    }
    if bytes.len() > MAX_EDITED {
        return Err(MapError::TooLarge { key: key.clone(), size: bytes.len() });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;

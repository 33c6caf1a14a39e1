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
//!   old copy goes on without reusing one; what the restore took from it of its own writes its next
//!   write of the same field replaces. Two live copies lose writes, which is reported
//!   ([`conflict::Alarm`]) where two values meet under one stamp and cannot be seen otherwise.

use std::borrow::Borrow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flocker_base::{Clock, StoreId};
use redb::Database;
use tokio::sync::watch;

pub mod admission;
pub mod amendment;
mod change;
pub mod conflict;
mod decisions;
mod edit;
pub mod encoding;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
pub mod key;
mod outbox;
pub mod pending;
pub mod quarantine;
pub mod record;
pub mod register;
pub mod room;
pub mod stamp;
pub(crate) mod store;
pub mod sync;
mod table;
pub mod tree;
pub mod typed;
pub mod view;

pub use amendment::Amendment;
pub use edit::{Edit, NodeChange, TokenChange};
pub use error::MapError;
pub use key::{Kind, RecordKey};
pub use view::{Listed, MapView};

use self::change::{Draft, Ended, fit, stored, unreadable};
use self::outbox::Outbox;
use self::pending::Pending;
use self::quarantine::{ATTENDANCE, Attendance, Kept, QuarantineConfig};
use self::record::Record;
use self::room::{Disk, Endless};
use self::stamp::HybridClock;
use self::store::{MapStore, Side};
use self::tree::{Hash, HashTree};
use crate::model::Placement;

/// Largest record that an edit may make, in bytes: some such edits of one record on many sides
/// of a partition still fit into [`encoding::MAX_RECORD`] together.
pub const MAX_EDITED: usize = 32 * 1024;

/// What became of a peer's records.
#[derive(Debug, Default)]
pub struct Merged {
    /// Records that changed here.
    pub changed: Vec<RecordKey>,
    /// Records that were kept apart: see [`quarantine`].
    pub quarantined: Vec<RecordKey>,
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

/// What a map is opened with.
#[derive(Clone, Debug)]
pub struct MapConfig {
    /// What is kept apart from the map until a person decides.
    pub quarantine: QuarantineConfig,
    /// The disk that the database lies on.
    pub disk: Arc<dyn Disk>,
}

impl Default for MapConfig {
    fn default() -> Self {
        Self { quarantine: QuarantineConfig::default(), disk: Arc::new(Endless) }
    }
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
    config: MapConfig,
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
    attendance: Option<Attendance>,
    /// The attendance that is on disk.
    noted: Option<Attendance>,
    stopped: bool,
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
        Self::open_with(db, actor, clock, MapConfig::default())
    }

    /// The same with other settings than the usual ones.
    ///
    /// # Errors
    /// As [`Map::open`], and [`MapError::Config`].
    pub fn open_with(
        db: Arc<Database>,
        actor: StoreId,
        clock: Arc<dyn Clock>,
        config: MapConfig,
    ) -> Result<Self, MapError> {
        config.quarantine.validate().map_err(|why| MapError::Config { why })?;
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
        let noted = load_sides(&store, &mut view)?;
        let hybrid = HybridClock::resume(totals.mark);
        let writer = Mutex::new(Writer { hybrid, attendance: noted, noted, stopped: false });
        let tree = Mutex::new(tree);
        let (shown, _) = watch::channel(Arc::new(view));
        let outbox = Outbox::default();
        let inner = Inner { store, actor, clock, config, writer, tree, shown, outbox };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Drops damaged records from the map in this database and names them, so that
    /// [`Map::open`] succeeds and the peers bring them back. For a person's explicit command:
    /// what no peer has is lost.
    ///
    /// # Errors
    /// [`MapError`] if the database fails.
    pub fn drop_damaged(db: &Database) -> Result<Vec<String>, MapError> {
        store::drop_damaged(db)
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
        room::check(&*self.inner.config.disk)?;
        self.change(0, |draft| {
            for edit in edits.as_ref() {
                let key = edit.key();
                let present = draft.record(&key)?;
                let before = present.as_ref().map(|(_, bytes)| bytes.clone());
                let stamp = self.tick(draft)?;
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
        room::check(&*self.inner.config.disk)?;
        self.change(0, |draft| draft.take_in(&key, None, record).map(drop))
    }

    /// Whether the disk has the room that a change needs.
    #[must_use]
    pub fn has_room(&self) -> bool {
        room::check(&*self.inner.config.disk).is_ok()
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
        if let Err(full) = room::check(&*self.inner.config.disk) {
            let why = full.to_string();
            let refused = |Arrived { from, key, .. }| Refused { from, key, why: why.clone() };
            let refused = arrived.into_iter().map(refused).collect();
            return Ok(Merged { refused, ..Merged::default() });
        }
        let mut merged = Merged::default();
        self.change(hops, |draft| {
            let now = self.inner.clock.wall();
            for one in arrived {
                self.take_in_one(draft, one, now, &mut merged)?;
            }
            if !draft.hashes.is_empty() {
                self.note_contact(draft, now)?;
            }
            Ok(())
        })?;
        Ok(merged)
    }

    fn take_in_one(
        &self,
        draft: &mut Draft<'_>,
        Arrived { from, key, record }: Arrived,
        now: flocker_base::WallTime,
        merged: &mut Merged,
    ) -> Result<(), MapError> {
        let mut refuse = |key, why: String| merged.refused.push(Refused { from, key, why });
        let present = draft.record(&key)?;
        let limit = draft.hybrid.limit(now);
        let mine = present.as_ref().map(|(record, _)| record);
        if let Err(why) = admission::admit(&key, mine, &record, limit) {
            refuse(key, why.to_string());
            return Ok(());
        }
        let known = draft.known(&key, present.is_some())?;
        let config = &self.inner.config.quarantine;
        if quarantine::comes_too_late(&key, &record, known, draft.attendance, now, config) {
            if draft.view.is_quarantine_full() && draft.view.quarantined_record(&key).is_none() {
                refuse(key, "the quarantine is full: see 'flocker quarantine ls'".to_owned());
            } else if draft.keep_apart(&key, Kept { from, at: now, record })? {
                merged.quarantined.push(key);
            }
            return Ok(());
        }
        draft.hybrid.observe(record.newest());
        match draft.take_in(&key, present, record) {
            Ok(true) => merged.changed.push(key),
            Ok(false) => {}
            Err(MapError::TooLarge { key, size }) => {
                refuse(key, format!("merged it has {size} bytes: settle its conflicts"));
            }
            Err(other) => return Err(other),
        }
        Ok(())
    }

    /// Takes note that a peer's map is, or has just become, the same as ours as far as is known.
    /// Only a node that was in touch for long judges what comes late. Blocks at most once an hour.
    ///
    /// # Errors
    /// [`MapError`] if the disk fails.
    pub fn note_contact_now(&self) -> Result<(), MapError> {
        if room::check(&*self.inner.config.disk).is_err() {
            return Ok(());
        }
        let now = self.inner.clock.wall();
        let noted = {
            let mut writer = locked(&self.inner.writer);
            let config = &self.inner.config.quarantine;
            let attendance = Attendance::after_contact(writer.attendance, now, config);
            writer.attendance = Some(attendance);
            !attendance.is_news(writer.noted)
        };
        if noted { Ok(()) } else { self.change(0, |draft| self.note_contact(draft, now)) }
    }

    fn note_contact(
        &self,
        draft: &mut Draft<'_>,
        now: flocker_base::WallTime,
    ) -> Result<(), MapError> {
        let config = &self.inner.config.quarantine;
        let attendance = Attendance::after_contact(draft.attendance, now, config);
        draft.note_attendance(attendance)
    }

    fn tick(&self, draft: &mut Draft<'_>) -> Result<stamp::Stamp, MapError> {
        let ticked = draft.hybrid.tick(self.inner.clock.wall());
        ticked.map_err(|behind| MapError::ClockBehind { by: behind.by })
    }

    /// One change, from the lock to what everybody sees.
    fn change<T>(
        &self,
        hops: u8,
        make: impl FnOnce(&mut Draft<'_>) -> Result<T, MapError>,
    ) -> Result<T, MapError> {
        let mut writer = locked(&self.inner.writer);
        if writer.stopped {
            return Err(MapError::Stopped);
        }
        let transaction = self.inner.store.begin()?;
        let view = MapView::clone(&self.inner.shown.borrow());
        let draft = Draft::new(transaction.tables()?, view, writer.hybrid, writer.attendance);
        let (made, end) = draft.end(make).inspect_err(|why| writer.stopped |= why.is_fatal())?;
        let Ended { totals, written, mut view, hybrid, attendance, hashes } = end;
        if !written {
            if view.alarms().len() != self.inner.shown.borrow().alarms().len() {
                self.inner.shown.send_replace(Arc::new(view));
            }
            return Ok(made);
        }
        if let Err(failure) = transaction.commit(totals, hybrid.mark()) {
            writer.stopped = true;
            return Err(failure);
        }
        writer.hybrid = hybrid;
        if attendance != writer.attendance {
            (writer.attendance, writer.noted) = (attendance, attendance);
        }
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
        Ok(made)
    }

    fn tree(&self) -> MutexGuard<'_, HashTree> {
        locked(&self.inner.tree)
    }
}

/// Reads what is kept beside the map; gives the attendance that was noted.
fn load_sides(store: &MapStore, view: &mut MapView) -> Result<Option<Attendance>, MapError> {
    store.load_side(Side::Quarantine, |key, bytes| {
        let damaged = |why| MapError::Damaged { what: "a record in quarantine".to_owned(), why };
        let key = RecordKey::from_bytes(key).ok_or_else(|| damaged("its key is none"))?;
        let kept = Kept::decode(bytes).map_err(|why| unreadable(&key, &why))?;
        view.quarantine(&key, kept.shown(&key));
        Ok(())
    })?;
    store.load_side(Side::Pending, |key, bytes| {
        let damaged = |why| MapError::Damaged { what: "a waiting edit".to_owned(), why };
        let number = key.try_into().map_err(|_length| damaged("its number is none"))?;
        let edit = Pending::decode(bytes).ok_or_else(|| damaged("it does not parse"))?;
        view.set_pending(u64::from_be_bytes(number), Some(edit));
        Ok(())
    })?;
    let mut noted = None;
    store.load_side(Side::Notes, |key, bytes| {
        if key == ATTENDANCE.as_bytes() {
            noted = Attendance::decode(bytes);
        }
        Ok(())
    })?;
    Ok(noted)
}

/// A panic under one of the map's locks left what it guards as it was or as it is on disk.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;

//! A change of the map on its way to disk: what is written, and what is shown once it is there.
//! It must never show anything by itself.

use flocker_base::StoreId;

use super::conflict::Alarm;
use super::encoding::{self, DecodeError};
use super::key::{Kind, RecordKey};
use super::pending::{LAST_NUMBER, Pending};
use super::quarantine::{ATTENDANCE, Attendance, Kept, Known};
use super::record::{Found, Record};
use super::stamp::HybridClock;
use super::store::{Side, Tables, Totals};
use super::tree::{self, Hash};
use super::view::MapView;
use super::{MAX_EDITED, MapError, typed};
use crate::model::VolumeSpec;

pub(super) struct Draft<'t> {
    pub(super) tables: Tables<'t>,
    pub(super) view: MapView,
    pub(super) hybrid: HybridClock,
    pub(super) attendance: Option<Attendance>,
    pub(super) hashes: Vec<(RecordKey, Hash)>,
}

/// What is left of a draft once all is written that is to be written.
pub(super) struct Ended {
    pub(super) totals: Totals,
    pub(super) written: bool,
    pub(super) view: MapView,
    pub(super) hybrid: HybridClock,
    pub(super) attendance: Option<Attendance>,
    pub(super) hashes: Vec<(RecordKey, Hash)>,
}

impl<'t> Draft<'t> {
    pub(super) const fn new(
        tables: Tables<'t>,
        view: MapView,
        hybrid: HybridClock,
        attendance: Option<Attendance>,
    ) -> Self {
        Self { tables, view, hybrid, attendance, hashes: Vec::new() }
    }

    /// Makes the change.
    pub(super) fn end<T>(
        mut self,
        make: impl FnOnce(&mut Draft<'_>) -> Result<T, MapError>,
    ) -> Result<(T, Ended), MapError> {
        let made = make(&mut self)?;
        let (totals, written) = (self.tables.totals(), self.tables.is_written());
        let Self { view, hybrid, attendance, hashes, .. } = self;
        Ok((made, Ended { totals, written, view, hybrid, attendance, hashes }))
    }

    pub(super) fn record(&self, key: &RecordKey) -> Result<Option<(Record, Vec<u8>)>, MapError> {
        let Some(bytes) = self.tables.get(key)? else { return Ok(None) };
        Ok(Some((stored(key, &bytes)?, bytes)))
    }

    pub(super) fn put(
        &mut self,
        key: &RecordKey,
        record: &Record,
        bytes: &[u8],
    ) -> Result<(), MapError> {
        self.tables.put(key, bytes)?;
        self.view.show(key, record);
        self.hashes.push((key.clone(), tree::value_hash(bytes)));
        Ok(())
    }

    /// Merges a record into what is here; gives whether that changed anything. What was in
    /// quarantine under its key, or as its volume's placement, comes with it.
    /// `present` is what is here, if the caller has read it.
    pub(super) fn take_in(
        &mut self,
        key: &RecordKey,
        present: Option<(Record, Vec<u8>)>,
        record: Record,
    ) -> Result<bool, MapError> {
        let mut changed = self.merge(key, present, record)?;
        changed |= self.let_in(key)?;
        if let Some(volume) = volume_of(key) {
            changed |= self.let_in(&typed::placement_key(volume))?;
        }
        Ok(changed)
    }

    fn merge(
        &mut self,
        key: &RecordKey,
        present: Option<(Record, Vec<u8>)>,
        record: Record,
    ) -> Result<bool, MapError> {
        let before = match present {
            None => self.record(key)?,
            present => present,
        };
        let (merged, old) = match before {
            None => (record, None),
            Some((mut mine, bytes)) => {
                let found = mine.merge(record);
                self.report(key, found);
                (mine, Some(bytes))
            }
        };
        let bytes = encoded(key, &merged)?;
        if old.as_ref() == Some(&bytes) {
            return Ok(false);
        }
        self.put(key, &merged, &bytes)?;
        Ok(true)
    }

    fn report(&mut self, key: &RecordKey, found: Found) {
        for (field, double) in found.double_writes {
            let alarm = Alarm { key: key.clone(), field, actor: double.actor };
            tracing::error!(%key, actor = %double.actor, "{alarm}");
            self.view.raise(alarm);
        }
    }

    /// What is known here of a record that comes.
    pub(super) fn known(&self, key: &RecordKey, present: bool) -> Result<Known, MapError> {
        let volume = match key.kind() {
            Kind::PLACEMENT if !present => {
                let id = key.id().try_into().ok().map(flocker_base::VolumeId::from_bytes);
                let volume = id.map(|id| <VolumeSpec as typed::Typed>::key_of(&id));
                volume.map(|volume| self.tables.get(&volume)).transpose()?.flatten().is_some()
            }
            _ => false,
        };
        Ok(Known { record: present, volume })
    }

    /// Keeps a record apart; gives whether that changed anything.
    pub(super) fn keep_apart(&mut self, key: &RecordKey, kept: Kept) -> Result<bool, MapError> {
        let before = self.kept(key)?;
        let kept = match &before {
            None => kept,
            Some(old) => {
                let mut record = old.record.clone();
                record.merge(kept.record);
                Kept { from: old.from, at: old.at, record }
            }
        };
        if before.as_ref() == Some(&kept) {
            return Ok(false);
        }
        let bytes = kept.encode().map_err(|why| unwritable(key, &why))?;
        self.tables.put_side(Side::Quarantine, key.as_bytes(), &bytes)?;
        self.view.quarantine(key, kept.shown(key));
        Ok(true)
    }

    /// The record in quarantine.
    pub(super) fn kept(&self, key: &RecordKey) -> Result<Option<Kept>, MapError> {
        if self.view.quarantined_record(key).is_none() {
            return Ok(None);
        }
        let bytes = self.tables.side(Side::Quarantine, key.as_bytes())?;
        bytes.map(|bytes| Kept::decode(&bytes).map_err(|why| unreadable(key, &why))).transpose()
    }

    /// Merges what is in quarantine under this key, if anything is.
    fn let_in(&mut self, key: &RecordKey) -> Result<bool, MapError> {
        let Some(kept) = self.kept(key)? else { return Ok(false) };
        self.release(key)?;
        self.merge(key, None, kept.record)
    }

    /// Takes a record out of quarantine.
    pub(super) fn release(&mut self, key: &RecordKey) -> Result<(), MapError> {
        self.tables.remove_side(Side::Quarantine, key.as_bytes())?;
        self.view.release(key);
        Ok(())
    }

    /// Notes for how long this node has been in touch.
    pub(super) fn note_attendance(&mut self, attendance: Attendance) -> Result<(), MapError> {
        self.attendance = Some(attendance);
        self.tables.put_side(Side::Notes, ATTENDANCE.as_bytes(), &attendance.encode())
    }

    /// A number that no edit on this node had before.
    pub(super) fn next_number(&mut self) -> Result<u64, MapError> {
        let last = self.tables.side(Side::Notes, LAST_NUMBER.as_bytes())?;
        let last = last.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes);
        let number = last.saturating_add(1);
        let bytes = number.to_be_bytes();
        self.tables.put_side(Side::Notes, LAST_NUMBER.as_bytes(), &bytes)?;
        Ok(number)
    }

    /// Writes a waiting edit.
    pub(super) fn put_pending(&mut self, number: u64, edit: Pending) -> Result<(), MapError> {
        self.tables.put_side(Side::Pending, &number.to_be_bytes(), &edit.encode())?;
        self.view.set_pending(number, Some(edit));
        Ok(())
    }

    /// Removes a waiting edit.
    pub(super) fn remove_pending(&mut self, number: u64) -> Result<(), MapError> {
        self.tables.remove_side(Side::Pending, &number.to_be_bytes())?;
        self.view.set_pending(number, None);
        Ok(())
    }
}

fn volume_of(key: &RecordKey) -> Option<flocker_base::VolumeId> {
    <VolumeSpec as typed::Typed>::id_of(key).filter(|_| key.kind() == Kind::VOLUME)
}

/// Checksummed bytes that do not decode were written by a newer version, or by a fault.
pub(super) fn stored(key: &RecordKey, bytes: &[u8]) -> Result<Record, MapError> {
    encoding::decode_own(bytes).map_err(|why| unreadable(key, &why))
}

pub(super) fn unreadable(key: &RecordKey, why: &DecodeError) -> MapError {
    let why = match why {
        DecodeError::Newer(_) => "a newer version wrote it",
        DecodeError::TooLarge(_) => "too large",
        DecodeError::Malformed(why) => why,
    };
    MapError::Damaged { what: key.to_string(), why }
}

fn unwritable(key: &RecordKey, why: &DecodeError) -> MapError {
    let size = match why {
        DecodeError::TooLarge(size) => *size,
        DecodeError::Newer(_) | DecodeError::Malformed(_) => usize::MAX,
    };
    MapError::TooLarge { key: key.clone(), size }
}

pub(super) fn encoded(key: &RecordKey, record: &Record) -> Result<Vec<u8>, MapError> {
    encoding::encode(record).map_err(|why| unwritable(key, &why))
}

/// The bytes of a record that this node makes: within stricter limits than what peers may merge.
pub(super) fn fit(key: &RecordKey, record: &Record) -> Result<Vec<u8>, MapError> {
    let bytes = encoded(key, record)?;
    if RecordKey::from_bytes(key.as_bytes()).is_none() {
        return Err(MapError::KeyTooLong { length: key.as_bytes().len() });
    }
    if bytes.len() > MAX_EDITED {
        return Err(MapError::TooLarge { key: key.clone(), size: bytes.len() });
    }
    Ok(bytes)
}

/// A record that a person lets out of quarantine, written anew by this store so that no other
/// node takes it for a late-comer's.
pub(super) fn renewed(mut record: Record, actor: StoreId, stamp: super::stamp::Stamp) -> Record {
    use super::record::IntentState;
    if let Record::Intent(intent) = &mut record
        && let IntentState::Live(fields) = &mut intent.state
    {
        let settled = fields.iter().find(|(_, it)| it.siblings().len() == 1).map(|(id, _)| *id);
        let chosen = settled.or_else(|| fields.keys().next().copied());
        if let Some(register) = chosen.and_then(|id| fields.get_mut(&id))
            && let Some(bytes) = register.winner().map(|winner| winner.bytes.clone())
        {
            register.write(actor, stamp, bytes);
        }
    }
    record
}

//! The map on disk: one table of records, each with a checksum over its key and bytes, and one
//! of totals. A change is on disk, whole, before anyone hears of it. A damaged record must be
//! named, never read as another or as none.

use std::sync::Arc;

use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, Table, TableDefinition, TableError,
    WriteTransaction,
};

use super::MapError;
use super::key::RecordKey;
use super::stamp::Stamp;

const RECORDS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("map_records");
const TOTALS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("map_totals");
const TOTALS_KEY: &str = "totals";
const TOTALS_VERSION: u8 = 1;
const TOTALS_LEN: usize = 1 + 8 + 8 + 16;
const CHECKSUM_LEN: usize = 16;

type Checksum = [u8; CHECKSUM_LEN];

/// The tables, within a database that others use too.
#[derive(Clone, Debug)]
pub(super) struct MapStore {
    db: Arc<Database>,
}

/// What the records must add up to, so that a record that is gone is missed, and the mark of the
/// hybrid clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub mark: Stamp,
    pub records: u64,
    /// The sum of the records' checksums, which needs no order.
    pub sum: u128,
}

/// A change that is not on disk yet. Dropped, it leaves nothing.
pub(super) struct Change {
    txn: WriteTransaction,
    totals: Totals,
}

fn failed(what: &'static str) -> impl Fn(redb::Error) -> MapError {
    move |source| MapError::Storage { what, source: Arc::new(source) }
}

fn damaged(what: impl Into<String>, why: &'static str) -> MapError {
    MapError::Damaged { what: what.into(), why }
}

impl MapStore {
    pub(super) const fn new(db: Arc<Database>) -> Self {
        Self { db }
    }

    /// Makes the tables if they are not there and reads every record once.
    pub(super) fn load(
        &self,
        mut each: impl FnMut(RecordKey, &[u8]) -> Result<(), MapError>,
    ) -> Result<Totals, MapError> {
        self.create_tables()?;
        let opening = failed("reading the placement map");
        let txn = self.db.begin_read().map_err(|e| opening(e.into()))?;
        let totals = txn.open_table(TOTALS).map_err(|e| opening(e.into()))?;
        let totals = match totals.get(TOTALS_KEY).map_err(|e| opening(e.into()))? {
            Some(bytes) => Totals::decode(bytes.value())?,
            None => Totals::default(),
        };
        let table = txn.open_table(RECORDS).map_err(|e| opening(e.into()))?;
        let mut found = Totals { mark: totals.mark, ..Totals::default() };
        for row in table.iter().map_err(|e| opening(e.into()))? {
            let (key, value) = row.map_err(|e| opening(e.into()))?;
            let (key, bytes) = open_row(key.value(), value.value())?;
            found.add(checksum(&key, bytes));
            each(key, bytes)?;
        }
        if found != totals {
            let what = format!("the whole, {} records of {}", found.records, totals.records);
            return Err(damaged(what, "records are missing or were put back"));
        }
        Ok(totals)
    }

    fn create_tables(&self) -> Result<(), MapError> {
        let creating = failed("creating the placement map's tables");
        let txn = self.db.begin_read().map_err(|e| creating(e.into()))?;
        match txn.open_table(TOTALS) {
            Ok(_) => return Ok(()),
            Err(TableError::TableDoesNotExist(_)) => {}
            Err(other) => return Err(creating(other.into())),
        }
        drop(txn);
        let change = self.begin()?;
        drop(change.records()?);
        change.commit(Stamp::ZERO)
    }

    /// One record's bytes.
    pub(super) fn get(&self, key: &RecordKey) -> Result<Option<Vec<u8>>, MapError> {
        let reading = failed("reading a record of the placement map");
        let txn = self.db.begin_read().map_err(|e| reading(e.into()))?;
        let table = txn.open_table(RECORDS).map_err(|e| reading(e.into()))?;
        let Some(row) = table.get(key.as_bytes()).map_err(|e| reading(e.into()))? else {
            return Ok(None);
        };
        open_row(key.as_bytes(), row.value()).map(|(_, bytes)| Some(bytes.to_vec()))
    }

    /// Records in the order of their keys, after this one, until they have so many bytes.
    pub(super) fn page(
        &self,
        after: Option<&RecordKey>,
        max_bytes: usize,
    ) -> Result<Vec<(RecordKey, Vec<u8>)>, MapError> {
        let reading = failed("reading a page of the placement map");
        let txn = self.db.begin_read().map_err(|e| reading(e.into()))?;
        let table = txn.open_table(RECORDS).map_err(|e| reading(e.into()))?;
        let from = after
            .map_or(std::ops::Bound::Unbounded, |key| std::ops::Bound::Excluded(key.as_bytes()));
        let range = (from, std::ops::Bound::Unbounded);
        let (mut page, mut size) = (Vec::new(), 0);
        for row in table.range::<&[u8]>(range).map_err(|e| reading(e.into()))? {
            let (key, value) = row.map_err(|e| reading(e.into()))?;
            let (key, bytes) = open_row(key.value(), value.value())?;
            size += key.as_bytes().len() + bytes.len();
            if size > max_bytes && !page.is_empty() {
                break;
            }
            page.push((key, bytes.to_vec()));
        }
        Ok(page)
    }

    /// Begins a change; waits for another that is under way.
    pub(super) fn begin(&self) -> Result<Change, MapError> {
        let beginning = failed("beginning a change of the placement map");
        let mut txn = self.db.begin_write().map_err(|e| beginning(e.into()))?;
        txn.set_durability(Durability::Immediate).map_err(|e| beginning(e.into()))?;
        txn.set_two_phase_commit(true);
        let totals = {
            let table = txn.open_table(TOTALS).map_err(|e| beginning(e.into()))?;
            match table.get(TOTALS_KEY).map_err(|e| beginning(e.into()))? {
                Some(bytes) => Totals::decode(bytes.value())?,
                None => Totals::default(),
            }
        };
        Ok(Change { txn, totals })
    }

    /// Removes damaged records, so that peers bring them back, and names them. What they said
    /// and no peer has is lost: for a person to ask for, never for the agent to do by itself.
    pub(super) fn drop_damaged(&self) -> Result<Vec<String>, MapError> {
        self.create_tables()?;
        let healing = failed("healing the placement map");
        let mut txn = self.db.begin_write().map_err(|e| healing(e.into()))?;
        txn.set_durability(Durability::Immediate).map_err(|e| healing(e.into()))?;
        txn.set_two_phase_commit(true);
        let mut dropped = Vec::new();
        let mut totals = Totals::default();
        {
            let mut table = txn.open_table(RECORDS).map_err(|e| healing(e.into()))?;
            let mut bad = Vec::new();
            for row in table.iter().map_err(|e| healing(e.into()))? {
                let (key, value) = row.map_err(|e| healing(e.into()))?;
                match open_row(key.value(), value.value()) {
                    Ok((key, bytes)) => {
                        totals.add(checksum(&key, bytes));
                        if let Ok(record) = super::encoding::decode(bytes) {
                            totals.mark = totals.mark.max(record.newest());
                        }
                    }
                    Err(_) => bad.push(key.value().to_vec()),
                }
            }
            for key in bad {
                table.remove(key.as_slice()).map_err(|e| healing(e.into()))?;
                dropped.push(name_of(&key));
            }
            let mut table = txn.open_table(TOTALS).map_err(|e| healing(e.into()))?;
            let old = match table.get(TOTALS_KEY).map_err(|e| healing(e.into()))? {
                Some(bytes) => Totals::decode(bytes.value()).unwrap_or_default(),
                None => Totals::default(),
            };
            totals.mark = totals.mark.max(old.mark);
            let bytes = totals.encode();
            table.insert(TOTALS_KEY, bytes.as_slice()).map_err(|e| healing(e.into()))?;
        }
        txn.commit().map_err(|e| healing(e.into()))?;
        Ok(dropped)
    }
}

impl Change {
    fn records(&self) -> Result<Table<'_, &'static [u8], &'static [u8]>, MapError> {
        self.txn.open_table(RECORDS).map_err(|e| failed("opening the placement map")(e.into()))
    }

    /// One record's bytes, this change's own writes included.
    pub(super) fn get(&self, key: &RecordKey) -> Result<Option<Vec<u8>>, MapError> {
        let table = self.records()?;
        let row = table.get(key.as_bytes());
        let row = row.map_err(|e| failed("reading a record of the placement map")(e.into()))?;
        let Some(row) = row else { return Ok(None) };
        open_row(key.as_bytes(), row.value()).map(|(_, bytes)| Some(bytes.to_vec()))
    }

    /// Writes one record.
    pub(super) fn put(&mut self, key: &RecordKey, bytes: &[u8]) -> Result<(), MapError> {
        let writing = failed("writing a record of the placement map");
        let sum = checksum(key, bytes);
        let row = [sum.as_slice(), bytes].concat();
        let before = {
            let mut table = self.records()?;
            let old = table.insert(key.as_bytes(), row.as_slice());
            let old = old.map_err(|e| writing(e.into()))?;
            old.and_then(|row| row.value().first_chunk::<CHECKSUM_LEN>().copied())
        };
        if let Some(before) = before {
            self.totals.take(before);
        }
        self.totals.add(sum);
        Ok(())
    }

    /// Makes the change durable. After an error nobody knows what the disk holds: the process
    /// must end and start again.
    pub(super) fn commit(mut self, mark: Stamp) -> Result<(), MapError> {
        let committing = failed("writing the placement map to disk");
        self.totals.mark = self.totals.mark.max(mark);
        {
            let mut table = self.txn.open_table(TOTALS).map_err(|e| committing(e.into()))?;
            let bytes = self.totals.encode();
            table.insert(TOTALS_KEY, bytes.as_slice()).map_err(|e| committing(e.into()))?;
        }
        self.txn.commit().map_err(|e| committing(e.into()))
    }
}

impl Totals {
    fn add(&mut self, sum: Checksum) {
        self.records += 1;
        self.sum = self.sum.wrapping_add(u128::from_le_bytes(sum));
    }

    const fn take(&mut self, sum: Checksum) {
        self.records = self.records.saturating_sub(1);
        self.sum = self.sum.wrapping_sub(u128::from_le_bytes(sum));
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![TOTALS_VERSION];
        bytes.extend(self.mark.as_u64().to_le_bytes());
        bytes.extend(self.records.to_le_bytes());
        bytes.extend(self.sum.to_le_bytes());
        bytes.extend(&blake3::hash(&bytes).as_bytes()[..CHECKSUM_LEN]);
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, MapError> {
        let bad = |why| damaged("its totals", why);
        if bytes.first() != Some(&TOTALS_VERSION) || bytes.len() != TOTALS_LEN + CHECKSUM_LEN {
            return Err(bad("they are not of a version that this binary knows"));
        }
        let (body, sum) = bytes.split_at(TOTALS_LEN);
        if &blake3::hash(body).as_bytes()[..CHECKSUM_LEN] != sum {
            return Err(bad("the checksum does not match"));
        }
        let number = |at: usize| {
            let mut eight = [0; 8];
            eight.copy_from_slice(&body[at..at + 8]);
            u64::from_le_bytes(eight)
        };
        let sum = u128::from(number(17)) | u128::from(number(25)) << 64;
        Ok(Self { mark: Stamp::from_u64(number(1)), records: number(9), sum })
    }
}

fn checksum(key: &RecordKey, bytes: &[u8]) -> Checksum {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"flocker map row 1");
    hasher.update(&[u8::try_from(key.as_bytes().len() % 251).unwrap_or(0)]);
    hasher.update(key.as_bytes());
    hasher.update(bytes);
    let mut sum = [0; CHECKSUM_LEN];
    sum.copy_from_slice(&hasher.finalize().as_bytes()[..CHECKSUM_LEN]);
    sum
}

fn open_row<'a>(key: &[u8], row: &'a [u8]) -> Result<(RecordKey, &'a [u8]), MapError> {
    let Some(name) = RecordKey::from_bytes(key) else {
        return Err(damaged(name_of(key), "its key is none"));
    };
    match row.split_first_chunk::<CHECKSUM_LEN>() {
        Some((sum, bytes)) if checksum(&name, bytes) == *sum => Ok((name, bytes)),
        Some(_) => Err(damaged(name.to_string(), "the checksum does not match")),
        None => Err(damaged(name.to_string(), "it is cut short")),
    }
}

fn name_of(key: &[u8]) -> String {
    RecordKey::from_bytes(key).map_or_else(
        || format!("key {}", data_encoding::HEXLOWER.encode(key)),
        |key| key.to_string(),
    )
}

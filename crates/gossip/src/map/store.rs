//! The map on disk: one table of records, one of totals, and beside them what is kept apart from
//! the map (see [`Side`]). Each row has a checksum over its key and bytes. A change is on disk,
//! whole, before anyone hears of it. A damaged row must be named, never read as another or as
//! none.

use std::sync::Arc;

use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, Table, TableDefinition, TableError,
    WriteTransaction,
};

use super::MapError;
use super::key::RecordKey;
use super::stamp::Stamp;

mod heal;
mod rows;
mod salvage;

pub(super) use heal::drop_damaged;
pub(super) use rows::Totals;
use rows::{checksum, damaged, name_of, open};
pub(crate) use salvage::{Copied, copy_rows, has_tables, remove_tables};

const RECORDS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("map_records");
const TOTALS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("map_totals");
const TOTALS_KEY: &str = "totals";
/// What the checksum of a record's row begins with.
const RECORD_ROW: &[u8] = b"flocker map row 1";

/// What a node keeps beside its map and tells no peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// Records in quarantine, by their keys.
    Quarantine,
    /// Edits that wait for a volume's master, by their numbers.
    Pending,
    /// Notes of this node to itself, by their names.
    Notes,
}

impl Side {
    const ALL: [Self; 3] = [Self::Quarantine, Self::Pending, Self::Notes];

    const fn table(self) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
        TableDefinition::new(match self {
            Self::Quarantine => "map_quarantine",
            Self::Pending => "map_pending",
            Self::Notes => "map_notes",
        })
    }

    /// What the checksum of its rows begins with.
    const fn row(self) -> &'static [u8] {
        match self {
            Self::Quarantine => b"flocker map quarantine row 1",
            Self::Pending => b"flocker map pending row 1",
            Self::Notes => b"flocker map note row 1",
        }
    }

    fn name_of(self, key: &[u8]) -> String {
        match self {
            Self::Quarantine => format!("{} in quarantine", name_of(key)),
            Self::Pending => format!("waiting edit {}", data_encoding::HEXLOWER.encode(key)),
            Self::Notes => format!("note '{}'", String::from_utf8_lossy(key)),
        }
    }
}

/// The tables, within a database that others may use too.
#[derive(Clone, Debug)]
pub(super) struct MapStore {
    db: Arc<Database>,
}

/// A transaction that is under way. Dropped before it is committed, it leaves nothing.
pub(super) struct Transaction {
    txn: WriteTransaction,
    totals: Totals,
}

/// The tables of a transaction, for as long as it is written to.
pub(super) struct Tables<'t> {
    txn: &'t WriteTransaction,
    records: Table<'t, &'static [u8], &'static [u8]>,
    totals: Totals,
    written: bool,
}

fn failed(what: &'static str) -> impl Fn(redb::Error) -> MapError {
    move |source| MapError::Storage { what, source: Arc::new(source) }
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
            let (key, sum, bytes) = open_record(key.value(), value.value())?;
            found.add(sum);
            each(key, bytes)?;
        }
        if found != totals {
            let what = format!("the whole, {} records of {}", found.records, totals.records);
            return Err(damaged(what, "records are missing or were put back"));
        }
        Ok(totals)
    }

    /// Reads every row of what is kept beside the map.
    pub(super) fn load_side(
        &self,
        side: Side,
        mut each: impl FnMut(&[u8], &[u8]) -> Result<(), MapError>,
    ) -> Result<(), MapError> {
        let opening = failed("reading what is kept beside the placement map");
        let txn = self.db.begin_read().map_err(|e| opening(e.into()))?;
        let table = match txn.open_table(side.table()) {
            Ok(table) => table,
            Err(TableError::TableDoesNotExist(_)) => return Ok(()),
            Err(other) => return Err(opening(other.into())),
        };
        for row in table.iter().map_err(|e| opening(e.into()))? {
            let (key, value) = row.map_err(|e| opening(e.into()))?;
            let key = key.value();
            let (_, bytes) = open(side.row(), key, value.value())
                .map_err(|why| damaged(side.name_of(key), why))?;
            each(key, bytes)?;
        }
        Ok(())
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
        let transaction = self.begin()?;
        let totals = transaction.tables()?.totals();
        transaction.commit(totals, Stamp::ZERO)
    }

    /// One record's bytes.
    pub(super) fn get(&self, key: &RecordKey) -> Result<Option<Vec<u8>>, MapError> {
        let reading = failed("reading a record of the placement map");
        let txn = self.db.begin_read().map_err(|e| reading(e.into()))?;
        let table = txn.open_table(RECORDS).map_err(|e| reading(e.into()))?;
        let Some(row) = table.get(key.as_bytes()).map_err(|e| reading(e.into()))? else {
            return Ok(None);
        };
        open_record(key.as_bytes(), row.value()).map(|(_, _, bytes)| Some(bytes.to_vec()))
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
            let (key, _, bytes) = open_record(key.value(), value.value())?;
            size += key.as_bytes().len() + bytes.len();
            if size > max_bytes && !page.is_empty() {
                break;
            }
            page.push((key, bytes.to_vec()));
        }
        Ok(page)
    }

    /// Begins a change; waits for another that is under way.
    pub(super) fn begin(&self) -> Result<Transaction, MapError> {
        let beginning = failed("beginning a change of the placement map");
        let txn = begin(&self.db).map_err(&beginning)?;
        let totals = {
            let table = txn.open_table(TOTALS).map_err(|e| beginning(e.into()))?;
            match table.get(TOTALS_KEY).map_err(|e| beginning(e.into()))? {
                Some(bytes) => Totals::decode(bytes.value())?,
                None => Totals::default(),
            }
        };
        Ok(Transaction { txn, totals })
    }
}

fn begin(db: &Database) -> Result<WriteTransaction, redb::Error> {
    let mut txn = db.begin_write()?;
    txn.set_durability(Durability::Immediate)?;
    txn.set_two_phase_commit(true);
    Ok(txn)
}

impl Transaction {
    pub(super) fn tables(&self) -> Result<Tables<'_>, MapError> {
        let records = self.txn.open_table(RECORDS);
        let records = records.map_err(|e| failed("opening the placement map")(e.into()))?;
        Ok(Tables { txn: &self.txn, records, totals: self.totals, written: false })
    }

    /// Makes the change durable. After an error nobody knows what the disk holds: the process
    /// must end and start again.
    pub(super) fn commit(self, mut totals: Totals, mark: Stamp) -> Result<(), MapError> {
        let committing = failed("writing the placement map to disk");
        totals.mark = totals.mark.max(mark);
        {
            let mut table = self.txn.open_table(TOTALS).map_err(|e| committing(e.into()))?;
            let bytes = totals.encode();
            table.insert(TOTALS_KEY, bytes.as_slice()).map_err(|e| committing(e.into()))?;
        }
        self.txn.commit().map_err(|e| committing(e.into()))
    }
}

impl Tables<'_> {
    pub(super) const fn totals(&self) -> Totals {
        self.totals
    }

    /// Whether anything was written.
    pub(super) const fn is_written(&self) -> bool {
        self.written
    }

    /// One record's bytes, this change's own writes included.
    pub(super) fn get(&self, key: &RecordKey) -> Result<Option<Vec<u8>>, MapError> {
        let row = self.records.get(key.as_bytes());
        let row = row.map_err(|e| failed("reading a record of the placement map")(e.into()))?;
        let Some(row) = row else { return Ok(None) };
        open_record(key.as_bytes(), row.value()).map(|(_, _, bytes)| Some(bytes.to_vec()))
    }

    /// Writes one record.
    pub(super) fn put(&mut self, key: &RecordKey, bytes: &[u8]) -> Result<(), MapError> {
        let writing = failed("writing a record of the placement map");
        self.written = true;
        let sum = checksum(RECORD_ROW, key.as_bytes(), bytes);
        let row = [sum.as_slice(), bytes].concat();
        let before = {
            let old = self.records.insert(key.as_bytes(), row.as_slice());
            let old = old.map_err(|e| writing(e.into()))?;
            old.and_then(|row| row.value().first_chunk().copied())
        };
        if let Some(before) = before {
            self.totals.take(before);
        }
        self.totals.add(sum);
        Ok(())
    }

    /// One row beside the map.
    pub(super) fn side(&self, side: Side, key: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
        let reading = failed("reading what is kept beside the placement map");
        let table = self.txn.open_table(side.table()).map_err(|e| reading(e.into()))?;
        let Some(row) = table.get(key).map_err(|e| reading(e.into()))? else { return Ok(None) };
        let (_, bytes) =
            open(side.row(), key, row.value()).map_err(|why| damaged(side.name_of(key), why))?;
        Ok(Some(bytes.to_vec()))
    }

    /// Writes one row beside the map.
    pub(super) fn put_side(
        &mut self,
        side: Side,
        key: &[u8],
        bytes: &[u8],
    ) -> Result<(), MapError> {
        let writing = failed("writing beside the placement map");
        self.written = true;
        let row = [checksum(side.row(), key, bytes).as_slice(), bytes].concat();
        let mut table = self.txn.open_table(side.table()).map_err(|e| writing(e.into()))?;
        table.insert(key, row.as_slice()).map_err(|e| writing(e.into()))?;
        Ok(())
    }

    /// Removes one row beside the map.
    pub(super) fn remove_side(&mut self, side: Side, key: &[u8]) -> Result<(), MapError> {
        let writing = failed("writing beside the placement map");
        self.written = true;
        let mut table = self.txn.open_table(side.table()).map_err(|e| writing(e.into()))?;
        table.remove(key).map_err(|e| writing(e.into()))?;
        Ok(())
    }
}

fn open_record<'a>(
    key: &[u8],
    row: &'a [u8],
) -> Result<(RecordKey, rows::Checksum, &'a [u8]), MapError> {
    let Some(name) = RecordKey::from_bytes(key) else {
        return Err(damaged(name_of(key), "its key is none"));
    };
    let (sum, bytes) = open(RECORD_ROW, key, row).map_err(|why| damaged(name.to_string(), why))?;
    Ok((name, sum, bytes))
}

//! Copying the map's rows from one database into another: out of the node's store, where early
//! versions kept them, and out of a damaged file, as far as it can be read. It must never change
//! what it reads from.

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableError};

use super::rows::Totals;
use super::{RECORDS, Side, TOTALS, TOTALS_KEY, begin, failed};
use crate::map::MapError;

type Rows = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// What was copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Copied {
    /// Rows of records.
    pub(crate) records: u64,
    /// How many there were, if the totals could be read.
    pub(crate) expected: Option<u64>,
    /// Whether every table could be read to its end.
    pub(crate) whole: bool,
}

/// Copies every row that can be read, unchecked. What cannot be read is left out.
///
/// # Errors
/// [`MapError`] if the rows cannot be written.
pub(crate) fn copy_rows(from: &Database, to: &Database) -> Result<Copied, MapError> {
    let copying = failed("copying the placement map");
    let txn = begin(to).map_err(&copying)?;
    let mut copied = Copied { whole: true, ..Copied::default() };
    let tables = std::iter::once(RECORDS).chain(Side::ALL.into_iter().map(Side::table));
    for (number, table) in tables.enumerate() {
        let mut target = txn.open_table(table).map_err(|e| copying(e.into()))?;
        let mut rows = 0;
        let whole = each_row(from, table, |key, value| {
            rows += 1;
            target.insert(key, value).map(drop).map_err(|e| copying(e.into()))
        })?;
        copied.whole &= whole;
        if number == 0 {
            copied.records = rows;
        }
    }
    if let Some(bytes) = totals_of(from) {
        copied.expected = Totals::decode(&bytes).ok().map(|totals| totals.records);
        let mut totals = txn.open_table(TOTALS).map_err(|e| copying(e.into()))?;
        totals.insert(TOTALS_KEY, bytes.as_slice()).map_err(|e| copying(e.into()))?;
    }
    txn.commit().map_err(|e| copying(e.into()))?;
    Ok(copied)
}

/// Removes the map's tables from this database.
///
/// # Errors
/// [`MapError`] if the database fails.
pub(crate) fn remove_tables(db: &Database) -> Result<(), MapError> {
    let removing = failed("removing the old placement map");
    let txn = begin(db).map_err(&removing)?;
    for side in Side::ALL {
        txn.delete_table(side.table()).map_err(|e| removing(e.into()))?;
    }
    txn.delete_table(RECORDS).map_err(|e| removing(e.into()))?;
    txn.delete_table(TOTALS).map_err(|e| removing(e.into()))?;
    txn.commit().map_err(|e| removing(e.into()))
}

/// Whether this database has a map.
///
/// # Errors
/// [`MapError`] if the database fails.
pub(crate) fn has_tables(db: &Database) -> Result<bool, MapError> {
    let looking = failed("looking for a placement map");
    let txn = db.begin_read().map_err(|e| looking(e.into()))?;
    match txn.open_table(TOTALS) {
        Ok(_) => Ok(true),
        Err(TableError::TableDoesNotExist(_)) => Ok(false),
        Err(other) => Err(looking(other.into())),
    }
}

fn totals_of(db: &Database) -> Option<Vec<u8>> {
    let table = db.begin_read().ok()?.open_table(TOTALS).ok()?;
    table.get(TOTALS_KEY).ok()?.map(|bytes| bytes.value().to_vec())
}

/// Reads a table from its start until it breaks, then from its end back to there: what lies on
/// either side of one damaged page is found. Gives whether nothing broke.
fn each_row(
    db: &Database,
    table: Rows,
    mut each: impl FnMut(&[u8], &[u8]) -> Result<(), MapError>,
) -> Result<bool, MapError> {
    let Ok(txn) = db.begin_read() else { return Ok(false) };
    let table = match txn.open_table(table) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => return Ok(true),
        Err(_) => return Ok(false),
    };
    let Ok(rows) = table.iter() else { return Ok(false) };
    let (mut last, mut whole) = (Vec::new(), true);
    for row in rows {
        let Ok((key, value)) = row else {
            whole = false;
            break;
        };
        if key.value() <= last.as_slice() {
            // Keys that do not rise are damage.
            whole = false;
            break;
        }
        last = key.value().to_vec();
        each(key.value(), value.value())?;
    }
    let Ok(rows) = table.iter() else { return Ok(false) };
    if whole {
        return Ok(true);
    }
    for row in rows.rev() {
        let Ok((key, value)) = row else { break };
        if key.value() <= last.as_slice() {
            break;
        }
        each(key.value(), value.value())?;
    }
    Ok(false)
}

//! Taking damaged rows out of the map on disk, so that the peers bring the records back. What
//! they said and no peer has is lost: for a person to ask for, never for the agent to do by
//! itself.

use redb::{Database, ReadableTable, WriteTransaction};

use super::rows::Totals;
use super::{RECORDS, Side, TOTALS, TOTALS_KEY, begin, failed, name_of, open, open_record};
use crate::map::MapError;
use crate::map::encoding;
use crate::map::quarantine::ATTENDANCE;

/// Removes damaged rows and names them. Makes up the totals of what is left, and forgets for how
/// long this node has been in touch: what comes back must not be taken for a late-comer's.
pub(in crate::map) fn drop_damaged(db: &Database) -> Result<Vec<String>, MapError> {
    let healing = failed("healing the placement map");
    let txn = begin(db).map_err(&healing)?;
    let mut dropped = Vec::new();
    let mut totals = heal_records(&txn, &mut dropped)?;
    for side in Side::ALL {
        heal_side(&txn, side, &mut dropped)?;
    }
    {
        let notes = txn.open_table(Side::Notes.table());
        let mut notes = notes.map_err(|e| healing(e.into()))?;
        notes.remove(ATTENDANCE.as_bytes()).map_err(|e| healing(e.into()))?;
    }
    {
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

fn heal_records(txn: &WriteTransaction, dropped: &mut Vec<String>) -> Result<Totals, MapError> {
    let healing = failed("healing the placement map");
    let mut totals = Totals::default();
    let mut table = txn.open_table(RECORDS).map_err(|e| healing(e.into()))?;
    let mut bad = Vec::new();
    for row in table.iter().map_err(|e| healing(e.into()))? {
        let (key, value) = row.map_err(|e| healing(e.into()))?;
        match open_record(key.value(), value.value()) {
            Ok((_, sum, bytes)) => {
                totals.add(sum);
                if let Ok(record) = encoding::decode_own(bytes) {
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
    Ok(totals)
}

fn heal_side(
    txn: &WriteTransaction,
    side: Side,
    dropped: &mut Vec<String>,
) -> Result<(), MapError> {
    let healing = failed("healing the placement map");
    let mut table = txn.open_table(side.table()).map_err(|e| healing(e.into()))?;
    let mut bad = Vec::new();
    for row in table.iter().map_err(|e| healing(e.into()))? {
        let (key, value) = row.map_err(|e| healing(e.into()))?;
        if open(side.row(), key.value(), value.value()).is_err() {
            bad.push(key.value().to_vec());
        }
    }
    for key in bad {
        table.remove(key.as_slice()).map_err(|e| healing(e.into()))?;
        dropped.push(side.name_of(&key));
    }
    Ok(())
}

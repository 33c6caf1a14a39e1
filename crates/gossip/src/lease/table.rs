//! Where the lease records lie in the node's store. A record that can't be decoded stops the
//! start; it never becomes an empty one.

use flocker_base::{StoreId, VolumeId};
use redb::{ReadableDatabase, ReadableTable, TableDefinition};

use super::record::{self, Durable, Write};
use crate::store::{StateDb, StoreError};

/// Key: one byte that says which kind of record, then the id. Value: see [`record::encode`].
const LEASES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("leases");

/// A record's key and value.
type Encoded = (Vec<u8>, Vec<u8>);

const VOTER: u8 = b'v';
const SUPPORT: u8 = b's';
const HOLDER: u8 = b'h';
const NODE: u8 = b'n';

/// Reads every record.
///
/// # Errors
/// [`StoreError::Damaged`] names the file and the record.
pub(crate) fn load(db: &StateDb) -> Result<Durable, StoreError> {
    let damaged = |reason: String| StoreError::Damaged { path: db.path().to_owned(), reason };
    let read = || -> Result<Vec<Encoded>, redb::Error> {
        let table = match db.database().begin_read()?.open_table(LEASES) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            Err(e) => return Err(e.into()),
        };
        let mut all = Vec::new();
        for entry in table.iter()? {
            let (key, value) = entry?;
            all.push((key.value().to_vec(), value.value().to_vec()));
        }
        Ok(all)
    };
    let mut durable = Durable::default();
    for (key, value) in read().map_err(|e| damaged(e.to_string()))? {
        let write = decode(&key, &value)
            .map_err(|reason| damaged(format!("lease record {}: {reason}", hex(&key))))?;
        durable.apply(write);
    }
    Ok(durable)
}

fn decode(key: &[u8], value: &[u8]) -> Result<Write, String> {
    let id = || -> Result<[u8; 16], String> {
        key[1..].try_into().map_err(|_wrong| "its key has the wrong length".to_owned())
    };
    let text = |e: record::RecordError| e.to_string();
    Ok(match key.first() {
        Some(&VOTER) => {
            Write::Voter(VolumeId::from_bytes(id()?), record::decode(value).map_err(text)?)
        }
        Some(&SUPPORT) => {
            Write::Support(StoreId::from_bytes(id()?), record::decode(value).map_err(text)?)
        }
        Some(&HOLDER) => {
            Write::Holder(VolumeId::from_bytes(id()?), record::decode(value).map_err(text)?)
        }
        Some(&NODE) => Write::Node(record::decode(value).map_err(text)?),
        _ => return Err("it is of a kind that this binary does not know".to_owned()),
    })
}

fn encode(write: &Write) -> Result<Encoded, record::RecordError> {
    let key = |kind: u8, id: &[u8]| [&[kind], id].concat();
    Ok(match write {
        Write::Voter(volume, of) => (key(VOTER, volume.as_bytes()), record::encode(of)?),
        Write::Support(store, of) => (key(SUPPORT, store.as_bytes()), record::encode(of)?),
        Write::Holder(volume, of) => (key(HOLDER, volume.as_bytes()), record::encode(of)?),
        Write::Node(of) => (key(NODE, &[]), record::encode(of)?),
    })
}

/// Makes all of them durable in one commit.
///
/// # Errors
/// [`StoreError::Fatal`]: the process must abort.
pub(crate) fn commit(db: &StateDb, writes: &[Write]) -> Result<(), StoreError> {
    let fatal = |reason: String| StoreError::Fatal { path: db.path().to_owned(), reason };
    let transaction = db.begin()?;
    {
        let mut table = transaction.open_table(LEASES).map_err(|e| fatal(e.to_string()))?;
        for write in writes {
            let (key, value) = encode(write).map_err(|e| fatal(e.to_string()))?;
            table.insert(key.as_slice(), value.as_slice()).map_err(|e| fatal(e.to_string()))?;
        }
    }
    transaction.commit().map_err(|e| fatal(e.to_string()))
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::record::{NodeRecord, SupportRecord, VoterRecord};
    use crate::model::VoterConfig;
    use flocker_base::WallTime;
    use std::time::Duration;

    fn writes() -> Vec<Write> {
        let volume = VolumeId::from_bytes([3; 16]);
        let store = StoreId::from_bytes([4; 16]);
        let config = VoterConfig::birth([store]);
        vec![
            Write::Voter(volume, VoterRecord::fresh(config.clone())),
            Write::Support(store, SupportRecord { support: 7, start: None }),
            Write::Holder(
                volume,
                record::HolderRecord {
                    epoch: flocker_base::Epoch::new(0, 2),
                    closed: flocker_base::Epoch::new(0, 1),
                    config,
                    successor: Some(store),
                    settled: true,
                },
            ),
            Write::Node(NodeRecord { longest_lease: Duration::from_secs(3), condemned: false }),
        ]
    }

    #[test]
    fn what_was_committed_is_loaded_again() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("state.redb");
        let db = StateDb::open(&path, WallTime::default(), [1; 10]).expect("open");
        assert_eq!(load(&db).expect("empty"), Durable::default());
        commit(&db, &writes()).expect("commit");
        drop(db);
        let db = StateDb::open(&path, WallTime::default(), [1; 10]).expect("open");
        let mut expected = Durable::default();
        writes().into_iter().for_each(|write| expected.apply(write));
        assert_eq!(load(&db).expect("load"), expected);
    }

    #[test]
    fn a_record_that_cannot_be_decoded_stops_the_start_and_is_named() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("state.redb");
        let db = StateDb::open(&path, WallTime::default(), [1; 10]).expect("open");
        let transaction = db.begin().expect("begin");
        {
            let mut table = transaction.open_table(LEASES).expect("table");
            table.insert([NODE].as_slice(), [9, 9].as_slice()).expect("insert");
        }
        transaction.commit().expect("commit");
        let error = load(&db).expect_err("refused").to_string();
        assert!(error.contains("state.redb") && error.contains("lease record 6e"), "{error}");
    }
}

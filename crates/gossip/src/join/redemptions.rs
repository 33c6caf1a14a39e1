//! How many uses are left of the tokens that this node issued for a limited number of nodes. Kept
//! in this node's own database and never merged: a record that travels can't promise 'once' across
//! a partition. A use is spent durably before anything is signed for it, so a crash in between
//! loses a use and never gives one too many.

use std::sync::Arc;

use flocker_base::TokenId;
use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};
use serde::{Deserialize, Serialize};

/// Key: the token's sixteen bytes. Value: a version byte and the entry.
const TABLE: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("token-uses");
const VERSION: u8 = 1;

/// Keys of newcomers remembered of one token. One whose reply was lost and who asks again under the
/// same key is then answered without spending another use.
const REMEMBERED: usize = 16;

/// Why no use could be spent. In each case nobody is admitted.
#[derive(Debug, thiserror::Error)]
pub enum RedeemError {
    /// Nothing is kept of this token here.
    #[error("this node keeps no count of the token's uses")]
    NotKept,
    /// There is no use left.
    #[error("no use of the token is left")]
    UsedUp,
    /// What is kept can't be read.
    #[error(
        "the count of the token's uses can't be read: a newer flocker wrote it, or it is damaged"
    )]
    Unreadable,
    /// The database failed. Whether a use was spent is not known.
    #[error("cannot {action} the count of the token's uses: {source}; check the disk")]
    Database {
        /// What was attempted, as a verb.
        action: &'static str,
        /// What the database said.
        source: Box<redb::Error>,
    },
}

/// The order of the fields is the stored form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    left: u32,
    /// Of the newcomers' keys, the oldest first.
    keys: Vec<[u8; 32]>,
}

/// The counts. A clone is the same.
#[derive(Clone)]
pub struct Redemptions {
    database: Arc<Database>,
}

impl std::fmt::Debug for Redemptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redemptions").finish_non_exhaustive()
    }
}

impl Redemptions {
    /// The counts in this database.
    #[must_use]
    pub const fn new(database: Arc<Database>) -> Self {
        Self { database }
    }

    /// Begins to count a new token. Durable when this returns. One that is counted already keeps
    /// its count.
    ///
    /// # Errors
    /// [`RedeemError::Database`]: the token must not be given out then.
    pub fn issue(&self, token: TokenId, uses: u32) -> Result<(), RedeemError> {
        self.change(token, |present| match present {
            Some(entry) => Ok(Some(entry)),
            None => Ok(Some(Entry { left: uses, keys: Vec::new() })),
        })
        .map(drop)
    }

    /// Spends a use for the newcomer with this key; says how many are left. Durable when this
    /// returns.
    ///
    /// # Errors
    /// Any [`RedeemError`]: the newcomer must be refused then.
    pub fn redeem(&self, token: TokenId, key: [u8; 32]) -> Result<u32, RedeemError> {
        let entry = self.change(token, |present| {
            let mut entry = present.ok_or(RedeemError::NotKept)?;
            if entry.keys.contains(&key) {
                return Ok(Some(entry));
            }
            entry.left = entry.left.checked_sub(1).ok_or(RedeemError::UsedUp)?;
            if entry.keys.len() >= REMEMBERED {
                entry.keys.remove(0);
            }
            entry.keys.push(key);
            Ok(Some(entry))
        })?;
        Ok(entry.map_or(0, |entry| entry.left))
    }

    /// How many uses are left, if the token is counted here.
    ///
    /// # Errors
    /// [`RedeemError::Database`] or [`RedeemError::Unreadable`].
    pub fn left(&self, token: TokenId) -> Result<Option<u32>, RedeemError> {
        let fail = |source| RedeemError::Database { action: "read", source: Box::new(source) };
        let transaction = self.database.begin_read().map_err(|e| fail(e.into()))?;
        let table = match transaction.open_table(TABLE) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(error) => return Err(fail(error.into())),
        };
        let Some(value) = table.get(token.as_bytes()).map_err(|e| fail(e.into()))? else {
            return Ok(None);
        };
        decode(value.value()).map(|entry| Some(entry.left)).ok_or(RedeemError::Unreadable)
    }

    /// Counts a token no more: it then admits nobody here.
    ///
    /// # Errors
    /// [`RedeemError::Database`].
    pub fn forget(&self, token: TokenId) -> Result<(), RedeemError> {
        self.change(token, |_present| Ok(None)).map(drop)
    }

    fn change(
        &self,
        token: TokenId,
        change: impl FnOnce(Option<Entry>) -> Result<Option<Entry>, RedeemError>,
    ) -> Result<Option<Entry>, RedeemError> {
        let fail = |source| RedeemError::Database { action: "write", source: Box::new(source) };
        let transaction = self.begin().map_err(fail)?;
        let after = {
            let mut table = transaction.open_table(TABLE).map_err(|e| fail(e.into()))?;
            let before = {
                let stored = table.get(token.as_bytes()).map_err(|e| fail(e.into()))?;
                stored
                    .map(|value| decode(value.value()).ok_or(RedeemError::Unreadable))
                    .transpose()?
            };
            let after = change(before.clone())?;
            if after == before {
                // Dropped, the transaction changes nothing.
                return Ok(after);
            }
            match &after {
                Some(entry) => {
                    let bytes = postcard::to_extend(entry, vec![VERSION])
                        .map_err(|_in_memory| RedeemError::Unreadable)?;
                    table.insert(token.as_bytes(), bytes.as_slice()).map_err(|e| fail(e.into()))?;
                }
                None => drop(table.remove(token.as_bytes()).map_err(|e| fail(e.into()))?),
            }
            after
        };
        transaction.commit().map_err(|e| fail(e.into()))?;
        Ok(after)
    }

    fn begin(&self) -> Result<WriteTransaction, redb::Error> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        transaction.set_two_phase_commit(true);
        Ok(transaction)
    }
}

fn decode(value: &[u8]) -> Option<Entry> {
    let (version, body) = value.split_first()?;
    if *version != VERSION {
        return None;
    }
    match postcard::take_from_bytes(body) {
        Ok((entry, [])) => Some(entry),
        Ok(_) | Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> TokenId {
        TokenId::from_bytes([3; 16])
    }

    fn opened(path: &std::path::Path) -> Redemptions {
        Redemptions::new(Arc::new(Database::create(path).expect("opens")))
    }

    #[test]
    fn a_use_spent_is_spent_after_a_restart_and_one_key_spends_one() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("state");
        let counts = opened(&path);
        assert!(matches!(counts.redeem(token(), [1; 32]), Err(RedeemError::NotKept)));
        assert_eq!(counts.left(token()).expect("reads"), None);
        counts.issue(token(), 2).expect("kept");
        assert_eq!(counts.redeem(token(), [1; 32]).expect("spent"), 1);
        assert_eq!(counts.redeem(token(), [1; 32]).expect("again, the same newcomer"), 1);
        counts.issue(token(), 9).expect("a count is not renewed");
        // The process ends here, before anything was signed.
        drop(counts);
        let counts = opened(&path);
        assert_eq!(counts.left(token()).expect("reads"), Some(1));
        assert_eq!(counts.redeem(token(), [2; 32]).expect("spent"), 0);
        assert!(matches!(counts.redeem(token(), [3; 32]), Err(RedeemError::UsedUp)));
        assert_eq!(counts.redeem(token(), [2; 32]).expect("still the same newcomer"), 0);
        counts.forget(token()).expect("forgotten");
        assert!(matches!(counts.redeem(token(), [2; 32]), Err(RedeemError::NotKept)));
    }

    #[test]
    fn many_uses_stay_small_and_run_out_exactly() {
        let folder = tempfile::tempdir().expect("folder");
        let counts = opened(&folder.path().join("state"));
        let uses = 20_u8;
        counts.issue(token(), u32::from(uses)).expect("kept");
        for key in 1..=uses {
            let left = counts.redeem(token(), [key; 32]).expect("spent");
            assert_eq!(left, u32::from(uses - key));
        }
        assert!(matches!(counts.redeem(token(), [99; 32]), Err(RedeemError::UsedUp)));
    }

    #[test]
    fn the_stored_form_stands_and_no_other_is_believed() {
        let entry = Entry { left: 300, keys: vec![[7; 32]] };
        let bytes = postcard::to_extend(&entry, vec![VERSION]).expect("encodes");
        assert_eq!(bytes[..4], [1, 0xac, 2, 1]);
        assert_eq!(decode(&bytes), Some(entry));
        for bad in [&[][..], &[2, 1, 0], &[1], &[1, 1, 0, 0], &bytes[..20]] {
            assert_eq!(decode(bad), None, "{bad:?}");
        }
    }
}

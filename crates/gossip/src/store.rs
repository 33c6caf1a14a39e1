//! The node's durable store: one database file that is born with the store's id, counts its
//! starts, and is either whole or refused.
//!
//! Every commit is synced twice (two-phase), so that the newest commit is known without trust in
//! checksums alone: a damaged newest commit is refused and never replaced by the one before it,
//! which would take grants back. A commit or sync that fails leaves the file's state unknown: the
//! caller must abort the process, and never go on with what it has in memory.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flocker_base::{Incarnation, StoreId, WallTime, durable};
use redb::{
    Database, DatabaseError, Durability, ReadableDatabase, TableDefinition, WriteTransaction,
};

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const STORE_ID: &str = "store-id";
const INCARNATION: &str = "incarnation";
const FORMAT: &str = "format";
const FORMAT_VERSION: u8 = 1;
/// Bytes of a file that are kept in memory.
const CACHE_BYTES: usize = 8 * 1024 * 1024;

mod map_file;

pub use map_file::{MAP_FILE, Repaired};

/// Why the store could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it.
    #[error("another agent is using {}: stop it, or give this one another state folder", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file is not what this store last wrote.
    #[error(
        "{} is damaged ({reason}): do not restore an old copy, which would take votes back; move \
         the state folder away and join again as a new node",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The placement map's file is not what was last written there.
    #[error(
        "{} is damaged ({reason}): stop the agent and run 'flocker repair map', which keeps what \
         can be read and lets the peers bring back the rest",
        path.display()
    )]
    MapDamaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of another store.
    #[error(
        "{} belongs to store {found}, and the state beside it to store {own}: put the files that \
         belong together back",
        path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The store that it names.
        found: StoreId,
        /// The store that it lies with.
        own: StoreId,
    },
    /// A newer binary wrote it.
    #[error("{} has format {found}, and this binary reads {FORMAT_VERSION}: upgrade flocker", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The format found.
        found: u8,
    },
    /// The system refused.
    #[error("cannot {action} {}: {reason}", path.display())]
    Io {
        /// What was attempted, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// A write did not reach the disk. The process must abort: what is on the disk is unknown.
    #[error(
        "cannot write {}: {reason}; what is on the disk is unknown, so this process must stop: \
         check the disk and its free space, then start the agent again",
        path.display()
    )]
    Fatal {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
}

/// An open store. It has the file to itself until it and every handle to its database are gone.
#[derive(Clone, Debug)]
pub struct StateDb {
    database: Arc<Database>,
    path: PathBuf,
    store: StoreId,
    incarnation: Incarnation,
    writes: Arc<AtomicU64>,
}

impl StateDb {
    /// Opens the store, or makes it: its id is then made from the time and randomness given. Each
    /// opening raises the incarnation, durably, before this returns.
    ///
    /// # Errors
    /// Any [`StoreError`]. A damaged, truncated or empty file is refused; it never becomes a new
    /// store by itself.
    pub fn open(path: &Path, now: WallTime, random: [u8; 10]) -> Result<Self, StoreError> {
        let io = |action: &'static str, e: std::io::Error| StoreError::Io {
            action,
            path: path.to_owned(),
            reason: e.to_string(),
        };
        match std::fs::metadata(path) {
            Ok(found) if found.len() == 0 => return Err(damaged(path, "it is empty")),
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                create(path, StoreId::new(now, random))?;
            }
            Err(e) => return Err(io("open", e)),
        }
        let database = open_database(path, CACHE_BYTES, true)?;
        let (store, incarnation) = start(&database, path)?;
        let (database, path) = (Arc::new(database), path.to_owned());
        Ok(Self { database, path, store, incarnation, writes: Arc::default() })
    }

    /// The id that the store was born with.
    #[must_use]
    pub const fn store_id(&self) -> StoreId {
        self.store
    }

    /// How often the store has been opened, this time included.
    #[must_use]
    pub const fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// The database. Each part keeps its own tables in it, and begins its writes with
    /// [`StateDb::begin`] or with the same settings.
    #[must_use]
    pub fn database(&self) -> Arc<Database> {
        Arc::clone(&self.database)
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A write transaction that is synced in two phases when committed.
    ///
    /// # Errors
    /// [`StoreError::Fatal`].
    pub fn begin(&self) -> Result<WriteTransaction, StoreError> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        begin(&self.database, &self.path)
    }

    /// How many write transactions were begun since it was opened. Each is synced twice.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    /// A small value that an earlier [`StateDb::set_meta`] kept.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] or [`StoreError::Io`].
    pub fn meta(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let read = || -> Result<Option<Vec<u8>>, redb::Error> {
            let table = self.database.begin_read()?.open_table(META)?;
            Ok(table.get(custom(key).as_str())?.map(|value| value.value().to_vec()))
        };
        read().map_err(|e| read_error(&self.path, &e))
    }

    /// Keeps a small value, durably.
    ///
    /// # Errors
    /// [`StoreError::Fatal`].
    pub fn set_meta(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        let transaction = self.begin()?;
        let write = || -> Result<(), redb::Error> {
            transaction.open_table(META)?.insert(custom(key).as_str(), value)?;
            transaction.commit()?;
            Ok(())
        };
        write().map_err(|e| fatal(&self.path, &e))
    }
}

/// The callers' keys can't meet our own.
fn custom(key: &str) -> String {
    format!("x-{key}")
}

/// Makes the file beside its final name, so that it appears whole or not at all.
fn create(path: &Path, store: StoreId) -> Result<(), StoreError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temporary = path.with_file_name(name);
    let io = |action: &'static str, reason: String| StoreError::Io {
        action,
        path: path.to_owned(),
        reason,
    };
    match std::fs::remove_file(&temporary) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(io("remove the unfinished", e.to_string()));
        }
        _ => {}
    }
    let make = || -> Result<(), redb::Error> {
        let database = Database::builder().set_cache_size(CACHE_BYTES).create(&temporary)?;
        let mut transaction = database.begin_write()?;
        transaction.set_two_phase_commit(true);
        {
            let mut meta = transaction.open_table(META)?;
            meta.insert(FORMAT, [FORMAT_VERSION].as_slice())?;
            meta.insert(STORE_ID, store.as_bytes().as_slice())?;
            meta.insert(INCARNATION, 0_u64.to_be_bytes().as_slice())?;
        }
        transaction.commit()?;
        database.close()?;
        Ok(())
    };
    make().map_err(|e| io("create", e.to_string()))?;
    std::fs::rename(&temporary, path).map_err(|e| io("create", e.to_string()))?;
    durable::sync_parent(path).map_err(|e| io("create", e.to_string()))
}

fn open_database(path: &Path, cache: usize, checked: bool) -> Result<Database, StoreError> {
    let mut builder = Database::builder();
    builder.set_cache_size(cache).set_check_integrity_on_open(checked);
    // The library asserts on some damaged pages when it is built for debugging.
    let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| builder.open(path)));
    match opened {
        Ok(Ok(database)) => Ok(database),
        Ok(Err(DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch)) => {
            Err(StoreError::InUse { path: path.to_owned() })
        }
        Ok(Err(e)) => Err(read_error(path, &e.into())),
        Err(_panic) => Err(damaged(path, "its pages contradict one another")),
    }
}

/// Reads who the store is and raises its incarnation.
fn start(database: &Database, path: &Path) -> Result<(StoreId, Incarnation), StoreError> {
    let read = || -> Result<[Option<Vec<u8>>; 3], redb::Error> {
        let meta = database.begin_read()?.open_table(META)?;
        let get = |key| meta.get(key).map(|found| found.map(|value| value.value().to_vec()));
        Ok([get(FORMAT)?, get(STORE_ID)?, get(INCARNATION)?])
    };
    let [format, store, incarnation] = read().map_err(|e| read_error(path, &e))?;
    match format.as_deref() {
        Some([FORMAT_VERSION]) => {}
        Some([found]) => return Err(StoreError::Format { path: path.to_owned(), found: *found }),
        _ => return Err(damaged(path, "it does not say its format")),
    }
    let store: [u8; 16] = store
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| damaged(path, "it has no store id"))?;
    let incarnation: [u8; 8] = incarnation
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| damaged(path, "it has no incarnation"))?;
    let next = u64::from_be_bytes(incarnation)
        .checked_add(1)
        .ok_or_else(|| damaged(path, "its incarnation has no successor"))?;
    let transaction = begin(database, path)?;
    let write = || -> Result<(), redb::Error> {
        transaction.open_table(META)?.insert(INCARNATION, next.to_be_bytes().as_slice())?;
        transaction.commit()?;
        Ok(())
    };
    write().map_err(|e| fatal(path, &e))?;
    Ok((StoreId::from_bytes(store), Incarnation(next)))
}

fn begin(database: &Database, path: &Path) -> Result<WriteTransaction, StoreError> {
    let start = || -> Result<WriteTransaction, redb::Error> {
        let mut transaction = database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        transaction.set_two_phase_commit(true);
        Ok(transaction)
    };
    start().map_err(|e| fatal(path, &e))
}

fn fatal(path: &Path, error: &redb::Error) -> StoreError {
    StoreError::Fatal { path: path.to_owned(), reason: error.to_string() }
}

fn damaged(path: &Path, reason: impl Into<String>) -> StoreError {
    StoreError::Damaged { path: path.to_owned(), reason: reason.into() }
}

/// What the system refused is told apart from what the file says wrongly.
fn read_error(path: &Path, error: &redb::Error) -> StoreError {
    use std::io::ErrorKind::{InvalidData, UnexpectedEof};
    match error {
        redb::Error::Io(e) if !matches!(e.kind(), InvalidData | UnexpectedEof) => {
            StoreError::Io { action: "read", path: path.to_owned(), reason: error.to_string() }
        }
        _ => damaged(path, error.to_string()),
    }
}

#[cfg(test)]
mod tests;

//! The placement map's own database file. It lies beside the store's and not in it for two
//! reasons: a large merge must not keep a lease's record waiting, and what is damaged here can be
//! brought back by the peers, which the store's own records must never be.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use flocker_base::{StoreId, durable};
use redb::{Database, ReadableDatabase};

use super::{FORMAT, FORMAT_VERSION, META, STORE_ID, StateDb, StoreError, fatal};
use crate::map::store::{Copied, copy_rows, has_tables, remove_tables};
use crate::map::{Map, MapError};

/// The file's name, in the folder of the store's file.
pub const MAP_FILE: &str = "map.redb";
/// Says in the store that the map has a file of its own: it must not read as empty if that is gone.
const HAS_FILE: &str = "map-file";
/// Bytes of the file that are kept in memory: little, since the map is served from memory anyway.
const CACHE_BYTES: usize = 8 * 1024 * 1024;

/// What a repair did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repaired {
    /// The map's file.
    pub file: PathBuf,
    /// Records that are still there.
    pub kept: u64,
    /// What was damaged and is gone, by name.
    pub dropped: Vec<String>,
    /// How many records are gone that could not be named.
    pub unnamed: Option<u64>,
    /// Where the damaged file is now, if the map was copied out of it.
    pub old_file: Option<PathBuf>,
}

impl StateDb {
    /// Opens the map's database, or makes it; takes over a map that an early version kept in the
    /// store's own file.
    ///
    /// # Errors
    /// [`StoreError::MapDamaged`] if it is damaged or gone, [`StoreError::Foreign`] if it is
    /// another node's, and others as of the store's own file.
    pub fn open_map(&self) -> Result<Arc<Database>, StoreError> {
        let path = self.map_path();
        let had_one = self.meta(HAS_FILE)?.is_some();
        match (std::fs::metadata(&path), had_one) {
            (Ok(_), _) => {}
            (Err(e), true) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(map_damaged(&path, "it is gone"));
            }
            (Err(e), false) if e.kind() == std::io::ErrorKind::NotFound => self.make(&path)?,
            (Err(e), _) => {
                let reason = e.to_string();
                return Err(StoreError::Io { action: "open", path, reason });
            }
        }
        let database = open(&path, true)?;
        check_owner(&database, &path, self.store)?;
        if !had_one {
            self.set_meta(HAS_FILE, &[FORMAT_VERSION])?;
        }
        // After the new file is known: from here on it is the map.
        if has_tables(&self.database).map_err(|e| fatal_map(self.path(), &e))? {
            remove_tables(&self.database).map_err(|e| fatal_map(self.path(), &e))?;
        }
        Ok(Arc::new(database))
    }

    /// Takes what is damaged out of the map's file and names it, so that the map opens again and
    /// the peers bring it back. For a person's explicit command: what no peer has is lost, but for
    /// the old file, which is kept.
    ///
    /// # Errors
    /// [`StoreError`] if the disk fails or the file is another node's.
    pub fn repair_map(&self) -> Result<Repaired, StoreError> {
        let path = self.map_path();
        let (copied, old_file) = match open(&path, true) {
            Ok(database) => {
                check_owner(&database, &path, self.store)?;
                (None, None)
            }
            Err(StoreError::MapDamaged { .. }) => {
                let (copied, old) = self.rebuild(&path)?;
                (Some(copied), old)
            }
            Err(other) => return Err(other),
        };
        let database = open(&path, true)?;
        let dropped = Map::drop_damaged(&database).map_err(|e| fatal_map(&path, &e))?;
        drop(database);
        let database = self.open_map()?;
        let map = Map::open(database, self.store, Arc::new(flocker_base::SystemClock));
        let kept = map.map_err(|e| map_damaged(&path, &e.to_string()))?.view().records();
        let named = u64::try_from(dropped.len()).unwrap_or(u64::MAX);
        let unnamed = copied.and_then(|it| match it.expected {
            Some(expected) => Some(expected.saturating_sub(it.records)).filter(|gone| *gone > 0),
            // Nobody knows how many there were.
            None => (!it.whole || named == 0).then_some(u64::MAX),
        });
        Ok(Repaired { file: path, kept, dropped, unnamed, old_file })
    }

    fn map_path(&self) -> PathBuf {
        self.path.with_file_name(MAP_FILE)
    }

    /// Makes the file beside its final name, with the map of an early version, if there is one.
    fn make(&self, path: &Path) -> Result<(), StoreError> {
        let old = has_tables(&self.database).map_err(|e| fatal_map(self.path(), &e))?;
        let copied = self.write_new(path, old.then_some(&self.database))?;
        if !copied.whole {
            return Err(map_damaged(self.path(), "the map in it cannot be read"));
        }
        put_in_place(path)
    }

    /// Puts a new file in the place of a damaged one, with what can be read of that.
    fn rebuild(&self, path: &Path) -> Result<(Copied, Option<PathBuf>), StoreError> {
        let damaged = if path.exists() { open(path, false).ok() } else { None };
        let copied = self.write_new(path, damaged.as_ref())?;
        drop(damaged);
        let old = if path.exists() {
            let old = free_name(path);
            std::fs::rename(path, &old).map_err(|e| io("move away", path, &e))?;
            Some(old)
        } else {
            None
        };
        put_in_place(path)?;
        Ok((copied, old))
    }

    fn write_new(&self, path: &Path, from: Option<&Database>) -> Result<Copied, StoreError> {
        let new = new_name(path);
        match std::fs::remove_file(&new) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(io("remove the unfinished", &new, &e));
            }
            _ => {}
        }
        let make = || -> Result<Database, redb::Error> {
            let database = Database::builder().set_cache_size(CACHE_BYTES).create(&new)?;
            let mut transaction = database.begin_write()?;
            transaction.set_two_phase_commit(true);
            {
                let mut meta = transaction.open_table(META)?;
                meta.insert(FORMAT, [FORMAT_VERSION].as_slice())?;
                meta.insert(STORE_ID, self.store.as_bytes().as_slice())?;
            }
            transaction.commit()?;
            Ok(database)
        };
        let database = make().map_err(|e| fatal(&new, &e))?;
        let copied = match from {
            Some(from) => copy_rows(from, &database).map_err(|e| fatal_map(&new, &e))?,
            None => Copied { whole: true, ..Copied::default() },
        };
        database.close().map_err(|e| fatal(&new, &e.into()))?;
        Ok(copied)
    }
}

fn put_in_place(path: &Path) -> Result<(), StoreError> {
    std::fs::rename(new_name(path), path).map_err(|e| io("create", path, &e))?;
    durable::sync_parent(path).map_err(|e| StoreError::Io {
        action: "create",
        path: path.to_owned(),
        reason: e.to_string(),
    })
}

fn new_name(path: &Path) -> PathBuf {
    path.with_file_name(format!("{MAP_FILE}.new"))
}

/// A name for the damaged file that no earlier one has.
fn free_name(path: &Path) -> PathBuf {
    let numbered = (1..u32::MAX).map(|n| path.with_file_name(format!("{MAP_FILE}.damaged-{n}")));
    numbered.into_iter().find(|name| !name.exists()).unwrap_or_else(|| new_name(path))
}

/// Opens the file; checked, it is what was last written there, to the last page.
fn open(path: &Path, checked: bool) -> Result<Database, StoreError> {
    match std::fs::metadata(path) {
        Ok(found) if found.len() == 0 => return Err(map_damaged(path, "it is empty")),
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(map_damaged(path, "it is gone"));
        }
        Err(e) => return Err(io("open", path, &e)),
    }
    match super::open_database(path, CACHE_BYTES, checked) {
        Err(StoreError::Damaged { path, reason }) => Err(StoreError::MapDamaged { path, reason }),
        other => other,
    }
}

fn check_owner(database: &Database, path: &Path, own: StoreId) -> Result<(), StoreError> {
    let read = || -> Result<[Option<Vec<u8>>; 2], redb::Error> {
        let meta = database.begin_read()?.open_table(META)?;
        let get = |key| meta.get(key).map(|found| found.map(|value| value.value().to_vec()));
        Ok([get(FORMAT)?, get(STORE_ID)?])
    };
    let [format, store] = read().map_err(|e| map_damaged(path, &e.to_string()))?;
    match format.as_deref() {
        Some([FORMAT_VERSION]) => {}
        Some([found]) => return Err(StoreError::Format { path: path.to_owned(), found: *found }),
        _ => return Err(map_damaged(path, "it does not say its format")),
    }
    let store: [u8; 16] = store
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| map_damaged(path, "it has no store id"))?;
    let found = StoreId::from_bytes(store);
    if found == own {
        Ok(())
    } else {
        Err(StoreError::Foreign { path: path.to_owned(), found, own })
    }
}

fn map_damaged(path: &Path, reason: &str) -> StoreError {
    StoreError::MapDamaged { path: path.to_owned(), reason: reason.to_owned() }
}

fn fatal_map(path: &Path, error: &MapError) -> StoreError {
    StoreError::Fatal { path: path.to_owned(), reason: error.to_string() }
}

fn io(action: &'static str, path: &Path, error: &std::io::Error) -> StoreError {
    StoreError::Io { action, path: path.to_owned(), reason: error.to_string() }
}

#[cfg(test)]
mod tests;

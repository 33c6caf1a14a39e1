//! Every address that this node ever knew of its peers, kept on disk, so that a node that restarts
//! finds the mesh by itself. An address is a hint: who answers there is proven by its certificate.
//! This book never says who is alive.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};

use flocker_base::StoreId;
use flocker_quic::AddressBook;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

use crate::join::KnownNode;

mod batch;

#[cfg(test)]
mod tests;

/// Key: the store's sixteen bytes. Value: a version byte and the entry.
const TABLE: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("addresses");
const VERSION: u8 = 1;

/// The most addresses of one kind kept for one store; the one longest unheard of goes first.
pub const MAX_ADDRESSES: usize = 8;

/// The most stores kept. A mesh has fewer; what is beyond is refused, not exchanged for others.
pub const MAX_STORES: usize = 4096;

/// Why the address book could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// The database failed. After a failed commit nothing in it can be relied on: the caller must
    /// end the process.
    #[error(
        "cannot {action} the address book in the state database: {source}; check the disk, then start flocker again"
    )]
    Database {
        /// What was attempted, as a verb.
        action: &'static str,
        /// What the database said.
        source: redb::Error,
    },
    /// An entry is not of a form that this binary reads.
    #[error(
        "the address book's entry of store {0} can't be read: it is damaged, or a newer flocker wrote it; upgrade flocker, or restore the state folder from a backup"
    )]
    Entry(StoreId),
    /// The book is full.
    #[error(
        "the address book holds {MAX_STORES} stores and takes no more: this is the most that one cluster may have"
    )]
    Full,
}

/// What is known of one store. The order of the fields is the stored form.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    /// Heard of last comes first.
    control: Vec<SocketAddr>,
    data: Vec<SocketAddr>,
}

/// The address book: durable in the state database, served from memory. A clone is the same book.
#[derive(Clone)]
pub struct AddressBookStore {
    database: Arc<Database>,
    entries: Arc<RwLock<BTreeMap<StoreId, Entry>>>,
}

impl std::fmt::Debug for AddressBookStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AddressBookStore").finish_non_exhaustive()
    }
}

impl AddressBookStore {
    /// Reads the book from this database, an empty one if there is none. Blocks on the disk.
    ///
    /// # Errors
    /// [`AddressError::Database`], or [`AddressError::Entry`] for an entry that can't be read.
    pub fn open(database: Arc<Database>) -> Result<Self, AddressError> {
        let fail = |source| AddressError::Database { action: "read", source };
        let mut entries = BTreeMap::new();
        let transaction = database.begin_read().map_err(|e| fail(e.into()))?;
        match transaction.open_table(TABLE) {
            Ok(table) => {
                for row in table.iter().map_err(|e| fail(e.into()))? {
                    let (key, value) = row.map_err(|e| fail(e.into()))?;
                    let store = StoreId::from_bytes(*key.value());
                    let entry = decode(value.value()).ok_or(AddressError::Entry(store))?;
                    entries.insert(store, entry);
                }
            }
            Err(redb::TableError::TableDoesNotExist(_)) => {}
            Err(error) => return Err(fail(error.into())),
        }
        drop(transaction);
        Ok(Self { database, entries: Arc::new(RwLock::new(entries)) })
    }

    /// Notes that this store was heard of at these addresses, the best first. Returns whether
    /// anything changed; only then is the disk written, and then it blocks until that is durable.
    ///
    /// # Errors
    /// [`AddressError::Full`], or [`AddressError::Database`], after which the process must end.
    pub fn learn(
        &self,
        store: StoreId,
        control: &[SocketAddr],
        data: &[SocketAddr],
    ) -> Result<bool, AddressError> {
        let (before, count) = {
            let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
            (entries.get(&store).cloned(), entries.len())
        };
        if before.is_none() && count >= MAX_STORES {
            return Err(AddressError::Full);
        }
        let before = before.unwrap_or_default();
        let after =
            Entry { control: merged(&before.control, control), data: merged(&before.data, data) };
        if after == before {
            return Ok(false);
        }
        self.write(store, Some(&after))?;
        self.entries.write().unwrap_or_else(PoisonError::into_inner).insert(store, after);
        Ok(true)
    }

    /// [`Self::learn`] of each of these nodes.
    ///
    /// # Errors
    /// As [`Self::learn`].
    pub fn learn_all(&self, nodes: &[KnownNode]) -> Result<(), AddressError> {
        nodes.iter().try_for_each(|n| self.learn(n.store, &n.control, &n.data).map(|_| ()))
    }

    /// Forgets a store: for a node that was removed from the cluster. Blocks on the disk.
    ///
    /// # Errors
    /// [`AddressError::Database`], after which the process must end.
    pub fn forget(&self, store: StoreId) -> Result<(), AddressError> {
        self.write(store, None)?;
        self.entries.write().unwrap_or_else(PoisonError::into_inner).remove(&store);
        Ok(())
    }

    /// Every store in the book.
    #[must_use]
    pub fn stores(&self) -> Vec<StoreId> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }

    /// Every store with its addresses: what a newcomer is told.
    #[must_use]
    pub fn known(&self) -> Vec<KnownNode> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let known = |(store, entry): (&StoreId, &Entry)| KnownNode {
            store: *store,
            control: entry.control.clone(),
            data: entry.data.clone(),
        };
        entries.iter().map(known).collect()
    }

    /// The book of control addresses.
    #[must_use]
    pub fn control(&self) -> Arc<dyn AddressBook> {
        Arc::new(View { book: self.clone(), which: |entry| &entry.control })
    }

    /// The book of data addresses.
    #[must_use]
    pub fn data(&self) -> Arc<dyn AddressBook> {
        Arc::new(View { book: self.clone(), which: |entry| &entry.data })
    }

    fn write(&self, store: StoreId, entry: Option<&Entry>) -> Result<(), AddressError> {
        let fail = |source| AddressError::Database { action: "write", source };
        let mut transaction = self.database.begin_write().map_err(|e| fail(e.into()))?;
        transaction.set_durability(Durability::Immediate).map_err(|e| fail(e.into()))?;
        transaction.set_two_phase_commit(true);
        {
            let mut table = transaction.open_table(TABLE).map_err(|e| fail(e.into()))?;
            let key = store.as_bytes();
            match entry {
                Some(entry) => {
                    let value = encode(entry).ok_or(AddressError::Entry(store))?;
                    table.insert(key, value.as_slice()).map_err(|e| fail(e.into()))?;
                }
                None => {
                    table.remove(key).map_err(|e| fail(e.into()))?;
                }
            }
        }
        transaction.commit().map_err(|e| fail(e.into()))
    }
}

/// One kind of address in the book.
struct View {
    book: AddressBookStore,
    which: fn(&Entry) -> &Vec<SocketAddr>,
}

impl AddressBook for View {
    fn addresses(&self, store: StoreId) -> Vec<SocketAddr> {
        let entries = self.book.entries.read().unwrap_or_else(PoisonError::into_inner);
        entries.get(&store).map(|entry| (self.which)(entry).clone()).unwrap_or_default()
    }
}

/// The new addresses, then the old ones that are not among them, as many as are kept. Addresses
/// that lead nowhere are left out.
fn merged(old: &[SocketAddr], new: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut all: Vec<SocketAddr> = Vec::with_capacity(MAX_ADDRESSES);
    for address in new.iter().chain(old) {
        let leads_somewhere =
            address.port() != 0 && !address.ip().is_unspecified() && !address.ip().is_multicast();
        if all.len() < MAX_ADDRESSES && leads_somewhere && !all.contains(address) {
            all.push(*address);
        }
    }
    all
}

fn encode(entry: &Entry) -> Option<Vec<u8>> {
    postcard::to_extend(entry, vec![VERSION]).ok()
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

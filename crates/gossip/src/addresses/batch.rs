//! Many addresses learnt at once: one commit for all, since a mesh of thousands tells of as many
//! nodes in a moment. It follows the same rules as learning one.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use flocker_base::StoreId;
use redb::Durability;

use super::{AddressBookStore, AddressError, Entry, MAX_STORES, TABLE, encode, merged};
use crate::join::KnownNode;

impl AddressBookStore {
    /// [`Self::learn`] of each of these nodes, in one commit. When the book gets full, those that
    /// fit are noted all the same.
    ///
    /// # Errors
    /// As [`Self::learn`].
    pub fn learn_batch(&self, nodes: &[KnownNode]) -> Result<(), AddressError> {
        let mut changed: BTreeMap<StoreId, Entry> = BTreeMap::new();
        let mut full = false;
        {
            let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
            let mut count = entries.len();
            for node in nodes {
                let before = changed.get(&node.store).or_else(|| entries.get(&node.store));
                if before.is_none() && count >= MAX_STORES {
                    full = true;
                    continue;
                }
                count += usize::from(before.is_none());
                let before = before.cloned().unwrap_or_default();
                let control = merged(&before.control, &node.control);
                let data = merged(&before.data, &node.data);
                let after = Entry { control, data };
                if after != before {
                    changed.insert(node.store, after);
                }
            }
        }
        if !changed.is_empty() {
            self.write_batch(&changed)?;
            self.entries.write().unwrap_or_else(PoisonError::into_inner).extend(changed);
        }
        if full { Err(AddressError::Full) } else { Ok(()) }
    }

    fn write_batch(&self, changed: &BTreeMap<StoreId, Entry>) -> Result<(), AddressError> {
        let fail = |source| AddressError::Database { action: "write", source };
        let mut transaction = self.database.begin_write().map_err(|e| fail(e.into()))?;
        transaction.set_durability(Durability::Immediate).map_err(|e| fail(e.into()))?;
        transaction.set_two_phase_commit(true);
        {
            let mut table = transaction.open_table(TABLE).map_err(|e| fail(e.into()))?;
            for (store, entry) in changed {
                let value = encode(entry).ok_or(AddressError::Entry(*store))?;
                table.insert(store.as_bytes(), value.as_slice()).map_err(|e| fail(e.into()))?;
            }
        }
        transaction.commit().map_err(|e| fail(e.into()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use redb::Database;
    use redb::backends::InMemoryBackend;

    use super::*;

    #[test]
    fn a_batch_is_as_many_lessons_and_is_durable() {
        let database = Database::builder().create_with_backend(InMemoryBackend::new());
        let database = Arc::new(database.expect("opens"));
        let book = AddressBookStore::open(Arc::clone(&database)).expect("opens");
        let at = |n: u16| std::net::SocketAddr::from(([10, 0, 0, 1], n));
        let node = |n: u16, port: u16| {
            let mut bytes = [0; 16];
            bytes[..2].copy_from_slice(&n.to_le_bytes());
            let store = StoreId::from_bytes(bytes);
            KnownNode { store, control: vec![at(port)], data: vec![at(port + 1)] }
        };
        book.learn_batch(&[node(1, 10), node(2, 20), node(1, 11)]).expect("learnt");
        assert_eq!(book.control().addresses(node(1, 0).store), [at(11), at(10)]);
        let again = AddressBookStore::open(Arc::clone(&database)).expect("opens");
        assert_eq!(again.data().addresses(node(2, 0).store), [at(21)]);
        let most = u16::try_from(MAX_STORES).expect("small");
        let many: Vec<_> = (0..most + 10).map(|n| node(n, 10)).collect();
        assert!(matches!(book.learn_batch(&many), Err(AddressError::Full)));
        assert_eq!(book.stores().len(), MAX_STORES, "those that fit");
    }
}

//! The address book: what it keeps over a restart, its bounds, its stored form.

use proptest::prelude::*;
use redb::backends::InMemoryBackend;

use super::*;

fn book() -> AddressBookStore {
    let database = Database::builder().create_with_backend(InMemoryBackend::new()).expect("opens");
    AddressBookStore::open(Arc::new(database)).expect("opens")
}

fn store(byte: u8) -> StoreId {
    StoreId::from_bytes([byte; 16])
}

fn at(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], 4523))
}

#[test]
fn what_was_learnt_outlives_a_restart() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("db");
    {
        let book = AddressBookStore::open(Arc::new(Database::create(&path).expect("creates")));
        let book = book.expect("opens");
        assert!(book.learn(store(1), &[at(1)], &[at(2)]).expect("learnt"));
        assert!(book.learn(store(1), &[at(3)], &[]).expect("learnt"));
        assert!(!book.learn(store(1), &[at(3)], &[at(2)]).expect("nothing new"));
        assert!(book.learn(store(2), &[at(9)], &[at(9)]).expect("learnt"));
        book.forget(store(2)).expect("forgotten");
    }
    let book = AddressBookStore::open(Arc::new(Database::open(&path).expect("opens")));
    let book = book.expect("opens");
    assert_eq!(book.control().addresses(store(1)), [at(3), at(1)], "heard of last comes first");
    assert_eq!(book.data().addresses(store(1)), [at(2)]);
    assert_eq!(book.stores(), [store(1)]);
    assert!(book.control().addresses(store(2)).is_empty());
}

#[test]
fn addresses_that_lead_nowhere_are_not_kept() {
    let book = book();
    let nowhere: Vec<SocketAddr> =
        ["0.0.0.0:1", "[::]:1", "10.0.0.1:0", "224.0.0.1:5"].map(|a| a.parse().expect("a")).into();
    assert!(!book.learn(store(1), &nowhere, &nowhere).expect("nothing"));
    assert!(book.stores().is_empty());
}

#[test]
fn a_full_book_refuses_a_store_and_keeps_the_others() {
    let book = book();
    {
        let mut entries = book.entries.write().expect("lock");
        for n in 0..MAX_STORES {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&n.to_be_bytes());
            entries.insert(StoreId::from_bytes(id), Entry::default());
        }
    }
    assert!(matches!(book.learn(store(255), &[at(1)], &[]), Err(AddressError::Full)));
    let known = StoreId::from_bytes([0; 16]);
    assert!(book.learn(known, &[at(1)], &[]).expect("a store that is known is still learnt of"));
}

#[test]
fn the_stored_form_is_fixed_and_others_are_refused_by_name() {
    let entry = Entry { control: vec![at(1)], data: vec!["[::1]:1".parse().expect("address")] };
    let mut golden = vec![1, 1, 0, 10, 0, 0, 1, 0xab, 0x23, 1, 1];
    golden.extend([0; 15]);
    golden.extend([1, 1]);
    assert_eq!(encode(&entry), Some(golden.clone()));
    assert_eq!(decode(&golden), Some(entry));
    let book = book();
    book.learn(store(7), &[at(1)], &[]).expect("learnt");
    let write = book.database.begin_write().expect("begins");
    write
        .open_table(TABLE)
        .expect("opens")
        .insert(store(7).as_bytes(), [9, 9].as_slice())
        .expect("inserts");
    write.commit().expect("commits");
    let error = AddressBookStore::open(Arc::clone(&book.database)).expect_err("refused");
    assert!(error.to_string().contains(&store(7).to_string()), "{error}");
}

proptest! {
    #[test]
    fn any_sequence_keeps_few_distinct_addresses_and_the_newest_first(
        heard in proptest::collection::vec(proptest::collection::vec(0_u8..30, 0..12), 1..10)
    ) {
        let mut kept = Vec::new();
        for some in heard {
            let some: Vec<SocketAddr> = some.into_iter().map(at).collect();
            kept = merged(&kept, &some);
            prop_assert!(kept.len() <= MAX_ADDRESSES);
            prop_assert_eq!(kept.first(), some.first().or(kept.first()));
            let distinct: std::collections::BTreeSet<_> = kept.iter().collect();
            prop_assert_eq!(distinct.len(), kept.len());
        }
    }

    #[test]
    fn hostile_entries_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut bytes = bytes;
        bytes.insert(0, VERSION);
        let _ = decode(&bytes);
    }
}

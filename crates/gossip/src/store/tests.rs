//! The store keeps what it was given, has its file to itself, and refuses a damaged one.

use super::*;

fn open(path: &Path) -> Result<StateDb, StoreError> {
    StateDb::open(path, WallTime::from_millis(1_000), [7; 10])
}

#[test]
fn reopening_keeps_everything_and_raises_the_incarnation() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("state.redb");
    let first = open(&path).expect("born");
    assert_eq!(first.incarnation(), Incarnation(1));
    first.set_meta("name", b"alpha").expect("set");
    let id = first.store_id();
    drop(first);
    let again = StateDb::open(&path, WallTime::from_millis(9_000), [8; 10]).expect("open");
    assert_eq!(again.store_id(), id, "the id is given at birth alone");
    assert_eq!(again.incarnation(), Incarnation(2));
    assert_eq!(again.meta("name").expect("get").as_deref(), Some(b"alpha".as_slice()));
    assert_eq!(again.meta("store-id").expect("get"), None, "callers' keys are their own");
    assert_eq!(std::fs::read_dir(folder.path()).expect("list").count(), 1);
}

#[test]
fn a_second_opening_is_refused_while_the_first_lasts() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("state.redb");
    let first = open(&path).expect("born");
    let error = open(&path).expect_err("refused");
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    assert!(error.to_string().contains("another agent is using"), "{error}");
    let handle = first.database();
    drop(first);
    assert!(open(&path).is_err(), "a handle to its database keeps it open");
    drop(handle);
    assert_eq!(open(&path).expect("free again").incarnation(), Incarnation(2));
}

#[test]
fn an_unfinished_birth_is_begun_anew() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("state.redb");
    durable::write_plain(&folder.path().join("state.redb.new"), b"half", 0o600).expect("write");
    assert_eq!(open(&path).expect("born").incarnation(), Incarnation(1));
}

#[test]
fn an_empty_a_truncated_and_a_foreign_file_are_refused_by_name() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("state.redb");
    drop(open(&path).expect("born"));
    let good = std::fs::read(&path).expect("read");
    let mut bad = vec![Vec::new(), b"not a database at all".to_vec()];
    for length in [1, 9, 100, 512, 4_096, good.len() / 2, good.len() - 4_096, good.len() - 1] {
        bad.push(good[..length].to_vec());
    }
    for content in bad {
        durable::write_plain(&path, &content, 0o600).expect("write");
        let error = open(&path).expect_err("refused");
        assert!(matches!(error, StoreError::Damaged { .. }), "{} bytes: {error}", content.len());
        assert!(error.to_string().contains("state.redb"), "{error}");
        assert_eq!(std::fs::read(&path).expect("read").len(), content.len(), "left as it was");
    }
}

#[test]
fn a_flipped_byte_is_refused_or_without_effect() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("state.redb");
    let database = open(&path).expect("born");
    for number in 0..40_u8 {
        database.set_meta(&format!("key-{number}"), &[number; 60]).expect("set");
    }
    let id = database.store_id();
    drop(database);
    let good = std::fs::read(&path).expect("read");
    let (mut refused, mut harmless) = (0, 0);
    let every = |range: std::ops::Range<usize>, step| range.step_by(step);
    for at in every(0..512, 7).chain(every(512..good.len(), 997)) {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        durable::write_plain(&path, &bad, 0o600).expect("write");
        match open(&path) {
            Err(error) => {
                assert!(error.to_string().contains("state.redb"), "{error}");
                refused += 1;
            }
            Ok(opened) => {
                assert_eq!((opened.store_id(), opened.incarnation()), (id, Incarnation(2)), "{at}");
                for number in 0..40_u8 {
                    let value = opened.meta(&format!("key-{number}")).expect("get");
                    assert_eq!(value.as_deref(), Some([number; 60].as_slice()), "byte {at}");
                }
                harmless += 1;
            }
        }
    }
    assert!(refused > 10, "{refused} refused, {harmless} harmless");
}

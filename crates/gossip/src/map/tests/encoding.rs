//! The bytes of records: golden, canonical, and what is refused.

use proptest::prelude::*;

use super::*;
use crate::map::encoding::{DecodeError, decode, encode};
use crate::map::record::{Intent, IntentState, Placed, Tombstone};
use crate::map::register::Register;
use crate::map::stamp::Stamp;

fn golden(what: &str, record: &Record, expected: &str) {
    let bytes = encode(record).expect("encodes");
    assert_eq!(data_encoding::HEXLOWER.encode(&bytes), expected, "{what} changed its bytes");
    assert_eq!(decode(&bytes).as_ref(), Ok(record), "{what} no longer reads its bytes");
}

fn written(actor: u8, stamp: u64, value: &[u8]) -> Register {
    let mut register = Register::default();
    register.write(store_id(actor), Stamp::from_u64(stamp), value.to_vec());
    register
}

fn live(fields: &[(u16, Register)]) -> Record {
    let state = IntentState::Live(fields.iter().cloned().collect());
    Record::Intent(Intent { life: 0, state })
}

#[test]
fn yesterdays_bytes_are_todays() {
    let mut conflict = written(1, 5, b"a");
    conflict.merge(&written(2, 7, b"b"));
    golden(
        "a live intent with a conflict and an unknown field",
        &live(&[(1, conflict), (900, written(1, 300, b"new"))]),
        GOLDEN_LIVE,
    );
    let label = "pg".to_owned();
    let grave = Tombstone { stamp: Stamp::from_u64(9), actor: store_id(3), label };
    let deleted = Intent { life: 1, state: IntentState::Deleted(grave) };
    golden("a deleted intent", &Record::Intent(deleted), GOLDEN_DELETED);
    let said = typed::placed(&placement(1, Epoch::new(1, 2), 3, 4));
    golden("a placement", &Record::Placed(said), GOLDEN_PLACED);
}

const GOLDEN_LIVE: &str = "0100000201020110020202020202020202020202020202020700016201100101010101010101010101010101010105000161840701011001010101010101010101010101010101ac0200036e6577";
const GOLDEN_DELETED: &str = "010101091003030303030303030303030303030303027067";
const GOLDEN_PLACED: &str = "01020102031004040404040404040404040404040404040138000000031001010101010101010101010101010101100202020202020202020202020202020210030303030303030303030303030303030002120110040404040404040404040404040404040303010203040100";

#[test]
fn golden_fields_of_each_kind() {
    use crate::map::typed::Typed;
    fn hash<T: Typed>(spec: &T) -> String {
        let mut hasher = blake3::Hasher::new();
        for (id, bytes) in spec.fields() {
            hasher.update(&id.to_le_bytes());
            hasher.update(&bytes);
        }
        hasher.finalize().to_hex()[..16].to_owned()
    }
    let hashes = [
        hash(&volume(1, "pg")),
        hash(&service(1, "web")),
        hash(&route("example.org", 1)),
        hash(&token(1)),
        hash(&node(1, "n1")),
    ];
    assert_eq!(hashes, GOLDEN_FIELDS, "stored fields changed their bytes");
}

const GOLDEN_FIELDS: [&str; 5] = [
    "cf9ce62b5337d49d",
    "aba9e42d2c377d9b",
    "ecdae11b9587743f",
    "b5ab721265b177fc",
    "1a417e0be7c45040",
];

#[test]
fn a_volume_of_before_there_were_regions_to_stay_in_may_go_to_any() {
    use crate::map::typed::Typed as _;
    use crate::model::{Failover, VolumeSpec};
    for failover in [Failover::Auto, Failover::InRegion, Failover::Manual] {
        let mut spec = volume(1, "pg");
        spec.policy.failover = failover;
        let mut fields = spec.fields();
        assert_eq!(VolumeSpec::read(spec.id, &fields).expect("reads"), spec);
        fields.remove(&8);
        let read = VolumeSpec::read(spec.id, &fields).expect("reads").policy.failover;
        assert_eq!(read == Failover::Manual, failover == Failover::Manual);
        assert_ne!(read, Failover::InRegion);
    }
    // As versions before wrote them.
    for (written, meant) in [([0], Failover::Auto), ([1], Failover::Manual)] {
        let mut fields = volume(1, "pg").fields();
        fields.insert(7, written.to_vec());
        fields.remove(&8);
        let read = VolumeSpec::read(volume_id(1), &fields).expect("reads");
        assert_eq!(read.policy.failover, meant);
        fields.insert(8, vec![0]);
        assert_eq!(VolumeSpec::read(volume_id(1), &fields).expect("reads"), read);
    }
}

#[test]
fn the_order_of_merges_leaves_no_trace_in_the_bytes() {
    let (a, b, c) = (written(1, 5, b"a"), written(2, 7, b"b"), written(3, 6, b"c"));
    let mut one = a.clone();
    one.merge(&b);
    one.merge(&c);
    let mut other = c;
    other.merge(&b);
    other.merge(&a);
    assert_eq!(one.siblings().len(), 3);
    assert_eq!(encode(&live(&[(1, one)])), encode(&live(&[(1, other)])));
}

#[test]
fn bytes_that_no_node_writes_are_refused() {
    let good = encode(&live(&[(1, written(1, 5, b"a"))])).expect("encodes");
    assert!(decode(&good).is_ok());
    let mut newer = good.clone();
    newer[0] = 2;
    assert_eq!(decode(&newer), Err(DecodeError::Newer(2)));
    assert!(matches!(decode(&[]), Err(DecodeError::Malformed(_))));
    assert!(matches!(decode(&[0, 1]), Err(DecodeError::Malformed(_))));
    let longer = [good.as_slice(), b"\0"].concat();
    assert!(matches!(decode(&longer), Err(DecodeError::Malformed(_))), "trailing bytes");
    for cut in 0..good.len() {
        assert!(decode(&good[..cut]).is_err(), "cut at {cut}");
    }
    let large = vec![1; crate::map::encoding::MAX_RECORD + 1];
    assert!(matches!(decode(&large), Err(DecodeError::TooLarge(_))));
}

#[test]
fn siblings_of_which_one_replaces_another_are_refused() {
    // Built by hand: a value of store 1 beside one that has seen it, and a clock from nothing.
    let id = |n: u8| [&[16], [n; 16].as_slice()].concat();
    let sibling = |dots: &[(u8, u8)], writer: u8, value: u8| {
        let count = u8::try_from(dots.len()).expect("few");
        let clock: Vec<u8> = dots.iter().flat_map(|(n, at)| [id(*n), vec![*at]].concat()).collect();
        [vec![count], clock, vec![writer, 1, value]].concat()
    };
    let field = |siblings: &[Vec<u8>]| {
        let count = u8::try_from(siblings.len()).expect("few");
        [vec![1, 0, 0, 1, 1, count], siblings.concat()].concat()
    };
    let fresh = sibling(&[(1, 5), (2, 7)], 1, b'b');
    let stale = sibling(&[(1, 5)], 0, b'a');
    assert!(
        decode(&field(std::slice::from_ref(&fresh))).is_ok(),
        "the hand-made form is the real one"
    );
    assert!(decode(&field(&[fresh, stale])).is_err(), "a replaced value");
    assert!(decode(&field(&[sibling(&[(1, 0)], 0, b'a')])).is_err(), "a clock from nothing");
    assert!(decode(&field(&[sibling(&[(2, 7), (1, 5)], 1, b'a')])).is_err(), "a clock unsorted");
    assert!(decode(&field(&[sibling(&[(1, 5)], 1, b'a')])).is_err(), "no such writer");
    assert!(decode(&field(&[])).is_err(), "no value");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_096))]

    #[test]
    fn hostile_bytes_never_panic_and_decode_to_themselves_or_not_at_all(
        mut bytes in prop::collection::vec(any::<u8>(), 0..200),
        flips in prop::collection::vec((any::<usize>(), any::<u8>()), 0..4),
        from_good in any::<bool>(),
    ) {
        if from_good {
            let said = typed::placed(&placement(1, Epoch::new(1, 2), 3, 4));
            let mut register = written(1, 5, &bytes);
            register.merge(&written(2, 6, b"x"));
            let record = if bytes.len() % 2 == 0 { live(&[(4, register)]) } else { Record::Placed(said) };
            bytes = encode(&record).expect("encodes");
        }
        for (at, byte) in flips {
            if !bytes.is_empty() {
                let at = at % bytes.len();
                bytes[at] = byte;
            }
        }
        if let Ok(record) = decode(&bytes) {
            prop_assert_eq!(encode(&record).expect("encodes"), bytes);
        }
    }

    #[test]
    fn equal_values_are_equal_bytes(a in 0..3_u64, b in 0..3_u64, x in 0..3_u8, y in 0..3_u8) {
        let one = live(&[(1, written(1, a + 1, &[x]))]);
        let other = live(&[(1, written(1, b + 1, &[y]))]);
        prop_assert_eq!(one == other, encode(&one) == encode(&other));
    }

    #[test]
    fn placed_content_of_any_size_has_one_form(content in prop::collection::btree_map(
        any::<u16>(), prop::collection::vec(any::<u8>(), 0..20), 0..6)) {
        let record = Record::Placed(Placed {
            epoch: Epoch::new(0, 1), sequence: 1, holder: store_id(1), content,
        });
        let bytes = encode(&record).expect("encodes");
        prop_assert_eq!(decode(&bytes).expect("decodes"), record);
    }
}

//! Yesterday's bytes, as a disk has them: today's binary opens them, reads every kind, and keeps
//! what it does not know through edits, merges and the disk.

use data_encoding::HEXLOWER;
use redb::TableDefinition;

use super::*;
use crate::map::record::{FieldId, IntentState};
use crate::map::register::Register;

const RECORDS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("map_records");
const TOTALS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("map_totals");

/// A field and a kind that no binary of today knows.
const UNKNOWN: FieldId = 900;
const UNKNOWN_KIND: Kind = Kind(77);

fn bytes(hex: &str) -> Vec<u8> {
    HEXLOWER.decode(hex.as_bytes()).expect("hexadecimal")
}

/// The disk of a node that ran version 1.
fn yesterday() -> Arc<Database> {
    let db = memory_db();
    let txn = db.begin_write().expect("writes");
    {
        let mut records = txn.open_table(RECORDS).expect("the table");
        for (key, row) in ROWS {
            records.insert(bytes(key).as_slice(), bytes(row).as_slice()).expect("inserts");
        }
        let mut totals = txn.open_table(TOTALS).expect("the table");
        totals.insert("totals", bytes(TOTALS_ROW).as_slice()).expect("inserts");
    }
    txn.commit().expect("commits");
    db
}

fn open(db: &Arc<Database>) -> Map {
    Map::open(Arc::clone(db), store_id(1), clock()).expect("opens")
}

fn unknown_field(map: &Map) -> Register {
    let key = Edit::DeleteVolume(volume_id(1)).key();
    let bytes = map.inner.store.get(&key).expect("reads").expect("there");
    let Ok(Record::Intent(intent)) = crate::map::encoding::decode(&bytes) else {
        panic!("an intent")
    };
    let IntentState::Live(mut fields) = intent.state else { panic!("alive") };
    fields.remove(&UNKNOWN).expect("kept")
}

fn unknown_record(map: &Map) -> Vec<u8> {
    map.inner.store.get(&RecordKey::new(UNKNOWN_KIND, b"x")).expect("reads").expect("kept")
}

#[test]
fn todays_binary_reads_every_kind_that_yesterdays_wrote() {
    let map = open(&yesterday());
    let view = map.view();
    assert_eq!((view.records(), view.unreadable().count()), (9, 0));
    let mut expected = volume(1, "pg");
    expected.policy.local_replicas = 4;
    assert_eq!(view.volume(&volume_id(1)).expect("there").spec, expected);
    let conflict = view.conflicts().next().expect("a conflict");
    let texts: Vec<_> = conflict.contenders.iter().map(|it| it.text.as_str()).collect();
    assert_eq!((conflict.field_name(), texts), ("local replicas", vec!["4", "3"]));
    let deleted = view.deleted(&Edit::DeleteVolume(volume_id(2)).key()).expect("deleted");
    assert_eq!(deleted.label, "gone");
    assert_eq!(view.service_named(&name("web")).expect("there").spec, service(1, "web"));
    for (host, service) in [("example.org", 1), ("back.example.org", 2)] {
        let there = view.route(&RouteKey::HttpHost(host.to_owned())).expect("there");
        assert_eq!(there.spec, route(host, service));
    }
    let (there, expected) = (view.tokens().next().expect("there"), token(1));
    assert_eq!((there.id, there.secret), (expected.id, expected.secret));
    assert_eq!((there.expires, there.revoked), (expected.expires, expected.revoked));
    let (there, expected) = (view.node(&store_id(1)).expect("there"), node(1, "n1"));
    assert_eq!((&there.name, &there.region), (&expected.name, &expected.region));
    assert_eq!(there.removed, expected.removed);
    let said = view.placement(&volume_id(1)).expect("there");
    assert_eq!(**said, placement(1, Epoch::new(1, 2), 3, 4));
}

#[test]
fn every_record_of_yesterday_is_encoded_today_as_it_was() {
    for (key, row) in ROWS {
        let record = &bytes(row)[16..];
        let read = crate::map::encoding::decode(record).expect(key);
        assert_eq!(crate::map::encoding::encode(&read).expect("encodes"), record, "{key}");
    }
}

#[test]
fn what_this_binary_does_not_know_goes_through_edit_merge_and_disk() {
    let db = yesterday();
    let map = open(&db);
    let (field, record) = (unknown_field(&map), unknown_record(&map));
    assert_eq!(field.winner().expect("a value").bytes, b"new");
    let (other, other_clock) = super::map(2);
    other_clock.advance(Duration::from_secs(60));
    carry(&map, &other);
    let mut spec = volume(1, "pg");
    spec.policy.remote_replicas = 7;
    for edited in [&map, &other] {
        edited.edit([Edit::PutVolume(spec.clone())]).expect("edits");
        assert_eq!(
            (unknown_field(edited), unknown_record(edited)),
            (field.clone(), record.clone())
        );
    }
    carry(&other, &map);
    drop(map);
    let map = open(&db);
    assert_eq!((unknown_field(&map), unknown_record(&map)), (field, record));
    carry(&map, &other);
    assert_eq!(map.root(), other.root());
}

/// Rows as version 1 wrote them: key, then checksum and record.
const ROWS: [(&str, &str); 9] = [
    (
        "000111111111111111111111111100000001",
        "95a67530637f75b6bf0aa0a3de5af327010000080101011001010101010101010101010101010101808080c0d6fcf3c50100030270670201011001010101010101010101010101010101808080c0d6fcf3c501006810010101010101010101010101010101010210010101010101010101010101010101011002020202020202020202020202020202031001010101010101010101010101010101100202020202020202020202020202020210030303030303030303030303030303030302021001010101010101010101010101010101808080c0d6fcf3c50110020202020202020202020202020202028080a0dfd6fcf3c5010101040110010101010101010101010101010101018a8080c0d6fcf3c5010001030401011001010101010101010101010101010101808080c0d6fcf3c5010001010501011001010101010101010101010101010101808080c0d6fcf3c501000205000601011001010101010101010101010101010101808080c0d6fcf3c50100023c000701011001010101010101010101010101010101808080c0d6fcf3c501000100840701011003030303030303030303030303030303808080c0d6fcf3c50100036e6577",
    ),
    (
        "000111111111111111111111111100000002",
        "5053b3b6d1b67d3ad00eda36a3b625bc010101828080c0d6fcf3c501100101010101010101010101010101010104676f6e65",
    ),
    (
        "000201010101010101010101010101010101",
        "fe9439a129f795cac55181bc6df6e3a5010000070101011001010101010101010101010101010101838080c0d6fcf3c5010004037765620201011001010101010101010101010101010101838080c0d6fcf3c5010014020c2f62696e2f666c6f636b65720574616c6c790301011001010101010101010101010101010101838080c0d6fcf3c501000501014101620401011001010101010101010101010101010101838080c0d6fcf3c50100171011111111111111111111111100000001052f646174610501011001010101010101010101010101010101838080c0d6fcf3c501000a01082f6865616c74687a0601011001010101010101010101010101010101838080c0d6fcf3c501000205000701011001010101010101010101010101010101838080c0d6fcf3c501000100",
    ),
    (
        "0003686261636b2e6578616d706c652e6f7267",
        "6e0328eea04cab540bc5474f9e9173c3010002010201011001010101010101010101010101010101878080c0d6fcf3c50100111002020202020202020202020202020202",
    ),
    (
        "0003686578616d706c652e6f7267",
        "9b4eba6daf970b3ea3b3072f4cb825e9010000010201011001010101010101010101010101010101848080c0d6fcf3c50100111001010101010101010101010101010101",
    ),
    (
        "000401010101010101010101010101010101",
        "ec9462b2c20c8703d848d2b5dd584134010000030101011001010101010101010101010101010101888080c0d6fcf3c501002007070707070707070707070707070707070707070707070707070707070707070201011001010101010101010101010101010101888080c0d6fcf3c501000680adf180bd310301011001010101010101010101010101010101888080c0d6fcf3c501000100",
    ),
    (
        "000501010101010101010101010101010101",
        "49792447fe654bb94dccb1e7f755a53f010000030101011001010101010101010101010101010101898080c0d6fcf3c5010003026e310201011001010101010101010101010101010101898080c0d6fcf3c50100030265750301011001010101010101010101010101010101898080c0d6fcf3c501000100",
    ),
    (
        "000611111111111111111111111100000001",
        "efa08a70ad92693a9c7ed5929935779d01020102031004040404040404040404040404040404040138000000031001010101010101010101010101010101100202020202020202020202020202020210030303030303030303030303030303030002120110040404040404040404040404040404040303010203040100",
    ),
    (
        "004d78",
        "4ac6f9b97499aa2c839a14a98dcd7f1501000001840701011003030303030303030303030303030303808080c0d6fcf3c50100036e6577",
    ),
];
const TOTALS_ROW: &str = "010000e86be5cf8b0109000000000000005a56500892b026724912b9eed603745d736cfbbdf108b618b1303db73463c313";

//! Records of the map over hostile bytes: the one form of each, the laws of the merge over what
//! a hostile peer can make of them, and what the view shows of them.

use std::sync::Arc;
use std::time::Duration;

use flocker_base::{
    BootTime, Epoch, Head, ManualClock, Name, ServiceId, StoreId, VolumeId, WallTime,
};
use flocker_quic::fuzzing::{joined, split};
use redb::Database;
use redb::backends::InMemoryBackend;

use super::admission;
use super::encoding::{self, DecodeError};
use super::record::{FieldId, Intent, IntentState, Record};
use super::stamp::{HybridClock, Stamp};
use super::view::MapView;
use super::{Edit, Kind, Map, RecordKey};
use crate::model::{
    Birth, EngineKind, Placement, PlacementState, RouteKey, RouteSpec, ServiceSpec, VolumeMount,
    VolumePolicy, VolumeSpec, VoterConfig,
};

/// The time at which everything here happens.
pub(crate) const NOON: WallTime = WallTime::from_millis(1_700_000_000_000);

/// Copies of one record, up to three.
pub(crate) fn records(input: &[u8]) {
    let mut copies = Vec::new();
    for bytes in split(input, 3) {
        let Ok(record) = encoding::decode(bytes) else { continue };
        assert_eq!(encoding::encode(&record).as_deref(), Ok(bytes), "a record has one form");
        show(&record);
        copies.push(record);
    }
    for a in &copies {
        let twice = join(a, a);
        assert_eq!(twice, *a, "a record changes when it meets itself");
        for b in &copies {
            meet(a, b);
            for c in &copies {
                assert_eq!(join(&join(a, b), c), join(a, &join(b, c)), "the order of merges shows");
            }
        }
    }
}

fn meet(a: &Record, b: &Record) {
    let both = join(a, b);
    assert_eq!(both, join(b, a), "who merges shows");
    assert_eq!(join(&both, a), both, "what was merged comes back");
    assert!(both.newest() >= a.newest().min(b.newest()));
    match encoding::encode(&both) {
        Ok(bytes) => assert_eq!(encoding::decode(&bytes), Ok(both), "a merged record is read"),
        // It is refused, and both sides keep what they have.
        Err(DecodeError::TooLarge(_) | DecodeError::Malformed(_)) => {}
        Err(other) => panic!("{other:?} of a merged record"),
    }
}

fn join(a: &Record, b: &Record) -> Record {
    let mut both = a.clone();
    both.merge(b.clone());
    both
}

/// Under a key of each kind, a record is refused or can be shown.
fn show(record: &Record) {
    let limit = HybridClock::default().limit(NOON);
    let mut view = MapView::default();
    for number in 1..=7 {
        for id in [&[7; 16][..], b"hexample.org", b"x"] {
            let key = RecordKey::new(Kind(number), id);
            if admission::admit(&key, None, record, limit).is_ok() {
                assert!(record.newest() <= limit, "it is from the future");
                view.show(&key, record);
            }
        }
    }
}

/// Pairs of copies of records as nodes write them: apart, in conflict, deleted.
pub(crate) fn pairs() -> Vec<Vec<u8>> {
    let (mine, theirs) = (sample(1), sample(2));
    let (mine, theirs) = (content(&mine), content(&theirs));
    let pair = |(key, bytes): &(RecordKey, Vec<u8>)| {
        let other = theirs.iter().find(|(other, _)| other == key);
        joined(&[bytes, other.map_or(bytes, |(_, bytes)| bytes)])
    };
    mine.iter().map(pair).collect()
}

pub(crate) fn content(map: &Map) -> Vec<(RecordKey, Vec<u8>)> {
    map.inner.store.page(None, usize::MAX).expect("memory is read")
}

/// An empty map of this store, in memory.
pub(crate) fn empty(number: u8) -> Map {
    let database = Database::builder().create_with_backend(InMemoryBackend::new());
    let clock = ManualClock::new(BootTime::ZERO, NOON + Duration::from_millis(number.into()));
    Map::open(Arc::new(database.expect("memory")), store(number), Arc::new(clock)).expect("memory")
}

const fn store(number: u8) -> StoreId {
    StoreId::from_bytes([number; 16])
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

/// A map of this store with records of each kind; what two of them say differs.
pub(crate) fn sample(number: u8) -> Map {
    let map = empty(number);
    let stores = [store(1), store(2), store(3)];
    let volume = VolumeSpec {
        id: VolumeId::from_bytes([1; 16]),
        name: name(&format!("pg-{number}")),
        policy: VolumePolicy { local_replicas: number, ..VolumePolicy::default() },
        birth: Birth { master: store(1), replicas: stores.into(), voters: stores.into() },
    };
    let service = ServiceSpec {
        id: ServiceId::from_bytes([2; 16]),
        name: name(&format!("web-{number}")),
        command: vec!["/bin/web".to_owned()],
        environment: [("A".to_owned(), number.to_string())].into(),
        volume: VolumeMount { volume: volume.id, path: "/data".to_owned() },
        health_path: Some("/healthz".to_owned()),
        stop_grace: Duration::from_secs(5),
        engine: EngineKind::Process,
    };
    let route =
        RouteSpec { key: RouteKey::HttpHost("example.org".to_owned()), service: service.id };
    let gone = ServiceSpec { id: ServiceId::from_bytes([3; 16]), ..service.clone() };
    let gone = ServiceSpec { name: name("gone"), ..gone };
    map.place(Placement {
        volume: volume.id,
        epoch: Epoch::new(0, number.into()),
        sequence: 3,
        holder: store(number),
        voters: VoterConfig::birth(stores),
        replicas: stores.into(),
        head: Head::new(Epoch::new(0, 1), 9),
        state: PlacementState::Active,
    })
    .expect("it is placed");
    map.edit([
        Edit::PutVolume(volume),
        Edit::PutService(service),
        Edit::PutRoute(route),
        Edit::PutService(gone.clone()),
        Edit::DeleteService(gone.id),
    ])
    .expect("it is edited");
    map.merge(store(number), vec![token(number), node(number)]).expect("they are merged");
    map
}

/// Tokens and nodes by their stored fields, as every version writes them.
fn token(number: u8) -> (RecordKey, Record) {
    let expires = [0x80 | number, 0x80, 0x80, 0x80, 0x80, 0x32];
    let fields = [(1, vec![number; 32]), (2, expires.to_vec()), (3, vec![0])];
    (RecordKey::new(Kind::TOKEN, &[4; 16]), written(number, fields))
}

fn node(number: u8) -> (RecordKey, Record) {
    let fields =
        [(1, vec![2, b'n', b'0' + number]), (2, b"\x02eu".to_vec()), (3, vec![number - 1])];
    (RecordKey::new(Kind::NODE, &[5; 16]), written(number, fields))
}

fn written(number: u8, fields: [(FieldId, Vec<u8>); 3]) -> Record {
    let mut intent = Intent::empty();
    if let IntentState::Live(registers) = &mut intent.state {
        for (field, bytes) in fields {
            let stamp = Stamp::at(NOON + Duration::from_millis(number.into()));
            registers.entry(field).or_default().write(store(number), stamp, bytes);
        }
    }
    Record::Intent(intent)
}

//! Tests of the map, and the values that they share. Nothing here may wait for the wall clock.

use std::sync::Arc;
use std::time::Duration;

use flocker_base::{Epoch, Head, ManualClock, Name, ServiceId, TokenId, VolumeId, WallTime};

use super::*;
use crate::model::{
    Birth, EngineKind, NodeSpec, PlacementState, RouteKey, RouteSpec, ServiceSpec, TokenSpec,
    VolumeMount, VolumePolicy, VolumeSpec, VoterConfig,
};

mod cost;
mod disk;
mod edits;
mod encoding;
mod golden;
mod histories;
mod laws;
mod members;
mod pending;
mod quarantine;
mod replay;
mod sync;

pub(super) const NOON: WallTime = WallTime::from_millis(1_700_000_000_000);

pub(super) fn store_id(number: u8) -> StoreId {
    StoreId::from_bytes([number; 16])
}

pub(super) fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(flocker_base::BootTime::ZERO, NOON))
}

pub(super) fn memory_db() -> Arc<Database> {
    let backend = redb::backends::InMemoryBackend::new();
    Arc::new(Database::builder().create_with_backend(backend).expect("a database in memory"))
}

/// A map of store `number` in memory, at noon.
pub(super) fn map(number: u8) -> (Map, Arc<ManualClock>) {
    let clock = clock();
    (Map::open(memory_db(), store_id(number), clock.clone()).expect("opens"), clock)
}

pub(super) fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

pub(super) fn volume_id(number: u32) -> VolumeId {
    let mut bytes = [0x11; 16];
    bytes[12..].copy_from_slice(&number.to_be_bytes());
    VolumeId::from_bytes(bytes)
}

pub(super) fn volume(number: u32, called: &str) -> VolumeSpec {
    VolumeSpec {
        id: volume_id(number),
        name: name(called),
        policy: VolumePolicy::default(),
        birth: Birth {
            master: store_id(1),
            replicas: vec![store_id(1), store_id(2)],
            voters: [store_id(1), store_id(2), store_id(3)].into(),
        },
    }
}

pub(super) fn service(number: u8, called: &str) -> ServiceSpec {
    ServiceSpec {
        id: ServiceId::from_bytes([number; 16]),
        name: name(called),
        command: vec!["/bin/flocker".to_owned(), "tally".to_owned()],
        environment: [("A".to_owned(), "b".to_owned())].into(),
        volume: VolumeMount { volume: volume_id(1), path: "/data".to_owned() },
        health_path: Some("/healthz".to_owned()),
        stop_grace: Duration::from_secs(5),
        engine: EngineKind::Process,
    }
}

pub(super) fn route(host: &str, service: u8) -> RouteSpec {
    let service = ServiceId::from_bytes([service; 16]);
    RouteSpec { key: RouteKey::HttpHost(host.to_owned()), service }
}

pub(super) fn token(number: u8) -> TokenSpec {
    let id = TokenId::from_bytes([number; 16]);
    TokenSpec::new(id, [7; 32], NOON + Duration::from_secs(3_600))
}

pub(super) fn node(number: u8, called: &str) -> NodeSpec {
    let store = store_id(number);
    NodeSpec::new(store, name(called), name("eu"))
}

pub(super) fn placement(volume: u32, epoch: Epoch, sequence: u64, holder: u8) -> Placement {
    Placement {
        volume: volume_id(volume),
        epoch,
        sequence,
        holder: store_id(holder),
        voters: VoterConfig::birth([store_id(1), store_id(2), store_id(3)]),
        replicas: vec![store_id(holder)],
        head: Head::new(epoch, sequence),
        state: PlacementState::Active,
    }
}

/// All records of a map, as a peer would send them.
pub(super) fn copy(map: &Map) -> Vec<(RecordKey, Record)> {
    let page = map.inner.store.page(None, usize::MAX).expect("reads");
    page.into_iter()
        .map(|(key, bytes)| (key, super::encoding::decode(&bytes).expect("decodes")))
        .collect()
}

/// Merges everything that `from` has into `to`.
pub(super) fn carry(from: &Map, to: &Map) -> Merged {
    to.merge(from.actor(), copy(from)).expect("merges")
}

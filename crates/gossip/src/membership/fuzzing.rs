//! The messages of membership over hostile bytes: the guard first, then chitchat's own decoder
//! for what the guard lets through, as in a running node. And the values that they carry.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chitchat::{ChitchatMessage, Deserializable};
use data_encoding::BASE64_NOPAD;
use flocker_base::{BootTime, Clock, ClusterId, Incarnation, Name, StoreId, WallTime};
use flocker_quic::fuzzing::{joined, split};
use redb::Database;
use redb::backends::InMemoryBackend;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::guard::{Guard, MAX_VALUE_BYTES};
use super::{LocalNode, Membership, MembershipConfig, chat_id};
use super::{facts, pool};
use crate::addresses::AddressBookStore;
use crate::control::{Handler, Kind, MemoryNet};
use crate::model::NodeFacts;

/// Messages of one input at most.
const MOST: usize = 8;
const CLUSTER: ClusterId = ClusterId::from_bytes([9; 16]);

const fn store(number: u8) -> StoreId {
    StoreId::from_bytes([number; 16])
}

/// Messages of peers, one after another: what passes the guard is read whole by chitchat, names
/// nodes of ours alone, and what there is to remember stays bounded.
pub(crate) fn messages(input: &[u8]) {
    let region = Name::new("eu").expect("a name");
    let mut guard = Guard::new(store(1), pool::id_of(CLUSTER, Some(&region)));
    guard.begin(chat_id::generation(Incarnation(1), 0).expect("a small number"));
    for message in split(input, MOST) {
        let admitted = guard.admit(message);
        guard.check_bounds();
        if admitted.is_err() {
            continue;
        }
        let mut rest = message;
        let read = ChitchatMessage::deserialize(&mut rest);
        assert!(read.is_ok(), "the guard lets through what chitchat cannot read: {read:?}");
        assert!(rest.is_empty(), "chitchat leaves {} bytes", rest.len());
    }
}

/// A value as facts and as a root: it is read, or it is not; what is read has its own form.
pub(crate) fn facts(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Some(read) = facts::decode(text) {
        assert!(!read.version.contains(char::is_control), "{:?} on a screen", read.version);
        let again = facts::encode(&read).expect("what was read is written");
        assert!(again.len() <= MAX_VALUE_BYTES);
        assert_eq!(facts::decode(&again).as_ref(), Some(&read), "it is read otherwise");
    }
    if let Some(root) = facts::decode_root(text) {
        assert_eq!(facts::encode_root(&root), text, "a root has one form");
    }
}

/// Facts and roots as nodes announce them.
pub(crate) fn values() -> Vec<Vec<u8>> {
    let named = |number| facts::encode(&facts_of(number)).expect("they fit");
    let mut with_proxy = facts_of(2);
    with_proxy.http = Some(with_proxy.control);
    let with_proxy = facts::encode(&with_proxy).expect("they fit");
    [named(1), with_proxy, facts::encode_root(&[7; 32])].map(String::into_bytes).into()
}

/// A node's facts, read from the form of the first version.
fn facts_of(number: u8) -> NodeFacts {
    let at = |port| SocketAddr::from(([10, 0, 0, number], port));
    let said = (format!("n{number}"), "eu", at(4523), at(4524), None::<SocketAddr>, "0.1.0");
    let bytes = postcard::to_extend(&said, vec![1]).expect("memory");
    facts::decode(&BASE64_NOPAD.encode(&bytes)).expect("it is read for ever")
}

/// What three real nodes say to the first of them in their first seconds.
pub(crate) fn conversations() -> Vec<Vec<u8>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let said = runtime.block_on(listen());
    let mut inputs: Vec<Vec<u8>> = said.iter().take(12).map(|one| joined(&[one])).collect();
    inputs.push(joined(&said[..said.len().min(MOST)]));
    inputs
}

/// The runtime's own clock, which stands still but for sleeps.
#[derive(Debug)]
struct VirtualClock(Instant);

impl Clock for VirtualClock {
    fn boot(&self) -> BootTime {
        BootTime::from_duration(self.0.elapsed())
    }

    fn wall(&self) -> WallTime {
        WallTime::from_millis(1_800_000_000_000) + self.0.elapsed()
    }
}

/// Writes down what arrives on its way to the real handler.
struct Ear {
    handler: Arc<dyn Handler>,
    heard: Arc<Mutex<Vec<Bytes>>>,
}

#[async_trait]
impl Handler for Ear {
    async fn on_message(&self, from: StoreId, payload: Bytes) {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).push(payload.clone());
        self.handler.on_message(from, payload).await;
    }

    async fn on_call(&self, from: StoreId, payload: Bytes) -> Result<Bytes, String> {
        self.handler.on_call(from, payload).await
    }
}

async fn listen() -> Vec<Bytes> {
    let (net, heard) = (MemoryNet::new(), Arc::<Mutex<Vec<Bytes>>>::default());
    let clock: Arc<dyn Clock> = Arc::new(VirtualClock(Instant::now()));
    let (shutdown, mut nodes) = (CancellationToken::new(), tokio::task::JoinSet::new());
    for number in 1..=3 {
        let local = LocalNode {
            cluster: CLUSTER,
            incarnation: Incarnation(1),
            facts: facts_of(number),
            seeds: vec![store(1)],
            announce_after: Duration::ZERO,
        };
        let database = Database::builder().create_with_backend(InMemoryBackend::new());
        let book = AddressBookStore::open(Arc::new(database.expect("memory"))).expect("memory");
        let wire = net.node(store(number));
        let config = MembershipConfig::default();
        let (membership, handlers) =
            Membership::new(config, local, wire, book, Arc::clone(&clock)).expect("it starts");
        for (kind, handler) in handlers {
            let handler: Arc<dyn Handler> = match (number, kind) {
                (1, Kind::Membership) => Arc::new(Ear { handler, heard: Arc::clone(&heard) }),
                _ => handler,
            };
            net.handle(store(number), kind, handler);
        }
        let shutdown = shutdown.clone();
        nodes.spawn(async move { membership.run(shutdown).await });
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    shutdown.cancel();
    nodes.join_all().await;
    std::mem::take(&mut *heard.lock().unwrap_or_else(PoisonError::into_inner))
}

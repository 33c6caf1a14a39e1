//! What every [`Wire`] promises, checked on both: the network in memory and real sockets.

mod sockets;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use flocker_quic::testing::store;
use tokio::sync::{Mutex, Semaphore, mpsc};

use super::*;
use sockets::Mesh;

const SOON: Duration = Duration::from_secs(10);

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("in time")
}

/// Answers with who asked and what; refuses `no`; takes as long as it is told to.
struct Echo {
    seen: mpsc::Sender<(StoreId, Bytes)>,
    inbox: Mutex<mpsc::Receiver<(StoreId, Bytes)>>,
    /// A call of `wait` takes one of these and is done.
    go: Semaphore,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
    calls: AtomicUsize,
}

impl Echo {
    fn new() -> Arc<Self> {
        let (seen, inbox) = mpsc::channel(1024);
        Arc::new(Self {
            seen,
            inbox: Mutex::new(inbox),
            go: Semaphore::new(0),
            at_once: AtomicUsize::new(0),
            most_at_once: AtomicUsize::new(0),
            calls: AtomicUsize::new(0),
        })
    }

    async fn message(&self) -> (StoreId, Bytes) {
        within(self.inbox.lock().await.recv()).await.expect("a message")
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Handler for Echo {
    async fn on_message(&self, from: StoreId, payload: Bytes) {
        self.seen.send((from, payload)).await.expect("the test listens");
    }

    async fn on_call(&self, from: StoreId, payload: Bytes) -> Result<Bytes, String> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let now = self.at_once.fetch_add(1, Ordering::Relaxed) + 1;
        self.most_at_once.fetch_max(now, Ordering::Relaxed);
        let answer = match &payload[..] {
            b"no" => Err("I'd rather not".to_owned()),
            b"huge" => Ok(Bytes::from(vec![0; (4 << 20) + 1])),
            b"wait" => {
                self.go.acquire().await.expect("open").forget();
                Ok(payload)
            }
            _ => {
                let mut answer = from.as_bytes().to_vec();
                answer.extend_from_slice(&payload);
                Ok(answer.into())
            }
        };
        self.at_once.fetch_sub(1, Ordering::Relaxed);
        answer
    }
}

/// Nodes 1 and 2, each with an [`Echo`] for every kind but `Agent`; node 9 exists nowhere.
struct Pair {
    one: Arc<dyn Wire>,
    two: Arc<dyn Wire>,
    echo: Arc<Echo>,
}

fn in_memory() -> Pair {
    let (net, echo) = (MemoryNet::new(), Echo::new());
    for node in [1, 2] {
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Agent) {
            net.handle(store(node), kind, Arc::clone(&echo) as Arc<dyn Handler>);
        }
    }
    Pair { one: net.node(store(1)), two: net.node(store(2)), echo }
}

async fn conformance(pair: &Pair) {
    calls_are_answered_and_refused(pair).await;
    limits_hold_on_both_sides(pair).await;
    messages_arrive_from_whom_they_are(pair).await;
    waiting_calls_end_with_their_deadline(pair).await;
}

async fn calls_are_answered_and_refused(Pair { one, two, echo }: &Pair) {
    assert_eq!((one.local(), two.local()), (store(1), store(2)));
    for (wire, to) in [(one, 2), (two, 1), (one, 1)] {
        let answer = wire.call(store(to), Kind::Lease, Bytes::from_static(b"hi"), SOON).await;
        let mut expected = wire.local().as_bytes().to_vec();
        expected.extend_from_slice(b"hi");
        assert_eq!(answer, Ok(expected.into()));
    }
    let refused = one.call(store(2), Kind::Lease, Bytes::from_static(b"no"), SOON).await;
    assert_eq!(refused, Err(WireError::Refused("I'd rather not".to_owned())));
    let calls = echo.calls();
    let unhandled = one.call(store(2), Kind::Agent, Bytes::from_static(b"hi"), SOON).await;
    assert!(matches!(unhandled, Err(WireError::Refused(_))), "{unhandled:?}");
    let nowhere = one.call(store(9), Kind::Lease, Bytes::from_static(b"hi"), SOON).await;
    assert!(matches!(nowhere, Err(WireError::Unreachable { .. })), "{nowhere:?}");
    assert_eq!(echo.calls(), calls);
}

async fn limits_hold_on_both_sides(Pair { one, echo, .. }: &Pair) {
    for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Agent) {
        let max = kind.max_frame();
        // The answer carries the caller's id besides.
        let full = Bytes::from(vec![7; max - 16]);
        let answer = one.call(store(2), kind, full, SOON).await.expect("the largest");
        assert_eq!(answer.len(), max);
        let calls = echo.calls();
        let over = one.call(store(2), kind, vec![7; max + 1].into(), SOON).await;
        assert_eq!(over, Err(WireError::TooLarge { length: max + 1, max }));
        assert_eq!(echo.calls(), calls);
        let huge = one.call(store(2), kind, Bytes::from_static(b"huge"), SOON).await;
        assert!(matches!(huge, Err(WireError::Refused(_))), "{huge:?}");
    }
}

async fn messages_arrive_from_whom_they_are(Pair { one, two, echo }: &Pair) {
    one.send(store(2), Kind::MapPush, Bytes::from_static(b"a"));
    assert_eq!(echo.message().await, (store(1), Bytes::from_static(b"a")));
    two.send(store(1), Kind::Membership, Bytes::from_static(b"b"));
    assert_eq!(echo.message().await, (store(2), Bytes::from_static(b"b")));
    two.send(store(2), Kind::Membership, Bytes::from_static(b"c"));
    assert_eq!(echo.message().await, (store(2), Bytes::from_static(b"c")));
    // None of these arrives, and none does harm.
    one.send(store(9), Kind::Lease, Bytes::from_static(b"nowhere"));
    one.send(store(2), Kind::Agent, Bytes::from_static(b"unhandled"));
    one.send(store(2), Kind::Lease, vec![0; Kind::Lease.max_frame() + 1].into());
    one.send(store(2), Kind::Lease, Bytes::from_static(b"d"));
    assert_eq!(echo.message().await, (store(1), Bytes::from_static(b"d")));
}

async fn waiting_calls_end_with_their_deadline(Pair { one, echo, .. }: &Pair) {
    let short = Duration::from_millis(200);
    let late = one.call(store(2), Kind::MapPush, Bytes::from_static(b"wait"), short).await;
    assert_eq!(late, Err(WireError::Deadline { to: store(2), after: short }));
    echo.go.add_permits(1);
    let answer = one.call(store(2), Kind::Lease, Bytes::from_static(b"x"), SOON).await;
    assert!(answer.is_ok(), "{answer:?}");
}

#[tokio::test]
async fn the_network_in_memory_keeps_the_promises() {
    within(conformance(&in_memory())).await;
}

#[tokio::test]
async fn real_sockets_keep_the_promises() {
    let mut mesh = Mesh::new();
    let echo = Echo::new();
    let (one, two) = (mesh.node(1, &echo), mesh.node(2, &echo));
    within(conformance(&Pair { one, two, echo })).await;
    mesh.stop().await;
}

#[tokio::test(start_paused = true)]
async fn cuts_swallow_in_one_way_or_both_and_heal() {
    let (net, echo) = (MemoryNet::new(), Echo::new());
    for node in [1, 2] {
        net.handle(store(node), Kind::Lease, Arc::clone(&echo) as Arc<dyn Handler>);
    }
    let (one, two) = (net.node(store(1)), net.node(store(2)));
    let call = |wire: &Arc<dyn Wire>, to| {
        let wire = Arc::clone(wire);
        async move { wire.call(store(to), Kind::Lease, Bytes::from_static(b"x"), SOON).await }
    };
    net.cut_one_way(store(2), store(1));
    assert!(matches!(call(&one, 2).await, Err(WireError::Deadline { .. })));
    assert_eq!(echo.calls(), 1, "the request arrived, the answer did not");
    assert!(matches!(call(&two, 1).await, Err(WireError::Deadline { .. })));
    assert_eq!(echo.calls(), 1, "the request did not arrive");
    net.cut(store(1), store(2));
    one.send(store(2), Kind::Lease, Bytes::from_static(b"lost"));
    tokio::time::sleep(SOON).await;
    assert_eq!(net.swallowed(), 3);
    net.heal(store(2), store(1));
    assert!(call(&one, 2).await.is_ok());
    one.send(store(2), Kind::Lease, Bytes::from_static(b"found"));
    assert_eq!(echo.message().await.1, Bytes::from_static(b"found"));
    net.remove(store(2));
    assert!(matches!(call(&one, 2).await, Err(WireError::Unreachable { .. })));
}

#[test]
fn the_numbers_on_the_wire_are_these() {
    let numbers: Vec<u8> = Kind::ALL.into_iter().map(|kind| kind as u8).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    for number in 0..=255 {
        assert_eq!(
            Kind::from_wire(number).map(|kind| kind as u8),
            numbers.contains(&number).then_some(number)
        );
    }
}

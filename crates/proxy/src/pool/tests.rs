//! The pool's bounds, and routes for the tests of others.

use async_trait::async_trait;
use flocker_base::{Epoch, SystemClock};
use tokio::net::TcpListener;

use super::*;
use crate::dial::Stream;

struct NoDial;

#[async_trait]
impl Dial for NoDial {
    async fn open(&self, _: StoreId) -> io::Result<Box<dyn Stream>> {
        Err(io::Error::other("no way"))
    }
}

fn pool(target: Target, config: ProxyConfig) -> Arc<Pool> {
    let context = PoolContext {
        config: Arc::new(config),
        dial: Arc::new(NoDial),
        clock: Arc::new(SystemClock),
        tasks: TaskTracker::new(),
        closing: CancellationToken::new(),
    };
    Pool::new(target, context)
}

/// A route to nowhere in particular.
pub(crate) fn route(place: Place) -> Arc<Route> {
    let target = Target::Backend(([127, 0, 0, 1], 1).into());
    Arc::new(Route::new(place, pool(target, ProxyConfig::default())))
}

#[tokio::test]
async fn connections_are_counted_bounded_and_reused() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let config = ProxyConfig { max_upstream: 2, ..ProxyConfig::default() };
    let pool = pool(Target::Backend(address), config);
    let epoch = Epoch { generation: 1, counter: 1 };
    let route = Arc::new(Route::new(Place::Local { address, epoch }, Arc::clone(&pool)));
    let (mut first, is_new) = pool.get().await.expect("connects");
    assert!(is_new && first.is_alive().await);
    let (_second, _) = pool.get().await.expect("connects");
    let full = pool.get().await.expect_err("both are in use");
    assert!(matches!(full, ConnectError::Full(2)), "{full}");
    first.give_back(&route);
    let (_again, is_new) = pool.get().await.expect("reuses");
    assert!(!is_new);
}

#[tokio::test]
async fn a_connection_that_was_closed_while_unused_is_not_reused() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let pool = pool(Target::Backend(address), ProxyConfig::default());
    let epoch = Epoch { generation: 1, counter: 1 };
    let route = Arc::new(Route::new(Place::Local { address, epoch }, Arc::clone(&pool)));
    let (mut upstream, _) = pool.get().await.expect("connects");
    let (accepted, _) = listener.accept().await.expect("accept");
    assert!(upstream.is_alive().await);
    upstream.give_back(&route);
    drop(accepted);
    // The close reaches this side through the runtime's driver.
    for _ in 0..200 {
        tokio::task::yield_now().await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        if pool.reuse().await.is_none() {
            return;
        }
    }
    panic!("a dead connection was handed out");
}

#[tokio::test]
async fn a_failed_dial_says_which_node_and_why() {
    let node = StoreId::from_bytes([3; 16]);
    let pool = pool(Target::Peer(node), ProxyConfig::default());
    let error = pool.get().await.expect_err("no way").to_string();
    assert!(error.contains(&node.to_string()) && error.contains("no way"), "{error}");
}

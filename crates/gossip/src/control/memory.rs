//! A network in memory, for tests: the same promises as the real one, and faults at will. It is
//! never part of a running node.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flocker_base::StoreId;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::outbox::Outbox;
use super::{Handler, Kind, Wire, WireError};

/// A network of nodes in one process, for tests. Clones are the same network.
///
/// Messages and calls travel at once, in order a kind and pair of nodes; what a cut swallows is
/// lost, and a call over a cut ends with its deadline, as in a silent network. The limits on
/// frames and queues are the real ones. Handlers run as tasks of the runtime that sends or calls.
#[derive(Clone, Default)]
pub struct MemoryNet {
    net: Arc<Net>,
}

#[derive(Default)]
struct Net {
    handlers: Mutex<HashMap<(StoreId, Kind), Arc<dyn Handler>>>,
    /// From whom to whom nothing travels.
    cuts: Mutex<BTreeSet<(StoreId, StoreId)>>,
    swallowed: AtomicU64,
    tasks: Mutex<JoinSet<()>>,
}

/// One node's end of the network.
struct MemoryWire {
    local: StoreId,
    net: Arc<Net>,
    outbox: Arc<Outbox>,
}

impl MemoryNet {
    /// A network without cuts and handlers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// This node's way to the others.
    #[must_use]
    pub fn node(&self, store: StoreId) -> Arc<dyn Wire> {
        Arc::new(MemoryWire { local: store, net: Arc::clone(&self.net), outbox: Arc::default() })
    }

    /// Registers who handles a kind at this node, in place of whoever did. A node without any
    /// handler can't be reached.
    pub fn handle(&self, store: StoreId, kind: Kind, handler: Arc<dyn Handler>) {
        lock(&self.net.handlers).insert((store, kind), handler);
    }

    /// Takes a node off the network: its handlers are let go.
    pub fn remove(&self, store: StoreId) {
        lock(&self.net.handlers).retain(|(node, _), _| *node != store);
    }

    /// Cuts both ways between two nodes.
    pub fn cut(&self, a: StoreId, b: StoreId) {
        self.cut_one_way(a, b);
        self.cut_one_way(b, a);
    }

    /// Cuts one way: `to` does not hear `from`.
    pub fn cut_one_way(&self, from: StoreId, to: StoreId) {
        lock(&self.net.cuts).insert((from, to));
    }

    /// Mends every cut between two nodes.
    pub fn heal(&self, a: StoreId, b: StoreId) {
        lock(&self.net.cuts).retain(|cut| *cut != (a, b) && *cut != (b, a));
    }

    /// Mends every cut.
    pub fn heal_all(&self) {
        lock(&self.net.cuts).clear();
    }

    /// How many messages, requests and answers cuts have swallowed, so that a test can assert that
    /// its fault happened.
    #[must_use]
    pub fn swallowed(&self) -> u64 {
        self.net.swallowed.load(Ordering::Relaxed)
    }
}

impl Net {
    /// Whether something gets through; what does not is counted.
    fn passes(&self, from: StoreId, to: StoreId) -> bool {
        let passes = !lock(&self.cuts).contains(&(from, to));
        if !passes {
            self.swallowed.fetch_add(1, Ordering::Relaxed);
        }
        passes
    }

    fn handler(&self, node: StoreId, kind: Kind) -> Option<Arc<dyn Handler>> {
        lock(&self.handlers).get(&(node, kind)).cloned()
    }

    fn exists(&self, node: StoreId) -> bool {
        lock(&self.handlers).keys().any(|(other, _)| *other == node)
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }
}

#[async_trait]
impl Wire for MemoryWire {
    fn local(&self) -> StoreId {
        self.local
    }

    fn send(&self, to: StoreId, kind: Kind, payload: Bytes) {
        if payload.len() > kind.max_frame() || !self.outbox.push((to, kind), payload) {
            return;
        }
        let (from, net) = (self.local, Arc::downgrade(&self.net));
        let outbox = Arc::clone(&self.outbox);
        self.net.spawn(async move {
            while let Some(payload) = outbox.take((to, kind)) {
                let Some(net) = net.upgrade() else { return };
                if net.passes(from, to)
                    && let Some(handler) = net.handler(to, kind)
                {
                    drop(net);
                    handler.on_message(from, payload).await;
                }
            }
        });
    }

    async fn call(
        &self,
        to: StoreId,
        kind: Kind,
        payload: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, WireError> {
        let (length, max) = (payload.len(), kind.max_frame());
        if length > max {
            return Err(WireError::TooLarge { length, max });
        }
        match tokio::time::timeout(deadline, self.ask(to, kind, payload)).await {
            Ok(result) => result,
            Err(_elapsed) => Err(WireError::Deadline { to, after: deadline }),
        }
    }

    /// The host of a node that was taken off says so, unless a cut is in between.
    async fn nothing_listens(&self, to: StoreId, within: Duration) -> bool {
        if self.net.passes(self.local, to) && self.net.passes(to, self.local) {
            return !self.net.exists(to);
        }
        tokio::time::sleep(within).await;
        false
    }
}

impl MemoryWire {
    async fn ask(&self, to: StoreId, kind: Kind, payload: Bytes) -> Result<Bytes, WireError> {
        if !self.net.passes(self.local, to) {
            return std::future::pending().await;
        }
        if !self.net.exists(to) {
            let reason = "it is not on the network".to_owned();
            return Err(WireError::Unreachable { to, reason });
        }
        let Some(handler) = self.net.handler(to, kind) else {
            return Err(WireError::Refused(format!("this node does not handle {kind:?}")));
        };
        let (tell, told) = oneshot::channel();
        let from = self.local;
        // A task of its own: as over the real network, the handler goes on if the caller gives up.
        self.net.spawn(async move {
            // The caller may have given up.
            let _ = tell.send(handler.on_call(from, payload).await);
        });
        let Ok(answer) = told.await else {
            return Err(WireError::Broken { to, reason: "its handler panicked".to_owned() });
        };
        if !self.net.passes(to, self.local) {
            return std::future::pending().await;
        }
        match answer {
            Ok(answer) if answer.len() > kind.max_frame() => {
                Err(WireError::Refused("the answer is over the limit".to_owned()))
            }
            Ok(answer) => Ok(answer),
            Err(text) => Err(WireError::Refused(text)),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that runs under these locks leaves them half changed if it panics.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

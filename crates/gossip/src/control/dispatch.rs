//! Which handler takes what, and how much of one peer's is under way at once. It reads no socket.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use bytes::Bytes;
use flocker_base::{Clock, StoreId, SystemClock};
use tokio::sync::Semaphore;

use super::{Admission, Handler, Kind, Quiet};

/// The handlers, who was removed, and the bounds of each peer.
pub(super) struct Dispatch {
    pub(super) admission: Arc<dyn Admission>,
    handlers: RwLock<[Option<Arc<dyn Handler>>; Kind::ALL.len()]>,
    bounds: Mutex<HashMap<StoreId, Arc<Bounds>>>,
    unhandled: Quiet,
}

/// How much of one peer's is under way at once, by kind: a kind that is slow holds up no other.
pub(super) struct Bounds {
    inward: [Arc<Semaphore>; Kind::ALL.len()],
    outward: [Arc<Semaphore>; Kind::ALL.len()],
}

impl Bounds {
    fn new() -> Self {
        let fresh = || Kind::ALL.map(|kind| Arc::new(Semaphore::new(kind.at_once())));
        Self { inward: fresh(), outward: fresh() }
    }

    /// Permits to handle what this peer sends.
    pub(super) fn inward(&self, kind: Kind) -> &Arc<Semaphore> {
        &self.inward[kind.index()]
    }

    /// Permits to call this peer.
    pub(super) fn outward(&self, kind: Kind) -> &Arc<Semaphore> {
        &self.outward[kind.index()]
    }
}

impl Dispatch {
    pub(super) fn new(admission: Arc<dyn Admission>) -> Self {
        Self {
            admission,
            handlers: RwLock::default(),
            bounds: Mutex::default(),
            unhandled: Quiet::default(),
        }
    }

    pub(super) fn register(&self, kind: Kind, handler: Arc<dyn Handler>) {
        let mut handlers = self.handlers.write().unwrap_or_else(PoisonError::into_inner);
        handlers[kind.index()] = Some(handler);
    }

    /// Lets go of every handler.
    pub(super) fn release(&self) {
        *self.handlers.write().unwrap_or_else(PoisonError::into_inner) = Default::default();
    }

    /// The bounds of an authenticated peer: there are no more than stores in the cluster.
    pub(super) fn bounds(&self, peer: StoreId) -> Arc<Bounds> {
        let mut bounds = self.bounds.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(bounds.entry(peer).or_insert_with(|| Arc::new(Bounds::new())))
    }

    pub(super) fn forget(&self, peer: StoreId) {
        self.bounds.lock().unwrap_or_else(PoisonError::into_inner).remove(&peer);
    }

    fn handler(&self, kind: Kind) -> Option<Arc<dyn Handler>> {
        let handlers = self.handlers.read().unwrap_or_else(PoisonError::into_inner);
        handlers[kind.index()].clone()
    }

    pub(super) async fn message(&self, from: StoreId, kind: Kind, payload: Bytes) {
        match self.handler(kind) {
            Some(handler) => handler.on_message(from, payload).await,
            None => {
                if let Some(unsaid) = self.unhandled.due(SystemClock.boot()) {
                    tracing::warn!(%from, ?kind, unsaid, "dropped a message: nothing handles it");
                }
            }
        }
    }

    /// The handler's answer, or why there is none that may be sent.
    pub(super) async fn call(
        &self,
        from: StoreId,
        kind: Kind,
        payload: Bytes,
    ) -> Result<Bytes, String> {
        let Some(handler) = self.handler(kind) else {
            return Err(format!("this node does not handle {kind:?}"));
        };
        let answer = handler.on_call(from, payload).await?;
        if answer.len() > kind.max_frame() {
            tracing::error!(%from, ?kind, bytes = answer.len(), "an answer is over the limit");
            return Err(format!(
                "the answer has {} bytes, where {} are allowed",
                answer.len(),
                kind.max_frame()
            ));
        }
        Ok(answer)
    }
}

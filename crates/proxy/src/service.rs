//! What the proxy keeps for one service: its gate, its tunnels and its counters.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use flocker_base::ServiceId;
use hyper::header::HeaderValue;
use tokio_util::sync::CancellationToken;

use crate::gate::Gate;

/// What happened to a service's requests at this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceStats {
    /// Held now.
    pub held: usize,
    /// In flight now: admitted, and the response not yet handed over whole.
    pub in_flight: usize,
    /// Tunnels (WebSockets) open now.
    pub tunnels: usize,
    /// Requests taken so far.
    pub requests: u64,
    /// Of these, sent on to another node.
    pub forwarded: u64,
    /// Of these, answered with an error of the proxy's own (502, 503, 504), or broken off.
    pub failed: u64,
    /// The longest that a request has been held.
    pub longest_hold: Duration,
}

/// One service.
#[derive(Debug)]
pub(crate) struct Service {
    id_text: HeaderValue,
    label: ArcSwap<String>,
    pub(crate) gate: Arc<Gate>,
    requests: AtomicU64,
    forwarded: AtomicU64,
    failed: AtomicU64,
    tunnels: Arc<AtomicUsize>,
    /// Cancelled to cut the tunnels open now.
    cut: Mutex<CancellationToken>,
}

/// Counts a tunnel while it is open.
#[derive(Debug)]
pub(crate) struct TunnelSlot {
    count: Arc<AtomicUsize>,
    pub(crate) cut: CancellationToken,
}

impl Service {
    pub(crate) fn new(id: ServiceId, gate: Arc<Gate>) -> Arc<Self> {
        let text = id.to_string();
        let id_text =
            HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("-"));
        Arc::new(Self {
            id_text,
            label: ArcSwap::from_pointee(text),
            gate,
            requests: AtomicU64::new(0),
            forwarded: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            tunnels: Arc::new(AtomicUsize::new(0)),
            cut: Mutex::new(CancellationToken::new()),
        })
    }

    /// The id as peers are told it.
    pub(crate) const fn id_text(&self) -> &HeaderValue {
        &self.id_text
    }

    /// The name, for messages.
    pub(crate) fn label(&self) -> Arc<String> {
        self.label.load_full()
    }

    pub(crate) fn set_label(&self, label: &str) {
        if **self.label.load() != label {
            self.label.store(Arc::new(label.to_owned()));
        }
    }

    pub(crate) fn count_request(&self) {
        self.requests.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_forwarded(&self) {
        self.forwarded.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_failure(&self) {
        self.failed.fetch_add(1, Relaxed);
    }

    pub(crate) fn tunnel(&self) -> TunnelSlot {
        self.tunnels.fetch_add(1, Relaxed);
        let cut = self.cut.lock().unwrap_or_else(PoisonError::into_inner).clone();
        TunnelSlot { count: Arc::clone(&self.tunnels), cut }
    }

    /// Cuts the tunnels that are open. How many were.
    pub(crate) fn cut_tunnels(&self) -> usize {
        let mut cut = self.cut.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *cut).cancel();
        self.tunnels.load(Relaxed)
    }

    pub(crate) fn stats(&self) -> ServiceStats {
        let counts = self.gate.counts();
        ServiceStats {
            held: counts.held,
            in_flight: counts.in_flight,
            tunnels: self.tunnels.load(Relaxed),
            requests: self.requests.load(Relaxed),
            forwarded: self.forwarded.load(Relaxed),
            failed: self.failed.load(Relaxed),
            longest_hold: counts.longest_hold,
        }
    }

    pub(crate) fn is_forgettable(&self) -> bool {
        self.tunnels.load(Relaxed) == 0 && self.gate.is_forgettable()
    }
}

impl Drop for TunnelSlot {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Relaxed);
    }
}

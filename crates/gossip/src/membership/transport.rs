//! Chitchat's transport over the wire. Nothing here waits for a peer: a message out is enqueued at
//! the wire, a message in waits in a bounded queue that drops the oldest, and receiving never
//! fails, since chitchat would end.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chitchat::transport::{Socket, Transport};
use chitchat::{ChitchatMessage, Deserializable, Serializable};
use flocker_base::{BootTime, Clock, StoreId};
use tokio::sync::Notify;

use super::chat_id;
use super::guard::{Guard, Reject, StateId};
use super::pace::Pace;
use crate::control::{Handler, Kind, Wire};

/// The most messages that wait for chitchat, and the most bytes in them.
const MAX_WAITING: usize = 256;
const MAX_WAITING_BYTES: usize = 4 * 1024 * 1024;

/// Time between two log lines about refused messages.
const QUIET: Duration = Duration::from_secs(10);

/// Messages that wait for chitchat, still encoded: they are decoded one at a time.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    waiting: Mutex<Waiting>,
    arrival: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    messages: VecDeque<(StoreId, Bytes)>,
    bytes: usize,
}

impl Inbox {
    pub(super) fn push(&self, from: StoreId, message: Bytes) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.bytes += message.len();
        waiting.messages.push_back((from, message));
        while waiting.messages.len() > MAX_WAITING || waiting.bytes > MAX_WAITING_BYTES {
            let Some((_, oldest)) = waiting.messages.pop_front() else { break };
            waiting.bytes -= oldest.len();
        }
        drop(waiting);
        self.arrival.notify_one();
    }

    pub(super) fn pop(&self) -> Option<(StoreId, Bytes)> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let (from, message) = waiting.messages.pop_front()?;
        waiting.bytes -= message.len();
        Some((from, message))
    }

    /// Cancel safe: a message is taken without waiting after it.
    pub(super) async fn next(&self) -> (StoreId, Bytes) {
        loop {
            if let Some(next) = self.pop() {
                return next;
            }
            self.arrival.notified().await;
        }
    }
}

/// Where the wire brings membership's messages: through the guard, into the inbox of the run that
/// is under way. Between runs they are dropped.
#[derive(Debug)]
pub(super) struct Inlet {
    kind: Kind,
    pool: String,
    clock: Arc<dyn Clock>,
    guard: Mutex<Guard>,
    inbox: Mutex<Option<Arc<Inbox>>>,
    refused: Mutex<Refused>,
}

#[derive(Debug, Default)]
struct Refused {
    logged: Option<BootTime>,
    since: u64,
    in_all: u64,
}

impl Inlet {
    /// The way in of the pool with this id, whose messages are of this kind.
    pub(super) fn new(me: StoreId, kind: Kind, pool: String, clock: Arc<dyn Clock>) -> Self {
        let guard = Mutex::new(Guard::new(me, pool.clone()));
        Self { kind, pool, clock, guard, inbox: Mutex::default(), refused: Mutex::default() }
    }

    pub(super) fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    pub(super) fn pool(&self) -> &str {
        &self.pool
    }

    /// Opens for a run of this generation.
    pub(super) fn open(&self, generation: u64) -> Arc<Inbox> {
        self.guard.lock().unwrap_or_else(PoisonError::into_inner).begin(generation);
        let inbox = Arc::new(Inbox::default());
        *self.inbox.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&inbox));
        inbox
    }

    pub(super) fn close(&self) {
        *self.inbox.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Tells the guard what chitchat holds.
    pub(super) fn keep(&self, held: &[StateId]) {
        self.guard.lock().unwrap_or_else(PoisonError::into_inner).keep(held);
    }

    /// Messages refused so far.
    #[cfg(test)]
    pub(super) fn refused(&self) -> u64 {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).in_all
    }

    /// How many states the guard remembers.
    #[cfg(test)]
    pub(super) fn states(&self) -> usize {
        self.guard.lock().unwrap_or_else(PoisonError::into_inner).states()
    }

    /// Whether a pool takes what comes in.
    #[cfg(test)]
    pub(super) fn is_open(&self) -> bool {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// A message for chitchat that the guard has not seen.
    #[cfg(test)]
    pub(super) fn push_unguarded(&self, from: StoreId, message: Bytes) {
        if let Some(inbox) = &*self.inbox.lock().unwrap_or_else(PoisonError::into_inner) {
            inbox.push(from, message);
        }
    }

    fn log_refused(&self, from: StoreId, reject: Reject) {
        if reject == Reject::Own {
            // A peer that answers an older digest of ours does this too.
            tracing::debug!(%from, reason = %reject, "a gossip message is not used");
            return;
        }
        let now = self.clock.boot();
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.since += 1;
        refused.in_all += 1;
        if refused.logged.is_some_and(|last| now.saturating_since(last) < QUIET) {
            return;
        }
        let messages = std::mem::take(&mut refused.since);
        refused.logged = Some(now);
        drop(refused);
        tracing::warn!(%from, reason = %reject, messages, "gossip messages were refused");
    }
}

#[async_trait]
impl Handler for Inlet {
    async fn on_message(&self, from: StoreId, payload: Bytes) {
        let inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(inbox) = inbox else { return };
        let judged = if payload.len() > self.kind.max_frame() {
            Err(Reject::Length)
        } else {
            self.guard.lock().unwrap_or_else(PoisonError::into_inner).admit(&payload)
        };
        match judged {
            Ok(()) => inbox.push(from, payload),
            Err(reject) => self.log_refused(from, reject),
        }
    }

    async fn on_call(&self, _from: StoreId, _payload: Bytes) -> Result<Bytes, String> {
        Err("membership answers no calls".to_owned())
    }
}

/// What chitchat opens: the way out over the wire, at the pool's pace, and the inbox.
#[derive(Clone)]
pub(super) struct Outlet {
    wire: Arc<dyn Wire>,
    kind: Kind,
    clock: Arc<dyn Clock>,
    inbox: Arc<Inbox>,
    pace: Arc<Mutex<Pace>>,
}

impl Outlet {
    pub(super) fn new(
        wire: Arc<dyn Wire>,
        inlet: &Inlet,
        inbox: Arc<Inbox>,
        pace: Arc<Mutex<Pace>>,
    ) -> Self {
        Self { wire, kind: inlet.kind, clock: Arc::clone(&inlet.clock), inbox, pace }
    }

    /// To whom a message goes out now. Only the first of an exchange may be left out, or go to
    /// another.
    fn aim(&self, to: StoreId, message: &ChitchatMessage) -> Option<StoreId> {
        if !matches!(message, ChitchatMessage::Syn { .. }) {
            return Some(to);
        }
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        pace.aim(self.clock.boot(), to, message.serialized_len())
    }
}

#[async_trait]
impl Transport for Outlet {
    async fn open(&self, _listen_addr: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        Ok(Box::new(self.clone()))
    }
}

#[async_trait]
impl Socket for Outlet {
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        let Some(store) = chat_id::store(to) else { return Ok(()) };
        let Some(store) = self.aim(store, &message) else { return Ok(()) };
        let bytes = message.serialize_to_vec();
        if bytes.len() > self.kind.max_frame() {
            tracing::error!(
                bytes = bytes.len(),
                most = self.kind.max_frame(),
                "the membership gossip has outgrown its messages, and peers no longer learn from \
                 this node: remove nodes that are gone, and look for nodes that start over and over"
            );
            return Ok(());
        }
        self.wire.send(store, self.kind, bytes.into());
        Ok(())
    }

    /// Cancel safe, and never an error.
    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        loop {
            let (from, bytes) = self.inbox.next().await;
            let mut rest = &bytes[..];
            match ChitchatMessage::deserialize(&mut rest) {
                Ok(message) if rest.is_empty() => return Ok((chat_id::address(from), message)),
                Ok(_) => tracing::warn!(%from, "a gossip message has bytes too many"),
                Err(error) => tracing::warn!(%from, %error, "a gossip message can't be read"),
            }
        }
    }
}

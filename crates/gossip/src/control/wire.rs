//! [`Wire`] over QUIC: the caller's side. It opens connections as needed and never sends to a
//! node that was removed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flocker_base::StoreId;
use flocker_quic::frame::{self, FrameError};
use flocker_quic::{Connection, Peers, QuicError};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::Notify;

use super::dispatch::Dispatch;
use super::outbox::{Lane, Outbox};
use super::serve::{DONE, MAX_REFUSAL, REFUSED, see_end};
use super::{Kind, Wire, WireError};

/// How long a message may wait for a connection and its place on it.
const SEND_DEADLINE: Duration = Duration::from_secs(3);

/// This node's way to its peers.
pub(super) struct QuicWire {
    pub(super) local: StoreId,
    pub(super) peers: Peers,
    pub(super) dispatch: Arc<Dispatch>,
    pub(super) outbox: Outbox,
    /// The lanes that have messages and nobody who sends them yet.
    ready: Mutex<VecDeque<Lane>>,
    wake: Notify,
}

#[async_trait]
impl Wire for QuicWire {
    fn local(&self) -> StoreId {
        self.local
    }

    fn send(&self, to: StoreId, kind: Kind, payload: Bytes) {
        if payload.len() > kind.max_frame() {
            tracing::error!(%to, ?kind, bytes = payload.len(), "a message is over the limit");
            return;
        }
        if self.outbox.push((to, kind), payload) {
            self.ready.lock().unwrap_or_else(PoisonError::into_inner).push_back((to, kind));
            self.wake.notify_one();
        }
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
        if self.dispatch.admission.is_removed(to) {
            return Err(WireError::Removed { to });
        }
        let answer = async {
            if to == self.local {
                return self.dispatch.call(to, kind, payload).await.map_err(WireError::Refused);
            }
            let bounds = self.dispatch.bounds(to);
            let _turn = bounds.outward(kind).acquire().await;
            let connection =
                self.peers.connection(to, deadline).await.map_err(|e| unreachable(to, &e))?;
            exchange(&connection, kind, &payload).await
        };
        match tokio::time::timeout(deadline, answer).await {
            Ok(result) => result,
            Err(_elapsed) => Err(WireError::Deadline { to, after: deadline }),
        }
    }

    async fn nothing_listens(&self, to: StoreId, within: Duration) -> bool {
        self.peers.nothing_listens(to, within).await
    }
}

impl QuicWire {
    pub(super) fn new(local: StoreId, peers: Peers, dispatch: Arc<Dispatch>) -> Self {
        Self {
            local,
            peers,
            dispatch,
            outbox: Outbox::default(),
            ready: Mutex::default(),
            wake: Notify::new(),
        }
    }

    /// The next lane that wants someone to send its messages. Cancel safe.
    pub(super) async fn next_lane(&self) -> Lane {
        loop {
            let woken = self.wake.notified();
            let next = self.ready.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            if let Some(lane) = next {
                return lane;
            }
            woken.await;
        }
    }

    /// Sends what waits in the lane, until nothing does. If the peer can't be reached, what waits
    /// is dropped: by the time it can, it would be old.
    pub(super) async fn send_all(self: Arc<Self>, lane: Lane) {
        let (to, kind) = lane;
        while let Some(payload) = self.outbox.take(lane) {
            if self.dispatch.admission.is_removed(to) {
                continue;
            }
            if to == self.local {
                self.dispatch.message(to, kind, payload).await;
                continue;
            }
            let sent = tokio::time::timeout(SEND_DEADLINE, self.deliver(lane, &payload)).await;
            let why = match sent {
                Ok(Ok(())) => continue,
                Ok(Err(why)) => why.to_string(),
                Err(_elapsed) => format!("it took more than {SEND_DEADLINE:?}"),
            };
            let dropped = self.outbox.clear(lane) + 1;
            tracing::debug!(%to, ?kind, dropped, "messages were dropped: {why}");
        }
    }

    async fn deliver(&self, (to, kind): Lane, payload: &[u8]) -> Result<(), WireError> {
        let connection =
            self.peers.connection(to, SEND_DEADLINE).await.map_err(|e| unreachable(to, &e))?;
        let mut stream = connection.open_uni().await.map_err(|e| unreachable(to, &e))?;
        stream.set_priority(kind.priority());
        frame::write_prefixed(&mut stream, &[kind as u8], payload)
            .await
            .map_err(|e| broken(to, e))?;
        stream.finish();
        Ok(())
    }
}

async fn exchange(connection: &Connection, kind: Kind, payload: &[u8]) -> Result<Bytes, WireError> {
    let to = connection.peer();
    let (mut send, mut recv) = connection.open_bi().await.map_err(|e| unreachable(to, &e))?;
    send.set_priority(kind.priority());
    let written = frame::write_prefixed(&mut send, &[kind as u8], payload).await;
    send.finish();
    // A peer that refuses a request need not read it to its end: its answer counts all the same.
    match (read_answer(&mut recv, kind).await, written) {
        (Ok(answer), _) => {
            // It comes with the answer, and the caller is not to wait for it.
            see_end(&mut recv, Duration::ZERO).await;
            answer.map_err(WireError::Refused)
        }
        (Err(AnswerError::None(_)), Err(e)) => Err(broken(to, e)),
        (Err(e), _) => Err(broken(to, e)),
    }
}

/// Why an answer could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum AnswerError {
    #[error(transparent)]
    None(std::io::Error),
    #[error("{0} begins no answer")]
    Status(u8),
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// Reads the answer to a request of this kind, or the refusal.
pub(super) async fn read_answer(
    stream: &mut (impl AsyncRead + Unpin),
    kind: Kind,
) -> Result<Result<Bytes, String>, AnswerError> {
    match stream.read_u8().await.map_err(AnswerError::None)? {
        DONE => Ok(Ok(frame::read_frame(stream, kind.max_frame()).await?)),
        REFUSED => {
            let text = frame::read_frame(stream, MAX_REFUSAL).await?;
            Ok(Err(String::from_utf8_lossy(&text).into_owned()))
        }
        other => Err(AnswerError::Status(other)),
    }
}

fn unreachable(to: StoreId, error: &QuicError) -> WireError {
    WireError::Unreachable { to, reason: error.to_string() }
}

fn broken(to: StoreId, error: impl std::fmt::Display) -> WireError {
    WireError::Broken { to, reason: error.to_string() }
}

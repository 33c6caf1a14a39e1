//! Serves what one peer sends over one connection. A peer that breaks the protocol loses the
//! stream it did so on, is named in the log, and changes nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use flocker_base::StoreId;
use flocker_quic::frame::{self, FrameError};
use flocker_quic::{CloseCode, Connection, REMOVED, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;

use super::Kind;
use super::dispatch::{Bounds, Dispatch};

/// The first byte of an answer.
pub(super) const DONE: u8 = 0;
/// The first byte of a refusal.
pub(super) const REFUSED: u8 = 1;
/// The longest text of a refusal that is sent, in bytes.
pub(super) const MAX_REFUSAL: usize = 4096;

/// How long a peer may take to send one request, and to take one answer.
const STREAM_DEADLINE: Duration = Duration::from_secs(10);
/// How long a request waits while as many of its kind as allowed are under way.
const TURN_DEADLINE: Duration = Duration::from_secs(5);
/// How long the end of a stream may come after all that counts of it.
const END_DEADLINE: Duration = Duration::from_secs(1);
/// Most streams of one connection under way at once; QUIC's own limit makes it rarely felt.
const MOST_STREAMS: usize = 512;

/// One connection's peer, as its streams see it.
struct Peer {
    store: StoreId,
    dispatch: Arc<Dispatch>,
    bounds: Arc<Bounds>,
    offences: AtomicU64,
}

/// The kind of request that a stream begins with.
pub(super) async fn read_kind(stream: &mut (impl AsyncRead + Unpin)) -> Result<Kind, String> {
    let number = stream.read_u8().await;
    let number = number.map_err(|e| format!("its stream ended before a kind: {e}"))?;
    Kind::from_wire(number)
        .ok_or_else(|| format!("{number} is no kind of message that this node knows"))
}

/// Takes notice of a stream's end. Otherwise QUIC asks the peer to stop what has long stopped, and
/// that is acknowledged: three packets more for each message.
pub(super) async fn see_end(stream: &mut (impl AsyncRead + Unpin), within: Duration) {
    // Whatever else may come is not wanted.
    let _ = tokio::time::timeout(within, stream.read_u8()).await;
}

/// What a peer did whose request could not be read.
fn offence(kind: Kind, error: &FrameError) -> String {
    match error {
        FrameError::TooLarge { .. } => format!("it sent {error} for {kind:?}"),
        _ => format!("its request of {kind:?} was cut short: {error}"),
    }
}

/// Serves the connection until it ends or its peer is removed; then lets those handlers finish
/// that have begun.
pub(super) async fn serve(connection: Connection, dispatch: Arc<Dispatch>) {
    let store = connection.peer();
    let bounds = dispatch.bounds(store);
    let peer = Arc::new(Peer { store, dispatch, bounds, offences: AtomicU64::new(0) });
    let mut streams = JoinSet::new();
    loop {
        let room = streams.len() < MOST_STREAMS;
        tokio::select! {
            opened = connection.accept_bi(), if room => match opened {
                Ok((send, recv)) if peer.counts(&connection) => {
                    streams.spawn(Arc::clone(&peer).call(send, recv));
                }
                _ => break,
            },
            opened = connection.accept_uni(), if room => match opened {
                Ok(recv) if peer.counts(&connection) => {
                    streams.spawn(Arc::clone(&peer).message(recv));
                }
                _ => break,
            },
            Some(ended) = streams.join_next(), if !streams.is_empty() => report(ended),
        }
    }
    if connection.refused_as_no_member() {
        peer.dispatch.admission.refused_by(store);
    }
    while let Some(ended) = streams.join_next().await {
        report(ended);
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(e) = ended {
        tracing::error!("a handler panicked: {e}");
    }
}

impl Peer {
    /// Whether the peer is still of the cluster; if not, its connection is closed.
    fn counts(&self, connection: &Connection) -> bool {
        let removed = self.dispatch.admission.is_removed(self.store);
        if removed {
            connection.close(CloseCode::NotAMember, REMOVED);
        }
        !removed
    }

    async fn message(self: Arc<Self>, mut recv: RecvStream) {
        match self.request(&mut recv).await {
            Ok((kind, payload, _turn)) => {
                self.dispatch.message(self.store, kind, payload).await;
                see_end(&mut recv, END_DEADLINE).await;
            }
            Err(offence) => {
                recv.stop(CloseCode::Protocol);
                self.complain(&offence);
            }
        }
    }

    async fn call(self: Arc<Self>, mut send: SendStream, mut recv: RecvStream) {
        let (kind, answer) = match self.request(&mut recv).await {
            Ok((kind, payload, _turn)) => {
                (Some(kind), self.dispatch.call(self.store, kind, payload).await)
            }
            Err(offence) => {
                recv.stop(CloseCode::Protocol);
                self.complain(&offence);
                (None, Err(offence))
            }
        };
        send.set_priority(kind.map_or(0, Kind::priority));
        let write = async {
            match &answer {
                Ok(answer) => frame::write_prefixed(&mut send, &[DONE], answer).await,
                Err(text) => {
                    let text = &text.as_bytes()[..text.len().min(MAX_REFUSAL)];
                    frame::write_prefixed(&mut send, &[REFUSED], text).await
                }
            }
        };
        match tokio::time::timeout(STREAM_DEADLINE, write).await {
            Ok(Ok(())) => {
                send.finish();
                see_end(&mut recv, END_DEADLINE).await;
            }
            // The caller is gone, or does not read: it sees the end of the stream.
            Ok(Err(_)) | Err(_) => send.reset(CloseCode::Busy),
        }
    }

    /// Reads a request, once it is its turn.
    async fn request(
        &self,
        recv: &mut RecvStream,
    ) -> Result<(Kind, Bytes, OwnedSemaphorePermit), String> {
        let late = |_elapsed| "it did not send its request in time".to_owned();
        let kind = tokio::time::timeout(STREAM_DEADLINE, read_kind(recv)).await.map_err(late)??;
        let turn = Arc::clone(self.bounds.inward(kind)).acquire_owned();
        let Ok(Ok(turn)) = tokio::time::timeout(TURN_DEADLINE, turn).await else {
            return Err(format!("too much of {kind:?} at once"));
        };
        let read = frame::read_frame(recv, kind.max_frame());
        match tokio::time::timeout(STREAM_DEADLINE, read).await.map_err(late)? {
            Ok(payload) => Ok((kind, payload, turn)),
            Err(e) => Err(offence(kind, &e)),
        }
    }

    /// One line for the first, the second, the fourth offence and so on.
    fn complain(&self, offence: &str) {
        let offences = self.offences.fetch_add(1, Ordering::Relaxed) + 1;
        if offences.is_power_of_two() {
            tracing::warn!(peer = %self.store, offences, "refused a request: {offence}");
        }
    }
}

//! A connection to an authenticated peer, and its streams. It is only made by [`crate::endpoint`]
//! once the peer's certificate was checked, and offers no way to change who the peer is.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use flocker_base::StoreId;
use quinn::VarInt;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::error::QuicError;

/// Why a connection or a stream is ended, as the other side sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum CloseCode {
    /// Done; nothing is wrong.
    Done = 0,
    /// The node shuts down.
    Shutdown = 1,
    /// A second connection between the same nodes is in use instead.
    Superseded = 2,
    /// The peer is not, or no longer, of this cluster.
    NotAMember = 3,
    /// The peer broke the protocol.
    Protocol = 4,
    /// Too much at once; try again.
    Busy = 5,
    /// The host says that nothing listens there any more.
    Gone = 6,
}

/// What a removed node is told when it is refused.
pub const REMOVED: &str = "this node was removed from the cluster; move its state folder away and \
                           join as a new node";

impl From<CloseCode> for VarInt {
    fn from(code: CloseCode) -> Self {
        Self::from_u32(code as u32)
    }
}

/// A live connection to an authenticated peer. Clones are the same connection; it ends when
/// closed, when the peer falls silent, or when the last clone and stream is dropped.
#[derive(Clone, Debug)]
pub struct Connection {
    quic: quinn::Connection,
    peer: StoreId,
    dialled: bool,
    open: Arc<OpenStreams>,
}

/// What has passed over a connection so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// Datagrams received.
    pub(crate) heard: u64,
    /// Frames sent that the peer must acknowledge.
    pub(crate) asked: u64,
}

/// Stream halves in use hold a count each of the inner one.
#[derive(Debug, Default)]
struct OpenStreams {
    token: Arc<()>,
}

/// The certificate that the other side showed for itself.
pub(crate) fn leaf(quic: &quinn::Connection) -> Option<CertificateDer<'static>> {
    let chain = quic.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    chain.first().cloned()
}

impl Connection {
    pub(crate) fn new(quic: quinn::Connection, peer: StoreId, dialled: bool) -> Self {
        Self { quic, peer, dialled, open: Arc::default() }
    }

    /// Whose certificate the other side showed.
    #[must_use]
    pub const fn peer(&self) -> StoreId {
        self.peer
    }

    /// The certificate that the other side showed when the connection began, DER.
    #[must_use]
    pub fn peer_certificate(&self) -> Option<Vec<u8>> {
        leaf(&self.quic).map(|leaf| leaf.to_vec())
    }

    /// Whether this node dialled it.
    #[must_use]
    pub const fn dialled(&self) -> bool {
        self.dialled
    }

    /// Where the peer is at present.
    #[must_use]
    pub fn remote_addr(&self) -> SocketAddr {
        canonical(self.quic.remote_address())
    }

    /// The present estimate of the round trip.
    #[must_use]
    pub fn rtt(&self) -> Duration {
        self.quic.rtt()
    }

    /// The datagram size that path discovery has reached, in bytes.
    #[must_use]
    pub fn mtu(&self) -> u16 {
        self.quic.stats().path.current_mtu
    }

    /// Opens a stream in both directions. Waits while the peer allows no more. Cancel safe.
    /// The peer sees it only once something is written.
    ///
    /// # Errors
    /// [`QuicError::Closed`].
    pub async fn open_bi(&self) -> Result<(SendStream, RecvStream), QuicError> {
        let (send, recv) = self.quic.open_bi().await.map_err(|e| self.ended(&e))?;
        Ok((self.send_stream(send), self.recv_stream(recv)))
    }

    /// Opens a stream to the peer. Waits while the peer allows no more. Cancel safe.
    ///
    /// # Errors
    /// [`QuicError::Closed`].
    pub async fn open_uni(&self) -> Result<SendStream, QuicError> {
        self.quic.open_uni().await.map(|s| self.send_stream(s)).map_err(|e| self.ended(&e))
    }

    /// The next stream in both directions that the peer opened. Cancel safe.
    ///
    /// # Errors
    /// [`QuicError::Closed`].
    pub async fn accept_bi(&self) -> Result<(SendStream, RecvStream), QuicError> {
        let (send, recv) = self.quic.accept_bi().await.map_err(|e| self.ended(&e))?;
        Ok((self.send_stream(send), self.recv_stream(recv)))
    }

    /// The next stream to this node that the peer opened. Cancel safe.
    ///
    /// # Errors
    /// [`QuicError::Closed`].
    pub async fn accept_uni(&self) -> Result<RecvStream, QuicError> {
        self.quic.accept_uni().await.map(|s| self.recv_stream(s)).map_err(|e| self.ended(&e))
    }

    /// Ends it at once, streams and all. The peer is told the code and the reason.
    pub fn close(&self, code: CloseCode, reason: &str) {
        self.quic.close(code.into(), reason.as_bytes());
    }

    /// Waits until it has ended and says why, as a [`QuicError::Closed`]. Cancel safe.
    pub async fn closed(&self) -> QuicError {
        let error = self.quic.closed().await;
        self.ended(&error)
    }

    /// Whether it has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.quic.close_reason().is_some()
    }

    /// Whether the peer ended it because this node is not, or no longer, of its cluster.
    #[must_use]
    pub fn refused_as_no_member(&self) -> bool {
        let no_member = VarInt::from(CloseCode::NotAMember);
        matches!(
            self.quic.close_reason(),
            Some(quinn::ConnectionError::ApplicationClosed(close)) if close.error_code == no_member
        )
    }

    /// How many stream halves this node has in use on it.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        Arc::strong_count(&self.open.token) - 1
    }

    /// A number that no other connection of this process has while this one lives.
    pub(crate) fn id(&self) -> usize {
        self.quic.stable_id()
    }

    /// How much was heard of the peer so far, and how much was sent that it must answer.
    pub(crate) fn traffic(&self) -> Traffic {
        let stats = self.quic.stats();
        let sent = stats.frame_tx;
        // All but acknowledgements and closes, which nobody acknowledges (RFC 9000, section 13.2).
        let asked = [
            sent.ack_frequency,
            sent.crypto,
            sent.data_blocked,
            sent.datagram,
            sent.handshake_done.into(),
            sent.immediate_ack,
            sent.max_data,
            sent.max_stream_data,
            sent.max_streams_bidi,
            sent.max_streams_uni,
            sent.new_connection_id,
            sent.new_token,
            sent.path_challenge,
            sent.path_response,
            sent.ping,
            sent.reset_stream,
            sent.retire_connection_id,
            sent.stream,
            sent.stream_data_blocked,
            sent.streams_blocked_bidi,
            sent.streams_blocked_uni,
            sent.stop_sending,
        ];
        Traffic {
            heard: stats.udp_rx.datagrams,
            asked: asked.into_iter().fold(0, u64::wrapping_add),
        }
    }

    /// Bytes that the two ends of this connection, and no others, share: alike on both.
    #[cfg(test)]
    pub(crate) fn session(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        self.quic.export_keying_material(&mut bytes, b"EXPORTER-test", b"").expect("exporter");
        bytes
    }

    pub(crate) fn local_ip(&self) -> Option<IpAddr> {
        self.quic.local_ip().map(|ip| ip.to_canonical())
    }

    fn send_stream(&self, quic: quinn::SendStream) -> SendStream {
        SendStream { quic, _open: Arc::clone(&self.open.token) }
    }

    fn recv_stream(&self, quic: quinn::RecvStream) -> RecvStream {
        RecvStream { quic, _open: Arc::clone(&self.open.token) }
    }

    fn ended(&self, error: &quinn::ConnectionError) -> QuicError {
        QuicError::Closed { peer: self.peer, reason: error.to_string() }
    }
}

/// The sending half of a stream. Dropped, it ends as if finished: whoever reads must tell a whole
/// message from a cut one by its frame.
#[derive(Debug)]
pub struct SendStream {
    quic: quinn::SendStream,
    _open: Arc<()>,
}

impl SendStream {
    /// Says that nothing follows. What was written still arrives; this does not wait for it.
    pub fn finish(&mut self) {
        // The only error is that it was finished or reset before.
        let _ = self.quic.finish();
    }

    /// Gives the stream up: what has not arrived may be lost, and the peer is told the code.
    pub fn reset(&mut self, code: CloseCode) {
        // The only error is that it was finished or reset before.
        let _ = self.quic.reset(code.into());
    }

    /// Which stream of a connection goes first when not all can: the higher. 0 by default.
    pub fn set_priority(&self, priority: i32) {
        // The only error is that it was finished or reset before.
        let _ = self.quic.set_priority(priority);
    }

    /// Waits until the peer has all of a finished stream (`true`), or wants no more of it, or the
    /// connection has ended (`false`).
    pub async fn delivered(&mut self) -> bool {
        matches!(self.quic.stopped().await, Ok(None))
    }
}

impl AsyncWrite for SendStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.quic), cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.quic).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.quic).poll_shutdown(cx)
    }
}

/// The receiving half of a stream. Dropped before its end, the peer is told to stop.
#[derive(Debug)]
pub struct RecvStream {
    quic: quinn::RecvStream,
    _open: Arc<()>,
}

impl RecvStream {
    /// Tells the peer that no more of this stream is wanted.
    pub fn stop(&mut self, code: CloseCode) {
        // The only error is that it has ended.
        let _ = self.quic.stop(code.into());
    }
}

impl AsyncRead for RecvStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        AsyncRead::poll_read(Pin::new(&mut self.quic), cx, buffer)
    }
}

/// An IPv4 address as such, also where the socket serves both families.
pub(crate) fn canonical(at: SocketAddr) -> SocketAddr {
    SocketAddr::new(at.ip().to_canonical(), at.port())
}

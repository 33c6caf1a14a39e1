//! The exchange with a client that has no certificate yet: one bounded frame each way, under a
//! deadline. What the frames say is the caller's affair; this module trusts neither side's words.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::ClientConfig;

use crate::config::EndpointConfig;
use crate::connection::{CloseCode, canonical};
use crate::error::{DialFailure, QuicError};
use crate::frame::{self, FrameError};
use crate::{probe, socket, tls};

/// The label under which both sides of a join export the session's secret (RFC 5705).
pub const JOIN_EXPORTER_LABEL: &[u8] = b"EXPORTER-flocker-join-v1";
/// The largest request to join, in bytes.
pub const MAX_JOIN_REQUEST: usize = 16 * 1024;
/// The largest answer to a request to join, in bytes.
pub const MAX_JOIN_REPLY: usize = 256 * 1024;

/// A TLS session between a node and a client that has no certificate. Dropped, it is closed.
#[derive(Debug)]
pub struct JoinerConnection {
    quic: quinn::Connection,
    /// The newcomer's own endpoint, which must live as long as the connection.
    endpoint: Option<quinn::Endpoint>,
    stream: Option<quinn::SendStream>,
}

impl JoinerConnection {
    pub(crate) fn accepted(quic: quinn::Connection) -> Self {
        Self { quic, endpoint: None, stream: None }
    }

    /// Where the other side is.
    #[must_use]
    pub fn remote_addr(&self) -> SocketAddr {
        canonical(self.quic.remote_address())
    }

    /// Bytes that only the two ends of this very TLS session know: what a proof must cover so that
    /// it can't be used in another session.
    ///
    /// # Errors
    /// [`QuicError::Join`] if TLS has none to give.
    pub fn exporter(&self, label: &[u8]) -> Result<[u8; 32], QuicError> {
        let mut bytes = [0; 32];
        match self.quic.export_keying_material(&mut bytes, label, b"") {
            Ok(()) => Ok(bytes),
            Err(_no_material) => Err(self.broken("TLS exported no secret".to_owned())),
        }
    }

    /// The newcomer's part: sends the request and waits for the answer, once.
    ///
    /// # Errors
    /// [`QuicError::Join`] or [`QuicError::JoinFrame`]; the other side may or may not have acted.
    pub async fn exchange(self, request: &[u8], deadline: Duration) -> Result<Bytes, QuicError> {
        let exchange = async {
            let (mut send, mut recv) = self.quic.open_bi().await.map_err(|e| self.lost(&e))?;
            frame::write_frame(&mut send, request).await.map_err(|e| self.frame(e))?;
            // The only error is that it was finished before.
            let _ = send.finish();
            frame::read_frame(&mut recv, MAX_JOIN_REPLY).await.map_err(|e| self.frame(e))
        };
        let answer = self.within(deadline, exchange).await?;
        self.quic.close(CloseCode::Done.into(), b"answered");
        if let Some(endpoint) = &self.endpoint {
            // Lets the other side hear of it, so that it need not wait for its own deadline.
            let flush = tokio::time::timeout(Duration::from_millis(100), endpoint.wait_idle());
            let _heard_or_not = flush.await;
        }
        Ok(answer)
    }

    /// The node's part: the client's request, once.
    ///
    /// # Errors
    /// [`QuicError::Join`] or [`QuicError::JoinFrame`]: then drop the connection.
    pub async fn receive(&mut self, deadline: Duration) -> Result<Bytes, QuicError> {
        let receive = async {
            let (send, mut recv) = self.quic.accept_bi().await.map_err(|e| self.lost(&e))?;
            let request = frame::read_frame(&mut recv, MAX_JOIN_REQUEST).await;
            Ok((send, request.map_err(|e| self.frame(e))?))
        };
        let (send, request) = self.within(deadline, receive).await?;
        self.stream = Some(send);
        Ok(request)
    }

    /// The node's part: the answer, once; waits until the client has it.
    ///
    /// # Errors
    /// [`QuicError::Join`] or [`QuicError::JoinFrame`]; the client may or may not have it.
    pub async fn reply(mut self, answer: &[u8], deadline: Duration) -> Result<(), QuicError> {
        let Some(mut send) = self.stream.take() else {
            return Err(self.broken("nothing was asked".to_owned()));
        };
        let reply = async {
            frame::write_frame(&mut send, answer).await.map_err(|e| self.frame(e))?;
            // The only error is that it was finished before.
            let _ = send.finish();
            // The client closes the connection once it has the answer: either will do.
            let _delivered = send.stopped().await;
            Ok(())
        };
        self.within(deadline, reply).await
    }

    /// Ends it without an answer.
    pub fn refuse(self, reason: &str) {
        self.quic.close(CloseCode::NotAMember.into(), reason.as_bytes());
    }

    async fn within<T>(
        &self,
        deadline: Duration,
        work: impl Future<Output = Result<T, QuicError>>,
    ) -> Result<T, QuicError> {
        match tokio::time::timeout(deadline, work).await {
            Ok(result) => result,
            Err(_elapsed) => {
                self.quic.close(CloseCode::Busy.into(), b"too slow");
                Err(QuicError::Join {
                    at: self.remote_addr(),
                    reason: DialFailure::Silent(deadline),
                })
            }
        }
    }

    fn lost(&self, error: &quinn::ConnectionError) -> QuicError {
        self.broken(error.to_string())
    }

    fn broken(&self, why: String) -> QuicError {
        QuicError::Join { at: self.remote_addr(), reason: DialFailure::Broken(why) }
    }

    fn frame(&self, error: FrameError) -> QuicError {
        QuicError::JoinFrame { at: self.remote_addr(), source: Arc::new(error) }
    }
}

/// A newcomer's connection to a node of the cluster whose CA certificate has this SHA-256. It
/// shows no certificate. Whoever can't show a chain that ends in that CA is refused.
///
/// # Errors
/// [`QuicError::Join`] with the reason.
pub async fn connect_to_join(
    at: SocketAddr,
    ca_fingerprint: [u8; 32],
    deadline: Duration,
) -> Result<JoinerConnection, QuicError> {
    let failed = |reason| QuicError::Join { at, reason };
    let from: SocketAddr = match at {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let runtime = quinn::default_runtime().ok_or(QuicError::NoRuntime)?;
    let settings = EndpointConfig::control(from);
    let socket = socket::bind(from, 256 << 10)?;
    let endpoint = quinn::Endpoint::new(quinn::EndpointConfig::default(), None, socket, runtime)
        .map_err(|source| QuicError::Socket {
            action: "run a QUIC endpoint on",
            at: from,
            source: Arc::new(source),
        })?;
    let mut config = ClientConfig::new(tls::joiner(ca_fingerprint)?);
    config.transport_config(settings.transport(true)?);
    // The name is for TLS's form only: which node answers does not matter.
    let connecting = endpoint
        .connect_with(config, at, "join.node.flocker")
        .map_err(|e| failed(DialFailure::Local(e.to_string())))?;
    let handshake = tokio::time::timeout(deadline, connecting);
    tokio::select! {
        done = handshake => match done {
            Ok(Ok(quic)) => {
                Ok(JoinerConnection { quic, endpoint: Some(endpoint), stream: None })
            }
            Ok(Err(e)) => Err(failed(DialFailure::from_handshake(&e, deadline))),
            Err(_elapsed) => Err(failed(DialFailure::Silent(deadline))),
        },
        () = probe::nothing_listens(from.ip(), at) => Err(failed(DialFailure::NothingListens)),
    }
}

//! The way to a peer's proxy, as the agent provides it. This crate opens no QUIC connection itself.

use std::io;

use async_trait::async_trait;
use flocker_base::StoreId;
use tokio::io::{AsyncRead, AsyncWrite};

/// A stream of bytes both ways.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Opens streams to the proxies of peers.
#[async_trait]
pub trait Dial: Send + Sync {
    /// Opens a stream that the peer hands to its own `serve_forwarded`. Nothing is sent on it yet.
    ///
    /// # Errors
    /// Whatever keeps the peer from being reached; the request then waits.
    async fn open(&self, node: StoreId) -> io::Result<Box<dyn Stream>>;
}

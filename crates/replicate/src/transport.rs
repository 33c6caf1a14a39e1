//! How a stream to a peer is opened. Given by whoever owns the connections; nothing here dials.

use std::io;

use async_trait::async_trait;
use flocker_base::StoreId;
use tokio::io::{AsyncRead, AsyncWrite};

/// One ordered, reliable stream to an authenticated peer.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Opens streams to peers.
#[async_trait]
pub trait Transport: Send + Sync + std::fmt::Debug {
    /// Opens a stream to this peer. Bounded in time by the caller.
    async fn open(&self, to: StoreId) -> io::Result<Box<dyn Stream>>;
}

//! The data port (4524/udp): one QUIC endpoint for replication and forwarded requests, apart from
//! the control port so that no amount of data delays a heartbeat. It moves streams and never looks
//! into them beyond their first byte.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use flocker_base::StoreId;
use flocker_gossip::control::Admission;
use flocker_proxy::Proxy;
use flocker_quic::{
    Accepted, CloseCode, Connection, Endpoint, Peers, REMOVED, RecvStream, SendStream,
};
use flocker_replicate::Replicator;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Time for a connection to a peer to stand.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// Time for a stream's first byte to come.
const FIRST_BYTE_DEADLINE: Duration = Duration::from_secs(10);

/// What a stream is for: its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Use {
    Replicate = 1,
    Forward = 2,
}

/// Opens streams to peers' data ports.
#[derive(Clone)]
pub(super) struct DataDialer {
    peers: Peers,
    admission: Arc<dyn Admission>,
}

impl std::fmt::Debug for DataDialer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DataDialer")
    }
}

impl DataDialer {
    pub(super) fn new(peers: Peers, admission: Arc<dyn Admission>) -> Self {
        Self { peers, admission }
    }

    async fn open(&self, to: StoreId, for_what: Use) -> io::Result<DataStream> {
        if self.admission.is_removed(to) {
            return Err(io::Error::other("that node was removed from the cluster"));
        }
        let connection =
            self.peers.connection(to, CONNECT_DEADLINE).await.map_err(io::Error::other)?;
        let (mut send, recv) = connection.open_bi().await.map_err(io::Error::other)?;
        send.write_all(&[for_what as u8]).await?;
        Ok(DataStream { send, recv })
    }
}

#[async_trait]
impl flocker_replicate::Transport for DataDialer {
    async fn open(&self, to: StoreId) -> io::Result<Box<dyn flocker_replicate::Stream>> {
        Ok(Box::new(self.open(to, Use::Replicate).await?))
    }
}

#[async_trait]
impl flocker_proxy::Dial for DataDialer {
    async fn open(&self, node: StoreId) -> io::Result<Box<dyn flocker_proxy::Stream>> {
        Ok(Box::new(self.open(node, Use::Forward).await?))
    }
}

/// Who takes what arrives on the data port, and from whom nothing is taken.
pub(super) struct DataPort {
    pub(super) replicator: Replicator,
    pub(super) proxy: Proxy,
    pub(super) admission: Arc<dyn Admission>,
}

impl DataPort {
    /// Whether the peer is of the cluster; if it was removed, its connection is closed.
    fn counts(&self, connection: &Connection) -> bool {
        if self.admission.is_stranger(connection.peer()) {
            connection.close(CloseCode::Busy, "this node was not told of your admission yet");
            return false;
        }
        let removed = self.admission.is_removed(connection.peer());
        if removed {
            tracing::warn!(
                peer = %connection.peer(), remote = %connection.remote_addr(),
                "refused a data connection: this node was removed from the cluster"
            );
            connection.close(CloseCode::NotAMember, REMOVED);
        }
        !removed
    }
}

/// Serves the data port until told to stop.
pub(super) async fn run(endpoint: Endpoint, peers: Peers, port: DataPort, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    let services = Arc::new(port);
    loop {
        let connection = tokio::select! {
            () = stop.cancelled() => return,
            Some(done) = connections.join_next() => {
                if let Err(error) = done {
                    tracing::error!(%error, "a data connection's task failed");
                }
                continue;
            }
            accepted = endpoint.accept() => match accepted {
                Some(Accepted::Peer(connection)) => {
                    if !services.counts(&connection) {
                        continue;
                    }
                    peers.adopt(connection.clone());
                    connection
                }
                Some(Accepted::Joiner(_)) => {
                    tracing::warn!("a join on the data port: refused");
                    continue;
                }
                None => return,
            },
            connection = peers.dialled() => connection,
        };
        connections.spawn(serve(connection, Arc::clone(&services)));
    }
}

/// Serves the streams that a peer opens on one connection. Their number is bounded by the
/// endpoint's configuration.
async fn serve(connection: Connection, services: Arc<DataPort>) {
    let from = connection.peer();
    let mut streams = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept_bi() => accepted,
            Some(done) = streams.join_next() => {
                if let Err(error) = done {
                    tracing::error!(%error, "a data stream's task failed");
                }
                continue;
            }
        };
        match accepted {
            Ok(_) if !services.counts(&connection) => return,
            Ok((send, recv)) => {
                let services = Arc::clone(&services);
                streams.spawn(async move {
                    serve_stream(from, DataStream { send, recv }, &services).await;
                });
            }
            Err(reason) => {
                tracing::debug!(from = %from.short(), %reason, "a data connection ended");
                if connection.refused_as_no_member() {
                    services.admission.refused_by(from);
                }
                return;
            }
        }
    }
}

async fn serve_stream(from: StoreId, mut stream: DataStream, services: &DataPort) {
    let first = tokio::time::timeout(FIRST_BYTE_DEADLINE, stream.recv.read_u8()).await;
    match first {
        Ok(Ok(b)) if b == Use::Replicate as u8 => {
            services.replicator.serve(from, Box::new(stream)).await;
        }
        Ok(Ok(b)) if b == Use::Forward as u8 => {
            services.proxy.serve_forwarded(from, Box::new(stream)).await;
        }
        Ok(Ok(other)) => {
            tracing::warn!(from = %from.short(), other, "a data stream of no known use: refused");
            stream.send.reset(CloseCode::Protocol);
        }
        Ok(Err(error)) => tracing::debug!(from = %from.short(), %error, "an empty data stream"),
        Err(_late) => tracing::warn!(from = %from.short(), "a data stream said nothing: closed"),
    }
}

/// Both halves of a QUIC stream as one.
struct DataStream {
    send: SendStream,
    recv: RecvStream,
}

impl AsyncRead for DataStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.recv).poll_read(cx, buf)
    }
}

impl AsyncWrite for DataStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.send).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.send).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.send).poll_shutdown(cx)
    }
}

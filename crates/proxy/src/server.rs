//! Connections from clients and peers: accepted within limits, served as one task each, ended in
//! order. What a request leads to is the exchange's business.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use flocker_base::StoreId;
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1::{Builder, Connection};
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::body::{BodyContext, BodyFate};
use crate::dial::Stream;
use crate::headers::Origin;
use crate::proxy::Shared;
use crate::session::Session;
use crate::tunnel;
use crate::watch::{Check, Limits, Phase, Watch};

const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain\r\n\
    retry-after: 1\r\nconnection: close\r\ncontent-length: 70\r\n\r\n\
    flocker: this node has as many connections open as it takes; try again";
const LATE: &[u8] = b"HTTP/1.1 408 Request Timeout\r\ncontent-type: text/plain\r\n\
    connection: close\r\ncontent-length: 49\r\n\r\n\
    flocker: the request head did not come in time.\r\n";
/// Time to hand a parting word to a client.
const PARTING: Duration = Duration::from_secs(1);

/// Accepts public connections until `shutdown`, then lets them finish for a while.
pub(crate) async fn serve(shared: Arc<Shared>, listener: TcpListener, shutdown: CancellationToken) {
    let places = Arc::new(Semaphore::new(shared.config.max_connections));
    let clients = Arc::new(Clients::default());
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(ended) = connections.join_next(), if !connections.is_empty() => {
                note_end(ended);
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, from)) => {
                let place = Arc::clone(&places).try_acquire_owned().ok();
                let client = clients.admit(from.ip(), shared.config.max_connections_per_client);
                let (Some(place), Some(client)) = (place, client) else {
                    turn_away(&shared, &stream, from);
                    continue;
                };
                let shared = Arc::clone(&shared);
                let shutdown = shutdown.clone();
                connections.spawn(serve_client(shared, stream, from, (place, client), shutdown));
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed; pausing");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    let grace = shared.config.shutdown_grace;
    let all = async {
        while let Some(ended) = connections.join_next().await {
            note_end(ended);
        }
    };
    if tokio::time::timeout(grace, all).await.is_err() {
        tracing::warn!(left = connections.len(), ?grace, "connections cut at shutdown");
        connections.shutdown().await;
    }
}

/// Serves the requests that a peer forwards on one stream.
pub(crate) async fn serve_forwarded(shared: Arc<Shared>, from: StoreId, stream: Box<dyn Stream>) {
    let shutdown = shared.context.closing.clone();
    serve_one(shared, Origin::Peer(from), stream, &shutdown).await;
}

async fn serve_client(
    shared: Arc<Shared>,
    stream: TcpStream,
    from: SocketAddr,
    _places: (OwnedSemaphorePermit, ClientSlot),
    shutdown: CancellationToken,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, %from, "the client went away at once");
        return;
    }
    let origin = Origin::client(from.ip(), &shared.config.forwarded);
    serve_one(shared, origin, stream, &shutdown).await;
}

async fn serve_one<S>(shared: Arc<Shared>, origin: Origin, stream: S, shutdown: &CancellationToken)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let forwarded = shared.config.forwarded_response_timeout();
    let (limits, first) = if origin.is_peer() {
        (Limits::peer(&shared.config, forwarded), Phase::Idle)
    } else {
        (Limits::client(&shared.config, forwarded), Phase::Head)
    };
    let watch = Arc::new(Watch::new(Arc::clone(&shared.context.clock), limits, first));
    let context = BodyContext { watch: Arc::clone(&watch), fate: BodyFate::default() };
    let session = Arc::new(Session {
        shared: Arc::clone(&shared),
        origin,
        context: Arc::new(context),
        tunnel: Mutex::new(None),
    });
    let handler = Arc::clone(&session);
    let service = service_fn(move |request| Arc::clone(&handler).exchange(request));
    let io = TokioIo::new(Watched { io: stream, watch: Arc::clone(&watch) });
    let mut connection = Builder::new()
        .header_read_timeout(None)
        .max_header_size(shared.config.max_header_bytes)
        .serve_connection(io, service);
    let ended = watched(&mut connection, &watch, shutdown).await;
    let parts = connection.into_parts();
    let client = parts.io.into_inner().io;
    let tunnel = session.tunnel.lock().unwrap_or_else(PoisonError::into_inner).take();
    match (ended, tunnel) {
        (Ok(Ok(())), Some(tunnel)) => {
            let idle = shared.config.tunnel_idle;
            tunnel::run(client, parts.read_buf, tunnel, idle, shutdown).await;
        }
        (Ok(Ok(())), None) => {}
        (Ok(Err(error)), _) => {
            tracing::debug!(%error, from = session.origin.shown(), "a connection ended badly");
        }
        (Err(Check::Head), _) if !parts.read_buf.is_empty() => part(client).await,
        (Err(late), _) => {
            tracing::debug!(?late, from = session.origin.shown(), "a connection was closed");
        }
    }
}

/// Runs a connection to its end, or until its deadlines say that it is to be closed.
async fn watched<C>(
    connection: &mut C,
    watch: &Watch,
    shutdown: &CancellationToken,
) -> Result<hyper::Result<()>, Check>
where
    C: Future<Output = hyper::Result<()>> + Graceful + Unpin,
{
    let mut look = pin!(tokio::time::sleep(watch.first_check()));
    let mut ending = pin!(shutdown.cancelled());
    let mut is_ending = false;
    loop {
        let late = tokio::select! {
            biased;
            ended = &mut *connection => return Ok(ended),
            () = &mut look => watch.check(),
            () = &mut ending, if !is_ending => {
                is_ending = true;
                connection.finish_soon();
                continue;
            }
        };
        match late {
            Check::Later(pause) => look.set(tokio::time::sleep(pause)),
            // The next poll of the connection finds what it was told.
            Check::Tell => look.set(tokio::time::sleep(Duration::from_millis(1))),
            Check::Idle | Check::Head | Check::Cut => return Err(late),
        }
    }
}

/// A connection that can be asked to take no further request.
trait Graceful {
    fn finish_soon(&mut self);
}

impl<I, B, S> Graceful for Connection<I, S>
where
    S: HttpService<Incoming, ResBody = B>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    B: Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn finish_soon(&mut self) {
        Pin::new(self).graceful_shutdown();
    }
}

/// Tells a client that its request head came too slowly.
async fn part<S: AsyncWrite + Unpin>(mut client: S) {
    let word = async {
        client.write_all(LATE).await?;
        client.shutdown().await
    };
    if !matches!(tokio::time::timeout(PARTING, word).await, Ok(Ok(()))) {
        tracing::debug!("a slow client did not take its 408");
    }
}

/// Tells a client, as far as that can be done without waiting, that there is no room.
fn turn_away(shared: &Shared, stream: &TcpStream, from: SocketAddr) {
    let told = stream.try_write(FULL).is_ok();
    if let Some(held_back) = shared.throttle.allow(shared.context.clock.boot()) {
        tracing::warn!(%from, told, held_back, "connection refused: as many are open as may be");
    }
}

fn note_end(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "serving a connection panicked");
    }
}

/// How many connections each client has open.
#[derive(Debug, Default)]
struct Clients(Mutex<HashMap<IpAddr, usize>>);

/// One of a client's connections.
struct ClientSlot(Option<(Arc<Clients>, IpAddr)>);

impl Clients {
    /// Counts one more, unless the client has `most` already (0: no limit).
    fn admit(self: &Arc<Self>, ip: IpAddr, most: usize) -> Option<ClientSlot> {
        if most == 0 {
            return Some(ClientSlot(None));
        }
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(ip).or_insert(0);
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(ClientSlot(Some((Arc::clone(self), ip))))
    }
}

impl Drop for ClientSlot {
    fn drop(&mut self) {
        let Some((clients, ip)) = self.0.take() else { return };
        let mut counts = clients.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&ip) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&ip);
            }
        }
    }
}

/// A client's stream that notes for the watch when something comes and when it takes nothing.
struct Watched<S> {
    io: S,
    watch: Arc<Watch>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.watch.received();
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.watch.write_blocked(polled.is_pending());
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write_vectored(cx, pieces);
        self.watch.write_blocked(polled.is_pending());
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

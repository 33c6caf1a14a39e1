//! One HTTP/1.1 connection to a backend or to a peer's proxy. It has no task of its own: whoever
//! uses it polls it. It never retries; it says whether anything of a request was written.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::body::RequestBody;
use crate::dial::Stream;
use crate::pool::{OpenSlot, Route};
use crate::watch::{Expired, Watch};

type Driver = Connection<TokioIo<UpstreamIo>, RequestBody>;

/// The bytes below an upstream connection.
pub(crate) enum UpstreamIo {
    Backend(TcpStream),
    Peer(Box<dyn Stream>),
}

/// One connection.
pub(crate) struct Upstream {
    sender: SendRequest<RequestBody>,
    /// Gone once the connection is closed.
    driver: Option<Box<Driver>>,
    /// How long it may lie unused.
    pub(crate) idle_limit: Duration,
    _slot: OpenSlot,
}

/// What became of a request.
pub(crate) enum Sent {
    /// The upstream answered.
    Response(Response<Incoming>, Upstream),
    /// The upstream answered 101: these are the bytes beneath, and what came after the answer.
    Switched(Response<Incoming>, UpstreamIo, Bytes),
    /// Nothing was written: here it is again.
    Unsent(Box<Request<RequestBody>>, hyper::Error),
    /// It may have been acted on.
    Failed(hyper::Error),
    /// It was sent, and the watch says that waiting is over.
    Expired(Expired),
}

impl Upstream {
    /// Begins HTTP/1.1 on a fresh connection.
    pub(crate) async fn begin(
        io: UpstreamIo,
        idle_limit: Duration,
        slot: OpenSlot,
    ) -> Result<Self, hyper::Error> {
        let (sender, driver) = Builder::new().handshake(TokioIo::new(io)).await?;
        Ok(Self { sender, driver: Some(Box::new(driver)), idle_limit, _slot: slot })
    }

    /// Lets the connection read and write what it can.
    pub(crate) fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(driver) = &mut self.driver
            && Pin::new(&mut **driver).poll(cx).is_ready()
        {
            self.driver = None;
        }
    }

    /// Whether another request can be sent.
    pub(crate) fn is_ready(&self) -> bool {
        self.driver.is_some() && self.sender.is_ready()
    }

    /// Notices whether the connection was closed while it lay unused.
    pub(crate) async fn is_alive(&mut self) -> bool {
        poll_fn(|cx| {
            self.drive(cx);
            Poll::Ready(self.is_ready())
        })
        .await
    }

    /// Puts the connection back, if it can serve another request.
    pub(crate) fn give_back(self, route: &Arc<Route>) {
        if self.is_ready() {
            route.pool().put(self);
        }
    }

    /// Sends a request and waits for the head of the response. Dropped midway, the connection is
    /// closed.
    pub(crate) async fn send(mut self, request: Request<RequestBody>, watch: &Watch) -> Sent {
        let mut answer = pin!(self.sender.try_send_request(request));
        let mut driver = self.driver.take();
        let mut driver_done = false;
        let answered = poll_fn(|cx| {
            if let (Some(driver), false) = (&mut driver, driver_done) {
                driver_done = Pin::new(&mut **driver).poll(cx).is_ready();
            }
            match answer.as_mut().poll(cx) {
                Poll::Ready(answered) => return Poll::Ready(Ok(answered)),
                Poll::Pending if driver_done => {
                    // Dropping it hands back a request that it never began to write.
                    driver = None;
                    if let Poll::Ready(answered) = answer.as_mut().poll(cx) {
                        return Poll::Ready(Ok(answered));
                    }
                }
                Poll::Pending => {}
            }
            watch.expired().map_or(Poll::Pending, |what| Poll::Ready(Err(what)))
        })
        .await;
        let response = match answered {
            Err(expired) => return Sent::Expired(expired),
            Ok(Ok(response)) => response,
            Ok(Err(mut error)) => {
                return match error.take_message() {
                    Some(request) => Sent::Unsent(Box::new(request), error.into_error()),
                    None => Sent::Failed(error.into_error()),
                };
            }
        };
        match driver {
            Some(driver) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                let parts = driver.into_parts();
                Sent::Switched(response, parts.io.into_inner(), parts.read_buf)
            }
            driver => {
                self.driver = driver.filter(|_| !driver_done);
                if response.body().is_end_stream() {
                    self.is_alive().await;
                }
                Sent::Response(response, self)
            }
        }
    }
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream").field("open", &self.driver.is_some()).finish_non_exhaustive()
    }
}

impl AsyncRead for UpstreamIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Backend(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Peer(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for UpstreamIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Backend(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Peer(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Backend(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
            Self::Peer(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Backend(stream) => stream.is_write_vectored(),
            Self::Peer(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Backend(stream) => Pin::new(stream).poll_flush(cx),
            Self::Peer(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Backend(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Peer(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

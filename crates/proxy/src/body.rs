//! Bodies on their way through: a request's body with its limit and its client's deadline, and a
//! response's body that keeps the request in flight until all of it has been handed over.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use crate::gate::Pass;
use crate::replay::Replay;
use crate::service::Service;
use crate::upstream::Upstream;
use crate::watch::{Phase, Watch};

/// Why a request's body broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// It is longer than `max_body_bytes`.
    #[error("the request body is longer than this node allows")]
    TooLarge,
    /// The client's connection failed, or what it sent is no body.
    #[error("reading the request body from the client failed: {0}")]
    Client(#[from] hyper::Error),
}

/// What became of a request's body, told to the exchange.
#[derive(Debug, Default)]
pub(crate) struct BodyFate(AtomicU8);

const FATE_TOO_LARGE: u8 = 1;
const FATE_CLIENT: u8 = 2;

impl BodyFate {
    pub(crate) fn reset(&self) {
        self.0.store(0, Relaxed);
    }

    pub(crate) fn is_too_large(&self) -> bool {
        self.0.load(Relaxed) == FATE_TOO_LARGE
    }

    pub(crate) fn is_client_fault(&self) -> bool {
        self.0.load(Relaxed) == FATE_CLIENT
    }
}

/// What request bodies of one client connection share.
#[derive(Debug)]
pub(crate) struct BodyContext {
    pub(crate) watch: Arc<Watch>,
    pub(crate) fate: BodyFate,
}

/// A request's body.
#[derive(Debug)]
pub(crate) struct RequestBody {
    source: Source,
    /// Bytes that may still come.
    left: u64,
    context: Option<Arc<BodyContext>>,
}

#[derive(Debug)]
enum Source {
    Empty,
    Live(Incoming),
    Replay(Replay),
}

impl RequestBody {
    /// No body.
    pub(crate) const fn empty() -> Self {
        Self { source: Source::Empty, left: 0, context: None }
    }

    /// A client's body of at most `limit` bytes.
    pub(crate) const fn live(body: Incoming, limit: u64, context: Arc<BodyContext>) -> Self {
        Self { source: Source::Live(body), left: limit, context: Some(context) }
    }

    /// A body that can be given out again. See [`Replay`].
    pub(crate) const fn replay(body: Replay, limit: u64, context: Arc<BodyContext>) -> Self {
        Self { source: Source::Replay(body), left: limit, context: Some(context) }
    }

    /// The client's body itself, if it has not been wrapped.
    pub(crate) fn take_live(&mut self) -> Option<Incoming> {
        match std::mem::replace(&mut self.source, Source::Empty) {
            Source::Live(body) => Some(body),
            other => {
                self.source = other;
                None
            }
        }
    }

    fn fail(&self, fate: u8, error: BodyError) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(context) = &self.context {
            context.fate.0.store(fate, Relaxed);
        }
        Poll::Ready(Some(Err(error)))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = match &mut self.source {
            Source::Empty => return Poll::Ready(None),
            Source::Live(body) => Pin::new(body).poll_frame(cx),
            Source::Replay(body) => body.poll_frame(cx),
        };
        if let Some(context) = &self.context {
            context.watch.body_awaited(polled.is_pending());
        }
        match polled {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Ready(Some(Err(error))) => self.fail(FATE_CLIENT, BodyError::Client(error)),
            Poll::Ready(Some(Ok(frame))) => {
                let len = frame.data_ref().map_or(0, |data| data.len() as u64);
                let Some(left) = self.left.checked_sub(len) else {
                    return self.fail(FATE_TOO_LARGE, BodyError::TooLarge);
                };
                self.left = left;
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Empty => true,
            Source::Live(body) => body.is_end_stream(),
            Source::Replay(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Empty => SizeHint::with_exact(0),
            Source::Live(body) => body.size_hint(),
            Source::Replay(body) => body.size_hint(),
        }
    }
}

/// What a client is sent.
#[derive(Debug)]
pub(crate) enum ResponseBody {
    /// A text of the proxy's own, or nothing.
    Full(Option<Bytes>),
    /// An upstream's body.
    Passed(Passed),
}

/// An upstream's response body, with all that must live as long as it does.
#[derive(Debug)]
pub(crate) struct Passed {
    incoming: Incoming,
    upstream: Option<Upstream>,
    /// Dropped when the body ends: then the request is no longer in flight.
    pass: Option<Pass>,
    service: Arc<Service>,
    watch: Arc<Watch>,
}

/// The upstream broke off in the middle of its response.
#[derive(Debug, thiserror::Error)]
#[error("the upstream broke off in the middle of its response: {0}")]
pub(crate) struct BrokenResponse(#[from] hyper::Error);

impl ResponseBody {
    /// A text of the proxy's own.
    pub(crate) const fn text(text: Bytes) -> Self {
        Self::Full(Some(text))
    }

    /// Passes on what the upstream sends.
    pub(crate) fn passed(
        incoming: Incoming,
        upstream: Upstream,
        pass: Pass,
        service: Arc<Service>,
        watch: Arc<Watch>,
    ) -> Self {
        let mut passed =
            Passed { incoming, upstream: Some(upstream), pass: Some(pass), service, watch };
        if passed.incoming.is_end_stream() {
            passed.finish();
            passed.watch.enter(Phase::Idle);
            return Self::Full(None);
        }
        Self::Passed(passed)
    }
}

impl Passed {
    /// All of it came: the connection may serve another request.
    fn finish(&mut self) {
        if let (Some(upstream), Some(pass)) = (self.upstream.take(), &self.pass) {
            upstream.give_back(pass.route());
        }
        self.pass = None;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenResponse>>> {
        let mut polled = Pin::new(&mut self.incoming).poll_frame(cx);
        if let (Poll::Pending, Some(upstream)) = (&polled, &mut self.upstream) {
            upstream.drive(cx);
            polled = Pin::new(&mut self.incoming).poll_frame(cx);
        }
        match polled {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Ok(frame))) => {
                self.watch.progress();
                if self.incoming.is_end_stream() {
                    if let Some(upstream) = &mut self.upstream {
                        upstream.drive(cx);
                    }
                    self.finish();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                if let Some(upstream) = &mut self.upstream {
                    upstream.drive(cx);
                }
                self.finish();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                self.upstream = None;
                self.pass = None;
                self.service.count_failure();
                tracing::warn!(service = %self.service.label(), %error,
                    "a response broke off in the middle; the client's connection is closed");
                Poll::Ready(Some(Err(BrokenResponse(error))))
            }
        }
    }
}

impl Drop for Passed {
    fn drop(&mut self) {
        self.watch.enter(Phase::Idle);
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BrokenResponse;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenResponse>>> {
        match &mut *self {
            Self::Full(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Self::Passed(passed) => passed.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(text) => text.is_none(),
            Self::Passed(passed) => passed.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(text) => {
                SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64))
            }
            Self::Passed(passed) => passed.incoming.size_hint(),
        }
    }
}

//! A request body that can be given out a second time, as long as it is small: what has passed is
//! remembered up to a bound, the rest comes from the client. It decides nothing about retries.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

/// What outlives one giving-out.
#[derive(Debug)]
pub(crate) struct ReplaySource {
    shared: Arc<Mutex<Shared>>,
    size: SizeHint,
}

#[derive(Debug)]
struct Shared {
    passed: Vec<Bytes>,
    room: usize,
    /// More passed than there was room for, or something that can't be remembered.
    lost: bool,
    /// The rest, while nobody is giving it out.
    rest: Option<Incoming>,
}

/// One giving-out of the body.
#[derive(Debug)]
pub(crate) struct Replay {
    shared: Arc<Mutex<Shared>>,
    rest: Option<Incoming>,
    /// How many of the remembered pieces have been given out.
    given: usize,
    given_bytes: u64,
    size: SizeHint,
}

impl ReplaySource {
    /// Remembers up to `room` bytes of `body`.
    pub(crate) fn new(body: Incoming, room: usize) -> Self {
        let size = body.size_hint();
        let shared = Shared { passed: Vec::new(), room, lost: false, rest: Some(body) };
        Self { shared: Arc::new(Mutex::new(shared)), size }
    }

    /// Gives the body out from its start. `None` if part of it is gone, or is still being given
    /// out.
    pub(crate) fn give(&self) -> Option<Replay> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if shared.lost {
            return None;
        }
        let rest = shared.rest.take()?;
        let (shared, size) = (Arc::clone(&self.shared), self.size);
        Some(Replay { shared, rest: Some(rest), given: 0, given_bytes: 0, size })
    }
}

impl Replay {
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(piece) = shared.passed.get(self.given) {
            self.given += 1;
            self.given_bytes += piece.len() as u64;
            return Poll::Ready(Some(Ok(Frame::data(piece.clone()))));
        }
        let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
        if rest.is_end_stream() {
            return Poll::Ready(None);
        }
        let polled = Pin::new(rest).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                self.given_bytes += frame.data_ref().map_or(0, |piece| piece.len() as u64);
                match frame.data_ref() {
                    Some(piece) if !shared.lost && piece.len() <= shared.room => {
                        shared.room -= piece.len();
                        shared.passed.push(piece.clone());
                        self.given += 1;
                    }
                    _ => shared.lose(),
                }
            }
            Poll::Ready(Some(Err(_))) => shared.lose(),
            Poll::Ready(None) | Poll::Pending => {}
        }
        polled
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.size.exact().is_some_and(|size| size == self.given_bytes)
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        match self.size.exact() {
            Some(size) => SizeHint::with_exact(size.saturating_sub(self.given_bytes)),
            None => SizeHint::default(),
        }
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.rest = self.rest.take();
    }
}

impl Shared {
    fn lose(&mut self) {
        self.lost = true;
        self.passed = Vec::new();
    }
}

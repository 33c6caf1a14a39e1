//! The messages of a session and their frames: a length, a kind byte, and a postcard message or
//! raw data. A length is checked before anything is allocated.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use flocker_base::{Epoch, Head, VolumeId};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::{Reason, SessionConfig, SessionError};
use crate::model::{Ancestor, Guid, StreamHeader};

/// The version of the protocol that this binary speaks.
pub(crate) const VERSION: u8 = 1;
/// Largest payload of a data frame.
pub(crate) const DATA_MAX: usize = 128 * 1024;
/// Largest message, in bytes.
const MESSAGE_MAX: usize = 64 * 1024;
/// Most snapshots that a `have` names.
pub(crate) const HAVE_MAX: usize = 1024;
/// Longest text of a refusal.
const TEXT_MAX: usize = 512;

const MESSAGE: u8 = 1;
const DATA: u8 = 2;

/// What the opener of a stream wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Purpose {
    Push,
    Pull,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Message {
    Hello { version: u8, purpose: Purpose, volume: VolumeId, epoch: Epoch, backend: String },
    Refused { reason: Reason, text: String },
    Have { held: Vec<Ancestor>, partial: Option<(Option<Guid>, Guid)> },
    Offer(Box<StreamHeader>),
    Want { offset: u64 },
    End { checksum: [u8; 32] },
    Ack { guid: Guid, head: Head },
    Done,
}

/// A frame as it came.
#[derive(Debug)]
pub(crate) enum Frame {
    Message(Message),
    Data(Bytes),
}

/// A stream with frames and deadlines.
#[derive(Debug)]
pub(crate) struct Link<S> {
    stream: S,
    config: SessionConfig,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Link<S> {
    pub(crate) const fn new(stream: S, config: SessionConfig) -> Self {
        Self { stream, config }
    }

    pub(crate) const fn config(&self) -> &SessionConfig {
        &self.config
    }

    pub(crate) async fn send(&mut self, message: &Message) -> Result<(), SessionError> {
        let body = postcard::to_extend(message, vec![0, 0, 0, 0, MESSAGE])
            .map_err(|error| SessionError::Protocol(format!("a message is not sent: {error}")))?;
        self.write(body, "sending a message").await
    }

    /// Sends a piece of content, at most [`DATA_MAX`] bytes.
    pub(crate) async fn data(&mut self, data: &[u8]) -> Result<(), SessionError> {
        let mut frame = Vec::with_capacity(5 + data.len());
        frame.extend_from_slice(&[0, 0, 0, 0, DATA]);
        frame.extend_from_slice(data);
        self.write(frame, "sending content").await
    }

    async fn write(&mut self, mut frame: Vec<u8>, doing: &'static str) -> Result<(), SessionError> {
        let len = u32::try_from(frame.len() - 4).unwrap_or(u32::MAX);
        frame[..4].copy_from_slice(&len.to_le_bytes());
        let writing = async {
            self.stream.write_all(&frame).await?;
            self.stream.flush().await
        };
        match timeout(self.config.idle, writing).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(source)) => Err(SessionError::Broken { doing, source }),
            Err(_elapsed) => Err(SessionError::TimedOut(self.config.idle, doing)),
        }
    }

    /// The next frame. Not cancel safe.
    pub(crate) async fn next(
        &mut self,
        within: Duration,
        doing: &'static str,
    ) -> Result<Frame, SessionError> {
        match timeout(within, self.read()).await {
            Ok(Ok(frame)) => Ok(frame),
            Ok(Err(source)) if source.kind() == io::ErrorKind::InvalidData => {
                Err(SessionError::Protocol(source.to_string()))
            }
            Ok(Err(source)) => Err(SessionError::Broken { doing, source }),
            Err(_elapsed) => Err(SessionError::TimedOut(within, doing)),
        }
    }

    async fn read(&mut self) -> io::Result<Frame> {
        let bad = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
        let mut head = [0; 5];
        self.stream.read_exact(&mut head).await?;
        let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let most = match head[4] {
            MESSAGE => MESSAGE_MAX,
            DATA => DATA_MAX,
            _ => return Err(bad("a frame of an unknown kind")),
        };
        if len == 0 || len - 1 > most {
            return Err(bad("a frame's length is beyond the limit"));
        }
        let mut body = BytesMut::zeroed(len - 1);
        self.stream.read_exact(&mut body).await?;
        if head[4] == DATA {
            return Ok(Frame::Data(body.freeze()));
        }
        match postcard::take_from_bytes(&body) {
            Ok((message, [])) => Ok(Frame::Message(message)),
            _ => Err(bad("a message cannot be decoded")),
        }
    }

    /// The next frame, which must be a message. A refusal is an error.
    pub(crate) async fn message(
        &mut self,
        within: Duration,
        doing: &'static str,
    ) -> Result<Message, SessionError> {
        match self.next(within, doing).await? {
            Frame::Message(Message::Refused { reason, text }) => {
                let text = text.chars().take(TEXT_MAX).collect();
                Err(SessionError::Refused { reason, text })
            }
            Frame::Message(message) => Ok(message),
            Frame::Data(_) => Err(SessionError::Protocol(format!("content came while {doing}"))),
        }
    }

    /// Tells the peer why this side gives up, as well as that still works.
    pub(crate) async fn refuse(&mut self, error: &SessionError) {
        let text = error.to_string().chars().take(TEXT_MAX).collect();
        let refusal = Message::Refused { reason: error.reason(), text };
        if let Err(error) = self.send(&refusal).await {
            tracing::debug!(%error, "a refusal did not reach the peer");
        }
        self.close().await;
    }

    /// Ends this side of the stream.
    pub(crate) async fn close(&mut self) {
        // Nothing is lost if the peer is gone already.
        let _closed = timeout(self.config.idle, self.stream.shutdown()).await;
    }

    /// Why the peer stopped taking content, if it said so.
    pub(crate) async fn reason_for(&mut self, error: SessionError) -> SessionError {
        match self.message(self.config.idle, "asking why the peer stopped").await {
            Err(refused @ SessionError::Refused { .. }) => refused,
            _ => error,
        }
    }
}

pub(crate) fn unexpected(message: &Message, doing: &str) -> SessionError {
    let name = match message {
        Message::Hello { .. } => "hello",
        Message::Refused { .. } => "refusal",
        Message::Have { .. } => "have",
        Message::Offer(_) => "offer",
        Message::Want { .. } => "want",
        Message::End { .. } => "end",
        Message::Ack { .. } => "ack",
        Message::Done => "done",
    };
    SessionError::Protocol(format!("a '{name}' came while {doing}"))
}

//! The bridge between a backend's blocking readers and writers and a session's asynchronous
//! stream: a bounded queue of pieces each way.

use std::io::{self, Read, Write};

use bytes::{Buf, Bytes, BytesMut};
use tokio::sync::mpsc;

use super::wire::DATA_MAX;

/// Pieces that wait between a stream and the disk.
const QUEUE: usize = 8;

/// What goes through a pipe that leads to a backend.
#[derive(Debug)]
pub(crate) enum Piece {
    Data(Bytes),
    /// The stream is whole and its epoch is still good. Without it the reader fails.
    End,
}

pub(crate) fn to_backend() -> (mpsc::Sender<Piece>, PipeReader) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    (sender, PipeReader { receiver, piece: Bytes::new(), ended: false })
}

pub(crate) fn from_backend() -> (PipeWriter, mpsc::Receiver<Bytes>) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    (PipeWriter { sender, buffer: BytesMut::with_capacity(DATA_MAX) }, receiver)
}

/// The backend's end of an incoming stream. Blocks.
#[derive(Debug)]
pub(crate) struct PipeReader {
    receiver: mpsc::Receiver<Piece>,
    piece: Bytes,
    ended: bool,
}

impl Read for PipeReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            if self.ended || buffer.is_empty() {
                return Ok(0);
            }
            match self.receiver.blocking_recv() {
                Some(Piece::Data(piece)) => self.piece = piece,
                Some(Piece::End) => self.ended = true,
                None => {
                    return Err(io::Error::new(
                        io::ErrorKind::ConnectionAborted,
                        "the session ended before the stream did",
                    ));
                }
            }
        }
        let len = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buffer[..len]);
        Ok(len)
    }
}

/// The backend's end of an outgoing stream. Blocks.
#[derive(Debug)]
pub(crate) struct PipeWriter {
    sender: mpsc::Sender<Bytes>,
    buffer: BytesMut,
}

impl Write for PipeWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let len = data.len().min(DATA_MAX - self.buffer.len());
        self.buffer.extend_from_slice(&data[..len]);
        if self.buffer.len() == DATA_MAX {
            self.flush()?;
        }
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = self.buffer.split().freeze();
        self.buffer.reserve(DATA_MAX);
        self.sender.blocking_send(piece).map_err(|_gone| {
            io::Error::new(io::ErrorKind::BrokenPipe, "the session ended before the stream did")
        })
    }
}

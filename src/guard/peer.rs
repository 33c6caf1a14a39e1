//! One connection to the guard. Reads and writes never wait; what is buffered is bounded.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use flocker_base::{BootTime, Incarnation};
use rustix::event::PollFlags;

use super::wire::{MOST_REPLY_BYTES, MOST_REQUEST_BYTES, Request, WireError, split_frame};

const READ_BYTES: usize = 16 << 10;

/// Why a connection is closed.
#[derive(Debug, thiserror::Error)]
pub(super) enum PeerError {
    #[error("it went away")]
    Gone,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Wire(#[from] WireError),
    #[error("it does not read its answers")]
    Deaf,
}

#[derive(Debug)]
pub(super) struct Peer {
    stream: UnixStream,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    /// Who it is, once it said hello.
    pub(super) incarnation: Option<Incarnation>,
    pub(super) since: BootTime,
}

impl Peer {
    pub(super) fn new(stream: UnixStream, since: BootTime) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let (incoming, outgoing) = (Vec::new(), Vec::new());
        Ok(Self { stream, incoming, outgoing, incarnation: None, since })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    pub(super) const fn interest(&self) -> PollFlags {
        if self.outgoing.is_empty() { PollFlags::IN } else { PollFlags::IN.union(PollFlags::OUT) }
    }

    /// Takes what has arrived; at most one buffer, so that no peer can hold the loop.
    pub(super) fn receive(&mut self) -> Result<(), PeerError> {
        let mut buffer = [0; READ_BYTES];
        match self.stream.read(&mut buffer) {
            Ok(0) => Err(PeerError::Gone),
            Ok(count) => {
                self.incoming.extend_from_slice(&buffer[..count]);
                Ok(())
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(()),
            Err(e) if e.kind() == ErrorKind::ConnectionReset => Err(PeerError::Gone),
            Err(e) => Err(e.into()),
        }
    }

    /// The next whole request.
    pub(super) fn next_request(&mut self) -> Result<Option<Request>, PeerError> {
        let Some((payload, taken)) = split_frame(&self.incoming, MOST_REQUEST_BYTES)? else {
            return Ok(None);
        };
        let request = Request::from_payload(payload)?;
        self.incoming.drain(..taken);
        Ok(Some(request))
    }

    pub(super) fn reply(&mut self, frame: &[u8]) -> Result<(), PeerError> {
        if self.outgoing.len() > MOST_REPLY_BYTES {
            return Err(PeerError::Deaf);
        }
        self.outgoing.extend_from_slice(frame);
        self.send()
    }

    /// Sends what it takes now.
    pub(super) fn send(&mut self) -> Result<(), PeerError> {
        while !self.outgoing.is_empty() {
            match self.stream.write(&self.outgoing) {
                Ok(0) => return Err(PeerError::Gone),
                Ok(count) => drop(self.outgoing.drain(..count)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::BrokenPipe => return Err(PeerError::Gone),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

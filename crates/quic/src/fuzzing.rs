//! What a fuzz target is, and those of this crate: functions of bytes that assert what must hold
//! whatever the bytes are. For the fuzzer and for tests; it is never part of a running node.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use crate::frame::{self, FrameError};
use crate::identity::{server_name, store_of_certificate};
use crate::testing;

/// Something that reads bytes from outside.
#[derive(Clone, Copy)]
pub struct Target {
    /// What it is called, and so the folders of its inputs.
    pub name: &'static str,
    /// Reads the bytes; panics if anything is not as it must be.
    pub run: fn(&[u8]),
    /// Good input, for the fuzzer to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// The targets of this crate.
pub const TARGETS: &[Target] = &[
    Target { name: "frame", run: read_frame, seeds: frames },
    Target { name: "certificate", run: certificate, seeds: certificates },
];

/// The outcome of work on bytes that are all there, which never waits.
///
/// # Panics
/// If it does wait.
pub fn at_once<T>(work: impl Future<Output = T>) -> T {
    match pin!(work).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => panic!("it waits for bytes that are there"),
    }
}

/// Several messages out of one input, so that a fuzzer finds what only a sequence does: each has
/// its length before it, in two bytes, and the last is what is left.
#[must_use]
pub fn split(mut input: &[u8], most: usize) -> Vec<&[u8]> {
    let mut messages = Vec::new();
    while messages.len() + 1 < most {
        let Some((length, rest)) = input.split_first_chunk() else { break };
        let Some((message, rest)) = rest.split_at_checked(u16::from_le_bytes(*length).into())
        else {
            break;
        };
        messages.push(message);
        input = rest;
    }
    messages.push(input);
    messages
}

/// The input that [`split`] gives these messages for.
#[must_use]
pub fn joined(messages: &[impl AsRef<[u8]>]) -> Vec<u8> {
    let mut input = Vec::new();
    for message in messages.iter().map(AsRef::as_ref) {
        input.extend(u16::try_from(message.len()).unwrap_or(u16::MAX).to_le_bytes());
        input.extend_from_slice(message);
    }
    input
}

/// Checks what was read of a stream against the stream: a frame of exactly what was sent, or the
/// refusal that its claim deserves.
///
/// # Panics
/// If it is neither.
pub fn check_frame(stream: &[u8], max: usize, read: Result<&[u8], &FrameError>) {
    let claimed = stream.first_chunk().map(|length| u32::from_le_bytes(*length) as usize);
    let there = stream.len().saturating_sub(4);
    match (claimed, read) {
        (Some(claimed), Ok(payload)) => {
            assert!(claimed <= max, "{claimed} bytes were taken, {max} are allowed");
            assert_eq!(payload, &stream[4..4 + claimed], "other bytes than were sent");
        }
        (Some(claimed), Err(FrameError::TooLarge { length, .. })) => {
            assert!(claimed > max && *length == claimed, "{claimed} bytes are allowed");
        }
        (Some(claimed), Err(FrameError::Truncated)) => assert!(claimed > there, "all is there"),
        (None, Err(FrameError::Truncated)) => {}
        (claimed, other) => panic!("{other:?} of a frame that claims {claimed:?} bytes"),
    }
}

fn read_frame(input: &[u8]) {
    let Some((max, stream)) = input.split_first_chunk() else { return };
    let max = usize::from(u16::from_le_bytes(*max)) * 8;
    let mut rest = stream;
    let read = at_once(frame::read_frame(&mut rest, max));
    check_frame(stream, max, read.as_ref().map(|payload| &payload[..]));
    if let Ok(payload) = read {
        let mut written = Vec::new();
        at_once(frame::write_frame(&mut written, &payload)).expect("memory takes it");
        assert_eq!(written, stream[..stream.len() - rest.len()], "it is written otherwise");
    }
}

fn frames() -> Vec<Vec<u8>> {
    let mut good = vec![0xff, 0x1f];
    at_once(frame::write_frame(&mut good, b"a payload")).expect("memory takes it");
    vec![good, vec![1, 0, 9, 0, 0, 0, 1], vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xff]]
}

/// A certificate names one store, in one spelling, or none.
fn certificate(input: &[u8]) {
    if let Some(store) = store_of_certificate(input) {
        let name = server_name(store);
        let found = input.windows(name.len()).filter(|part| *part == name.as_bytes()).count();
        assert!(found > 0, "it names {store}, which is not in it");
    }
}

fn certificates() -> Vec<Vec<u8>> {
    let identity = testing::cluster().identity(testing::store(7));
    vec![identity.cert_der.clone(), identity.ca_der]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_input_passes_and_the_checks_can_fail() {
        for target in TARGETS {
            (target.seeds)().iter().for_each(|seed| (target.run)(seed));
        }
        let lie = std::panic::catch_unwind(|| check_frame(&[1, 0, 0, 0, 7], 8, Ok(b"8")));
        assert!(lie.is_err(), "other bytes than were sent");
    }

    #[test]
    fn one_input_carries_several_messages() {
        let messages = [&b"one"[..], b"", b"three"];
        assert_eq!(split(&joined(&messages), 9)[..3], messages);
        assert_eq!(split(&joined(&messages), 2).len(), 2);
        assert_eq!(split(b"\xff\xffx", 9), [b"\xff\xffx"]);
    }
}

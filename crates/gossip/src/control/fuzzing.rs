//! The streams of the control endpoint over hostile bytes: what begins them, their frames, and
//! the answers. It hands nothing to a handler.

use flocker_quic::frame;
use flocker_quic::fuzzing::{at_once, check_frame};

use super::Kind;
use super::serve::{DONE, MAX_REFUSAL, REFUSED, read_kind};
use super::wire::{AnswerError, read_answer};

/// A stream read as a request, and as the answer to one of each kind.
pub(crate) fn stream(input: &[u8]) {
    request(input);
    for kind in Kind::ALL {
        answer(kind, input);
    }
}

fn request(stream: &[u8]) {
    let mut rest = stream;
    let kind = at_once(read_kind(&mut rest));
    let Some((&number, body)) = stream.split_first() else {
        assert!(kind.is_err(), "a kind out of nothing");
        return;
    };
    assert_eq!(kind.as_ref().ok().copied(), Kind::from_wire(number));
    let Ok(kind) = kind else { return };
    assert_eq!(kind as u8, number);
    let read = at_once(frame::read_frame(&mut rest, kind.max_frame()));
    check_frame(body, kind.max_frame(), read.as_ref().map(|payload| &payload[..]));
    if let Ok(payload) = read {
        let mut written = Vec::new();
        at_once(frame::write_prefixed(&mut written, &[kind as u8], &payload)).expect("memory");
        assert_eq!(written, stream[..stream.len() - rest.len()], "it is written otherwise");
    }
}

fn answer(kind: Kind, stream: &[u8]) {
    let read = at_once(read_answer(&mut &stream[..], kind));
    match (stream.split_first(), read) {
        (Some((&DONE, body)), Ok(Ok(payload))) => {
            check_frame(body, kind.max_frame(), Ok(&payload));
        }
        (Some((&REFUSED, body)), Ok(Err(text))) => {
            let sent = &body[4..];
            assert!(sent.len() >= text.len() || text.contains(char::REPLACEMENT_CHARACTER));
            assert!(text.len() <= 3 * MAX_REFUSAL, "a refusal of {} bytes", text.len());
        }
        (Some((&DONE, body)), Err(AnswerError::Frame(e))) => {
            check_frame(body, kind.max_frame(), Err(&e));
        }
        (Some((&REFUSED, body)), Err(AnswerError::Frame(e))) => {
            check_frame(body, MAX_REFUSAL, Err(&e));
        }
        (Some((&status, _)), Err(AnswerError::Status(named))) => assert_eq!(status, named),
        (None, Err(AnswerError::None(_))) => {}
        (_, other) => panic!("{kind:?}: {other:?}"),
    }
}

/// A request of each kind, and an answer and a refusal.
pub(crate) fn streams() -> Vec<Vec<u8>> {
    let written = |first: u8, payload: &[u8]| {
        let mut stream = Vec::new();
        at_once(frame::write_prefixed(&mut stream, &[first], payload)).expect("memory takes it");
        stream
    };
    let requests = Kind::ALL.into_iter().map(|kind| written(kind as u8, b"asked"));
    let over = Kind::ALL.into_iter().map(|kind| {
        let length = u32::try_from(kind.max_frame() + 1).unwrap_or(u32::MAX).to_le_bytes();
        [&[kind as u8][..], &length, b"and a few bytes"].concat()
    });
    let answers = [written(DONE, b"answered"), written(REFUSED, "I'd rather not".as_bytes())];
    requests.chain(over).chain(answers).collect()
}

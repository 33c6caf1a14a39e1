//! Where results go. A reader that went away ends the command quietly.

use std::io::{self, Write};

use serde::Serialize;

use crate::api::{ApiError, Envelope, Schema};

/// Why printing ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The reader of the standard output went away, as `head` does.
    ReaderGone,
    /// The command failed.
    Failed(ApiError),
}

impl From<ApiError> for Ended {
    fn from(error: ApiError) -> Self {
        Self::Failed(error)
    }
}

/// Writes a result to the standard output.
pub(super) fn result(text: &str) -> Result<(), Ended> {
    let mut out = io::stdout().lock();
    written(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// Writes a document as one line of JSON to the standard output.
pub(super) fn document<T: Serialize + Schema>(body: T) -> Result<(), Ended> {
    let mut text = serde_json::to_string(&Envelope::new(body))
        .map_err(|error| ApiError::internal(format!("the answer has no JSON form: {error}")))?;
    text.push('\n');
    result(&text)
}

/// Writes a line of progress or of an error. Nobody who reads it is no reason to stop.
pub(super) fn note(text: &str) {
    let _unread = writeln!(io::stderr().lock(), "{text}");
}

fn written(outcome: io::Result<()>) -> Result<(), Ended> {
    outcome.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Ended::ReaderGone,
        _ => Ended::Failed(ApiError::internal(format!("can't write the result: {error}"))),
    })
}

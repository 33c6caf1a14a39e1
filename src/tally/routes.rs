//! The tally's HTTP surface. It decides nothing about durability: the writer does.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, extract::FromRequest};
use bytes::Bytes;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio_util::io::ReaderStream;

use super::journal::MOST_LINE_BYTES;
use super::writer::Handle;

/// A body that takes longer to arrive is refused.
const BODY_LIMIT: Duration = Duration::from_secs(10);

pub(super) fn routes(handle: Handle) -> Router {
    Router::new()
        .route("/", get(totals).post(append))
        .route("/entries", get(entries))
        .route("/healthz", get(async || "ok"))
        .layer(DefaultBodyLimit::max(MOST_LINE_BYTES + 1))
        .with_state(handle)
}

async fn totals(State(handle): State<Handle>) -> Response {
    let totals = handle.totals();
    let checksum = totals.checksum.to_string();
    Json(json!({ "count": totals.count, "checksum": checksum })).into_response()
}

async fn append(State(handle): State<Handle>, request: Request) -> Response {
    let body = tokio::time::timeout(BODY_LIMIT, Bytes::from_request(request, &())).await;
    let body = match body {
        Ok(Ok(body)) => body,
        Ok(Err(refusal)) => return refusal.into_response(),
        Err(_) => return refused(StatusCode::REQUEST_TIMEOUT, "the body took too long to arrive"),
    };
    let line = match checked(body) {
        Ok(line) => line,
        Err(why) => return refused(StatusCode::BAD_REQUEST, why),
    };
    match handle.append(line).await {
        Ok(count) => Json(json!({ "count": count })).into_response(),
        Err(why) => refused(StatusCode::SERVICE_UNAVAILABLE, &why),
    }
}

/// One line, its newline optional.
fn checked(body: Bytes) -> Result<Bytes, &'static str> {
    let line = match body.strip_suffix(b"\n") {
        Some(line) => body.slice_ref(line),
        None => body,
    };
    match line.len() {
        0 => return Err("the body is empty: send one line of text"),
        n if n > MOST_LINE_BYTES => return Err("the line is longer than 4096 bytes"),
        _ => {}
    }
    if line.contains(&b'\n') {
        return Err("the body has several lines: send one in each request");
    }
    Ok(line)
}

fn refused(status: StatusCode, why: &str) -> Response {
    (status, Json(json!({ "error": why }))).into_response()
}

/// The acknowledged part of the file alone.
async fn entries(State(handle): State<Handle>) -> Response {
    let length = handle.totals().bytes;
    match tokio::fs::File::open(handle.path.as_ref()).await {
        Ok(file) => {
            let body = Body::from_stream(ReaderStream::new(file.take(length)));
            let headers = [
                (header::CONTENT_TYPE, "text/plain; charset=utf-8".to_owned()),
                (header::CONTENT_LENGTH, length.to_string()),
            ];
            (headers, body).into_response()
        }
        Err(e) => refused(StatusCode::INTERNAL_SERVER_ERROR, &format!("cannot open the log: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_is_accepted_with_or_without_its_newline() {
        assert_eq!(checked(Bytes::from_static(b"a\n")).expect("line"), "a");
        assert_eq!(checked(Bytes::from_static(b"a")).expect("line"), "a");
        assert_eq!(checked(vec![b'x'; 4096].into()).expect("longest").len(), 4096);
        for bad in [&b""[..], b"\n", b"a\nb", b"a\n\n", &[b'x'; 4097]] {
            assert!(checked(Bytes::copy_from_slice(bad)).is_err());
        }
    }
}

//! The proxy's own answers. Each says what was attempted, why it failed and what to do; none
//! pretends to come from the service.

use bytes::Bytes;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};

use crate::body::ResponseBody;
use crate::headers::REFUSED;

/// An answer of the proxy's own.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) text: String,
    /// The client may try again in a second.
    pub(crate) retry: bool,
    /// Nothing of the request was acted on and a peer that forwarded it may send it again.
    pub(crate) handed_back: bool,
    /// The connection can't be used any further.
    pub(crate) close: bool,
}

impl Answer {
    pub(crate) fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into(), retry: false, handed_back: false, close: false }
    }

    pub(crate) fn bad_request(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text).closing()
    }

    pub(crate) fn unavailable(text: impl Into<String>) -> Self {
        Self { retry: true, ..Self::new(StatusCode::SERVICE_UNAVAILABLE, text) }
    }

    pub(crate) fn too_large(limit: u64) -> Self {
        let text = format!("the request body is longer than the {limit} bytes this node allows");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, text).closing()
    }

    pub(crate) fn closing(self) -> Self {
        Self { close: true, ..self }
    }

    pub(crate) fn handed_back(self) -> Self {
        Self { handed_back: true, ..self }
    }

    /// Whether the client is told of a failure that is not its own.
    pub(crate) fn is_failure(&self) -> bool {
        self.status.is_server_error()
    }

    pub(crate) fn into_response(self, to_peer: bool) -> Response<ResponseBody> {
        let text = Bytes::from(format!("flocker: {}\n", self.text));
        let mut response = Response::new(ResponseBody::text(text));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if self.retry {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self.close {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if self.handed_back && to_peer {
            headers.insert(REFUSED, HeaderValue::from_static("unsent"));
        }
        response
    }
}

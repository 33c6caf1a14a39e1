//! The smallest HTTP client that tells "not sent", "refused" and "no answer" apart. It never sends
//! a request twice.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Largest answer read.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// Why there is no 2xx answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Answered, but not with 2xx; or nobody listens.
    Refused(String),
    /// The request went out and no whole answer came.
    Unanswered(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(why) => write!(f, "refused: {why}"),
            Self::Unanswered(why) => write!(f, "unanswered: {why}"),
        }
    }
}

/// A client of one proxy, with one connection that it keeps.
#[derive(Debug)]
pub struct HttpClient {
    at: SocketAddr,
    host: String,
    connection: Option<Kept>,
}

#[derive(Debug)]
struct Kept {
    sender: SendRequest<Full<Bytes>>,
    _driver: JoinSet<()>,
}

impl HttpClient {
    /// For the service that goes by `host`, through the proxy at `at`.
    #[must_use]
    pub fn new(at: SocketAddr, host: &str) -> Self {
        Self { at, host: host.to_owned(), connection: None }
    }

    /// GET.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn get(&mut self, path: &str, within: Duration) -> Result<Bytes, Failure> {
        self.send(Method::GET, path, Bytes::new(), within).await
    }

    /// POST.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn post(&mut self, body: &str, within: Duration) -> Result<Bytes, Failure> {
        self.send(Method::POST, "/", Bytes::from(body.to_owned()), within).await
    }

    async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
        within: Duration,
    ) -> Result<Bytes, Failure> {
        let exchange = async {
            let mut kept = match self.connection.take().filter(|kept| !kept.sender.is_closed()) {
                Some(kept) => kept,
                None => connect(self.at).await.map_err(|e| Failure::Refused(e.to_string()))?,
            };
            let lost = |doing: &str, e: hyper::Error| Failure::Unanswered(format!("{doing}: {e}"));
            kept.sender.ready().await.map_err(|e| Failure::Refused(e.to_string()))?;
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header(hyper::header::HOST, &self.host)
                .body(Full::new(body))
                .map_err(|e| Failure::Refused(e.to_string()))?;
            let response = kept.sender.send_request(request).await;
            let response = response.map_err(|e| lost("sending", e))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
            let body = body.map_err(|e| Failure::Unanswered(format!("reading: {e}")))?.to_bytes();
            if !status.is_success() {
                let text = String::from_utf8_lossy(&body).trim().to_owned();
                return Err(Failure::Refused(format!("{status}: {text}")));
            }
            Ok((kept, body))
        };
        let (kept, body) = tokio::time::timeout(within, exchange).await.map_err(|_late| {
            Failure::Unanswered(format!("no answer within {} ms", within.as_millis()))
        })??;
        self.connection = Some(kept);
        Ok(body)
    }
}

async fn connect(at: SocketAddr) -> std::io::Result<Kept> {
    let stream = TcpStream::connect(at).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) =
        handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
    let mut driver = JoinSet::new();
    driver.spawn(async move {
        // An error here is the failure of the request under way.
        let _: Result<(), hyper::Error> = connection.await;
    });
    Ok(Kept { sender, _driver: driver })
}

//! Serves the API on its socket: HTTP/1.1, bounded in connections, bytes and time.
//!
//! It must never cut short what changes something: such calls run to their end on the server's
//! own task set, whether or not their caller still listens.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use bytes::Bytes;
use flocker_base::Name;
use hyper::body::{Body as _, Frame};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::care::MapRequest;
use super::error::{ApiError, ErrorCode};
use super::events::EventQuery;
use super::export::ExportRequest;
use super::promote::PromoteRequest;
use super::requests::{DeployRequest, MoveEvent, MoveRequest, Progress};
use super::socket::ApiSocket;
use super::{Envelope, Operations, Schema};

mod members;

/// Limits of the API.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Connections at a time; more wait in the kernel's queue.
    pub max_connections: usize,
    /// Largest request body.
    pub max_request_bytes: usize,
    /// Time for a request's head, and for an idle connection.
    pub head_deadline: Duration,
    /// Time for a request's body.
    pub body_deadline: Duration,
    /// Time for an answer. What changes something goes on beyond it.
    pub answer_deadline: Duration,
    /// Changing calls at a time; more are refused.
    pub max_operations: usize,
    /// Lines of progress that wait for a slow reader.
    pub progress_queue: usize,
    /// Time that changing calls are given to end when the server stops.
    pub drain_deadline: Duration,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            max_connections: 64,
            max_request_bytes: 8 * 1024 * 1024,
            head_deadline: Duration::from_secs(10),
            body_deadline: Duration::from_secs(10),
            answer_deadline: Duration::from_secs(60),
            max_operations: 32,
            progress_queue: 64,
            drain_deadline: Duration::from_secs(10),
        }
    }
}

/// Serves until told to stop, then lets running operations end within the drain deadline.
pub async fn serve(
    socket: ApiSocket,
    operations: Arc<dyn Operations>,
    config: ServerConfig,
    shutdown: CancellationToken,
) {
    let state = Arc::new(Server {
        operations,
        running: TaskTracker::new(),
        slots: Arc::new(Semaphore::new(config.max_operations)),
        config,
    });
    let router = router(Arc::clone(&state));
    let mut connections = JoinSet::new();
    loop {
        let full = connections.len() >= state.config.max_connections;
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(ended) = connections.join_next(), if !connections.is_empty() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "an API connection ended badly");
                }
            }
            accepted = socket.accept(), if !full => match accepted {
                Ok(stream) => {
                    let head = state.config.head_deadline;
                    connections.spawn(connection(stream, router.clone(), head));
                }
                Err(error) => {
                    tracing::warn!(%error, "could not accept on the API socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    drop(socket);
    state.running.close();
    if timeout(state.config.drain_deadline, state.running.wait()).await.is_err() {
        tracing::warn!(running = state.running.len(), "stopping while API operations still run");
    }
    connections.shutdown().await;
}

async fn connection(stream: UnixStream, router: Router, head_deadline: Duration) {
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_deadline)
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "an API connection broke");
    }
}

struct Server {
    operations: Arc<dyn Operations>,
    running: TaskTracker,
    slots: Arc<Semaphore>,
    config: ServerConfig,
}

type Shared = State<Arc<Server>>;

fn router(server: Arc<Server>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/deploy", post(deploy))
        .route("/v1/services", get(services))
        .route("/v1/services/{name}", delete(remove_service))
        .route("/v1/volumes", get(volumes))
        .route("/v1/moves", post(moves))
        .route("/v1/exports", post(exports))
        .route("/v1/promotions", post(promotions))
        .route("/v1/events", get(events))
        .route("/v1/map", post(map))
        .route("/v1/version", get(version))
        .merge(members::routes())
        .fallback(no_such_call)
        .method_not_allowed_fallback(no_such_call)
        .with_state(server)
}

async fn status(State(server): Shared) -> Response {
    answer(server.within_deadline(server.operations.status()).await)
}

async fn services(State(server): Shared) -> Response {
    answer(server.within_deadline(server.operations.services()).await)
}

async fn volumes(State(server): Shared) -> Response {
    answer(server.within_deadline(server.operations.volumes()).await)
}

async fn events(
    State(server): Shared,
    query: Result<Query<EventQuery>, QueryRejection>,
) -> Response {
    match query {
        Ok(Query(query)) => answer(server.within_deadline(server.operations.events(query)).await),
        Err(error) => {
            let refused = ApiError::new(ErrorCode::Usage, error.to_string());
            answer::<Envelopeless>(Err(refused))
        }
    }
}

async fn version(State(server): Shared) -> Response {
    answer(server.within_deadline(async { Ok(server.operations.version().await) }).await)
}

async fn deploy(State(server): Shared, request: Request) -> Response {
    let body: DeployRequest = match server.body(request).await {
        Ok(body) => body,
        Err(error) => return answer::<Envelopeless>(Err(error)),
    };
    let operations = Arc::clone(&server.operations);
    answer(server.to_the_end(async move { operations.deploy(body.deployment).await }).await)
}

async fn remove_service(State(server): Shared, Path(name): Path<String>) -> Response {
    let name = match Name::new(name) {
        Ok(name) => name,
        Err(error) => {
            let refused = ApiError::new(ErrorCode::Usage, error.to_string());
            return answer::<Envelopeless>(Err(refused));
        }
    };
    let operations = Arc::clone(&server.operations);
    answer(server.to_the_end(async move { operations.remove_service(name).await }).await)
}

async fn exports(State(server): Shared, request: Request) -> Response {
    let body: ExportRequest = match server.body(request).await {
        Ok(body) => body,
        Err(error) => return answer::<Envelopeless>(Err(error)),
    };
    let operations = Arc::clone(&server.operations);
    answer(server.to_the_end(async move { operations.export(body).await }).await)
}

async fn promotions(State(server): Shared, request: Request) -> Response {
    let body: PromoteRequest = match server.body(request).await {
        Ok(body) => body,
        Err(error) => return answer::<Envelopeless>(Err(error)),
    };
    let operations = Arc::clone(&server.operations);
    answer(server.to_the_end(async move { operations.promote(body).await }).await)
}

async fn map(State(server): Shared, request: Request) -> Response {
    let body: MapRequest = match server.body(request).await {
        Ok(body) => body,
        Err(error) => return answer::<Envelopeless>(Err(error)),
    };
    let operations = Arc::clone(&server.operations);
    answer(server.to_the_end(async move { operations.map(body).await }).await)
}

/// Answers at once with a stream of lines; the last one is how it ended.
async fn moves(State(server): Shared, request: Request) -> Response {
    let body: MoveRequest = match server.body(request).await {
        Ok(body) => body,
        Err(error) => return answer::<Envelopeless>(Err(error)),
    };
    let slot = match server.slot() {
        Ok(slot) => slot,
        Err(error) => return answer::<Envelopeless>(Err(error)),
    };
    let (lines, reader) = mpsc::channel(server.config.progress_queue);
    let operations = Arc::clone(&server.operations);
    let (queue, patience) = (server.config.progress_queue, server.config.body_deadline);
    server.running.spawn(async move {
        let _slot = slot;
        run_move(operations, body, lines, queue, patience).await;
    });
    let kind = HeaderValue::from_static("application/x-ndjson");
    ([(header::CONTENT_TYPE, kind)], Body::new(Lines(reader))).into_response()
}

/// Runs the move to its end and passes on what it says for as long as someone reads it.
async fn run_move(
    operations: Arc<dyn Operations>,
    request: MoveRequest,
    lines: mpsc::Sender<Bytes>,
    queue: usize,
    patience: Duration,
) {
    let (progress, mut steps) = mpsc::channel::<Progress>(queue);
    let mut work = operations.move_service(request, progress);
    let ended = loop {
        tokio::select! {
            biased;
            Some(step) = steps.recv() => {
                // A reader that is gone or slow loses lines; the move does not wait for it.
                let _lost = lines.try_send(line(MoveEvent::Step(step)));
            }
            ended = &mut work => break ended,
        }
    };
    while let Ok(step) = steps.try_recv() {
        let _lost = lines.try_send(line(MoveEvent::Step(step)));
    }
    let last = line(ended.map_or_else(MoveEvent::Failed, MoveEvent::Done));
    if !matches!(timeout(patience, lines.send(last)).await, Ok(Ok(()))) {
        tracing::debug!("nobody read how a move ended");
    }
}

fn line(event: MoveEvent) -> Bytes {
    let mut text = encode(&Envelope::new(event));
    text.push(b'\n');
    text.into()
}

async fn no_such_call(request: Request) -> Response {
    let (method, path) = (request.method(), request.uri().path());
    let shown: String = path.chars().take(200).collect();
    answer::<Envelopeless>(Err(ApiError::not_found(format!("the API has no {method} {shown}"))
        .hint(
            "the command line and the agent may be of different versions: see 'flocker version'",
        )))
}

impl Server {
    /// Reads a request's body within its limits.
    async fn body<T: DeserializeOwned>(&self, request: Request) -> Result<T, ApiError> {
        let limit = self.config.max_request_bytes;
        let announced = request.body().size_hint().lower();
        if announced > u64::try_from(limit).unwrap_or(u64::MAX) {
            let what = format!("the request has {announced} bytes, over the limit {limit} bytes");
            return Err(ApiError::new(ErrorCode::Usage, what));
        }
        let read = axum::body::to_bytes(request.into_body(), limit);
        let bytes = timeout(self.config.body_deadline, read)
            .await
            .map_err(|_elapsed| ApiError::new(ErrorCode::Usage, "the request came too slowly"))?
            .map_err(|error| {
                ApiError::new(
                    ErrorCode::Usage,
                    format!("the request could not be read (limit {limit} bytes): {error}"),
                )
            })?;
        serde_json::from_slice(&bytes).map_err(|error| {
            ApiError::new(ErrorCode::Usage, format!("the request makes no sense: {error}"))
                .hint("the command line and the agent may be of different versions: see 'flocker version'")
        })
    }

    async fn within_deadline<T>(
        &self,
        work: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, ApiError> {
        timeout(self.config.answer_deadline, work).await.unwrap_or_else(|_elapsed| {
            Err(ApiError::internal("the agent did not finish its answer in time"))
        })
    }

    fn slot(&self) -> Result<tokio::sync::OwnedSemaphorePermit, ApiError> {
        Arc::clone(&self.slots).try_acquire_owned().map_err(|_full| {
            let running = self.config.max_operations;
            ApiError::new(ErrorCode::Busy, format!("{running} operations are under way already"))
                .hint("wait for one to end: 'flocker status' lists them")
        })
    }

    /// Runs work that must not be cut short when the caller goes away.
    async fn to_the_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, ApiError>> + Send + 'static,
    ) -> Result<T, ApiError> {
        let slot = self.slot()?;
        let task = self.running.spawn(async move {
            let _slot = slot;
            work.await
        });
        match timeout(self.config.answer_deadline, task).await {
            Ok(Ok(ended)) => ended,
            Ok(Err(error)) => {
                tracing::error!(%error, "an API operation ended badly");
                Err(ApiError::internal("the agent failed in the middle of it")
                    .hint("its log says where; 'flocker status' shows what stands"))
            }
            Err(_elapsed) => {
                Err(ApiError::new(ErrorCode::TimedOut, "the agent is not done yet and goes on")
                    .hint("'flocker status' shows when it is"))
            }
        }
    }
}

/// The document type of answers that are errors only.
#[derive(Serialize)]
struct Envelopeless;

impl Schema for Envelopeless {
    const SCHEMA: &'static str = "flocker.none/1";
}

fn answer<T: Serialize + Schema>(result: Result<T, ApiError>) -> Response {
    let (status, body) = match result {
        Ok(document) => (StatusCode::OK, encode(&Envelope::new(document))),
        Err(error) => (error.code.http_status(), encode(&Envelope::new(error))),
    };
    let kind = HeaderValue::from_static("application/json");
    (status, [(header::CONTENT_TYPE, kind)], body).into_response()
}

/// Our documents have string keys only and so always have a JSON form; should one not, the reader
/// gets an empty body, which it refuses.
fn encode<T: Serialize>(document: &T) -> Vec<u8> {
    serde_json::to_vec(document).unwrap_or_else(|error| {
        tracing::error!(%error, "a document has no JSON form");
        Vec::new()
    })
}

/// A response body of lines as they come.
struct Lines(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|line| line.map(|line| Ok(Frame::data(line))))
    }
}

#[cfg(test)]
mod tests;

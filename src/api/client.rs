//! The command line's side of the API: one request a connection, each with a deadline.
//!
//! It trusts the agent as the agent trusts it, but bounds what it reads all the same.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use flocker_base::Name;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::care::{MapReply, MapRequest};
use super::error::{ApiError, ErrorCode};
use super::events::{EventList, EventQuery};
use super::export::{ExportRequest, Exported};
use super::promote::{PromoteRequest, Promoted};
use super::requests::{
    DeployReply, DeployRequest, MoveEvent, MoveReport, MoveRequest, Progress, Removed, ServiceList,
    Version, VolumeList,
};
use super::status::Status;
use super::{Envelope, Schema};
use crate::manifest::Deployment;

mod members;

/// Largest document read.
const MAX_DOCUMENT: usize = 64 * 1024 * 1024;
/// Longest line of progress read.
const MAX_LINE: usize = 64 * 1024;
/// Time for the agent to accept a connection.
const CONNECT: Duration = Duration::from_secs(3);

/// A client of the agent on this machine.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    deadline: Duration,
}

/// Whether a call that got no answer may be going on all the same.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    Reads,
    Changes,
}

impl Client {
    /// A client of the agent that listens on this socket. Each call ends within the deadline.
    #[must_use]
    pub const fn new(socket: PathBuf, deadline: Duration) -> Self {
        Self { socket, deadline }
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The agent's view of the mesh.
    ///
    /// # Errors
    /// As every call: [`ErrorCode::NoAgent`], [`ErrorCode::TimedOut`], or what the agent says.
    pub async fn status(&self) -> Result<Status, ApiError> {
        self.call(Method::GET, "/v1/status", None::<&()>, Effect::Reads).await
    }

    /// Deploys.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub async fn deploy(&self, deployment: Deployment) -> Result<DeployReply, ApiError> {
        let request = DeployRequest { deployment };
        self.call(Method::POST, "/v1/deploy", Some(&request), Effect::Changes).await
    }

    /// The services.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub async fn services(&self) -> Result<ServiceList, ApiError> {
        self.call(Method::GET, "/v1/services", None::<&()>, Effect::Reads).await
    }

    /// Removes a service.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub async fn remove_service(&self, service: &Name) -> Result<Removed, ApiError> {
        let path = format!("/v1/services/{service}");
        self.call(Method::DELETE, &path, None::<&()>, Effect::Changes).await
    }

    /// The volumes.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub async fn volumes(&self) -> Result<VolumeList, ApiError> {
        self.call(Method::GET, "/v1/volumes", None::<&()>, Effect::Reads).await
    }

    /// Makes a copy of a volume its master.
    ///
    /// # Errors
    /// As [`Self::status`]; [`ErrorCode::Fenced`] while somebody may have it.
    pub async fn promote(&self, request: &PromoteRequest) -> Result<Promoted, ApiError> {
        self.call(Method::POST, "/v1/promotions", Some(request), Effect::Changes).await
    }

    /// Exports a snapshot or a branch.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub async fn export(&self, request: &ExportRequest) -> Result<Exported, ApiError> {
        self.call(Method::POST, "/v1/exports", Some(request), Effect::Changes).await
    }

    /// What happened, as the node saw it.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub async fn events(&self, query: &EventQuery) -> Result<EventList, ApiError> {
        let path = format!("/v1/events?after={}&wait_ms={}", query.after, query.wait_ms);
        self.call(Method::GET, &path, None::<&()>, Effect::Reads).await
    }

    /// Lists or settles what the placement map has for people.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub async fn map(&self, request: &MapRequest) -> Result<MapReply, ApiError> {
        self.call(Method::POST, "/v1/map", Some(request), Effect::Changes).await
    }

    /// The agent's version.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub async fn version(&self) -> Result<Version, ApiError> {
        self.call(Method::GET, "/v1/version", None::<&()>, Effect::Reads).await
    }

    /// Moves a service and tells of each step. Dropping the future leaves the move running.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub async fn move_service(
        &self,
        request: &MoveRequest,
        mut on_step: impl FnMut(&Progress),
    ) -> Result<MoveReport, ApiError> {
        let end = Instant::now() + self.deadline;
        let late = |_elapsed| self.late(Effect::Changes);
        let sending = self.send(Method::POST, "/v1/moves", Some(request));
        let mut reply = timeout_at(end, sending).await.map_err(late)??;
        if reply.response.status() != StatusCode::OK {
            return Err(timeout_at(end, self.refusal(reply)).await.map_err(late)?);
        }
        let mut unread = BytesMut::new();
        loop {
            while let Some(length) = unread.iter().position(|byte| *byte == b'\n') {
                let line = unread.split_to(length + 1);
                let event: Envelope<MoveEvent> =
                    serde_json::from_slice(&line).map_err(|error| self.garbled(&error))?;
                match event.body {
                    MoveEvent::Step(step) => on_step(&step),
                    MoveEvent::Done(report) => return Ok(report),
                    MoveEvent::Failed(error) => return Err(error),
                }
            }
            if unread.len() > MAX_LINE {
                return Err(self.garbled(&"a line of progress is too long"));
            }
            let frame = timeout_at(end, reply.response.body_mut().frame()).await.map_err(late)?;
            match frame {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        unread.extend_from_slice(&data);
                    }
                }
                Some(Err(_)) | None => return Err(self.cut_off()),
            }
        }
    }

    async fn call<B: Serialize, T: DeserializeOwned + Schema>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
        effect: Effect,
    ) -> Result<T, ApiError> {
        let work = async {
            let reply = self.send(method, path, body).await?;
            self.document(reply).await
        };
        timeout(self.deadline, work).await.map_err(|_elapsed| self.late(effect))?
    }

    async fn send<B: Serialize>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<Reply, ApiError> {
        let stream = timeout(CONNECT, UnixStream::connect(&self.socket))
            .await
            .map_err(|_elapsed| self.unreachable(&io::ErrorKind::TimedOut.into()))?
            .map_err(|error| self.unreachable(&error))?;
        let body = match body {
            Some(body) => serde_json::to_vec(body).map_err(|error| {
                ApiError::internal(format!("the request has no JSON form: {error}"))
            })?,
            None => Vec::new(),
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "flocker")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| ApiError::internal(format!("the request is malformed: {error}")))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.garbled(&error))?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the connection to the agent broke");
            }
        });
        let response = sender.send_request(request).await.map_err(|_broken| self.cut_off())?;
        Ok(Reply { response, _driver: driver })
    }

    async fn document<T: DeserializeOwned + Schema>(&self, reply: Reply) -> Result<T, ApiError> {
        if !reply.response.status().is_success() {
            return Err(self.refusal(reply).await);
        }
        let envelope: Envelope<T> = self.parse(reply).await?;
        if envelope.schema == T::SCHEMA {
            Ok(envelope.body)
        } else {
            Err(self.garbled(&format!("{} instead of {}", envelope.schema, T::SCHEMA)))
        }
    }

    /// What the agent says of a request that it refused.
    async fn refusal(&self, reply: Reply) -> ApiError {
        self.parse(reply).await.map_or_else(|error| error, |said: Envelope<ApiError>| said.body)
    }

    async fn parse<T: DeserializeOwned>(&self, reply: Reply) -> Result<T, ApiError> {
        let body = Limited::new(reply.response.into_body(), MAX_DOCUMENT)
            .collect()
            .await
            .map_err(|error| self.garbled(&error))?
            .to_bytes();
        serde_json::from_slice(&body).map_err(|error| self.garbled(&error))
    }

    fn unreachable(&self, error: &io::Error) -> ApiError {
        let socket = self.socket.display();
        match error.kind() {
            io::ErrorKind::PermissionDenied => ApiError::new(
                ErrorCode::NotPermitted,
                format!("can't use the agent's socket {socket}: permission denied"),
            )
            .hint("run this as root or as a member of the socket's group"),
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ApiError::new(
                ErrorCode::NoAgent,
                format!("no agent runs here: nobody answers on {socket}"),
            )
            .hint(
                "start one with 'flocker up', or name its socket with --socket or FLOCKER_SOCKET",
            ),
            _ => ApiError::new(
                ErrorCode::NoAgent,
                format!("can't reach the agent on {socket}: {error}"),
            )
            .hint("look at the agent's log"),
        }
    }

    fn late(&self, effect: Effect) -> ApiError {
        let span = humantime::format_duration(self.deadline);
        let socket = self.socket.display();
        match effect {
            Effect::Reads => ApiError::new(
                ErrorCode::NoAgent,
                format!("the agent on {socket} did not answer within {span}"),
            )
            .hint("look at the agent's log, or wait longer with --timeout"),
            Effect::Changes => ApiError::new(
                ErrorCode::TimedOut,
                format!("the agent is not done after {span} and goes on"),
            )
            .hint("'flocker status' shows when it is done; wait longer with --timeout"),
        }
    }

    fn cut_off(&self) -> ApiError {
        ApiError::new(
            ErrorCode::NoAgent,
            format!("the agent on {} went away in the middle of it", self.socket.display()),
        )
        .hint("see whether it restarts with 'flocker status', and what was done")
    }

    fn garbled(&self, why: &dyn std::fmt::Display) -> ApiError {
        ApiError::internal(format!(
            "what answers on {} can't be understood: {why}",
            self.socket.display()
        ))
        .hint("compare 'flocker version' with the agent's; is it an agent's socket at all?")
    }
}

/// An answer, with the connection that its body comes over.
struct Reply {
    response: http::Response<Incoming>,
    _driver: JoinSet<()>,
}

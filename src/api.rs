//! The agent's API: what it answers, over a unix socket, in JSON.
//!
//! ```text
//!   cli ─▶ client ──unix socket──▶ server ─▶ dyn Operations (the agent)
//!                 └────────── types, error ──────────┘
//! ```
//!
//! The server knows HTTP, limits and deadlines; what a request does is the agent's affair, behind
//! [`Operations`]. Nothing here may decide about a volume, a service or a lease.

pub mod care;
pub mod client;
pub mod error;
pub mod events;
pub mod export;
pub mod nodes;
pub mod promote;
pub mod requests;
pub mod server;
pub mod socket;
pub mod status;
pub mod tokens;

pub use care::{
    ConflictList, FieldConflict, FieldValue, MapReply, MapRequest, NameConflict, PendingEdit,
    PendingList, QuarantineList, QuarantinedRecord, Settled, UnreadableRecord,
};
pub use error::{ApiError, ErrorCode};
pub use events::{EventEntry, EventList, EventQuery};
pub use export::{ExportRequest, Exported};
pub use nodes::{
    NodeDetails, NodeInfo, NodeJoined, NodeLabel, NodeLabelled, NodeList, NodeOperations,
    NodeRemove, NodeRemoved, NodeState, NodeVolume,
};
pub use promote::{PromoteRequest, Promoted};
pub use requests::{
    Change, ChangeKind, ChangedRecord, DeployReply, DeployRequest, Destination, MoveEvent,
    MoveReport, MoveRequest, Progress, Removed, ServiceList, StepState, Version, VolumeList,
};
pub use status::{
    Attention, BranchStatus, ClusterStatus, Liveness, NodeStatus, OperationStatus, ReplicaStatus,
    RouteStatus, ServiceState, ServiceStatus, Severity, Status, VolumeState, VolumeStatus,
};
pub use tokens::{
    TokenCreate, TokenCreated, TokenList, TokenOperations, TokenRevoke, TokenState, TokenStatus,
    TokensRevoked,
};

use async_trait::async_trait;
use flocker_base::Name;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::manifest::Deployment;

/// What the API can be asked to do. The agent implements it; tests use a fake.
///
/// The server runs the calls that change something to their end even when the caller goes away,
/// so an implementation needs no protection of its own against a lost client.
#[async_trait]
pub trait Operations: TokenOperations + NodeOperations {
    /// The mesh as this node sees it. Live peers are asked for what only they know; one that does
    /// not answer within 150 ms is left out, and the status says so.
    async fn status(&self) -> Result<Status, ApiError>;

    /// Makes the cluster's services, volumes and routes those of the deployment. What it does not
    /// name is left alone; the same deployment twice changes nothing.
    async fn deploy(&self, deployment: Deployment) -> Result<DeployReply, ApiError>;

    /// The services.
    async fn services(&self) -> Result<ServiceList, ApiError>;

    /// Stops a service and forgets it with its routes. Its volume stays.
    async fn remove_service(&self, service: Name) -> Result<Removed, ApiError>;

    /// The volumes.
    async fn volumes(&self) -> Result<VolumeList, ApiError>;

    /// Moves a service with its volume. Each step is sent as progress when it starts and when it
    /// ends; progress that finds the queue full or closed is to be dropped, never waited for.
    async fn move_service(
        &self,
        request: MoveRequest,
        progress: mpsc::Sender<Progress>,
    ) -> Result<MoveReport, ApiError>;

    /// Writes a snapshot or a branch that this node holds into a new folder.
    async fn export(&self, request: ExportRequest) -> Result<Exported, ApiError>;

    /// Makes a copy of a volume its master because a person says so.
    async fn promote(&self, request: PromoteRequest) -> Result<Promoted, ApiError>;

    /// What happened, as this node saw it; waits for news if asked to and there are none.
    async fn events(&self, query: EventQuery) -> Result<EventList, ApiError>;

    /// Lists and settles what the placement map has for people.
    async fn map(&self, _request: MapRequest) -> Result<MapReply, ApiError> {
        Err(ApiError::internal("this agent has no placement map to look at"))
    }

    /// The agent's version.
    async fn version(&self) -> Version;
}

/// A JSON document with a schema name and version. Within one version, fields are only added.
pub trait Schema {
    /// For example `flocker.status/1`.
    const SCHEMA: &'static str;
}

/// A document together with its schema's name, as it is written.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Envelope<T> {
    /// The schema's name.
    pub schema: String,
    /// The document.
    #[serde(flatten)]
    pub body: T,
}

impl<T: Schema> Envelope<T> {
    /// The document in its envelope.
    pub fn new(body: T) -> Self {
        Self { schema: T::SCHEMA.to_owned(), body }
    }
}

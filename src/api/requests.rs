//! What can be asked of an agent, and what it answers, apart from the status.
//!
//! Requests refuse keys that they do not know: an agent must never ignore half of an order.

use flocker_base::{Epoch, Name};
use serde::{Deserialize, Serialize};

use super::Schema;
use super::error::ApiError;
use super::status::{ServiceStatus, VolumeStatus};
use crate::manifest::Deployment;

/// Deploy this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeployRequest {
    /// What is to be.
    pub deployment: Deployment,
}

/// What a deployment did, a record a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeployReply {
    /// The records, in the order of the deployment.
    pub changes: Vec<Change>,
    /// What was done otherwise than asked, a sentence each.
    #[serde(default)]
    pub warnings: Vec<String>,
}

impl Schema for DeployReply {
    const SCHEMA: &'static str = "flocker.deploy/1";
}

/// What happened to one record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// What it is.
    pub record: ChangedRecord,
    /// Its name; of a route, its address.
    pub name: String,
    /// What happened to it.
    pub change: ChangeKind,
}

/// The kinds of records that a deployment changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangedRecord {
    /// A volume.
    Volume,
    /// A service.
    Service,
    /// A route.
    Route,
}

/// What a deployment did to a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeKind {
    /// It is new.
    Created,
    /// It was there and is another now.
    Changed,
    /// It was there as asked.
    Unchanged,
}

/// The services.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceList {
    /// Ordered by name.
    pub services: Vec<ServiceStatus>,
}

impl Schema for ServiceList {
    const SCHEMA: &'static str = "flocker.services/1";
}

/// The volumes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeList {
    /// Ordered by name.
    pub volumes: Vec<VolumeStatus>,
}

impl Schema for VolumeList {
    const SCHEMA: &'static str = "flocker.volumes/1";
}

/// A service was removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// The service.
    pub service: Name,
    /// The routes that went with it.
    pub routes: Vec<String>,
    /// The volume that stays.
    pub volume_kept: Option<Name>,
}

impl Schema for Removed {
    const SCHEMA: &'static str = "flocker.removed/1";
}

/// Move a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoveRequest {
    /// The service.
    pub service: Name,
    /// Where to.
    pub to: Destination,
}

/// Where something is to go: `{"node": "eu-2"}` or `{"region": "us"}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Destination {
    /// This node.
    Node(Name),
    /// The best node of this region.
    Region(Name),
}

impl std::fmt::Display for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Node(name) => write!(f, "node {name}"),
            Self::Region(name) => write!(f, "region {name}"),
        }
    }
}

/// One line of a move's answer: steps, then one end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum MoveEvent {
    /// A step started or ended.
    Step(Progress),
    /// The last line: it is where it was to go.
    Done(MoveReport),
    /// The last line: it did not go; the error says where the service is now.
    Failed(ApiError),
}

impl Schema for MoveEvent {
    const SCHEMA: &'static str = "flocker.move/1";
}

/// A step of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The step's stable name, such as `pre-copy`.
    pub step: String,
    /// What happens in it, for people.
    pub text: String,
    /// Whether it starts or has ended.
    pub state: StepState,
    /// Time since the operation began.
    pub elapsed_ms: u64,
}

/// Where a step stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepState {
    /// It starts.
    Started,
    /// It was done.
    Done,
    /// It failed; what was begun is being undone.
    Failed,
}

/// How a move went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveReport {
    /// The service.
    pub service: Name,
    /// The node that it left.
    pub from: Name,
    /// The node that it is on.
    pub to: Name,
    /// The epoch that it runs under there.
    pub epoch: Epoch,
    /// For how long its requests were held.
    pub pause_ms: u64,
    /// How long the whole move took.
    pub elapsed_ms: u64,
}

/// What an agent's binary is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Its version.
    pub version: String,
    /// The node that it runs.
    pub node: Name,
}

impl Schema for Version {
    const SCHEMA: &'static str = "flocker.version/1";
}

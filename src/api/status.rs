//! What a node knows of the mesh, as documents.
//!
//! A number that is not known is `None`, never zero, and times are ages or spans in milliseconds,
//! so that no reader needs this node's clock.

use std::net::SocketAddr;

use flocker_base::{ClusterId, Epoch, Head, Name, ServiceId, StoreId, VolumeId, WallTime};
use serde::{Deserialize, Serialize};

use super::Schema;

/// The mesh as one node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The node whose view this is.
    pub viewed_from: Name,
    /// When the view was taken, by that node's wall clock.
    #[serde(rename = "at_unix_ms")]
    pub at: WallTime,
    /// The age of the oldest fact in it; `None` if some fact has no known age.
    pub oldest_fact_ms: Option<u64>,
    /// The cluster.
    pub cluster: ClusterStatus,
    /// What needs a person, the worst first.
    #[serde(default)]
    pub attention: Vec<Attention>,
    /// The nodes.
    #[serde(default)]
    pub nodes: Vec<NodeStatus>,
    /// The volumes.
    #[serde(default)]
    pub volumes: Vec<VolumeStatus>,
    /// The services.
    #[serde(default)]
    pub services: Vec<ServiceStatus>,
    /// The routes.
    #[serde(default)]
    pub routes: Vec<RouteStatus>,
    /// What is under way on this node.
    #[serde(default)]
    pub operations: Vec<OperationStatus>,
}

impl Schema for Status {
    const SCHEMA: &'static str = "flocker.status/1";
}

/// The cluster as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// Its id.
    pub id: ClusterId,
}

/// A node as the viewing node knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its store: the node's identity.
    pub store: StoreId,
    /// Its name.
    pub name: Name,
    /// Its region.
    pub region: Name,
    /// Whether it is thought to live.
    pub liveness: Liveness,
    /// For how long it has been suspected; `None` while it lives or if that is not known.
    pub suspected_for_ms: Option<u64>,
    /// Where its control port is reached.
    pub control: Option<SocketAddr>,
    /// Where its data port is reached.
    pub data: Option<SocketAddr>,
    /// Where its proxy takes HTTP.
    pub http: Option<SocketAddr>,
    /// The version of its binary.
    pub version: Option<String>,
    /// Whether it is the viewing node.
    pub is_self: bool,
    /// Round trip from the viewing node.
    pub rtt_ms: Option<u64>,
}

/// Whether a node is thought to live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Liveness {
    /// Heard of lately.
    Live,
    /// Not heard of lately.
    Suspected,
    /// Removed from the cluster.
    Removed,
    /// In the map, but never heard of by the viewing node.
    #[serde(other)]
    Unknown,
}

/// A volume as the viewing node knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// Its id.
    pub id: VolumeId,
    /// Its name.
    pub name: Name,
    /// Its master, if one is known to hold the lease.
    pub master: Option<Name>,
    /// The newest epoch known.
    pub epoch: Option<Epoch>,
    /// What is going on with it.
    pub state: VolumeState,
    /// What is left of the master's lease; known on the master alone.
    pub lease_left_ms: Option<u64>,
    /// How often it is to be snapshotted, as the node that answers knows it.
    #[serde(default)]
    pub snapshot_every_ms: u64,
    /// The nodes that vote.
    #[serde(default)]
    pub voters: Vec<Name>,
    /// The copies, the master's first.
    #[serde(default)]
    pub replicas: Vec<ReplicaStatus>,
    /// Unreplicated tails that were kept.
    #[serde(default)]
    pub branches: Vec<BranchStatus>,
    /// Whether the loss of its master now would be survived without a person.
    pub can_fail_over: bool,
    /// If not, why not.
    pub why_not: Option<String>,
}

/// What is going on with a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeState {
    /// A master holds it.
    Active,
    /// Its master is late renewing the lease and has frozen what writes.
    Frozen,
    /// Being handed over.
    Moving,
    /// No master; an election is on.
    Electing,
    /// No master until a person decides.
    NeedsDecision,
    /// In the trash.
    Deleted,
    /// Not known here.
    #[serde(other)]
    Unknown,
}

/// A copy of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// The node that keeps it.
    pub node: Name,
    /// Its newest snapshot that is durable there.
    pub head: Option<Head>,
    /// How far it is behind the master, from the newest snapshot acknowledged as durable.
    pub lag_ms: Option<u64>,
    /// Whether it has acknowledged the newest snapshot that there is.
    pub acked: bool,
}

/// An unreplicated tail of a deposed master, kept as a read-only branch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BranchStatus {
    /// Its name.
    pub name: String,
    /// The node that keeps it.
    pub node: Name,
    /// Its newest snapshot.
    pub head: Option<Head>,
}

/// A service as the viewing node knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its id.
    pub id: ServiceId,
    /// Its name.
    pub name: Name,
    /// Its volume.
    pub volume: Name,
    /// Where it is.
    pub node: Option<Name>,
    /// What it is doing.
    pub state: ServiceState,
    /// Where it listens, on its node.
    pub address: Option<SocketAddr>,
    /// Its process; known on its node alone.
    pub pid: Option<u32>,
    /// The epoch that it runs under.
    pub epoch: Option<Epoch>,
}

/// What a service is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceState {
    /// Answering.
    Running,
    /// Started, not ready yet.
    Starting,
    /// Stopped in the middle of what it did: its lease is late.
    Frozen,
    /// Its requests are held.
    Held,
    /// On its way to another node.
    Moving,
    /// Not running.
    Stopped,
    /// Not known here.
    #[serde(other)]
    Unknown,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteStatus {
    /// As in a deployment file: `http://shop.example.com`.
    pub route: String,
    /// The service that answers.
    pub service: Name,
    /// Where that is.
    pub node: Option<Name>,
}

/// Something that needs a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attention {
    /// How bad it is.
    pub severity: Severity,
    /// What is the matter, in one sentence.
    pub text: String,
    /// The command that settles it.
    pub command: Option<String>,
}

/// How bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Redundancy or progress suffers.
    Warning,
    /// Something is down or at risk.
    #[serde(other)]
    Critical,
}

/// Something under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationStatus {
    /// Its id on the viewing node.
    pub id: String,
    /// What it is, with its subject: `move tally to eu-2`.
    pub text: String,
    /// The step that it is at.
    pub step: String,
    /// How long it has been going on.
    pub elapsed_ms: u64,
}

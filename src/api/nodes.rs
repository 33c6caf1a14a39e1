//! The cluster's nodes, as documents and as what can be done to them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use async_trait::async_trait;
use flocker_base::{Name, StoreId, TokenId};
use serde::{Deserialize, Serialize};

use super::Schema;
use super::error::ApiError;

/// What can be asked about nodes.
#[async_trait]
pub trait NodeOperations: Send + Sync + 'static {
    /// All nodes, the removed ones among them.
    async fn nodes(&self) -> Result<NodeList, ApiError>;

    /// One node with what is on it and what its removal would mean.
    async fn node(&self, node: String) -> Result<NodeDetails, ApiError>;

    /// Removes a node from the cluster, for ever.
    async fn remove_node(&self, request: NodeRemove) -> Result<NodeRemoved, ApiError>;

    /// Changes labels of a node.
    async fn label_node(&self, request: NodeLabel) -> Result<NodeLabelled, ApiError>;
}

/// The nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeList {
    /// The node whose view this is.
    pub viewed_from: Name,
    /// By region and name.
    pub nodes: Vec<NodeInfo>,
}

impl Schema for NodeList {
    const SCHEMA: &'static str = "flocker.nodes/1";
}

/// A node as the viewing node knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Its store: the node's identity.
    pub store: StoreId,
    /// Its name.
    pub name: Name,
    /// Its region.
    pub region: Name,
    /// Whether it is of the cluster and seems to live.
    pub state: NodeState,
    /// For how long it has been so, as far as the viewing node knows.
    pub state_for_ms: Option<u64>,
    /// The version of its binary.
    pub version: Option<String>,
    /// How often its store was started.
    pub incarnation: Option<u64>,
    /// Where its control port is reached.
    pub control: Option<SocketAddr>,
    /// Where its data port is reached.
    pub data: Option<SocketAddr>,
    /// Where its proxy takes HTTP.
    pub http: Option<SocketAddr>,
    /// Whether it is the viewing node.
    pub is_self: bool,
    /// Round trip from the viewing node.
    pub rtt_ms: Option<u64>,
    /// What people say of it.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// How it came in, if that was noted.
    pub joined: Option<NodeJoined>,
    /// The node that removed it, if it was removed.
    pub removed_by: Option<Name>,
}

/// How a node came in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeJoined {
    /// How long ago.
    pub ms_ago: u64,
    /// The node that admitted it.
    pub by: Name,
    /// The token that it came with.
    pub token: TokenId,
}

/// Whether a node is of the cluster and seems to live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    /// Heard of lately.
    Live,
    /// Not heard of lately.
    Suspected,
    /// Said that it would stop.
    Left,
    /// Removed from the cluster.
    Removed,
    /// In the map, but never heard of by the viewing node.
    #[serde(other)]
    Unknown,
}

/// One node with what is on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDetails {
    /// The node.
    #[serde(flatten)]
    pub node: NodeInfo,
    /// The volumes that it is master of, has a copy of, or votes for.
    #[serde(default)]
    pub volumes: Vec<NodeVolume>,
    /// Why its removal needs `force`, a sentence each; empty if it does not.
    #[serde(default)]
    pub removal_needs_force: Vec<String>,
    /// What else its removal means, a sentence each.
    #[serde(default)]
    pub removal_means: Vec<String>,
}

impl Schema for NodeDetails {
    const SCHEMA: &'static str = "flocker.node/1";
}

/// What a node is to a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeVolume {
    /// The volume.
    pub volume: Name,
    /// Whether the node is its master.
    pub master: bool,
    /// Whether the node holds a copy of it.
    pub copy: bool,
    /// Whether the node votes for it.
    pub votes: bool,
}

/// Remove a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeRemove {
    /// Its name, or its store's id or a part of that.
    pub node: String,
    /// Even if it lives, is a master, or has a vote that is needed.
    #[serde(default)]
    pub force: bool,
}

/// A node was removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRemoved {
    /// Its name, free again.
    pub node: Name,
    /// Its store, which never joins again.
    pub store: StoreId,
    /// What that means, a sentence each.
    #[serde(default)]
    pub means: Vec<String>,
}

impl Schema for NodeRemoved {
    const SCHEMA: &'static str = "flocker.node-removed/1";
}

/// Change labels of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeLabel {
    /// Its name, or its store's id or a part of that.
    pub node: String,
    /// The labels to set, and those to take away (`null`).
    pub labels: BTreeMap<String, Option<String>>,
}

/// A node's labels after a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeLabelled {
    /// The node.
    pub node: Name,
    /// All its labels.
    pub labels: BTreeMap<String, String>,
}

impl Schema for NodeLabelled {
    const SCHEMA: &'static str = "flocker.node-labels/1";
}

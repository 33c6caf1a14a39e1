//! What the placement map's records say, as typed values: volumes, services, routes, tokens,
//! nodes and placements. How they are merged and stored is [`crate::map`]'s affair.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use flocker_base::{Epoch, Head, Name, ServiceId, StoreId, VolumeId};
use serde::{Deserialize, Serialize};

mod node;
mod token;
mod voters;

pub use node::{LabelError, LabelKey, MAX_LABEL_VALUE, MAX_LABELS, NodeSpec, Origin, Removal};
pub use token::{KEPT_AFTER_END, MAX_NOTE_BYTES, MAX_USES, TokenSpec};
pub use voters::Voters;

/// A volume as its owner wants it, and how it was born.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSpec {
    /// Its id, never reused.
    pub id: VolumeId,
    /// Its name, unique in the cluster.
    pub name: Name,
    /// How it is kept.
    pub policy: VolumePolicy,
    /// Who was to own it at first. Fixed for ever: a voter without a record of this volume takes
    /// the first configuration from here.
    pub birth: Birth,
}

/// How a volume is replicated, snapshotted and failed over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumePolicy {
    /// Replicas beside the master in its own region.
    pub local_replicas: u8,
    /// Replicas in other regions.
    pub remote_replicas: u8,
    /// Time from one snapshot to the next, if something changed.
    pub snapshot_interval: Duration,
    /// An election by itself needs a replica no further behind than this; older ones ask a
    /// person.
    pub lag_limit: Duration,
    /// What happens when the master is lost.
    pub failover: Failover,
}

impl Default for VolumePolicy {
    fn default() -> Self {
        Self {
            local_replicas: 1,
            remote_replicas: 1,
            snapshot_interval: Duration::from_secs(5),
            lag_limit: Duration::from_secs(60),
            failover: Failover::Auto,
        }
    }
}

/// What happens to a volume whose master is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Failover {
    /// The best replica takes over.
    Auto,
    /// Nothing until a person promotes a replica.
    Manual,
    // Last: records on disks have the numbers of those before.
    /// The best replica of the master's own region takes over, and none of another.
    InRegion,
}

/// The first configuration of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Birth {
    /// The store that is to claim the first epoch.
    pub master: StoreId,
    /// The stores that hold copies, the master first.
    pub replicas: Vec<StoreId>,
    /// The stores that vote, an odd number of them.
    pub voters: Voters,
}

/// A set of voters with its number. Compared by `version` alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VoterConfig {
    /// The epoch that made it and its number in that epoch; `(0, 0)` is the birth configuration.
    pub version: ConfigVersion,
    /// The voters.
    pub voters: Voters,
    /// During a change: the set before it, a majority of which is needed as well.
    pub joint: Option<Voters>,
}

/// The order of voter configurations of one volume.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct ConfigVersion {
    /// The epoch under which the configuration was made.
    pub epoch: Epoch,
    /// Its number, rising over all epochs.
    pub number: u64,
}

impl VoterConfig {
    /// The configuration that a volume is born with.
    #[must_use]
    pub fn birth(voters: impl Into<Voters>) -> Self {
        let version = ConfigVersion { epoch: Epoch::ZERO, number: 0 };
        Self { version, voters: voters.into(), joint: None }
    }

    /// Whether these stores are a quorum: a majority of the voters and, during a change, of the
    /// former voters too.
    #[must_use]
    pub fn is_quorum(&self, stores: &BTreeSet<StoreId>) -> bool {
        let majority = |set: &Voters| {
            set.iter().filter(|voter| stores.contains(voter)).count() * 2 > set.len()
        };
        majority(&self.voters) && self.joint.as_ref().is_none_or(majority)
    }

    /// All stores that take part: the voters and, during a change, the former ones.
    #[must_use]
    pub fn members(&self) -> BTreeSet<StoreId> {
        match &self.joint {
            Some(former) => self.voters.iter().chain(former).copied().collect(),
            None => self.voters.iter().copied().collect(),
        }
    }
}

/// Where a volume is, as its master last said. It informs routing and display; it is never
/// authority for granting, starting or destroying.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// The volume.
    pub volume: VolumeId,
    /// The epoch of the master that wrote this.
    pub epoch: Epoch,
    /// Counts that master's writes.
    pub sequence: u64,
    /// The master.
    pub holder: StoreId,
    /// Its voters.
    pub voters: VoterConfig,
    /// The stores that hold copies, the master first.
    pub replicas: Vec<StoreId>,
    /// The newest snapshot when this was written.
    pub head: Head,
    /// What the master is doing with it.
    pub state: PlacementState,
}

/// What a master is doing with its volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PlacementState {
    /// Promoted; its service may run.
    Active,
    /// Being handed over to this store.
    Releasing(StoreId),
    /// In the trash.
    Deleted,
}

/// A service as its owner wants it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSpec {
    /// Its id, never reused.
    pub id: ServiceId,
    /// Its name, unique in the cluster.
    pub name: Name,
    /// What to run. For the process engine: a program and its arguments.
    pub command: Vec<String>,
    /// Environment variables.
    pub environment: BTreeMap<String, String>,
    /// The volume that it runs with, in one place at a time.
    pub volume: VolumeMount,
    /// Path of an HTTP GET that answers 2xx once the service is ready; without one, a service is
    /// ready when its port accepts a connection.
    pub health_path: Option<String>,
    /// Time between the request to stop and the kill.
    pub stop_grace: Duration,
    /// The engine that runs it.
    pub engine: EngineKind,
}

/// A volume where a service finds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    /// The volume.
    pub volume: VolumeId,
    /// Where a container sees it. The process engine passes the real folder in
    /// `FLOCKER_VOLUME` instead.
    pub path: String,
}

/// What runs a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineKind {
    /// A plain process of the agent's user.
    Process,
}

/// A public name for a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteSpec {
    /// The protocol and name: the record's key.
    pub key: RouteKey,
    /// The service that answers.
    pub service: ServiceId,
}

/// What a route is found by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RouteKey {
    /// HTTP requests with this `Host` (lower case, no port).
    HttpHost(String),
}

/// What a node says of itself to its peers, under 2 KiB in all. How it is written is
/// [`crate::membership`]'s affair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its name.
    pub name: Name,
    /// Its region.
    pub region: Name,
    /// Where its control port is reached (4523/udp).
    pub control: SocketAddr,
    /// Where its data port is reached (4524/udp).
    pub data: SocketAddr,
    /// Where its proxy takes HTTP, if it does.
    pub http: Option<SocketAddr>,
    /// The version of its binary.
    pub version: String,
    /// Its zone within the region: nodes of one zone may fail together.
    pub zone: Option<Name>,
    /// Where it is reached from outside its private network, if that is elsewhere.
    pub public: Option<PublicAddresses>,
    /// What it has to give.
    pub capacity: Option<Capacity>,
}

/// Where a node behind a translation of addresses is reached from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicAddresses {
    /// Its control port.
    pub control: SocketAddr,
    /// Its data port.
    pub data: SocketAddr,
}

/// What a node has to give to services and volumes, when it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// Processors that it may use.
    pub cpus: u16,
    /// Memory, in bytes.
    pub memory: u64,
    /// Room for volumes, used and free, in bytes.
    pub disk: u64,
}

/// How busy a node is, in per cent, in steps of ten: it is told to every node of the region, and
/// small changes are not worth that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Of its processors.
    pub cpu: u8,
    /// Of its memory.
    pub memory: u8,
    /// Of its room for volumes.
    pub disk: u8,
}

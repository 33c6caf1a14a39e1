//! Where services run: the engine's trait, what it starts and what it tells.
//!
//! ```text
//!   agent ── start / freeze / stop ──▶ Engine ──▶ process::ProcessEngine ──▶ process groups
//!     ▲                                  │             │ launch (holds the command back)
//!     └────────── exits, instances ──────┘             └ record (what was started, durable)
//! ```
//!
//! Nothing here decides *whether* a service may run: the agent does, under a lease, and the guard
//! ends it when the lease ends. An engine must never touch a process or container that it cannot
//! prove to have started.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use flocker_base::{BootTime, Epoch, Name, ServiceId, VolumeId};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

pub mod cgroup;
pub mod fake;
pub mod group;
pub mod launch;
mod log;
pub mod mark;
mod port;
pub mod process;
mod readiness;
mod record;
mod watch;

pub use cgroup::Cgroups;
pub use group::ProcessGroup;
pub(crate) use record::boot_id;

/// Everything needed to start a service once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Launch {
    /// Which service.
    pub service: ServiceId,
    /// What people call it.
    pub name: Name,
    /// Its volume.
    pub volume: VolumeId,
    /// The epoch that this node holds the volume under.
    pub epoch: Epoch,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// The user's own variables. Those that the engine sets win over them.
    pub environment: BTreeMap<String, String>,
    /// The volume's folder, and the command's working folder.
    pub folder: PathBuf,
    /// The node's own address to listen on.
    pub host: IpAddr,
    /// Ready when a GET of this path answers 2xx or 3xx; without one, when the port is open.
    pub health_path: Option<String>,
    /// How long it may take to end by itself.
    pub stop_grace: Duration,
}

/// A service that runs here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Which service.
    pub service: ServiceId,
    /// Its volume.
    pub volume: VolumeId,
    /// The epoch that it was started under.
    pub epoch: Epoch,
    /// The leader of its process group.
    pub pid: u32,
    /// The leader's start in clock ticks since the boot: with the pid, the proof of which process
    /// it is. The guard asks for it.
    pub start_ticks: u64,
    /// Where it listens.
    pub address: SocketAddr,
    /// When it was started.
    pub started: BootTime,
    /// Whether it is frozen now.
    pub frozen: bool,
    /// Whether it was found frozen, and is held until its lease is known to stand.
    pub held_for_lease: bool,
}

/// Why a service is held frozen. It runs again only when no hold is left, so that the end of a
/// snapshot cannot thaw a service whose lease is late.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hold {
    /// A snapshot is being read.
    Snapshot,
    /// The lease was not renewed in time.
    Lease,
}

/// A service that ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Which service.
    pub service: ServiceId,
    /// Its volume.
    pub volume: VolumeId,
    /// The epoch that it was started under.
    pub epoch: Epoch,
    /// The leader's pid.
    pub pid: u32,
    /// How it ended.
    pub how: Ended,
    /// Whether the engine was told to end it.
    pub asked: bool,
}

/// How a service ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// Not known: it was started by an agent that has died since, and only a parent learns more.
    Unknown,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Unknown => f.write_str("unknown cause"),
        }
    }
}

/// Why an engine could not do as told.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// It runs already.
    #[error("service {service} runs already as pid {pid}: stop it first")]
    AlreadyRuns {
        /// Which service.
        service: ServiceId,
        /// Its leader.
        pid: u32,
    },
    /// Another call is starting it.
    #[error("service {service} is being started already: wait for that start to end")]
    Starting {
        /// Which service.
        service: ServiceId,
    },
    /// It does not run here.
    #[error("service {service} does not run on this node")]
    NotHere {
        /// Which service.
        service: ServiceId,
    },
    /// The start failed.
    #[error("cannot start service '{name}': {reason}")]
    Start {
        /// Its name.
        name: Name,
        /// What went wrong and what to do.
        reason: String,
    },
    /// It did not become ready in time.
    #[error("service {service} is not ready after {}ms: {reason}; see {}", waited.as_millis(), log.display())]
    NotReady {
        /// Which service.
        service: ServiceId,
        /// How long it had.
        waited: Duration,
        /// What the newest probe met.
        reason: String,
        /// Where its output is.
        log: PathBuf,
    },
    /// It ended before it was ready.
    #[error("service {service} ended ({how}) before it was ready: see {}", log.display())]
    Ended {
        /// Which service.
        service: ServiceId,
        /// How.
        how: Ended,
        /// Where its output is.
        log: PathBuf,
    },
    /// It could not be frozen or thawed in time.
    #[error("service {service} (pid {pid}) did not {action} within {}ms: a process hangs in the kernel", within.as_millis())]
    Stuck {
        /// Which service.
        service: ServiceId,
        /// Its leader.
        pid: u32,
        /// What it should have done.
        action: &'static str,
        /// How long it had.
        within: Duration,
    },
    /// The system refused.
    #[error("cannot {action} service {service}: {source}")]
    System {
        /// What was attempted, as a verb.
        action: &'static str,
        /// Which service.
        service: ServiceId,
        /// What the system said.
        source: io::Error,
    },
    /// The engine's own files are unreadable or unfit.
    #[error("cannot open the process engine: {0}")]
    Open(String),
}

/// Asked between a service's fork and its first instruction; the guard is told of the process
/// here, so that no instant exists at which a service runs unguarded.
#[async_trait]
pub trait LaunchGate: Send + Sync {
    /// Lets it run, or says why not.
    ///
    /// # Errors
    /// The reason, in words; the process then ends without having run the command.
    async fn admit(&self, launch: &Launch, group: ProcessGroup) -> Result<(), String>;
}

/// Starts, freezes and ends services.
#[async_trait]
pub trait Engine: Send + Sync {
    /// Starts the service; it may not be ready yet. Dropping the future does not undo the start.
    ///
    /// # Errors
    /// [`EngineError::AlreadyRuns`], [`EngineError::Starting`] or [`EngineError::Start`].
    async fn start(&self, launch: &Launch) -> Result<Instance, EngineError>;

    /// What runs here, with what was adopted from before a restart of the agent.
    async fn instances(&self) -> Vec<Instance>;

    /// Stops every thread of the service and returns when they all stand. May wait for a few
    /// milliseconds. When that fails the hold stays: the caller thaws, disowns or kills.
    ///
    /// # Errors
    /// [`EngineError::NotHere`], [`EngineError::Stuck`] or [`EngineError::System`].
    fn freeze(&self, service: ServiceId, hold: Hold) -> Result<(), EngineError>;

    /// Lifts this hold; the service runs on when it was the last one.
    ///
    /// # Errors
    /// [`EngineError::NotHere`] or [`EngineError::System`].
    fn thaw(&self, service: ServiceId, hold: Hold) -> Result<(), EngineError>;

    /// Forgets this hold and leaves the service as it is: it is another's now to let it run on.
    ///
    /// # Errors
    /// [`EngineError::NotHere`].
    fn disown(&self, service: ServiceId, hold: Hold) -> Result<(), EngineError>;

    /// Asks it to end, and kills it when the grace is over. A service held for its lease is killed
    /// at once, for it may not run another instruction. Returns when nothing of it is left.
    ///
    /// # Errors
    /// [`EngineError::NotHere`], [`EngineError::Stuck`] or [`EngineError::System`].
    async fn stop(&self, service: ServiceId, grace: Duration) -> Result<Exit, EngineError>;

    /// Kills it. Returns when nothing of it is left.
    ///
    /// # Errors
    /// [`EngineError::NotHere`], [`EngineError::Stuck`] or [`EngineError::System`].
    async fn kill(&self, service: ServiceId) -> Result<Exit, EngineError>;

    /// Waits until it serves.
    ///
    /// # Errors
    /// [`EngineError::NotHere`], [`EngineError::NotReady`] or [`EngineError::Ended`].
    async fn ready(&self, service: ServiceId, deadline: Duration) -> Result<(), EngineError>;

    /// Tells of each end from now on. A receiver that lags loses the oldest: [`Self::instances`]
    /// has the truth.
    fn exits(&self) -> broadcast::Receiver<Exit>;
}

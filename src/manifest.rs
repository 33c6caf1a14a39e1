//! Deployment files: a subset of the Compose format with `x-flocker` for what Compose lacks.
//!
//! ```text
//!   bytes ─▶ yaml (tree with lines, bounded) ─▶ interpolate (${VAR}) ─▶ compose ─▶ Deployment
//! ```
//!
//! A key that is not understood is refused by name, never ignored. Reading a file has no effect
//! and asks nobody: ids are the agent's to give.

mod compose;
mod error;
mod interpolate;
mod read;
mod words;
mod yaml;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

pub use error::{Fault, ManifestError};

use flocker_base::Name;
use flocker_gossip::model::{EngineKind, Failover, RouteKey, VolumePolicy};
use serde::{Deserialize, Serialize};

/// Largest deployment file.
pub const MAX_BYTES: usize = 1024 * 1024;

/// Reads a deployment file, with variables from this process's environment. `-` is the standard
/// input.
///
/// # Errors
/// [`ManifestError`] says which line and key is wrong and what to write instead.
pub fn load(path: &Path) -> Result<Deployment, ManifestError> {
    let unreadable = |source| ManifestError::Unreadable { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let limit = u64::try_from(MAX_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    let name = if path == Path::new("-") {
        std::io::stdin().lock().take(limit).read_to_end(&mut bytes).map_err(unreadable)?;
        "<stdin>".to_owned()
    } else {
        let file = std::fs::File::open(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => ManifestError::Missing(path.to_owned()),
            _ => unreadable(source),
        })?;
        file.take(limit).read_to_end(&mut bytes).map_err(unreadable)?;
        path.display().to_string()
    };
    parse(&name, &bytes, &|variable| std::env::var(variable).ok()).map_err(ManifestError::Wrong)
}

/// Reads the bytes of a deployment file that is called `file` in messages.
///
/// # Errors
/// The first thing that is wrong.
pub fn parse(
    file: &str,
    bytes: &[u8],
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<Deployment, Fault> {
    let read = || {
        if bytes.len() > MAX_BYTES {
            let what = format!("larger than {MAX_BYTES} bytes");
            return Err(error::Problem::new(0, "", what).hint("split it"));
        }
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let good = &bytes[..error.valid_up_to()];
            let line = 1 + good.iter().filter(|byte| **byte == b'\n').count();
            error::Problem::new(line, "", "not UTF-8 text").hint("save it as UTF-8")
        })?;
        let mut tree = yaml::parse(text)?;
        interpolate::tree(&mut tree, "", lookup)?;
        compose::deployment(tree)
    };
    read().map_err(|problem| problem.in_file(file))
}

/// What a deployment file asks for, checked in itself: every volume that a service mounts is
/// there, no volume is mounted twice, no route is given twice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deployment {
    /// The volumes, by name.
    pub volumes: Vec<VolumeDraft>,
    /// The services, by name.
    pub services: Vec<ServiceDraft>,
    /// The routes, by address.
    pub routes: Vec<RouteDraft>,
}

/// A volume that is to be. It has no id yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeDraft {
    /// Its name.
    pub name: Name,
    /// Replicas beside the master in its own region.
    pub replicas: u8,
    /// Replicas in other regions.
    pub remote_replicas: u8,
    /// Time from one snapshot to the next, if something changed.
    pub snapshot_every_ms: u64,
    /// How far behind a replica may be and still take over by itself.
    pub lag_limit_ms: u64,
    /// What happens when the master is lost.
    pub failover: Failover,
}

impl VolumeDraft {
    /// A volume of this name that says nothing else.
    #[must_use]
    pub fn with_defaults(name: Name) -> Self {
        let policy = VolumePolicy::default();
        Self {
            name,
            replicas: policy.local_replicas,
            remote_replicas: policy.remote_replicas,
            snapshot_every_ms: millis(policy.snapshot_interval),
            lag_limit_ms: millis(policy.lag_limit),
            failover: policy.failover,
        }
    }

    /// The same as the map keeps it.
    #[must_use]
    pub const fn policy(&self) -> VolumePolicy {
        VolumePolicy {
            local_replicas: self.replicas,
            remote_replicas: self.remote_replicas,
            snapshot_interval: Duration::from_millis(self.snapshot_every_ms),
            lag_limit: Duration::from_millis(self.lag_limit_ms),
            failover: self.failover,
        }
    }
}

/// A service that is to be. It has no id yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceDraft {
    /// Its name.
    pub name: Name,
    /// A program and its arguments.
    pub command: Vec<String>,
    /// Environment variables.
    pub environment: BTreeMap<String, String>,
    /// The volume that it runs with.
    pub volume: Name,
    /// Where a container sees that volume.
    pub volume_path: String,
    /// Path of the HTTP GET that answers 2xx once it is ready.
    pub health_path: Option<String>,
    /// Time between the request to stop and the kill.
    pub stop_grace_ms: u64,
    /// What runs it.
    pub engine: EngineKind,
}

impl ServiceDraft {
    /// Time between the request to stop and the kill.
    #[must_use]
    pub const fn stop_grace(&self) -> Duration {
        Duration::from_millis(self.stop_grace_ms)
    }
}

/// A route that is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteDraft {
    /// The HTTP host: lower case, no port.
    pub host: String,
    /// The service that answers.
    pub service: Name,
}

impl RouteDraft {
    /// The same as the map keeps it.
    #[must_use]
    pub fn key(&self) -> RouteKey {
        RouteKey::HttpHost(self.host.clone())
    }
}

impl std::fmt::Display for RouteDraft {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "http://{}", self.host)
    }
}

/// A span as the API writes it.
fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;

//! Writing a volume's newest snapshot, or a branch, into a folder to look at.

use std::path::PathBuf;

use flocker_base::{Head, Name};
use serde::{Deserialize, Serialize};

use super::Schema;

/// Export this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportRequest {
    /// The volume.
    pub volume: Name,
    /// The branch; the newest snapshot of the main line if not given.
    pub branch: Option<String>,
    /// The folder to write, absolute, on the agent's machine. It must not exist.
    pub into: PathBuf,
}

/// It was exported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exported {
    /// The folder.
    pub into: PathBuf,
    /// The snapshot that is in it.
    pub head: Head,
}

impl Schema for Exported {
    const SCHEMA: &'static str = "flocker.exported/1";
}

//! Repairing the placement map of a node whose agent does not run. It works on files alone and
//! must never touch what the peers cannot bring back.

use std::path::{Path, PathBuf};

use flocker_base::{Clock as _, SystemClock};
use flocker_gossip::store::{StateDb, StoreError};
use serde::{Deserialize, Serialize};

use crate::api::{ApiError, ErrorCode, Schema};

/// What a repair did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapRepaired {
    /// The map's file.
    pub file: PathBuf,
    /// Records that are still there.
    pub kept: u64,
    /// What was damaged and is gone, by name.
    pub dropped: Vec<String>,
    /// How many records are gone that could not be named; the largest number if nobody knows.
    pub unnamed: Option<u64>,
    /// Where the damaged file is now, if records were copied out of it.
    pub old_file: Option<PathBuf>,
}

impl Schema for MapRepaired {
    const SCHEMA: &'static str = "flocker.map-repaired/1";
}

/// Repairs the map in this state folder.
///
/// # Errors
/// [`ErrorCode::FileMissing`] without a store in it, [`ErrorCode::AlreadyRunning`] while its agent
/// runs, and what the store says.
pub fn map(folder: &Path) -> Result<MapRepaired, ApiError> {
    let path = folder.join("state.redb");
    if !path.exists() {
        let text = format!("{} is no state folder: it has no state.redb", folder.display());
        return Err(ApiError::new(ErrorCode::FileMissing, text)
            .hint("name the folder of the node with --state-dir"));
    }
    // The store is there, so no id is made.
    let db = StateDb::open(&path, SystemClock.wall(), [0; 10]).map_err(|e| of_store(&e))?;
    let done = db.repair_map().map_err(|e| of_store(&e))?;
    let flocker_gossip::store::Repaired { file, kept, dropped, unnamed, old_file } = done;
    Ok(MapRepaired { file, kept, dropped, unnamed, old_file })
}

fn of_store(error: &StoreError) -> ApiError {
    match error {
        StoreError::InUse { .. } => ApiError::new(ErrorCode::AlreadyRunning, error.to_string())
            .hint("stop the agent of this state folder first"),
        _ => ApiError::internal(error.to_string()),
    }
}

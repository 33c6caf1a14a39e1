//! Writes a volume's newest snapshot, or a branch, into a folder for people to look at. It reads
//! what is held on this node alone and never writes into a folder that is there already.

use std::path::PathBuf;
use std::sync::Arc;

use flocker_base::VolumeId;
use flocker_replicate::{Backend, BackendError, Guid};

use super::parts::Parts;
use crate::api::{ApiError, ErrorCode, ExportRequest, Exported};

/// Exports.
pub(super) async fn run(parts: &Arc<Parts>, request: ExportRequest) -> Result<Exported, ApiError> {
    let view = parts.map_view();
    let volume = view.volume_named(&request.volume).map(|v| v.spec.id).ok_or_else(|| {
        ApiError::not_found(format!("there is no volume {}", request.volume))
            .hint("list them: flocker volume ls")
    })?;
    if !request.into.is_absolute() {
        return Err(ApiError::new(ErrorCode::Usage, "the folder to export into must be absolute"));
    }
    let backend = Arc::clone(&parts.backend);
    let ExportRequest { volume: name, branch, into } = request;
    let done =
        tokio::task::spawn_blocking(move || export(&*backend, volume, branch.as_deref(), into))
            .await
            .map_err(|e| ApiError::internal(format!("the export was cut short: {e}")))?;
    done.map_err(|error| match error {
        Failed::NoBranch(branch) => {
            ApiError::not_found(format!("volume {name} has no branch {branch} on {}", parts.name))
                .hint("branches are on the node that status names: run this there")
        }
        Failed::Empty => {
            ApiError::not_found(format!("volume {name} has no snapshot on {}", parts.name)).hint(
                "wait for its first snapshot, or run this on a node with a copy: flocker status",
            )
        }
        Failed::There(path) => {
            ApiError::new(ErrorCode::Usage, format!("{} is there already", path.display()))
                .hint("name a folder that does not exist")
        }
        Failed::Backend(BackendError::NoVolume(_)) => {
            ApiError::not_found(format!("{} holds no copy of volume {name}", parts.name))
                .hint("run this on a node that does: flocker volume ls -o wide")
        }
        Failed::Backend(e) => ApiError::internal(e.to_string()),
    })
}

enum Failed {
    NoBranch(String),
    Empty,
    There(PathBuf),
    Backend(BackendError),
}

impl From<BackendError> for Failed {
    fn from(error: BackendError) -> Self {
        Self::Backend(error)
    }
}

fn export(
    backend: &dyn Backend,
    volume: VolumeId,
    branch: Option<&str>,
    into: PathBuf,
) -> Result<Exported, Failed> {
    if into.exists() {
        return Err(Failed::There(into));
    }
    let (snapshot, head): (Guid, _) = match branch {
        Some(name) => {
            let branches = backend.branches(volume)?;
            let found = branches.iter().find(|b| b.name == name);
            let last = found.and_then(|b| b.snapshots.last());
            last.map(|s| (s.guid, s.head)).ok_or_else(|| Failed::NoBranch(name.to_owned()))?
        }
        None => {
            let last = backend.list(volume)?.pop();
            last.map(|s| (s.guid, s.head)).ok_or(Failed::Empty)?
        }
    };
    backend.export(volume, snapshot, &into)?;
    Ok(Exported { into, head })
}

//! The lines of the service under test, wherever they are: in the running service, in a copy's
//! newest snapshot, in a branch. It reads through the proxies and the API's exports alone.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use flocker::api::{ErrorCode, ExportRequest, Status};
use flocker_base::Name;

use crate::http::HttpClient;
use crate::invariants::writes::lines;
use crate::mesh::{HOST, Mesh, VOLUME};

/// Time for one answer of the service: it may have to fail over first.
const ANSWER: Duration = Duration::from_secs(20);

/// The service's file in its volume.
const FILE: &str = "log";

/// What the running service has, asked through this node's proxy.
///
/// # Errors
/// If it does not answer.
pub async fn in_service(mesh: &Mesh, through: usize) -> Result<Vec<String>> {
    let node = mesh.nodes().get(through).context("no such node")?;
    let entries = HttpClient::new(node.http(), HOST).get("/entries", ANSWER).await;
    let entries = entries
        .map_err(|why| anyhow!("through {} the service gives no entries: {why}", node.name()))?;
    Ok(lines(&entries))
}

/// What the newest snapshot on this node has; nothing if there is none.
///
/// # Errors
/// If it cannot be exported.
pub async fn in_copy(mesh: &Mesh, node: usize) -> Result<Vec<String>> {
    exported(mesh, node, None).await
}

/// What the branches have, by node and branch, as a status lists them.
///
/// # Errors
/// If one cannot be exported.
pub async fn in_branches(mesh: &Mesh, status: &Status) -> Result<BTreeMap<String, Vec<String>>> {
    let mut all = BTreeMap::new();
    for branch in status.volumes.iter().flat_map(|volume| &volume.branches) {
        let node = mesh.number_of(branch.node.as_str())?;
        let kept = exported(mesh, node, Some(&branch.name)).await?;
        all.insert(format!("branch {} on {}", branch.name, branch.node), kept);
    }
    Ok(all)
}

async fn exported(mesh: &Mesh, node: usize, branch: Option<&str>) -> Result<Vec<String>> {
    let node = mesh.nodes().get(node).context("no such node")?;
    let into = Folder(mesh.folder().join("export"));
    let request = ExportRequest {
        volume: Name::new(VOLUME)?,
        branch: branch.map(str::to_owned),
        into: into.0.clone(),
    };
    match node.client().export(&request).await {
        Ok(_) => {}
        Err(error) if error.code == ErrorCode::NotFound && branch.is_none() => {
            return Ok(Vec::new());
        }
        Err(error) => {
            let what = branch.unwrap_or("the main line");
            return Err(anyhow!(error).context(format!("cannot export {what} on {}", node.name())));
        }
    }
    match std::fs::read(into.0.join(FILE)) {
        Ok(log) => Ok(lines(&log)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).context("cannot read what was exported"),
    }
}

/// A folder that goes when it is dropped.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        // It lies in the mesh's folder and goes with that at the latest.
        drop(std::fs::remove_dir_all(&self.0));
    }
}

//! What the API's requests do. An edit of something that has a master goes to that master; any
//! other is made here and spreads by itself.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use flocker_base::{Name, StoreId, VolumeId};
use flocker_gossip::map::{Amendment, Edit};
use flocker_gossip::model::{RouteKey, ServiceSpec, VolumeSpec};
use tokio::sync::mpsc;

use super::allocate::Candidate;
use super::answers::start_move;
use super::care;
use super::deploy::{self, Existing};
use super::mender;
use super::mending::Presence;
use super::moving::{Move, ask};
use super::parts::Parts;
use super::promoting;
use super::reports::gather;
use super::revocation;
use super::rpc::{Reply, Request};
use super::status;
use super::waiting::{self, Outcome};
use crate::api::{
    ApiError, DeployReply, Destination, ErrorCode, EventList, EventQuery, ExportRequest, Exported,
    MapReply, MapRequest, MoveReport, MoveRequest, Operations, Progress, PromoteRequest, Promoted,
    Removed, ServiceList, Status, Version, VolumeList,
};
use crate::manifest::Deployment;

/// Time for a master to take in an edit.
const EDIT_DEADLINE: Duration = Duration::from_secs(5);
/// Time between two looks at a move that runs on another node.
const WATCH_EVERY: Duration = Duration::from_millis(50);
/// How long a peer that runs a move may be silent before the watcher gives up on it.
const WATCH_PATIENCE: u32 = 100;

/// The agent's operations.
#[derive(Clone, Debug)]
pub(super) struct AgentOperations {
    pub(super) parts: Arc<Parts>,
    /// SHA-256 of the authority's certificate, which a token pins, and whether that is outside.
    pub(super) authority: ([u8; 32], bool),
}

#[async_trait]
impl Operations for AgentOperations {
    async fn status(&self) -> Result<Status, ApiError> {
        let mut status = status::build(&gather(&self.parts).await);
        revocation::attend(&self.parts, &mut status);
        Ok(status)
    }

    async fn deploy(&self, deployment: Deployment) -> Result<DeployReply, ApiError> {
        let parts = &self.parts;
        revocation::member(parts)?;
        let existing = existing(parts);
        let (now, candidates) = (parts.clock.wall(), candidates(parts));
        let plan = deploy::plan(&deployment, &existing, &candidates, now, || parts.random10())?;
        for shortfall in &plan.shortfalls {
            tracing::warn!("{shortfall}");
        }
        // Volumes first: a service whose volume is not known would have nowhere to run.
        let mut here = Vec::new();
        let view = parts.map_view();
        let mut warnings = plan.shortfalls;
        for volume in plan.volumes {
            match view.volume(&volume.id) {
                Some(seen) => {
                    let amendment = Amendment::to(seen, &volume);
                    let outcome = waiting::amend(parts, volume.id, amendment).await?;
                    warnings.extend(waits(outcome, &format!("volume {}", volume.name)));
                }
                None => here.push(Edit::PutVolume(volume)),
            }
        }
        for service in plan.services {
            match view.service(&service.id) {
                Some(seen) => {
                    let amendment = Amendment::to(seen, &service);
                    let outcome = waiting::amend(parts, service.volume.volume, amendment).await?;
                    warnings.extend(waits(outcome, &format!("service {}", service.name)));
                }
                None => here.push(Edit::PutService(service)),
            }
        }
        here.extend(plan.routes.into_iter().map(Edit::PutRoute));
        if !here.is_empty() {
            parts.map.edit(here).map_err(|e| ApiError::internal(e.to_string()))?;
        }
        parts.wake.notify_one();
        Ok(DeployReply { changes: plan.changes, warnings })
    }

    async fn promote(&self, request: PromoteRequest) -> Result<Promoted, ApiError> {
        Box::pin(promoting::run(&self.parts, request)).await
    }

    async fn events(&self, query: EventQuery) -> Result<EventList, ApiError> {
        Ok(self.parts.events.after(query.after, query.wait()).await)
    }

    async fn services(&self) -> Result<ServiceList, ApiError> {
        let mut services = self.status().await?.services;
        services.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(ServiceList { services })
    }

    async fn remove_service(&self, service: Name) -> Result<Removed, ApiError> {
        let parts = &self.parts;
        revocation::member(parts)?;
        let spec = find_service(parts, &service)?;
        let view = parts.map_view();
        let keys: Vec<RouteKey> = view
            .routes()
            .filter(|r| r.spec.service == spec.id)
            .map(|r| r.spec.key.clone())
            .collect();
        let seen = view.service(&spec.id).map_or_else(|| spec.clone(), |s| s.written());
        let outcome = waiting::amend(parts, spec.volume.volume, Amendment::deletion(&seen)).await?;
        if let Outcome::Waits { number, why } = outcome {
            let text =
                format!("service {service} stays until its volume's master removes it: {why}");
            return Err(ApiError::new(ErrorCode::TimedOut, text).hint(format!(
                "the removal waits as edit {number}: flocker pending ls, flocker pending drop {number}"
            )));
        }
        let edits = keys.iter().cloned().map(Edit::DeleteRoute).collect::<Vec<_>>();
        if !edits.is_empty() {
            parts.map.edit(edits).map_err(|e| ApiError::internal(e.to_string()))?;
        }
        parts.wake.notify_one();
        let routes =
            keys.into_iter().map(|RouteKey::HttpHost(host)| format!("http://{host}")).collect();
        let volume_kept = view.volume(&spec.volume.volume).map(|v| v.spec.name.clone());
        Ok(Removed { service, routes, volume_kept })
    }

    async fn volumes(&self) -> Result<VolumeList, ApiError> {
        let mut volumes = self.status().await?.volumes;
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(VolumeList { volumes })
    }

    async fn move_service(
        &self,
        request: MoveRequest,
        progress: mpsc::Sender<Progress>,
    ) -> Result<MoveReport, ApiError> {
        let parts = &self.parts;
        revocation::member(parts)?;
        let spec = find_service(parts, &request.service)?;
        let master = match remote_master(parts, spec.volume.volume) {
            Some(master) => master,
            None => parts.me,
        };
        let operation = if master == parts.me {
            start_move(parts, &request)?
        } else {
            match ask(parts, master, &Request::StartMove(request), EDIT_DEADLINE).await? {
                Reply::Started { operation } => operation,
                other => return Err(nonsense(&other)),
            }
        };
        watch(parts, master, operation, &progress).await
    }

    async fn map(&self, request: MapRequest) -> Result<MapReply, ApiError> {
        care::handle(&self.parts, request).await
    }

    async fn export(&self, request: ExportRequest) -> Result<Exported, ApiError> {
        super::export::run(&self.parts, request).await
    }

    async fn version(&self) -> Version {
        Version { version: env!("CARGO_PKG_VERSION").to_owned(), node: self.parts.name.clone() }
    }
}

/// Follows a move to its end, wherever it runs.
async fn watch(
    parts: &Arc<Parts>,
    master: StoreId,
    operation: u64,
    progress: &mpsc::Sender<Progress>,
) -> Result<MoveReport, ApiError> {
    let mut from = 0u32;
    let mut failures = 0;
    loop {
        let reply = if master == parts.me {
            parts.moves.watch(operation, from).ok_or_else(|| ApiError::not_found("no such move"))
        } else {
            ask(parts, master, &Request::WatchMove { operation, from }, EDIT_DEADLINE).await
        };
        match reply {
            Ok(Reply::Progress { lines, outcome }) => {
                failures = 0;
                from = from.saturating_add(u32::try_from(lines.len()).unwrap_or(u32::MAX));
                for line in lines {
                    // A caller that is slow or gone misses lines.
                    drop(progress.try_send(line));
                }
                if let Some(outcome) = outcome {
                    return outcome;
                }
            }
            Ok(other) => return Err(nonsense(&other)),
            Err(error) => {
                failures += 1;
                if failures >= WATCH_PATIENCE || error.code == ErrorCode::NotFound {
                    return Err(error);
                }
            }
        }
        tokio::time::sleep(WATCH_EVERY).await;
    }
}

/// Checks a move on the master and says where it leads.
pub(super) fn resolve_move(parts: &Parts, request: &MoveRequest) -> Result<Move, ApiError> {
    let service = find_service(parts, &request.service)?;
    let id = service.volume.volume;
    let view = parts.map_view();
    let volume: VolumeSpec = view
        .volume(&id)
        .map(|v| v.spec.clone())
        .ok_or_else(|| ApiError::not_found(format!("the volume of {} is gone", service.name)))?;
    if parts.holds(id).is_none() {
        return Err(ApiError::new(
            ErrorCode::Fenced,
            format!("{} does not hold volume {} at the moment", parts.name, volume.name),
        )
        .hint("see where it is: flocker status"));
    }
    let replicas =
        parts.placement(id).map_or_else(|| volume.birth.replicas.clone(), |p| p.replicas);
    let target = choose_target(parts, &request.to, &replicas)?;
    if target == parts.me {
        return Err(ApiError::new(
            ErrorCode::CannotPlace,
            format!("{} is on {} already", service.name, parts.name),
        )
        .hint("name another node or region"));
    }
    Ok(Move { service, volume, target })
}

fn choose_target(
    parts: &Parts,
    to: &Destination,
    replicas: &[StoreId],
) -> Result<StoreId, ApiError> {
    let names = |stores: &[StoreId]| {
        let names: Vec<String> = stores.iter().map(|s| parts.name_of(*s).to_string()).collect();
        names.join(", ")
    };
    let holders = format!("copies are on: {}", names(replicas));
    match to {
        Destination::Node(name) => {
            let view = parts.map_view();
            let node = view.node_named(name).map(|n| n.spec.store).ok_or_else(|| {
                ApiError::not_found(format!("there is no node {name}")).hint(holders.clone())
            })?;
            if !replicas.contains(&node) {
                return Err(ApiError::new(
                    ErrorCode::CannotPlace,
                    format!("node {name} holds no copy of the volume"),
                )
                .hint(holders));
            }
            if !parts.lives(node) {
                return Err(ApiError::new(
                    ErrorCode::CannotPlace,
                    format!("node {name} does not answer"),
                )
                .hint("wait for it, or name another: flocker status"));
            }
            Ok(node)
        }
        Destination::Region(region) => replicas
            .iter()
            .copied()
            .filter(|s| *s != parts.me && parts.lives(*s))
            .find(|s| parts.region_of(*s).as_ref() == Some(region))
            .ok_or_else(|| {
                ApiError::new(
                    ErrorCode::CannotPlace,
                    format!("no other live node of region {region} holds a copy of the volume"),
                )
                .hint(holders)
            }),
    }
}

fn find_service(parts: &Parts, name: &Name) -> Result<ServiceSpec, ApiError> {
    parts.map_view().service_named(name).map(|s| s.spec.clone()).ok_or_else(|| {
        ApiError::not_found(format!("there is no service {name}"))
            .hint("list them: flocker service ls")
    })
}

/// The volume's master, if it is another node.
fn remote_master(parts: &Parts, volume: VolumeId) -> Option<StoreId> {
    if parts.holds(volume).is_some() {
        return None;
    }
    parts.masters.of(volume).map(|(_, store)| store).filter(|s| *s != parts.me)
}

/// What to tell of an edit that waits.
fn waits(outcome: Outcome, what: &str) -> Option<String> {
    match outcome {
        Outcome::Made => None,
        Outcome::Waits { number, why } => Some(format!(
            "{what}: the change waits for the master as edit {number}, because {why}; see \
             'flocker pending ls'"
        )),
    }
}

fn nonsense(reply: &Reply) -> ApiError {
    ApiError::internal(format!("an answer that makes no sense: {reply:?}"))
        .hint("are all nodes of one version? flocker status")
}

fn existing(parts: &Parts) -> Existing {
    let view = parts.map_view();
    Existing {
        volumes: view.volumes().map(|v| (v.spec.name.clone(), v.spec.clone())).collect(),
        services: view.services().map(|s| (s.spec.name.clone(), s.spec.clone())).collect(),
        routes: view.routes().map(|r| (r.spec.key.clone(), r.spec.clone())).collect(),
    }
}

/// The nodes that may take a volume: those that live.
fn candidates(parts: &Parts) -> Vec<Candidate> {
    let nodes = mender::nodes(parts).into_iter();
    nodes.filter(|n| n.presence == Presence::Live).map(|n| n.candidate).collect()
}

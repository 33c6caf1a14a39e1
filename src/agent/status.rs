//! The status document: a pure function from what this node knows and what its peers reported.
//! What is not known stays `None`; nothing is guessed.

use std::collections::BTreeMap;

use flocker_base::{ClusterId, Epoch, Name, StoreId, WallTime};
use flocker_gossip::model::{
    Failover, Placement, PlacementState, RouteKey, RouteSpec, ServiceSpec, VolumeSpec,
};

use super::rpc::{CopyReport, InstanceReport, Report};
use crate::api::{
    Attention, BranchStatus, ClusterStatus, Liveness, NodeStatus, OperationStatus, ReplicaStatus,
    RouteStatus, ServiceState, ServiceStatus, Severity, Status, VolumeState, VolumeStatus,
};

/// What the status is made of.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The viewing node.
    pub me: StoreId,
    /// Its wall clock.
    pub at: WallTime,
    /// The cluster.
    pub cluster: ClusterId,
    /// The nodes, as membership and the map know them.
    pub nodes: Vec<NodeStatus>,
    /// The volumes of the map, with their placements.
    pub volumes: Vec<(VolumeSpec, Option<Placement>)>,
    /// The services of the map.
    pub services: Vec<ServiceSpec>,
    /// The routes of the map.
    pub routes: Vec<RouteSpec>,
    /// What needs a person by the map's own account.
    pub conflicts: Vec<Attention>,
    /// What needs a person about the viewing node's certificate.
    pub certificate: Vec<Attention>,
    /// The nodes' own reports; a node that did not answer in time is missing.
    pub reports: BTreeMap<StoreId, Report>,
    /// What is under way here.
    pub operations: Vec<OperationStatus>,
}

/// Makes the document.
#[must_use]
pub fn build(sources: &Sources) -> Status {
    let volumes: Vec<VolumeStatus> =
        sources.volumes.iter().map(|(v, p)| volume_status(sources, v, p.as_ref())).collect();
    let services: Vec<ServiceStatus> =
        sources.services.iter().map(|s| service_status(sources, s)).collect();
    let routes = sources
        .routes
        .iter()
        .filter_map(|route| {
            let service = services.iter().find(|s| s.id == route.service)?;
            let RouteKey::HttpHost(host) = &route.key;
            Some(RouteStatus {
                route: format!("http://{host}"),
                service: service.name.clone(),
                node: service.node.clone(),
            })
        })
        .collect();
    let silent = sources
        .nodes
        .iter()
        .any(|n| n.liveness != Liveness::Removed && !sources.reports.contains_key(&n.store));
    Status {
        viewed_from: sources.name(sources.me),
        at: sources.at,
        oldest_fact_ms: if silent { None } else { Some(0) },
        cluster: ClusterStatus { id: sources.cluster },
        attention: attention(sources, &volumes, &services),
        nodes: sources.nodes.clone(),
        volumes,
        services,
        routes,
        operations: sources.operations.clone(),
    }
}

impl Sources {
    /// A node's name; of one that is not in the map, its short id.
    fn name(&self, store: StoreId) -> Name {
        let known = self.nodes.iter().find(|n| n.store == store).map(|n| n.name.clone());
        known
            .or_else(|| Name::new(store.short()).ok())
            .unwrap_or_else(|| self.nodes[0].name.clone())
    }

    fn region(&self, store: StoreId) -> Option<&Name> {
        self.nodes.iter().find(|n| n.store == store).map(|n| &n.region)
    }

    fn lives(&self, store: StoreId) -> bool {
        self.nodes.iter().any(|n| n.store == store && n.liveness == Liveness::Live)
    }

    fn copies(
        &self,
        volume: flocker_base::VolumeId,
    ) -> impl Iterator<Item = (StoreId, &CopyReport)> {
        self.reports.iter().filter_map(move |(store, report)| {
            report.copies.iter().find(|c| c.volume == volume).map(|c| (*store, c))
        })
    }

    fn instance(&self, service: &ServiceSpec) -> Option<(StoreId, &InstanceReport)> {
        self.reports
            .iter()
            .filter_map(|(store, report)| {
                report.instances.iter().find(|i| i.service == service.id).map(|i| (*store, i))
            })
            .max_by_key(|(_, i)| i.epoch)
    }
}

fn volume_status(
    sources: &Sources,
    volume: &VolumeSpec,
    placement: Option<&Placement>,
) -> VolumeStatus {
    let holder = sources
        .copies(volume.id)
        .filter_map(|(store, copy)| copy.lease.map(|(epoch, left)| (epoch, left, store, copy)))
        .max_by_key(|(epoch, ..)| *epoch);
    let said = placement.map(|p| (p.epoch, p.holder));
    let master = holder.map(|(_, _, store, _)| store).or_else(|| {
        // Not heard from itself: the map's word counts while its master lives.
        said.map(|(_, store)| store).filter(|s| sources.lives(*s))
    });
    let epoch = holder.map(|(epoch, ..)| epoch).into_iter().chain(said.map(|s| s.0)).max();
    let needs = sources.copies(volume.id).find_map(|(_, c)| c.needs_decision.clone());
    let state = volume_state(sources, placement, holder.map(|h| h.3), needs.is_some());
    let voters = placement.map_or(&volume.birth.voters, |p| &p.voters.voters);
    let (can_fail_over, why_not) = can_fail_over(sources, volume, placement, master);
    let mut branches: Vec<BranchStatus> = sources
        .copies(volume.id)
        .flat_map(|(store, copy)| {
            let node = sources.name(store);
            copy.branches.iter().map(move |(name, head)| BranchStatus {
                name: name.clone(),
                node: node.clone(),
                head: Some(*head),
            })
        })
        .collect();
    branches.sort_by(|a, b| (&a.node, &a.name).cmp(&(&b.node, &b.name)));
    VolumeStatus {
        id: volume.id,
        name: volume.name.clone(),
        master: master.map(|s| sources.name(s)),
        epoch,
        state,
        lease_left_ms: holder.map(|(_, left, ..)| left),
        snapshot_every_ms: super::moving::millis(volume.policy.snapshot_interval),
        voters: voters.iter().map(|s| sources.name(*s)).collect(),
        replicas: replicas(sources, volume, placement, master),
        branches,
        can_fail_over,
        why_not: needs.or(why_not),
    }
}

fn volume_state(
    sources: &Sources,
    placement: Option<&Placement>,
    holder: Option<&CopyReport>,
    needs_decision: bool,
) -> VolumeState {
    match (holder, placement) {
        (_, Some(p)) if p.state == PlacementState::Deleted => VolumeState::Deleted,
        (Some(copy), _) if copy.frozen => VolumeState::Frozen,
        (Some(_), Some(p)) if matches!(p.state, PlacementState::Releasing(_)) => {
            VolumeState::Moving
        }
        (Some(_), _) => VolumeState::Active,
        (None, _) if needs_decision => VolumeState::NeedsDecision,
        (None, Some(p)) if sources.lives(p.holder) && !sources.reports.contains_key(&p.holder) => {
            VolumeState::Unknown
        }
        (None, _) => VolumeState::Electing,
    }
}

fn replicas(
    sources: &Sources,
    volume: &VolumeSpec,
    placement: Option<&Placement>,
    master: Option<StoreId>,
) -> Vec<ReplicaStatus> {
    let holders = placement.map_or(&volume.birth.replicas, |p| &p.replicas);
    let told = master.and_then(|m| sources.copies(volume.id).find(|(s, _)| *s == m));
    let newest = told.and_then(|(_, copy)| copy.head);
    let mut ordered: Vec<StoreId> = holders.clone();
    ordered.sort_by_key(|s| Some(*s) != master);
    ordered
        .into_iter()
        .map(|store| {
            let own = sources.copies(volume.id).find(|(s, _)| *s == store).map(|(_, c)| c);
            let acked = told.and_then(|(_, c)| c.replicas.iter().find(|r| r.store == store));
            let is_master = Some(store) == master;
            let head = own.and_then(|c| c.head).or_else(|| acked.and_then(|a| a.acked));
            ReplicaStatus {
                node: sources.name(store),
                head,
                lag_ms: if is_master { Some(0) } else { acked.and_then(|a| a.lag_ms) },
                acked: newest.is_some() && (is_master || acked.is_some_and(|a| a.acked == newest)),
            }
        })
        .collect()
}

fn can_fail_over(
    sources: &Sources,
    volume: &VolumeSpec,
    placement: Option<&Placement>,
    master: Option<StoreId>,
) -> (bool, Option<String>) {
    let holders = placement.map_or(&volume.birth.replicas, |p| &p.replicas);
    let voters = placement.map_or(&volume.birth.voters, |p| &p.voters.voters);
    let no = |why: &str| (false, Some(why.to_owned()));
    if volume.policy.failover == Failover::Manual {
        return no("its policy is manual failover");
    }
    if voters.len() < 3 {
        return no(
            "it has one voter: volumes made once there is a third node, however small, fail over by themselves",
        );
    }
    let others = |s: &&StoreId| Some(**s) != master && sources.lives(**s);
    let spare = voters.iter().filter(others).count();
    if spare * 2 <= voters.len() {
        return no("too few of its voters live to elect another master");
    }
    if holders.iter().filter(others).count() == 0 {
        return no("no other live node holds a copy");
    }
    let home = master.map(|store| sources.region(store));
    let near = |s: &&StoreId| others(s) && Some(sources.region(**s)) == home;
    if volume.policy.failover == Failover::InRegion && holders.iter().filter(near).count() == 0 {
        return no(
            "no other live node of its master's region holds a copy, and its policy keeps it there \
             (failover: in-region)",
        );
    }
    (true, None)
}

fn service_status(sources: &Sources, service: &ServiceSpec) -> ServiceStatus {
    let volume = sources.volumes.iter().find(|(v, _)| v.id == service.volume.volume);
    let instance = sources.instance(service);
    let moving = volume
        .and_then(|(_, p)| p.as_ref())
        .is_some_and(|p| matches!(p.state, PlacementState::Releasing(_)));
    let holder = volume.and_then(|(_, p)| p.as_ref()).map(|p| p.holder);
    let state = match instance {
        Some((_, i)) if i.frozen => ServiceState::Frozen,
        Some((_, i)) if i.held => ServiceState::Held,
        Some((_, i)) if i.ready => ServiceState::Running,
        Some(_) => ServiceState::Starting,
        None if moving => ServiceState::Moving,
        None if holder.is_some_and(|h| !sources.reports.contains_key(&h)) => ServiceState::Unknown,
        None => ServiceState::Stopped,
    };
    let epoch: Option<Epoch> = instance.map(|(_, i)| i.epoch);
    ServiceStatus {
        id: service.id,
        name: service.name.clone(),
        volume: volume.map_or_else(|| service.name.clone(), |(v, _)| v.name.clone()),
        node: instance.map(|(s, _)| s).or(holder).map(|s| sources.name(s)),
        state,
        address: instance.map(|(_, i)| i.address),
        pid: instance.map(|(_, i)| i.pid),
        epoch,
    }
}

fn attention(
    sources: &Sources,
    volumes: &[VolumeStatus],
    services: &[ServiceStatus],
) -> Vec<Attention> {
    let mut found = Vec::new();
    let mut say = |severity, text: String, command: Option<String>| {
        found.push(Attention { severity, text, command });
    };
    for volume in volumes {
        match volume.state {
            VolumeState::NeedsDecision => {
                let why = volume.why_not.clone().unwrap_or_default();
                say(
                    Severity::Critical,
                    format!("volume {} has no master: {why}", volume.name),
                    Some(format!("flocker volume promote {}", volume.name)),
                );
            }
            VolumeState::Electing => say(
                Severity::Critical,
                format!("volume {} has no master at the moment", volume.name),
                Some(promotion(sources, volume).unwrap_or_else(|| "flocker status".into())),
            ),
            _ => {}
        }
        for branch in &volume.branches {
            say(
                Severity::Warning,
                format!(
                    "volume {}: branch {} on {} keeps writes that were not replicated",
                    volume.name, branch.name, branch.node
                ),
                Some("flocker volume ls".into()),
            );
        }
    }
    for service in services.iter().filter(|s| s.state == ServiceState::Stopped) {
        say(Severity::Critical, format!("service {} runs nowhere", service.name), None);
    }
    for (store, _) in sources.reports.iter().filter(|(_, report)| report.disk_full) {
        let text = format!(
            "the disk of node {} is full: it takes nothing over, and no changes of the map",
            sources.name(*store)
        );
        say(Severity::Critical, text, None);
    }
    for node in sources.nodes.iter().filter(|n| n.liveness == Liveness::Suspected) {
        say(Severity::Warning, format!("node {} does not answer", node.name), None);
    }
    found.extend(sources.conflicts.iter().cloned());
    found.extend(sources.certificate.iter().cloned());
    found.sort_by_key(|a| a.severity == Severity::Warning);
    found
}

/// The command that gives a volume a master which no election can; nothing if one still can.
fn promotion(sources: &Sources, volume: &VolumeStatus) -> Option<String> {
    let lives = |name: &&Name| {
        sources.nodes.iter().any(|node| node.name == **name && node.liveness == Liveness::Live)
    };
    let copy = volume.replicas.iter().map(|replica| &replica.node).find(lives)?;
    if volume.voters.iter().filter(lives).count() * 2 <= volume.voters.len() {
        let gone = volume.voters.iter().find(|name| !lives(name))?;
        return Some(format!(
            "flocker volume promote {} --node {copy} --force --gone {gone}",
            volume.name
        ));
    }
    let (spec, placement) = sources.volumes.iter().find(|(spec, _)| spec.id == volume.id)?;
    let policy = spec.policy.failover;
    let away = placement.as_ref().is_some_and(|p| {
        let home = sources.region(p.holder);
        !volume.replicas.iter().any(|r| {
            sources.nodes.iter().any(|n| {
                n.name == r.node && n.liveness == Liveness::Live && Some(&n.region) == home
            })
        })
    });
    let waits = policy == Failover::Manual || (policy == Failover::InRegion && away);
    waits.then(|| format!("flocker volume promote {} --node {copy}", volume.name))
}

#[cfg(test)]
mod tests;

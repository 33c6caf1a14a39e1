//! What this node reports of itself, and how the reports of all are gathered for a status. A peer
//! that does not answer in time is left out, and the status says so.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use flocker_base::{StoreId, VolumeId};
use flocker_gossip::membership::{self, Member};
use flocker_replicate::VolumeProgress;
use tokio::task::JoinSet;

use super::care;
use super::moving::{ask, millis};
use super::parts::{Parts, locked};
use super::rpc::{CopyReport, InstanceReport, ReplicaReport, Reply, Report, Request};
use super::status::Sources;
use crate::api::{Liveness, NodeStatus, OperationStatus};

/// Time for a peer to report. A status is to be there within 200 ms.
const REPORT_DEADLINE: Duration = Duration::from_millis(150);
/// Peers asked at the same time.
const ASKED_AT_ONCE: usize = 64;

/// What this node holds and runs.
pub(super) async fn own_report(parts: &Arc<Parts>) -> Report {
    let branches = branches(parts).await;
    let view = parts.map_view();
    let progress = parts.replicator.progress().borrow().clone();
    let copies = view
        .volumes()
        .filter_map(|listed| copy_report(parts, listed.spec.id, &progress, &branches))
        .collect();
    let instances = locked(&parts.instances)
        .iter()
        .map(|i| InstanceReport {
            service: i.service,
            pid: i.pid,
            address: i.address,
            epoch: i.epoch,
            ready: parts.ready.has(i.service, i.epoch),
            frozen: i.frozen && parts.holds(i.volume).is_none(),
            held: parts.hands.grips(i.volume),
        })
        .collect();
    Report { copies, instances, disk_full: !parts.map.has_room() }
}

fn copy_report(
    parts: &Parts,
    volume: VolumeId,
    progress: &BTreeMap<VolumeId, VolumeProgress>,
    branches: &BTreeMap<VolumeId, Vec<(String, flocker_base::Head)>>,
) -> Option<CopyReport> {
    let lease = parts.lease(volume);
    let held = lease.as_ref().and_then(|l| l.held);
    let head = parts.replicator.head(volume);
    let signals = parts.board().of(volume);
    if head.is_none() && held.is_none() && signals.needs_decision.is_none() {
        return None;
    }
    let now = parts.now();
    let wall = parts.clock.wall();
    let replicas = progress.get(&volume).filter(|_| held.is_some()).map_or_else(Vec::new, |p| {
        p.replicas
            .iter()
            .map(|(store, r)| ReplicaReport {
                store: *store,
                acked: r.acked,
                lag_ms: match (r.acked, p.newest.as_ref()) {
                    // What is there now is all there: it lags by nothing.
                    (Some(acked), Some(newest)) if acked == newest.head => Some(0),
                    _ => r.acked_taken_at.map(|at| millis(wall.saturating_since(at))),
                },
                error: r.error.clone(),
            })
            .collect()
    });
    Some(CopyReport {
        volume,
        head: head.map(|(head, _)| head),
        lease: held.map(|h| (h.epoch, millis(h.until.saturating_since(now)))),
        frozen: held.is_some_and(|h| h.frozen),
        replicas,
        branches: branches.get(&volume).cloned().unwrap_or_default(),
        needs_decision: signals.needs_decision,
    })
}

async fn branches(parts: &Arc<Parts>) -> BTreeMap<VolumeId, Vec<(String, flocker_base::Head)>> {
    let backend = Arc::clone(&parts.backend);
    let read = tokio::task::spawn_blocking(move || {
        let mut all = BTreeMap::new();
        for volume in backend.volumes()? {
            let branches = backend.branches(volume)?;
            let listed: Vec<_> = branches
                .into_iter()
                .filter_map(|b| b.snapshots.last().map(|s| (b.name.clone(), s.head)))
                .collect();
            all.insert(volume, listed);
        }
        Ok::<_, flocker_replicate::BackendError>(all)
    });
    match read.await {
        Ok(Ok(all)) => all,
        Ok(Err(error)) => {
            tracing::warn!(%error, "cannot list branches");
            BTreeMap::new()
        }
        Err(error) => {
            tracing::warn!(%error, "cannot list branches");
            BTreeMap::new()
        }
    }
}

/// All that a status is made of, within its deadline.
pub(super) async fn gather(parts: &Arc<Parts>) -> Sources {
    let view = parts.map_view();
    let mut reports = peer_reports(parts).await;
    reports.insert(parts.me, own_report(parts).await);
    let operations = parts
        .hands
        .all()
        .into_iter()
        .map(|o| OperationStatus {
            id: o.number.to_string(),
            text: o.text,
            step: o.step,
            elapsed_ms: millis(parts.now() - o.began),
        })
        .collect();
    Sources {
        me: parts.me,
        at: parts.clock.wall(),
        cluster: parts.cluster,
        nodes: nodes(parts),
        volumes: view.volumes().map(|v| (v.spec.clone(), parts.placement(v.spec.id))).collect(),
        services: view.services().map(|s| s.spec.clone()).collect(),
        routes: view.routes().map(|r| r.spec.clone()).collect(),
        conflicts: care::attention(parts, &view),
        certificate: parts.certificate.attention(),
        reports,
        operations,
    }
}

async fn peer_reports(parts: &Arc<Parts>) -> BTreeMap<StoreId, Report> {
    let peers: Vec<StoreId> = {
        let view = parts.members.borrow();
        view.nodes
            .iter()
            .filter(|(s, m)| **s != parts.me && m.liveness == membership::Liveness::Live)
            .map(|(s, _)| *s)
            .collect()
    };
    let mut waiting = peers.into_iter();
    let mut asked = JoinSet::new();
    let mut reports = BTreeMap::new();
    loop {
        while asked.len() < ASKED_AT_ONCE
            && let Some(peer) = waiting.next()
        {
            let parts = Arc::clone(parts);
            asked.spawn(async move {
                (peer, ask(&parts, peer, &Request::Report, REPORT_DEADLINE).await)
            });
        }
        match asked.join_next().await {
            None => return reports,
            Some(Ok((peer, Ok(Reply::Report(report))))) => {
                reports.insert(peer, report);
            }
            Some(Ok((peer, other))) => {
                tracing::debug!(peer = %peer.short(), ?other, "no report");
            }
            Some(Err(error)) => tracing::warn!(%error, "a question for a report was cut short"),
        }
    }
}

fn nodes(parts: &Parts) -> Vec<NodeStatus> {
    let members = parts.members.borrow().clone();
    let view = parts.map_view();
    let mut nodes: BTreeMap<StoreId, NodeStatus> = BTreeMap::new();
    for listed in view.nodes() {
        let spec = &listed.spec;
        let mut node = blank(parts, spec.store, &spec.name, &spec.region);
        if spec.removed {
            node.liveness = Liveness::Removed;
        }
        nodes.insert(spec.store, node);
    }
    for (store, member) in &members.nodes {
        let node = nodes
            .entry(*store)
            .or_insert_with(|| blank(parts, *store, &member.facts.name, &member.facts.region));
        fill(parts, node, member);
    }
    let mut nodes: Vec<NodeStatus> = nodes.into_values().collect();
    nodes.sort_by(|a, b| (&a.region, &a.name).cmp(&(&b.region, &b.name)));
    nodes
}

fn blank(
    parts: &Parts,
    store: StoreId,
    name: &flocker_base::Name,
    region: &flocker_base::Name,
) -> NodeStatus {
    NodeStatus {
        store,
        name: name.clone(),
        region: region.clone(),
        liveness: if store == parts.me { Liveness::Live } else { Liveness::Unknown },
        suspected_for_ms: None,
        control: None,
        data: None,
        http: None,
        version: None,
        is_self: store == parts.me,
        rtt_ms: parts.control_rtt(store).map(millis),
    }
}

fn fill(parts: &Parts, node: &mut NodeStatus, member: &Member) {
    if node.liveness != Liveness::Removed {
        let live = node.is_self || member.liveness == membership::Liveness::Live;
        node.liveness = if live { Liveness::Live } else { Liveness::Suspected };
        if !live {
            node.suspected_for_ms = Some(millis(parts.now().saturating_since(member.since)));
        }
    }
    node.control = Some(member.facts.control);
    node.data = Some(member.facts.data);
    node.http = member.facts.http;
    node.version = Some(member.facts.version.clone());
}

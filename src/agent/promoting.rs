//! Making this node's copy of a volume the master because a person says so, within the quorum or by
//! force. It never does so by itself, and by force only for who names the master that is gone.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use flocker_base::{Epoch, Name, StoreId};
use flocker_gossip::lease::{CampaignFailure, LeaseError, MOST_VOTERS};
use flocker_gossip::model::{Placement, VolumeSpec, Voters};

use super::moving::ask;
use super::parts::Parts;
use super::revocation;
use super::rpc::{Reply, Request};
use crate::api::{ApiError, ErrorCode, PromoteRequest, Promoted};

/// How long the answer may wait for the service to serve here.
const SERVED_WITHIN: Duration = Duration::from_secs(15);
/// Time for another node to do all of it.
const ASKED_WITHIN: Duration = Duration::from_secs(50);

/// Promotes here, or has the node that is named do it.
pub(super) async fn run(parts: &Arc<Parts>, request: PromoteRequest) -> Result<Promoted, ApiError> {
    revocation::member(parts)?;
    let view = parts.map_view();
    let Some(node) = &request.node else { return here(parts, request).await };
    let known = view.node_named(node).map(|found| found.spec.store);
    let store = known.ok_or_else(|| {
        ApiError::not_found(format!("there is no node {node}")).hint("list them: flocker node ls")
    })?;
    if store == parts.me {
        return here(parts, request).await;
    }
    let asked = Request::Promote(PromoteRequest { node: None, ..request });
    match ask(parts, store, &asked, ASKED_WITHIN).await? {
        Reply::Promoted(promoted) => Ok(promoted),
        other => Err(ApiError::internal(format!("an answer that makes no sense: {other:?}"))),
    }
}

/// Promotes this node's copy.
pub(super) async fn here(
    parts: &Arc<Parts>,
    request: PromoteRequest,
) -> Result<Promoted, ApiError> {
    revocation::member(parts)?;
    let view = parts.map_view();
    let name = &request.volume;
    let volume = view.volume_named(name).map(|found| found.spec.clone()).ok_or_else(|| {
        ApiError::not_found(format!("there is no volume {name}"))
            .hint("list them: flocker volume ls")
    })?;
    let placement = parts.placement(volume.id);
    has_copy(parts, &volume, placement.as_ref())?;
    let voters = match &request.gone {
        Some(gone) => Some(voters(parts, &volume, placement.as_ref(), gone)?),
        None => None,
    };
    let forced = voters.is_some();
    tracing::warn!(volume = %name, forced, gone = ?request.gone, "told to promote this copy");
    let outcome = Box::pin(parts.leases.promote(volume.id, voters.clone())).await;
    let epoch = outcome.map_err(|why| refused(parts, &request, &why))?;
    tell(parts, &request, epoch, forced);
    parts.wake.notify_one();
    let service = parts.service_of(volume.id);
    let mut serving = None;
    if let Some(service) = service {
        let served = parts.until_serving_here(volume.id, SERVED_WITHIN).await;
        serving = served.is_some().then_some(service.name);
    }
    let names = |voters: Voters| voters.iter().map(|store| parts.name_of(*store)).collect();
    Ok(Promoted {
        volume: request.volume,
        node: parts.name.clone(),
        epoch,
        forced,
        voters: voters.map(names).unwrap_or_default(),
        serving,
    })
}

fn tell(parts: &Parts, request: &PromoteRequest, epoch: Epoch, forced: bool) {
    let how = if forced { " by force, under voters of its own" } else { "" };
    let text = format!(
        "{} leads volume {} under epoch {epoch}{how}: a person said so",
        parts.name, request.volume
    );
    parts.events.add(parts.clock.wall(), "volume.promoted", request.volume.as_str(), text);
}

fn has_copy(
    parts: &Parts,
    volume: &VolumeSpec,
    placement: Option<&Placement>,
) -> Result<(), ApiError> {
    if parts.replicator.head(volume.id).is_some() || parts.holds(volume.id).is_some() {
        return Ok(());
    }
    let replicas = placement.map_or(&volume.birth.replicas, |p| &p.replicas);
    let with: Vec<String> = replicas
        .iter()
        .filter(|store| **store != parts.me && parts.lives(**store))
        .map(|store| parts.name_of(*store).to_string())
        .collect();
    let error = ApiError::new(
        ErrorCode::CannotPlace,
        format!("{} has no copy of volume {}", parts.name, volume.name),
    );
    Err(match with.first() {
        Some(first) => error.hint(format!(
            "of {}, name one: --node {first}; see flocker volume ls",
            with.join(", ")
        )),
        None => error.hint("no node that lives is known to have one: see flocker volume ls"),
    })
}

/// The voters to go on with by force: this node and those that live and may have a copy, the former
/// master not among them.
fn voters(
    parts: &Parts,
    volume: &VolumeSpec,
    placement: Option<&Placement>,
    gone: &Name,
) -> Result<Voters, ApiError> {
    let (holder, replicas, former) = match placement {
        Some(placed) => (Some(placed.holder), &placed.replicas, placed.voters.members()),
        None => (None, &volume.birth.replicas, volume.birth.voters.iter().copied().collect()),
    };
    let master = holder.filter(|store| *store != parts.me).ok_or_else(|| {
        ApiError::new(ErrorCode::Usage, format!("{} has no other master", volume.name))
            .hint("leave --force out")
    })?;
    let master_name = parts.name_of(master);
    if master_name != *gone {
        let text = format!("the last known master of {} is {master_name}, not {gone}", volume.name);
        return Err(ApiError::new(ErrorCode::Usage, text).hint(format!(
            "make sure that {master_name} is off, then: --force --gone {master_name}"
        )));
    }
    Ok(chosen(parts.me, master, replicas, &former, |store| parts.lives(store)).into())
}

/// An odd number of them, replicas first.
fn chosen(
    me: StoreId,
    master: StoreId,
    replicas: &[StoreId],
    former: &BTreeSet<StoreId>,
    lives: impl Fn(StoreId) -> bool,
) -> BTreeSet<StoreId> {
    let mut all = vec![me];
    for store in replicas.iter().chain(former).copied() {
        if !all.contains(&store) && store != master && lives(store) {
            all.push(store);
        }
    }
    let most = if all.len().is_multiple_of(2) { all.len() - 1 } else { all.len() };
    all.truncate(most.min(MOST_VOTERS));
    all.into_iter().collect()
}

fn refused(parts: &Parts, request: &PromoteRequest, why: &LeaseError) -> ApiError {
    let volume = &request.volume;
    let LeaseError::NotPromoted { why, .. } = why else {
        return ApiError::internal(format!("volume {volume} was not promoted: {why}"))
            .hint("try again in a moment");
    };
    let named = |stores: &[StoreId]| {
        let names: Vec<_> = stores.iter().map(|s| parts.name_of(*s).to_string()).collect();
        names.join(", ")
    };
    match why {
        CampaignFailure::Held { holder, epoch } => {
            let holder = parts.name_of(*holder);
            let text = format!(
                "volume {volume} was not promoted: {holder} has it under epoch {epoch}, and a voter \
                 that answers still promises it so"
            );
            ApiError::new(ErrorCode::Fenced, text).hint(format!(
                "if {holder} lives: flocker move; if it died just now, its lease is over in a few \
                 seconds: try again"
            ))
        }
        CampaignFailure::NoQuorum { missing } => {
            let missing = named(missing);
            let text = format!(
                "volume {volume} was not promoted: too few voters answer; missing: {missing}"
            );
            ApiError::new(ErrorCode::Fenced, text).hint(format!(
                "start one of them again; if the master is gone for good and you accept that what \
                 only it had stays behind: flocker volume promote {volume} --force --gone MASTER"
            ))
        }
        other => {
            ApiError::new(ErrorCode::Fenced, format!("volume {volume} was not promoted: {other}"))
                .hint("see flocker status")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(id: u8) -> StoreId {
        StoreId::from_bytes([id; 16])
    }

    #[test]
    fn an_odd_number_votes_and_neither_the_former_master_nor_who_is_down_is_among_them() {
        let ids = |ids: &[u8]| ids.iter().map(|id| store(*id)).collect::<Vec<_>>();
        let cases: [(&[u8], &[u8], &[u8], &[u8]); 5] = [
            // replicas, former voters, who is down, the voters then
            (&[1, 2], &[1], &[], &[2]),
            (&[1, 2, 3], &[1, 2, 3], &[], &[2]),
            (&[1, 2, 3], &[1, 3, 4], &[], &[2, 3, 4]),
            (&[1, 2, 3, 4, 5, 6, 7, 8], &[9], &[3], &[2, 4, 5, 6, 7]),
            (&[1, 2, 3, 4], &[1, 2, 3], &[3, 4], &[2]),
        ];
        for (replicas, former, down, expected) in cases {
            let (replicas, former) = (ids(replicas), ids(former).into_iter().collect());
            let lives = |store: StoreId| !down.contains(&store.as_bytes()[0]);
            let voters = chosen(store(2), store(1), &replicas, &former, lives);
            assert_eq!(voters.into_iter().collect::<Vec<_>>(), ids(expected), "{replicas:?}");
        }
    }
}

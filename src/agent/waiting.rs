//! Edits of volumes and of services with volumes: they go through the volume's master, so that
//! they are in order. What its master cannot take now waits here on disk, is shown, and is sent
//! when the master can be reached; what it refuses is kept until a person drops it. An edit must
//! never be made over another one that its author did not see.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use flocker_base::{ServiceId, StoreId, VolumeId};
use flocker_gossip::map::pending::Pending;
use flocker_gossip::map::typed::Typed as _;
use flocker_gossip::map::{Amendment, Edit, Kind, MapError};
use flocker_gossip::model::{ServiceSpec, VolumeSpec};
use tokio_util::sync::CancellationToken;

use super::moving::ask;
use super::parts::Parts;
use super::rpc::{Reply, Request};
use crate::api::{ApiError, ErrorCode};

/// Time for a master to take in an edit.
const EDIT_DEADLINE: Duration = Duration::from_secs(5);
/// Time from one look at the waiting edits to the next.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What became of an edit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is made.
    Made,
    /// It waits under this number, because of this.
    Waits {
        /// Its number.
        number: u64,
        /// Why.
        why: String,
    },
}

/// Where an edit of a volume belongs.
enum Place {
    Here,
    There(StoreId),
    /// Nowhere at the moment, and why.
    Nowhere(String),
}

/// Why an edit was not made.
enum NotMade {
    /// It can be made later.
    Later(String),
    /// It never will.
    Refused(String),
}

/// Has the volume's master make the edit, or keeps it until that can be.
pub(super) async fn amend(
    parts: &Parts,
    volume: VolumeId,
    amendment: Amendment,
) -> Result<Outcome, ApiError> {
    match send(parts, volume, &amendment).await {
        Ok(()) => Ok(Outcome::Made),
        Err(NotMade::Refused(why)) => Err(ApiError::new(ErrorCode::Busy, why)
            .hint("look at what there is now with 'flocker status', then repeat it")),
        Err(NotMade::Later(why)) => {
            let number = parts.map.add_pending(amendment).map_err(|e| of_map(&e))?;
            tracing::info!(%volume, number, why, "an edit waits for the volume's master");
            Ok(Outcome::Waits { number, why })
        }
    }
}

/// Answers a node that asks this one, as the volume's master, to make an edit.
pub(super) fn answer(parts: &Parts, amendment: Amendment) -> Result<Reply, ApiError> {
    let Some(volume) = volume_of(parts, &amendment) else {
        return Ok(Reply::Outdated { why: format!("{} is not known here", amendment.key()) });
    };
    if parts.holds(volume).is_none() {
        let text = format!("{} is not the master of this volume at the moment", parts.name);
        return Err(ApiError::new(ErrorCode::Fenced, text).hint("try again in a moment"));
    }
    match make(parts, amendment) {
        Ok(()) => Ok(Reply::Done),
        Err(NotMade::Refused(why)) => Ok(Reply::Outdated { why }),
        Err(NotMade::Later(why)) => Err(ApiError::internal(why)),
    }
}

/// Sends what waits whenever its master can be reached, until the shutdown.
pub(super) async fn run(parts: Arc<Parts>, stop: CancellationToken) -> Result<()> {
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = looks.tick() => look(&parts).await?,
        }
    }
}

/// One look: the edits of one volume in their order, up to the first that has to wait on.
async fn look(parts: &Parts) -> Result<(), MapError> {
    let view = parts.map_view();
    let mut waits = BTreeSet::new();
    for (number, edit) in view.pending().filter(|(_, edit)| edit.refused.is_none()) {
        let Some(volume) = volume_of(parts, &edit.amendment) else {
            parts.map.refuse_pending(number, "the record is gone".to_owned())?;
            continue;
        };
        if waits.contains(&volume) {
            continue;
        }
        match send(parts, volume, &edit.amendment).await {
            Ok(()) => made(parts, number, edit)?,
            Err(NotMade::Later(_)) => drop(waits.insert(volume)),
            Err(NotMade::Refused(why)) => {
                tracing::warn!(number, why, "a waiting edit was refused by the volume's master");
                parts.map.refuse_pending(number, why)?;
            }
        }
    }
    Ok(())
}

fn made(parts: &Parts, number: u64, edit: &Pending) -> Result<(), MapError> {
    tracing::info!(number, record = %edit.amendment.key(), "a waiting edit was made");
    if edit.amendment.deletes()
        && let Some(service) = service_of(&edit.amendment)
    {
        // The routes went with the service when its removal was asked for.
        let view = parts.map_view();
        let routes = view.routes().filter(|route| route.spec.service == service);
        let edits: Vec<Edit> = routes.map(|r| Edit::DeleteRoute(r.spec.key.clone())).collect();
        if !edits.is_empty() {
            parts.map.edit(edits)?;
        }
    }
    parts.map.remove_pending(number)?;
    parts.wake.notify_one();
    Ok(())
}

async fn send(parts: &Parts, volume: VolumeId, amendment: &Amendment) -> Result<(), NotMade> {
    match place_of(parts, volume) {
        Place::Here => make(parts, amendment.clone()),
        Place::Nowhere(why) => Err(NotMade::Later(why)),
        Place::There(master) if !parts.lives(master) => {
            let why = format!("its master {} does not answer", parts.name_of(master));
            Err(NotMade::Later(why))
        }
        Place::There(master) => {
            let request = Request::Amend(amendment.clone());
            match ask(parts, master, &request, EDIT_DEADLINE).await {
                Ok(Reply::Done) => Ok(()),
                Ok(Reply::Outdated { why }) => Err(NotMade::Refused(why)),
                Ok(other) => Err(NotMade::Later(format!("an answer without sense: {other:?}"))),
                Err(error) => Err(NotMade::Later(error.message)),
            }
        }
    }
}

fn place_of(parts: &Parts, volume: VolumeId) -> Place {
    if parts.holds(volume).is_some() {
        return Place::Here;
    }
    match master_of(parts, volume) {
        Some(master) if master != parts.me => Place::There(master),
        Some(_) => Place::Nowhere(format!("{} has no lease of it at the moment", parts.name)),
        None => Place::Nowhere("no master of it is known".to_owned()),
    }
}

/// The master that an edit of the volume waits for: the newest known, else who was to be first.
pub(super) fn master_of(parts: &Parts, volume: VolumeId) -> Option<StoreId> {
    let known = parts.masters.of(volume).map(|(_, store)| store);
    known
        .or_else(|| parts.placement(volume).map(|placement| placement.holder))
        .or_else(|| parts.map_view().volume(&volume).map(|v| v.spec.birth.master))
}

fn make(parts: &Parts, amendment: Amendment) -> Result<(), NotMade> {
    match parts.map.edit([Edit::Amend(amendment)]) {
        Ok(()) => {
            parts.wake.notify_one();
            Ok(())
        }
        Err(error @ (MapError::ClockBehind { .. } | MapError::NoRoom { .. })) => {
            Err(NotMade::Later(error.to_string()))
        }
        Err(error) if error.is_fatal() => Err(NotMade::Later(error.to_string())),
        Err(error) => Err(NotMade::Refused(error.to_string())),
    }
}

/// The volume whose master decides on this edit, if the record is known.
pub(super) fn volume_of(parts: &Parts, amendment: &Amendment) -> Option<VolumeId> {
    match amendment.key().kind() {
        Kind::VOLUME => VolumeSpec::id_of(amendment.key()),
        Kind::SERVICE => {
            let service = service_of(amendment)?;
            parts.map_view().service(&service).map(|s| s.spec.volume.volume)
        }
        _ => None,
    }
}

fn service_of(amendment: &Amendment) -> Option<ServiceId> {
    let key = amendment.key();
    ServiceSpec::id_of(key).filter(|_| key.kind() == Kind::SERVICE)
}

/// An error of the map, for the caller of the API.
pub(super) fn of_map(error: &MapError) -> ApiError {
    let code = match error {
        MapError::Unknown { .. }
        | MapError::NotPending { .. }
        | MapError::NotQuarantined { .. } => ErrorCode::NotFound,
        MapError::ChangedMeanwhile { .. } | MapError::NoSuchValue { .. } => ErrorCode::Busy,
        MapError::GoesWithVolume { .. } | MapError::NameTaken { .. } => ErrorCode::Usage,
        _ => ErrorCode::Internal,
    };
    ApiError::new(code, error.to_string()).hint("nothing was changed")
}

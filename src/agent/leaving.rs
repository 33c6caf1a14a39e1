//! What an agent does before it ends by wish. Told to stop, it hands each service over as a planned
//! move does, so that no request fails and nothing is lost; where that cannot be, it stops the
//! service and keeps the lease for its return. When its parent is gone it only stops its services.
//! What it cannot do in time it leaves: the guard stops the services, and the leases run out.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::hands::Hand;
use super::moving::{self, Move};
use super::parts::{Parts, locked};
use crate::engine::{EngineError, Instance};

/// Time for all of it.
const DEADLINE: Duration = Duration::from_secs(10);
/// Longest grace of a service while its agent ends.
const LONGEST_GRACE: Duration = Duration::from_secs(4);

/// Leaves. Services side by side.
pub(super) async fn leave(parts: &Arc<Parts>, hand_over: bool) {
    parts.leaving.store(true, Ordering::Relaxed);
    let instances = locked(&parts.instances).clone();
    let mut leaving = JoinSet::new();
    for instance in instances {
        let parts = Arc::clone(parts);
        leaving.spawn(async move { leave_one(&parts, &instance, hand_over).await });
    }
    let all = async {
        while let Some(done) = leaving.join_next().await {
            if let Err(error) = done {
                tracing::error!(%error, "leaving was cut short");
            }
        }
    };
    if tokio::time::timeout(DEADLINE, all).await.is_err() {
        tracing::warn!("not everything was handed over in time: the leases run out by themselves");
    }
}

async fn leave_one(parts: &Arc<Parts>, instance: &Instance, hand_over: bool) {
    let text = format!("leave {}", instance.service.short());
    let Ok(hand) = parts.hands.take(instance.volume, text, parts.now()) else {
        // A move that is under way ends in its own way, or with this agent.
        return;
    };
    let hand = match destination(parts, instance).filter(|_| hand_over) {
        Some(plan) => {
            let (progress, _nobody_reads) = mpsc::channel(1);
            match moving::hand_over(parts, &hand, &plan, progress).await {
                Ok(epoch) => {
                    tracing::info!(
                        service = %plan.service.name, to = %parts.name_of(plan.target), %epoch,
                        "handed over"
                    );
                    return;
                }
                Err(error) => {
                    tracing::warn!(service = %plan.service.name, %error, "not handed over");
                    hand
                }
            }
        }
        None => hand,
    };
    stop(parts, instance, &hand).await;
}

/// Where the service may go: a live replica, if the volume can be had without this node's vote.
fn destination(parts: &Parts, instance: &Instance) -> Option<Move> {
    let service = parts.service_of(instance.volume)?;
    let volume = parts.map_view().volume(&instance.volume)?.spec.clone();
    let placement = parts.placement(instance.volume).filter(|p| p.holder == parts.me)?;
    let others =
        placement.voters.voters.iter().copied().filter(|s| *s != parts.me && parts.lives(*s));
    if !placement.voters.is_quorum(&others.collect()) {
        return None;
    }
    let mut targets = placement.replicas.iter().copied();
    let target = targets.find(|s| *s != parts.me && parts.lives(*s))?;
    Some(Move { service, volume, target })
}

async fn stop(parts: &Parts, instance: &Instance, hand: &Hand) {
    hand.grip();
    parts.proxy.hold(instance.service);
    parts.ready.forget(instance.service);
    let grace = parts.service_of(instance.volume).map_or(LONGEST_GRACE, |s| s.stop_grace);
    match parts.engine.stop(instance.service, grace.min(LONGEST_GRACE)).await {
        Ok(_) | Err(EngineError::NotHere { .. }) => {}
        Err(error) => {
            tracing::warn!(%error, "a service does not stop: the guard ends it with its lease");
        }
    }
}

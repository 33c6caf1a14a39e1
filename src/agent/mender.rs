//! Looks now and then whether the volumes that this node leads are kept as they are wanted, and has
//! changed what is not. What to change is [`super::mending`]'s affair.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use flocker_base::{BootTime, Epoch, StoreId, VolumeId, WallTime};
use flocker_gossip::membership::Liveness;
use flocker_gossip::model::{Placement, PlacementState, VolumeSpec};
use flocker_replicate::{ReplicaProgress, VolumeProgress};

use super::allocate::Candidate;
use super::executor::{self, StepError};
use super::mending::{Due, Kept, Mend, Mesh, Node, Presence};
use super::parts::Parts;

/// Time between two looks at the mesh. Its nodes are gone through for each volume.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long a change of voters keeps other steps of its volume waiting.
const CHANGE_WITHIN: Duration = Duration::from_secs(2);

/// The mesh as last looked at, and what has been wanted since when.
#[derive(Debug, Default)]
pub(super) struct Mender {
    /// There only in the passes in which volumes are looked at.
    mesh: Option<Mesh>,
    next: BootTime,
    wanted: HashMap<VolumeId, (Mend, BootTime)>,
    /// What each volume was as it should be with: as long as all of it is the same, so is the answer.
    good: HashMap<VolumeId, Seen>,
}

/// What the decision for one volume rests on, briefly.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    mesh: u64,
    placed: (Epoch, u64),
    whole: Vec<StoreId>,
    wanted: (u8, u8),
}

impl Mender {
    /// To be called once before the volumes are gone through.
    pub(super) fn look(&mut self, parts: &Parts) {
        let now = parts.now();
        self.mesh = (now >= self.next).then(|| Mesh::new(nodes(parts), parts.replace_after));
        if self.mesh.is_some() {
            self.next = now + LOOK_EVERY;
            self.wanted.retain(|volume, _| parts.holds(*volume).is_some());
            self.good.retain(|volume, _| parts.holds(*volume).is_some());
        }
    }

    /// What is to be changed now about a volume that this node leads and that is at rest.
    pub(super) fn due(
        &mut self,
        parts: &Parts,
        spec: &VolumeSpec,
        placement: Option<&Placement>,
    ) -> Option<(Epoch, Mend)> {
        let mesh = self.mesh.as_ref()?;
        let placement = placement.filter(|p| p.state == PlacementState::Active)?;
        let lease = parts.lease(spec.id)?;
        let epoch = parts.holds(spec.id).filter(|epoch| *epoch == placement.epoch)?;
        // One change of voters at a time.
        if lease.config.joint.is_some() || lease.config != placement.voters {
            return None;
        }
        let whole: Vec<StoreId> =
            parts.replicator.progress().borrow().get(&spec.id).map_or_else(Vec::new, |progress| {
                let near = |r: &ReplicaProgress| is_near(progress, r, spec, parts.clock.wall());
                progress.replicas.iter().filter(|(_, r)| near(r)).map(|(s, _)| *s).collect()
            });
        let seen = Seen {
            mesh: mesh.stamp(),
            placed: (placement.epoch, placement.sequence),
            whole: whole.clone(),
            wanted: (spec.policy.local_replicas, spec.policy.remote_replicas),
        };
        if self.good.get(&spec.id) == Some(&seen) {
            return None;
        }
        let found = mesh.mend(&Kept {
            master: parts.me,
            policy: &spec.policy,
            replicas: &placement.replicas,
            whole: &whole,
            voters: &lease.config.voters,
        });
        let now = parts.now();
        match found {
            None => {
                self.wanted.remove(&spec.id);
                self.good.insert(spec.id, seen);
                None
            }
            Some((mend, Due::Now)) => Some((epoch, mend)),
            Some((mend, Due::Later)) => {
                let (known, since) =
                    self.wanted.entry(spec.id).or_insert_with(|| (mend.clone(), now));
                if *known != mend {
                    (*known, *since) = (mend, now);
                    return None;
                }
                (now.saturating_since(*since) >= parts.replace_after).then_some((epoch, mend))
            }
        }
    }
}

/// Whether a replica has what a master must have: all there is, or what the lag limit asks for.
fn is_near(
    progress: &VolumeProgress,
    replica: &ReplicaProgress,
    spec: &VolumeSpec,
    now: WallTime,
) -> bool {
    let Some(acked) = replica.acked else { return false };
    progress.newest.as_ref().is_some_and(|newest| newest.head == acked)
        || replica
            .acked_taken_at
            .is_some_and(|at| now.saturating_since(at) <= spec.policy.lag_limit)
}

/// The nodes of the map, and those that have joined so lately that it does not list them yet.
pub(super) fn nodes(parts: &Parts) -> Vec<Node> {
    let members = Arc::clone(&parts.members.borrow());
    let loads = parts.loads();
    let view = parts.map_view();
    let now = parts.now();
    let member_presence = |store: &StoreId| match members.nodes.get(store) {
        _ if *store == parts.me => Presence::Live,
        Some(m) if m.liveness == Liveness::Live => Presence::Live,
        Some(m) => Presence::Away(now.saturating_since(m.since)),
        None => Presence::Away(now.saturating_since(parts.started)),
    };
    let candidate = |store: StoreId, region: flocker_base::Name| Candidate {
        store,
        region,
        zone: match members.nodes.get(&store) {
            _ if store == parts.me => parts.zone.clone(),
            member => member.and_then(|m| m.facts.zone.clone()),
        },
        load: loads.get(&store).copied().unwrap_or(0),
    };
    let mut nodes: Vec<Node> = view
        .nodes()
        .map(|listed| Node {
            candidate: candidate(listed.spec.store, listed.spec.region.clone()),
            presence: if listed.spec.removed {
                Presence::Removed
            } else {
                member_presence(&listed.spec.store)
            },
        })
        .collect();
    let unlisted = members.nodes.iter().filter(|(store, _)| view.node(store).is_none());
    nodes.extend(unlisted.map(|(store, member)| Node {
        candidate: candidate(*store, member.facts.region.clone()),
        presence: member_presence(store),
    }));
    nodes
}

/// Makes the change.
pub(super) async fn mend(
    parts: &Arc<Parts>,
    volume: &VolumeSpec,
    epoch: Epoch,
    mend: Mend,
) -> Result<(), StepError> {
    let names = |stores: &[StoreId]| {
        let names: Vec<_> = stores.iter().map(|s| parts.name_of(*s).to_string()).collect();
        names.join(", ")
    };
    match mend {
        Mend::Replicas(replicas) => {
            let text = format!("the copies of {} are now on {}", volume.name, names(&replicas));
            executor::place(parts, volume, epoch, move |_| replicas).await?;
            tracing::info!(volume = %volume.name, "{text}");
            parts.events.add(parts.clock.wall(), "copies.changed", volume.name.as_str(), text);
            Ok(())
        }
        Mend::Voters(voters) => {
            tracing::info!(volume = %volume.name, voters = names(&voters), "changing the voters");
            // The new ones are announced by the loop, and told among the events by the lease.
            let change = parts.leases.change_voters(volume.id, voters);
            match tokio::time::timeout(CHANGE_WITHIN, change).await {
                Ok(changed) => changed.map(drop).map_err(Into::into),
                // It goes on by itself, and the volume is not to wait for it.
                Err(_late) => Ok(()),
            }
        }
    }
}

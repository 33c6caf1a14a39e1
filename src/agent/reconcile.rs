//! What this node should do next with one volume: a pure function from what it knows to one
//! [`Step`]. It never acts, waits or reads a clock.
//!
//! The loop round it is level-triggered: it asks, runs the step, looks again. So every state that
//! a crash can leave behind is one that this function must lead out of.

use flocker_base::{BootTime, Epoch, StoreId};
use flocker_gossip::model::{
    Failover, Placement, PlacementState, ServiceSpec, VolumeSpec, VoterConfig,
};

/// Everything that the decision for one volume rests on.
#[derive(Clone, Debug)]
pub struct VolumeWorld<'a> {
    /// This node.
    pub me: StoreId,
    /// Now.
    pub now: BootTime,
    /// The volume as the map has it.
    pub spec: &'a VolumeSpec,
    /// What its master last announced.
    pub placement: Option<&'a Placement>,
    /// The service that runs with it, if any.
    pub service: Option<&'a ServiceSpec>,
    /// This node's lease.
    pub lease: Lease,
    /// The newest epoch known to be granted or announced to another node.
    pub others_epoch: Option<Epoch>,
    /// Whether the last known master is in this node's region.
    pub in_masters_region: bool,
    /// Whether the last known master is silent: its promise at this voter has run out, or
    /// membership suspects it. Says when to *ask*; the voters decide.
    pub master_silent: bool,
    /// To whom the last master released the volume, if it did.
    pub released: Released,
    /// The voters as the lease has them, if it does.
    pub voters: Option<&'a VoterConfig>,
    /// Whether the volume has one voter, and that is another node.
    pub lone_voter_elsewhere: bool,
    /// This node's copy.
    pub copy: LocalCopy,
    /// The service as it runs here.
    pub instance: Option<RunningInstance>,
    /// Whether a move or another exclusive operation has the volume in hand.
    pub in_hand: bool,
    /// How the steps of this volume went.
    pub tries: Tries,
    /// Whether another live node holds a copy and would lead if this one gave up.
    pub others_can: bool,
    /// This node's place in the order of those that may take over; 0 starts first.
    pub rank: u32,
}

/// How the steps of one volume went on this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tries {
    /// Not before this instant may a failed step be tried again.
    pub retry_at: BootTime,
    /// Not before this instant is a copy to be discarded that could not be before.
    pub discard_at: BootTime,
    /// How often it failed, under the epoch held, to make the copy writable.
    pub failures: u32,
    /// Whether this node is in no state to work on it: its disk is full, or it gave the volume up
    /// a moment ago.
    pub unable: bool,
}

/// After so many failures to make its copy writable a master gives up: another may do better.
const MOST_FAILURES: u32 = 3;

/// This node's lease on a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lease {
    /// None, and none asked for.
    None,
    /// Asked for.
    Campaigning,
    /// Held and valid at this instant.
    Held {
        /// Its epoch.
        epoch: Epoch,
    },
}

/// What is known of a release by the last master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    /// It did not release.
    No,
    /// To this node.
    ToMe,
    /// To another, which is expected to claim.
    ToAnother,
    /// To whoever comes.
    ToAnyone,
}

/// This node's copy of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalCopy {
    /// Whether it holds a whole snapshot.
    pub has_snapshot: bool,
    /// The epoch under which its live folder was made writable, durably noted; `None` for a
    /// replica.
    pub promoted: Option<Epoch>,
}

/// A service's process on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunningInstance {
    /// The epoch that it was started under.
    pub epoch: Epoch,
    /// Whether it has answered its health check.
    pub ready: bool,
    /// Whether it was started as its owner now wants it, as far as is known.
    pub current: bool,
}

/// The one thing to do next with a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Rest,
    /// Nothing before this instant.
    Wait(BootTime),
    /// Ask the voters for the volume.
    Campaign {
        /// Delay rank, 0 first.
        rank: u32,
        /// Why, for the log and the events.
        reason: CampaignReason,
    },
    /// Stop asking.
    StandDown,
    /// Kill the service at once: it has no right to run.
    Kill(KillReason),
    /// Stop the service in good order: its owner removed it, or wants it otherwise.
    Stop,
    /// Make this node the volume's voter: it has but one, and that is another.
    TakeVote,
    /// Keep what is here and not on the new master's line as a branch, and become a replica.
    KeepTail {
        /// The epoch whose tail it is.
        epoch: Epoch,
    },
    /// Release the volume to whoever can make more of it.
    GiveUp {
        /// The epoch held.
        epoch: Epoch,
    },
    /// Give back the room of a copy that is no longer wanted here.
    Discard {
        /// The master, who says what it holds.
        master: StoreId,
    },
    /// Make the copy writable under this epoch.
    Promote {
        /// The epoch held.
        epoch: Epoch,
    },
    /// Tell the mesh where the volume is.
    Announce {
        /// The epoch held.
        epoch: Epoch,
    },
    /// Start the service under this epoch.
    Start {
        /// The epoch held.
        epoch: Epoch,
    },
    /// See whether the service answers yet.
    AwaitReady,
}

/// Why a node asks for a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CampaignReason {
    /// It is the volume's first master.
    Birth,
    /// It was the last master and nobody else is.
    Mine,
    /// The master is silent.
    MasterSilent,
    /// The master released it.
    Released,
}

/// Why a service has to be killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KillReason {
    /// Another node holds a newer epoch.
    Superseded,
    /// It runs under an epoch that this node no longer uses.
    OldEpoch,
}

/// Decides the next step. The order of the rules is the order of their urgency: what may not run
/// is killed before anything is started.
#[must_use]
pub fn next_step(world: &VolumeWorld<'_>) -> Step {
    if world.in_hand {
        return Step::Rest;
    }
    let step = match world.lease {
        Lease::Held { epoch } => as_master(world, epoch),
        Lease::None | Lease::Campaigning => as_other(world),
    };
    let repeated = matches!(
        step,
        Step::Promote { .. }
            | Step::Announce { .. }
            | Step::Start { .. }
            | Step::KeepTail { .. }
            | Step::Discard { .. }
            | Step::TakeVote
    );
    let retry_at = world.tries.retry_at;
    if repeated && world.now < retry_at { Step::Wait(retry_at) } else { step }
}

fn as_master(world: &VolumeWorld<'_>, epoch: Epoch) -> Step {
    if let Some(instance) = world.instance {
        if instance.epoch != epoch {
            return Step::Kill(KillReason::OldEpoch);
        }
        if world.service.is_none() || !instance.current {
            return Step::Stop;
        }
    }
    let works = world.copy.promoted == Some(epoch);
    if !works && world.others_can && world.tries.failures >= MOST_FAILURES {
        return Step::GiveUp { epoch };
    }
    if let Some(older) = world.copy.promoted.filter(|p| *p < epoch) {
        // Another was master in between: what is here and was not replicated is a branch.
        if world.others_epoch.is_some_and(|others| others > older && others < epoch) {
            return Step::KeepTail { epoch: older };
        }
    }
    if !works {
        return Step::Promote { epoch };
    }
    if world.service.is_some() && world.instance.is_none() {
        return Step::Start { epoch };
    }
    if world.instance.is_some_and(|i| !i.ready) {
        return Step::AwaitReady;
    }
    // Announced last, so that no node routes to a service that is not there yet.
    if !announced(world, epoch) {
        return Step::Announce { epoch };
    }
    if world.lone_voter_elsewhere { Step::TakeVote } else { Step::Rest }
}

fn announced(world: &VolumeWorld<'_>, epoch: Epoch) -> bool {
    world.placement.is_some_and(|p| {
        p.epoch == epoch
            && p.holder == world.me
            && p.state == PlacementState::Active
            && world.voters.is_none_or(|voters| *voters == p.voters)
    })
}

fn as_other(world: &VolumeWorld<'_>) -> Step {
    let mine = world.copy.promoted.or(world.instance.map(|i| i.epoch));
    let superseded = match (mine, world.others_epoch) {
        (Some(mine), Some(others)) => others > mine,
        _ => false,
    };
    if superseded {
        if world.instance.is_some() {
            return Step::Kill(KillReason::Superseded);
        }
        if let Some(epoch) = world.copy.promoted {
            return if world.lease == Lease::Campaigning {
                Step::StandDown
            } else {
                Step::KeepTail { epoch }
            };
        }
    }
    match (reason_to_campaign(world), world.lease) {
        (Some(reason), Lease::None) => Step::Campaign { rank: world.rank, reason },
        (None, Lease::Campaigning) => Step::StandDown,
        (None, Lease::None) => {
            unwanted(world).map_or(Step::Rest, |master| Step::Discard { master })
        }
        _ => Step::Rest,
    }
}

/// The master of a volume of which a copy is here that its newest placement does not name.
fn unwanted(world: &VolumeWorld<'_>) -> Option<StoreId> {
    let placed = world.placement.filter(|p| p.state == PlacementState::Active)?;
    // An announcement that is not the newest known says nothing of what is wanted now.
    let newest = world.others_epoch.is_some_and(|epoch| epoch == placed.epoch);
    let here = world.copy.has_snapshot && world.copy.promoted.is_none() && world.instance.is_none();
    (here
        && newest
        && world.now >= world.tries.discard_at
        && placed.holder != world.me
        && !placed.replicas.contains(&world.me))
    .then_some(placed.holder)
}

fn reason_to_campaign(world: &VolumeWorld<'_>) -> Option<CampaignReason> {
    let holds_copy = match world.placement {
        Some(p) => p.replicas.contains(&world.me),
        None => world.spec.birth.replicas.contains(&world.me),
    };
    // A replica that has not received anything yet knows nothing: to lead it would be to lose all
    // that the master has. Before the first announcement there is nothing to lose.
    let knows_nothing = !world.copy.has_snapshot && world.copy.promoted.is_none();
    if !holds_copy || world.tries.unable || (world.placement.is_some() && knows_nothing) {
        return None;
    }
    let by_itself = match world.spec.policy.failover {
        Failover::Auto => true,
        Failover::InRegion => world.in_masters_region,
        Failover::Manual => false,
    };
    match world.released {
        Released::ToMe => return Some(CampaignReason::Released),
        Released::ToAnyone if by_itself => return Some(CampaignReason::Released),
        Released::ToAnother => return None,
        Released::ToAnyone | Released::No => {}
    }
    let last_master = world.placement.map_or(world.spec.birth.master, |p| p.holder);
    if last_master == world.me {
        let born = world.placement.is_some();
        return Some(if born { CampaignReason::Mine } else { CampaignReason::Birth });
    }
    (world.master_silent && by_itself).then_some(CampaignReason::MasterSilent)
}

/// The order in which a volume's other replicas start to campaign when its master is silent:
/// those in the master's own region first, then the rest, each group by store id. A wrong rank
/// costs time, never safety.
#[must_use]
pub fn takeover_rank(
    me: StoreId,
    last_master: StoreId,
    replicas: &[StoreId],
    in_masters_region: impl Fn(StoreId) -> bool,
    lives: impl Fn(StoreId) -> bool,
) -> u32 {
    if me == last_master {
        return 0;
    }
    let key = |store: StoreId| (!in_masters_region(store), store);
    let ahead = replicas
        .iter()
        .filter(|&&r| r != last_master && r != me && lives(r) && key(r) < key(me))
        .count();
    u32::try_from(ahead).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;

//! What goes into the lease core and what comes out of it. Plain values; nothing here decides.

use std::time::Duration;

use flocker_base::{BootTime, Epoch, Head, StoreId, VolumeId};

use super::message::{Message, Packet};
use super::record::{Stamp, Start, Write};
use crate::model::{VoterConfig, Voters};

/// Numbers a durable write. They complete in order.
pub type Ticket = u64;

/// Names a caller who waits for an outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Request(pub u64);

/// What the map says of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VolumeFacts {
    /// The volume.
    pub volume: VolumeId,
    /// The configuration that it was born with, or a newer one that the map knows.
    pub config: VoterConfig,
    /// How far behind the newest replicated snapshot a candidate may be.
    pub lag_limit: Duration,
}

/// What happens to the core.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// Time has passed.
    Tick,
    /// A peer sent this.
    Packet {
        /// The authenticated sender.
        from: StoreId,
        /// What it sent.
        packet: Packet,
    },
    /// Every write up to this ticket is durable.
    Persisted(Ticket),
    /// The map knows a volume.
    Observe(VolumeFacts),
    /// The map knows it no more.
    Forget(VolumeId),
    /// What this node holds durably; `None` if it can serve nothing.
    LocalCopy(VolumeId, Option<Stamp>),
    /// This node holds the volume, and a replica has this snapshot.
    Replicated(VolumeId, Stamp),
    /// The map or a stream showed this epoch.
    Seen(VolumeId, Epoch),
    /// Try to win the volume.
    Campaign {
        /// The volume.
        volume: VolumeId,
        /// Rank zero starts at once, each further one a step later.
        rank: u32,
        /// For the log.
        reason: String,
    },
    /// Stop trying.
    StandDown(VolumeId),
    /// A person wants this node's copy to lead, however far behind it is.
    Promote {
        /// The volume.
        volume: VolumeId,
        /// The voters to go on with although no quorum of the present ones can be asked.
        force: Option<Voters>,
        /// Who waits.
        request: Request,
    },
    /// Give the volume back. Its writer has stopped.
    Release {
        /// The volume.
        volume: VolumeId,
        /// Who is to have it first.
        successor: Option<StoreId>,
        /// Who waits.
        request: Request,
    },
    /// Change the voters.
    ChangeVoters {
        /// The volume.
        volume: VolumeId,
        /// The new ones.
        voters: Voters,
        /// Who waits.
        request: Request,
    },
}

/// What the core wants done. Persisting comes first in every list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Make these durable, in one commit, then say [`Event::Persisted`]. If it fails, abort.
    Persist(Ticket, Vec<Write>),
    /// Send these together.
    Send(StoreId, Vec<Message>),
    /// Tell the agent.
    Emit(LeaseEvent),
    /// Tell who waits.
    Reply(Request, Result<Outcome, LeaseError>),
    /// Tell the operator.
    Alarm(Alarm),
}

/// How a request ended well.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// A quorum knows that this epoch was released.
    Released(Epoch),
    /// These are the voters.
    Voters(VoterConfig),
    /// This node holds the volume under this epoch.
    Won(Epoch),
}

/// What the agent learns.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LeaseEvent {
    /// This node holds the volume, now or again after a restart.
    Won {
        /// The volume.
        volume: VolumeId,
        /// The epoch.
        epoch: Epoch,
        /// The voters.
        config: VoterConfig,
        /// Until when, unless renewed.
        until: BootTime,
        /// How it was won; nothing if it was won before a restart.
        election: Option<Election>,
    },
    /// The lease runs longer. After [`LeaseEvent::Freeze`] it means: thaw.
    Renewed {
        /// The volume.
        volume: VolumeId,
        /// The epoch.
        epoch: Epoch,
        /// Until when.
        until: BootTime,
    },
    /// The lease was not renewed in time: freeze the service.
    Freeze {
        /// The volume.
        volume: VolumeId,
        /// The epoch.
        epoch: Epoch,
    },
    /// This node holds the volume no more: kill the service and keep its tail.
    Lost {
        /// The volume.
        volume: VolumeId,
        /// The epoch lost.
        epoch: Epoch,
        /// A higher one that a voter granted, if that is why.
        superseded_by: Option<Epoch>,
    },
    /// This node, as a voter, promises nothing to the holder any more.
    HolderSilent {
        /// The volume.
        volume: VolumeId,
        /// Who was silent.
        holder: StoreId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// The holder gave the volume back, or its successor did not take it up in time.
    HolderReleased {
        /// The volume.
        volume: VolumeId,
        /// Who is to have it; no one means anyone.
        successor: Option<StoreId>,
    },
    /// A campaign needs a fresher copy, which this store has.
    Behind {
        /// The volume.
        volume: VolumeId,
        /// The fresher copy.
        best: Head,
        /// Where it is.
        at: StoreId,
    },
    /// Only copies older than the volume's lag limit are left: a person must decide.
    NeedsDecision {
        /// The volume.
        volume: VolumeId,
        /// The copies known, freshest first.
        candidates: Vec<(StoreId, Stamp)>,
        /// The newest replicated snapshot that a voter remembers.
        newest: Stamp,
    },
    /// The voters changed.
    VotersChanged {
        /// The volume.
        volume: VolumeId,
        /// The new ones.
        config: VoterConfig,
    },
    /// A campaign can't win for now (`ended` false: it goes on) or has ended.
    CampaignFailed {
        /// The volume.
        volume: VolumeId,
        /// Why.
        why: CampaignFailure,
        /// Whether the campaign is over.
        ended: bool,
    },
}

impl LeaseEvent {
    /// The volume that it is about.
    #[must_use]
    pub const fn volume(&self) -> VolumeId {
        match self {
            Self::Won { volume, .. }
            | Self::Renewed { volume, .. }
            | Self::Freeze { volume, .. }
            | Self::Lost { volume, .. }
            | Self::HolderSilent { volume, .. }
            | Self::HolderReleased { volume, .. }
            | Self::Behind { volume, .. }
            | Self::NeedsDecision { volume, .. }
            | Self::VotersChanged { volume, .. }
            | Self::CampaignFailed { volume, .. } => *volume,
        }
    }
}

/// How an election went, for people.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Election {
    /// From the first question to the claim.
    pub asked: Duration,
    /// From the claim to a quorum's grants.
    pub granted: Duration,
    /// From those to the lease.
    pub confirmed: Duration,
    /// The voters that granted it by then.
    pub by: Vec<StoreId>,
    /// Claims that were lost before.
    pub lost: u32,
}

/// Why a campaign does not win.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum CampaignFailure {
    /// Nothing is known of the volume.
    #[error("nothing is known of this volume here")]
    UnknownVolume,
    /// Too few voters answer.
    #[error("no quorum of voters answers; missing: {}", names(.missing))]
    NoQuorum {
        /// Voters that did not answer.
        missing: Vec<StoreId>,
    },
    /// Somebody has it.
    #[error("node {holder} holds it under epoch {epoch}")]
    Held {
        /// Who.
        holder: StoreId,
        /// Under which epoch.
        epoch: Epoch,
    },
    /// The store was found to be a copy.
    #[error("this store is a restored or copied one and may not lead")]
    Condemned,
    /// Not a set of voters to force with.
    #[error("the voters to go on with must be an odd number, this node among them")]
    BadVoters,
    /// The volume is being won or given up at this moment.
    #[error("an election of it is under way on this node: try again")]
    UnderWay,
    /// The voters of this generation are not known here.
    #[error("epoch {0} is of voters that this node does not know yet: try again")]
    Outdated(Epoch),
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum LeaseError {
    /// This node does not hold the volume.
    #[error("this node does not hold volume {0}: ask the node that does")]
    NotHolder(VolumeId),
    /// One change at a time.
    #[error("the voters of volume {0} are being changed: wait for that to end")]
    ChangeInProgress(VolumeId),
    /// Not a set of voters.
    #[error("{0} voters were given: give 1, 3 or 5")]
    BadVoters(usize),
    /// The epoch moved on.
    #[error("volume {0} was lost while the request was under way")]
    Lost(VolumeId),
    /// The campaign or another request stands in the way of it.
    #[error("volume {volume}: no quorum of voters answered in time; missing: {}", names(.missing))]
    NoQuorum {
        /// The volume.
        volume: VolumeId,
        /// Voters that did not answer.
        missing: Vec<StoreId>,
    },
    /// A person's word was not followed.
    #[error("volume {volume} was not promoted: {why}")]
    NotPromoted {
        /// The volume.
        volume: VolumeId,
        /// Why.
        why: CampaignFailure,
    },
    /// The driver is gone.
    #[error("the lease driver has stopped")]
    Stopped,
}

fn names(stores: &[StoreId]) -> String {
    let names: Vec<_> = stores.iter().map(StoreId::short).collect();
    names.join(", ")
}

/// What an operator must know.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Alarm {
    /// A peer's store is older than it was.
    #[error(
        "refused node {store}: its start {refused:?} is not the newest known, {newest:?}; its \
         state was restored or copied, and it must join again as a new node"
    )]
    StaleStart {
        /// The peer.
        store: StoreId,
        /// Its start.
        refused: Start,
        /// The newest known.
        newest: Start,
    },
    /// A voter forgot what it withdrew.
    #[error("voter {0} went back to an older support number: its state was restored")]
    RolledBack(StoreId),
    /// This store is older than it was.
    #[error(
        "peers know a later start of this store ({newest:?}) than its own ({own:?}): its state was \
         restored or copied. It leads and votes no more: move the state folder away and join again"
    )]
    Condemned {
        /// Our start.
        own: Start,
        /// What a peer knows.
        newest: Start,
    },
    /// A peer asks for a promise that is too long.
    #[error("refused a heartbeat of node {0}: it asks for a lease of {1:?}")]
    LeaseTooLong(StoreId, Duration),
    /// An epoch out of all proportion.
    #[error("ignored epoch {epoch} of volume {volume}: it is far above {known}, the highest known")]
    EpochJump {
        /// The volume.
        volume: VolumeId,
        /// The epoch.
        epoch: Epoch,
        /// The highest known.
        known: Epoch,
    },
    /// The disk does not answer, and so heartbeats ask for nothing.
    #[error("a durable write has been under way for {0:?}: asking for no promises until it ends")]
    DiskStalled(Duration),
}

/// What this node knows of one volume's lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseView {
    /// The volume.
    pub volume: VolumeId,
    /// The configuration that this node holds the volume under, else the newest known.
    pub config: VoterConfig,
    /// The highest epoch granted or seen.
    pub max_epoch_seen: Epoch,
    /// What this node holds.
    pub held: Option<Held>,
    /// To whom this node, as a voter, granted it last: store, epoch, confirmed.
    pub grantee: Option<(StoreId, Epoch, bool)>,
    /// Whether that grantee gave it back.
    pub released: bool,
    /// To whom it was released, while it is kept for that store.
    pub successor: Option<StoreId>,
    /// Whether this node, as a voter, promises nothing to the grantee any more.
    pub silent: bool,
    /// The newest replicated snapshot that this node, as a voter, remembers.
    pub hint: Option<Head>,
    /// Whether this node is trying to win it, or to have its epoch confirmed again.
    pub campaigning: bool,
}

/// A lease held by this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The epoch.
    pub epoch: Epoch,
    /// Until when, unless renewed. It may lie in the past while the service is frozen.
    pub until: BootTime,
    /// Whether the renewal is late.
    pub frozen: bool,
}

//! What the core remembers between steps, durable records and volatile promises side by side.
//! Only the files of the core change it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flocker_base::{BootTime, Epoch, StoreId, VolumeId};

use super::event::{CampaignFailure, Election, Request, Ticket, VolumeFacts};
use super::message::{PreVoteReply, Verdict};
use super::record::{HolderRecord, Stamp, SupportRecord, VoterRecord};
use crate::model::VoterConfig;

/// One volume, from every side that this node may be on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Volume {
    /// As a voter; durable.
    pub(crate) record: Option<VoterRecord>,
    /// The last write of the record that others learn of.
    pub(crate) record_ticket: Ticket,
    /// As a voter: kept for the candidate granted last.
    pub(crate) reserved_until: BootTime,
    /// Until when this node, taken out of the voters, keeps what it had promised before.
    pub(crate) left_until: BootTime,
    /// As a voter: kept for the successor named.
    pub(crate) successor_until: BootTime,
    /// Whether the end of the reservation or of the hold for the successor is yet to be told.
    pub(crate) watched: bool,
    /// As a voter: nothing is promised to the grantee any more, and the agent was told.
    pub(crate) silent: bool,
    /// What the map says.
    pub(crate) facts: Option<VolumeFacts>,
    /// What this node holds.
    pub(crate) copy: Option<Stamp>,
    /// The highest epoch heard of.
    pub(crate) seen: Epoch,
    /// A newer configuration that a voter told of.
    pub(crate) learned: Option<VoterConfig>,
    /// As a holder; durable.
    pub(crate) holder: Option<HolderRecord>,
    /// The epoch released to this node, if one was: the voters will know in a moment.
    pub(crate) offered: Option<Epoch>,
    /// As a candidate.
    pub(crate) campaign: Option<Campaign>,
    /// As a holder, or one that would be again.
    pub(crate) holding: Option<Holding>,
    /// As a former holder.
    pub(crate) releasing: Option<Releasing>,
    /// Former voters that were never told that they are, to be told of the release.
    pub(crate) uninformed: BTreeSet<StoreId>,
}

impl Volume {
    /// The newest configuration known, from whichever side.
    pub(crate) fn config(&self) -> Option<&VoterConfig> {
        [
            self.record.as_ref().map(|record| &record.config),
            self.facts.as_ref().map(|facts| &facts.config),
            self.holder.as_ref().map(|holder| &holder.config),
            self.learned.as_ref(),
        ]
        .into_iter()
        .flatten()
        .max_by_key(|config| config.version)
    }

    /// The highest epoch granted, held, given up or heard of.
    pub(crate) fn highest(&self) -> Epoch {
        let granted = self.record.as_ref().map_or(Epoch::ZERO, |record| record.max_epoch);
        let held = self.holder.as_ref().map_or(Epoch::ZERO, |h| h.epoch.max(h.closed));
        let config = self.config().map_or(Epoch::ZERO, |config| config.version.epoch);
        self.seen.max(granted).max(held).max(config)
    }

    /// Whether anything of it has a deadline.
    pub(crate) const fn is_active(&self) -> bool {
        self.watched
            || self.campaign.is_some()
            || self.holding.is_some()
            || self.releasing.is_some()
    }
}

/// An attempt to win a volume.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Campaign {
    pub(crate) rank: u32,
    pub(crate) since: BootTime,
    /// When the newest claim was made.
    pub(crate) claimed: BootTime,
    pub(crate) phase: Phase,
    /// Elections lost: spaces the next ones.
    pub(crate) lost: u32,
    /// Questions that led to no election: spaces the next ones.
    pub(crate) refused: u32,
    /// The fresher copy that it waits for.
    pub(crate) awaited: Option<Stamp>,
    /// What the agent was told last.
    pub(crate) told: Option<Told>,
    /// The person's word that it follows, if it does.
    pub(crate) promotion: Option<Promotion>,
}

impl Campaign {
    /// Whether it goes on without the voters' quorum.
    pub(crate) fn is_forced(&self) -> bool {
        self.promotion.as_ref().is_some_and(|promotion| promotion.force.is_some())
    }
}

/// A person's word that this node's copy is to lead.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Promotion {
    /// Who waits for the outcome.
    pub(crate) request: Option<Request>,
    /// The configuration of a new generation.
    pub(crate) force: Option<VoterConfig>,
    /// It is given up then.
    pub(crate) until: BootTime,
}

/// What the agent was told last of a campaign: it is not told twice.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Told {
    Failed(CampaignFailure),
    Undecided(Vec<(StoreId, Stamp)>),
}

/// How far a campaign is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    Waiting {
        until: BootTime,
    },
    Asking {
        round: u64,
        until: BootTime,
        config: VoterConfig,
        replies: BTreeMap<StoreId, PreVoteReply>,
    },
    Claiming {
        epoch: Epoch,
        until: BootTime,
        config: VoterConfig,
        replies: BTreeMap<StoreId, Verdict>,
    },
}

/// An epoch won, or offered again after a restart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Holding {
    pub(crate) epoch: Epoch,
    pub(crate) config: VoterConfig,
    /// The write of the holder's record: nothing is offered before it is durable.
    pub(crate) ticket: Ticket,
    /// Voters that answered: granted, or gone past.
    pub(crate) standing: BTreeMap<StoreId, Standing>,
    /// Voters that confirmed and did not withdraw.
    pub(crate) confirmed: BTreeSet<StoreId>,
    /// The lease: time earned and not spent.
    pub(crate) until: BootTime,
    /// Whether the agent knows of it in this start.
    pub(crate) announced: bool,
    /// Whether it was won before this start.
    pub(crate) again: bool,
    /// Since when it is late; for one offered again, since the start.
    pub(crate) late_since: Option<BootTime>,
    /// When an election not confirmed is given up.
    pub(crate) confirm_by: Option<BootTime>,
    /// When a quorum had granted it; for one offered again, the start.
    pub(crate) granted_at: BootTime,
    /// The campaign that won it, to go on if it is not confirmed.
    pub(crate) campaign: Option<Campaign>,
    pub(crate) change: Option<Change>,
    /// After a change: those that have yet to say that they know its outcome, and when they are
    /// told again. A former voter that does not know is bound for as long as this node lives.
    pub(crate) uninformed: BTreeSet<StoreId>,
    pub(crate) inform_at: BootTime,
    /// The newest replicated snapshot, and the voters yet to be told.
    pub(crate) hint: Option<Stamp>,
    pub(crate) untold: BTreeSet<StoreId>,
}

impl Holding {
    /// How it was won.
    pub(crate) fn story(&self, campaign: &Campaign, now: BootTime) -> Election {
        let granted = |(_, standing): &(&StoreId, &Standing)| **standing == Standing::Granted;
        Election {
            asked: campaign.claimed.saturating_since(campaign.since),
            granted: self.granted_at.saturating_since(campaign.claimed),
            confirmed: now.saturating_since(self.granted_at),
            by: self.standing.iter().filter(granted).map(|(voter, _)| *voter).collect(),
            lost: campaign.lost,
        }
    }

    /// Whether the lease runs now.
    pub(crate) fn is_valid(&self, now: BootTime) -> bool {
        self.announced && now < self.until
    }
}

/// What a voter said of an epoch offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Standing {
    /// It granted it.
    Granted,
    /// Its highest grant is this one.
    Refused(Epoch),
}

/// A change of voters under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Change {
    pub(crate) proposal: VoterConfig,
    pub(crate) acked: BTreeSet<StoreId>,
    pub(crate) ticket: Ticket,
    /// When it is proposed again to those who have not answered.
    pub(crate) retry: BootTime,
    /// The final step is not taken before.
    pub(crate) not_before: BootTime,
    pub(crate) request: Option<Request>,
}

/// An epoch closed, of which voters are yet to be told.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Releasing {
    pub(crate) epoch: Epoch,
    pub(crate) successor: Option<StoreId>,
    pub(crate) config: VoterConfig,
    /// Others that may be bound by it.
    pub(crate) uninformed: BTreeSet<StoreId>,
    pub(crate) ticket: Ticket,
    pub(crate) acked: BTreeSet<StoreId>,
    pub(crate) retry: BootTime,
    pub(crate) tries: u32,
    pub(crate) request: Option<(Request, BootTime)>,
}

/// Another store (or this one), as one that is promised to and as one that promises.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Peer {
    /// As a voter; durable.
    pub(crate) record: SupportRecord,
    pub(crate) ticket: Ticket,
    /// As a voter: the end of the promise.
    pub(crate) promised_until: BootTime,
    /// As a voter: the newest heartbeat of its newest start.
    pub(crate) last_beat: u64,
    /// Packets of an older start since the last good one.
    pub(crate) stale_packets: u8,
    /// As a voter: whether the end of the promise is yet to be told.
    pub(crate) watched: bool,
    /// As a holder: heartbeats sent and not answered.
    pub(crate) sent: BTreeMap<u64, Sent>,
    pub(crate) next_beat: u64,
    /// As a holder: its support number, as last heard.
    pub(crate) support: u64,
    /// As a holder: what its acknowledgements are good for.
    pub(crate) until: BootTime,
    /// When it last answered this start.
    pub(crate) heard: Option<BootTime>,
    pub(crate) last_ack: u64,
    /// As a holder: the newest heartbeat sent when its support number was learned.
    pub(crate) adopted_at: u64,
}

/// A heartbeat sent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Sent {
    pub(crate) at: BootTime,
    pub(crate) lease: Duration,
    pub(crate) wanted: bool,
    pub(crate) hints: Vec<(VolumeId, Stamp)>,
}

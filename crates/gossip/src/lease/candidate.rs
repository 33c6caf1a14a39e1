//! The candidate: asks before it claims, claims one epoch at a time, and gives an election that it
//! did not win back. It never holds anything: see the holder.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flocker_base::{BootTime, StoreId, VolumeId};

use super::core::LeaseCore;
use super::event::{CampaignFailure, LeaseEvent};
use super::message::{ANY_LAG, Grant, GrantReply, Message, PreVote, PreVoteReply, Verdict};
use super::promotion::to_ask;
use super::record::Stamp;
use super::state::{Campaign, Phase, Told, Volume};
use crate::model::VoterConfig;

/// The first pause before asking again a voter that is about to be free.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// How long the other answers are waited for once one voter can't grant for now.
const SETTLING: Duration = Duration::from_millis(25);
/// The longest pause between questions while no quorum answers.
const LONGEST_SILENCE: Duration = Duration::from_secs(2);

impl LeaseCore {
    pub(crate) fn on_campaign(&mut self, now: BootTime, volume: VolumeId, rank: u32, why: &str) {
        let condemned = self.node.condemned;
        let delay = if rank == 0 {
            Duration::ZERO
        } else {
            let jitter = self.spread(self.config.rank_step, 0, 50);
            self.config.rank_step.saturating_mul(rank) + jitter
        };
        let entry = self.volume_mut(volume);
        let failed = |why| LeaseEvent::CampaignFailed { volume, why, ended: true };
        if condemned {
            self.out.emit(failed(CampaignFailure::Condemned));
            return;
        }
        if entry.config().is_none() {
            self.out.emit(failed(CampaignFailure::UnknownVolume));
            return;
        }
        if entry.holding.is_some() {
            return;
        }
        let start_at = now + delay;
        match &mut entry.campaign {
            Some(campaign) => {
                campaign.rank = rank;
                if let Phase::Waiting { until } = &mut campaign.phase
                    && campaign.refused == 0
                    && campaign.lost == 0
                {
                    *until = start_at.min(*until);
                }
            }
            None => {
                tracing::debug!(%volume, rank, why, "campaign starts");
                entry.campaign = Some(Campaign {
                    rank,
                    since: now,
                    claimed: now,
                    phase: Phase::Waiting { until: start_at },
                    lost: 0,
                    refused: 0,
                    awaited: None,
                    told: None,
                    promotion: None,
                });
                self.out.touch(volume);
            }
        }
    }

    pub(crate) fn on_stand_down(&mut self, volume: VolumeId) {
        let Some(entry) = self.volumes.get_mut(&volume) else { return };
        // A promotion follows a person's word and ends by itself.
        let automatic = |campaign: &mut Campaign| campaign.promotion.is_none();
        if let Some(holding) = &mut entry.holding {
            holding.campaign.take_if(automatic);
        }
        if let Some(campaign) = entry.campaign.take_if(automatic) {
            self.abandon(volume, campaign.phase);
            self.out.touch(volume);
        }
    }

    /// A fresher copy may be what a campaign waited for.
    pub(crate) fn on_local_copy(&mut self, now: BootTime, volume: VolumeId, copy: Option<Stamp>) {
        let entry = self.volume_mut(volume);
        entry.copy = copy;
        let Some(campaign) = &mut entry.campaign else { return };
        let Phase::Waiting { until } = &mut campaign.phase else { return };
        if let Some(awaited) = campaign.awaited
            && copy.is_some_and(|copy| copy.head >= awaited.head)
        {
            campaign.awaited = None;
            *until = now;
        }
    }

    /// Tells the voters of a claim that it is not followed up.
    pub(crate) fn abandon(&mut self, volume: VolumeId, phase: Phase) {
        if let Phase::Claiming { epoch, config, .. } = phase {
            for voter in config.members() {
                self.out.send(voter, Message::Abandon(volume, epoch), 0);
            }
        }
    }

    /// Asks every voter.
    fn ask(&mut self, now: BootTime, volume: VolumeId) {
        self.rounds += 1;
        let round = self.rounds;
        let until = now + self.config.reservation / 2;
        let Some(entry) = self.volumes.get_mut(&volume) else { return };
        let forced = entry.campaign.as_ref().and_then(|campaign| campaign.promotion.as_ref());
        let forced = forced.and_then(|promotion| promotion.force.as_ref());
        let Some(config) = forced.or_else(|| entry.config()).cloned() else { return };
        let (copy, lag_limit) = copy_and_limit(entry);
        let asked = to_ask(entry, &config);
        let Some(campaign) = &mut entry.campaign else { return };
        campaign.awaited = None;
        campaign.phase =
            Phase::Asking { round, until, config: config.clone(), replies: BTreeMap::new() };
        for voter in asked {
            let config = config.clone();
            let question = PreVote { volume, round, config, copy, lag_limit };
            self.out.send(voter, Message::PreVote(question), 0);
        }
    }

    pub(crate) fn on_pre_vote_reply(&mut self, now: BootTime, from: StoreId, reply: PreVoteReply) {
        let volume = reply.volume;
        let Some(entry) = self.volumes.get_mut(&volume) else { return };
        let asked = match entry.campaign.as_ref().map(|campaign| &campaign.phase) {
            Some(Phase::Asking { round, config, .. }) if *round == reply.round => {
                to_ask(entry, config)
            }
            _ => return,
        };
        let Some(campaign) = &mut entry.campaign else { return };
        let forced = campaign.is_forced();
        let Phase::Asking { until, config, replies, .. } = &mut campaign.phase else { return };
        if !asked.contains(&from) {
            return;
        }
        if !forced && matches!(reply.verdict, Verdict::Busy { .. } | Verdict::Behind { .. }) {
            // It will have to be asked again, and soon: a dead voter's silence must not delay that.
            *until = (*until).min(now + SETTLING);
        }
        entry.seen = entry.seen.max(reply.max_epoch);
        let newer = match &reply.verdict {
            Verdict::Newer(newer) if newer.version > config.version => Some(newer.clone()),
            _ => None,
        };
        let support = reply.support;
        replies.insert(from, reply);
        let (yes, all) =
            (stores(replies, |reply| reply.verdict == Verdict::Yes), replies.len() == asked.len());
        // Before a forced one everybody is heard who can be.
        let quorum = !forced && config.is_quorum(&yes);
        self.heard(now, from, support);
        if let Some(newer) = newer {
            // What a person would force is chosen once, and is not what is wanted any more.
            let outdated = CampaignFailure::Outdated(newer.version.epoch);
            self.volume_mut(volume).learned = Some(newer);
            if !(forced && self.end_promotion(volume, &outdated)) {
                self.ask(now, volume);
            }
        } else if quorum {
            self.claim(now, volume);
        } else if all {
            self.conclude(now, volume);
        }
    }

    /// A quorum would grant: claims the next epoch.
    pub(crate) fn claim(&mut self, now: BootTime, volume: VolumeId) {
        let until = now + self.config.reservation;
        let lease = self.config.lease;
        let Some(entry) = self.volumes.get_mut(&volume) else { return };
        let highest = entry.highest();
        let (copy, lag_limit) = copy_and_limit(entry);
        let Some(campaign) = &mut entry.campaign else { return };
        let Phase::Asking { config, .. } = &campaign.phase else { return };
        let config = config.clone();
        let epoch = if campaign.is_forced() { config.version.epoch } else { highest.next() };
        if epoch.generation != config.version.epoch.generation {
            // Others lead by force, under voters that the map has yet to tell of.
            campaign.phase = Phase::Waiting { until: now + lease };
            self.tell_failed(volume, CampaignFailure::Outdated(highest));
            return;
        }
        campaign.claimed = now;
        // Claimed once and never again by another campaign of this start.
        entry.seen = epoch;
        campaign.phase =
            Phase::Claiming { epoch, until, config: config.clone(), replies: BTreeMap::new() };
        for voter in config.members() {
            let config = config.clone();
            let grant = Grant { volume, epoch, config, copy, lag_limit };
            self.out.send(voter, Message::Grant(grant), 0);
        }
    }

    pub(crate) fn on_grant_reply(&mut self, now: BootTime, from: StoreId, reply: GrantReply) {
        let GrantReply { volume, epoch: claimed, support, verdict } = reply;
        let Some(entry) = self.volumes.get_mut(&volume) else { return };
        if let Some(holding) = entry.holding.as_ref().filter(|holding| holding.epoch == claimed) {
            if holding.config.members().contains(&from) {
                self.heard(now, from, support);
                self.on_offer_reply(now, volume, from, &verdict);
            }
            return;
        }
        let Some(campaign) = &mut entry.campaign else { return };
        let Phase::Claiming { epoch, config, replies, .. } = &mut campaign.phase else { return };
        let members = config.members();
        if *epoch != claimed || !members.contains(&from) {
            return;
        }
        match &verdict {
            Verdict::Stale(max) => entry.seen = entry.seen.max(*max),
            Verdict::Newer(newer) if newer.version > config.version => {
                entry.learned = Some(newer.clone());
            }
            _ => {}
        }
        replies.insert(from, verdict);
        let granted = stores(replies, |verdict| *verdict == Verdict::Yes);
        let refused = stores(replies, |verdict| *verdict != Verdict::Yes);
        let won = config.is_quorum(&granted);
        let hopeless = !config.is_quorum(&members.difference(&refused).copied().collect());
        self.heard(now, from, support);
        if won {
            self.become_holder(now, volume);
        } else if hopeless {
            self.lose_election(now, volume);
        }
    }

    /// Gives a claim up and pauses, longer each time.
    fn lose_election(&mut self, now: BootTime, volume: VolumeId) {
        let Some(entry) = self.volumes.get_mut(&volume) else { return };
        let Some(campaign) = &mut entry.campaign else { return };
        if campaign.is_forced() {
            let missing = match &campaign.phase {
                Phase::Claiming { config, replies, .. } => {
                    let granted = stores(replies, |verdict| *verdict == Verdict::Yes);
                    config.members().difference(&granted).copied().collect()
                }
                Phase::Waiting { .. } | Phase::Asking { .. } => Vec::new(),
            };
            self.end_promotion(volume, &CampaignFailure::NoQuorum { missing });
            return;
        }
        let phase = std::mem::replace(&mut campaign.phase, Phase::Waiting { until: now });
        campaign.lost += 1;
        let lost = campaign.lost;
        self.abandon(volume, phase);
        let pause = self.pause_after(lost);
        if let Some(campaign) = &mut self.volume_mut(volume).campaign {
            campaign.phase = Phase::Waiting { until: now + pause };
        }
    }

    /// The pause after this many elections lost.
    pub(crate) fn pause_after(&mut self, lost: u32) -> Duration {
        let doubled = self.config.reservation.saturating_mul(1 << lost.saturating_sub(1).min(8));
        self.spread(doubled.min(self.config.retry_limit), 50, 150)
    }

    /// No quorum said yes: finds out why, tells the agent once, and waits.
    fn conclude(&mut self, now: BootTime, volume: VolumeId) {
        let campaign = self.volumes.get(&volume).and_then(|entry| entry.campaign.as_ref());
        if campaign.is_some_and(Campaign::is_forced) {
            self.conclude_force(now, volume);
            return;
        }
        let promise = self.config.voter_share(self.config.lease);
        let (heartbeat, lease) = (self.config.heartbeat, self.config.lease);
        let Some(entry) = self.volumes.get_mut(&volume) else { return };
        let released = entry.offered.is_some()
            || entry.record.as_ref().is_some_and(|record| record.released.is_some());
        let Some(campaign) = &mut entry.campaign else { return };
        let Phase::Asking { config, replies, .. } = &campaign.phase else { return };
        let answers = Answers::of(&config.members(), config, replies);
        campaign.refused += 1;
        let doubling = FIRST_PAUSE.saturating_mul(1 << (campaign.refused - 1).min(10));
        let mut ended = false;
        let pause;
        if let Some((at, best)) = answers.servable {
            campaign.awaited = Some(best);
            pause = self.config.reservation;
            self.out.emit(LeaseEvent::Behind { volume, best: best.head, at });
        } else if let Some(newest) = answers.hinted.filter(|_| answers.data_blocks) {
            pause = lease;
            let told = Told::Undecided(answers.copies.clone());
            if campaign.told.as_ref() != Some(&told) {
                campaign.told = Some(told);
                let candidates = answers.copies;
                self.out.emit(LeaseEvent::NeedsDecision { volume, candidates, newest });
            }
        } else if let Some((remaining, holder, epoch)) = answers.busy {
            // Somebody who is heard from all the while holds it: this campaign is a mistake.
            ended = now.saturating_since(campaign.since) > promise * 2;
            pause = if released {
                doubling.min(heartbeat)
            } else {
                (remaining + Duration::from_millis(1)).clamp(FIRST_PAUSE, heartbeat)
            };
            let why = CampaignFailure::Held { holder, epoch };
            if ended {
                self.out.emit(LeaseEvent::CampaignFailed { volume, why, ended });
            }
        } else {
            pause = (heartbeat / 8 + doubling).min(LONGEST_SILENCE);
            let why = CampaignFailure::NoQuorum { missing: answers.missing };
            campaign.phase = Phase::Waiting { until: now + pause };
            if !self.end_promotion(volume, &why) {
                self.tell_failed(volume, why);
            }
            return;
        }
        campaign.phase = Phase::Waiting { until: now + pause };
        let overdue = campaign.promotion.as_ref().is_some_and(|it| now >= it.until);
        if let Some((_, holder, epoch)) = answers.busy.filter(|_| ended || overdue) {
            self.end_promotion(volume, &CampaignFailure::Held { holder, epoch });
        } else if overdue {
            self.end_promotion(volume, &CampaignFailure::UnderWay);
        }
        if ended {
            self.volume_mut(volume).campaign = None;
            self.out.touch(volume);
        }
    }

    /// Tells the agent why a campaign can't win for now, once.
    fn tell_failed(&mut self, volume: VolumeId, why: CampaignFailure) {
        let Some(campaign) = &mut self.volume_mut(volume).campaign else { return };
        let told = Told::Failed(why.clone());
        if campaign.told.as_ref() != Some(&told) {
            campaign.told = Some(told);
            self.out.emit(LeaseEvent::CampaignFailed { volume, why, ended: false });
        }
    }

    pub(crate) fn candidate_timers(&mut self, now: BootTime, volume: VolumeId) -> bool {
        let Some(campaign) = self.volumes.get(&volume).and_then(|entry| entry.campaign.as_ref())
        else {
            return false;
        };
        match &campaign.phase {
            Phase::Waiting { until } if now >= *until => self.ask(now, volume),
            Phase::Asking { until, .. } if now >= *until => self.conclude(now, volume),
            Phase::Claiming { until, .. } if now >= *until => self.lose_election(now, volume),
            _ => return false,
        }
        true
    }

    pub(crate) fn candidate_deadline(entry: &Volume) -> Option<BootTime> {
        entry.campaign.as_ref().map(|campaign| match &campaign.phase {
            Phase::Waiting { until }
            | Phase::Asking { until, .. }
            | Phase::Claiming { until, .. } => *until,
        })
    }
}

/// How fresh the copy here is, and how far behind it may be.
pub(crate) fn copy_and_limit(entry: &Volume) -> (Stamp, Duration) {
    let limit = entry.facts.as_ref().map_or(Duration::ZERO, |facts| facts.lag_limit);
    let won = entry.holding.as_ref().and_then(|holding| holding.campaign.as_ref());
    let campaign = entry.campaign.as_ref().or(won);
    let promoted = campaign.is_some_and(|campaign| campaign.promotion.is_some());
    (entry.copy.unwrap_or_default(), if promoted { ANY_LAG } else { limit })
}

/// The stores whose answer passes.
fn stores<T>(replies: &BTreeMap<StoreId, T>, passes: impl Fn(&T) -> bool) -> BTreeSet<StoreId> {
    replies.iter().filter(|(_, reply)| passes(reply)).map(|(store, _)| *store).collect()
}

/// Why a question did not end in a quorum.
pub(super) struct Answers {
    /// The freshest copy that a voter can serve.
    pub(super) servable: Option<(StoreId, Stamp)>,
    /// The newest replicated snapshot that a voter remembers.
    hinted: Option<Stamp>,
    /// Whether there would be a quorum if the data were fresh enough.
    data_blocks: bool,
    /// The voter that is bound for longest, by whom.
    pub(super) busy: Option<(Duration, StoreId, flocker_base::Epoch)>,
    /// The voters that would grant.
    pub(super) willing: BTreeSet<StoreId>,
    /// Voters that did not answer, or do not know that they vote.
    missing: Vec<StoreId>,
    /// The voters' own copies, freshest first.
    copies: Vec<(StoreId, Stamp)>,
}

impl Answers {
    pub(super) fn of(
        asked: &BTreeSet<StoreId>,
        config: &VoterConfig,
        replies: &BTreeMap<StoreId, PreVoteReply>,
    ) -> Self {
        let mut answers = Self {
            servable: None,
            hinted: None,
            data_blocks: false,
            busy: None,
            willing: BTreeSet::new(),
            missing: Vec::new(),
            copies: Vec::new(),
        };
        let mut willing = BTreeSet::new();
        for voter in asked.iter().copied() {
            let Some(reply) = replies.get(&voter) else {
                answers.missing.push(voter);
                continue;
            };
            answers.copies.extend(reply.copy.map(|copy| (voter, copy)));
            match &reply.verdict {
                Verdict::Yes => {
                    willing.insert(voter);
                    answers.willing.insert(voter);
                }
                Verdict::Behind { best, here } => {
                    willing.insert(voter);
                    if !*here {
                        answers.hinted = answers.hinted.max(Some(*best));
                    } else if answers.servable.is_none_or(|(_, known)| known < *best) {
                        answers.servable = Some((voter, *best));
                    }
                }
                Verdict::Busy { holder, epoch, remaining } => {
                    answers.busy = answers.busy.max(Some((*remaining, *holder, *epoch)));
                }
                Verdict::Newer(_) | Verdict::NotVoter | Verdict::Stale(_) => {
                    answers.missing.push(voter);
                }
            }
        }
        answers.data_blocks = config.is_quorum(&willing);
        answers.copies.sort_by_key(|(store, copy)| (std::cmp::Reverse(copy.head), *store));
        answers
    }
}

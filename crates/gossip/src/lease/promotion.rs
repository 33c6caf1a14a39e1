//! Promotion by a person's word: this node's copy leads though it lies further behind than the
//! volume's limit allows, or, by force, though no quorum of the voters can be asked.
//!
//! A forced promotion opens a new *generation* of epochs under voters of its own. Until the two
//! sides meet there may be two masters: that is what force means. It must never happen while a
//! voter that answers still promises the volume to someone; and what is of an older generation
//! ends as soon as it hears of the newer one. No epoch of a generation is ever granted under a
//! configuration of another, so the former voters can't outvote it. A voter that grants the first
//! epoch of a generation makes its configuration durable with the grant: a promotion that is given up
//! after that may still take effect, by an election among the voters that it named.

use std::collections::BTreeSet;
use std::time::Duration;

use flocker_base::{BootTime, Epoch, StoreId, VolumeId};

use super::candidate::Answers;
use super::core::LeaseCore;
use super::event::{CampaignFailure, LeaseError, LeaseEvent, Outcome, Request};
use super::state::{Campaign, Phase, Promotion, Volume};
use crate::model::{ConfigVersion, VoterConfig, Voters};

/// A promotion that has not succeeded by then is given up.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(30);

impl LeaseCore {
    pub(crate) fn on_promote(
        &mut self,
        now: BootTime,
        volume: VolumeId,
        force: Option<Voters>,
        request: Request,
    ) {
        let me = self.me;
        let refused = match (&force, self.volumes.get(&volume)) {
            _ if self.node.condemned => Some(CampaignFailure::Condemned),
            (_, None) => Some(CampaignFailure::UnknownVolume),
            (_, Some(entry)) if entry.config().is_none() => Some(CampaignFailure::UnknownVolume),
            (Some(voters), Some(_)) if !voters.contains(&me) || voters.len().is_multiple_of(2) => {
                Some(CampaignFailure::BadVoters)
            }
            _ => None,
        };
        if let Some(why) = refused {
            self.out.reply(request, Err(LeaseError::NotPromoted { volume, why }));
            return;
        }
        if let Some(held) = self.held(volume).filter(|held| now < held.until) {
            self.out.reply(request, Ok(Outcome::Won(held.epoch)));
            return;
        }
        let entry = self.volume_mut(volume);
        if entry.holding.is_some() {
            let why = CampaignFailure::UnderWay;
            self.out.reply(request, Err(LeaseError::NotPromoted { volume, why }));
            return;
        }
        let force = match force {
            None => None,
            // Never less than was asked for: that would be another promotion.
            Some(voters) => match forced_config(me, entry, voters) {
                Some(config) => Some(config),
                None => {
                    let why = CampaignFailure::Outdated(entry.highest());
                    self.out.reply(request, Err(LeaseError::NotPromoted { volume, why }));
                    return;
                }
            },
        };
        if let Some(former) = entry.campaign.take() {
            self.give_up(volume, former, &CampaignFailure::UnderWay);
        }
        tracing::debug!(%volume, forced = force.is_some(), "promotion starts");
        let until = now + GIVEN_UP_AFTER;
        let promotion = Promotion { request: Some(request), force, until };
        self.volume_mut(volume).campaign = Some(Campaign {
            rank: 0,
            since: now,
            claimed: now,
            phase: Phase::Waiting { until: now },
            lost: 0,
            refused: 0,
            awaited: None,
            told: None,
            promotion: Some(promotion),
        });
        self.out.touch(volume);
    }

    /// Ends a campaign whose person is told why.
    pub(crate) fn give_up(&mut self, volume: VolumeId, campaign: Campaign, why: &CampaignFailure) {
        let request = campaign.promotion.as_ref().and_then(|promotion| promotion.request);
        self.abandon(volume, campaign.phase);
        if let Some(request) = request {
            let why = why.clone();
            self.out.reply(request, Err(LeaseError::NotPromoted { volume, why }));
        }
        self.out.touch(volume);
    }

    /// Ends this volume's campaign, if it is a promotion. Whether it was.
    pub(crate) fn end_promotion(&mut self, volume: VolumeId, why: &CampaignFailure) -> bool {
        let Some(entry) = self.volumes.get_mut(&volume) else { return false };
        let Some(campaign) = entry.campaign.take_if(|campaign| campaign.promotion.is_some()) else {
            return false;
        };
        self.give_up(volume, campaign, why);
        true
    }

    /// Everybody who can be asked was: claims the first epoch of a new generation, unless somebody
    /// is promised to, or knows better.
    pub(crate) fn conclude_force(&mut self, now: BootTime, volume: VolumeId) {
        let Some(entry) = self.volumes.get_mut(&volume) else { return };
        let highest = entry.highest();
        let Some(campaign) = &mut entry.campaign else { return };
        let Phase::Asking { config, replies, .. } = &campaign.phase else { return };
        let asked = replies.keys().copied().chain(config.members()).collect();
        let answers = Answers::of(&asked, config, replies);
        let willing = answers.willing.clone();
        let first = config.version.epoch;
        let overdue = campaign.promotion.as_ref().is_some_and(|it| now >= it.until);
        if let Some((_, holder, epoch)) = answers.busy {
            self.end_promotion(volume, &CampaignFailure::Held { holder, epoch });
        } else if highest >= first {
            self.end_promotion(volume, &CampaignFailure::Outdated(highest));
        } else if answers.servable.is_some() && overdue {
            // A fresher copy can't be fetched: what was asked for then is not done much later.
            self.end_promotion(volume, &CampaignFailure::UnderWay);
        } else if let Some((at, best)) = answers.servable {
            campaign.awaited = Some(best);
            campaign.phase = Phase::Waiting { until: now + self.config.reservation };
            self.out.emit(LeaseEvent::Behind { volume, best: best.head, at });
        } else if config.is_quorum(&willing) {
            self.claim(now, volume);
        } else {
            let missing = config.members().difference(&willing).copied().collect();
            self.end_promotion(volume, &CampaignFailure::NoQuorum { missing });
        }
    }

    /// What a holder has was taken from it once a newer generation is known, or a configuration that
    /// a master of a later epoch made: of two that were forced at one time, the later one stays.
    /// Whether it was.
    pub(crate) fn heed_generation(&mut self, now: BootTime, volume: VolumeId) -> bool {
        let Some(entry) = self.volumes.get(&volume) else { return false };
        let highest = entry.highest();
        let holding = entry.holding.as_ref();
        let config = entry.config().map_or(Epoch::ZERO, |config| config.version.epoch);
        let taken = holding
            .is_some_and(|held| held.epoch.generation < highest.generation || held.epoch < config);
        if taken {
            self.fall(now, volume, Some(highest));
        }
        taken
    }

    /// A forced master makes its configuration durable at its voters, under a number above that
    /// which they granted it by.
    pub(crate) fn settle_force(&mut self, now: BootTime, volume: VolumeId) {
        let holding = self.volumes.get(&volume).and_then(|entry| entry.holding.as_ref());
        let Some(holding) = holding.filter(|holding| holding.change.is_none()) else { return };
        let config = &holding.config;
        let forced = config.version.epoch == holding.epoch && holding.epoch.generation > 0;
        if forced && config.joint.is_none() && !holding.again {
            let number = config.version.number + 1;
            let version = ConfigVersion { epoch: holding.epoch, number };
            let stamped = VoterConfig { version, ..config.clone() };
            self.propose(now, volume, stamped, now, None, false);
        }
    }
}

/// The configuration of a new generation.
fn forced_config(me: StoreId, entry: &Volume, voters: Voters) -> Option<VoterConfig> {
    let known = entry.config()?;
    let [.., high, low] = *me.as_bytes();
    let raised = (entry.highest().generation >> Epoch::FORCER_BITS).checked_add(1)?;
    let forcer = u32::from(u16::from_be_bytes([high, low]));
    let epoch = Epoch::new(raised.checked_mul(1 << Epoch::FORCER_BITS)? | forcer, 1);
    let version = ConfigVersion { epoch, number: known.version.number + 1 };
    Some(VoterConfig { version, voters, joint: None })
}

/// Whom a campaign asks: the voters, and before a forced promotion the former ones as well.
pub(super) fn to_ask(entry: &Volume, config: &VoterConfig) -> BTreeSet<StoreId> {
    let forced = entry.campaign.as_ref().is_some_and(Campaign::is_forced);
    let former = entry.config().filter(|_| forced).map(VoterConfig::members).unwrap_or_default();
    config.members().union(&former).copied().collect()
}

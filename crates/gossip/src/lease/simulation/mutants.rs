//! Errors put around the core on purpose, for the checks to catch.

use super::super::message::{Message, Verdict};
use super::super::record::Durable;

/// One error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mutant {
    /// The core is told that writes are durable when they are not.
    EarlyAnnouncement,
    /// Acknowledgements are taken for those of the newest heartbeat sent (F8).
    ReceiptTime,
    /// A restarted voter does not wait (F6).
    NoStartWait,
    /// A restarted voter has forgotten what was confirmed.
    VolatileConfirmation,
    /// Support numbers mean nothing.
    NoWithdrawal,
    /// A voter's refusal to confirm counts as a confirmation (F1).
    AnyVoter,
    /// A voter loses its disk and keeps its id (F7).
    WipedVoter,
    /// Clocks run at rates further apart than configured.
    WildClocks,
    /// The service runs on for a while after the release.
    EarlyRelease,
    /// Voters follow any configuration (F10).
    HiddenConfig,
    /// The joint configuration is understood as the new one alone (F10).
    NoJoint,
}

impl Mutant {
    /// Spoils what is on the disk at a restart.
    pub(super) fn spoil_disk(self, durable: &mut Durable) {
        match self {
            Self::NoStartWait => durable.node.longest_lease = std::time::Duration::ZERO,
            Self::VolatileConfirmation => {
                durable.voters.values_mut().for_each(|record| record.confirmed = false);
            }
            Self::WipedVoter => *durable = Durable::default(),
            _ => {}
        }
    }

    /// Spoils a message on its way: `support` is the receiver's support number for the sender,
    /// `newest` the newest heartbeat from the receiver to the sender.
    pub(super) fn spoil_message(self, message: &mut Message, support: u64, newest: u64) {
        match (self, message) {
            (Self::ReceiptTime, Message::HeartbeatAck(ack)) => ack.seq = newest,
            (Self::NoWithdrawal, Message::Heartbeat(beat)) => beat.support = support,
            (Self::NoWithdrawal, Message::HeartbeatAck(ack)) => ack.support = 0,
            (Self::NoWithdrawal, Message::GrantReply(reply)) => reply.support = 0,
            (Self::NoWithdrawal, Message::PreVoteReply(reply)) => reply.support = 0,
            (Self::NoWithdrawal, Message::SetConfigReply(reply)) => reply.support = 0,
            (Self::AnyVoter, Message::HeartbeatAck(ack)) if ack.extended => {
                let refused = std::mem::take(&mut ack.refused);
                ack.confirmed.extend(refused.into_iter().map(|(volume, epoch, _)| (volume, epoch)));
            }
            (Self::HiddenConfig, Message::PreVote(question)) => {
                question.config.version.number = u64::MAX;
                question.config.version.epoch.counter = u64::MAX;
            }
            (Self::HiddenConfig, Message::Grant(grant)) => {
                grant.config.version.number = u64::MAX;
                grant.config.version.epoch.counter = u64::MAX;
            }
            (Self::NoJoint, Message::SetConfig(set)) => set.config.joint = None,
            (Self::NoJoint, Message::GrantReply(reply)) => {
                if let Verdict::Newer(config) = &mut reply.verdict {
                    config.joint = None;
                }
            }
            _ => {}
        }
    }
}

//! What the lease driver and peers told in passing, kept as levels a volume: what an election
//! lacks, and who was invited to take over. Pure bookkeeping; [`super::reconcile`] decides what
//! follows.

use std::collections::HashMap;

use flocker_base::{Head, StoreId, VolumeId};
use flocker_gossip::lease::LeaseEvent;

/// The levels of one volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Signals {
    /// A fresher copy that a campaign needs first, and who has it.
    pub(super) behind: Option<(Head, StoreId)>,
    /// Why no election can go on without a person.
    pub(super) needs_decision: Option<String>,
    /// The master released the volume to this node and said so itself.
    pub(super) invited: bool,
    /// This node's own release was not taken up: it may claim the volume again.
    pub(super) reopened: bool,
}

/// The levels of all volumes.
#[derive(Debug, Default)]
pub(super) struct Board {
    volumes: HashMap<VolumeId, Signals>,
}

impl Board {
    pub(super) fn of(&self, volume: VolumeId) -> Signals {
        self.volumes.get(&volume).cloned().unwrap_or_default()
    }

    /// Takes in one event.
    pub(super) fn hear(&mut self, event: &LeaseEvent) {
        match event {
            LeaseEvent::Won { volume, .. } => self.settled(*volume),
            LeaseEvent::Behind { volume, best, at } => {
                self.entry(*volume).behind = Some((*best, *at));
            }
            LeaseEvent::NeedsDecision { volume, candidates, .. } => {
                let listed: Vec<String> = candidates
                    .iter()
                    .map(|(store, stamp)| format!("{} at {}", store.short(), stamp.head))
                    .collect();
                self.entry(*volume).needs_decision = Some(format!(
                    "every copy that can be reached is further behind than the lag limit allows: {}",
                    listed.join(", ")
                ));
            }
            LeaseEvent::Renewed { .. }
            | LeaseEvent::Freeze { .. }
            | LeaseEvent::Lost { .. }
            | LeaseEvent::HolderSilent { .. }
            | LeaseEvent::HolderReleased { .. }
            | LeaseEvent::CampaignFailed { .. }
            | LeaseEvent::VotersChanged { .. } => {}
        }
    }

    /// A master is known again: what was said of the time without one is past.
    pub(super) fn settled(&mut self, volume: VolumeId) {
        self.volumes.remove(&volume);
    }

    /// The fresher copy was fetched, or could not be.
    pub(super) fn fetched(&mut self, volume: VolumeId) {
        self.entry(volume).behind = None;
    }

    /// The master asks this node to take the volume over.
    pub(super) fn invited(&mut self, volume: VolumeId) {
        self.entry(volume).invited = true;
    }

    /// The invitation ran out, or was followed.
    pub(super) fn uninvited(&mut self, volume: VolumeId) {
        self.entry(volume).invited = false;
    }

    /// This node's release was not taken up.
    pub(super) fn reopened(&mut self, volume: VolumeId) {
        self.entry(volume).reopened = true;
    }

    fn entry(&mut self, volume: VolumeId) -> &mut Signals {
        self.volumes.entry(volume).or_default()
    }
}

//! Heartbeats: when they go, what they offer, and what an answer proves of a peer. They renew
//! nothing by themselves: see the holder.

use std::collections::BTreeSet;

use flocker_base::{BootTime, Epoch, StoreId, VolumeId};

use super::candidate::copy_and_limit;
use super::core::LeaseCore;
use super::event::Alarm;
use super::message::{Grant, Heartbeat, Message};
use super::record::Write;
use super::state::{Sent, Standing};

impl LeaseCore {
    /// A peer answered this start: it may be asked for promises, under its newest support number.
    pub(crate) fn heard(&mut self, now: BootTime, from: StoreId, support: u64) {
        let peer = self.peers.entry(from).or_default();
        peer.heard = Some(now);
        if support > peer.support {
            self.adopt_support(from, support);
        }
    }

    /// The peer withdrew its promise once: all that it confirmed must be confirmed again.
    fn adopt_support(&mut self, from: StoreId, support: u64) {
        let peer = self.peers.entry(from).or_default();
        peer.support = support;
        peer.adopted_at = peer.next_beat;
        peer.until = BootTime::ZERO;
        let mut concerned = false;
        for entry in self.volumes.values_mut() {
            if let Some(holding) = &mut entry.holding {
                holding.confirmed.remove(&from);
                concerned |= holding.config.members().contains(&from);
            }
        }
        if concerned {
            self.urgent.insert(from);
        }
    }

    /// Sends the heartbeats that can't wait. Whether any was sent.
    pub(crate) fn send_urgent_beats(&mut self, now: BootTime) -> bool {
        let urgent = std::mem::take(&mut self.urgent);
        let mut sent = false;
        for voter in urgent {
            if self.offers(voter).next().is_some() {
                self.send_beat(now, voter);
                sent = true;
            } else if self.volumes.values().any(|entry| {
                entry.holding.as_ref().is_some_and(|holding| {
                    !self.out.is_durable(holding.ticket)
                        && holding.config.members().contains(&voter)
                })
            }) {
                self.urgent.insert(voter);
            }
        }
        sent
    }

    /// What this voter is to confirm: durable here, not refused there.
    fn offers(&self, voter: StoreId) -> impl Iterator<Item = (VolumeId, Epoch)> + '_ {
        self.volumes.iter().filter_map(move |(volume, entry)| {
            let holding = entry.holding.as_ref()?;
            let open = !holding.confirmed.contains(&voter)
                && holding.config.members().contains(&voter)
                && self.out.is_durable(holding.ticket)
                && !matches!(holding.standing.get(&voter), Some(Standing::Refused(_)));
            open.then_some((*volume, holding.epoch))
        })
    }

    fn send_beat(&mut self, now: BootTime, voter: StoreId) {
        let limit = self.config.batch;
        let confirm: Vec<_> = self.offers(voter).take(limit).collect();
        let mut hints = Vec::new();
        for (volume, entry) in &self.volumes {
            if let Some(holding) = &entry.holding
                && let Some(hint) = holding.hint
                && holding.untold.contains(&voter)
                && holding.confirmed.contains(&voter)
                && hints.len() < limit
            {
                hints.push((*volume, holding.epoch, hint));
            }
        }
        let stalled = self.is_stalled(now);
        let lease = self.config.lease;
        let peer = self.peers.entry(voter).or_default();
        peer.next_beat += 1;
        let seq = peer.next_beat;
        let want = !stalled && peer.heard.is_some_and(|heard| now.saturating_since(heard) < lease);
        peer.sent.retain(|_, sent| now.saturating_since(sent.at) < lease);
        let told = hints.iter().map(|(volume, _, hint)| (*volume, *hint)).collect();
        peer.sent.insert(seq, Sent { at: now, lease, wanted: want, hints: told });
        let support = peer.support;
        let beat = Heartbeat { seq, want, support, lease, confirm, hints };
        self.out.send(voter, Message::Heartbeat(beat), 0);
    }

    /// Whether the disk has not answered for a whole lease: then nothing is asked for, so that
    /// a node with a dead disk does not keep what it can't serve.
    pub(crate) fn is_stalled(&self, now: BootTime) -> bool {
        self.out.stalled_for(now) > self.config.lease
    }

    /// The regular heartbeat: one for each voter of anything held. Whether it was due.
    pub(crate) fn beat_timer(&mut self, now: BootTime) -> bool {
        if now < self.next_beat {
            return false;
        }
        let voters: BTreeSet<_> = self
            .volumes
            .values()
            .filter_map(|entry| entry.holding.as_ref())
            .flat_map(|holding| holding.config.members())
            .collect();
        if voters.is_empty() {
            return false;
        }
        self.next_beat = now + self.config.heartbeat;
        let stalled = self.out.stalled_for(now);
        if stalled <= self.config.lease {
            self.stall_told = false;
        } else if !std::mem::replace(&mut self.stall_told, true) {
            self.out.alarm(Alarm::DiskStalled(stalled));
        }
        if !self.out.is_writing() && now.saturating_since(self.last_write) >= self.config.lease {
            self.out.write(Write::Node(self.node));
        }
        self.offer_grants();
        for voter in voters {
            self.send_beat(now, voter);
        }
        true
    }

    /// Asks voters that are behind to grant what a quorum granted, so that the loss of one more
    /// voter does not end the lease.
    fn offer_grants(&mut self) {
        for (volume, entry) in &self.volumes {
            let Some(holding) = &entry.holding else { continue };
            if !self.out.is_durable(holding.ticket) {
                continue;
            }
            let (copy, lag_limit) = copy_and_limit(entry);
            for voter in holding.config.members() {
                let behind = match holding.standing.get(&voter) {
                    Some(Standing::Refused(max)) => *max < holding.epoch,
                    Some(Standing::Granted) => false,
                    None => !holding.again && !holding.confirmed.contains(&voter),
                };
                if behind {
                    let (volume, epoch) = (*volume, holding.epoch);
                    let config = holding.config.clone();
                    let grant = Grant { volume, epoch, config, copy, lag_limit };
                    self.out.send(voter, Message::Grant(grant), 0);
                }
            }
        }
    }
}

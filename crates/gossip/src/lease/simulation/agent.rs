//! What the agents of the simulated nodes do: campaign, fetch, snapshot, move, change voters.

use std::collections::BTreeSet;
use std::time::Duration;

use flocker_base::{Epoch, Head, StoreId, VolumeId};
use rand::RngExt;
use rand::seq::IndexedRandom;

use super::super::event::{Event, LeaseError, LeaseEvent, Outcome, Request, VolumeFacts};
use super::super::message::Packet;
use super::super::record::Stamp;
use super::mutants::Mutant;
use super::network::chance;
use super::world::{Item, Micros, World};
use crate::model::VoterConfig;

/// A master's epoch and voters, as the map has them.
pub(super) type Placed = (Epoch, VoterConfig);

const MILLISECOND: Micros = 1_000;
const LAG_LIMIT: Duration = Duration::from_secs(5);

impl World {
    /// Tells a core that has just started what its agent knows.
    pub(super) fn introduce(&mut self, node: usize) -> Result<(), String> {
        for (volume, voters) in self.volumes.clone() {
            let placed = self.nodes[node].placed.get(&volume).cloned();
            let config = placed.map_or_else(|| VoterConfig::birth(voters), |(_, config)| config);
            let facts = VolumeFacts { volume, config, lag_limit: LAG_LIMIT };
            self.step(node, Event::Observe(facts))?;
            let copy = self.nodes[node].copies.get(&volume).copied().unwrap_or_default();
            self.step(node, Event::LocalCopy(volume, Some(copy)))?;
        }
        Ok(())
    }

    /// Takes a packet in, at once or together with what comes next.
    pub(super) fn deliver(
        &mut self,
        from: usize,
        to: usize,
        mut packet: Packet,
    ) -> Result<(), String> {
        if self.network.cut.contains(&(from, to)) {
            self.note("message lost");
            return Ok(());
        }
        let sender = self.nodes[from].store;
        let receiver = &self.nodes[to];
        if let Some(mutant) = self.mutant {
            let support = receiver.durable.supports.get(&sender).map_or(0, |r| r.support);
            let newest = receiver.newest_beats.get(&sender).copied().unwrap_or(0);
            for message in &mut packet.messages {
                mutant.spoil_message(message, support, newest);
            }
        }
        let event = Event::Packet { from: sender, packet };
        if self.nodes[to].core.is_some() && chance(&mut self.random, 200) {
            self.nodes[to].together.push(event);
            self.agent(to, 2 * MILLISECOND, Event::Tick);
            return Ok(());
        }
        self.step(to, event)
    }

    fn agent(&mut self, node: usize, after: Micros, event: Event) {
        let life = self.nodes[node].life;
        self.put(after, Item::Agent { node, life, event });
    }

    fn campaign(&mut self, node: usize, volume: VolumeId, rank: u32) {
        let reason = "simulated".to_owned();
        self.agent(node, MILLISECOND, Event::Campaign { volume, rank, reason });
    }

    pub(super) fn react(&mut self, node: usize, event: &LeaseEvent) -> Result<(), String> {
        let me = self.nodes[node].store;
        match *event {
            LeaseEvent::Won { volume, epoch, ref config, .. } => {
                if config.version.epoch == epoch && epoch.counter == 1 && epoch.generation > 0 {
                    self.note("promoted by force");
                }
                let newest = self.winners.newest(volume);
                self.note(match newest {
                    Some(newest) if newest == epoch => "kept across a restart",
                    Some(_) => "taken over",
                    None => "epoch won",
                });
                self.winners.check(volume, epoch, me)?;
            }
            LeaseEvent::Renewed { volume, .. } => {
                let held = self.nodes[node].core.as_ref().and_then(|core| core.held(volume));
                if held.is_some_and(|held| !held.frozen) && self.frozen.remove(&(node, volume)) {
                    self.note("thawed");
                }
            }
            LeaseEvent::Freeze { volume, .. } => {
                self.frozen.insert((node, volume));
                self.note("frozen");
            }
            LeaseEvent::Lost { volume, .. } => {
                self.frozen.remove(&(node, volume));
                self.note("volume lost");
            }
            LeaseEvent::HolderSilent { volume, .. } => {
                self.note("holder silent");
                let rank = self.random.random_range(0..3);
                self.campaign(node, volume, rank);
            }
            LeaseEvent::HolderReleased { volume, successor } => match successor {
                Some(successor) if successor == me => {
                    self.note("handed over");
                    self.campaign(node, volume, 0);
                }
                Some(_) => {}
                None => {
                    self.note("released to no one");
                    let rank = self.random.random_range(0..3);
                    self.campaign(node, volume, rank);
                }
            },
            LeaseEvent::Behind { volume, at, .. } => {
                self.note("election refused for its copy");
                let from = self.index(at);
                self.put(30 * MILLISECOND, Item::Fetch { node, from, volume });
            }
            LeaseEvent::NeedsDecision { .. } => self.note("needs a decision"),
            LeaseEvent::VotersChanged { .. } => self.note("voters changed"),
            LeaseEvent::CampaignFailed { .. } => self.note("campaign failed"),
        }
        Ok(())
    }

    pub(super) fn noticed(&mut self, outcome: &Result<Outcome, LeaseError>) {
        self.note(match outcome {
            Ok(Outcome::Released(_)) => "release done",
            Ok(Outcome::Voters(_)) => "change done",
            Ok(Outcome::Won(_)) => "promotion done",
            Err(_) => "request refused",
        });
    }

    fn connected(&self, one: usize, other: usize) -> bool {
        !self.network.cut.contains(&(one, other)) && !self.network.cut.contains(&(other, one))
    }

    /// A node pulls another's copy.
    pub(super) fn fetch(
        &mut self,
        node: usize,
        from: usize,
        volume: VolumeId,
    ) -> Result<(), String> {
        if self.nodes[from].core.is_none() || !self.connected(node, from) {
            return Ok(());
        }
        let theirs = self.nodes[from].copies.get(&volume).copied().unwrap_or_default();
        let own = self.nodes[node].copies.entry(volume).or_default();
        *own = theirs.max(*own);
        let copy = *own;
        self.step(node, Event::LocalCopy(volume, Some(copy)))
    }

    /// Every agent looks at every volume, now and then.
    pub(super) fn poll(&mut self) -> Result<(), String> {
        self.put(500 * MILLISECOND, Item::Poll);
        self.gossip()?;
        for node in 0..self.nodes.len() {
            for (volume, _) in self.volumes.clone() {
                self.poll_one(node, volume)?;
            }
        }
        Ok(())
    }

    /// The map: masters say what they are, and it spreads to whoever is connected.
    fn gossip(&mut self) -> Result<(), String> {
        for (volume, _) in self.volumes.clone() {
            for node in 0..self.nodes.len() {
                let view = self.nodes[node].core.as_ref().and_then(|core| core.view(volume));
                let Some(view) = view else { continue };
                let mut placed = self.nodes[node].placed.get(&volume).cloned();
                let own = view.held.map(|held| (held.epoch, view.config));
                let near = (0..self.nodes.len()).filter(|peer| self.connected(node, *peer));
                let told = near.filter_map(|peer| self.nodes[peer].placed.get(&volume).cloned());
                let newest = told.chain(own).max_by_key(|(epoch, config)| (*epoch, config.version));
                let Some((epoch, config)) = newest else { continue };
                let order = |(epoch, config): &Placed| (*epoch, config.version);
                if placed.as_ref().map(order) >= Some((epoch, config.version)) {
                    continue;
                }
                placed = Some((epoch, config.clone()));
                self.nodes[node].placed.extend(placed.map(|placed| (volume, placed)));
                let facts = VolumeFacts { volume, config, lag_limit: LAG_LIMIT };
                self.step(node, Event::Observe(facts))?;
                self.step(node, Event::Seen(volume, epoch))?;
            }
        }
        Ok(())
    }

    /// A person has this copy lead.
    fn promote(&mut self, node: usize, volume: VolumeId) -> Result<(), String> {
        let me = self.nodes[node].store;
        let stores: Vec<_> = self.nodes.iter().map(|node| node.store).collect();
        let size = *[1, 1, 3].choose(&mut self.random).expect("not empty");
        let mut voters = BTreeSet::from([me]);
        while voters.len() < size {
            voters.extend(stores.choose(&mut self.random).copied());
        }
        let force = chance(&mut self.random, 800).then(|| voters.into());
        self.step(node, Event::Promote { volume, force, request: Request(3) })
    }

    fn poll_one(&mut self, node: usize, volume: VolumeId) -> Result<(), String> {
        let now = self.nodes[node].local(self.now);
        let me = self.nodes[node].store;
        let Some(view) = self.nodes[node].core.as_ref().and_then(|core| core.view(volume)) else {
            return Ok(());
        };
        let held = view.held.filter(|held| now < held.until && !held.frozen);
        let Some(held) = held else {
            let free = view.grantee.is_none() || view.silent || view.released;
            let reserved = view.successor.is_some_and(|successor| successor != me);
            if !self.is_healing() && chance(&mut self.random, 12) {
                self.promote(node, volume)?;
            } else if view.held.is_none() && !view.campaigning && free && !reserved {
                let rank = self.random.random_range(0..3);
                self.campaign(node, volume, rank);
            }
            return Ok(());
        };
        self.snapshot(node, volume, held.epoch)?;
        if self.is_healing() {
            return Ok(());
        }
        if chance(&mut self.random, 40) {
            self.release(node, volume)?;
        } else if chance(&mut self.random, 40) {
            self.change_voters(node, volume)?;
        }
        Ok(())
    }

    /// The master takes a snapshot and sends it to some.
    fn snapshot(&mut self, node: usize, volume: VolumeId, epoch: Epoch) -> Result<(), String> {
        let seq = self.nodes[node].copies.get(&volume).map_or(0, |copy| copy.head.seq.0) + 1;
        let stamp = Stamp { head: Head::new(epoch, seq), taken_at: self.wall() };
        self.nodes[node].copies.insert(volume, stamp);
        self.step(node, Event::LocalCopy(volume, Some(stamp)))?;
        for peer in 0..self.nodes.len() {
            let can = peer != node && self.nodes[peer].core.is_some() && self.connected(node, peer);
            if can && chance(&mut self.random, 600) {
                self.nodes[peer].copies.insert(volume, stamp);
                self.step(peer, Event::LocalCopy(volume, Some(stamp)))?;
                self.step(node, Event::Replicated(volume, stamp))?;
            }
        }
        Ok(())
    }

    fn release(&mut self, node: usize, volume: VolumeId) -> Result<(), String> {
        let stores: Vec<_> = self.nodes.iter().map(|node| node.store).collect();
        let successor = stores.choose(&mut self.random).copied();
        let successor = successor.filter(|_| chance(&mut self.random, 800));
        if let Some(to) = successor.map(|store| self.index(store)) {
            self.fetch(to, node, volume)?;
        }
        let guarded = self.nodes[node].guarded.get(&volume).copied();
        self.step(node, Event::Release { volume, successor, request: Request(1) })?;
        if let (Some(guarded), Some(Mutant::EarlyRelease)) = (guarded, self.mutant) {
            self.nodes[node].guarded.insert(volume, guarded);
        }
        Ok(())
    }

    fn change_voters(&mut self, node: usize, volume: VolumeId) -> Result<(), String> {
        let stores: Vec<_> = self.nodes.iter().map(|node| node.store).collect();
        let size = *[1, 3, 3, 3, 5].choose(&mut self.random).expect("not empty");
        let size = if size > stores.len() { 3 } else { size };
        let mut voters: BTreeSet<StoreId> =
            stores.sample(&mut self.random, size).copied().collect();
        if size == 1 {
            voters = BTreeSet::from([self.nodes[node].store]);
        }
        self.step(node, Event::ChangeVoters { volume, voters: voters.into(), request: Request(2) })
    }
}

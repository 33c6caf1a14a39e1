//! What users do and what goes wrong in the simulated world, and its end.

use std::collections::BTreeSet;
use std::ops::Range;

use flocker_base::{Epoch, Head, ServiceId, VolumeId};
use rand::RngExt;
use rand::seq::IndexedRandom;

use super::disk::Disk;
use super::mutants::Mutant;
use super::views::Membership;
use super::world::{Change, Item, MILLISECOND, Micros, SECOND, Work, World};
use crate::map::Edit;
use crate::model::{Placement, PlacementState, RouteKey, RouteSpec, VoterConfig};

/// Faults happen until here.
pub(super) const FAULTS_END: Micros = 40 * SECOND;
/// Time that a partition lasts at least, so that both sides write.
const LEAST_PARTITION: Micros = 4 * SECOND;
const GOOD_DISK: (Micros, Micros) = (2 * MILLISECOND, 8 * MILLISECOND);

pub(super) fn route(host: &str, service: u8) -> Edit {
    let service = ServiceId::from_bytes([service; 16]);
    Edit::PutRoute(RouteSpec { key: RouteKey::HttpHost(host.to_owned()), service })
}

impl World {
    fn some_node(&mut self) -> Option<usize> {
        let running: Vec<usize> = self.running().map(|(number, _)| number).collect();
        running.choose(&mut self.random).copied()
    }

    /// A user changes something at this node.
    pub(super) fn change(&mut self, node: usize, change: Change) {
        if self.mutant == Some(Mutant::EarlyAcknowledgement) {
            self.ledger.acknowledge(node, &change);
        }
        self.work(node, Work::Change(change));
    }

    /// Somebody changes something, and somebody else will soon.
    pub(super) fn edit(&mut self) {
        if self.now < FAULTS_END {
            let pause = self.random.random_range(100 * MILLISECOND..600 * MILLISECOND);
            self.put(pause, Item::Edit);
        }
        let Some(node) = self.some_node() else { return };
        let service = self.random.random_range(1..=200);
        match self.random.random_range(0..10) {
            0..=4 => {
                self.ledger.count += 1;
                let host = format!("h{}.test", self.ledger.count);
                self.change(node, Change::Edit(route(&host, service)));
                self.note("route made");
            }
            kind @ 5..=7 => {
                let Some(host) = self.some_route(node) else { return };
                let edit = if kind == 7 {
                    self.note("route deleted");
                    Edit::DeleteRoute(RouteKey::HttpHost(host))
                } else {
                    self.note("route changed");
                    route(&host, service)
                };
                self.change(node, Change::Edit(edit));
            }
            _ => self.place(),
        }
    }

    /// A route that this node shows and nobody disputes.
    fn some_route(&mut self, node: usize) -> Option<String> {
        let view = self.nodes[node].running.as_ref()?.map.view();
        let hosts = view.routes().map(|listed| match &listed.spec.key {
            RouteKey::HttpHost(host) => host.clone(),
        });
        let free = hosts.filter(|host| !self.ledger.disputed.contains_key(host));
        let hosts: Vec<String> = free.filter(|host| host.starts_with('h')).collect();
        hosts.choose(&mut self.random).cloned()
    }

    /// A volume's master says where it is. It is one node at a time, under a rising epoch.
    fn place(&mut self) {
        let number = self.random.random_range(0..5);
        let Some(node) = self.some_node() else { return };
        let volume = VolumeId::from_bytes([number; 16]);
        self.ledger.count += 1;
        let epoch = Epoch::new(0, u64::from(self.ledger.count));
        let store = self.nodes[node].store;
        let placement = Placement {
            volume,
            epoch,
            sequence: 1,
            holder: store,
            voters: VoterConfig::birth([store]),
            replicas: vec![store],
            head: Head::new(epoch, 1),
            state: PlacementState::Active,
        };
        self.change(node, Change::Place(placement));
        self.note("volume placed");
    }

    fn pause(&mut self, range: Range<Micros>) -> Micros {
        self.random.random_range(range)
    }

    /// Lets something go wrong, and plans the next.
    pub(super) fn fault(&mut self) {
        if self.now >= FAULTS_END {
            return;
        }
        let pause = self.pause(300 * MILLISECOND..1_200 * MILLISECOND);
        self.put(pause, Item::Fault);
        // In a large mesh more goes wrong at a time.
        let many = self.nodes.len().div_ceil(60);
        match self.random.random_range(0..18) {
            0..=3 => (0..many).for_each(|_| self.crash()),
            4 => self.replace("disk wiped"),
            5 => self.join(),
            6 => self.leave(),
            7 | 8 => self.partition(),
            9 => {
                let Some(node) = self.some_node() else { return };
                for other in (0..self.nodes.len()).step_by(2).filter(|other| *other != node) {
                    self.network.one_way.insert((node, other));
                }
                self.note("one-way cut");
            }
            10 => {
                let regions = self.network.regions.iter().max().map_or(1, |last| last + 1);
                let from = self.random.random_range(0..regions);
                let to = (from + self.random.random_range(1..regions)) % regions;
                self.network.one_way_regions.insert((from, to));
                self.note("region cut one way");
            }
            11 => self.network.loss = self.random.random_range(10..300),
            12 => self.network.doubling = self.random.random_range(10..300),
            13 => {
                self.network.slowness = self.pause(50 * MILLISECOND..1_500 * MILLISECOND);
                self.note("slow network");
            }
            14 => {
                self.commit = (GOOD_DISK.0, self.pause(50 * MILLISECOND..500 * MILLISECOND));
                self.note("slow disk");
            }
            _ => self.mend(),
        }
    }

    fn crash(&mut self) {
        let Some(node) = self.some_node() else { return };
        self.kill(node);
        self.note("crash");
        let pause = self.pause(200 * MILLISECOND..8 * SECOND);
        self.put(pause, Item::Start { node });
        self.tell_views(4 * SECOND);
    }

    /// A node comes back with an empty disk, and so under another id.
    fn replace(&mut self, what: &'static str) {
        if let Some(region) = self.end_of_some() {
            self.note(what);
            let node = self.add_node(region, Disk::default());
            self.start(node);
            self.tell_views(4 * SECOND);
        }
    }

    fn join(&mut self) {
        let region = self.random.random_range(0..=self.network.regions[0].max(1));
        let node = self.add_node(region, Disk::default());
        self.start(node);
        self.note("node joined");
        self.tell_views(2 * SECOND);
    }

    fn leave(&mut self) {
        if self.end_of_some().is_some() {
            self.note("node left");
            self.tell_views(4 * SECOND);
        }
    }

    /// Ends a node for ever, unless it has a part in a dispute; gives its region.
    fn end_of_some(&mut self) -> Option<usize> {
        let node = self.some_node()?;
        let disputes = self.ledger.disputed.values().any(|writers| writers.contains(&node));
        let few = self.running().count() < 4;
        // Who is not reached may be the only one who has something, and it is cut off for now.
        if disputes || few || self.is_partitioned() {
            return None;
        }
        self.forget_what_is_only_at(node);
        self.kill(node);
        self.nodes[node].gone = true;
        Some(self.nodes[node].region)
    }

    pub(super) fn is_partitioned(&self) -> bool {
        self.network.sides.iter().any(|side| *side != 0)
    }

    fn partition(&mut self) {
        if self.is_partitioned() || self.now + LEAST_PARTITION > FAULTS_END {
            return;
        }
        let whole_region = self.random.random_range(0..2) == 0;
        let region = self.network.regions[0];
        for node in 0..self.nodes.len() {
            let other_side =
                if whole_region { self.nodes[node].region == region } else { self.random.random() };
            self.network.sides[node] = u8::from(other_side);
        }
        self.note(if whole_region { "region cut off" } else { "partition" });
        self.partitioned_at = self.now;
        self.take_sides();
        self.tell_views(4 * SECOND);
        self.dispute();
    }

    /// Two nodes on two sides make one route.
    fn dispute(&mut self) {
        let side_of = |node: usize| self.network.sides[node];
        let running: Vec<(usize, u8)> =
            self.running().map(|(node, _)| (node, side_of(node))).collect();
        let one = running.iter().find(|(_, side)| *side == 0);
        let other = running.iter().rfind(|(_, side)| *side == 1);
        let (Some((one, _)), Some((other, _))) = (one.copied(), other.copied()) else { return };
        self.ledger.count += 1;
        let host = format!("h{}.test", self.ledger.count);
        self.ledger.disputed.insert(host.clone(), BTreeSet::new());
        self.change(one, Change::Edit(route(&host, 1)));
        self.change(other, Change::Edit(route(&host, 2)));
    }

    fn take_sides(&mut self) {
        for node in 0..self.nodes.len() {
            let up = self.nodes[node].running.is_some();
            self.membership.on_state(node, up, self.network.sides[node]);
        }
    }

    fn mend(&mut self) {
        if self.is_partitioned() && self.now < self.partitioned_at + LEAST_PARTITION {
            return;
        }
        self.network.repair();
        self.commit = GOOD_DISK;
        self.take_sides();
        self.tell_views(2 * SECOND);
        self.note("mended");
    }

    /// Ends all faults.
    pub(super) fn repair(&mut self) {
        self.network.repair();
        self.commit = GOOD_DISK;
        for node in 0..self.nodes.len() {
            self.start(node);
        }
        self.take_sides();
        self.tell_views(2 * SECOND);
    }
}

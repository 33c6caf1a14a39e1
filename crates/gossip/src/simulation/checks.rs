//! What must hold in the end: every acknowledged change is there, or what succeeded it; both sides
//! of a dispute are kept; all maps are equal. It reads maps as users do.

use std::collections::{BTreeMap, BTreeSet};

use flocker_base::{Epoch, VolumeId};

use super::world::{Change, World};
use crate::map::{Edit, Map, RecordKey};
use crate::model::RouteKey;

/// What was acknowledged, and where.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Whether each route was deleted, by host.
    pub(super) routes: BTreeMap<String, bool>,
    /// The newest placement of each volume.
    pub(super) placed: BTreeMap<VolumeId, (Epoch, u64)>,
    /// Hosts that two nodes write while they are cut off from each other: who has by now.
    pub(super) disputed: BTreeMap<String, BTreeSet<usize>>,
    pub(super) count: u32,
}

fn host_of(key: &RouteKey) -> &str {
    match key {
        RouteKey::HttpHost(host) => host,
    }
}

fn record_of(host: &str) -> RecordKey {
    Edit::DeleteRoute(RouteKey::HttpHost(host.to_owned())).key()
}

impl Ledger {
    pub(super) fn acknowledge(&mut self, node: usize, change: &Change) {
        match change {
            Change::Edit(Edit::PutRoute(spec)) => {
                let host = host_of(&spec.key).to_owned();
                if let Some(writers) = self.disputed.get_mut(&host) {
                    writers.insert(node);
                }
                self.routes.entry(host).or_insert(false);
            }
            Change::Edit(Edit::DeleteRoute(key)) => {
                self.routes.insert(host_of(key).to_owned(), true);
            }
            Change::Edit(_) => {}
            Change::Place(placement) => {
                let newest = self.placed.entry(placement.volume).or_default();
                *newest = (*newest).max((placement.epoch, placement.sequence));
            }
        }
    }

    /// Drops what nobody else has: its only disk is wiped, with this node's.
    fn forget(&mut self, others: &[&Map]) -> usize {
        let before = (self.routes.clone(), self.placed.clone());
        let views: Vec<_> = others.iter().map(|map| map.view()).collect();
        self.routes.retain(|host, deleted| {
            let key = record_of(host);
            let is_deleted = views.iter().any(|view| view.deleted(&key).is_some());
            let route = RouteKey::HttpHost(host.clone());
            *deleted &= is_deleted;
            is_deleted || views.iter().any(|view| view.route(&route).is_some())
        });
        for (volume, newest) in &mut self.placed {
            let known = views.iter().filter_map(|view| view.placement(volume));
            let known = known.map(|placed| (placed.epoch, placed.sequence)).max();
            *newest = (*newest).min(known.unwrap_or_default());
        }
        usize::from(before != (self.routes.clone(), self.placed.clone()))
    }

    /// Whether the map has what was acknowledged.
    fn check(&self, map: &Map) -> Result<(), String> {
        let view = map.view();
        for (host, deleted) in &self.routes {
            let lives = view.route(&RouteKey::HttpHost(host.clone())).is_some();
            match (lives, view.deleted(&record_of(host)).is_some()) {
                (true, false) if !deleted => {}
                (false, true) => {}
                other => return Err(format!("route {host}, deleted {deleted}: it is {other:?}")),
            }
        }
        for (volume, newest) in &self.placed {
            let placed = view.placement(volume).map(|placed| (placed.epoch, placed.sequence));
            if placed.unwrap_or_default() < *newest {
                return Err(format!("{volume:?} was placed at {newest:?}, and is at {placed:?}"));
            }
        }
        for (host, writers) in &self.disputed {
            let key = record_of(host);
            if writers.len() == 2 && !view.conflicts().any(|conflict| conflict.key == key) {
                return Err(format!("{host} was written on two sides, and shows one"));
            }
        }
        Ok(())
    }
}

impl World {
    /// Notes that what this node alone has is lost with its disk.
    pub(super) fn forget_what_is_only_at(&mut self, node: usize) {
        let mut ledger = std::mem::take(&mut self.ledger);
        let others = self.running().filter(|(number, _)| *number != node);
        let lost = ledger.forget(&others.map(|(_, map)| map).collect::<Vec<_>>());
        self.ledger = ledger;
        if lost > 0 {
            self.note("change lost with its only disk");
        }
    }

    /// Whether all live maps are equal.
    pub(super) fn is_one(&self) -> bool {
        let mut roots = self.running().map(|(_, map)| map.root());
        let first = roots.next();
        roots.all(|root| Some(root) == first)
    }

    /// Whether nothing acknowledged is missing anywhere.
    pub(super) fn check_all(&self) -> Result<(), String> {
        self.running().try_for_each(|(number, map)| {
            self.ledger.check(map).map_err(|why| format!("node {number}: {why}"))
        })
    }

    /// How many disputes there were, with both sides written.
    pub(super) fn disputes(&self) -> usize {
        self.ledger.disputed.values().filter(|writers| writers.len() == 2).count()
    }
}

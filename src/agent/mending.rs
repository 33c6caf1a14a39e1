//! What a master changes about where its volume's copies and votes are, so that the volume is kept
//! as its policy says although nodes go, come and are removed. Pure: from what is known of the nodes
//! to one change at a time.
//!
//! What is missing altogether is made up for at once where a node is there to take it. A node that
//! is only away keeps its place for a while: a copy is expensive to make again. And if many went at
//! the same time, none is given up: then it is this node's own link that is broken.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use flocker_base::{Name, StoreId};
use flocker_gossip::model::{VolumePolicy, Voters};

use super::allocate::{Candidate, in_zone};
use super::voting::choose_voters;

/// A node's place as a voter is kept for this part of the time that its copies are: a vote costs
/// nothing to give to another, and a volume that lost one may not survive the next loss.
const VOTES_SOONER: u32 = 10;

/// A node of the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Where it is and how much it leads.
    pub candidate: Candidate,
    /// How it is.
    pub presence: Presence,
}

/// How a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It is there.
    Live,
    /// It has been away for this long.
    Away(Duration),
    /// A person removed it: it does not come back.
    Removed,
}

/// What the decision for one volume rests on.
#[derive(Clone, Debug)]
pub struct Kept<'a> {
    /// Its master, this node.
    pub master: StoreId,
    /// How it is to be kept.
    pub policy: &'a VolumePolicy,
    /// The stores that hold copies, or are to.
    pub replicas: &'a [StoreId],
    /// Those of them whose copies are good enough to lead; the master need not be named.
    pub whole: &'a [StoreId],
    /// Its voters.
    pub voters: &'a [StoreId],
}

/// A change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mend {
    /// These stores, the master first, are to hold the copies.
    Replicas(Vec<StoreId>),
    /// These stores are to vote.
    Voters(Voters),
}

/// When a change is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// At once: something is missing.
    Now,
    /// Once it has been wanted for as long as a node may be away: all is there, but not where it is
    /// wanted.
    Later,
}

/// The nodes as the decision sees them.
#[derive(Clone, Debug)]
pub struct Mesh {
    nodes: Vec<Node>,
    /// How long a node may be away before its copies are made again elsewhere.
    grace: Duration,
    stamp: u64,
}

impl Mesh {
    /// The mesh, and how long a node may be away before its copies are made again elsewhere.
    #[must_use]
    pub fn new(nodes: Vec<Node>, grace: Duration) -> Self {
        let mut mesh = Self { nodes, grace, stamp: 0 };
        let mut hasher = DefaultHasher::new();
        for Node { candidate, presence } in &mesh.nodes {
            let Candidate { store, region, zone, load: _ } = candidate;
            let kept = [grace / VOTES_SOONER, grace].map(|grace| mesh.keeps(*store, grace));
            let is = |other| *presence == other;
            (store, region, zone, is(Presence::Live), is(Presence::Removed), kept)
                .hash(&mut hasher);
        }
        mesh.stamp = hasher.finish();
        mesh
    }

    /// Differs from another mesh's if the two may lead to different answers on whether anything is to
    /// be changed.
    #[must_use]
    pub const fn stamp(&self) -> u64 {
        self.stamp
    }

    fn node(&self, store: StoreId) -> Option<&Node> {
        self.nodes.iter().find(|n| n.candidate.store == store)
    }

    /// Whether a node is there, or is expected back.
    fn keeps(&self, store: StoreId, grace: Duration) -> bool {
        match self.node(store).map(|n| n.presence) {
            Some(Presence::Live) => true,
            Some(Presence::Away(away)) => away < grace || self.went_with_many(away),
            Some(Presence::Removed) | None => false,
        }
    }

    /// Whether more than a third of the nodes went at about the same time.
    fn went_with_many(&self, away: Duration) -> bool {
        let members = self.nodes.iter().filter(|n| n.presence != Presence::Removed).count();
        let with = |n: &&Node| matches!(n.presence, Presence::Away(other) if other.abs_diff(away) <= self.grace);
        self.nodes.iter().filter(with).count() * 3 > members
    }

    fn lives(&self, store: StoreId) -> bool {
        self.node(store).is_some_and(|n| n.presence == Presence::Live)
    }

    fn region(&self, store: StoreId) -> Option<&Name> {
        self.node(store).map(|n| &n.candidate.region)
    }

    /// What is to be changed about this volume first, if anything.
    #[must_use]
    pub fn mend(&self, volume: &Kept<'_>) -> Option<(Mend, Due)> {
        match (self.replicas(volume), self.voters(volume)) {
            (Some((mend, Due::Now)), _) | (_, Some((mend, Due::Now))) => Some((mend, Due::Now)),
            (copies, votes) => copies.or(votes),
        }
    }

    fn replicas(&self, volume: &Kept<'_>) -> Option<(Mend, Due)> {
        let home = self.region(volume.master)?;
        let (here, there): (Vec<StoreId>, Vec<StoreId>) = volume
            .replicas
            .iter()
            .copied()
            .filter(|s| self.keeps(*s, self.grace))
            .partition(|s| self.region(*s) == Some(home));
        let wanted_here = usize::from(volume.policy.local_replicas) + 1;
        let wanted_there = usize::from(volume.policy.remote_replicas);
        let missing = here.len() + there.len() < wanted_here + wanted_there;
        let added = (here.len() < wanted_here)
            .then(|| self.best(volume, |n| n.candidate.region == *home))
            .flatten()
            .or_else(|| {
                (there.len() < wanted_there)
                    .then(|| self.best(volume, |n| n.candidate.region != *home))
                    .flatten()
            });
        if let Some(store) = added {
            let mut replicas = volume.replicas.to_vec();
            replicas.push(store);
            return Some((Mend::Replicas(replicas), if missing { Due::Now } else { Due::Later }));
        }
        // One is taken out only while all that are kept without it are whole.
        let without = |gone: StoreId, due| {
            let whole = |s: &StoreId| {
                *s == volume.master || *s == gone || (self.lives(*s) && volume.whole.contains(s))
            };
            here.iter().chain(&there).all(whole).then(|| {
                let left = volume.replicas.iter().copied().filter(|s| *s != gone).collect();
                (Mend::Replicas(left), due)
            })
        };
        if let Some(lost) = volume.replicas.iter().find(|s| !here.contains(s) && !there.contains(s))
        {
            let removed = self.node(*lost).is_none_or(|n| n.presence == Presence::Removed);
            if removed {
                let left = volume.replicas.iter().copied().filter(|s| s != lost).collect();
                return Some((Mend::Replicas(left), Due::Now));
            }
            return if missing { None } else { without(*lost, Due::Now) };
        }
        let surplus = |held: &[StoreId], wanted: usize| {
            (held.len() > wanted).then(|| self.most_dispensable(volume, held)).flatten()
        };
        let surplus = surplus(&here, wanted_here).or_else(|| surplus(&there, wanted_there))?;
        without(surplus, Due::Later)
    }

    /// The live node without a copy that is best to hold one.
    fn best(&self, volume: &Kept<'_>, fits: impl Fn(&Node) -> bool) -> Option<StoreId> {
        let holders: Vec<&Candidate> = volume
            .replicas
            .iter()
            .filter(|s| self.keeps(**s, self.grace))
            .filter_map(|s| self.node(*s).map(|n| &n.candidate))
            .collect();
        let in_region =
            |n: &Candidate| holders.iter().filter(|held| held.region == n.region).count();
        self.nodes
            .iter()
            .filter(|n| n.presence == Presence::Live && fits(n))
            .map(|n| &n.candidate)
            .filter(|n| !volume.replicas.contains(&n.store))
            .min_by_key(|n| (in_region(n), in_zone(n, &holders), n.load, n.store))
            .map(|n| n.store)
    }

    /// Of these copies, the one to do without: one that is away, one that is not whole, one in a
    /// region or zone with others, one that does not vote.
    fn most_dispensable(&self, volume: &Kept<'_>, held: &[StoreId]) -> Option<StoreId> {
        let nodes: Vec<&Candidate> =
            held.iter().filter_map(|s| self.node(*s).map(|n| &n.candidate)).collect();
        let crowd = |s: &StoreId| {
            self.node(*s).map_or((0, 0), |n| {
                let region = nodes.iter().filter(|other| other.region == n.candidate.region);
                (region.count(), in_zone(&n.candidate, &nodes))
            })
        };
        let key = |s: &StoreId| {
            let whole = volume.whole.contains(s);
            (!self.lives(*s), !whole, crowd(s), !volume.voters.contains(s), *s)
        };
        held.iter().copied().filter(|s| *s != volume.master).max_by_key(key)
    }

    fn voters(&self, volume: &Kept<'_>) -> Option<(Mend, Due)> {
        let grace = self.grace / VOTES_SOONER;
        let votes = |s: StoreId| volume.voters.contains(&s);
        // A node that is away may keep its vote and is given none.
        let nodes: Vec<Candidate> = self
            .nodes
            .iter()
            .filter(|n| {
                let store = n.candidate.store;
                n.presence == Presence::Live || (votes(store) && self.keeps(store, grace))
            })
            .map(|n| n.candidate.clone())
            .collect();
        let mut copies = vec![volume.master];
        let able = |s: &StoreId| volume.whole.contains(s) || votes(*s);
        copies.extend(volume.replicas.iter().filter(|s| **s != volume.master && able(s)));
        let wanted = choose_voters(&copies, &nodes, volume.voters)?;
        if wanted[..] == *volume.voters {
            return None;
        }
        let removed = |s: &StoreId| self.node(*s).is_none_or(|n| n.presence == Presence::Removed);
        // One that is away may come back when the master is gone, and then they need its vote.
        if wanted.len() == 1 && volume.voters.len() > 1 && !volume.voters.iter().any(removed) {
            return None;
        }
        let lost = volume.voters.iter().any(|s| nodes.iter().all(|n| n.store != *s));
        let more = wanted.len() > volume.voters.len();
        let due = if lost || more || !votes(volume.master) { Due::Now } else { Due::Later };
        Some((Mend::Voters(wanted), due))
    }
}

#[cfg(test)]
mod tests;

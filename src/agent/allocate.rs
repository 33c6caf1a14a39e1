//! Which nodes a new volume is born on: its master, its replicas and its voters. Pure; the same
//! mesh and the same wish give the same answer.

use std::collections::BTreeMap;

use flocker_base::{Name, StoreId};
use flocker_gossip::model::{Birth, VolumePolicy};

use super::voting::choose_voters;

/// A live node that may take a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The node.
    pub store: StoreId,
    /// Its region.
    pub region: Name,
    /// Its zone within the region, if it names one.
    pub zone: Option<Name>,
    /// How many volumes it is already master of.
    pub load: usize,
}

/// Where a new volume goes, and what the mesh is too small for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// The first configuration.
    pub birth: Birth,
    /// Replicas that the policy asks for and no node is there to hold.
    pub missing_local: usize,
    /// The same for other regions.
    pub missing_remote: usize,
}

/// Chooses master, replicas and voters among the live nodes; `None` if there is none.
///
/// The master's region is the one that can hold most of the local replicas asked for; within it
/// the least loaded node leads, and the others are spread over zones. Remote replicas go to other
/// regions, one a region before a second in any.
#[must_use]
pub fn allocate(policy: &VolumePolicy, nodes: &[Candidate]) -> Option<Allocation> {
    let mut by_region: BTreeMap<&Name, Vec<&Candidate>> = BTreeMap::new();
    for node in nodes {
        by_region.entry(&node.region).or_default().push(node);
    }
    for members in by_region.values_mut() {
        members.sort_by_key(|n| (n.load, n.store));
    }
    let wanted_here = usize::from(policy.local_replicas) + 1;
    let (home, members) = by_region.iter().max_by_key(|(region, members)| {
        let idle = std::cmp::Reverse(members.first().map_or(usize::MAX, |n| n.load));
        (members.len().min(wanted_here), idle, std::cmp::Reverse(**region))
    })?;
    let mut replicas = apart(members, wanted_here);
    let missing_local = wanted_here - replicas.len();
    let wanted_there = usize::from(policy.remote_replicas);
    let remote = spread(by_region.iter().filter(|(r, _)| r != &home).map(|(_, m)| m), wanted_there);
    let missing_remote = wanted_there - remote.len();
    replicas.extend(remote);
    let replicas: Vec<StoreId> = replicas.iter().map(|n| n.store).collect();
    let voters = choose_voters(&replicas, nodes, &[])?;
    Some(Allocation {
        birth: Birth { master: *replicas.first()?, replicas, voters },
        missing_local,
        missing_remote,
    })
}

/// Takes nodes from the regions in turn.
fn spread<'a>(
    regions: impl Iterator<Item = &'a Vec<&'a Candidate>>,
    wanted: usize,
) -> Vec<&'a Candidate> {
    let regions: Vec<_> = regions.map(|members| apart(members, wanted)).collect();
    let deepest = regions.iter().map(Vec::len).max().unwrap_or(0);
    (0..deepest)
        .flat_map(|depth| regions.iter().filter_map(move |m| m.get(depth)))
        .take(wanted)
        .copied()
        .collect()
}

/// So many of these, no two in one zone while there is another: the less loaded first.
fn apart<'a>(members: &[&'a Candidate], wanted: usize) -> Vec<&'a Candidate> {
    let mut chosen: Vec<&Candidate> = Vec::new();
    while chosen.len() < wanted {
        let left = members.iter().filter(|n| chosen.iter().all(|c| c.store != n.store));
        let Some(next) = left.min_by_key(|n| (in_zone(n, &chosen), n.load, n.store)) else { break };
        chosen.push(next);
    }
    chosen
}

/// How many of these are in the node's zone. A node that names no zone shares none.
pub(super) fn in_zone(node: &Candidate, chosen: &[&Candidate]) -> usize {
    let shares =
        |c: &&&Candidate| node.zone.is_some() && c.region == node.region && c.zone == node.zone;
    chosen.iter().filter(shares).count()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn node(n: u8, region: &str, load: usize) -> Candidate {
        Candidate {
            store: StoreId::from_bytes([n; 16]),
            region: Name::new(region).expect("a name"),
            zone: None,
            load,
        }
    }

    fn policy(local: u8, remote: u8) -> VolumePolicy {
        VolumePolicy { local_replicas: local, remote_replicas: remote, ..VolumePolicy::default() }
    }

    #[test]
    fn the_master_goes_where_its_local_replicas_can_be() {
        let nodes = [node(1, "us", 0), node(2, "eu", 5), node(3, "eu", 1)];
        let got = allocate(&policy(1, 1), &nodes).expect("nodes");
        assert_eq!(got.birth.master, nodes[2].store, "the less loaded of the two in eu");
        assert_eq!(got.birth.replicas, [nodes[2].store, nodes[1].store, nodes[0].store]);
        assert_eq!(got.birth.voters.len(), 3);
        assert_eq!((got.missing_local, got.missing_remote), (0, 0));
    }

    #[test]
    fn a_small_mesh_says_what_it_lacks_and_never_votes_two() {
        let one = allocate(&policy(1, 1), &[node(1, "eu", 0)]).expect("a node");
        assert_eq!((one.missing_local, one.missing_remote), (1, 1));
        assert_eq!(one.birth.voters.len(), 1);
        let two = allocate(&policy(1, 0), &[node(1, "eu", 0), node(2, "eu", 0)]).expect("nodes");
        assert_eq!(two.birth.voters, [two.birth.master].into());
        assert!(allocate(&policy(1, 1), &[]).is_none());
    }

    #[test]
    fn remote_replicas_go_to_different_regions_before_a_second_in_one() {
        let nodes = [node(1, "eu", 0), node(2, "us", 0), node(3, "us", 0), node(4, "ap", 0)];
        let got = allocate(&policy(0, 2), &nodes).expect("nodes");
        let regions: BTreeSet<_> = got
            .birth
            .replicas
            .iter()
            .map(|s| nodes.iter().find(|n| n.store == *s).expect("known").region.clone())
            .collect();
        assert_eq!(regions.len(), 3);
    }

    #[test]
    fn copies_of_one_region_are_spread_over_its_zones() {
        let zone = |n: u8, zone: &str| Candidate {
            zone: Some(Name::new(zone).expect("a name")),
            ..node(n, "eu", 0)
        };
        let nodes = [zone(1, "a"), zone(2, "a"), zone(3, "b")];
        let got = allocate(&policy(1, 0), &nodes).expect("nodes");
        assert_eq!(got.birth.replicas, [nodes[0].store, nodes[2].store]);
    }

    #[test]
    fn a_witness_makes_two_replicas_three_voters() {
        let nodes = [node(1, "eu", 0), node(2, "eu", 0), node(3, "eu", 0)];
        let got = allocate(&policy(1, 0), &nodes).expect("nodes");
        assert_eq!((got.birth.replicas.len(), got.birth.voters.len()), (2, 3));
    }

    proptest! {
        #[test]
        fn copies_are_distinct_and_what_is_missing_is_told(
            local in 0u8..6, remote in 0u8..6, regions in prop::collection::vec(0u8..4, 1..12),
        ) {
            let nodes: Vec<_> = (1u8..).zip(&regions).map(|(n, r)| node(n, ["a", "b", "c", "d"][usize::from(*r)], 0)).collect();
            let got = allocate(&policy(local, remote), &nodes).expect("nodes");
            prop_assert!(got.birth.voters.contains(&got.birth.master));
            let distinct: BTreeSet<_> = got.birth.replicas.iter().collect();
            prop_assert_eq!(distinct.len(), got.birth.replicas.len());
            let wanted = usize::from(local) + usize::from(remote) + 1;
            prop_assert_eq!(got.birth.replicas.len() + got.missing_local + got.missing_remote, wanted);
        }
    }
}

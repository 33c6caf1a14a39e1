//! Which nodes vote on a volume. Pure; the same mesh and the same copies give the same answer.

use std::collections::BTreeSet;

use flocker_base::{Name, StoreId};
use flocker_gossip::lease::MOST_VOTERS;
use flocker_gossip::model::Voters;

use super::allocate::{Candidate, in_zone};

/// The sizes of a set that can lose a voter.
const SIZES: [usize; 2] = [3, MOST_VOTERS];

/// From this many regions on, none of them may hold a majority.
const REGIONS_TO_BALANCE: usize = 3;

/// An odd set of voters among these nodes, as few as let every copy vote: the master, the other
/// copies, then witnesses, spread over zones. With three regions or more none of them has a
/// majority; with two the master's has it. With fewer than three nodes the master votes alone, so
/// that the other's death stops nothing.
///
/// `copies` are the stores with a whole copy, the master first; `now` are those that vote already,
/// preferred to others as good. `None` if the master is not among the nodes.
#[must_use]
pub fn choose_voters(copies: &[StoreId], nodes: &[Candidate], now: &[StoreId]) -> Option<Voters> {
    let known = |copy: &&StoreId| nodes.iter().any(|n| n.store == **copy);
    let wanted: Vec<StoreId> = copies.iter().filter(known).copied().collect();
    let master = nodes.iter().find(|n| copies.first() == Some(&n.store))?;
    let regions: BTreeSet<&Name> = nodes.iter().map(|n| &n.region).collect();
    let balanced = regions.len() >= REGIONS_TO_BALANCE;
    let sets: Vec<Vec<StoreId>> = SIZES
        .into_iter()
        .filter_map(|size| pick(size, balanced, master, &wanted, nodes, now))
        .collect();
    let whole = sets.iter().find(|set| wanted.iter().all(|copy| set.contains(copy)));
    let set = whole.or(sets.last()).cloned().unwrap_or_else(|| vec![master.store]);
    Some(set.into_iter().collect())
}

/// Takes the best of those left, one by one; `None` if they do not make the set whole.
fn pick(
    size: usize,
    balanced: bool,
    master: &Candidate,
    copies: &[StoreId],
    nodes: &[Candidate],
    now: &[StoreId],
) -> Option<Vec<StoreId>> {
    let mut chosen = vec![master];
    while chosen.len() < size {
        let of_region = |n: &Candidate| chosen.iter().filter(|c| c.region == n.region).count();
        let next = nodes
            .iter()
            .filter(|n| chosen.iter().all(|c| c.store != n.store))
            .filter(|n| !balanced || of_region(n) < size / 2)
            .min_by_key(|n| {
                let copy = copies.iter().position(|c| *c == n.store).unwrap_or(copies.len());
                let place =
                    if balanced { of_region(n) } else { usize::from(n.region != master.region) };
                (copy, place, in_zone(n, &chosen), !now.contains(&n.store), n.load, n.store)
            })?;
        chosen.push(next);
    }
    Some(chosen.iter().map(|n| n.store).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(n: u8, region: &str) -> Candidate {
        let region = Name::new(region).expect("a name");
        Candidate { store: store(n), region, zone: None, load: 0 }
    }

    fn in_zone_of(n: u8, region: &str, zone: &str) -> Candidate {
        Candidate { zone: Some(Name::new(zone).expect("a name")), ..node(n, region) }
    }

    const fn store(n: u8) -> StoreId {
        StoreId::from_bytes([n; 16])
    }

    fn voters(copies: &[u8], nodes: &[Candidate], now: &[u8]) -> Vec<u8> {
        let stores = |list: &[u8]| list.iter().map(|n| store(*n)).collect::<Vec<_>>();
        let set = choose_voters(&stores(copies), nodes, &stores(now)).expect("a master");
        set.iter().map(|s| s.as_bytes()[0]).collect()
    }

    #[test]
    fn fewer_than_three_nodes_leave_the_master_alone() {
        assert_eq!(voters(&[1], &[node(1, "eu")], &[]), [1]);
        assert_eq!(voters(&[2, 1], &[node(1, "eu"), node(2, "eu")], &[]), [2]);
        assert_eq!(choose_voters(&[store(9)], &[node(1, "eu")], &[]), None);
    }

    #[test]
    fn witnesses_fill_up_and_those_that_vote_already_are_kept() {
        let nodes: Vec<_> = (1..=5).map(|n| node(n, "eu")).collect();
        assert_eq!(voters(&[1, 2], &nodes, &[]), [1, 2, 3]);
        assert_eq!(voters(&[1, 2], &nodes, &[1, 2, 5]), [1, 2, 5]);
        assert_eq!(voters(&[1, 2, 3, 4], &nodes, &[]), [1, 2, 3, 4, 5], "every copy votes");
        assert_eq!(voters(&[1, 2, 3, 4], &nodes[..4], &[]), [1, 2, 3], "there is no fifth");
    }

    #[test]
    fn no_region_of_three_has_a_majority_and_of_two_the_masters_has_it() {
        let three = [node(1, "eu"), node(2, "eu"), node(3, "us"), node(4, "us"), node(5, "ap")];
        assert_eq!(voters(&[1, 2, 3], &three, &[]), [1, 2, 3, 4, 5], "all copies vote");
        assert_eq!(voters(&[1, 3], &three, &[]), [1, 3, 5]);
        let few = [node(1, "eu"), node(2, "eu"), node(3, "us"), node(5, "ap")];
        assert_eq!(voters(&[1, 2, 3], &few, &[]), [1, 3, 5], "or eu would have two of three");
        let two = [node(1, "us"), node(2, "eu"), node(3, "us"), node(4, "eu")];
        assert_eq!(voters(&[2, 1], &two, &[]), [1, 2, 4]);
    }

    #[test]
    fn zones_do_not_fall_together_where_there_is_a_choice() {
        let nodes = [
            in_zone_of(1, "eu", "a"),
            in_zone_of(2, "eu", "a"),
            in_zone_of(3, "eu", "b"),
            in_zone_of(4, "eu", "c"),
        ];
        assert_eq!(voters(&[1], &nodes, &[]), [1, 3, 4]);
    }

    proptest! {
        #[test]
        fn they_are_odd_few_and_balanced_and_choosing_again_changes_nothing(
            regions in prop::collection::vec(0usize..4, 1..12), copies in 1usize..7,
        ) {
            let names = ["a", "b", "c", "d"];
            let nodes: Vec<_> = (1u8..).zip(&regions).map(|(n, r)| node(n, names[*r])).collect();
            let copies: Vec<_> = nodes.iter().take(copies).map(|n| n.store).collect();
            let set = choose_voters(&copies, &nodes, &[]).expect("a master");
            prop_assert!(set.len() % 2 == 1 && set.len() <= MOST_VOTERS && set.contains(&copies[0]));
            prop_assert_eq!(set.len() > 1, nodes.len() >= 3);
            let again = choose_voters(&copies, &nodes, &set);
            prop_assert_eq!(again.as_ref(), Some(&set));
            let of = |name: &str| nodes.iter().filter(|n| n.region.as_str() == name && set.contains(&n.store)).count();
            let used: BTreeSet<_> = nodes.iter().map(|n| n.region.as_str()).collect();
            if used.len() >= 3 {
                for name in used {
                    prop_assert!(of(name) * 2 < set.len(), "{} has a majority", name);
                }
            }
        }
    }
}

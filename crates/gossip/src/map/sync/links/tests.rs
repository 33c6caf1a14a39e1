//! Tests of the links: whom a push reaches along them, and what it costs.

use std::collections::BTreeSet;

use rand::SeedableRng;

use super::*;

fn store(number: u16) -> StoreId {
    let mut bytes = [7; 16];
    bytes[..2].copy_from_slice(&number.to_be_bytes());
    StoreId::from_bytes(bytes)
}

fn region(number: u16) -> Name {
    Name::new(format!("r{number}")).expect("a name")
}

fn members(count: u16, regions: u16) -> Arc<[Member]> {
    (0..count).map(|n| Member { store: store(n), region: region(n % regions) }).collect()
}

fn links_of(members: &Arc<[Member]>, seed: u64) -> BTreeMap<StoreId, Links> {
    let mut random = StdRng::seed_from_u64(seed);
    let links = members.iter().map(|member| {
        let mut links = Links::new(member.store, member.region.clone());
        links.on_members(members, &mut random);
        (member.store, links)
    });
    links.collect()
}

/// Pushes along the links; gives who was reached, the rounds and the messages.
fn push(links: &BTreeMap<StoreId, Links>, dead: &BTreeSet<StoreId>) -> (usize, usize, usize) {
    let born = *links.keys().find(|store| !dead.contains(store)).expect("someone lives");
    let mut reached = BTreeSet::from([born]);
    let mut round: Vec<(StoreId, Option<StoreId>)> = vec![(born, None)];
    let (mut rounds, mut messages) = (0, 0);
    while !round.is_empty() {
        rounds += 1;
        let mut next = Vec::new();
        for (at, from) in round {
            let links = &links[&at];
            let mut to = links.near(from);
            if from.is_none_or(|from| links.is_abroad(from)) {
                to.extend(links.far(from));
            }
            messages += to.len();
            let new = to.into_iter().filter(|to| !dead.contains(to) && reached.insert(*to));
            next.extend(new.map(|to| (to, Some(at))));
        }
        round = next;
    }
    (reached.len(), rounds, messages)
}

#[test]
fn a_push_reaches_everyone_in_few_rounds_at_a_few_messages_a_node() {
    for (count, regions) in [(1, 1), (2, 1), (2, 2), (3, 3), (5, 2), (10, 1), (40, 10), (300, 5)] {
        for seed in 0..20 {
            let links = links_of(&members(count, regions), seed);
            let (reached, rounds, messages) = push(&links, &BTreeSet::new());
            assert_eq!(reached, usize::from(count), "{count} in {regions}, seed {seed}");
            assert!(rounds <= 16, "{rounds} rounds");
            assert!(messages <= usize::from(count) * 4 + usize::from(regions) * 16, "{messages}");
        }
    }
}

#[test]
fn dead_nodes_that_are_taken_for_live_leave_nearly_all_reached() {
    let links = links_of(&members(400, 8), 3);
    let dead: BTreeSet<StoreId> = (0..400).filter(|n| n % 10 == 3).map(store).collect();
    let (reached, ..) = push(&links, &dead);
    assert!(reached >= 358, "{reached} of 360");
}

#[test]
fn links_stay_while_their_ends_live() {
    let all = members(60, 3);
    let mut links = links_of(&all, 5).remove(&store(0)).expect("there");
    let mut random = StdRng::seed_from_u64(9);
    let (near, far) = (links.near(None), links.far(None));
    assert_eq!((near.len(), far.len()), (4, 2));
    links.on_members(&all, &mut random);
    assert_eq!((links.near(None), links.far(None)), (near.clone(), far.clone()));
    let (near_gone, far_gone) = (near[3], far[0]);
    let rest: Arc<[Member]> = all
        .iter()
        .filter(|member| member.store != near_gone && member.store != far_gone)
        .cloned()
        .collect();
    links.on_members(&rest, &mut random);
    assert_eq!((links.near(None).len(), links.far(None).len()), (4, 2));
    assert!(!links.near(None).contains(&near_gone) && !links.far(None).contains(&far_gone));
    assert!(links.near(None).contains(&near[2]), "a chord whose end lives stays");
    assert!(links.far(None).contains(&far[1]));
    let mut drawn: BTreeSet<_> = links.near(None).into_iter().collect();
    for _ in 0..40 {
        links.redraw(&mut random);
        assert_eq!((links.near(None).len(), links.far(None).len()), (4, 2));
        drawn.extend(links.near(None));
    }
    assert!(drawn.len() > 10, "in time chords go everywhere: {}", drawn.len());
}

#[test]
fn it_goes_back_neither_to_its_bringer_nor_to_its_region() {
    let links = links_of(&members(40, 4), 1);
    for (me, links) in &links {
        for from in links.near(None) {
            assert!(!links.near(Some(from)).contains(&from));
        }
        for from in links.far(None) {
            assert!(links.is_abroad(from));
            let far = links.far(Some(from));
            assert!(far.iter().all(|to| links.region_of(*to) != links.region_of(from)), "{me}");
        }
    }
}

#[test]
fn with_one_other_region_two_of_its_nodes_hear() {
    let links = links_of(&members(20, 2), 1);
    assert!(links.values().all(|links| links.far(None).len() == 2));
}

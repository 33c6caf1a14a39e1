//! What is mended, what is left, and that mending ends.

use proptest::prelude::*;

use super::*;

const MINUTE: Duration = Duration::from_secs(60);
const GRACE: Duration = Duration::from_secs(600);

const fn store(n: u8) -> StoreId {
    StoreId::from_bytes([n; 16])
}

fn stores(list: &[u8]) -> Vec<StoreId> {
    list.iter().map(|n| store(*n)).collect()
}

fn node(n: u8, region: &str, presence: Presence) -> Node {
    let region = Name::new(region).expect("a name");
    Node { candidate: Candidate { store: store(n), region, zone: None, load: 0 }, presence }
}

fn live(n: u8, region: &str) -> Node {
    node(n, region, Presence::Live)
}

fn mend(
    nodes: &[Node],
    (local, remote): (u8, u8),
    replicas: &[u8],
    whole: &[u8],
    voters: &[u8],
) -> Option<(Mend, Due)> {
    let policy =
        VolumePolicy { local_replicas: local, remote_replicas: remote, ..VolumePolicy::default() };
    let (replicas, whole, voters) = (stores(replicas), stores(whole), stores(voters));
    Mesh::new(nodes.to_vec(), GRACE).mend(&Kept {
        master: replicas[0],
        policy: &policy,
        replicas: &replicas,
        whole: &whole,
        voters: &voters,
    })
}

fn copies(list: &[u8], due: Due) -> Option<(Mend, Due)> {
    Some((Mend::Replicas(stores(list)), due))
}

fn votes(list: &[u8], due: Due) -> Option<(Mend, Due)> {
    Some((Mend::Voters(stores(list).into_iter().collect()), due))
}

#[test]
fn what_is_as_it_should_be_is_left() {
    let nodes = [live(1, "eu"), live(2, "eu"), live(3, "us"), live(4, "us")];
    assert_eq!(mend(&nodes, (1, 1), &[1, 2, 3], &[2, 3], &[1, 2, 3]), None);
}

#[test]
fn a_volume_born_on_too_few_nodes_gets_its_copies_and_voters_as_they_join() {
    let one = [live(1, "eu")];
    assert_eq!(mend(&one, (1, 1), &[1], &[], &[1]), None, "there is nobody");
    let two = [live(1, "eu"), live(2, "eu")];
    assert_eq!(mend(&two, (1, 1), &[1], &[], &[1]), copies(&[1, 2], Due::Now));
    assert_eq!(mend(&two, (1, 1), &[1, 2], &[2], &[1]), None, "two do not elect");
    let three = [live(1, "eu"), live(2, "eu"), live(3, "us")];
    assert_eq!(mend(&three, (1, 1), &[1, 2], &[2], &[1]), copies(&[1, 2, 3], Due::Now));
    let before = mend(&three, (1, 1), &[1, 2, 3], &[], &[1]);
    assert_eq!(before, votes(&[1, 2, 3], Due::Now), "until they have copies they are witnesses");
}

#[test]
fn the_vote_follows_the_master() {
    let two = [live(1, "eu"), live(2, "eu")];
    assert_eq!(mend(&two, (1, 0), &[2, 1], &[1], &[1]), votes(&[2], Due::Now));
}

#[test]
fn a_node_that_is_away_keeps_its_vote_for_a_minute_and_its_copy_for_ten() {
    let with = |away| {
        let lost = node(2, "eu", Presence::Away(away));
        [live(1, "eu"), lost, live(3, "us"), live(4, "eu"), live(5, "us")]
    };
    assert_eq!(mend(&with(MINUTE / 2), (1, 1), &[1, 2, 3], &[2, 3], &[1, 2, 3]), None);
    let sooner = mend(&with(MINUTE), (1, 1), &[1, 2, 3], &[2, 3], &[1, 2, 3]);
    assert_eq!(sooner, votes(&[1, 3, 4], Due::Now));
    assert_eq!(mend(&with(MINUTE * 9), (1, 1), &[1, 2, 3], &[2, 3], &[1, 3, 4]), None);
    let later = mend(&with(GRACE), (1, 1), &[1, 2, 3], &[2, 3], &[1, 3, 4]);
    assert_eq!(later, copies(&[1, 2, 3, 4], Due::Now));
    let copying = mend(&with(GRACE), (1, 1), &[1, 2, 3, 4], &[2, 3], &[1, 3, 4]);
    assert_eq!(copying, None, "the lost copy counts until the new one is whole");
    let done = mend(&with(GRACE), (1, 1), &[1, 2, 3, 4], &[2, 3, 4], &[1, 3, 4]);
    assert_eq!(done, copies(&[1, 3, 4], Due::Now));
}

#[test]
fn the_master_votes_alone_once_the_third_node_is_removed_and_not_while_it_is_away() {
    let with = |presence| [live(1, "eu"), live(2, "eu"), node(3, "us", presence)];
    let away = with(Presence::Away(GRACE * 9));
    assert_eq!(mend(&away, (1, 1), &[1, 2, 3], &[2, 3], &[1, 2, 3]), None);
    let removed = mend(&with(Presence::Removed), (1, 0), &[1, 2], &[2], &[1, 2, 3]);
    assert_eq!(removed, votes(&[1], Due::Now));
    let five: Vec<Node> = (1..=5)
        .map(|n| {
            node(
                n,
                "eu",
                if n < 4 { Presence::Live } else { Presence::Away(GRACE * u32::from(n) * 3) },
            )
        })
        .collect();
    assert_eq!(mend(&five, (1, 0), &[1, 2], &[2], &[1, 2, 3, 4, 5]), votes(&[1, 2, 3], Due::Now));
}

#[test]
fn a_lost_copy_is_listed_as_long_as_nothing_takes_its_place() {
    let nodes = [live(1, "eu"), node(2, "eu", Presence::Away(GRACE)), live(3, "us"), live(4, "us")];
    assert_eq!(mend(&nodes, (1, 1), &[1, 2, 3], &[2, 3], &[1, 3, 4]), None);
}

#[test]
fn a_removed_node_loses_its_places_at_once() {
    let nodes = [live(1, "eu"), node(2, "eu", Presence::Removed), live(3, "us"), live(4, "us")];
    assert_eq!(mend(&nodes, (1, 1), &[1, 2, 3], &[2, 3], &[1, 2, 3]), copies(&[1, 3], Due::Now));
    assert_eq!(mend(&nodes, (1, 1), &[1, 3], &[3], &[1, 2, 3]), votes(&[1, 3, 4], Due::Now));
    let unknown = [live(1, "eu"), live(3, "us"), live(4, "us")];
    assert_eq!(mend(&unknown, (1, 1), &[1, 2, 3], &[3], &[1, 3, 4]), copies(&[1, 3], Due::Now));
}

#[test]
fn many_that_went_at_once_are_waited_for() {
    let away = |n, region, by| node(n, region, Presence::Away(GRACE * 6 + by));
    let nodes = [
        live(1, "eu"),
        away(2, "eu", Duration::ZERO),
        away(3, "us", MINUTE),
        live(4, "eu"),
        live(5, "us"),
    ];
    assert_eq!(mend(&nodes, (1, 1), &[1, 2, 3], &[2, 3], &[1, 2, 3]), None);
    let hours_apart = [
        live(1, "eu"),
        away(2, "eu", Duration::ZERO),
        away(3, "us", GRACE * 6),
        live(4, "eu"),
        live(5, "us"),
    ];
    let first = mend(&hours_apart, (1, 1), &[1, 2, 3], &[2, 3], &[1, 2, 3]);
    assert_eq!(first, copies(&[1, 2, 3, 4], Due::Now));
}

#[test]
fn a_master_in_another_region_gets_its_copies_there_in_time() {
    let nodes = [live(1, "eu"), live(2, "eu"), live(3, "us"), live(4, "us")];
    let moved = mend(&nodes, (1, 1), &[3, 1, 2], &[1, 2], &[1, 2, 3]);
    assert_eq!(moved, copies(&[3, 1, 2, 4], Due::Later), "there are three, as wanted");
    let whole = mend(&nodes, (1, 1), &[3, 1, 2, 4], &[1, 2, 4], &[1, 2, 3]);
    assert_eq!(whole, copies(&[3, 1, 4], Due::Later));
    let partly = mend(&nodes, (1, 1), &[3, 1, 2, 4], &[2, 4], &[1, 2, 3]);
    assert_eq!(partly, copies(&[3, 2, 4], Due::Later), "the one that is not whole");
    let too_few = mend(&nodes, (1, 1), &[3, 1, 2, 4], &[1, 2], &[1, 2, 3]);
    assert_eq!(too_few, None, "not before the new one is whole");
}

#[test]
fn only_what_changes_an_answer_changes_the_stamp() {
    let stamp = |nodes: &[Node]| Mesh::new(nodes.to_vec(), GRACE).stamp();
    let away = |minutes| {
        [
            live(1, "eu"),
            live(2, "eu"),
            live(3, "us"),
            node(4, "us", Presence::Away(MINUTE * minutes)),
        ]
    };
    assert_eq!(stamp(&away(2)), stamp(&away(3)));
    assert_ne!(stamp(&away(0)), stamp(&away(2)), "its votes go");
    assert_ne!(stamp(&away(3)), stamp(&away(10)), "its copies go");
    let mut removed = away(10);
    removed[3].presence = Presence::Removed;
    assert_ne!(stamp(&removed), stamp(&away(10)), "it does not come back");
    let mut busy = away(2);
    busy[0].candidate.load = 7;
    assert_eq!(stamp(&busy), stamp(&away(2)));
    let mut moved = away(2);
    moved[0].candidate.region = Name::new("ap").expect("a name");
    assert_ne!(stamp(&moved), stamp(&away(2)));
}

#[test]
fn fewer_copies_wanted_are_fewer_kept() {
    let nodes = [live(1, "eu"), live(2, "eu"), live(3, "us")];
    assert_eq!(mend(&nodes, (0, 1), &[1, 2, 3], &[2, 3], &[1, 2, 3]), copies(&[1, 3], Due::Later));
    assert_eq!(mend(&nodes, (0, 1), &[1, 2, 3], &[2], &[1, 2, 3]), None, "the other is not whole");
}

fn any_node() -> impl Strategy<Value = (u8, u8, bool)> {
    (0u8..3, 0u8..8, any::<bool>())
}

proptest! {
    #[test]
    fn mending_ends_with_what_can_be_had(
        (local, remote) in (0u8..3, 0u8..3),
        kinds in prop::collection::vec(any_node(), 1..10),
        held in prop::collection::vec(any::<bool>(), 10),
    ) {
        let nodes: Vec<Node> = (1u8..).zip(&kinds).map(|(n, (region, kind, _))| {
            let presence = match kind {
                _ if n == 1 => Presence::Live,
                0 => Presence::Removed,
                1 => Presence::Away(GRACE * 2),
                2 => Presence::Away(GRACE / 2),
                _ => Presence::Live,
            };
            node(n, ["a", "b", "c"][usize::from(*region)], presence)
        }).collect();
        let policy = VolumePolicy {
            local_replicas: local, remote_replicas: remote, ..VolumePolicy::default()
        };
        let mesh = Mesh::new(nodes.clone(), GRACE);
        let mut replicas = vec![store(1)];
        replicas.extend(nodes.iter().zip(&held).skip(1).filter(|(_, h)| **h).map(|(n, _)| n.candidate.store));
        let mut voters: Vec<StoreId> = replicas.iter().copied().take(1).collect();
        let mut left = 40;
        loop {
            // Whoever lives and holds a copy has it whole by the next step.
            let whole: Vec<_> = replicas.iter().copied().filter(|s| mesh.lives(*s)).collect();
            let kept = Kept { master: store(1), policy: &policy, replicas: &replicas, whole: &whole, voters: &voters };
            match mesh.mend(&kept) {
                None => break,
                Some((Mend::Replicas(next), _)) => {
                    prop_assert_eq!(next[0], store(1));
                    // No copy is given up that is whole, live and wanted.
                    let live = |list: &[StoreId]| list.iter().filter(|s| mesh.lives(**s)).count();
                    let wanted = usize::from(local) + usize::from(remote) + 1;
                    prop_assert!(live(&next) >= live(&replicas).min(wanted.min(live(&next))));
                    replicas = next;
                }
                Some((Mend::Voters(next), _)) => {
                    prop_assert!(next.contains(&store(1)) && next.len() % 2 == 1);
                    voters = next.to_vec();
                }
            }
            left -= 1;
            prop_assert!(left > 0, "it goes on and on: {:?} {:?}", replicas, voters);
        }
        let region = mesh.region(store(1)).cloned();
        let of = |home: bool, list: &dyn Fn(&Node) -> bool| nodes.iter().filter(|n| {
            list(n) && (Some(&n.candidate.region) == region.as_ref()) == home
        }).count();
        for (home, wanted) in [(true, usize::from(local) + 1), (false, usize::from(remote))] {
            let able = of(home, &|n| n.presence == Presence::Live);
            let have = of(home, &|n| replicas.contains(&n.candidate.store) && mesh.keeps(n.candidate.store, GRACE));
            prop_assert!(have >= wanted.min(able), "{home}: {have} of {wanted}, {able} could");
        }
    }
}

//! The runs of the model checker, and what each must find.

use stateright::{Checker, Model, UniformChooser};

use super::*;

/// What must hold in every state.
const ALWAYS: [&str; 5] = [
    "one valid lease",
    "one holder an epoch",
    "a closed epoch is not held",
    "a master has what was replicated",
    "a master can be elected",
];

fn factor() -> usize {
    let factor = std::env::var("FLOCKER_MODEL_FACTOR").ok();
    factor.map_or(1, |text| text.parse().expect("a number"))
}

/// Goes through so many states, those that the fewest steps lead to first.
fn explore(bounds: &Bounds, most_states: usize) -> impl Checker<Bounds> + use<> {
    let checker = bounds.checker().threads(2).target_state_count(most_states * factor());
    let checker = checker.spawn_bfs().join();
    println!("{bounds:?}: {} states, depth {}", checker.unique_state_count(), checker.max_depth());
    checker
}

fn assert_holds(checker: &impl Checker<Bounds>, reached: &[&'static str]) {
    for property in ALWAYS {
        let found = checker.discovery(property).map(|path| path.into_actions());
        assert!(found.is_none(), "not so: {property}, after {found:?}");
    }
    for property in reached {
        assert!(checker.discovery(property).is_some(), "never: {property}");
    }
}

fn check(bounds: &Bounds, most_states: usize, reached: &[&'static str]) {
    assert_holds(&explore(bounds, most_states), reached);
}

/// Follows paths at random to their ends, through so many states in all.
fn wander(bounds: &Bounds, states: usize, seed: u64, reached: &[&'static str]) {
    let checker = bounds.checker().threads(2).target_state_count(states * factor());
    let checker = checker.spawn_simulation(seed, UniformChooser).join();
    println!(
        "{bounds:?}: {} states at random, depth {}",
        checker.state_count(),
        checker.max_depth()
    );
    assert_holds(&checker, reached);
}

const BASE: Bounds = Bounds {
    nodes: 3,
    voters: 3,
    candidates: &[2],
    ticks: 3,
    tick: Duration::from_millis(1_200),
    restarts: None,
    releases: false,
    change: None,
    force: None,
    loses_questions: false,
    stale: &[],
    no_wait: false,
    electable: false,
};

#[test]
fn a_takeover_has_one_master_in_every_order() {
    check(&BASE, 60_000, &[TAKEN]);
}

#[test]
fn a_restart_of_a_voter_or_of_the_holder_keeps_one_master() {
    for restarts in [Some(1), Some(0)] {
        check(&Bounds { restarts, ..BASE }, 40_000, &[]);
    }
}

#[test]
fn a_release_keeps_one_master() {
    check(&Bounds { releases: true, ..BASE }, 60_000, &[TAKEN]);
}

#[test]
fn a_change_of_voters_keeps_one_master() {
    // One takes another's place; three become one; and the one that was left out campaigns.
    let replaced = Bounds { nodes: 4, change: Some(&[0, 2, 3]), ..BASE };
    check(&replaced, 30_000, &[CHANGED]);
    check(&Bounds { change: Some(&[0]), ..BASE }, 20_000, &[CHANGED]);
    wander(&Bounds { ticks: 6, ..replaced }, 50_000, 1, &[CHANGED, CHANGED_AND_TAKEN]);
    wander(&Bounds { ticks: 6, candidates: &[1, 3], ..replaced }, 50_000, 2, &[CHANGED_AND_TAKEN]);
}

#[test]
fn a_forced_promotion_keeps_one_master_of_a_generation() {
    let lossy = Bounds { loses_questions: true, ticks: 6, ..BASE };
    let forced: [&[usize]; 2] = [&[2], &[2, 1, 0]];
    for force in forced {
        let bounds = Bounds { force: Some(force), ..lossy };
        check(&bounds, 20_000, &[]);
        wander(&bounds, 50_000, 3, &[FORCED]);
    }
}

#[test]
fn two_candidates_have_one_winner_and_it_has_what_was_replicated() {
    let bounds = Bounds { candidates: &[1, 2], stale: &[2], ..BASE };
    check(&bounds, 40_000, &[TAKEN]);
    wander(&Bounds { loses_questions: true, ticks: 6, ..bounds }, 50_000, 4, &[TAKEN]);
}

#[test]
fn five_voters_and_three_candidates_have_one_master() {
    let bounds = Bounds { nodes: 5, voters: 5, candidates: &[2, 3, 4], ..BASE };
    check(&bounds, 20_000, &[]);
    let all = Bounds {
        ticks: 6,
        restarts: Some(1),
        releases: true,
        change: Some(&[0, 3, 4]),
        force: Some(&[4, 3, 2]),
        loses_questions: true,
        ..bounds
    };
    wander(&all, 50_000, 5, &[TAKEN, CHANGED, FORCED]);
}

#[test]
fn without_faults_somebody_is_elected_from_every_state() {
    let all = Bounds { electable: true, ..BASE };
    let runs = [
        Bounds { restarts: Some(1), releases: true, ..all },
        Bounds { candidates: &[1, 2], stale: &[2], ..all },
        Bounds { nodes: 4, change: Some(&[0, 2, 3]), ..all },
        Bounds { force: Some(&[2]), loses_questions: true, ..all },
    ];
    for bounds in runs {
        check(&bounds, 2_000, &[]);
        wander(&Bounds { ticks: 6, ..bounds }, 4_000, 6, &[]);
    }
}

#[test]
fn mutant_no_wait_after_a_restart_is_found() {
    let bounds = Bounds { ticks: 1, restarts: Some(1), no_wait: true, ..BASE };
    assert!(explore(&bounds, 200_000).discovery("one valid lease").is_some());
}

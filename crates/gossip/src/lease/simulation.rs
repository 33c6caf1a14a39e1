//! The real core in virtual time: a few nodes, a lossy network, slow disks, drifting clocks,
//! crashes. One seed gives everything; invariants are checked after every event. Nothing here
//! may soften the core: faults and mutants live outside it.
//!
//! Replay one seed with `FLOCKER_LEASE_SEED=<seed> cargo test -p flocker-gossip one_seed`; more
//! seeds with `FLOCKER_LEASE_SEEDS=<count>`, of which half begin at `FLOCKER_SIMULATION_FRESH`.

mod agent;
mod checks;
mod faults;
mod mutants;
mod network;
mod world;

use std::collections::BTreeMap;

use mutants::Mutant;
use world::{Outcome, World};

fn run(seed: u64, mutant: Option<Mutant>) -> Outcome {
    World::new(seed, mutant).run()
}

/// Runs seeds and adds up what happened; the first violation fails with how to replay it.
fn run_all(seeds: std::ops::Range<u64>) -> BTreeMap<&'static str, u64> {
    let mut happened = BTreeMap::new();
    for seed in seeds {
        let outcome = run(seed, None);
        if let Some(violation) = outcome.violation {
            panic!(
                "seed {seed}: {violation}\nreplay: FLOCKER_LEASE_SEED={seed} cargo test -p \
                 flocker-gossip one_seed -- --nocapture"
            );
        }
        for (what, count) in outcome.happened {
            *happened.entry(what).or_default() += count;
        }
    }
    happened
}

fn seeds_each() -> u64 {
    std::env::var("FLOCKER_LEASE_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(100)
}

/// Every fault and every kind of progress must have occurred, or the run proves little.
fn assert_all_happened(happened: &BTreeMap<&'static str, u64>) {
    for what in [
        "crash",
        "restart",
        "write lost in a crash",
        "message lost",
        "message doubled",
        "message overtaken",
        "one-way cut",
        "node cut off",
        "slow network",
        "slow disk",
        "fast clock",
        "slow clock",
        "epoch won",
        "taken over",
        "handed over",
        "released to no one",
        "kept across a restart",
        "voters changed",
        "volume lost",
        "frozen",
        "thawed",
        "holder silent",
        "promoted by force",
        "promotion done",
        "election refused for its copy",
    ] {
        assert!(
            happened.get(what).copied().unwrap_or(0) > 0,
            "never happened: {what}; {happened:?}"
        );
    }
}

#[test]
fn leases_hold_under_faults_first_seeds() {
    let happened = run_all(0..seeds_each());
    println!("{happened:#?}");
    assert_all_happened(&happened);
}

/// Seeds that nobody ran before, if `scripts/test` says which.
#[test]
fn leases_hold_under_faults_fresh_seeds() {
    let fresh = std::env::var("FLOCKER_SIMULATION_FRESH").ok().and_then(|text| text.parse().ok());
    let first: u64 = fresh.unwrap_or(1_000_000);
    let happened = run_all(first..first + seeds_each());
    assert_all_happened(&happened);
}

/// Runs the seed in `FLOCKER_LEASE_SEED`, with what happened printed.
#[test]
fn one_seed() {
    let seed = std::env::var("FLOCKER_LEASE_SEED").ok().and_then(|text| text.parse().ok());
    let seed: u64 = seed.unwrap_or(7);
    let outcome = World::new(seed, None).telling().run();
    assert_eq!(outcome.violation, None, "seed {seed}");
}

#[test]
fn one_seed_gives_one_trace() {
    for seed in [1, 77] {
        let (first, second) = (run(seed, None), run(seed, None));
        assert_eq!(first.trace, second.trace, "seed {seed}");
        assert_eq!(first.happened, second.happened, "seed {seed}");
    }
    assert_ne!(run(1, None).trace, run(2, None).trace);
}

/// A checker that catches nothing proves nothing: each of these must be caught.
fn is_caught(mutant: Mutant) {
    for seed in 0..400 {
        let violation = run(seed, Some(mutant)).violation;
        // What makes a mesh slow to heal is not what these are about.
        if let Some(violation) = violation.filter(|violation| violation.starts_with("at ")) {
            println!("{mutant:?}: caught with seed {seed}: {violation}");
            return;
        }
    }
    panic!("{mutant:?} was not caught");
}

macro_rules! mutants {
    ($($name:ident: $mutant:ident),+ $(,)?) => {
        $(#[test]
        fn $name() {
            is_caught(Mutant::$mutant);
        })+
    };
}

mutants! {
    mutant_announcing_before_it_is_durable: EarlyAnnouncement,
    mutant_counting_from_the_receipt: ReceiptTime,
    mutant_not_waiting_after_a_restart: NoStartWait,
    mutant_forgetting_confirmations: VolatileConfirmation,
    mutant_never_withdrawing_support: NoWithdrawal,
    mutant_counting_voters_that_did_not_grant: AnyVoter,
    mutant_wiped_voter_keeping_its_id: WipedVoter,
    mutant_clocks_beyond_the_drift: WildClocks,
    mutant_releasing_before_stopping: EarlyRelease,
    mutant_voter_hiding_its_newer_configuration: HiddenConfig,
    mutant_changing_voters_in_one_step: NoJoint,
}

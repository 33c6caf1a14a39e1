//! The real core in virtual time: a whole mesh of watches, a network that loses, delays and cuts,
//! nodes that die, hang and return. One seed gives everything. Nothing here may soften the core.
//!
//! Replay one seed with `FLOCKER_WATCH_SEED=<seed> cargo test -p flocker-gossip watch_one_seed`.

mod runs;
mod world;

use std::time::Duration;

use self::runs::{Faults, churn, kill_times, quiet_hour};
use self::world::Death;

fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    times[(times.len() - 1) * percent / 100]
}

fn every_kill_is_known(nodes: usize, death: Death, rounds: u64, bound: Duration) {
    let times = kill_times(nodes, death, rounds);
    let (median, worst) = (percentile(&times, 50), percentile(&times, 100));
    println!(
        "{nodes} nodes, {death:?}: known to all after {median:?} (median), {:?} (90 %), {worst:?} \
         (worst of {})",
        percentile(&times, 90),
        times.len()
    );
    assert!(worst <= bound, "{worst:?}, at most {bound:?}");
}

#[test]
fn a_killed_process_is_known_to_all_soon() {
    for (nodes, rounds) in [(3, 100), (10, 50), (20, 50), (100, 3), (300, 1)] {
        every_kill_is_known(nodes, Death::Process, rounds, Duration::from_millis(2_100));
    }
}

#[test]
fn a_lost_host_is_known_to_all_by_two_who_do_not_hear_it() {
    for (nodes, rounds) in [(4, 50), (20, 50), (100, 3), (300, 1)] {
        every_kill_is_known(nodes, Death::Host, rounds, Duration::from_millis(4_500));
    }
}

#[test]
fn a_quiet_mesh_suspects_no_one_and_its_cost_is_flat() {
    for nodes in [3, 20, 100, 300] {
        let quiet = quiet_hour(nodes, 0.0, Duration::from_secs(60));
        println!(
            "{nodes} nodes: {:.2} messages and {:.0} bytes of them a second and node",
            quiet.messages, quiet.bytes
        );
        assert_eq!(quiet.convictions, 0);
        assert!(quiet.messages < 4.5, "{}", quiet.messages);
    }
}

#[test]
fn loss_makes_no_suspicion_that_lasts_and_hardly_any() {
    for loss in [0.05, 0.15, 0.30] {
        let quiet = quiet_hour(20, loss, Duration::from_secs(600));
        println!("loss {loss}: {} convictions in ten minutes of 20 nodes", quiet.convictions);
        assert!(quiet.lost > 1_000, "nothing was lost");
        assert_eq!(quiet.wrong_at_the_end, 0);
        assert!(loss > 0.2 || quiet.convictions == 0, "{}", quiet.convictions);
    }
}

#[test]
fn after_faults_everyone_agrees_on_who_lives() {
    let mut happened = Faults::default();
    for seed in 0..16 {
        let nodes = [3, 5, 20, 60][usize::try_from(seed % 4).expect("small")];
        let outcome = churn(seed, nodes);
        assert_eq!(
            outcome.wrong,
            Vec::<String>::new(),
            "seed {seed}\nreplay: FLOCKER_WATCH_SEED={seed} cargo test -p flocker-gossip \
             watch_one_seed -- --nocapture"
        );
        happened.add(&outcome.happened);
    }
    println!("{happened:?}");
    happened.assert_all_happened();
}

#[test]
fn watch_one_seed() {
    let seed = std::env::var("FLOCKER_WATCH_SEED").ok().and_then(|text| text.parse().ok());
    let seed: u64 = seed.unwrap_or(7);
    let nodes = [3, 5, 20, 60][usize::try_from(seed % 4).expect("small")];
    let outcome = churn(seed, nodes);
    println!("{:?}", outcome.happened);
    assert_eq!(outcome.wrong, Vec::<String>::new(), "seed {seed}");
}

#[test]
fn one_seed_gives_one_trace() {
    let (first, second) = (churn(5, 5), churn(5, 5));
    assert_eq!(first.trace, second.trace);
    assert_ne!(first.trace, churn(9, 5).trace);
}

//! What is done to the world, and what came of it.

use std::time::Duration;

use rand::RngExt;

use super::super::Verdict;
use super::world::{Death, World};

/// A mesh in which everyone has heard of everyone.
fn settled(seed: u64, nodes: usize) -> World {
    let mut world = World::new(seed, nodes);
    world.run_for(Duration::from_secs(15));
    assert_eq!(world.wrong(), Vec::<String>::new(), "seed {seed}: after the start");
    assert_eq!(world.convictions, 0, "seed {seed}: at the start");
    world
}

/// How long it takes until all know, over and over.
pub(super) fn kill_times(nodes: usize, death: Death, rounds: u64) -> Vec<Duration> {
    (0..rounds)
        .map(|seed| {
            let mut world = settled(seed, nodes);
            let quiet = Duration::from_millis(world.random.random_range(0..3_000));
            world.run_for(quiet);
            let victim = world.random.random_range(0..nodes);
            world.kill(victim, death);
            let (killed, end) = (world.now, world.now + Duration::from_secs(30));
            let all_know = |world: &World| {
                (0..nodes).all(|at| at == victim || world.verdict(at, victim) == Verdict::Dead)
            };
            world.run_until(end, all_know);
            assert!(all_know(&world), "seed {seed}: not known after 30 s");
            let took = world.now - killed;
            world.run_for(Duration::from_secs(10));
            assert_eq!(world.wrong(), Vec::<String>::new(), "seed {seed}: later");
            took
        })
        .collect()
}

pub(super) struct Quiet {
    pub(super) convictions: u64,
    pub(super) lost: u64,
    pub(super) wrong_at_the_end: usize,
    /// A second and node.
    pub(super) messages: f64,
    /// A second and node.
    pub(super) bytes: f64,
}

/// A mesh to which nothing happens but loss.
pub(super) fn quiet_hour(nodes: usize, loss: f64, time: Duration) -> Quiet {
    let mut world = settled(1, nodes);
    let (sent, bytes) = (world.sent, world.bytes);
    world.loss = loss;
    world.run_for(time);
    let of = |count: u64| count as f64 / time.as_secs_f64() / nodes as f64;
    let (messages, bytes) = (of(world.sent - sent), of(world.bytes - bytes));
    world.loss = 0.0;
    world.run_for(Duration::from_secs(20));
    let wrong_at_the_end = world.wrong().len();
    let (convictions, lost) = (world.convictions, world.lost);
    Quiet { convictions, lost, wrong_at_the_end, messages, bytes }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Faults {
    lost: u64,
    cut: u64,
    killed: u64,
    hosts_lost: u64,
    restarted: u64,
    hung: u64,
    split: u64,
    slow: u64,
    convicted: u64,
    refuted: u64,
    unheard: u64,
}

impl Faults {
    fn all(&self) -> [u64; 11] {
        let Self { lost, cut, killed, hosts_lost, restarted, hung, split, .. } = *self;
        let Self { slow, convicted, refuted, unheard, .. } = *self;
        [lost, cut, killed, hosts_lost, restarted, hung, split, slow, convicted, refuted, unheard]
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.lost += other.lost;
        self.cut += other.cut;
        self.killed += other.killed;
        self.hosts_lost += other.hosts_lost;
        self.restarted += other.restarted;
        self.hung += other.hung;
        self.split += other.split;
        self.slow += other.slow;
        self.convicted += other.convicted;
        self.refuted += other.refuted;
        self.unheard += other.unheard;
    }

    /// Every fault, and every kind of answer to one, must have occurred, or the run proves little.
    pub(super) fn assert_all_happened(&self) {
        assert!(self.all().into_iter().all(|count| count > 0), "{self:?}");
    }
}

pub(super) struct Outcome {
    pub(super) wrong: Vec<String>,
    pub(super) happened: Faults,
    pub(super) trace: u64,
}

/// Two minutes of faults, then none: all must come to agree, and rightly.
pub(super) fn churn(seed: u64, nodes: usize) -> Outcome {
    let mut world = settled(seed, nodes);
    let mut happened = Faults::default();
    world.loss = world.random.random_range(0.0..0.3);
    for _ in 0..60 {
        let pause = Duration::from_millis(world.random.random_range(0..4_000));
        world.run_for(pause);
        fault(&mut world, &mut happened);
    }
    world.loss = 0.0;
    world.slow = false;
    world.cuts.clear();
    world.run_for(Duration::from_secs(60));
    happened.lost += world.lost;
    happened.cut += world.cut;
    happened.convicted += world.convictions;
    happened.refuted += world.refutations;
    happened.unheard += world.unheard;
    Outcome { wrong: world.wrong(), happened, trace: world.trace }
}

fn fault(world: &mut World, happened: &mut Faults) {
    let nodes = world.len();
    let node = world.random.random_range(0..nodes);
    let living = (0..nodes).filter(|n| world.lives(*n)).count();
    match world.random.random_range(0..9) {
        0 if living > 2 && world.lives(node) => {
            world.kill(node, Death::Process);
            happened.killed += 1;
        }
        1 if living > 2 && world.lives(node) => {
            world.kill(node, Death::Host);
            happened.hosts_lost += 1;
        }
        2 | 3 if !world.lives(node) => {
            world.restart(node);
            happened.restarted += 1;
        }
        4 => {
            let time = Duration::from_millis(world.random.random_range(100..8_000));
            world.hang(node, time);
            happened.hung += 1;
        }
        5 => {
            let other = world.random.random_range(0..nodes);
            world.cuts.insert((node, other));
        }
        6 => {
            let side = world.random.random_range(1..nodes);
            let apart = |a: usize, b: usize| (a < side) != (b < side);
            for a in 0..nodes {
                world.cuts.extend((0..nodes).filter(|b| apart(a, *b)).map(|b| (a, b)));
            }
            happened.split += 1;
        }
        7 => {
            world.slow = !world.slow;
            happened.slow += 1;
        }
        _ => world.cuts.clear(),
    }
}

//! A plan of faults, drawn from a seed: the same seed, the same plan. It knows no agent and no
//! clock.

use std::time::Duration;

use anyhow::{Context, Result};
use rand::rngs::{StdRng, SysRng};
use rand::{Rng as _, RngExt as _, SeedableRng as _};

/// What is done to the victim of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL, then a start.
    Kill,
    /// The same, and SIGKILL again so long after the start: in the middle of its start-up or
    /// just after.
    KillInStart(Duration),
    /// The same, and twice so in a row.
    KillInTwoStarts(Duration, Duration),
    /// It hangs for so long before it is killed.
    HangThenKill(Duration),
    /// It is dead for so long before it is started: long enough for another to take over.
    StayDead(Duration),
}

impl Fault {
    /// How often the victim is killed.
    #[must_use]
    pub const fn kills(self) -> u64 {
        match self {
            Self::Kill | Self::HangThenKill(_) | Self::StayDead(_) => 1,
            Self::KillInStart(_) => 2,
            Self::KillInTwoStarts(..) => 3,
        }
    }
}

/// One round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    /// From 1.
    pub number: u32,
    /// Time before the fault.
    pub wait: Duration,
    /// The number of the victim, from 0.
    pub victim: usize,
    /// What is done to it.
    pub fault: Fault,
}

/// Rounds without an end.
#[derive(Debug)]
pub struct Plan {
    random: StdRng,
    victims: usize,
    number: u32,
}

impl Plan {
    /// The plan of this seed for so many victims.
    #[must_use]
    pub fn new(seed: u64, victims: usize) -> Self {
        Self { random: StdRng::seed_from_u64(seed), victims, number: 0 }
    }

    fn span(&mut self, most_ms: u64) -> Duration {
        Duration::from_micros(self.random.random_range(0..=most_ms * 1000))
    }
}

impl Iterator for Plan {
    type Item = Round;

    fn next(&mut self) -> Option<Round> {
        self.number += 1;
        let wait = self.span(300);
        let victim = self.random.random_range(0..self.victims);
        let fault = match self.random.random_range(0..100) {
            0..54 => Fault::Kill,
            54..76 => Fault::KillInStart(self.span(250)),
            76..86 => Fault::KillInTwoStarts(self.span(120), self.span(250)),
            86..94 => Fault::HangThenKill(self.span(200)),
            _ => Fault::StayDead(Duration::from_secs(3) + self.span(1500)),
        };
        Some(Round { number: self.number, wait, victim, fault })
    }
}

/// `FLOCKER_CHAOS_SEED`, or a new one from the system.
///
/// # Errors
/// If it is set to something that is no number, or the system gives no randomness.
pub fn seed() -> Result<u64> {
    match std::env::var("FLOCKER_CHAOS_SEED") {
        Ok(text) => text.parse().with_context(|| format!("FLOCKER_CHAOS_SEED '{text}' is no seed")),
        Err(_unset) => {
            let random = StdRng::try_from_rng(&mut SysRng);
            // Short enough to be typed again.
            Ok(random.context("the system gives no randomness")?.next_u64() >> 32)
        }
    }
}

/// `FLOCKER_CHAOS_ROUNDS`, or so many.
///
/// # Errors
/// If it is set to something that is no number above zero.
pub fn rounds(usual: u32) -> Result<u32> {
    let Ok(text) = std::env::var("FLOCKER_CHAOS_ROUNDS") else { return Ok(usual) };
    let rounds = text.parse().ok().filter(|rounds| *rounds > 0);
    rounds.with_context(|| format!("FLOCKER_CHAOS_ROUNDS '{text}' is no number of rounds"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_plan_and_another_another() {
        let plan = |seed| Plan::new(seed, 3).take(50).collect::<Vec<_>>();
        assert_eq!(plan(7), plan(7));
        assert_ne!(plan(7), plan(8));
    }

    #[test]
    fn a_plan_of_some_length_has_every_victim_and_every_fault() {
        let rounds: Vec<_> = Plan::new(1, 3).take(200).collect();
        for victim in 0..3 {
            assert!(rounds.iter().any(|r| r.victim == victim));
        }
        for kills in 1..=3 {
            assert!(rounds.iter().any(|r| r.fault.kills() == kills));
        }
        assert!(rounds.iter().any(|r| matches!(r.fault, Fault::HangThenKill(_))));
        assert!(rounds.iter().any(|r| matches!(r.fault, Fault::StayDead(_))));
        assert!(rounds.iter().map(|r| r.number).eq(1..=200));
    }
}

//! The simulated network: what is lost, doubled, delayed and cut.

use std::collections::BTreeSet;

use rand::rngs::StdRng;
use rand::{Rng, RngExt};

/// Losses and delays, as they are now.
#[derive(Debug)]
pub(super) struct Network {
    /// One-way cuts, from and to.
    pub(super) cut: BTreeSet<(usize, usize)>,
    /// In a thousand.
    pub(super) loss: u32,
    /// In a thousand.
    pub(super) doubling: u32,
    /// Shortest and longest delay, in microseconds.
    pub(super) delay: (u64, u64),
}

impl Network {
    /// A good network.
    pub(super) const fn good() -> Self {
        Self { cut: BTreeSet::new(), loss: 0, doubling: 0, delay: (200, 3_000) }
    }

    /// When copies of a message arrive, from now; none if it is lost.
    pub(super) fn carry(&self, random: &mut StdRng, from: usize, to: usize) -> Vec<u64> {
        if self.cut.contains(&(from, to)) || random.random_range(0..1_000) < self.loss {
            return Vec::new();
        }
        let copies = if random.random_range(0..1_000) < self.doubling { 2 } else { 1 };
        (0..copies).map(|_| random.random_range(self.delay.0..=self.delay.1)).collect()
    }
}

/// Whether something with this chance in a thousand happens.
pub(super) fn chance(random: &mut impl Rng, thousandths: u32) -> bool {
    random.random_range(0..1_000) < thousandths
}

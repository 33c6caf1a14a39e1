//! Lease epochs and snapshot heads: the two orders that decide who is newer.
//!
//! Both compare lexicographically. Age, size and wall-clock time never decide.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A term of mastership over one volume. At most one store ever holds one epoch.
///
/// The generation rises only by a forced promotion; the counter with each election.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Epoch {
    /// Raised by a forced promotion alone.
    pub generation: u32,
    /// Raised by each election.
    pub counter: u64,
}

impl Epoch {
    /// Before the first election: no one ever held it.
    pub const ZERO: Self = Self { generation: 0, counter: 0 };

    /// The epoch with this generation and counter.
    #[must_use]
    pub const fn new(generation: u32, counter: u64) -> Self {
        Self { generation, counter }
    }

    /// The epoch that the next election claims.
    #[must_use]
    pub const fn next(self) -> Self {
        Self { generation: self.generation, counter: self.counter.saturating_add(1) }
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.generation == 0 {
            write!(f, "{}", self.counter)
        } else {
            write!(f, "{}.{}", self.generation, self.counter)
        }
    }
}

/// A snapshot's place in its volume's history. It goes on counting across epochs.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct SnapshotSeq(pub u64);

/// How fresh a copy of a volume is: the epoch and sequence of its newest snapshot. The default
/// is the head of an empty volume and older than any other.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Head {
    /// The epoch under which the newest snapshot was taken.
    pub epoch: Epoch,
    /// Its sequence number.
    pub seq: SnapshotSeq,
}

impl Head {
    /// No snapshot at all.
    pub const NONE: Self = Self { epoch: Epoch::ZERO, seq: SnapshotSeq(0) };

    /// The head with this epoch and sequence.
    #[must_use]
    pub const fn new(epoch: Epoch, seq: u64) -> Self {
        Self { epoch, seq: SnapshotSeq(seq) }
    }
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.epoch, self.seq.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deposed_masters_longer_branch_is_not_fresher() {
        let deposed = Head::new(Epoch::new(0, 3), 900);
        let elected = Head::new(Epoch::new(0, 4), 850);
        assert!(elected > deposed);
    }

    #[test]
    fn a_forced_generation_outranks_every_election_of_the_old_one() {
        assert!(Epoch::new(1, 1) > Epoch::new(0, u64::MAX));
    }
}

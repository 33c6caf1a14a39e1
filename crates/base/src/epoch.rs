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

    /// A forced promotion's generation is a number that rises, and below it so many bits of who
    /// forced it, so that two at the same time do not take the same.
    pub const FORCER_BITS: u32 = 16;
    /// More elections than there ever are between two nodes' views of a volume.
    const MOST_ELECTIONS: u64 = 1 << 20;
    /// The same of forced promotions.
    const MOST_PROMOTIONS: u32 = 1 << (10 + Self::FORCER_BITS);

    /// Whether elections and forced promotions can have led to this epoch while someone knew only
    /// of `known`. Anything further is poison: to believe it would use epochs up for ever.
    #[must_use]
    pub const fn is_within_reach_of(self, known: Self) -> bool {
        let risen = self.generation > known.generation;
        let from = if risen { 0 } else { known.counter };
        let most = from.saturating_add(Self::MOST_ELECTIONS);
        self.counter <= most
            && self.generation <= known.generation.saturating_add(Self::MOST_PROMOTIONS)
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
    fn what_no_election_leads_to_is_out_of_reach() {
        let known = Epoch::new(3, 40);
        let reach = |generation, counter| Epoch::new(generation, counter).is_within_reach_of(known);
        assert!(reach(3, 40) && reach(3, 41) && reach(2, 7) && reach(4, 1) && reach(5 << 16, 1));
        for poison in [(3, 1 << 26), (4, 1 << 26), (1 << 28, 1), (u32::MAX, u64::MAX)] {
            assert!(!reach(poison.0, poison.1), "{poison:?}");
        }
        assert!(!Epoch::new(0, u64::MAX).is_within_reach_of(Epoch::ZERO));
    }

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

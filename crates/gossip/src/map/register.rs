//! One field of an intent record: a multi-value register that keeps every concurrent write and
//! shows one winner. It must never drop a write that no later write has seen.
//!
//! Built on `crdts::MVReg`. A value carries its own clock, because the register does not give
//! its clocks out, and because two values under one clock (one actor id used from two stores)
//! must be told apart before the merge: the register alone would keep each side's own.

use std::cmp::Ordering;

use crdts::mvreg::Op;
use crdts::{CmRDT, CvRDT, Dot, MVReg, VClock};
use flocker_base::StoreId;

use super::stamp::Stamp;

/// What one store wrote into a field, and what it had seen when it did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sibling {
    /// The newest write of each store that this one replaces, itself included.
    pub clock: VClock<StoreId>,
    /// When it was written; its own entry in the clock.
    pub stamp: Stamp,
    /// The store that wrote it.
    pub actor: StoreId,
    /// The value, opaque here.
    pub bytes: Vec<u8>,
}

impl Sibling {
    /// The order that picks the winner: the later write, then the higher store id.
    fn rank(&self) -> (Stamp, StoreId, &[u8]) {
        (self.stamp, self.actor, &self.bytes)
    }

    /// A total order over all siblings, the winner first: the canonical order.
    pub(super) fn canonical(&self, other: &Self) -> Ordering {
        other.rank().cmp(&self.rank()).then_with(|| self.clock.dots.cmp(&other.clock.dots))
    }

    /// Whether the two were written with neither seeing the other.
    pub(super) fn concurrent(&self, other: &Self) -> bool {
        self.clock.concurrent(&other.clock)
    }
}

/// A multi-value register: the concurrent values, the winner first. [`MVReg`] decides which
/// values stay; between writes and merges they lie here, where they can be looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Register {
    siblings: Vec<Sibling>,
}

/// Two different values under one clock: one actor id is used from two stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DoubleWrite {
    /// The id.
    pub actor: StoreId,
}

impl Register {
    /// A register of these siblings, which must be concurrent to one another.
    #[must_use]
    pub fn of(mut siblings: Vec<Sibling>) -> Self {
        siblings.sort_by(Sibling::canonical);
        Self { siblings }
    }

    /// All concurrent values, the winner first.
    #[must_use]
    pub fn siblings(&self) -> &[Sibling] {
        &self.siblings
    }

    /// The value that every node acts on.
    #[must_use]
    pub fn winner(&self) -> Option<&Sibling> {
        self.siblings.first()
    }

    /// Writes a value that replaces all that are here.
    pub fn write(&mut self, actor: StoreId, stamp: Stamp, bytes: Vec<u8>) {
        let mut values = values(&self.siblings);
        let mut clock = values.read_ctx().add_clock;
        clock.apply(Dot::new(actor, stamp.as_u64()));
        let val = Sibling { clock: clock.clone(), stamp, actor, bytes };
        values.apply(Op::Put { clock, val });
        *self = Self::of(values.read().val);
    }

    /// Takes in another copy of the field. Of two values under one clock both sides keep the
    /// one of higher rank, and the pair is reported.
    pub fn merge(&mut self, other: &Self) -> Option<DoubleWrite> {
        if self == other {
            return None;
        }
        let mut mine = std::mem::take(&mut self.siblings);
        let mut theirs = other.siblings.clone();
        let mut double = None;
        for a in &mut mine {
            for b in &mut theirs {
                if a.clock == b.clock && a != b {
                    double = Some(DoubleWrite { actor: a.actor.max(b.actor) });
                    if a.rank() < b.rank() {
                        a.clone_from(b);
                    } else {
                        b.clone_from(a);
                    }
                }
            }
        }
        let mut both = values(&mine);
        both.merge(values(&theirs));
        *self = Self::of(both.read().val);
        double
    }

    /// The highest stamp in any clock here.
    #[must_use]
    pub fn newest(&self) -> Stamp {
        let counts = self.siblings.iter().flat_map(|sibling| sibling.clock.dots.values());
        counts.copied().max().map_or(Stamp::ZERO, Stamp::from_u64)
    }
}

fn values(siblings: &[Sibling]) -> MVReg<Sibling, StoreId> {
    let mut values = MVReg::new();
    for sibling in siblings {
        values.apply(Op::Put { clock: sibling.clock.clone(), val: sibling.clone() });
    }
    values
}

//! The changes that wait to be pushed: one entry a record, bounded. Pure. It must never hold up a
//! change: what does not fit is left to the hash tree.

use std::collections::BTreeMap;

use flocker_base::StoreId;

use crate::map::key::RecordKey;

/// Most records that wait.
pub(super) const MAX_WAITING: usize = 4_096;
/// How often a change is passed on. Along the links of a thousand nodes it takes half of this.
pub(super) const MAX_HOPS: u8 = 24;

/// How a change came here, and so where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    /// Nodes that it came through.
    pub(super) hops: u8,
    /// Who brought it, if it was not made here.
    pub(super) from: Option<StoreId>,
    /// Whether it goes to other regions too.
    pub(super) crosses: bool,
}

/// The records to push.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    records: BTreeMap<RecordKey, Way>,
}

impl Waiting {
    /// Adds a change. A record that waits is pushed once, in its newest state, wherever its
    /// changes go.
    pub(super) fn add(&mut self, key: RecordKey, way: Way) {
        if way.hops >= MAX_HOPS {
            return;
        }
        if self.records.len() >= MAX_WAITING && !self.records.contains_key(&key) {
            return;
        }
        let known = self.records.entry(key).or_insert(way);
        known.hops = known.hops.min(way.hops);
        known.crosses |= way.crosses;
        if known.from != way.from {
            known.from = None;
        }
    }

    /// The first records, at most so many.
    pub(super) fn take(&mut self, most: usize) -> BTreeMap<RecordKey, Way> {
        let rest = match self.records.keys().nth(most) {
            Some(first) => {
                let first = first.clone();
                self.records.split_off(&first)
            }
            None => BTreeMap::new(),
        };
        std::mem::replace(&mut self.records, rest)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.records.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::key::Kind;

    fn key(number: u32) -> RecordKey {
        RecordKey::new(Kind::VOLUME, &number.to_be_bytes())
    }

    fn way(hops: u8, from: Option<u8>) -> Way {
        let from = from.map(|number| StoreId::from_bytes([number; 16]));
        Way { hops, from, crosses: from.is_none() }
    }

    #[test]
    fn a_record_waits_once_and_goes_wherever_one_of_its_changes_does() {
        let mut waiting = Waiting::default();
        waiting.add(key(1), way(5, Some(1)));
        waiting.add(key(1), way(3, Some(2)));
        waiting.add(key(1), way(MAX_HOPS, Some(2)));
        let merged = Way { hops: 3, from: None, crosses: false };
        assert_eq!(waiting.take(9), [(key(1), merged)].into());
        waiting.add(key(1), way(5, Some(1)));
        waiting.add(key(1), way(0, None));
        assert_eq!(waiting.take(9), [(key(1), way(0, None))].into());
        assert!(waiting.is_empty());
    }

    #[test]
    fn a_burst_is_bounded_and_what_waits_already_always_fits() {
        let mut waiting = Waiting::default();
        for number in 0..100_000 {
            waiting.add(key(number), way(1, Some(1)));
        }
        waiting.add(key(0), way(0, None));
        assert_eq!(waiting.len(), MAX_WAITING);
        assert_eq!(waiting.take(1), [(key(0), way(0, None))].into());
        assert_eq!(waiting.take(MAX_WAITING).len(), MAX_WAITING - 1);
    }
}

//! What clients did and what they were told: the history that the checkers judge. A write counts
//! as acknowledged only once its 2xx answer was read whole; one without an answer may have been
//! acted on or not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flocker_base::BootTime;

/// How a write ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answered with 2xx.
    Acknowledged,
    /// Answered with something else.
    Refused(String),
    /// No answer: it may be there.
    Unknown(String),
}

/// One write. Its line is unique in the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The line that was sent.
    pub line: String,
    /// The node whose proxy it went through.
    pub through: String,
    /// When it was sent.
    pub sent: BootTime,
    /// When it ended.
    pub ended: BootTime,
    /// How.
    pub outcome: Outcome,
}

/// The writes of all clients, in the order in which they ended. Clones are the same history.
#[derive(Clone, Debug, Default)]
pub struct History {
    writes: Arc<Mutex<Vec<Write>>>,
}

/// Numbers of a history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Writes acknowledged.
    pub acknowledged: usize,
    /// Writes refused.
    pub refused: usize,
    /// Writes whose outcome is not known.
    pub unknown: usize,
}

impl History {
    fn locked(&self) -> MutexGuard<'_, Vec<Write>> {
        self.writes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a write that has ended.
    pub fn add(&self, write: Write) {
        self.locked().push(write);
    }

    /// Lines acknowledged until then.
    #[must_use]
    pub fn acknowledged_until(&self, until: BootTime) -> BTreeMap<String, BootTime> {
        let writes = self.locked();
        let acked =
            writes.iter().filter(|w| w.outcome == Outcome::Acknowledged && w.ended <= until);
        acked.map(|w| (w.line.clone(), w.ended)).collect()
    }

    /// All lines acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> BTreeSet<String> {
        self.acknowledged_until(BootTime::NEVER).into_keys().collect()
    }

    /// By node, when the first write that was sent through it after `since` was acknowledged.
    #[must_use]
    pub fn first_acknowledged(&self, since: BootTime) -> BTreeMap<String, BootTime> {
        let mut first = BTreeMap::new();
        for write in self.locked().iter() {
            if write.outcome == Outcome::Acknowledged && write.sent >= since {
                first.entry(write.through.clone()).or_insert(write.ended);
            }
        }
        first
    }

    /// The numbers.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for write in self.locked().iter() {
            match write.outcome {
                Outcome::Acknowledged => totals.acknowledged += 1,
                Outcome::Refused(_) => totals.refused += 1,
                Outcome::Unknown(_) => totals.unknown += 1,
            }
        }
        totals
    }

    /// Different reasons why writes were not acknowledged, with how often each came, the most
    /// frequent first.
    #[must_use]
    pub fn reasons(&self) -> Vec<(String, usize)> {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for write in self.locked().iter() {
            if let Outcome::Refused(why) | Outcome::Unknown(why) = &write.outcome {
                *counts.entry(why.clone()).or_default() += 1;
            }
        }
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(line: &str, sent: u64, ended: u64, outcome: Outcome) -> Write {
        let at = BootTime::from_millis;
        let through = "a".to_owned();
        Write { line: line.to_owned(), through, sent: at(sent), ended: at(ended), outcome }
    }

    #[test]
    fn only_acknowledged_writes_count_and_the_first_is_one_sent_after_the_mark() {
        let history = History::default();
        history.add(write("1", 10, 90, Outcome::Acknowledged));
        history.add(write("2", 60, 95, Outcome::Refused("503".to_owned())));
        history.add(write("3", 70, 99, Outcome::Acknowledged));
        history.add(write("4", 71, 99, Outcome::Unknown("cut off".to_owned())));
        assert_eq!(history.acknowledged(), ["1".to_owned(), "3".to_owned()].into());
        assert_eq!(history.acknowledged_until(BootTime::from_millis(90)).len(), 1);
        let first = history.first_acknowledged(BootTime::from_millis(50));
        assert_eq!(first["a"], BootTime::from_millis(99));
        assert_eq!(history.totals(), Totals { acknowledged: 2, refused: 1, unknown: 1 });
        assert_eq!(history.reasons().len(), 2);
    }
}

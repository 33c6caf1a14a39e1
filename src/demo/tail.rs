//! What became of the acknowledged writes: pure set arithmetic over lines and times.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flocker_base::BootTime;

/// The acknowledged writes that a new master does not have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tail {
    /// Their lines.
    pub(super) lines: BTreeSet<String>,
    /// From the oldest of their acknowledgements to the kill.
    pub(super) length: Duration,
}

/// Compares what was acknowledged before the kill with what is there after it.
pub(super) fn lost_tail(
    acknowledged: &BTreeMap<String, BootTime>,
    present: &BTreeSet<String>,
    killed_at: BootTime,
) -> Tail {
    let lost: BTreeMap<&String, &BootTime> =
        acknowledged.iter().filter(|(line, _)| !present.contains(*line)).collect();
    let oldest = lost.values().min().map_or(killed_at, |at| **at);
    Tail { lines: lost.into_keys().cloned().collect(), length: killed_at.saturating_since(oldest) }
}

/// The lines of a log, without those that a crash cut short.
pub(super) fn lines(log: &[u8]) -> BTreeSet<String> {
    let whole = log.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    String::from_utf8_lossy(&log[..whole]).lines().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_what_was_acknowledged_and_is_not_there() {
        let at = BootTime::from_millis;
        let acknowledged: BTreeMap<_, _> =
            [("a".to_owned(), at(100)), ("b".to_owned(), at(300)), ("c".to_owned(), at(200))]
                .into();
        let tail = lost_tail(&acknowledged, &["a".to_owned()].into(), at(1_000));
        assert_eq!(tail.lines, ["b".to_owned(), "c".to_owned()].into());
        assert_eq!(tail.length, Duration::from_millis(800));
        let all: BTreeSet<_> = acknowledged.keys().cloned().collect();
        assert_eq!(lost_tail(&acknowledged, &all, at(1_000)), Tail::default());
    }

    #[test]
    fn a_line_cut_short_is_no_line() {
        assert_eq!(lines(b"one\ntwo\nthr"), ["one".to_owned(), "two".to_owned()].into());
        assert!(lines(b"thr").is_empty());
    }
}

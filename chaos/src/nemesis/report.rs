//! What came of the rounds of one fault, as one document and as a line of a table.

use serde::{Deserialize, Serialize};

/// The figures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The fault's word.
    pub fault: String,
    /// Rounds that were judged and good.
    pub rounds: u32,
    /// Of these, with another master after than before.
    pub moved: u32,
    /// From the fault to the first answer to a request sent after it, a round, in milliseconds.
    pub first_success_ms: Vec<u64>,
    /// Writes acknowledged.
    pub acknowledged: usize,
    /// Of these, in branches alone.
    pub in_branches: usize,
    /// How often the service said that it was about to write.
    pub beats: usize,
    /// How often `/proc` was looked at for a second instance.
    pub looks: u64,
    /// The seed.
    pub seed: u64,
}

impl Report {
    /// The time that so many per cent of the rounds took at most.
    #[must_use]
    pub fn percentile(&self, percent: usize) -> u64 {
        let mut sorted = self.first_success_ms.clone();
        sorted.sort_unstable();
        let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
        sorted.get(at).copied().unwrap_or_default()
    }

    /// The heads of the table's columns.
    #[must_use]
    pub const fn head() -> &'static str {
        "| fault | rounds | moved | first success ms, p50 | p99 | acknowledged | in branches alone | beats |\n\
         |---|---|---|---|---|---|---|---|"
    }

    /// A line of it.
    #[must_use]
    pub fn line(&self) -> String {
        format!(
            "| {} | {} | {} | {} | {} | {} | {} | {} |",
            self.fault,
            self.rounds,
            self.moved,
            self.percentile(50),
            self.percentile(99),
            self.acknowledged,
            self.in_branches,
            self.beats
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_rounds() {
        let report = Report { first_success_ms: (1..=100).rev().collect(), ..Report::default() };
        assert_eq!((report.percentile(50), report.percentile(99)), (50, 99));
        assert_eq!(Report::default().percentile(50), 0);
        let one = Report { first_success_ms: vec![7], ..Report::default() };
        assert_eq!((one.percentile(50), one.percentile(99)), (7, 7));
    }
}

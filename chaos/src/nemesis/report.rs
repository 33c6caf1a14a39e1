//! What came of the rounds of one fault, as one document and as a line of a table.

use serde::{Deserialize, Serialize};

use crate::measure::figures::Summary;

/// The figures.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The fault's word.
    pub fault: String,
    /// Rounds that were judged and good.
    pub rounds: u32,
    /// Of these, with another master after than before.
    pub moved: u32,
    /// From the fault to the first answer to a request sent after it, a round, in milliseconds.
    pub first_success_ms: Vec<f64>,
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
    /// The heads of the table's columns.
    #[must_use]
    pub const fn head() -> &'static str {
        "| fault | rounds | moved | first success ms, p50 | p99 | acknowledged | in branches alone | beats |\n\
         |---|---|---|---|---|---|---|---|"
    }

    /// A line of it.
    #[must_use]
    pub fn line(&self) -> String {
        let time = Summary::of(&self.first_success_ms);
        let (median, p99) = time.map_or((0.0, 0.0), |time| (time.median, time.p99));
        format!(
            "| {} | {} | {} | {median:.0} | {p99:.0} | {} | {} | {} |",
            self.fault, self.rounds, self.moved, self.acknowledged, self.in_branches, self.beats
        )
    }
}

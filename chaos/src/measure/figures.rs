//! Samples and what is said of them: median, 99th percentile, worst, and the ratio of two medians.

use serde::{Deserialize, Serialize};

/// What is said of samples. There is none without a sample.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// How many.
    pub samples: usize,
    /// The median.
    pub median: f64,
    /// The 99th percentile by nearest rank: with fewer than 100 samples, the worst.
    pub p99: f64,
    /// The worst.
    pub max: f64,
}

impl Summary {
    /// Of these samples.
    #[must_use]
    pub fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |hundredths: usize| {
            let rank = (sorted.len() * hundredths).div_ceil(100).max(1);
            sorted.get(rank - 1).copied()
        };
        let (median, p99, max) = (at(50)?, at(99)?, at(100)?);
        Some(Self { samples: sorted.len(), median, p99, max })
    }
}

/// One figure of both meshes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Its name in the document.
    pub figure: String,
    /// What it is, with its unit.
    pub what: String,
    /// Ours.
    pub ours: Option<Summary>,
    /// Serf's.
    pub serf: Option<Summary>,
    /// Our median over serf's.
    pub ratio: Option<f64>,
    /// What the ratio may be at most, if that is a goal; named so.
    pub goal: Option<Goal>,
}

/// A goal for a row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Goal {
    /// Its name.
    pub name: String,
    /// The largest ratio, or the largest own median.
    pub at_most: f64,
    /// Whether it bounds our own median and not the ratio.
    pub absolute: bool,
    /// Whether it is met.
    pub met: bool,
}

impl Row {
    /// A row of samples.
    #[must_use]
    pub fn new(figure: &str, what: &str, ours: &[f64], serf: &[f64]) -> Self {
        let (ours, serf) = (Summary::of(ours), Summary::of(serf));
        let ratio =
            ours.zip(serf).filter(|(_, s)| s.median > 0.0).map(|(o, s)| o.median / s.median);
        let (figure, what) = (figure.to_owned(), what.to_owned());
        Self { figure, what, ours, serf, ratio, goal: None }
    }

    /// With a goal for the ratio.
    #[must_use]
    pub fn at_most(mut self, name: &str, at_most: f64) -> Self {
        let met = self.ratio.is_some_and(|ratio| ratio <= at_most);
        self.goal = Some(Goal { name: name.to_owned(), at_most, absolute: false, met });
        self
    }

    /// With a goal for our own median.
    #[must_use]
    pub fn own_at_most(mut self, name: &str, at_most: f64) -> Self {
        let met = self.ours.is_some_and(|ours| ours.median <= at_most);
        self.goal = Some(Goal { name: name.to_owned(), at_most, absolute: true, met });
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_and_the_worst_are_samples_and_none_has_no_summary() {
        assert_eq!(Summary::of(&[]), None);
        let four = Summary::of(&[4.0, 1.0, 3.0, 2.0]).expect("samples");
        assert_eq!((four.samples, four.median, four.p99, four.max), (4, 2.0, 4.0, 4.0));
        let many: Vec<f64> = (1..=200).map(f64::from).collect();
        let many = Summary::of(&many).expect("samples");
        assert_eq!((many.median, many.p99, many.max), (100.0, 198.0, 200.0));
    }

    #[test]
    fn a_goal_without_samples_or_beyond_the_ratio_is_not_met() {
        let met = |row: Row| row.goal.expect("a goal").met;
        assert!(met(Row::new("a", "a", &[1.0], &[4.0]).at_most("G", 0.25)));
        assert!(!met(Row::new("a", "a", &[1.1], &[4.0]).at_most("G", 0.25)));
        assert!(!met(Row::new("a", "a", &[], &[4.0]).at_most("G", 0.25)));
        assert!(!met(Row::new("a", "a", &[1.0], &[0.0]).at_most("G", 0.25)));
        assert!(met(Row::new("a", "a", &[0.0], &[]).own_at_most("G", 0.0)));
    }
}

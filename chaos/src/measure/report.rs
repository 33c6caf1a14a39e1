//! The document that a measurement ends with, and its table. A figure that was not measured is
//! left out, never zero.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::figures::{Row, Summary};

/// The schema of the document.
pub const SCHEMA: &str = "flocker.measure.gossip/1";

/// A whole measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: String,
    /// Where and beside what.
    pub conditions: Conditions,
    /// By the number of nodes.
    pub sizes: Vec<Size>,
}

/// What the figures depend on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Conditions {
    /// When it began, ms since 1970.
    pub at_unix_ms: u64,
    /// Cores of the machine.
    pub cores: usize,
    /// Their name.
    pub cpu: String,
    /// The kernel.
    pub kernel: String,
    /// Our version.
    pub flocker: String,
    /// Serf's.
    pub serf: String,
    /// Serf's timing profile.
    pub serf_profile: String,
}

/// The figures at one number of nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Size {
    /// How many.
    pub nodes: usize,
    /// The share of the machine, in per cent, that was busy while both meshes did nothing and
    /// nothing was asked of them; by far the most of it is others' work.
    pub busy_while_idle_percent: f64,
    /// The figures.
    pub rows: Vec<Row>,
}

impl Report {
    /// As text.
    #[must_use]
    pub fn table(&self) -> String {
        let c = &self.conditions;
        let mut out = format!(
            "flocker {} beside {} (profile {}), {} cores, {}, Linux {}\n",
            c.flocker, c.serf, c.serf_profile, c.cores, c.cpu, c.kernel
        );
        for size in &self.sizes {
            let _infallible = writeln!(
                out,
                "\n{} nodes each (machine {:.0} % busy while both idled)\n{:<48} {:>24} {:>24} \
                 {:>7}  goal",
                size.nodes,
                size.busy_while_idle_percent,
                "median / p99 (worst) of n",
                "ours",
                "serf",
                "ratio",
            );
            for row in &size.rows {
                let _infallible = writeln!(
                    out,
                    "{:<48} {:>24} {:>24} {:>7}  {}",
                    row.what,
                    summary(row.ours.as_ref()),
                    summary(row.serf.as_ref()),
                    row.ratio.map_or_else(|| "-".to_owned(), |r| format!("{r:.2}")),
                    goal(row),
                );
            }
        }
        out
    }
}

fn summary(of: Option<&Summary>) -> String {
    let Some(of) = of else { return "-".to_owned() };
    if of.samples == 1 {
        return number(of.median);
    }
    format!("{} / {} of {}", number(of.median), number(of.p99), of.samples)
}

fn number(x: f64) -> String {
    let places = match x {
        x if x >= 100.0 => 0,
        x if x >= 10.0 => 1,
        _ => 2,
    };
    format!("{x:.places$}")
}

fn goal(row: &Row) -> String {
    row.goal.as_ref().map_or_else(String::new, |goal| {
        let of = if goal.absolute { "ours" } else { "ratio" };
        let met = if goal.met { "met" } else { "MISSED" };
        format!("{}: {of} <= {}: {met}", goal.name, number(goal.at_most))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_what_was_not_measured_as_a_dash_and_a_missed_goal_loudly() {
        let conditions = Conditions {
            at_unix_ms: 0,
            cores: 2,
            cpu: "some".to_owned(),
            kernel: "6".to_owned(),
            flocker: "0.1.0".to_owned(),
            serf: "0.8.2".to_owned(),
            serf_profile: "lan".to_owned(),
        };
        let rows = vec![
            Row::new("a", "told, ms", &[50.0, 60.0], &[100.0]).at_most("G2", 0.3),
            Row::new("b", "dead, ms", &[1.0], &[]),
        ];
        let sizes = vec![Size { nodes: 10, busy_while_idle_percent: 3.0, rows }];
        let report = Report { schema: SCHEMA.to_owned(), conditions, sizes };
        let table = report.table();
        assert!(table.contains("50.0 / 60.0 of 2"), "{table}");
        assert!(table.contains("0.50  G2: ratio <= 0.30: MISSED"), "{table}");
        let dead = table.lines().find(|line| line.contains("dead")).expect("a row");
        assert!(dead.trim_end().ends_with("1.00                        -       -"), "{dead}");
        let text = serde_json::to_string(&report).expect("JSON");
        assert_eq!(serde_json::from_str::<Report>(&text).expect("reads"), report);
    }
}

//! Every acknowledged write is in the main line or in a branch (I6 of the design), and no line is
//! anywhere twice (I7): each was sent once.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use anyhow::{Result, bail};

/// Where the acknowledged writes are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Acknowledged writes.
    pub acknowledged: usize,
    /// Of these, in the main line.
    pub in_main: usize,
    /// Of these, in a branch alone.
    pub in_branches: usize,
}

/// The lines of a log. One that a crash cut short is none.
#[must_use]
pub fn lines(log: &[u8]) -> Vec<String> {
    let whole = log.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    String::from_utf8_lossy(&log[..whole]).lines().map(str::to_owned).collect()
}

/// Accounts for every acknowledged write.
///
/// # Errors
/// Which are nowhere, or which line is twice in one place.
pub fn account(
    acknowledged: &BTreeSet<String>,
    main: &[String],
    branches: &BTreeMap<String, Vec<String>>,
) -> Result<Account> {
    unique("the main line", main)?;
    for (name, branch) in branches {
        unique(name, branch)?;
    }
    let main: HashSet<&String> = main.iter().collect();
    let kept: HashSet<&String> = branches.values().flatten().collect();
    let in_main = acknowledged.iter().filter(|line| main.contains(line)).count();
    let lost: Vec<&String> =
        acknowledged.iter().filter(|l| !main.contains(l) && !kept.contains(l)).collect();
    if !lost.is_empty() {
        let shown: Vec<_> = lost.iter().take(10).collect();
        bail!(
            "{} of {} acknowledged writes are neither in the main line nor in one of {} branches; \
             the first: {shown:?}",
            lost.len(),
            acknowledged.len(),
            branches.len()
        );
    }
    Ok(Account {
        acknowledged: acknowledged.len(),
        in_main,
        in_branches: acknowledged.len() - in_main,
    })
}

fn unique(place: &str, lines: &[String]) -> Result<()> {
    let mut seen = HashSet::new();
    match lines.iter().find(|line| !seen.insert(*line)) {
        Some(line) => bail!("the line {line} was sent once and is twice in {place}"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(lines: &[&str]) -> Vec<String> {
        lines.iter().map(|l| (*l).to_owned()).collect()
    }

    #[test]
    fn writes_may_be_in_the_main_line_or_a_branch_but_not_nowhere() {
        let acknowledged: BTreeSet<String> = of(&["a", "b", "c"]).into_iter().collect();
        let branches = BTreeMap::from([("t".to_owned(), of(&["a", "c"]))]);
        let judge = |main: &[&str]| account(&acknowledged, &of(main), &branches);
        let good = judge(&["b", "x"]).expect("all there");
        assert_eq!(good, Account { acknowledged: 3, in_main: 1, in_branches: 2 });
        let lost = judge(&["x"]).expect_err("b is lost").to_string();
        assert!(lost.contains("1 of 3") && lost.contains("\"b\""), "{lost}");
        judge(&["b", "b"]).expect_err("twice");
    }

    #[test]
    fn a_line_cut_short_is_no_line() {
        assert_eq!(lines(b"one\ntwo\nthr"), of(&["one", "two"]));
    }
}

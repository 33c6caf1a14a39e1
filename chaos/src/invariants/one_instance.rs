//! At most one instance of a service runs at an instant (I3 of the design, as the world sees it).
//!
//! Looks at `/proc` are no instants: two processes seen running in one look overlap for certain
//! only if the first of them still runs after the second was seen. A process that is frozen does
//! not run. An epoch is one node's, and no instance starts under an epoch below one seen before.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use anyhow::{Result, bail};
use flocker_base::Epoch;

use crate::processes::Instance;

/// The checker, with what it remembers of earlier looks.
#[derive(Debug, Default)]
pub struct OneInstance {
    /// By service and epoch: whose it is.
    nodes: HashMap<(String, Epoch), PathBuf>,
    /// By service: the highest epoch that an instance had.
    highest: HashMap<String, Epoch>,
    /// Processes seen before.
    seen: HashSet<(u32, u64)>,
}

impl OneInstance {
    /// Judges one look. `still_runs` asks about a process now, after the look.
    ///
    /// # Errors
    /// What is forbidden, with the processes.
    pub fn judge(
        &mut self,
        look: &[Instance],
        still_runs: impl Fn(&Instance) -> bool,
    ) -> Result<()> {
        for (number, first) in look.iter().enumerate() {
            for second in &look[number + 1..] {
                let both = first.service == second.service && first.runs && second.runs;
                if both && still_runs(first) {
                    bail!("two instances of one service run at an instant: {first:?}, {second:?}");
                }
            }
        }
        let before = self.highest.clone();
        let mut now = HashSet::new();
        for instance in look {
            let epoch = parse(&instance.epoch)?;
            let key = (instance.pid, instance.started);
            now.insert(key);
            let of = (instance.service.clone(), epoch);
            let node = self.nodes.entry(of).or_insert_with(|| instance.guard.clone());
            if *node != instance.guard {
                bail!("two nodes use one epoch: {instance:?}, and {} before", node.display());
            }
            let former = before.get(&instance.service).copied().unwrap_or_default();
            if !self.seen.contains(&key) && epoch < former {
                bail!("an instance started under an epoch below {former}: {instance:?}");
            }
            let highest = self.highest.entry(instance.service.clone()).or_default();
            *highest = (*highest).max(epoch);
        }
        self.seen = now;
        Ok(())
    }
}

/// As an epoch is written: the counter alone in generation 0, else `generation.counter`.
/// An epoch as a service finds it in its environment.
///
/// # Errors
/// If the text is none.
pub fn parse(text: &str) -> Result<Epoch> {
    let parsed = match text.split_once('.') {
        None => text.parse().ok().map(|counter| Epoch::new(0, counter)),
        Some((generation, counter)) => match (generation.parse(), counter.parse()) {
            (Ok(generation), Ok(counter)) => Some(Epoch::new(generation, counter)),
            _ => None,
        },
    };
    match parsed {
        Some(epoch) => Ok(epoch),
        None => bail!("a service's process says '{text}' for its epoch"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(pid: u32, node: &str, epoch: &str, runs: bool) -> Instance {
        Instance {
            pid,
            started: u64::from(pid),
            service: "s".to_owned(),
            epoch: epoch.to_owned(),
            guard: PathBuf::from(node),
            runs,
        }
    }

    #[test]
    fn two_that_run_are_seen_and_a_frozen_or_ended_one_is_not_counted() {
        let (a, b) = (instance(1, "a", "1", true), instance(2, "b", "2", true));
        let mut judge = OneInstance::default();
        judge.judge(&[a.clone(), b.clone()], |_| true).expect_err("two at once");
        judge.judge(&[a, b.clone()], |_| false).expect("the first had ended");
        let frozen = instance(1, "a", "1", false);
        judge.judge(&[frozen, b], |_| true).expect("one is frozen");
    }

    #[test]
    fn an_epoch_is_one_nodes_and_never_falls() {
        let mut judge = OneInstance::default();
        judge.judge(&[instance(1, "a", "3", true)], |_| true).expect("the first");
        judge.judge(&[instance(2, "a", "3", true)], |_| true).expect("started anew on its node");
        judge.judge(&[instance(3, "b", "3", true)], |_| true).expect_err("another's epoch");
        let old = instance(4, "c", "2", true);
        judge.judge(&[old], |_| true).expect_err("an older epoch");
        judge.judge(&[instance(5, "d", "1.1", true)], |_| true).expect("a forced one");
    }
}

//! How the guard freezes, thaws and kills: by control group where the engine could make one, else by
//! signals to the process group. It decides nothing.

use std::io;
use std::path::Path;

use rustix::process::Signal;

use super::wire::Protected;
use crate::engine::cgroup::Cgroup;
use crate::engine::group::{Sent, Stat, every_stat};
use crate::engine::{Cgroups, ProcessGroup, mark};

/// The means.
#[derive(Debug)]
pub(super) struct Hands {
    cgroups: Option<Cgroups>,
}

impl Hands {
    pub(super) fn new(folder: &Path) -> Self {
        Self { cgroups: Cgroups::open(folder) }
    }

    pub(super) fn name(&self) -> &'static str {
        self.cgroups.as_ref().map_or("signals", Cgroups::name)
    }

    fn cgroup(&self, group: &ProcessGroup) -> Option<Cgroup> {
        self.cgroups.as_ref()?.of(group)
    }

    pub(super) fn freeze(&self, group: &ProcessGroup) -> io::Result<Sent> {
        match self.cgroup(group) {
            Some(cgroup) => cgroup.freeze().map(|()| Sent::Delivered),
            None => group.signal(Signal::STOP),
        }
    }

    /// A control group is thawed in any case: what the engine holds, it holds by signals.
    pub(super) fn thaw(
        &self,
        group: &ProcessGroup,
        keep_frozen: bool,
        resume: bool,
    ) -> io::Result<Sent> {
        let cgroup = self.cgroup(group);
        if let Some(cgroup) = &cgroup {
            cgroup.thaw()?;
        }
        match cgroup {
            Some(_) if keep_frozen || !resume => Ok(Sent::Delivered),
            None if keep_frozen => Ok(Sent::NothingOfOurs),
            _ => group.signal(Signal::CONT),
        }
    }

    /// Whether its control group, if it has one, is frozen.
    pub(super) fn is_frozen(&self, group: &ProcessGroup) -> bool {
        self.cgroup(group).is_some_and(|cgroup| cgroup.is_frozen())
    }

    pub(super) fn kill(&self, group: &ProcessGroup) -> io::Result<Sent> {
        let sent = group.signal(Signal::KILL);
        match self.cgroup(group) {
            Some(cgroup) => cgroup.kill().map(|()| Sent::Delivered),
            None => sent,
        }
    }

    /// Whether its control group, if it has one, is empty; an empty one is taken away.
    pub(super) fn is_empty(&self, group: &ProcessGroup) -> bool {
        let Some(cgroup) = self.cgroup(group) else { return true };
        let empty = cgroup.is_empty();
        if empty {
            cgroup.remove();
        }
        empty
    }

    /// Those of these that are not seen to stand still. Without a control group a child that left
    /// the process group counts as well, and what cannot be read counts as moving.
    pub(super) fn moving(&self, of: &[Protected], folder: &Path) -> Vec<Protected> {
        let (enclosed, free): (Vec<_>, Vec<_>) =
            of.iter().copied().partition(|protected| self.cgroup(&protected.group).is_some());
        let thawed = |protected: &Protected| {
            self.cgroup(&protected.group).is_none_or(|cgroup| !cgroup.is_frozen())
        };
        let mut moving: Vec<_> = enclosed.into_iter().filter(thawed).collect();
        if !free.is_empty() {
            let all: Vec<Stat> = every_stat().map(Iterator::collect).unwrap_or_default();
            let still = |protected: &Protected| {
                let group = protected.group;
                let mut members = all.iter().filter(|stat| stat.group == group.leader).peekable();
                let stands = group.is_proven()
                    && members.peek().is_some()
                    && members.all(Stat::stands_still);
                stands && !strays(protected, &all, folder)
            };
            moving.extend(free.into_iter().filter(|protected| !still(protected)));
        }
        moving
    }

    pub(super) fn close(&self) {
        if let Some(cgroups) = &self.cgroups {
            cgroups.sweep();
        }
    }
}

/// Whether a process of this start that left its group runs.
fn strays(protected: &Protected, all: &[Stat], folder: &Path) -> bool {
    let Protected { group, epoch, .. } = protected;
    let outside = all.iter().filter(|stat| stat.group != group.leader && !stat.stands_still());
    outside
        .map(|stat| stat.pid)
        .any(|pid| pid > 1 && mark::is_of_start(pid, folder, group.service, *epoch))
}

#[cfg(test)]
mod tests;

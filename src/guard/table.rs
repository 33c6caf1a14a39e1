//! The guard's core: what is held to which deadline, and what is to be done when. Pure.
//!
//! It must never let a deadline fall back, nor spare a service whose deadline has passed.

use std::collections::BTreeMap;
use std::time::Duration;

use flocker_base::{BootTime, Incarnation, ServiceId};

use super::wire::{Extension, MOST_EXTENSIONS, Phase, Protected, Reply, Request};
use crate::engine::ProcessGroup;

/// Services held at once.
pub const MOST_PROTECTED: usize = 16_000;
/// A freeze is said again this often, should someone else thaw the service, and a kill too.
const AGAIN: Duration = Duration::from_millis(25);

/// What the shell is to do, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Stop the group. `first` is false for a repetition.
    Freeze {
        /// Whom.
        protected: Protected,
        /// Not a repetition.
        first: bool,
    },
    /// Let it run on.
    Thaw(Protected),
    /// Kill it, and tell the table once it is gone.
    Kill {
        /// Whom.
        protected: Protected,
        /// Not a repetition.
        first: bool,
    },
}

/// What happens to the table.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// Time has passed.
    Tick,
    /// An agent asks. The shell has checked that a group to protect stands, has told which groups
    /// of a service to release are gone, and passes the incarnation of the connection's hello.
    Asked(Incarnation, &'a Request),
    /// No process of this group is left.
    Gone(ProcessGroup),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    protected: Protected,
    phase: Phase,
    /// When to say the freeze or kill again.
    again: BootTime,
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    newest: Incarnation,
    held: BTreeMap<ProcessGroup, Held>,
}

impl Table {
    /// The table with this content, as a guard before this one left it.
    #[must_use]
    pub fn restored(newest: Incarnation, held: Vec<(Protected, Phase)>) -> Self {
        let held = held.into_iter().map(|(protected, phase)| {
            (protected.group, Held { protected, phase, again: BootTime::ZERO })
        });
        Self { newest, held: held.collect() }
    }

    /// The newest agent seen.
    #[must_use]
    pub const fn newest(&self) -> Incarnation {
        self.newest
    }

    /// Whether nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Everything that is held, by service.
    pub fn held(&self) -> impl Iterator<Item = (Protected, Phase)> {
        self.held.values().map(|h| (h.protected, h.phase))
    }

    /// Whether this group is held.
    #[must_use]
    pub fn holds(&self, group: &ProcessGroup) -> bool {
        self.held.contains_key(group)
    }

    /// When the next [`Event::Tick`] is due.
    #[must_use]
    pub fn next_deadline(&self) -> BootTime {
        let due = self.held.values().map(|h| match h.phase {
            Phase::Running => h.protected.freeze_at.min(h.protected.deadline),
            Phase::Frozen => h.again.min(h.protected.deadline),
            Phase::Killing => h.again,
        });
        due.min().unwrap_or(BootTime::NEVER)
    }

    /// Does what the event asks, as far as it may; adds what the shell is to do. Deadlines that
    /// have passed are acted on first, so that no event can come too late and still be obeyed.
    pub fn step(&mut self, now: BootTime, event: Event<'_>, actions: &mut Vec<Action>) -> Reply {
        self.tick(now, actions);
        match event {
            Event::Tick => Reply::Done,
            Event::Gone(group) => {
                self.held.remove(&group);
                Reply::Done
            }
            Event::Asked(from, request) => {
                let from =
                    if let Request::Hello(incarnation) = request { *incarnation } else { from };
                if from < self.newest {
                    return Reply::Refused(format!(
                        "a newer agent (start {}) has this node: start {} must end",
                        self.newest.0, from.0
                    ));
                }
                self.newest = from;
                let reply = self.asked(now, request, actions);
                self.tick(now, actions);
                reply
            }
        }
    }

    fn asked(&mut self, now: BootTime, request: &Request, actions: &mut Vec<Action>) -> Reply {
        match request {
            Request::Hello(_) | Request::Ping => Reply::Done,
            Request::List => Reply::Held(self.held().collect()),
            Request::Protect(protected) => self.protect(*protected),
            Request::Release(service) => match self.of_service(*service).next() {
                None => Reply::Done,
                Some(held) => Reply::Refused(format!(
                    "pid {} of it still runs, so it stays held: stop it first",
                    held.protected.group.leader
                )),
            },
            Request::Extend(extensions) if extensions.len() > MOST_EXTENSIONS => {
                Reply::Refused(format!("more than {MOST_EXTENSIONS} extensions at once"))
            }
            Request::Extend(extensions) => {
                let missed = extensions.iter().filter(|e| !self.extend(now, e, actions));
                Reply::Extended(missed.map(|e| e.service).collect())
            }
        }
    }

    fn protect(&mut self, wanted: Protected) -> Reply {
        if let Some(held) = self.held.get_mut(&wanted.group) {
            if held.phase == Phase::Killing {
                return Reply::Refused("its deadline has passed: it is being killed".to_owned());
            }
            if wanted.epoch < held.protected.epoch {
                return Reply::Refused(format!("it is held under epoch {}", held.protected.epoch));
            }
            let old = &mut held.protected;
            old.epoch = wanted.epoch;
            old.freeze_at = forward(old.freeze_at, wanted.freeze_at);
            old.deadline = forward(old.deadline, wanted.deadline);
            return Reply::Done;
        }
        if self.held.len() >= MOST_PROTECTED {
            return Reply::Refused(format!("{MOST_PROTECTED} services are held already"));
        }
        let held = Held { protected: wanted, phase: Phase::Running, again: BootTime::ZERO };
        self.held.insert(wanted.group, held);
        Reply::Done
    }

    /// Whether anything was extended.
    fn extend(&mut self, now: BootTime, wanted: &Extension, actions: &mut Vec<Action>) -> bool {
        let mut any = false;
        for held in self.of_service(wanted.service) {
            if held.phase == Phase::Killing || held.protected.epoch != wanted.epoch {
                continue;
            }
            any = true;
            let old = &mut held.protected;
            old.freeze_at = old.freeze_at.max(wanted.freeze_at);
            old.deadline = old.deadline.max(wanted.deadline);
            if held.phase == Phase::Frozen && now < old.freeze_at {
                held.phase = Phase::Running;
                if !wanted.keep_frozen {
                    actions.push(Action::Thaw(held.protected));
                }
            }
        }
        any
    }

    fn of_service(&mut self, service: ServiceId) -> impl Iterator<Item = &mut Held> {
        let first = ProcessGroup { service, leader: 0, start_ticks: 0 };
        let last = ProcessGroup { service, leader: u32::MAX, start_ticks: u64::MAX };
        self.held.range_mut(first..=last).map(|(_, held)| held)
    }

    fn tick(&mut self, now: BootTime, actions: &mut Vec<Action>) {
        for held in self.held.values_mut() {
            let protected = held.protected;
            let due = if now >= protected.deadline || held.phase == Phase::Killing {
                Phase::Killing
            } else if now >= protected.freeze_at || held.phase == Phase::Frozen {
                Phase::Frozen
            } else {
                continue;
            };
            let first = held.phase != due;
            if !first && now < held.again {
                continue;
            }
            held.phase = due;
            held.again = now + AGAIN;
            actions.push(match due {
                Phase::Killing => Action::Kill { protected, first },
                _ => Action::Freeze { protected, first },
            });
        }
    }
}

fn forward(old: BootTime, new: BootTime) -> BootTime {
    if old == BootTime::NEVER { new } else { old.max(new) }
}

#[cfg(test)]
mod tests;

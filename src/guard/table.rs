//! The guard's core: what is held to which deadline, and what is to be done when. Pure.
//!
//! It must never let a deadline fall back, nor let a service whose deadline has passed run: that is
//! killed, or, if it was frozen in time and is seen to stand still, kept so for a while. Then it goes
//! on if the same lease is renewed after all.

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
        /// Its deadline has passed: the shell looks whether all of it stands still, and says
        /// [`Event::Moves`] if not.
        overdue: bool,
    },
    /// Let it run on.
    Thaw {
        /// Whom.
        protected: Protected,
        /// The engine holds it for a reason of its own.
        keep_frozen: bool,
        /// It was found stopped, by whom nobody knows.
        resume: bool,
    },
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
    /// Something of this group was seen running, or not seen standing still.
    Moves(ProcessGroup),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    protected: Protected,
    phase: Phase,
    /// When to say the freeze or kill again.
    again: BootTime,
    /// Since when it is to stand still.
    frozen_at: BootTime,
    /// Its deadline has passed and it was to be looked at.
    overdue: bool,
    /// Since when it has been killed, as far as this guard knows.
    killing_since: Option<BootTime>,
}

impl Held {
    const fn new(protected: Protected, phase: Phase) -> Self {
        let (again, frozen_at) = (BootTime::ZERO, BootTime::ZERO);
        Self { protected, phase, again, frozen_at, overdue: false, killing_since: None }
    }
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    newest: Incarnation,
    held: BTreeMap<ProcessGroup, Held>,
    /// How long a service may stand frozen, its deadline passed. Nobody else runs it until its
    /// lease's end, and it runs no more itself; if the same lease is renewed it goes on.
    frozen_limit: Duration,
}

impl Table {
    /// The table with this content, as a guard before this one left it.
    #[must_use]
    pub fn restored(newest: Incarnation, held: Vec<(Protected, Phase)>) -> Self {
        let held = held
            .into_iter()
            .map(|(protected, phase)| (protected.group, Held::new(protected, phase)));
        Self { newest, held: held.collect(), frozen_limit: Duration::ZERO }
    }

    /// With this limit to how long a service may stand frozen; without one it is killed at its
    /// deadline.
    #[must_use]
    pub const fn with_frozen_limit(mut self, limit: Duration) -> Self {
        self.frozen_limit = limit;
        self
    }

    /// Notes those that are found frozen: the guard before may have died before it could.
    pub fn note_frozen(&mut self, is_frozen: impl Fn(&ProcessGroup) -> bool) {
        let running = self.held.iter_mut().filter(|(_, held)| held.phase == Phase::Running);
        for (group, held) in running {
            if is_frozen(group) {
                held.phase = Phase::Frozen;
            }
        }
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

    /// Since when something has been killed that is still there.
    #[must_use]
    pub fn killing_since(&self) -> Option<BootTime> {
        self.held.values().filter_map(|held| held.killing_since).min()
    }

    /// When the next [`Event::Tick`] is due.
    #[must_use]
    pub fn next_deadline(&self) -> BootTime {
        let due = self.held.values().map(|h| match h.phase {
            Phase::Running => h.protected.freeze_at.min(h.protected.deadline),
            Phase::Frozen if h.overdue => h.again,
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
            Event::Moves(group) => {
                if let Some(held) = self.held.get_mut(&group).filter(|held| held.overdue)
                    && held.phase == Phase::Frozen
                {
                    held.kill(now, actions);
                }
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
            Request::Hello(_) | Request::Ping | Request::Watch(_) => Reply::Done,
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
        self.held.insert(wanted.group, Held::new(wanted, Phase::Running));
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
            if now < old.freeze_at && (held.phase == Phase::Frozen || wanted.resume) {
                held.phase = Phase::Running;
                held.overdue = false;
                let Extension { keep_frozen, resume, .. } = *wanted;
                actions.push(Action::Thaw { protected: held.protected, keep_frozen, resume });
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
        let limit = self.frozen_limit;
        for held in self.held.values_mut() {
            held.tick(now, limit, actions);
        }
    }
}

impl Held {
    fn tick(&mut self, now: BootTime, frozen_limit: Duration, actions: &mut Vec<Action>) {
        let protected = self.protected;
        let frozen = self.phase == Phase::Frozen;
        // What was not frozen in time must not run a moment longer.
        let spared = frozen && now < self.frozen_at + frozen_limit;
        if self.phase == Phase::Killing || (now >= protected.deadline && !spared) {
            self.kill(now, actions);
        } else if frozen || now >= protected.freeze_at {
            if !frozen {
                self.frozen_at = now;
            }
            // The deadline itself is a moment to look, whenever the last look was.
            let passes = now >= protected.deadline && !self.overdue;
            if !frozen || passes || now >= self.again {
                self.phase = Phase::Frozen;
                self.overdue = now >= protected.deadline;
                self.again = now + AGAIN;
                let (first, overdue) = (!frozen, self.overdue);
                actions.push(Action::Freeze { protected, first, overdue });
            }
        }
    }

    fn kill(&mut self, now: BootTime, actions: &mut Vec<Action>) {
        let first = self.phase != Phase::Killing;
        if first || now >= self.again {
            self.phase = Phase::Killing;
            self.killing_since.get_or_insert(now);
            self.again = now + AGAIN;
            actions.push(Action::Kill { protected: self.protected, first });
        }
    }
}

fn forward(old: BootTime, new: BootTime) -> BootTime {
    if old == BootTime::NEVER { new } else { old.max(new) }
}

#[cfg(test)]
mod tests;

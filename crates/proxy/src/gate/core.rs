//! The gate's decisions for one service: who goes in, who waits, who is refused. Pure: it reads no
//! clock, wakes no one and knows nothing of sockets; `step` turns an event into commands.
//!
//! All held requests wait for the same thing: that the gate opens (not on hold, a place known and
//! not found unreachable). So whenever the gate is open nobody is held, and a place counts as
//! unreachable only while someone is held: together they make a lost wake-up impossible.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flocker_base::BootTime;

/// One request at the gate. Later requests have higher tickets and are served later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Ticket(pub(crate) u64);

/// Someone who waits for the last request in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Waiter(pub(crate) u64);

/// Which place, counted: it rises with each change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(pub(crate) u64);

/// How much may be held for one service.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Most requests held at once.
    pub(crate) max_held: usize,
    /// Most bytes that held requests may occupy.
    pub(crate) max_held_bytes: u64,
    /// Longest that one request is held, all its waits from the first on together.
    pub(crate) max_hold: Duration,
}

/// What happens at the gate. `P` is a place that can be tried.
#[derive(Clone, Debug)]
pub(crate) enum Event<P> {
    /// A request comes.
    Arrive { ticket: Ticket, bytes: u64 },
    /// An admitted request found the place of that version unreachable, and nothing of it was
    /// sent. It is no longer in flight and waits again; `since` is when it first waited.
    Unsent { ticket: Ticket, bytes: u64, version: Version, since: Option<BootTime> },
    /// The client of a held request went away.
    Abandon { ticket: Ticket },
    /// An admitted request ended.
    Finish,
    /// Hold what comes.
    Hold,
    /// Hold no longer.
    Release,
    /// The service is there now; `None`: unknown where.
    Place(Option<P>),
    /// The service is no more.
    Remove,
    /// The place of that version, found unreachable, answers again.
    Revived { version: Version },
    /// Time has passed.
    Elapsed,
    /// Someone waits until nothing is in flight.
    Drain { waiter: Waiter },
    /// They wait no longer.
    DrainGivenUp { waiter: Waiter },
}

/// Why a request is not held (any longer).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// As many requests wait as may.
    TooMany,
    /// The waiting requests occupy as many bytes as they may.
    TooManyBytes,
    /// It waited as long as it may.
    TooLong,
    /// The service was removed.
    Removed,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command<P> {
    /// The request goes to this place; it is in flight from now on. `since`: when it first waited.
    Admit { ticket: Ticket, place: P, version: Version, since: Option<BootTime> },
    /// The request is answered with an error.
    Refuse { ticket: Ticket, why: Refusal },
    /// Nothing is in flight.
    Drained { waiter: Waiter },
    /// Find out when this place can be reached, then say `Revived`. The attempt counts from 0 with
    /// each place.
    Probe { place: P, version: Version, attempt: u32 },
}

#[derive(Clone, Copy, Debug)]
struct Held {
    bytes: u64,
    since: BootTime,
    deadline: BootTime,
}

/// The state of one service's gate.
#[derive(Debug)]
pub(crate) struct GateCore<P> {
    limits: Limits,
    on_hold: bool,
    removed: bool,
    place: Option<P>,
    version: Version,
    /// The current place could not be reached and a probe is on its way.
    unreachable: bool,
    attempt: u32,
    held: BTreeMap<Ticket, Held>,
    deadlines: BTreeSet<(BootTime, Ticket)>,
    held_bytes: u64,
    in_flight: usize,
    waiters: BTreeSet<Waiter>,
    longest_hold: Duration,
}

impl<P: Clone + PartialEq> GateCore<P> {
    /// A gate that is not on hold, with the place unknown.
    pub(crate) const fn new(limits: Limits) -> Self {
        Self {
            limits,
            on_hold: false,
            removed: false,
            place: None,
            version: Version(0),
            unreachable: false,
            attempt: 0,
            held: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            held_bytes: 0,
            in_flight: 0,
            waiters: BTreeSet::new(),
            longest_hold: Duration::ZERO,
        }
    }

    /// Takes one event and appends what is to be done to `out`.
    pub(crate) fn step(&mut self, now: BootTime, event: Event<P>, out: &mut Vec<Command<P>>) {
        match event {
            Event::Arrive { ticket, bytes } => self.arrive(now, ticket, bytes, None, out),
            Event::Unsent { ticket, bytes, version, since } => {
                self.leave_flight(out);
                let found = version == self.version && self.is_open();
                self.unreachable |= found;
                self.arrive(now, ticket, bytes, since, out);
                if found && self.held.is_empty() {
                    self.unreachable = false;
                } else if found {
                    self.probe(out);
                }
            }
            Event::Abandon { ticket } => {
                if let Some(held) = self.take(ticket) {
                    self.note_hold(now, held.since);
                }
            }
            Event::Finish => self.leave_flight(out),
            Event::Hold => self.on_hold = true,
            Event::Release => {
                self.on_hold = false;
                self.admit_all(now, out);
            }
            Event::Place(place) => {
                self.removed = false;
                self.set_place(now, place, out);
            }
            Event::Remove => {
                self.removed = true;
                self.set_place(now, None, out);
                while let Some((&ticket, _)) = self.held.first_key_value() {
                    self.refuse_held(now, ticket, Refusal::Removed, out);
                }
            }
            Event::Revived { version } => {
                if version == self.version && self.unreachable {
                    self.unreachable = false;
                    self.admit_all(now, out);
                }
            }
            Event::Elapsed => {
                while let Some(&(deadline, ticket)) = self.deadlines.first() {
                    if deadline > now {
                        break;
                    }
                    self.refuse_held(now, ticket, Refusal::TooLong, out);
                }
            }
            Event::Drain { waiter } => {
                if self.in_flight == 0 {
                    out.push(Command::Drained { waiter });
                } else {
                    self.waiters.insert(waiter);
                }
            }
            Event::DrainGivenUp { waiter } => {
                self.waiters.remove(&waiter);
            }
        }
    }

    /// Until when this request may be held, if it is.
    pub(crate) fn deadline(&self, ticket: Ticket) -> Option<BootTime> {
        self.held.get(&ticket).map(|held| held.deadline)
    }

    /// When `Elapsed` is next due.
    #[cfg(test)]
    pub(crate) fn next_deadline(&self) -> Option<BootTime> {
        self.deadlines.first().map(|&(deadline, _)| deadline)
    }

    /// Requests held now.
    pub(crate) fn held(&self) -> usize {
        self.held.len()
    }

    /// Bytes that the held requests occupy.
    #[cfg(test)]
    pub(crate) const fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// Requests in flight now.
    pub(crate) const fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// The longest that a request has been held, those still held included.
    pub(crate) fn longest_hold(&self, now: BootTime) -> Duration {
        let oldest = self.deadlines.first().and_then(|(_, ticket)| self.held.get(ticket));
        oldest.map_or(self.longest_hold, |held| self.longest_hold.max(now - held.since))
    }

    /// Nothing here is worth remembering once the service has left the route table.
    pub(crate) fn is_forgettable(&self) -> bool {
        !self.on_hold && self.held.is_empty() && self.in_flight == 0 && self.waiters.is_empty()
    }

    /// Whether requests still wait for what this probe finds out.
    pub(crate) fn wants_probe(&self, version: Version, attempt: u32) -> bool {
        self.unreachable && version == self.version && self.attempt == attempt.saturating_add(1)
    }

    const fn is_open(&self) -> bool {
        !self.on_hold && !self.unreachable && self.place.is_some()
    }

    fn arrive(
        &mut self,
        now: BootTime,
        ticket: Ticket,
        bytes: u64,
        since: Option<BootTime>,
        out: &mut Vec<Command<P>>,
    ) {
        if self.removed {
            out.push(Command::Refuse { ticket, why: Refusal::Removed });
            return;
        }
        if let (true, Some(place)) = (self.is_open(), &self.place) {
            self.in_flight += 1;
            let place = place.clone();
            out.push(Command::Admit { ticket, place, version: self.version, since });
            return;
        }
        let first = since.unwrap_or(now);
        let deadline = first + self.limits.max_hold;
        let why = if self.held.len() >= self.limits.max_held {
            Refusal::TooMany
        } else if self.held_bytes.saturating_add(bytes) > self.limits.max_held_bytes {
            Refusal::TooManyBytes
        } else if deadline <= now {
            Refusal::TooLong
        } else {
            self.held_bytes += bytes;
            self.held.insert(ticket, Held { bytes, since: first, deadline });
            self.deadlines.insert((deadline, ticket));
            return;
        };
        out.push(Command::Refuse { ticket, why });
    }

    fn set_place(&mut self, now: BootTime, place: Option<P>, out: &mut Vec<Command<P>>) {
        if self.place == place {
            return;
        }
        self.place = place;
        self.version = Version(self.version.0 + 1);
        self.unreachable = false;
        self.attempt = 0;
        self.admit_all(now, out);
    }

    fn probe(&mut self, out: &mut Vec<Command<P>>) {
        if let Some(place) = &self.place {
            let (version, attempt) = (self.version, self.attempt);
            out.push(Command::Probe { place: place.clone(), version, attempt });
            self.attempt = self.attempt.saturating_add(1);
        }
    }

    fn admit_all(&mut self, now: BootTime, out: &mut Vec<Command<P>>) {
        if !self.is_open() {
            return;
        }
        while let Some((&ticket, _)) = self.held.first_key_value() {
            let (Some(held), Some(place)) = (self.take(ticket), self.place.clone()) else { return };
            self.note_hold(now, held.since);
            self.in_flight += 1;
            let (version, since) = (self.version, Some(held.since));
            out.push(Command::Admit { ticket, place, version, since });
        }
    }

    fn refuse_held(
        &mut self,
        now: BootTime,
        ticket: Ticket,
        why: Refusal,
        out: &mut Vec<Command<P>>,
    ) {
        if let Some(held) = self.take(ticket) {
            self.note_hold(now, held.since);
            out.push(Command::Refuse { ticket, why });
        }
    }

    fn take(&mut self, ticket: Ticket) -> Option<Held> {
        let held = self.held.remove(&ticket)?;
        self.deadlines.remove(&(held.deadline, ticket));
        self.held_bytes = self.held_bytes.saturating_sub(held.bytes);
        // With nobody waiting nobody probes either: the next to come finds out for itself.
        self.unreachable &= !self.held.is_empty();
        Some(held)
    }

    fn note_hold(&mut self, now: BootTime, since: BootTime) {
        self.longest_hold = self.longest_hold.max(now - since);
    }

    fn leave_flight(&mut self, out: &mut Vec<Command<P>>) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if self.in_flight == 0 {
            while let Some(waiter) = self.waiters.pop_first() {
                out.push(Command::Drained { waiter });
            }
        }
    }
}

#[cfg(test)]
mod tests;

//! The gate's shell: it feeds events to the core under a short lock, wakes those admitted, refused
//! or drained, and keeps the deadlines of those held. It decides nothing itself.

pub(crate) mod core;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flocker_base::{BootTime, Clock};
use tokio::sync::oneshot;

use self::core::{Command, Event, GateCore, Limits, Refusal, Ticket, Version, Waiter};
use crate::pool::Route;

/// What draining a service came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Requests still in flight at the deadline; 0 if all finished.
    pub in_flight_left: usize,
    /// Tunnels (WebSockets) that were cut: they have no end of their own to wait for.
    pub tunnels_cut: usize,
}

/// The right to send one request to one place. It counts as in flight until dropped.
#[derive(Debug)]
pub(crate) struct Pass {
    gate: Arc<Gate>,
    route: Arc<Route>,
    version: Version,
    ticket: Ticket,
    since: Option<BootTime>,
    ended: bool,
}

/// A place to try again once in a while, until it answers.
#[derive(Debug)]
pub(crate) struct Probe {
    pub(crate) route: Arc<Route>,
    version: Version,
    attempt: u32,
}

/// What an event led to besides waking people.
type Probes = Option<Probe>;

/// The gate's answer to a request that came back: a verdict, or the wait for one.
#[derive(Debug)]
pub(crate) enum Entry {
    Now(Result<Pass, Refusal>),
    Held(Held),
}

/// A place in the queue; dropped, it is given up.
#[derive(Debug)]
pub(crate) struct Held {
    gate: Arc<Gate>,
    ticket: Ticket,
    waiting: oneshot::Receiver<Verdict>,
    deadline: BootTime,
}

/// One service's gate.
#[derive(Debug)]
pub(crate) struct Gate {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

/// A snapshot of the counters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts {
    pub(crate) held: usize,
    pub(crate) in_flight: usize,
    pub(crate) longest_hold: Duration,
}

#[derive(Debug)]
struct State {
    core: GateCore<Arc<Route>>,
    waiting: HashMap<Ticket, oneshot::Sender<Verdict>>,
    drains: HashMap<Waiter, oneshot::Sender<()>>,
    /// Commands of the step at hand; kept to reuse its memory.
    commands: Vec<Command<Arc<Route>>>,
    next: u64,
}

#[derive(Debug)]
pub(crate) enum Verdict {
    Admitted { route: Arc<Route>, version: Version, since: Option<BootTime> },
    Refused(Refusal),
}

impl Gate {
    pub(crate) fn new(limits: Limits, clock: Arc<dyn Clock>) -> Arc<Self> {
        let state = State {
            core: GateCore::new(limits),
            waiting: HashMap::new(),
            drains: HashMap::new(),
            commands: Vec::new(),
            next: 0,
        };
        Arc::new(Self { clock, state: Mutex::new(state) })
    }

    /// Lets a request of that many bytes in, now or when the gate opens. Cancel safe: a request
    /// that no longer waits is forgotten.
    pub(crate) async fn enter(self: &Arc<Self>, bytes: u64) -> Result<Pass, Refusal> {
        let now = self.clock.boot();
        let held = {
            let mut state = self.lock();
            let ticket = state.ticket();
            state.core_step(now, Event::Arrive { ticket, bytes });
            match state.own_verdict(ticket) {
                Some(verdict) => return self.pass(ticket, verdict),
                None => self.wait(&mut state, ticket, now),
            }
        };
        held.verdict().await
    }

    /// Takes back a pass whose request could not be sent, nor any of it, and waits for another.
    /// The second part is a place that must be probed, if any. Cancel safe as `enter`.
    pub(crate) fn enter_again(self: &Arc<Self>, mut pass: Pass, bytes: u64) -> (Entry, Probes) {
        pass.ended = true;
        let now = self.clock.boot();
        let (ticket, version, since) = (pass.ticket, pass.version, pass.since);
        let mut state = self.lock();
        state.core_step(now, Event::Unsent { ticket, bytes, version, since });
        let entry = match state.own_verdict(ticket) {
            Some(verdict) => Entry::Now(self.pass(ticket, verdict)),
            None => Entry::Held(self.wait(&mut state, ticket, now)),
        };
        let probe = state.run();
        (entry, probe)
    }

    /// Holds what comes from now on.
    pub(crate) fn hold(&self) {
        self.event(Event::Hold);
    }

    /// Lets in what is held, if the place is known.
    pub(crate) fn release(&self) {
        self.event(Event::Release);
    }

    /// Says where the service is.
    pub(crate) fn place(&self, route: Option<Arc<Route>>) {
        self.event(Event::Place(route));
    }

    /// Refuses everything: the service is no more.
    pub(crate) fn remove(&self) {
        self.event(Event::Remove);
    }

    /// Says that the probed place answers again.
    pub(crate) fn revived(&self, probe: &Probe) {
        self.event(Event::Revived { version: probe.version });
    }

    /// Whether someone still waits for this probe.
    pub(crate) fn wants(&self, probe: &Probe) -> bool {
        self.lock().core.wants_probe(probe.version, probe.attempt)
    }

    /// Waits until nothing is in flight, at most that long. How many still are. Cancel safe.
    pub(crate) async fn drain(&self, deadline: Duration) -> usize {
        let (sender, drained) = oneshot::channel();
        let waiter = {
            let mut state = self.lock();
            let waiter = Waiter(state.ticket().0);
            state.drains.insert(waiter, sender);
            state.core_step(BootTime::ZERO, Event::Drain { waiter });
            state.run();
            waiter
        };
        let guard = DrainGuard { gate: self, waiter };
        let in_time = tokio::time::timeout(deadline, drained).await.is_ok();
        drop(guard);
        if in_time { 0 } else { self.lock().core.in_flight() }
    }

    pub(crate) fn counts(&self) -> Counts {
        let now = self.clock.boot();
        let state = self.lock();
        Counts {
            held: state.core.held(),
            in_flight: state.core.in_flight(),
            longest_hold: state.core.longest_hold(now),
        }
    }

    pub(crate) fn is_forgettable(&self) -> bool {
        self.lock().core.is_forgettable()
    }

    fn event(&self, event: Event<Arc<Route>>) {
        let now = self.clock.boot();
        let mut state = self.lock();
        state.core_step(now, event);
        state.run();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pass(self: &Arc<Self>, ticket: Ticket, verdict: Verdict) -> Result<Pass, Refusal> {
        match verdict {
            Verdict::Refused(why) => Err(why),
            Verdict::Admitted { route, version, since } => {
                let gate = Arc::clone(self);
                Ok(Pass { gate, route, version, ticket, since, ended: false })
            }
        }
    }

    fn wait(self: &Arc<Self>, state: &mut State, ticket: Ticket, now: BootTime) -> Held {
        let (sender, waiting) = oneshot::channel();
        state.waiting.insert(ticket, sender);
        let deadline = state.core.deadline(ticket).unwrap_or(now);
        Held { gate: Arc::clone(self), ticket, waiting, deadline }
    }
}

impl Entry {
    /// The pass, when the gate opens.
    pub(crate) async fn verdict(self) -> Result<Pass, Refusal> {
        match self {
            Self::Now(verdict) => verdict,
            Self::Held(held) => held.verdict().await,
        }
    }
}

impl Held {
    async fn verdict(mut self) -> Result<Pass, Refusal> {
        let clock = Arc::clone(&self.gate.clock);
        loop {
            let left = self.deadline - clock.boot();
            tokio::select! {
                biased;
                verdict = &mut self.waiting => {
                    // The sender is dropped unused only if the gate is: nobody admits anyone.
                    let Ok(verdict) = verdict else { return Err(Refusal::Removed) };
                    return self.gate.pass(self.ticket, verdict);
                }
                () = tokio::time::sleep(left) => {
                    let now = clock.boot().max(self.deadline);
                    let mut state = self.gate.lock();
                    state.core_step(now, Event::Elapsed);
                    state.run();
                }
            }
        }
    }
}

impl State {
    fn ticket(&mut self) -> Ticket {
        self.next += 1;
        Ticket(self.next)
    }

    fn core_step(&mut self, now: BootTime, event: Event<Arc<Route>>) {
        self.core.step(now, event, &mut self.commands);
    }

    /// The verdict on a ticket that the step at hand came to, taken out of the commands.
    fn own_verdict(&mut self, own: Ticket) -> Option<Verdict> {
        let at = self.commands.iter().position(|command| match command {
            Command::Admit { ticket, .. } | Command::Refuse { ticket, .. } => *ticket == own,
            _ => false,
        })?;
        match self.commands.swap_remove(at) {
            Command::Admit { place, version, since, .. } => {
                Some(Verdict::Admitted { route: place, version, since })
            }
            Command::Refuse { why, .. } => Some(Verdict::Refused(why)),
            _ => None,
        }
    }

    /// Runs the commands of the step at hand.
    fn run(&mut self) -> Probes {
        let mut probe = None;
        let mut commands = std::mem::take(&mut self.commands);
        for command in commands.drain(..) {
            match command {
                Command::Admit { ticket, place: route, version, since } => {
                    let verdict = Verdict::Admitted { route, version, since };
                    let sent = self.waiting.remove(&ticket).map(|to| to.send(verdict));
                    if !matches!(sent, Some(Ok(()))) {
                        // Its client went away at this very moment: it never was in flight.
                        self.core.step(BootTime::ZERO, Event::Finish, &mut self.commands);
                    }
                }
                Command::Refuse { ticket, why } => {
                    if let Some(to) = self.waiting.remove(&ticket) {
                        // A client that went away needs no answer.
                        let _ = to.send(Verdict::Refused(why));
                    }
                }
                Command::Drained { waiter } => {
                    if let Some(to) = self.drains.remove(&waiter) {
                        // Whoever gave up waiting needs no answer.
                        let _ = to.send(());
                    }
                }
                Command::Probe { place, version, attempt } => {
                    probe = Some(Probe { route: place, version, attempt });
                }
            }
        }
        if self.commands.is_empty() {
            self.commands = commands;
            probe
        } else {
            let more = self.run();
            probe.or(more)
        }
    }
}

impl Pass {
    /// Where the request may be sent.
    pub(crate) const fn route(&self) -> &Arc<Route> {
        &self.route
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if !self.ended {
            let mut state = self.gate.lock();
            state.core_step(BootTime::ZERO, Event::Finish);
            state.run();
        }
    }
}

impl Probe {
    /// How often this place was probed before.
    pub(crate) const fn attempt(&self) -> u32 {
        self.attempt
    }
}

impl Drop for Held {
    /// Takes a held request out when its client goes away.
    fn drop(&mut self) {
        let now = self.gate.clock.boot();
        let mut state = self.gate.lock();
        if state.waiting.remove(&self.ticket).is_some() {
            state.core_step(now, Event::Abandon { ticket: self.ticket });
        } else if let Ok(Verdict::Admitted { .. }) = self.waiting.try_recv() {
            // Admitted, but nobody came for the pass.
            state.core_step(now, Event::Finish);
        }
        state.run();
    }
}

struct DrainGuard<'a> {
    gate: &'a Gate,
    waiter: Waiter,
}

impl Drop for DrainGuard<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        state.drains.remove(&self.waiter);
        state.core_step(BootTime::ZERO, Event::DrainGivenUp { waiter: self.waiter });
    }
}

#[cfg(test)]
mod tests;

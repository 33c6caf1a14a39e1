//! The deadlines of one client connection, without a timer per request: the parts of the connection
//! note what they wait for and since when, and one timer looks at the notes. It never closes
//! anything itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use flocker_base::{BootTime, Clock};

use crate::config::ProxyConfig;

/// What the connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    /// A request head is coming.
    Head = 0,
    /// Nothing; it is kept open.
    Idle = 1,
    /// The request waits at the gate, or for a connection: these have deadlines of their own.
    Held = 2,
    /// The upstream has the request and has not begun its response.
    Waiting = 3,
    /// The response is being passed on.
    Sending = 4,
}

/// What went past its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Expired {
    /// The upstream has not begun its response.
    Response = 1,
    /// The client sends nothing of the body.
    Body = 2,
}

/// What to do with the connection now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// Look again after this long.
    Later(Duration),
    /// Nothing came for too long: close.
    Idle,
    /// The head did not come in time.
    Head,
    /// The exchange has been told that it expired: poll it.
    Tell,
    /// Neither side may be waited for any longer: cut.
    Cut,
}

/// The deadlines that apply to a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    head: Duration,
    idle: Duration,
    body_stall: Duration,
    write_stall: Duration,
    response_idle: Duration,
    response_local: Duration,
    response_forwarded: Duration,
}

/// The notes. Written and read by one task; atomics only because its parts are shared.
#[derive(Debug)]
pub(crate) struct Watch {
    clock: Arc<dyn Clock>,
    limits: Limits,
    phase: AtomicU8,
    forwarded: AtomicU8,
    /// Milliseconds since boot at which the phase began or last made progress.
    since: AtomicU64,
    /// Since when a write to the client has been blocked; 0: it is not.
    write_blocked: AtomicU64,
    /// Since when the client's body has been awaited; 0: it is not.
    body_awaited: AtomicU64,
    expired: AtomicU8,
}

impl Limits {
    pub(crate) const fn client(config: &ProxyConfig, forwarded: Duration) -> Self {
        Self {
            head: config.header_timeout,
            idle: config.idle_timeout,
            body_stall: config.body_stall,
            write_stall: config.write_stall,
            response_idle: config.response_idle,
            response_local: config.response_timeout,
            response_forwarded: forwarded,
        }
    }

    /// A peer keeps a stream idle for `peer_idle` and is the one to close it.
    pub(crate) fn peer(config: &ProxyConfig, forwarded: Duration) -> Self {
        Self { idle: config.peer_idle * 2, ..Self::client(config, forwarded) }
    }
}

impl Watch {
    pub(crate) fn new(clock: Arc<dyn Clock>, limits: Limits, first: Phase) -> Self {
        let now = millis(clock.boot());
        Self {
            clock,
            limits,
            phase: AtomicU8::new(first as u8),
            forwarded: AtomicU8::new(0),
            since: AtomicU64::new(now),
            write_blocked: AtomicU64::new(0),
            body_awaited: AtomicU64::new(0),
            expired: AtomicU8::new(0),
        }
    }

    /// The connection does something else from now on.
    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Relaxed);
        self.expired.store(0, Relaxed);
        self.body_awaited.store(0, Relaxed);
        self.progress();
    }

    /// The upstream has the request.
    pub(crate) fn enter_waiting(&self, forwarded: bool) {
        self.forwarded.store(u8::from(forwarded), Relaxed);
        self.enter(Phase::Waiting);
    }

    /// Bytes came from the client.
    pub(crate) fn received(&self) {
        if self.phase.load(Relaxed) == Phase::Idle as u8 {
            self.enter(Phase::Head);
        }
    }

    /// The exchange got on.
    pub(crate) fn progress(&self) {
        self.since.store(self.now(), Relaxed);
    }

    /// A write to the client did, or did not, take anything.
    pub(crate) fn write_blocked(&self, blocked: bool) {
        self.note(&self.write_blocked, blocked);
    }

    /// The client's body is, or is no longer, awaited.
    pub(crate) fn body_awaited(&self, awaited: bool) {
        if self.note(&self.body_awaited, awaited) && !awaited {
            self.progress();
        }
    }

    /// What the exchange must answer for, if anything.
    pub(crate) fn expired(&self) -> Option<Expired> {
        match self.expired.load(Relaxed) {
            1 => Some(Expired::Response),
            2 => Some(Expired::Body),
            _ => None,
        }
    }

    /// How long until the first look.
    pub(crate) const fn first_check(&self) -> Duration {
        self.limits.head
    }

    /// Looks at the notes.
    pub(crate) fn check(&self) -> Check {
        let now = self.now();
        let since = self.since.load(Relaxed);
        let awaited = self.body_awaited.load(Relaxed);
        let blocked = self.write_blocked.load(Relaxed);
        let phase = self.phase.load(Relaxed);
        if phase != Phase::Head as u8 && blocked != 0 {
            return self.due(now, blocked, self.limits.write_stall, || Check::Cut);
        }
        if phase == Phase::Head as u8 {
            self.due(now, since, self.limits.head, || Check::Head)
        } else if phase == Phase::Idle as u8 {
            self.due(now, since, self.limits.idle, || Check::Idle)
        } else if phase == Phase::Waiting as u8 && awaited != 0 {
            self.due(now, awaited, self.limits.body_stall, || self.tell(Expired::Body))
        } else if phase == Phase::Waiting as u8 {
            let limit = match self.forwarded.load(Relaxed) {
                0 => self.limits.response_local,
                _ => self.limits.response_forwarded,
            };
            self.due(now, since, limit, || self.tell(Expired::Response))
        } else if phase == Phase::Sending as u8 {
            self.due(now, since, self.limits.response_idle, || Check::Cut)
        } else {
            Check::Later(self.limits.head)
        }
    }

    fn due(&self, now: u64, since: u64, limit: Duration, late: impl Fn() -> Check) -> Check {
        let past = Duration::from_millis(now.saturating_sub(since));
        if past >= limit {
            return late();
        }
        // What may begin meanwhile and be due sooner is noticed in time if no look is later than
        // the shortest limit.
        let shortest = self.limits.head.min(self.limits.body_stall).min(self.limits.write_stall);
        Check::Later((limit - past).min(shortest) + Duration::from_millis(1))
    }

    fn tell(&self, what: Expired) -> Check {
        if self.expired.swap(what as u8, Relaxed) == what as u8 {
            // Told before and still there.
            return Check::Cut;
        }
        Check::Tell
    }

    /// Whether the note changed.
    fn note(&self, note: &AtomicU64, on: bool) -> bool {
        let was = note.load(Relaxed);
        if (was != 0) == on {
            return false;
        }
        note.store(if on { self.now().max(1) } else { 0 }, Relaxed);
        true
    }

    fn now(&self) -> u64 {
        millis(self.clock.boot())
    }
}

fn millis(time: BootTime) -> u64 {
    u64::try_from(time.since_boot().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;

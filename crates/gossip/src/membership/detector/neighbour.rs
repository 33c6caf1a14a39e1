//! One neighbour, as this node's pings and their answers show it. It convicts no one.

use std::collections::BTreeSet;
use std::time::Duration;

use flocker_base::{BootTime, StoreId};

/// The first and the longest pause between two exchanges of news with one neighbour that did not
/// make the two agree.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A neighbour.
#[derive(Clone, Debug)]
pub(super) struct Neighbour {
    /// When it is pinged next, unless it is heard before.
    pub(super) ping_at: BootTime,
    /// When it was last heard, or became a neighbour.
    pub(super) heard: BootTime,
    /// Since when it owes an answer.
    pub(super) waiting: Option<Waiting>,
    exchange_at: BootTime,
    exchange_pause: Duration,
}

/// Pings without an answer.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    /// When the first was sent.
    pub(super) since: BootTime,
    /// When the next try is due.
    pub(super) deadline: BootTime,
    /// How many were not answered in time.
    pub(super) misses: u8,
    /// Its host says that nothing listens on its port.
    pub(super) refused: bool,
    /// Its other neighbours that do not hear it either.
    pub(super) agreeing: BTreeSet<StoreId>,
}

impl Neighbour {
    pub(super) fn new(now: BootTime, ping_at: BootTime) -> Self {
        Self { ping_at, heard: now, waiting: None, exchange_at: now, exchange_pause: FIRST_PAUSE }
    }

    /// When something is due.
    pub(super) fn due(&self) -> BootTime {
        self.waiting.as_ref().map_or(self.ping_at, |waiting| waiting.deadline)
    }

    /// The first ping goes out, with this time for the answer.
    pub(super) fn pinged(&mut self, now: BootTime, answer: Duration) {
        self.waiting = Some(Waiting {
            since: now,
            deadline: now + answer,
            misses: 0,
            refused: false,
            agreeing: BTreeSet::new(),
        });
    }

    /// It was heard. Whether it had left no ping unanswered for too long.
    pub(super) fn was_heard(&mut self, now: BootTime, next_ping: BootTime) -> bool {
        self.heard = now;
        self.ping_at = next_ping;
        self.waiting.take().is_none_or(|waiting| waiting.misses == 0)
    }

    /// How long its pings go unanswered.
    pub(super) fn waited(&self, now: BootTime) -> Duration {
        self.waiting.as_ref().map_or(Duration::ZERO, |w| now.saturating_since(w.since))
    }

    /// This node did not run for so long: that time does not count.
    pub(super) fn forgive(&mut self, now: BootTime, lost: Duration, answer: Duration) {
        self.heard = (self.heard + lost).min(now);
        if let Some(waiting) = &mut self.waiting {
            waiting.since = (waiting.since + lost).min(now);
            waiting.deadline = now + answer;
            // What others said, they said before.
            waiting.agreeing.clear();
        }
    }

    /// Whether news are to be exchanged with it, which differ; each try that does not help doubles
    /// the pause to the next.
    pub(super) fn may_exchange(&mut self, now: BootTime) -> bool {
        if now < self.exchange_at {
            return false;
        }
        self.exchange_at = now + self.exchange_pause;
        self.exchange_pause = (self.exchange_pause * 2).min(LONGEST_PAUSE);
        true
    }

    /// It holds the same as this node.
    pub(super) fn agrees(&mut self) {
        self.exchange_pause = FIRST_PAUSE;
    }
}

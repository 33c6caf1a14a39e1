//! Whether a peer is dead, by what it leaves unanswered. A connection on which nobody speaks says
//! nothing of its peer; only what it must acknowledge does. The core: it reads no clock.

use std::time::Duration;

use flocker_base::BootTime;

use crate::connection::Traffic;

/// What one look at a connection tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// It answers, or was asked nothing.
    Well,
    /// It was sent something since it was last heard, and has not answered.
    Waiting,
    /// It has not answered for too long.
    Dead,
}

/// What was seen of one connection.
#[derive(Debug)]
pub(super) struct Silence {
    patience: Duration,
    /// A look later than this after the last says that this node itself did not run.
    late: Duration,
    seen: Traffic,
    looked: BootTime,
    waiting: Option<BootTime>,
}

impl Silence {
    /// `patience` is how long the peer may leave something unanswered. A look more than `late`
    /// after the last begins that time anew.
    pub(super) fn new(now: BootTime, seen: Traffic, late: Duration, patience: Duration) -> Self {
        Self { patience, late, seen, looked: now, waiting: None }
    }

    /// Takes a look.
    pub(super) fn look(&mut self, now: BootTime, traffic: Traffic) -> Finding {
        let late = now.saturating_since(std::mem::replace(&mut self.looked, now)) > self.late;
        if traffic.heard != self.seen.heard {
            (self.seen, self.waiting) = (traffic, None);
            return Finding::Well;
        }
        if traffic.asked == self.seen.asked {
            return Finding::Well;
        }
        if late {
            self.waiting = None;
        }
        let since = *self.waiting.get_or_insert(now);
        if now.saturating_since(since) >= self.patience { Finding::Dead } else { Finding::Waiting }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_millis(500);

    fn at(half_seconds: u32) -> BootTime {
        BootTime::ZERO + Duration::from_secs(1_000) + EVERY * half_seconds
    }

    fn silence() -> Silence {
        Silence::new(at(0), Traffic { heard: 7, asked: 9 }, EVERY * 3, Duration::from_secs(3))
    }

    #[test]
    fn who_is_asked_nothing_is_well_however_long() {
        let mut silence = silence();
        for tick in 1..1_000 {
            assert_eq!(silence.look(at(tick), Traffic { heard: 7, asked: 9 }), Finding::Well);
        }
    }

    #[test]
    fn who_answers_nothing_is_dead_after_its_time_and_no_sooner() {
        let mut silence = silence();
        for tick in 1..=6 {
            let traffic = Traffic { heard: 7, asked: 10 };
            assert_eq!(silence.look(at(tick), traffic), Finding::Waiting, "{tick}");
        }
        assert_eq!(silence.look(at(7), Traffic { heard: 7, asked: 12 }), Finding::Dead);
    }

    #[test]
    fn an_answer_begins_anew_and_so_does_a_pause_of_this_node() {
        let mut silence = silence();
        assert_eq!(silence.look(at(1), Traffic { heard: 7, asked: 10 }), Finding::Waiting);
        assert_eq!(silence.look(at(2), Traffic { heard: 8, asked: 10 }), Finding::Well);
        assert_eq!(silence.look(at(3), Traffic { heard: 8, asked: 11 }), Finding::Waiting);
        // Suspended for a minute: what came meanwhile has not been read yet.
        assert_eq!(silence.look(at(123), Traffic { heard: 8, asked: 12 }), Finding::Waiting);
        for tick in 124..129 {
            assert_eq!(silence.look(at(tick), Traffic { heard: 8, asked: 13 }), Finding::Waiting);
        }
        assert_eq!(silence.look(at(129), Traffic { heard: 8, asked: 13 }), Finding::Dead);
    }
}

//! The newest things that happened, as this node saw them: a ring in memory with a number for each.
//! It is for people and their programs; nothing is decided by it, and a restart begins it anew.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use flocker_base::{Clock, WallTime};
use flocker_gossip::membership::{Event, EventKind};
use tokio::sync::{broadcast, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::parts::locked;
use crate::api::{EventEntry, EventList};

/// The most events that are kept; the oldest give way.
const MOST: usize = 1000;

/// The longest that a caller may wait for the next event.
const LONGEST_WAIT: Duration = Duration::from_secs(20);

/// The newest events.
#[derive(Debug)]
pub(super) struct EventLog {
    ring: Mutex<VecDeque<EventEntry>>,
    /// The number of the newest event.
    newest: watch::Sender<u64>,
}

impl Default for EventLog {
    fn default() -> Self {
        Self { ring: Mutex::default(), newest: watch::Sender::new(0) }
    }
}

impl EventLog {
    /// Adds an event: what kind it is, whom it is about, and a line for people.
    pub(super) fn add(&self, at: WallTime, kind: &str, subject: &str, text: String) {
        let mut ring = locked(&self.ring);
        let sequence = ring.back().map_or(0, |last| last.sequence) + 1;
        let (kind, subject) = (kind.to_owned(), subject.to_owned());
        ring.push_back(EventEntry { sequence, at, kind, subject, text });
        if ring.len() > MOST {
            ring.pop_front();
        }
        drop(ring);
        self.newest.send_replace(sequence);
    }

    /// Adds an event, unless the newest about its subject says the same.
    pub(super) fn add_news(&self, at: WallTime, kind: &str, subject: &str, text: String) {
        let told = |ring: &VecDeque<EventEntry>| {
            ring.iter().rev().find(|e| e.subject == subject).is_some_and(|e| e.text == text)
        };
        if !told(&locked(&self.ring)) {
            self.add(at, kind, subject, text);
        }
    }

    /// The events after this number; with none, those that come within the wait.
    pub(super) async fn after(&self, sequence: u64, wait: Duration) -> EventList {
        let mut newest = self.newest.subscribe();
        // A number from before a restart is larger than any here: it means all there are.
        let after = if sequence > *newest.borrow() { 0 } else { sequence };
        if !wait.is_zero() {
            let news = newest.wait_for(|newest| *newest > after);
            // Without news the list is empty.
            let _ = timeout(wait.min(LONGEST_WAIT), news).await;
        }
        let ring = locked(&self.ring);
        let events: Vec<_> = ring.iter().filter(|e| e.sequence > after).cloned().collect();
        let oldest = ring.front().map_or(0, |first| first.sequence);
        EventList {
            missed: oldest.saturating_sub(after + 1),
            newest: ring.back().map_or(0, |last| last.sequence),
            events,
        }
    }

    /// Notes what happens to nodes, until told to stop.
    pub(super) async fn follow(
        &self,
        members: &mut broadcast::Receiver<Event>,
        clock: &dyn Clock,
        stop: CancellationToken,
    ) {
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => return,
                event = members.recv() => event,
            };
            match event {
                Ok(event) => {
                    let (kind, text) = of_node(&event);
                    self.add(clock.wall(), kind, event.name.as_str(), text);
                }
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    let text = format!("{missed} events of nodes came too fast and are missing");
                    self.add(clock.wall(), "events.missed", "events", text);
                }
                Err(broadcast::error::RecvError::Closed) => return stop.cancelled().await,
            }
        }
    }
}

fn of_node(event: &Event) -> (&'static str, String) {
    let Event { name, region, incarnation, .. } = event;
    let start = incarnation.0;
    match event.kind {
        EventKind::Joined => ("node.joined", format!("{name} ({region}) is in the mesh")),
        EventKind::Left => ("node.left", format!("{name} ({region}) stops as it was asked to")),
        EventKind::Restarted => {
            ("node.restarted", format!("{name} ({region}) has started again (start {start})"))
        }
        EventKind::Suspected => {
            ("node.suspected", format!("{name} ({region}) is silent and may be dead"))
        }
        EventKind::Returned => ("node.returned", format!("{name} ({region}) is heard again")),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const AT: WallTime = WallTime::from_millis(1_800_000_000_000);

    #[tokio::test(start_paused = true)]
    async fn the_newest_are_kept_and_numbers_go_on() {
        let log = EventLog::default();
        assert_eq!(log.after(0, Duration::ZERO).await, EventList::default());
        for n in 0..1005 {
            log.add(AT, "node.joined", "a", format!("{n}"));
        }
        let all = log.after(0, Duration::ZERO).await;
        assert_eq!((all.events.len(), all.missed, all.newest), (MOST, 5, 1005));
        let some = log.after(1003, Duration::ZERO).await;
        assert_eq!(some.events.iter().map(|e| e.sequence).collect::<Vec<_>>(), [1004, 1005]);
        assert_eq!(some.missed, 0);
        assert_eq!(log.after(9999, Duration::ZERO).await.events.len(), MOST, "of another run");
        let newest = log.after(0, Duration::ZERO).await.newest;
        log.add_news(AT, "election.asked", "data", "a asks".to_owned());
        log.add(AT, "node.joined", "b", "b joined".to_owned());
        log.add_news(AT, "election.asked", "data", "a asks".to_owned());
        assert_eq!(log.after(newest, Duration::ZERO).await.events.len(), 2, "said once");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_woken_by_the_next_and_waits_no_longer_than_asked() {
        let log = Arc::new(EventLog::default());
        let began = tokio::time::Instant::now();
        assert_eq!(log.after(0, Duration::from_secs(5)).await.events, []);
        assert_eq!(began.elapsed(), Duration::from_secs(5));
        log.after(0, Duration::from_secs(500)).await;
        assert_eq!(began.elapsed(), Duration::from_secs(25), "bounded");
        let (waiting, adding) = (log.after(0, Duration::from_secs(9)), async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            log.add(AT, "node.left", "a", "x".to_owned());
        });
        let (list, ()) = tokio::join!(waiting, adding);
        assert_eq!((list.events.len(), began.elapsed()), (1, Duration::from_secs(26)));
    }
}

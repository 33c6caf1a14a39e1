//! The messages that wait for each peer: bounded in number and bytes, the oldest giving way.
//! It sends nothing itself.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use flocker_base::StoreId;

use super::Kind;

/// Most bytes that wait for one peer, a kind.
const MOST_BYTES: usize = 8 << 20;

/// Whom messages wait for, and of which kind.
pub(super) type Lane = (StoreId, Kind);

/// Every waiting message. A lane exists while someone sends its messages.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    lanes: Mutex<HashMap<Lane, Queue>>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Bytes>,
    bytes: usize,
}

impl Outbox {
    /// Adds a message. `true` asks the caller to see to it that someone takes this lane's messages
    /// until [`Self::take`] gives none.
    #[must_use]
    pub(super) fn push(&self, lane: Lane, payload: Bytes) -> bool {
        let mut lanes = self.lanes();
        let new = !lanes.contains_key(&lane);
        let queue = lanes.entry(lane).or_default();
        queue.bytes += payload.len();
        queue.waiting.push_back(payload);
        while queue.waiting.len() > lane.1.queue() || queue.bytes > MOST_BYTES {
            let Some(oldest) = queue.waiting.pop_front() else { break };
            queue.bytes -= oldest.len();
            tracing::debug!(to = %lane.0, kind = ?lane.1, "the oldest waiting message was dropped");
        }
        new
    }

    /// The next message; with none, the lane ends.
    pub(super) fn take(&self, lane: Lane) -> Option<Bytes> {
        let mut lanes = self.lanes();
        let queue = lanes.get_mut(&lane)?;
        match queue.waiting.pop_front() {
            Some(payload) => {
                queue.bytes -= payload.len();
                Some(payload)
            }
            None => {
                lanes.remove(&lane);
                None
            }
        }
    }

    /// Drops what waits in a lane whose peer can't be reached, and says how many that were.
    pub(super) fn clear(&self, lane: Lane) -> usize {
        match self.lanes().get_mut(&lane) {
            Some(queue) => {
                queue.bytes = 0;
                std::mem::take(&mut queue.waiting).len()
            }
            None => 0,
        }
    }

    fn lanes(&self) -> MutexGuard<'_, HashMap<Lane, Queue>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(kind: Kind) -> Lane {
        (StoreId::from_bytes([1; 16]), kind)
    }

    #[test]
    fn the_oldest_gives_way_and_a_lane_is_served_once() {
        let outbox = Outbox::default();
        let lane = lane(Kind::Lease);
        assert!(outbox.push(lane, Bytes::from_static(&[0])), "someone must serve it");
        for n in 1..=200_u8 {
            assert!(!outbox.push(lane, Bytes::from(vec![n])), "someone does");
        }
        let first = outbox.take(lane).expect("one");
        assert_eq!(first[0] as usize, 201 - Kind::Lease.queue());
        assert_eq!(outbox.clear(lane), Kind::Lease.queue() - 1);
        assert_eq!(outbox.take(lane), None);
        assert!(outbox.push(lane, Bytes::new()), "the lane had ended");
    }

    #[test]
    fn bytes_are_bounded_too() {
        let outbox = Outbox::default();
        let lane = lane(Kind::MapPush);
        let payload = Bytes::from(vec![0; Kind::MapPush.max_frame()]);
        for _ in 0..100 {
            let _ = outbox.push(lane, payload.clone());
        }
        let mut kept = 0;
        while outbox.take(lane).is_some() {
            kept += 1;
        }
        assert_eq!(kept * payload.len(), MOST_BYTES);
    }
}

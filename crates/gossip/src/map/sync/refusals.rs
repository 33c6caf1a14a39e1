//! The log lines about what peers sent and was refused, at most one a peer and span of time. A
//! hostile peer must never fill the log, nor hide another's lines.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use flocker_base::{BootTime, StoreId};

const SPAN: Duration = Duration::from_secs(10);
const MAX_PEERS: usize = 4_096;

/// When each peer was last complained of, and how often since.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    peers: Mutex<BTreeMap<StoreId, (BootTime, u64)>>,
}

impl Refusals {
    /// Logs the refusal, unless one of this peer was logged just now.
    pub(super) fn warn(&self, now: BootTime, from: StoreId, what: &str, why: &dyn Display) {
        if let Some(unsaid) = self.count(now, from) {
            tracing::warn!(%from, %why, unsaid, "refused {what} of a peer; nothing was changed");
        }
    }

    /// How many went unsaid before this one; nothing if this one does too.
    fn count(&self, now: BootTime, from: StoreId) -> Option<u64> {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if peers.len() >= MAX_PEERS && !peers.contains_key(&from) {
            peers.retain(|_, (said, _)| now.saturating_since(*said) < SPAN);
            if peers.len() >= MAX_PEERS {
                return None;
            }
        }
        match peers.get_mut(&from) {
            Some((said, unsaid)) if now.saturating_since(*said) < SPAN => {
                *unsaid += 1;
                None
            }
            other => {
                let unsaid = other.map_or(0, |(_, unsaid)| *unsaid);
                peers.insert(from, (now, 0));
                Some(unsaid)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_peer_and_span_with_the_count_of_the_unsaid() {
        let refusals = Refusals::default();
        let [a, b] = [StoreId::from_bytes([1; 16]), StoreId::from_bytes([2; 16])];
        let at = BootTime::from_millis;
        assert_eq!(refusals.count(at(0), a), Some(0));
        for second in 1..=9 {
            assert_eq!(refusals.count(at(second * 1_000), a), None);
        }
        assert_eq!(refusals.count(at(5_000), b), Some(0), "another peer has its own line");
        assert_eq!(refusals.count(at(10_000), a), Some(9));
    }
}

//! The changed records that are to be pushed to peers: bounded, one entry a record. It must
//! never hold up a change: what does not fit is left to the hash tree.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

use super::key::RecordKey;

/// Most records that wait to be pushed.
pub(super) const MAX_WAITING: usize = 4_096;
/// How often a change is passed on; a random push to three reaches a million nodes in fewer.
pub(super) const MAX_HOPS: u8 = 16;

#[derive(Debug, Default)]
pub(super) struct Outbox {
    waiting: Mutex<BTreeMap<RecordKey, u8>>,
    added: Notify,
}

impl Outbox {
    /// Adds records that came this many hops.
    pub(super) fn add(&self, keys: impl Iterator<Item = RecordKey>, hops: u8) {
        if hops >= MAX_HOPS {
            return;
        }
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for key in keys {
            if waiting.len() < MAX_WAITING || waiting.contains_key(&key) {
                let least = waiting.entry(key).or_insert(hops);
                *least = hops.min(*least);
            }
        }
        drop(waiting);
        self.added.notify_one();
    }

    /// Takes all that wait, with the most hops that any of them came; waits for the first.
    /// Cancel safe: nothing is taken before it is returned.
    pub(super) async fn take(&self) -> (Vec<RecordKey>, u8) {
        loop {
            if let Some(taken) = self.try_take() {
                return taken;
            }
            self.added.notified().await;
        }
    }

    /// The same, if any waits.
    pub(super) fn try_take(&self) -> Option<(Vec<RecordKey>, u8)> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = std::mem::take(&mut *waiting);
        drop(waiting);
        let hops = taken.values().copied().max()?;
        Some((taken.into_keys().collect(), hops))
    }
}

//! The newest master known of each volume, from whatever proves one: an announced placement, a
//! stream that was admitted, a peer that says it serves. It routes requests and tells a deposed
//! master that it is one; it is never authority to start anything.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use flocker_base::{Epoch, StoreId, VolumeId};

/// The masters.
#[derive(Debug, Default)]
pub(super) struct Masters {
    known: Mutex<HashMap<VolumeId, (Epoch, StoreId)>>,
}

impl Masters {
    /// Takes in a proof. Older epochs than the one known are ignored; answers whether it was news.
    pub(super) fn learn(&self, volume: VolumeId, epoch: Epoch, store: StoreId) -> bool {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = known.get(&volume).map_or(Epoch::ZERO, |(newest, _)| *newest);
        if !epoch.is_within_reach_of(newest) {
            tracing::warn!(%volume, %epoch, %newest, "an epoch out of all proportion: ignored");
            return false;
        }
        let news = newest < epoch;
        if news {
            known.insert(volume, (epoch, store));
        }
        news
    }

    /// The newest master known.
    pub(super) fn of(&self, volume: VolumeId) -> Option<(Epoch, StoreId)> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&volume).copied()
    }

    /// The newest epoch under which another node than `me` is known to be master.
    pub(super) fn another(&self, volume: VolumeId, me: StoreId) -> Option<Epoch> {
        self.of(volume).filter(|(_, store)| *store != me).map(|(epoch, _)| epoch)
    }
}

#[cfg(test)]
mod tests {
    use flocker_base::WallTime;

    use super::*;

    #[test]
    fn only_a_newer_epoch_is_news() {
        let masters = Masters::default();
        let volume = VolumeId::new(WallTime::from_millis(1), [1; 10]);
        let (a, b) = (StoreId::from_bytes([1; 16]), StoreId::from_bytes([2; 16]));
        assert!(masters.learn(volume, Epoch::new(0, 2), a));
        assert!(!masters.learn(volume, Epoch::new(0, 1), b));
        assert!(!masters.learn(volume, Epoch::new(0, 2), b));
        assert_eq!(masters.of(volume), Some((Epoch::new(0, 2), a)));
        assert!(!masters.learn(volume, Epoch::new(0, u64::MAX), b), "a poisoned epoch");
        assert_eq!(masters.another(volume, a), None);
        assert_eq!(masters.another(volume, b), Some(Epoch::new(0, 2)));
    }
}

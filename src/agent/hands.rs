//! Which volumes an exclusive operation has in hand. One operation a volume; once it grips the
//! volume, the reconcile loop leaves that alone. A hand opens when its guard is dropped, however
//! the operation ended.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use flocker_base::{BootTime, VolumeId};
use tokio::sync::Notify;

/// What has a volume in hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Operation {
    /// Its number, unique on this node since its start.
    pub(super) number: u64,
    /// What it is, with its subject, for people.
    pub(super) text: String,
    /// The step that it is at.
    pub(super) step: String,
    /// When it began.
    pub(super) began: BootTime,
    /// Whether the reconcile loop has to leave the volume alone.
    pub(super) grips: bool,
}

/// The volumes in hand.
#[derive(Clone, Debug)]
pub(super) struct Hands {
    held: Arc<Mutex<Held>>,
    wake: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Held {
    volumes: HashMap<VolumeId, Operation>,
    next: u64,
}

impl Hands {
    /// No volume is in hand. `wake` is told when a hand opens.
    pub(super) fn new(wake: Arc<Notify>) -> Self {
        Self { held: Arc::default(), wake }
    }

    /// Takes the volume, or says what has it.
    pub(super) fn take(
        &self,
        volume: VolumeId,
        text: String,
        now: BootTime,
    ) -> Result<Hand, Operation> {
        let mut held = self.lock();
        if let Some(other) = held.volumes.get(&volume) {
            return Err(other.clone());
        }
        held.next += 1;
        let operation = Operation {
            number: held.next,
            text,
            step: "starting".to_owned(),
            began: now,
            grips: false,
        };
        held.volumes.insert(volume, operation);
        drop(held);
        Ok(Hand { hands: self.clone(), volume })
    }

    /// Whether the volume has to be left alone.
    pub(super) fn grips(&self, volume: VolumeId) -> bool {
        self.lock().volumes.get(&volume).is_some_and(|o| o.grips)
    }

    pub(super) fn all(&self) -> Vec<Operation> {
        let mut all: Vec<_> = self.lock().volumes.values().cloned().collect();
        all.sort_by_key(|o| o.number);
        all
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A volume in hand, until dropped.
#[derive(Debug)]
pub(super) struct Hand {
    hands: Hands,
    volume: VolumeId,
}

impl Hand {
    /// From now on the reconcile loop leaves the volume alone.
    pub(super) fn grip(&self) {
        if let Some(operation) = self.hands.lock().volumes.get_mut(&self.volume) {
            operation.grips = true;
        }
    }

    pub(super) fn at(&self, step: &str) {
        if let Some(operation) = self.hands.lock().volumes.get_mut(&self.volume) {
            step.clone_into(&mut operation.step);
        }
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        self.hands.lock().volumes.remove(&self.volume);
        self.hands.wake.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use flocker_base::WallTime;

    use super::*;

    #[test]
    fn a_volume_is_in_one_hand_until_that_opens() {
        let hands = Hands::new(Arc::default());
        let volume = VolumeId::new(WallTime::from_millis(1), [1; 10]);
        let hand = hands.take(volume, "move a".into(), BootTime::ZERO).expect("free");
        hand.at("draining");
        let other = hands.take(volume, "move b".into(), BootTime::ZERO).expect_err("taken");
        assert_eq!((other.text.as_str(), other.step.as_str()), ("move a", "draining"));
        assert!(!hands.grips(volume));
        hand.grip();
        assert!(hands.grips(volume));
        drop(hand);
        assert!(!hands.grips(volume) && hands.all().is_empty());
    }
}

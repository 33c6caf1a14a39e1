//! Epochs never fall, on any node's disk, across any number of kills; and no epoch is confirmed
//! for two stores (I3 and I4 of the design).

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use flocker_base::{Epoch, StoreId, VolumeId};
use flocker_gossip::model::ConfigVersion;

use crate::remains::Remains;

/// What one node's disk says of one volume. Each part only ever rises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Heights {
    granted: Epoch,
    config: ConfigVersion,
    held: Epoch,
    closed: Epoch,
    placed: (Epoch, u64),
}

impl Heights {
    /// The name of the first part that is lower than before.
    fn fallen(&self, before: &Self) -> Option<&'static str> {
        let parts = [
            ("the highest epoch granted", self.granted < before.granted),
            ("the voters' configuration", self.config < before.config),
            ("the epoch held", self.held < before.held),
            ("the epoch closed", self.closed < before.closed),
            ("the placement", self.placed < before.placed),
        ];
        parts.into_iter().find(|(_, fell)| *fell).map(|(name, _)| name)
    }
}

/// The checker, with the heights that each disk had last.
#[derive(Debug, Default)]
pub struct Epochs {
    heights: BTreeMap<(StoreId, VolumeId), Heights>,
    supports: BTreeMap<(StoreId, StoreId), u64>,
    confirmed: BTreeMap<(VolumeId, Epoch), StoreId>,
}

impl Epochs {
    /// Judges what a dead agent left.
    ///
    /// # Errors
    /// What has fallen, or which epoch was confirmed for two stores.
    pub fn judge(&mut self, remains: &Remains) -> Result<()> {
        let mut now: BTreeMap<VolumeId, Heights> = BTreeMap::new();
        for (volume, record) in &remains.voters {
            let heights = now.entry(*volume).or_default();
            heights.granted = record.max_epoch;
            heights.config = record.config.version;
            if let Some(grantee) = record.grantee.filter(|_| record.confirmed) {
                self.confirm(*volume, record.max_epoch, grantee)?;
            }
        }
        for (volume, record) in &remains.holders {
            let heights = now.entry(*volume).or_default();
            (heights.held, heights.closed) = (record.epoch, record.closed);
        }
        for placement in remains.map.placements() {
            let heights = now.entry(placement.volume).or_default();
            heights.placed = (placement.epoch, placement.sequence);
            // Only a holder announces, so this too says whose the epoch is.
            self.confirm(placement.volume, placement.epoch, placement.holder)?;
        }
        self.compare(remains, &now)?;
        for (volume, heights) in now {
            self.heights.insert((remains.store, volume), heights);
        }
        Ok(())
    }

    fn compare(&mut self, remains: &Remains, now: &BTreeMap<VolumeId, Heights>) -> Result<()> {
        for ((store, volume), before) in &self.heights {
            if *store != remains.store {
                continue;
            }
            let heights = now.get(volume).copied().unwrap_or_default();
            if let Some(what) = heights.fallen(before) {
                bail!(
                    "on store {} {what} of volume {volume} fell: {before:?}, then {heights:?}",
                    store.short()
                );
            }
        }
        for (of, record) in &remains.supports {
            let before = self.supports.entry((remains.store, *of)).or_default();
            if record.support < *before {
                bail!(
                    "store {}'s support of {} fell from {before} to {}",
                    remains.store.short(),
                    of.short(),
                    record.support
                );
            }
            *before = record.support;
        }
        Ok(())
    }

    fn confirm(&mut self, volume: VolumeId, epoch: Epoch, store: StoreId) -> Result<()> {
        let first = *self.confirmed.entry((volume, epoch)).or_insert(store);
        if first != store {
            bail!(
                "epoch {epoch} of volume {volume} is confirmed for {} and for {}",
                first.short(),
                store.short()
            );
        }
        Ok(())
    }

    /// The highest epoch of the volume that this store's map had when it was last dead: what it
    /// shows once it is back must not be lower.
    #[must_use]
    pub fn placed(&self, store: StoreId, volume: VolumeId) -> Epoch {
        self.heights.get(&(store, volume)).map_or(Epoch::ZERO, |heights| heights.placed.0)
    }

    /// The highest epoch confirmed for anyone.
    #[must_use]
    pub fn highest(&self) -> Epoch {
        self.confirmed.keys().map(|(_, epoch)| *epoch).max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_that_falls_is_named() {
        let high = Epoch::new(0, 4);
        let version = ConfigVersion { epoch: high, number: 2 };
        let before =
            Heights { granted: high, config: version, held: high, closed: high, placed: (high, 3) };
        assert_eq!(before.fallen(&before), None);
        let low = Epoch::new(0, 3);
        let fallen = [
            Heights { granted: low, ..before },
            Heights { config: ConfigVersion { epoch: high, number: 1 }, ..before },
            Heights { held: low, ..before },
            Heights { closed: low, ..before },
            Heights { placed: (high, 2), ..before },
        ];
        for heights in fallen {
            assert!(heights.fallen(&before).is_some(), "{heights:?}");
        }
    }

    #[test]
    fn an_epoch_confirmed_for_two_is_refused() {
        let (a, b) = (StoreId::from_bytes([1; 16]), StoreId::from_bytes([2; 16]));
        let volume = VolumeId::from_bytes([3; 16]);
        let mut epochs = Epochs::default();
        epochs.confirm(volume, Epoch::new(0, 1), a).expect("the first");
        epochs.confirm(volume, Epoch::new(0, 2), b).expect("the next");
        epochs.confirm(volume, Epoch::new(0, 1), b).expect_err("not its");
        assert_eq!(epochs.highest(), Epoch::new(0, 2));
    }
}

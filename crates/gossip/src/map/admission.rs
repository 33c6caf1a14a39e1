//! What a peer's record must satisfy before it is merged. The merge itself takes anything; here
//! a poisoned clock or epoch is stopped while it can be. It must never change a record.

use std::time::Duration;

use super::key::{Kind, RecordKey};
use super::record::{Intent, Placed, Record};
use super::stamp::Stamp;

/// How far one write may raise a record's life.
pub const MAX_LIFE_JUMP: u32 = 1 << 10;

/// Why a peer's record is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Its clock.
    #[error("it is stamped {ahead:?} ahead of this node's clock: set the clocks of both nodes")]
    FromTheFuture {
        /// By how much.
        ahead: Duration,
    },
    /// Its epoch.
    #[error("it jumps from epoch {from} to {to}, further than any number of elections goes")]
    EpochJump {
        /// What is here.
        from: flocker_base::Epoch,
        /// What came.
        to: flocker_base::Epoch,
    },
    /// Its life.
    #[error("it jumps from life {from} to {to}")]
    LifeJump {
        /// What is here.
        from: u32,
        /// What came.
        to: u32,
    },
    /// A placement under an intent's key, or the reverse.
    #[error("its form is not that of its kind")]
    Shape,
}

/// Checks a peer's record against what is here and the highest stamp acceptable now.
///
/// # Errors
/// [`Refusal`] says why it may not be merged.
pub fn admit(
    key: &RecordKey,
    present: Option<&Record>,
    incoming: &Record,
    limit: Stamp,
) -> Result<(), Refusal> {
    let newest = incoming.newest();
    if newest > limit {
        let ahead = newest.wall().saturating_since(limit.wall()) + super::stamp::MAX_AHEAD;
        return Err(Refusal::FromTheFuture { ahead });
    }
    match incoming {
        Record::Placed(placed) if !is_intent(key.kind()) => {
            admit_epoch(present.and_then(placed_of), placed)
        }
        Record::Intent(intent) if key.kind() != Kind::PLACEMENT => {
            admit_life(present.and_then(intent_of), intent)
        }
        Record::Placed(_) | Record::Intent(_) => Err(Refusal::Shape),
    }
}

const fn is_intent(kind: Kind) -> bool {
    matches!(kind, Kind::VOLUME | Kind::SERVICE | Kind::ROUTE | Kind::TOKEN | Kind::NODE)
}

fn admit_epoch(present: Option<&Placed>, incoming: &Placed) -> Result<(), Refusal> {
    let from = present.map(|placed| placed.epoch).unwrap_or_default();
    let to = incoming.epoch;
    if !to.is_within_reach_of(from) {
        return Err(Refusal::EpochJump { from, to });
    }
    Ok(())
}

fn admit_life(present: Option<&Intent>, incoming: &Intent) -> Result<(), Refusal> {
    let from = present.map_or(0, |intent| intent.life);
    if incoming.life.saturating_sub(from) > MAX_LIFE_JUMP {
        return Err(Refusal::LifeJump { from, to: incoming.life });
    }
    Ok(())
}

const fn placed_of(record: &Record) -> Option<&Placed> {
    match record {
        Record::Placed(placed) => Some(placed),
        Record::Intent(_) => None,
    }
}

const fn intent_of(record: &Record) -> Option<&Intent> {
    match record {
        Record::Intent(intent) => Some(intent),
        Record::Placed(_) => None,
    }
}

//! A simulated node: a disk, a process that may die, and a wall clock that may be wrong. It decides
//! nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flocker_base::{BootTime, Clock, StoreId, WallTime};

use super::disk::Disk;
use super::world::{MILLISECOND, Micros};
use crate::map::Map;
use crate::map::sync::core::SyncCore;
use crate::map::sync::event::{Ask, Reply};
use crate::map::sync::links::Member;

/// The wall clock's start.
const NOON: u64 = 1_700_000_000_000;

/// A node: its disk, and what runs on it.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) store: StoreId,
    pub(super) region: usize,
    pub(super) disk: Disk,
    pub(super) running: Option<Running>,
    /// Never to come back under this store's id.
    pub(super) gone: bool,
    pub(super) life: u32,
    /// Of its wall clock, in milliseconds.
    pub(super) skew: i64,
}

/// A process.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) map: Map,
    pub(super) core: SyncCore,
    pub(super) members: Arc<[Member]>,
    pub(super) view: u64,
    pub(super) replies: BTreeMap<Reply, (usize, u32, Ask)>,
    pub(super) replied: u64,
    pub(super) wake_at: Option<Micros>,
    /// When the last change under way will be on disk.
    pub(super) written_at: Micros,
}

/// A node's wall clock: the true time, and an error.
#[derive(Debug)]
pub(super) struct SkewedClock {
    pub(super) now: Arc<AtomicU64>,
    pub(super) skew: i64,
}

impl Clock for SkewedClock {
    fn boot(&self) -> BootTime {
        BootTime::from_duration(Duration::from_micros(self.now.load(Ordering::Relaxed)))
    }

    fn wall(&self) -> WallTime {
        let millis = NOON + self.now.load(Ordering::Relaxed) / MILLISECOND;
        WallTime::from_millis(millis.saturating_add_signed(self.skew))
    }
}

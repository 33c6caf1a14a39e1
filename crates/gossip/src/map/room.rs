//! How much room the disk has left. A full disk is told before a change is begun, while nothing is
//! half-done and the rest of the node can go on; a write that fails ends the process. It must
//! never guess: a disk that does not say is taken to have room.

use std::fmt;
use std::path::PathBuf;

use super::MapError;

/// Bytes that the disk must have left for the map to be changed: what a large merge may write,
/// and what the leases' own records need while this node goes on without changing its map.
pub const MIN_FREE: u64 = 16 << 20;

/// A disk that can be asked.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Bytes left for this process; nothing if that is not known.
    fn free_bytes(&self) -> Option<u64>;
}

/// The disk that a folder lies on.
#[derive(Clone, Debug)]
pub struct DiskOf(pub PathBuf);

impl Disk for DiskOf {
    fn free_bytes(&self) -> Option<u64> {
        let disk = rustix::fs::statvfs(&self.0).ok()?;
        Some(disk.f_bavail.saturating_mul(disk.f_frsize))
    }
}

/// A disk without end, such as memory.
#[derive(Clone, Copy, Debug)]
pub struct Endless;

impl Disk for Endless {
    fn free_bytes(&self) -> Option<u64> {
        None
    }
}

pub(super) fn check(disk: &dyn Disk) -> Result<(), MapError> {
    match disk.free_bytes() {
        Some(free) if free < MIN_FREE => Err(MapError::NoRoom { free, needed: MIN_FREE }),
        _ => Ok(()),
    }
}

//! What this machine has to give, and how busy it is, as its peers are told. What can't be read is
//! left out; nothing is decided by it here.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use flocker_gossip::membership::Membership;
use flocker_gossip::model::{Capacity, Load};
use tokio_util::sync::CancellationToken;

/// Time between two readings of the load.
const READING: Duration = Duration::from_secs(30);

/// What this machine has to give.
pub(super) fn measure(folder: &Path) -> Option<Capacity> {
    let (memory, _available) = memory(&read("/proc/meminfo")?)?;
    let (disk, _free) = disk(folder)?;
    Some(Capacity { cpus: u16::try_from(cpus()).unwrap_or(u16::MAX), memory, disk })
}

/// Tells the peers how busy it is, until told to stop.
pub(super) async fn announce_load(
    membership: &Membership,
    folder: &Path,
    stop: CancellationToken,
) -> Result<()> {
    let mut readings = tokio::time::interval(READING);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = readings.tick() => {
                if let Some(load) = load(folder) {
                    membership.set_load(load)?;
                }
            }
        }
    }
}

fn load(folder: &Path) -> Option<Load> {
    let running = running(&read("/proc/loadavg")?)?;
    let (memory, available) = memory(&read("/proc/meminfo")?)?;
    let (disk, free) = disk(folder)?;
    Some(Load {
        cpu: per_cent(running, u64::try_from(cpus()).ok()?.saturating_mul(100)),
        memory: per_cent(memory.saturating_sub(available), memory),
        disk: per_cent(disk.saturating_sub(free), disk),
    })
}

fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// The kernel's own small files, which never block.
fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// The room of the folder's disk and what of it is free, in bytes.
fn disk(folder: &Path) -> Option<(u64, u64)> {
    let stat = rustix::fs::statvfs(folder).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Some((bytes(stat.f_blocks), bytes(stat.f_bavail)))
}

/// All memory and what of it is available, in bytes.
fn memory(meminfo: &str) -> Option<(u64, u64)> {
    let of = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
        kib.checked_mul(1024)
    };
    Some((of("MemTotal:")?, of("MemAvailable:")?))
}

/// How many tasks ran at once in the last minute, in hundredths.
fn running(loadavg: &str) -> Option<u64> {
    let (whole, hundredths) = loadavg.split_whitespace().next()?.split_once('.')?;
    let (whole, hundredths): (u64, u64) = (whole.parse().ok()?, hundredths.parse().ok()?);
    whole.checked_mul(100)?.checked_add(hundredths)
}

fn per_cent(part: u64, whole: u64) -> u8 {
    let share = part.saturating_mul(100).checked_div(whole).unwrap_or(0);
    u8::try_from(share.min(100)).unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_read_and_nonsense_is_left_out() {
        assert_eq!(running("1.25 0.90 0.80 2/300 4711\n"), Some(125));
        let meminfo = "MemTotal:  2048 kB\nMemFree: 1 kB\nMemAvailable:  512 kB\n";
        assert_eq!(memory(meminfo), Some((2 << 20, 512 << 10)));
        for nonsense in ["", "x", "1", "MemTotal: many kB", "MemTotal: 99999999999999999999 kB"] {
            assert_eq!((running(nonsense), memory(nonsense)), (None, None), "{nonsense}");
        }
        assert_eq!((per_cent(1, 3), per_cent(7, 0), per_cent(u64::MAX, 1)), (33, 0, 100));
    }

    #[test]
    fn this_machine_has_something_to_give() {
        let capacity = measure(Path::new("/")).expect("read");
        assert!(capacity.cpus > 0 && capacity.memory > 0 && capacity.disk > 0, "{capacity:?}");
        let load = load(Path::new("/")).expect("read");
        assert!(load.cpu <= 100 && load.memory <= 100 && load.disk <= 100, "{load:?}");
    }
}

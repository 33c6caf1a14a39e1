//! What a mesh costs: its namespace's loopback traffic and its processes' time and memory, as the
//! kernel counts them. Read inside the mesh's own namespaces, where nothing else is.

use std::time::Duration;

use anyhow::{Context, Result};
use flocker_base::{BootTime, Clock as _, SystemClock};
use serde::{Deserialize, Serialize};

/// Ticks a second of the times in `/proc/PID/stat`: fixed for user space.
const TICKS: f64 = 100.0;

/// Counters at one instant.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    at: BootTime,
    bytes: u64,
    packets: u64,
    ticks: u64,
    switches: u64,
}

/// What a node of a mesh costs, on average, while nothing happens or something does.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeCost {
    /// Over how long, in seconds.
    pub over_s: f64,
    /// IP bytes sent, a second.
    pub bytes_per_s: f64,
    /// IP packets sent, a second.
    pub packets_per_s: f64,
    /// Of one core, in per cent.
    pub cpu_percent: f64,
    /// Times a second that one of its threads went to sleep.
    pub sleeps_per_s: f64,
    /// Resident memory, the pages that processes share counted once, MiB: what one node takes of
    /// a machine.
    pub resident_mib: f64,
    /// Resident memory of all its processes, shared pages counted in each, MiB.
    pub rss_mib: f64,
    /// Its share of what is resident, MiB.
    pub pss_mib: f64,
    /// Its processes.
    pub processes: f64,
}

impl Reading {
    /// The counters now.
    ///
    /// # Errors
    /// If `/proc` cannot be read.
    pub fn take() -> Result<Self> {
        let (bytes, packets) = sent_on_loopback()?;
        let mut reading = Self { at: SystemClock.boot(), bytes, packets, ticks: 0, switches: 0 };
        for pid in others()? {
            reading.ticks += ticks(&format!("/proc/{pid}/stat")).unwrap_or(0);
            reading.switches += switches(pid);
        }
        Ok(reading)
    }

    /// The cost of each of so many nodes since then.
    ///
    /// # Errors
    /// If `/proc` cannot be read.
    pub fn cost_since(&self, then: &Self, nodes: usize) -> Result<NodeCost> {
        let seconds = self.at.saturating_since(then.at).max(Duration::from_millis(1)).as_secs_f64();
        let nodes = count(nodes);
        let rate = |now: u64, then: u64| count_u64(now.saturating_sub(then)) / seconds / nodes;
        let memory = Memory::now()?;
        Ok(NodeCost {
            over_s: seconds,
            bytes_per_s: rate(self.bytes, then.bytes),
            packets_per_s: rate(self.packets, then.packets),
            cpu_percent: rate(self.ticks, then.ticks) / TICKS * 100.0,
            sleeps_per_s: rate(self.switches, then.switches),
            resident_mib: mib(memory.anonymous) / nodes + mib(memory.most_of_files),
            rss_mib: mib(memory.rss) / nodes,
            pss_mib: mib(memory.pss) / nodes,
            processes: count_u64(memory.processes) / nodes,
        })
    }

    /// Bytes that a node sent since then.
    #[must_use]
    pub fn bytes_since(&self, then: &Self, nodes: usize) -> f64 {
        count_u64(self.bytes.saturating_sub(then.bytes)) / count(nodes)
    }
}

/// How busy the machine was, in ticks of all its cores: all, and those without work.
///
/// # Errors
/// If `/proc/stat` cannot be read.
pub fn machine_ticks() -> Result<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    let line = text.lines().next().unwrap_or_default();
    let fields: Vec<u64> =
        line.split_ascii_whitespace().skip(1).take(8).map(|f| f.parse().unwrap_or(0)).collect();
    let idle = fields.iter().skip(3).take(2).sum();
    Ok((fields.iter().sum(), idle))
}

#[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
pub(crate) const fn count(n: usize) -> f64 {
    n as f64
}

#[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
pub(crate) const fn count_u64(n: u64) -> f64 {
    n as f64
}

fn sent_on_loopback() -> Result<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/net/dev").context("cannot read /proc/net/dev")?;
    parse_loopback(&text).context("/proc/net/dev names no loopback interface")
}

fn parse_loopback(text: &str) -> Option<(u64, u64)> {
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix("lo:"))?;
    let mut fields = line.split_ascii_whitespace().skip(8);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// Every process of the namespace but this one.
fn others() -> Result<Vec<u32>> {
    let own = std::process::id();
    let entries = std::fs::read_dir("/proc").context("cannot read /proc")?;
    let pids = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    Ok(pids.filter(|pid| *pid != own).collect())
}

fn ticks(path: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(user + system)
}

fn switches(pid: u32) -> u64 {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    let of_thread = |path: std::path::PathBuf| -> Option<u64> {
        let text = std::fs::read_to_string(path.join("status")).ok()?;
        number(&text, "voluntary_ctxt_switches:")
    };
    threads.flatten().filter_map(|thread| of_thread(thread.path())).sum()
}

/// Memory of all processes, in KiB.
#[derive(Debug, Default)]
struct Memory {
    rss: u64,
    pss: u64,
    anonymous: u64,
    /// The most that one process has of files, its program above all: processes of one program
    /// share these pages.
    most_of_files: u64,
    processes: u64,
}

impl Memory {
    fn now() -> Result<Self> {
        let mut sum = Self::default();
        for pid in others()? {
            // A zombie has none.
            let Ok(text) = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) else {
                continue;
            };
            let Some(rss) = number(&text, "Rss:") else { continue };
            let anonymous = number(&text, "Anonymous:").unwrap_or(0);
            sum.rss += rss;
            sum.pss += number(&text, "Pss:").unwrap_or(0);
            sum.anonymous += anonymous;
            sum.most_of_files = sum.most_of_files.max(rss.saturating_sub(anonymous));
            sum.processes += 1;
        }
        Ok(sum)
    }
}

fn mib(kib: u64) -> f64 {
    count_u64(kib) / 1024.0
}

fn number(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_by_their_place() {
        let text = "Inter-|   Receive\n face |bytes\n    lo: 1 2 0 0 0 0 0 0 300 4 0 0 0 0 0 0\n";
        assert_eq!(parse_loopback(text), Some((300, 4)));
        assert_eq!(parse_loopback("  eth0: 1 2 0 0 0 0 0 0 300 4\n"), None);
        assert_eq!(number("Rss:  12 kB\nPss:  7 kB\n", "Pss:"), Some(7));
        let own = format!("/proc/{}/stat", std::process::id());
        assert!(ticks(&own).is_some(), "this process has a stat line");
        let (all, idle) = machine_ticks().expect("this machine has a /proc");
        assert!(all > idle);
    }
}

//! Measures agents beside peers in one run, and gives the ratios: their gossip beside `serf`'s (below),
//! and how soon another takes over beside etcd and ZooKeeper ([`takeover`]). It judges nothing by
//! absolute times and changes nothing outside its own folder and namespaces.
//!
//! ```text
//!   bin/measure ─▶ run ─▶ host (ours)  in a network and process namespace ─▶ `flocker up` x N
//!                   │ └─▶ host (serf)  in another                         ─▶ `serf agent` x N
//!                   └───▶ figures ─▶ table, JSON
//! ```
//!
//! Both meshes live at the same time and are asked in turns, so that what else the machine does
//! falls on both. Each has a loopback interface of its own, whose counters are then its traffic.
//! When a host ends, however it ends, the kernel ends everything in its namespace.

pub mod agents;
pub mod costs;
pub mod figures;
pub mod host;
pub mod load;
pub mod namespace;
pub mod report;
pub mod rounds;
pub mod run;
pub mod said;
pub mod takeover;

use std::time::Duration;

/// A span in milliseconds, to the microsecond.
#[must_use]
pub fn ms(span: Duration) -> f64 {
    (span.as_secs_f64() * 1e6).round() / 1e3
}

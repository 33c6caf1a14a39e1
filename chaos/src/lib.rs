//! Flocker's fault injection: real agents on loopback addresses, real faults, checked histories.
//!
//! ```text
//!   plan (seed) ─▶ test ─▶ mesh ─▶ agents: `flocker up`, SIGKILL, SIGSTOP, restart
//!                   │        └──▶ remains: a dead agent's disk, read from a copy
//!                   ├─▶ clients ─▶ every agent's proxy ─▶ history
//!                   ├─▶ watch ─▶ /proc
//!                   └─▶ invariants: remains, history and sightings in, violations out
//! ```
//!
//! The harness uses what users have: the command line, the API, the proxies, signals. It looks
//! into an agent's disk only once that agent is dead, and never writes there. It ends every
//! process that it started, and no other.

pub mod binary;
pub mod clients;
pub mod clock;
pub mod evidence;
pub mod history;
pub mod http;
pub mod invariants;
pub mod log;
pub mod measure;
pub mod mesh;
pub mod nemesis;
pub mod network;
pub mod node;
pub mod plan;
pub mod processes;
pub mod programs;
pub mod remains;
pub mod watch;

use std::io::Write as _;
use std::time::Duration;

/// A span in whole milliseconds.
#[must_use]
pub fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// Says a line whether or not the test runner shows what tests print: seeds and figures are worth
/// their place in every log.
pub fn say(line: &str) {
    // Nobody may be listening.
    let _written = writeln!(std::io::stderr().lock(), "{line}");
}

//! Real agents on several hosts of their own, one fault done to them again and again, a client writing
//! all the while.
//!
//! ```text
//!   scripts/nemesis ─▶ one process a fault, in namespaces of its own
//!     hosts: a bridge, a network namespace and a small disk for each host
//!     faults: what is done to the master's host, or to others
//!     rounds: do, wait, mend, judge; again
//!     beats: the service itself says when it could write
//! ```
//!
//! When a process here ends, by whatever way, the kernel ends all that it started and takes the networks
//! and disks away. The harness uses what users have, and the network and signals as an enemy would.

pub mod beats;
pub mod faults;
pub mod hosts;
pub mod probes;
pub mod report;
pub mod rounds;

//! Everything of this crate that reads bytes from outside, as functions of bytes that assert what
//! must hold whatever the bytes are. For the fuzzer and for tests; never part of a running node.

pub use flocker_quic::fuzzing::{Target, split};

use crate::{control, join, lease, map, membership};

/// The targets of this crate. A protocol that is new gets its line here, and with it its runs.
pub const TARGETS: &[Target] = &[
    Target { name: "stream", run: control::fuzzing::stream, seeds: control::fuzzing::streams },
    Target {
        name: "membership",
        run: membership::fuzzing::messages,
        seeds: membership::fuzzing::conversations,
    },
    Target { name: "facts", run: membership::fuzzing::facts, seeds: membership::fuzzing::values },
    Target {
        name: "roster",
        run: membership::fuzzing::rosters,
        seeds: membership::fuzzing::questions,
    },
    Target { name: "watch", run: membership::fuzzing::watches, seeds: membership::fuzzing::alarms },
    Target { name: "map-push", run: map::sync::fuzzing::push, seeds: map::sync::fuzzing::pushes },
    Target { name: "map-pull", run: map::sync::fuzzing::pull, seeds: map::sync::fuzzing::pulls },
    Target { name: "record", run: map::fuzzing::records, seeds: map::fuzzing::pairs },
    Target { name: "lease", run: lease::fuzzing::packets, seeds: lease::fuzzing::conversations },
    Target { name: "join", run: join::fuzzing::exchange, seeds: join::fuzzing::exchanges },
    Target { name: "token", run: join::fuzzing::text, seeds: join::fuzzing::texts },
];

#[cfg(test)]
mod tests;

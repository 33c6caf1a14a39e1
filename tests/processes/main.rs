//! Tests with real processes: the engines, the guard, the tally.
//!
//! They wait for conditions, each with a deadline, never for a time to pass. Whatever they start
//! ends with them, a failed assertion included.

mod conformance;
mod engine;
mod guard;
mod stand_in;
mod tally;
mod waiting;

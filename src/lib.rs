//! Flocker's agent, API and command line.

pub mod engine;
pub mod guard;
pub mod supervisor;
pub mod tally;

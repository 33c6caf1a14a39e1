//! Flocker's agent, API and command line.
pub mod supervisor;

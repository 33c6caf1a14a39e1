//! Bugs put into the simulated world on purpose: each must be caught.

/// What is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mutant {
    /// Nobody's question is heard.
    NoPull,
    /// What was pushed is kept and not passed on.
    NoPassingOn,
    /// Users are told that a change is done before it is on disk.
    EarlyAcknowledgement,
}

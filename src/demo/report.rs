//! What the demo measured, and whether each promise held. A promise that was not put to the test
//! counts as broken.

use serde::Serialize;

use crate::api::Schema;

/// Longest wait of a request during the move that the demo accepts.
pub(super) const MOVE_WAIT_LIMIT_MS: u64 = 1_000;
/// Time beyond the lease within which the first request has to succeed after the kill.
pub(super) const TAKEOVER_BEYOND_LEASE_MS: u64 = 2_000;
/// The lease with which the demo's agents run: the default.
pub(super) const LEASE_MS: u64 = 3_000;
/// The demo's snapshot interval.
pub(super) const SNAPSHOT_EVERY_MS: u64 = 1_000;
/// What taking, sending and acknowledging a snapshot may add to the interval.
pub(super) const REPLICATION_ALLOWANCE_MS: u64 = 1_000;

/// The demo's figures.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Report {
    pub(super) startup_ms: u64,
    pub(super) moved: Option<MoveFigures>,
    pub(super) failover: Option<FailoverFigures>,
    pub(super) promises: Vec<Promise>,
}

impl Schema for Report {
    const SCHEMA: &'static str = "flocker.demo/1";
}

/// The move under load.
#[derive(Clone, Debug, Serialize)]
pub(super) struct MoveFigures {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) sent: u64,
    pub(super) failed: u64,
    pub(super) longest_wait_ms: u64,
    pub(super) pause_ms: u64,
}

/// The kill of the host.
#[derive(Clone, Debug, Serialize)]
pub(super) struct FailoverFigures {
    pub(super) killed: String,
    /// By surviving node: from the SIGKILL to the first answer to a request sent after it.
    pub(super) first_success_ms: Vec<(String, u64)>,
    pub(super) host: String,
    pub(super) epoch: String,
    pub(super) acknowledged: usize,
    pub(super) lost_tail: usize,
    /// From the oldest lost acknowledgement to the kill.
    pub(super) tail_ms: u64,
    pub(super) branch: Option<String>,
    pub(super) tail_in_branch: usize,
}

/// One promise, and whether it held.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Promise {
    pub(super) text: String,
    pub(super) held: bool,
}

/// How many promises the demo puts to the test.
pub(super) const PROMISES: usize = 8;

impl Report {
    pub(super) fn promise(&mut self, text: impl Into<String>, held: bool) -> Promise {
        let promise = Promise { text: text.into(), held };
        self.promises.push(promise.clone());
        promise
    }

    pub(super) fn all_held(&self) -> bool {
        self.promises.len() == PROMISES && self.promises.iter().all(|p| p.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_untested_promise_counts_as_broken() {
        let mut report = Report::default();
        assert!(!report.all_held());
        for n in 0..PROMISES {
            report.promise(n.to_string(), true);
        }
        assert!(report.all_held());
        report.promises[0].held = false;
        assert!(!report.all_held());
    }
}

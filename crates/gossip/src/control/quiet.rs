//! Log lines about one kind of refusal, at most one in a span of time, whoever is refused: a peer
//! or a stranger must never fill the log. It decides nothing but whether a line is due.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use flocker_base::BootTime;

const SPAN: Duration = Duration::from_secs(10);

/// When a line was last written, and how many were left out since.
#[derive(Debug, Default)]
pub(crate) struct Quiet(Mutex<(Option<BootTime>, u64)>);

impl Quiet {
    /// How many lines were left out since the last, if one is due now.
    pub(crate) fn due(&self, now: BootTime) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (said, unsaid) = &mut *state;
        if said.is_some_and(|said| now.saturating_since(said) < SPAN) {
            *unsaid += 1;
            return None;
        }
        *said = Some(now);
        Some(std::mem::take(unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_span_says_how_many_were_left_out() {
        let quiet = Quiet::default();
        let at = BootTime::from_millis;
        assert_eq!(quiet.due(at(0)), Some(0));
        for millis in (1_000..10_000).step_by(1_000) {
            assert_eq!(quiet.due(at(millis)), None);
        }
        assert_eq!(quiet.due(at(10_000)), Some(9));
        assert_eq!(quiet.due(at(10_001)), None);
    }
}

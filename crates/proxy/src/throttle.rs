//! Keeps log lines about strangers' mistakes to a few a second, so that no client can fill a disk.
//! What it holds back is counted, never silently lost.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use flocker_base::BootTime;

const LINES_PER_SECOND: u32 = 10;

/// A small allowance, renewed each second.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    state: Mutex<(BootTime, u32, u64)>,
}

impl Throttle {
    /// Whether a line may be written now; if so, how many were held back before it.
    pub(crate) fn allow(&self, now: BootTime) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (began, written, held_back) = &mut *state;
        if *written == 0 || now - *began >= Duration::from_secs(1) {
            (*began, *written) = (now, 0);
        }
        if *written >= LINES_PER_SECOND {
            *held_back += 1;
            return None;
        }
        *written += 1;
        Some(std::mem::take(held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_lines_a_second_and_the_rest_is_counted() {
        let throttle = Throttle::default();
        let now = BootTime::from_millis(5_000);
        let written = (0..100).filter(|_| throttle.allow(now).is_some()).count();
        assert_eq!(written, 10);
        assert_eq!(throttle.allow(now + Duration::from_secs(1)), Some(90));
        assert_eq!(throttle.allow(now + Duration::from_secs(1)), Some(0));
    }
}

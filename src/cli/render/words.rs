//! Single values as words.

use std::fmt::Display;
use std::time::{Duration, SystemTime};

use flocker_base::WallTime;

use crate::api::{Liveness, ReplicaStatus, ServiceState, Severity, VolumeState};
use crate::cli::style::Mark;

/// What is not known.
pub(super) const UNKNOWN: &str = "?";

/// The value, or that it is not known.
pub(super) fn or_unknown<T: Display>(value: Option<&T>) -> String {
    value.map_or_else(|| UNKNOWN.to_owned(), T::to_string)
}

/// A span as people say it: two figures at most.
pub(super) fn span(millis: u64) -> String {
    let seconds = millis / 1000;
    match seconds {
        _ if millis < 1000 => format!("{millis} ms"),
        0..60 => format!("{seconds}.{} s", millis % 1000 / 100),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// A span that may not be known.
pub(super) fn span_or_unknown(millis: Option<u64>) -> String {
    millis.map_or_else(|| UNKNOWN.to_owned(), span)
}

/// A wall-clock time, in UTC.
pub(in crate::cli) fn time(at: WallTime) -> String {
    let since_epoch = Duration::from_millis(at.as_millis());
    // Beyond the year 9999 there is no such text, and formatting would fail.
    match SystemTime::UNIX_EPOCH.checked_add(since_epoch) {
        Some(time) if since_epoch.as_secs() < 253_402_300_800 => {
            humantime::format_rfc3339_seconds(time).to_string()
        }
        _ => UNKNOWN.to_owned(),
    }
}

/// Text without control characters, and not endless.
pub(in crate::cli) fn clean(text: &str) -> String {
    let harmless = |c: char| {
        let reorders = matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if c.is_control() || reorders { '?' } else { c }
    };
    text.chars().take(500).map(harmless).collect()
}

pub(super) const fn of_liveness(liveness: Liveness) -> Mark {
    match liveness {
        Liveness::Live => Mark::Good,
        Liveness::Suspected => Mark::Partly,
        Liveness::Removed => Mark::Fenced,
        Liveness::Unknown => Mark::Unknown,
    }
}

pub(super) const fn of_volume(state: VolumeState, can_fail_over: bool) -> (Mark, &'static str) {
    match state {
        VolumeState::Active if can_fail_over => (Mark::Good, "active"),
        VolumeState::Active => (Mark::Partly, "active"),
        VolumeState::Frozen => (Mark::Fenced, "frozen"),
        VolumeState::Moving => (Mark::Partly, "moving"),
        VolumeState::Electing => (Mark::Partly, "electing"),
        VolumeState::NeedsDecision => (Mark::Down, "needs a decision"),
        VolumeState::Deleted => (Mark::Down, "deleted"),
        VolumeState::Unknown => (Mark::Unknown, "unknown"),
    }
}

pub(super) const fn of_service(state: ServiceState) -> (Mark, &'static str) {
    match state {
        ServiceState::Running => (Mark::Good, "running"),
        ServiceState::Starting => (Mark::Partly, "starting"),
        ServiceState::Frozen => (Mark::Fenced, "frozen"),
        ServiceState::Held => (Mark::Partly, "held"),
        ServiceState::Moving => (Mark::Partly, "moving"),
        ServiceState::Stopped => (Mark::Down, "stopped"),
        ServiceState::Unknown => (Mark::Unknown, "unknown"),
    }
}

pub(super) const fn of_severity(severity: Severity) -> (Mark, &'static str) {
    match severity {
        Severity::Warning => (Mark::Partly, "warning"),
        Severity::Critical => (Mark::Down, "critical"),
    }
}

/// How a copy fares: its mark and its lag in words.
pub(super) fn of_replica(replica: &ReplicaStatus) -> (Mark, String) {
    match (replica.acked, replica.lag_ms) {
        (true, _) => (Mark::Good, "current".to_owned()),
        (false, Some(lag)) => (Mark::Partly, format!("{} behind", span(lag))),
        (false, None) => (Mark::Unknown, "lag ?".to_owned()),
    }
}

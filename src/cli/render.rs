//! Documents as text for people: pure functions, so that every screen is a test.
//!
//! What is not known is `?`. Text from elsewhere never reaches a terminal with control characters
//! in it.

mod members;
mod mesh;
mod tables;
pub(super) mod words;

pub use members::{node, nodes, removal, tokens};
pub use mesh::status;
pub use tables::{services, volumes};

use std::fmt::Write as _;

use super::style::Style;
use crate::api::{
    ChangeKind, ChangedRecord, DeployReply, EventList, MoveReport, Progress, Promoted, Removed,
    StepState,
};

/// What a deployment did, a record a line.
#[must_use]
pub fn changes(reply: &DeployReply) -> String {
    let mut text = String::new();
    let mut made = 0;
    for change in &reply.changes {
        let record = match change.record {
            ChangedRecord::Volume => "volume",
            ChangedRecord::Service => "service",
            ChangedRecord::Route => "route",
        };
        let kind = match change.change {
            ChangeKind::Created => "created",
            ChangeKind::Changed => "changed",
            ChangeKind::Unchanged => "unchanged",
        };
        made += usize::from(change.change != ChangeKind::Unchanged);
        let _ = writeln!(text, "{kind:<9}  {record:<7}  {}", words::clean(&change.name));
    }
    if made == 0 {
        text.push_str("nothing to change\n");
    }
    text
}

/// A step of a move, as a line.
#[must_use]
pub fn step(step: &Progress, style: &Style) -> String {
    let state = match step.state {
        StepState::Started => style.arrow(),
        StepState::Done => "ok",
        StepState::Failed => "failed",
    };
    let elapsed = words::span(step.elapsed_ms);
    let (name, text) = (words::clean(&step.step), words::clean(&step.text));
    format!("{elapsed:>8}  {name:<10}  {state:<6}  {text}")
}

/// What became of a promotion.
#[must_use]
pub fn promoted(it: &Promoted) -> String {
    let how = if it.forced { " by force" } else { "" };
    let mut text = format!("{} leads {} under epoch {}{how}\n", it.node, it.volume, it.epoch);
    if !it.voters.is_empty() {
        let voters: Vec<_> = it.voters.iter().map(flocker_base::Name::as_str).collect();
        let _ = writeln!(text, "its voters are {} from now on", voters.join(", "));
    }
    if let Some(service) = &it.serving {
        let _ = writeln!(text, "{service} serves there");
    }
    text
}

/// How a move went.
#[must_use]
pub fn moved(report: &MoveReport) -> String {
    format!(
        "{} moved from {} to {} in {}, on epoch {}; requests waited for {} at most\n",
        report.service,
        report.from,
        report.to,
        words::span(report.elapsed_ms),
        report.epoch,
        words::span(report.pause_ms)
    )
}

/// What a removal did.
#[must_use]
pub fn removed(removed: &Removed) -> String {
    let mut text = format!("removed service {}", removed.service);
    for route in &removed.routes {
        let _ = write!(text, " and its route {}", words::clean(route));
    }
    if let Some(volume) = &removed.volume_kept {
        let _ = write!(text, "; its volume {volume} stays");
    }
    text.push('\n');
    text
}

/// Events, one a line.
#[must_use]
pub fn events(list: &EventList) -> String {
    let mut text = String::new();
    for event in &list.events {
        let (at, kind) = (words::time(event.at), words::clean(&event.kind));
        let _ = writeln!(text, "{at}  {kind:<15}  {}", words::clean(&event.text));
    }
    text
}

#[cfg(test)]
mod tests;

//! `flocker conflict`, `quarantine`, `pending` and `repair`: what people settle in the placement
//! map. Each is one call of the client and one rendering, but for `repair`, which works on a state
//! folder whose agent does not run.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use flocker_base::{Name, WallTime};

use super::commands::unless_interrupted;
use super::commands::{CHANGING, Context, MAY_GO_ON, NOTHING_CHANGED, READING, confirm};
use super::output::{self, Ended};
use super::render::words::{clean, time};
use super::{care_help as help, place};
use crate::agent::repair;
use crate::api::{
    ApiError, ConflictList, ErrorCode, MapReply, MapRequest, PendingList, QuarantineList, Settled,
};

#[derive(Debug, Subcommand)]
pub(super) enum Conflict {
    /// List what two sides wrote differently, and names taken twice.
    #[command(visible_alias = "list", long_about = help::CONFLICT_LS, after_long_help = help::conflict_ls())]
    Ls,
    /// Settle a field on one of its values.
    #[command(long_about = help::CONFLICT_SETTLE, after_long_help = help::conflict_settle())]
    Settle(Settle),
    /// Give a volume or a service whose name was taken another one.
    #[command(long_about = help::CONFLICT_RENAME, after_long_help = help::conflict_rename())]
    Rename(Rename),
}

#[derive(Debug, Args)]
pub(super) struct Settle {
    /// The record, as `flocker conflict ls` calls it.
    #[arg(value_name = "RECORD")]
    record: String,
    /// The field.
    #[arg(value_name = "FIELD")]
    field: String,
    /// Which of the values, counted from 1; the first is the one in use.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    to: u32,
}

#[derive(Debug, Args)]
pub(super) struct Rename {
    /// The record, such as `volume/pg-00000002`.
    #[arg(value_name = "RECORD")]
    record: String,
    /// Its new name.
    #[arg(value_name = "NAME")]
    name: Name,
}

#[derive(Debug, Subcommand)]
pub(super) enum Quarantine {
    /// List the records that a node brought after a long absence.
    #[command(visible_alias = "list", long_about = help::QUARANTINE_LS, after_long_help = help::quarantine_ls())]
    Ls,
    /// Take a record into the map, on every node.
    #[command(long_about = help::QUARANTINE_ADMIT, after_long_help = help::quarantine_admit())]
    Admit(Chosen),
    /// Delete a record everywhere, on the node that brought it as well.
    #[command(long_about = help::QUARANTINE_DROP, after_long_help = help::quarantine_drop())]
    Drop(Dropped),
}

#[derive(Debug, Args)]
pub(super) struct Chosen {
    /// The record, as `flocker quarantine ls` calls it.
    #[arg(value_name = "RECORD")]
    record: String,
}

#[derive(Debug, Args)]
pub(super) struct Dropped {
    /// The record, as `flocker quarantine ls` calls it.
    #[arg(value_name = "RECORD")]
    record: String,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Pending {
    /// List the edits that wait on this node for a volume's master, and those that it refused.
    #[command(visible_alias = "list", long_about = help::PENDING_LS, after_long_help = help::pending_ls())]
    Ls,
    /// Forget such an edit.
    #[command(long_about = help::PENDING_DROP, after_long_help = help::pending_drop())]
    Drop(PendingDrop),
}

#[derive(Debug, Args)]
pub(super) struct PendingDrop {
    /// Its number, as `flocker pending ls` shows it.
    #[arg(value_name = "NUMBER")]
    number: u64,
}

#[derive(Debug, Subcommand)]
pub(super) enum Repair {
    /// Take what is damaged out of a stopped node's placement map.
    #[command(long_about = help::REPAIR_MAP, after_long_help = help::repair_map())]
    Map(RepairMap),
}

#[derive(Debug, Args)]
pub(super) struct RepairMap {
    /// The node's state folder [default: /var/lib/flocker, or ~/.local/state/flocker].
    #[arg(long, env = "FLOCKER_STATE_DIR", hide_env_values = true, value_name = "FOLDER")]
    state_dir: Option<PathBuf>,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
}

async fn ask(context: &Context, request: MapRequest, changes: bool) -> Result<MapReply, ApiError> {
    let (usual, after) = if changes { (CHANGING, MAY_GO_ON) } else { (READING, NOTHING_CHANGED) };
    let client = context.client(usual);
    unless_interrupted(client.map(&request), after).await
}

fn nonsense() -> ApiError {
    ApiError::internal("the agent answers something else than was asked")
        .hint("compare 'flocker version' with the agent's")
}

async fn conflicts(context: &Context) -> Result<ConflictList, ApiError> {
    match ask(context, MapRequest::Conflicts, false).await? {
        MapReply::Conflicts(list) => Ok(list),
        _ => Err(nonsense()),
    }
}

pub(super) async fn conflict(context: &Context, command: Conflict) -> Result<(), Ended> {
    let request = match command {
        Conflict::Ls => {
            let list = conflicts(context).await?;
            if context.json() {
                return output::document(list);
            }
            return output::result(&if context.quiet() {
                list.fields.iter().map(|it| format!("{} {}\n", it.record, it.field)).collect()
            } else {
                conflict_text(&list)
            });
        }
        Conflict::Settle(Settle { record, field, to }) => {
            let list = conflicts(context).await?;
            let conflict = list.fields.iter().find(|it| it.record == record && it.field == field);
            let conflict = conflict.ok_or_else(|| {
                ApiError::not_found(format!("the field {field} of {record} is not in conflict"))
                    .hint("list what is: flocker conflict ls")
            })?;
            let value = conflict.values.iter().find(|value| value.number == to);
            let value = value.ok_or_else(|| {
                let most = conflict.values.len();
                ApiError::new(ErrorCode::Usage, format!("there is no value {to}, only 1 to {most}"))
            })?;
            MapRequest::Settle { record, field, by: value.store, stamp: value.stamp }
        }
        Conflict::Rename(Rename { record, name }) => MapRequest::Rename { record, name },
    };
    settle(context, request).await
}

pub(super) async fn quarantine(context: &Context, command: Quarantine) -> Result<(), Ended> {
    let request = match command {
        Quarantine::Ls => {
            let MapReply::Quarantine(list) = ask(context, MapRequest::Quarantine, false).await?
            else {
                return Err(nonsense().into());
            };
            if context.json() {
                return output::document(list);
            }
            return output::result(&if context.quiet() {
                list.records.iter().map(|it| format!("{}\n", it.record)).collect()
            } else {
                quarantine_text(&list)
            });
        }
        Quarantine::Admit(Chosen { record }) => MapRequest::Admit { record },
        Quarantine::Drop(Dropped { record, yes }) => {
            if !yes {
                confirm(&format!("Delete {record} everywhere, on the node that brought it too?"))?;
            }
            MapRequest::Drop { record }
        }
    };
    settle(context, request).await
}

pub(super) async fn pending(context: &Context, command: Pending) -> Result<(), Ended> {
    match command {
        Pending::Ls => {
            let MapReply::Pending(list) = ask(context, MapRequest::Pending, false).await? else {
                return Err(nonsense().into());
            };
            if context.json() {
                return output::document(list);
            }
            output::result(&if context.quiet() {
                list.edits.iter().map(|it| format!("{}\n", it.number)).collect()
            } else {
                pending_text(&list)
            })
        }
        Pending::Drop(PendingDrop { number }) => {
            settle(context, MapRequest::DropPending { number }).await
        }
    }
}

async fn settle(context: &Context, request: MapRequest) -> Result<(), Ended> {
    let MapReply::Settled(done) = ask(context, request, true).await? else {
        return Err(nonsense().into());
    };
    let Settled { record, text } = &done;
    if context.json() {
        output::document(done)
    } else if context.quiet() {
        Ok(())
    } else {
        output::result(&format!("{}: {}\n", clean(record), clean(text)))
    }
}

pub(super) fn repair(context: &Context, command: Repair) -> Result<(), Ended> {
    let Repair::Map(args) = command;
    let folder = args.state_dir.unwrap_or_else(place::state_dir);
    if !args.yes {
        confirm(&format!(
            "Take what is damaged out of the map in {}? What no other node has is lost.",
            folder.display()
        ))?;
    }
    let report = repair::map(&folder)?;
    if context.json() {
        return output::document(report);
    }
    if context.quiet() {
        return output::result(
            &report.dropped.iter().map(|it| format!("{it}\n")).collect::<String>(),
        );
    }
    let mut text = format!("{} records are whole\n", report.kept);
    for record in &report.dropped {
        let _ = writeln!(text, "dropped    {}", clean(record));
    }
    match report.unnamed {
        Some(u64::MAX) => text.push_str("dropped    others that can't be counted\n"),
        Some(count) => {
            let _ = writeln!(text, "dropped    {count} that can't be named");
        }
        None => {}
    }
    if let Some(old) = &report.old_file {
        let _ = writeln!(text, "the damaged file is kept as {}", old.display());
    }
    text.push_str("start the agent with 'flocker up': its peers bring back what they have\n");
    output::result(&text)
}

fn conflict_text(list: &ConflictList) -> String {
    let mut text = String::new();
    for it in &list.fields {
        let _ = writeln!(text, "{}  {}", clean(&it.record), it.field);
        for value in &it.values {
            let used = if value.number == 1 { "  (in use)" } else { "" };
            let (node, at) = (&value.node, time(value.at));
            let shown = clean(&value.text);
            let _ = writeln!(text, "  {}  {shown}  by {node} at {at}{used}", value.number);
        }
    }
    for it in &list.names {
        let record = clean(&it.record);
        let _ = writeln!(text, "{record}  wants the name {}, which another had first", it.wanted);
    }
    for it in &list.unreadable {
        let _ = writeln!(text, "{}  can't be read: {}", clean(&it.record), clean(&it.why));
    }
    for alarm in &list.alarms {
        let _ = writeln!(text, "{}", clean(alarm));
    }
    if text.is_empty() { "nothing is in conflict\n".to_owned() } else { text }
}

fn quarantine_text(list: &QuarantineList) -> String {
    let mut text = String::new();
    for it in &list.records {
        let name = it.name.as_deref().map(|name| format!("  ({})", clean(name)));
        let written: Option<WallTime> = it.written;
        let written = written.map_or_else(|| "?".to_owned(), time);
        let _ = writeln!(
            text,
            "{}{}  written {written}, brought by {} at {}",
            clean(&it.record),
            name.unwrap_or_default(),
            it.from,
            time(it.came)
        );
    }
    if text.is_empty() { "nothing is in quarantine on this node\n".to_owned() } else { text }
}

fn pending_text(list: &PendingList) -> String {
    let mut text = String::new();
    for it in &list.edits {
        let state = match (&it.refused, &it.master) {
            (Some(why), _) => format!("refused: {}", clean(why)),
            (None, Some(master)) => format!("waits for {master}"),
            (None, None) => "waits for a master".to_owned(),
        };
        let (record, change) = (clean(&it.record), clean(&it.change));
        let _ = writeln!(text, "{}  {record}  {change}  {state}", it.number);
    }
    if text.is_empty() { "no edit waits on this node\n".to_owned() } else { text }
}

#[cfg(test)]
mod tests;

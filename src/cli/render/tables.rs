//! Lists as tables.

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table};

use super::words::{self, of_replica, of_service, of_volume, or_unknown};
use crate::api::{ServiceStatus, VolumeStatus};
use crate::cli::style::Style;

/// The services as a table.
#[must_use]
pub fn services(services: &[ServiceStatus], style: &Style) -> String {
    if services.is_empty() {
        return "no services; deploy some with 'flocker deploy FILE'\n".to_owned();
    }
    let mut table = plain();
    let mut header = vec!["SERVICE", "STATE", "NODE", "VOLUME", "EPOCH"];
    if style.wide {
        header.extend(["ADDRESS", "PID", "ID"]);
    }
    table.set_header(header);
    for service in services {
        let (mark, state) = of_service(service.state);
        let mut row = vec![
            service.name.to_string(),
            format!("{} {state}", style.mark(mark)),
            or_unknown(service.node.as_ref()),
            service.volume.to_string(),
            or_unknown(service.epoch.as_ref()),
        ];
        if style.wide {
            row.push(or_unknown(service.address.as_ref()));
            row.push(or_unknown(service.pid.as_ref()));
            row.push(service.id.to_string());
        }
        table.add_row(row);
    }
    finish(&table, style)
}

/// The volumes as a table.
#[must_use]
pub fn volumes(volumes: &[VolumeStatus], style: &Style) -> String {
    if volumes.is_empty() {
        return "no volumes; deploy some with 'flocker deploy FILE'\n".to_owned();
    }
    let mut table = plain();
    let mut header = vec!["VOLUME", "STATE", "MASTER", "EPOCH", "COPIES", "FAILS OVER"];
    if style.wide {
        header.extend(["VOTERS", "BRANCHES", "ID"]);
    }
    table.set_header(header);
    for volume in volumes {
        let (mark, state) = of_volume(volume.state, volume.can_fail_over);
        let mut row = vec![
            Cell::new(&volume.name),
            Cell::new(format!("{} {state}", style.mark(mark))),
            Cell::new(or_unknown(volume.master.as_ref())),
            Cell::new(or_unknown(volume.epoch.as_ref())),
            Cell::new(copies(volume)),
            Cell::new(fails_over(volume)),
        ];
        if style.wide {
            let voters: Vec<&str> = volume.voters.iter().map(flocker_base::Name::as_str).collect();
            row.push(Cell::new(voters.join(" ")));
            row.push(Cell::new(volume.branches.len()).set_alignment(CellAlignment::Right));
            row.push(Cell::new(volume.id));
        }
        table.add_row(row);
    }
    finish(&table, style)
}

/// The copies beside the master's, a line each.
fn copies(volume: &VolumeStatus) -> String {
    let others: Vec<String> = volume
        .replicas
        .iter()
        .filter(|replica| Some(&replica.node) != volume.master.as_ref())
        .map(|replica| format!("{} {}", replica.node, of_replica(replica).1))
        .collect();
    if others.is_empty() { "none".to_owned() } else { others.join("\n") }
}

/// Whether the loss of the master is survived, in words.
pub(super) fn fails_over(volume: &VolumeStatus) -> String {
    match (volume.can_fail_over, &volume.why_not) {
        (true, _) => "yes".to_owned(),
        (false, Some(why)) => format!("no: {}", words::clean(why)),
        (false, None) => "no".to_owned(),
    }
}

/// A table without lines, for columns that line up.
pub(super) fn plain() -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table
}

/// The table as text: no blanks at line ends, symbols coloured.
pub(super) fn finish(table: &Table, style: &Style) -> String {
    style.paint(lines(table, ""))
}

/// The table's lines, each indented.
pub(super) fn lines(table: &Table, indent: &str) -> String {
    // The first column's own left padding is cut off.
    table
        .lines()
        .map(|line| format!("{indent}{}\n", line.strip_prefix(' ').unwrap_or(&line).trim_end()))
        .collect()
}

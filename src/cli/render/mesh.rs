//! The mesh at a glance: what needs a person first, then regions, volumes, services, routes.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::tables::{fails_over, lines, plain};
use super::words::{
    self, UNKNOWN, of_liveness, of_replica, of_service, of_severity, of_volume, or_unknown, span,
    span_or_unknown,
};
use crate::api::{Liveness, NodeStatus, Status, VolumeStatus};
use crate::cli::style::{Mark, Style};

/// The mesh view.
#[must_use]
pub fn status(status: &Status, style: &Style) -> String {
    let mut text = head(status);
    attention(&mut text, status, style);
    nodes(&mut text, status, style);
    volumes(&mut text, status, style);
    services(&mut text, status, style);
    routes(&mut text, status, style);
    operations(&mut text, status, style);
    next(&mut text, status);
    style.paint(text)
}

fn head(status: &Status) -> String {
    let age = match status.oldest_fact_ms {
        Some(age) => format!("no fact older than {}", span(age)),
        None => "some facts of unknown age".to_owned(),
    };
    format!(
        "Mesh {} as {} sees it at {}, {age}\n",
        status.cluster.id.short(),
        status.viewed_from,
        words::time(status.at)
    )
}

fn attention(text: &mut String, status: &Status, style: &Style) {
    if status.attention.is_empty() {
        text.push_str("Nothing needs a person.\n");
        return;
    }
    let _ = writeln!(text, "\n{}", style.heading("Needs a person"));
    for item in &status.attention {
        let (mark, word) = of_severity(item.severity);
        let _ = writeln!(text, "  {} {word}: {}", style.mark(mark), words::clean(&item.text));
        if let Some(command) = &item.command {
            let _ = writeln!(text, "      {} {}", style.arrow(), words::clean(command));
        }
    }
}

fn nodes(text: &mut String, status: &Status, style: &Style) {
    let mut regions: BTreeMap<&str, Vec<&NodeStatus>> = BTreeMap::new();
    for node in &status.nodes {
        regions.entry(node.region.as_str()).or_default().push(node);
    }
    for (region, nodes) in regions {
        let _ = writeln!(text, "\n{}", style.heading(&format!("Region {region}")));
        let mut table = plain();
        for node in nodes {
            table.add_row(node_row(node, style));
        }
        text.push_str(&lines(&table, "  "));
    }
}

fn node_row(node: &NodeStatus, style: &Style) -> Vec<String> {
    let health = match node.liveness {
        Liveness::Live => "live".to_owned(),
        Liveness::Suspected => {
            format!("suspected for {}", span_or_unknown(node.suspected_for_ms))
        }
        Liveness::Removed => "removed".to_owned(),
        Liveness::Unknown => "never heard of".to_owned(),
    };
    let distance = if node.is_self {
        "this node".to_owned()
    } else {
        format!("rtt {}", span_or_unknown(node.rtt_ms))
    };
    let version = node.version.as_deref().map_or_else(|| UNKNOWN.to_owned(), words::clean);
    let mut row = vec![
        format!("{} {}", style.mark(of_liveness(node.liveness)), node.name),
        health,
        distance,
        format!("version {version}"),
        format!("http {}", or_unknown(node.http.as_ref())),
    ];
    if style.wide {
        row.push(format!("control {}", or_unknown(node.control.as_ref())));
        row.push(format!("data {}", or_unknown(node.data.as_ref())));
        row.push(node.store.to_string());
    }
    row
}

fn volumes(text: &mut String, status: &Status, style: &Style) {
    if status.volumes.is_empty() {
        return;
    }
    let _ = writeln!(text, "\n{}", style.heading("Volumes"));
    for volume in &status.volumes {
        volume_block(text, volume, style);
    }
}

fn volume_block(text: &mut String, volume: &VolumeStatus, style: &Style) {
    let (mark, state) = of_volume(volume.state, volume.can_fail_over);
    let _ = write!(
        text,
        "  {} {}  {state}, master {}, epoch {}",
        style.mark(mark),
        volume.name,
        or_unknown(volume.master.as_ref()),
        or_unknown(volume.epoch.as_ref())
    );
    if let Some(left) = volume.lease_left_ms {
        let _ = write!(text, ", lease for {}", span(left));
    }
    let _ = writeln!(text, ", fails over by itself: {}", fails_over(volume));
    if style.wide {
        let voters: Vec<&str> = volume.voters.iter().map(flocker_base::Name::as_str).collect();
        let _ = writeln!(text, "      id {}, voters {}", volume.id, voters.join(" "));
    }
    let mut table = plain();
    for replica in &volume.replicas {
        let is_master = Some(&replica.node) == volume.master.as_ref();
        let (mark, lag) =
            if is_master { (Mark::Good, "master".to_owned()) } else { of_replica(replica) };
        table.add_row(vec![
            format!("{} {}", style.mark(mark), replica.node),
            lag,
            format!("snapshot {}", or_unknown(replica.head.as_ref())),
        ]);
    }
    if !volume.replicas.is_empty() {
        text.push_str(&lines(&table, "      "));
    }
    for branch in &volume.branches {
        let _ = writeln!(
            text,
            "      kept on {}: branch {} up to {}",
            branch.node,
            words::clean(&branch.name),
            or_unknown(branch.head.as_ref())
        );
    }
}

fn services(text: &mut String, status: &Status, style: &Style) {
    if status.services.is_empty() {
        return;
    }
    let _ = writeln!(text, "\n{}", style.heading("Services"));
    let mut table = plain();
    for service in &status.services {
        let (mark, state) = of_service(service.state);
        let mut row = vec![
            format!("{} {}", style.mark(mark), service.name),
            state.to_owned(),
            format!("on {}", or_unknown(service.node.as_ref())),
            format!("volume {}", service.volume),
            format!("epoch {}", or_unknown(service.epoch.as_ref())),
        ];
        if style.wide {
            row.push(format!("at {}", or_unknown(service.address.as_ref())));
            row.push(format!("pid {}", or_unknown(service.pid.as_ref())));
            row.push(service.id.to_string());
        }
        table.add_row(row);
    }
    text.push_str(&lines(&table, "  "));
}

fn routes(text: &mut String, status: &Status, style: &Style) {
    if status.routes.is_empty() {
        return;
    }
    let _ = writeln!(text, "\n{}", style.heading("Routes"));
    let mut table = plain();
    for route in &status.routes {
        let to = format!("{} {}", style.arrow(), route.service);
        let node = format!("on {}", or_unknown(route.node.as_ref()));
        table.add_row(vec![words::clean(&route.route), to, node]);
    }
    text.push_str(&lines(&table, "  "));
}

fn operations(text: &mut String, status: &Status, style: &Style) {
    if status.operations.is_empty() {
        return;
    }
    let _ = writeln!(text, "\n{}", style.heading("Under way"));
    for operation in &status.operations {
        let _ = writeln!(
            text,
            "  {}: {}, for {}",
            words::clean(&operation.text),
            words::clean(&operation.step),
            span(operation.elapsed_ms)
        );
    }
}

/// What to do next: for a mesh that has not begun, how to begin.
fn next(text: &mut String, status: &Status) {
    let first = status.attention.iter().find_map(|item| item.command.as_deref());
    let line = if let Some(command) = first {
        words::clean(command)
    } else if status.nodes.len() <= 1 {
        "flocker token create    (lets another machine join; three can lose one)".to_owned()
    } else if status.services.is_empty() {
        "flocker deploy FILE    ('flocker help deploy' shows such a file)".to_owned()
    } else {
        return;
    };
    let _ = writeln!(text, "\nNext: {line}");
}

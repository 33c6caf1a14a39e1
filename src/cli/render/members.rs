//! Tokens and nodes as text.

use std::fmt::Write as _;

use super::tables::{finish, plain};
use super::words::{self, or_unknown, span, span_or_unknown};
use crate::api::{NodeDetails, NodeInfo, NodeList, NodeState, TokenList, TokenState, TokenStatus};
use crate::cli::style::{Mark, Style};

/// The tokens as a table.
#[must_use]
pub fn tokens(list: &TokenList, style: &Style) -> String {
    if list.tokens.is_empty() {
        return "no tokens; make one with 'flocker token create'\n".to_owned();
    }
    let mut table = plain();
    let mut header = vec!["TOKEN", "STATE", "EXPIRES", "USES LEFT", "FOR", "MADE", "NOTE"];
    if style.wide {
        header.push("ID");
    }
    table.set_header(header);
    for token in &list.tokens {
        let (mark, state) = of_token(token.state);
        let mut row = vec![
            token.id.short(),
            format!("{} {state}", style.mark(mark)),
            match (token.expires_in_ms, token.ended_ms_ago) {
                (_, Some(ago)) => format!("ended {} ago", span(ago)),
                (Some(left), None) => format!("in {}", span(left)),
                (None, None) => words::UNKNOWN.to_owned(),
            },
            uses(token),
            preset(token),
            format!("{} ago by {}", span(token.made_ms_ago), or_unknown(token.made_by.as_ref())),
            token.note.as_deref().map(words::clean).unwrap_or_default(),
        ];
        if style.wide {
            row.push(token.id.to_string());
        }
        table.add_row(row);
    }
    finish(&table, style)
}

const fn of_token(state: TokenState) -> (Mark, &'static str) {
    match state {
        TokenState::Live => (Mark::Good, "live"),
        TokenState::BlockedHere => (Mark::Fenced, "blocked here"),
        TokenState::Expired => (Mark::Down, "expired"),
        TokenState::UsedUp => (Mark::Down, "used up"),
        TokenState::Revoked => (Mark::Down, "revoked"),
        TokenState::Void => (Mark::Down, "void"),
        TokenState::Unknown => (Mark::Unknown, "unknown"),
    }
}

fn uses(token: &TokenStatus) -> String {
    match (token.uses, token.uses_left) {
        (None, _) => "any number".to_owned(),
        (Some(all), left) => format!("{} of {all}", or_unknown(left.as_ref())),
    }
}

fn preset(token: &TokenStatus) -> String {
    match (&token.name, &token.region) {
        (None, None) => "any region".to_owned(),
        (Some(name), None) => format!("node {name}"),
        (None, Some(region)) => format!("region {region}"),
        (Some(name), Some(region)) => format!("node {name} in {region}"),
    }
}

/// The nodes as a table.
#[must_use]
pub fn nodes(list: &NodeList, style: &Style) -> String {
    let mut table = plain();
    let mut header = vec!["NODE", "REGION", "STATE", "FOR", "ROUND TRIP", "VERSION"];
    if style.wide {
        header.extend(["CONTROL", "DATA", "HTTP", "STARTS", "LABELS", "ID"]);
    }
    table.set_header(header);
    for node in &list.nodes {
        let (mark, state) = of_node(node.state);
        let mut row = vec![
            node.name.to_string(),
            node.region.to_string(),
            format!("{} {state}", style.mark(mark)),
            span_or_unknown(node.state_for_ms),
            if node.is_self { "this node".to_owned() } else { span_or_unknown(node.rtt_ms) },
            node.version.as_deref().map_or_else(|| words::UNKNOWN.to_owned(), words::clean),
        ];
        if style.wide {
            row.push(or_unknown(node.control.as_ref()));
            row.push(or_unknown(node.data.as_ref()));
            row.push(node.http.map_or_else(|| "none".to_owned(), |at| at.to_string()));
            row.push(or_unknown(node.incarnation.as_ref()));
            row.push(labels(node));
            row.push(node.store.to_string());
        }
        table.add_row(row);
    }
    finish(&table, style)
}

const fn of_node(state: NodeState) -> (Mark, &'static str) {
    match state {
        NodeState::Live => (Mark::Good, "live"),
        NodeState::Suspected => (Mark::Partly, "suspected"),
        NodeState::Left => (Mark::Down, "left"),
        NodeState::Removed => (Mark::Fenced, "removed"),
        NodeState::Unknown => (Mark::Unknown, "never heard of"),
    }
}

fn labels(node: &NodeInfo) -> String {
    if node.labels.is_empty() {
        return "none".to_owned();
    }
    let all: Vec<String> =
        node.labels.iter().map(|(k, v)| words::clean(&format!("{k}={v}"))).collect();
    all.join(" ")
}

/// One node.
#[must_use]
pub fn node(details: &NodeDetails, style: &Style) -> String {
    let node = &details.node;
    let (mark, state) = of_node(node.state);
    let mut text = String::new();
    let mut line = |what: &str, value: String| {
        let _ = writeln!(text, "  {what:<11} {value}");
    };
    line(
        "state",
        format!("{} {state}, for {}", style.mark(mark), span_or_unknown(node.state_for_ms)),
    );
    line("region", node.region.to_string());
    line("id", node.store.to_string());
    line("starts", or_unknown(node.incarnation.as_ref()));
    line(
        "version",
        node.version.as_deref().map_or_else(|| words::UNKNOWN.to_owned(), words::clean),
    );
    line("control", or_unknown(node.control.as_ref()));
    line("data", or_unknown(node.data.as_ref()));
    line("http", node.http.map_or_else(|| "none".to_owned(), |at| at.to_string()));
    line("labels", labels(node));
    if let Some(joined) = &node.joined {
        let ago = span(joined.ms_ago);
        line(
            "joined",
            format!("{ago} ago through {}, with token {}", joined.by, joined.token.short()),
        );
    }
    if let Some(by) = &node.removed_by {
        line("removed by", by.to_string());
    }
    for volume in &details.volumes {
        let parts = [(volume.master, "master"), (volume.copy, "copy"), (volume.votes, "voter")];
        let roles: Vec<&str> = parts.iter().filter(|(is, _)| *is).map(|(_, word)| *word).collect();
        line("volume", format!("{}: {}", volume.volume, roles.join(", ")));
    }
    style.paint(format!("{}\n{text}", node.name))
}

/// What a node's removal would mean.
#[must_use]
pub fn removal(details: &NodeDetails) -> String {
    let node = &details.node;
    if node.state == NodeState::Removed {
        return format!("{} was removed before\n", node.name);
    }
    let mut text = format!(
        "To remove node {} ({}) means:\n  it never comes back under its present state; every node \
         refuses it\n",
        node.name,
        node.store.short()
    );
    for what in &details.removal_means {
        let _ = writeln!(text, "  {}", words::clean(what));
    }
    for what in &details.removal_needs_force {
        let _ = writeln!(text, "  needs --force: {}", words::clean(what));
    }
    text
}

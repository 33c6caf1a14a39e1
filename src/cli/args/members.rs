//! The arguments of `flocker token` and `flocker node`.

use std::time::Duration;

use clap::{Args, Subcommand};
use flocker_base::Name;
use flocker_gossip::lease::LeaseConfig;
use flocker_gossip::lease::config::LONGEST_LEASE;
use flocker_gossip::map::quarantine::QuarantineConfig;

use crate::cli::help;

/// The guard looks at the leases ten times a second: a shorter one leaves it no room.
const SHORTEST_LEASE: Duration = Duration::from_secs(1);

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Token {
    /// Make a join token and print the command to run on a new node.
    #[command(long_about = help::TOKEN_CREATE, after_long_help = help::token_create())]
    Create(TokenCreate),
    /// List the join tokens.
    #[command(visible_alias = "list", long_about = help::TOKEN_LS, after_long_help = help::token_ls())]
    Ls(TokenLs),
    /// Revoke join tokens: nobody joins with them any more.
    #[command(long_about = help::TOKEN_REVOKE, after_long_help = help::token_revoke())]
    Revoke(TokenRevoke),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct TokenCreate {
    /// How long it is good for, from `1m` to `30d`.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = token_life)]
    pub(in crate::cli) expires: Duration,
    /// For how many nodes [default: any number]. It is then good at this node alone.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(in crate::cli) uses: Option<u32>,
    /// The region that whoever joins with it takes.
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) region: Option<Name>,
    /// The name that the node which joins with it takes; implies `--uses 1`.
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) name: Option<Name>,
    /// What it is for, to be shown in `flocker token ls`.
    #[arg(long, value_name = "TEXT")]
    pub(in crate::cli) note: Option<String>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct TokenLs {
    /// Those as well that admit nobody any more.
    #[arg(short, long)]
    pub(in crate::cli) all: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct TokenRevoke {
    /// Their ids, or parts of them that no other has; or whole tokens.
    #[arg(value_name = "ID", required = true)]
    pub(in crate::cli) tokens: Vec<String>,
}

fn token_life(text: &str) -> Result<Duration, String> {
    let range = Duration::from_secs(60)..=Duration::from_secs(30 * 86_400);
    match humantime::parse_duration(text) {
        Ok(span) if range.contains(&span) => Ok(span),
        Ok(_) => Err("a token lives from 1m to 30d".to_owned()),
        Err(error) => Err(format!("{error}; give a time such as 1h")),
    }
}

/// After how long an absence records are put in quarantine.
pub(super) fn absence(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(after) => match (QuarantineConfig { after }).validate() {
            Ok(()) => Ok(after),
            Err(why) => Err(why.to_owned()),
        },
        Err(error) => Err(format!("{error}; give a time such as 7d")),
    }
}

/// The length of leases.
pub(super) fn lease(text: &str) -> Result<Duration, String> {
    let lease = span(text, "3s", SHORTEST_LEASE, LONGEST_LEASE)?;
    LeaseConfig::of(lease).validate().map_err(|why| why.to_string())?;
    Ok(lease)
}

/// How long a node may be away before it is replaced.
pub(super) fn replacement(text: &str) -> Result<Duration, String> {
    span(text, "10m", Duration::from_secs(10), Duration::from_secs(30 * 86_400))
}

fn span(text: &str, such_as: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(span) if (least..=most).contains(&span) => Ok(span),
        Ok(_) => Err(format!(
            "it must be from {} to {}",
            humantime::format_duration(least),
            humantime::format_duration(most)
        )),
        Err(error) => Err(format!("{error}; give a time such as {such_as}")),
    }
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Node {
    /// List the nodes.
    #[command(visible_alias = "list", long_about = help::NODE_LS, after_long_help = help::node_ls())]
    Ls(NodeLs),
    /// Show one node: what it is, what is on it, what its removal would mean.
    #[command(long_about = help::NODE_SHOW, after_long_help = help::node_show())]
    Show(NodeShow),
    /// Remove a node from the cluster, for ever.
    #[command(visible_alias = "remove", long_about = help::NODE_RM, after_long_help = help::node_rm())]
    Rm(NodeRm),
    /// Set and take away labels of a node.
    #[command(long_about = help::NODE_LABEL, after_long_help = help::node_label())]
    Label(NodeLabel),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct NodeLs {
    /// The removed ones as well.
    #[arg(short, long)]
    pub(in crate::cli) all: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct NodeShow {
    /// The node's name, or its id or a part of it.
    #[arg(value_name = "NODE", value_parser = node)]
    pub(in crate::cli) node: String,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct NodeRm {
    /// The node's name, or its id or a part of it.
    #[arg(value_name = "NODE", value_parser = node)]
    pub(in crate::cli) node: String,
    /// Do not ask.
    #[arg(short, long)]
    pub(in crate::cli) yes: bool,
    /// Even if it lives, is a master, or has a vote that is needed.
    #[arg(long)]
    pub(in crate::cli) force: bool,
    /// Say what it would mean, and change nothing.
    #[arg(long)]
    pub(in crate::cli) dry_run: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct NodeLabel {
    /// The node's name, or its id or a part of it.
    #[arg(value_name = "NODE", value_parser = node)]
    pub(in crate::cli) node: String,
    /// A label to set, or with a '-' after its name, to take away.
    #[arg(value_name = "NAME=VALUE|NAME-", required = true, value_parser = label)]
    pub(in crate::cli) labels: Vec<(String, Option<String>)>,
}

/// A name or an id: both have these letters alone, so that it can stand in a path.
fn node(text: &str) -> Result<String, String> {
    match Name::new(text) {
        Ok(name) => Ok(name.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

fn label(text: &str) -> Result<(String, Option<String>), String> {
    match (text.split_once('='), text.strip_suffix('-')) {
        (Some((key, value)), _) if !key.is_empty() => Ok((key.to_owned(), Some(value.to_owned()))),
        (None, Some(key)) if !key.is_empty() => Ok((key.to_owned(), None)),
        _ => Err("write NAME=VALUE to set a label, NAME- to take one away".to_owned()),
    }
}

//! The commands about tokens and nodes. Each is a call of the client and a rendering; only
//! `node rm` asks twice, first what the removal would mean.

use std::fmt::Write as _;
use std::io::{self, BufRead, IsTerminal};
use std::time::Duration;

use flocker_gossip::join::{JoinString, Token as JoinToken};

use super::args::{Node, NodeLabel, NodeRm, Token, TokenCreate, TokenRevoke};
use super::commands::{CHANGING, Context, MAY_GO_ON, NOTHING_CHANGED, READING, unless_interrupted};
use super::output::{self, Ended};
use super::render;
use crate::api::{self, ApiError, ErrorCode, NodeDetails, NodeState, TokenState};

pub(super) async fn token(context: &Context, args: &Token) -> Result<(), Ended> {
    match args {
        Token::Create(args) => create_token(context, args).await,
        Token::Ls(args) => {
            let client = context.client(READING);
            let mut list = unless_interrupted(client.tokens(), NOTHING_CHANGED).await?;
            let admits = |state| matches!(state, TokenState::Live | TokenState::BlockedHere);
            list.tokens.retain(|token| args.all || admits(token.state));
            if context.json() {
                output::document(list)
            } else if context.quiet() {
                output::result(&lines(list.tokens.iter().map(|t| t.id)))
            } else {
                output::result(&render::tokens(&list, &context.style()))
            }
        }
        Token::Revoke(args) => revoke(context, args).await,
    }
}

async fn create_token(context: &Context, args: &TokenCreate) -> Result<(), Ended> {
    let request = api::TokenCreate {
        valid_for_ms: u64::try_from(args.expires.as_millis()).unwrap_or(u64::MAX),
        uses: args.uses,
        region: args.region.clone(),
        name: args.name.clone(),
        note: args.note.clone(),
    };
    let client = context.client(CHANGING);
    let token = unless_interrupted(client.create_token(&request), MAY_GO_ON).await?;
    if context.json() {
        return output::document(token);
    }
    if context.quiet() {
        return output::result(&format!("{}\n", token.join));
    }
    let span = humantime::format_duration(Duration::from_millis(token.valid_for_ms));
    let nodes = match token.uses {
        None => "on any number of new nodes".to_owned(),
        Some(1) => "on one new node".to_owned(),
        Some(uses) => format!("on {uses} new nodes"),
    };
    let mut line = format!("flocker up --join {}", token.join);
    if token.needs_certificate {
        output::note(
            "This cluster's certificates come from an authority outside: on each new node run \
             `flocker identity csr` first, and have that authority sign what it writes.",
        );
        line.push_str(" --ca-cert CA.pem --cert NODE.pem --key NODE.key");
    }
    output::note(&format!("Run this {nodes} within {span}; treat it as a password:"));
    output::result(&format!("{line}\n"))?;
    if token.uses.is_some() {
        output::note("Only this node admits with it: keep its agent running until then.");
    }
    Ok(())
}

async fn revoke(context: &Context, args: &TokenRevoke) -> Result<(), Ended> {
    let tokens = args.tokens.iter().map(|text| id_of(text)).collect();
    let client = context.client(CHANGING);
    let request = api::TokenRevoke { tokens };
    let done = unless_interrupted(client.revoke_tokens(&request), MAY_GO_ON).await?;
    if context.json() {
        return output::document(done);
    }
    if context.quiet() {
        return Ok(());
    }
    let mut text = String::new();
    for id in &done.revoked {
        let _ = writeln!(text, "revoked {}", id.short());
    }
    for id in &done.already {
        let _ = writeln!(text, "{} was revoked before", id.short());
    }
    output::result(&text)
}

/// A whole token or join line stands for its id: who has found one has no other name for it.
fn id_of(text: &str) -> String {
    let token = text.parse::<JoinToken>().ok();
    let token = token.or_else(|| text.parse::<JoinString>().ok().map(|line| line.token));
    token.map_or_else(|| text.to_owned(), |token| token.id.to_string())
}

pub(super) async fn node(context: &Context, args: &Node) -> Result<(), Ended> {
    match args {
        Node::Ls(args) => {
            let client = context.client(READING);
            let mut list = unless_interrupted(client.nodes(), NOTHING_CHANGED).await?;
            list.nodes.retain(|node| args.all || node.state != NodeState::Removed);
            if context.json() {
                output::document(list)
            } else if context.quiet() {
                output::result(&lines(list.nodes.iter().map(|n| &n.name)))
            } else {
                output::result(&render::nodes(&list, &context.style()))
            }
        }
        Node::Show(args) => {
            let client = context.client(READING);
            let node = unless_interrupted(client.node(&args.node), NOTHING_CHANGED).await?;
            if context.json() {
                output::document(node)
            } else if context.quiet() {
                output::result(&format!("{}\n", node.node.name))
            } else {
                output::result(&render::node(&node, &context.style()))
            }
        }
        Node::Rm(args) => remove(context, args).await,
        Node::Label(args) => label(context, args).await,
    }
}

async fn remove(context: &Context, args: &NodeRm) -> Result<(), Ended> {
    let client = context.client(CHANGING);
    let found = unless_interrupted(client.node(&args.node), NOTHING_CHANGED).await?;
    if args.dry_run {
        return if context.json() {
            output::document(found)
        } else if context.quiet() {
            Ok(())
        } else {
            output::result(&render::removal(&found))
        };
    }
    if !found.removal_needs_force.is_empty() && !args.force {
        let text = format!(
            "{} was not removed: {}",
            found.node.name,
            found.removal_needs_force.join("; ")
        );
        return Err(ApiError::new(ErrorCode::NotPermitted, text)
            .hint("settle that first, or add --force")
            .into());
    }
    if !args.yes {
        ask_for_the_name(&found)?;
    }
    // By its store: the name may be another's by now.
    let request = api::NodeRemove { node: found.node.store.to_string(), force: args.force };
    let removed = unless_interrupted(client.remove_node(&request), MAY_GO_ON).await?;
    if context.json() {
        return output::document(removed);
    }
    if context.quiet() {
        return Ok(());
    }
    for what in &removed.means {
        output::note(&format!("note: {what}"));
    }
    output::result(&format!("removed node {} ({})\n", removed.node, removed.store.short()))
}

fn ask_for_the_name(found: &NodeDetails) -> Result<(), ApiError> {
    if !io::stdin().is_terminal() {
        return Err(ApiError::new(ErrorCode::Usage, "this needs a yes, and nobody is here to ask")
            .hint("add --yes"));
    }
    let name = &found.node.name;
    output::note(render::removal(found).trim_end());
    output::note(&format!("This can't be undone. To remove the node, type its name ({name}):"));
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    if read.is_ok() && answer.trim() == name.as_str() {
        Ok(())
    } else {
        Err(ApiError::new(ErrorCode::Interrupted, "not confirmed").hint(NOTHING_CHANGED))
    }
}

async fn label(context: &Context, args: &NodeLabel) -> Result<(), Ended> {
    let labels = args.labels.iter().cloned().collect();
    let request = api::NodeLabel { node: args.node.clone(), labels };
    let client = context.client(CHANGING);
    let done = unless_interrupted(client.label_node(&request), MAY_GO_ON).await?;
    if context.json() {
        return output::document(done);
    }
    if context.quiet() {
        return Ok(());
    }
    let labels: Vec<String> = done.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let shown = if labels.is_empty() { "no labels".to_owned() } else { labels.join(" ") };
    output::result(&format!("{}: {shown}\n", done.node))
}

fn lines<T: std::fmt::Display>(items: impl Iterator<Item = T>) -> String {
    items.map(|item| format!("{item}\n")).collect()
}

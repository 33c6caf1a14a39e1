//! The process that has one mesh in its namespaces: it takes orders, a JSON line each, from the
//! measuring process on its standard input, and answers each with a line. At the end of its input
//! it ends its agents and itself.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Command;

use super::agents::{Agents, Whose};
use super::costs::NodeCost;
use super::rounds::{Death, Rounds, Spread, Told};

/// What a host can be asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Start all agents, one after the other.
    Grow,
    /// Have this agent tell something.
    Tell(usize),
    /// Have the agents tell so many things in so many milliseconds.
    TellMany(usize, u64),
    /// Kill and restart this agent.
    Kill(usize),
    /// Look on for so many milliseconds.
    LookOn(u64),
}

/// Its answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// When each agent after the first was known.
    Grown(Vec<Spread>),
    /// How what was told spread.
    Told(Told),
    /// Bytes that a node sent.
    ToldMany(f64),
    /// When a death and a return were known.
    Killed(Death),
    /// What a node cost, and how many false suspicions there were so far.
    Seen(NodeCost, u64),
    /// It did not work.
    Failed(String),
}

/// What a host is made from.
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// Whose agents.
    pub whose: Whose,
    /// How many.
    pub nodes: usize,
    /// Where their states and logs are.
    pub folder: PathBuf,
    /// Our binary.
    pub binary: PathBuf,
}

/// Runs a host until its input ends.
///
/// # Errors
/// If it has no namespace of its own or cannot talk.
pub async fn run(options: HostOptions) -> Result<()> {
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().await;
    if !up.context("cannot run `ip`: install the package iproute2")?.success() {
        bail!("cannot raise the loopback interface of the mesh's network namespace");
    }
    let HostOptions { whose, nodes, folder, binary } = options;
    let mut rounds = Rounds::new(Agents::new(whose, nodes, &folder, &binary), whose);
    let mut orders = BufReader::new(tokio::io::stdin()).lines();
    let mut out = tokio::io::stdout();
    while let Some(line) = orders.next_line().await.context("cannot read an order")? {
        let order = serde_json::from_str(&line).context("the order is not understood")?;
        let answer = match obey(&mut rounds, order).await {
            Ok(answer) => answer,
            Err(error) => Answer::Failed(format!("{error:#}")),
        };
        let mut line = serde_json::to_string(&answer).context("cannot write an answer")?;
        line.push('\n');
        out.write_all(line.as_bytes()).await.context("cannot answer")?;
        out.flush().await.context("cannot answer")?;
    }
    rounds.end().await;
    Ok(())
}

async fn obey(rounds: &mut Rounds, order: Order) -> Result<Answer> {
    Ok(match order {
        Order::Grow => Answer::Grown(rounds.grow().await?),
        Order::Tell(node) => Answer::Told(rounds.tell(node).await?),
        Order::TellMany(times, span) => {
            Answer::ToldMany(rounds.tell_many(times, Duration::from_millis(span)).await?)
        }
        Order::Kill(node) => Answer::Killed(rounds.kill(node).await?),
        Order::LookOn(span) => {
            let cost = rounds.look_on(Duration::from_millis(span)).await?;
            Answer::Seen(cost, rounds.false_suspicions())
        }
    })
}

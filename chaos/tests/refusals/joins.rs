//! Newcomers with a wrong or an expired token: real `flocker up` processes that must end with an
//! error that says why, and leave no identity behind.

use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flocker::api::TokenCreate;
use flocker_base::{Clock as _, SystemClock, TokenId};
use flocker_gossip::join::{JoinString, Token};
use rand::RngExt as _;
use tokio::process::Command;

use crate::Case;

/// Time for a newcomer to be refused and to end.
const ENDED: Duration = Duration::from_secs(30);
/// A node that is not yet one: an address of the mesh's network that no agent has.
const NEWCOMER: &str = "us-2";

pub(crate) async fn all(case: &mut Case<'_>) -> Result<()> {
    let good = token(case, 0, Duration::from_secs(600)).await?;

    let mut unknown = good.clone();
    unknown.token.id = TokenId::new(SystemClock.wall(), case.random.random());
    one(case, "a join with a token that nobody made", 1, &unknown.token, "no such token").await?;

    let mut wrong = good.clone();
    wrong.token.secret = case.random.random();
    one(case, "a join with a wrong secret", 1, &wrong.token, "the proof is wrong").await?;

    let short = token(case, 2, Duration::from_millis(1)).await?;
    tokio::time::sleep(Duration::from_millis(50)).await;
    one(case, "a join with an expired token", 2, &short.token, "this token expired").await
}

async fn token(case: &Case<'_>, node: usize, life: Duration) -> Result<JoinString> {
    let request = TokenCreate::lasting(flocker_chaos::millis(life));
    let made = case.mesh.nodes()[node].client().create_token(&request).await;
    let made = made.context("cannot make a token")?;
    made.join.parse().context("the agent's own join string is refused")
}

async fn one(case: &mut Case<'_>, what: &str, at: usize, token: &Token, why: &str) -> Result<()> {
    let node = &case.mesh.nodes()[at];
    let mark = node.log().mark();
    let folder = case.mesh.folder().join("newcomer");
    let join = format!("{token}@{}", node.control());
    let from = case.fresh_address();
    let ended =
        up(case, &folder, &from.to_string(), &join).await.with_context(|| what.to_owned())?;
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    ensure!(!ended.status.success(), "{what}: the newcomer ended well and said {said}");
    ensure!(said.contains(why), "{what}: the newcomer is not told '{why}' but {said}");
    let secret = token.to_string();
    ensure!(!said.contains(&secret), "{what}: the newcomer prints the token: {said}");
    let identity = flocker_gossip::identity::NodeIdentity::load(&folder.join("state"))?;
    ensure!(identity.is_none(), "{what}: the newcomer has an identity");
    std::fs::remove_dir_all(&folder).context("cannot remove the newcomer's folder")?;
    let id = token.id.to_string();
    case.refused(what, at, mark, &["a join was refused", why, &id]).await?;
    let text = case.mesh.nodes()[at].log().since(mark)?;
    ensure!(!text.contains(&secret), "{what}: the token is in the log");
    Ok(())
}

async fn up(case: &Case<'_>, folder: &PathBuf, address: &str, join: &str) -> Result<Output> {
    std::fs::create_dir_all(folder).context("cannot make the newcomer's folder")?;
    let child = Command::new(case.mesh.binary())
        .args(["up", "--name", NEWCOMER, "--region", "us", "--bind", address, "--http", "none"])
        .arg("--state-dir")
        .arg(folder.join("state"))
        .arg("--socket")
        .arg(folder.join("api.sock"))
        .arg("--exit-with-parent")
        .env("FLOCKER_JOIN", join)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .context("cannot run the newcomer")?;
    let ended = tokio::time::timeout(ENDED, child.wait_with_output()).await;
    ended.context("the newcomer does not end")?.context("cannot wait for the newcomer")
}

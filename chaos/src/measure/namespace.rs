//! Starts a host in a network and a process namespace of its own, and speaks with it. When this
//! side goes away, by whatever way, the host and all that it started are killed by the kernel.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::geteuid;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::agents::Whose;
use super::host::{Answer, HostOptions, Order};
use crate::programs::need;

/// How long a host may take to end its agents.
const END_DEADLINE: Duration = Duration::from_secs(10);

/// A host, as seen from outside.
#[derive(Debug)]
pub struct Remote {
    whose: Whose,
    process: Child,
    orders: Option<ChildStdin>,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Remote {
    /// Starts a host with agents that do not run yet.
    ///
    /// # Errors
    /// If the system gives no namespaces.
    pub fn start(options: &HostOptions) -> Result<Self> {
        let own = std::env::current_exe().context("cannot tell where this program is")?;
        let mut command = Command::new("unshare");
        command.args(["--net", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        if !geteuid().is_root() {
            command.arg("--map-root-user");
        }
        command.arg("--").arg(own).arg("host");
        command.args(["--whose", options.whose.word()]);
        command.args(["--nodes", &options.nodes.to_string()]);
        command.arg("--folder").arg(&options.folder).arg("--binary").arg(&options.binary);
        // Ctrl-C is for the measuring process, which then ends this one.
        command.process_group(0).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process =
            command.spawn().context("cannot run `unshare`: install the package util-linux")?;
        let answers = process.stdout.take().context("the host has no output")?;
        let orders = process.stdin.take();
        Ok(Self { whose: options.whose, process, orders, answers: BufReader::new(answers).lines() })
    }

    /// Gives an order and waits for the answer.
    ///
    /// # Errors
    /// What the host says went wrong, or that it has ended.
    pub async fn ask(&mut self, order: Order) -> Result<Answer> {
        let whose = self.whose.word();
        let mut line = serde_json::to_string(&order).context("cannot write an order")?;
        line.push('\n');
        let orders = self.orders.as_mut().context("the host was ended")?;
        let sent = orders.write_all(line.as_bytes()).await;
        let answer = self.answers.next_line().await.context("cannot read an answer")?;
        let Some(answer) = answer.filter(|_| sent.is_ok()) else {
            let code = self.process.wait().await.context("cannot wait for the host's end")?;
            bail!(
                "the host of {whose} has ended with {code}: are namespaces allowed here? Try \
                 `unshare --net --pid --fork --mount-proc true`"
            );
        };
        match serde_json::from_str(&answer).context("the answer is not understood")? {
            Answer::Failed(why) => bail!("{whose}, {order:?}: {why}"),
            answer => Ok(answer),
        }
    }

    /// Ends it and all of its agents.
    pub async fn end(mut self) {
        drop(self.orders.take());
        if tokio::time::timeout(END_DEADLINE, self.process.wait()).await.is_err() {
            // The kernel ends all of its namespace with it.
            drop(self.process.kill().await);
        }
    }
}

/// Says which of the programs that are needed is not there, and how to get it.
///
/// # Errors
/// If one is missing.
pub async fn check_programs() -> Result<String> {
    need("unshare", "util-linux")?;
    need("ip", "iproute2")?;
    need("serf", "serf, the peer to measure against (Debian 12 has it)")?;
    let version = Command::new("serf").arg("version").output().await.context("cannot run serf")?;
    let version = String::from_utf8_lossy(&version.stdout);
    Ok(version.lines().next().unwrap_or("unknown").trim().to_owned())
}

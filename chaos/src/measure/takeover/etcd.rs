//! Three etcd servers with their defaults, and `etcdctl lock` twice: one has the lock, the other waits
//! for it. Killed, the first one's lease runs out; told to end, it revokes it.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flocker_base::{BootTime, Clock as _, SystemClock};
use rustix::process::{Pid, Signal};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use super::{Plan, Samples};
use crate::measure::ms;
use crate::programs::need;

/// The first of the ports: two a server.
const PORTS: u16 = 23790;
const SERVERS: u16 = 3;
/// How long a server or a lock may take.
const WITHIN: Duration = Duration::from_secs(30);

pub(super) fn check() -> Result<()> {
    need("etcd", "etcd-server")?;
    need("etcdctl", "etcd-client")
}

fn client_url(server: u16) -> String {
    format!("http://127.0.0.1:{}", PORTS + 2 * server)
}

fn peer_url(server: u16) -> String {
    format!("http://127.0.0.1:{}", PORTS + 2 * server + 1)
}

pub(super) async fn run(plan: &Plan, folder: &Path) -> Result<Samples> {
    let members: Vec<String> = (0..SERVERS).map(|s| format!("s{s}={}", peer_url(s))).collect();
    let mut servers = Vec::new();
    for server in 0..SERVERS {
        servers.push(start(server, &members.join(","), folder)?);
    }
    let mut holder = Lock::wait(plan.lease)?;
    holder.taken().await.context("etcd gives no lock")?;
    // Its leases are in whole seconds, and no shorter than an election or so.
    let lease = Duration::from_secs(plan.lease.as_secs().max(2));
    let mut samples = Samples { lease, ..Samples::default() };
    for round in 0..plan.handoffs + plan.kills {
        let mut next = Lock::wait(plan.lease)?;
        // It must be in line, and the holder's lease anywhere between two renewals.
        let moment = SystemClock.boot().since_boot().subsec_millis() % 1_000;
        tokio::time::sleep(Duration::from_millis(500 + u64::from(moment))).await;
        let by_wish = round < plan.handoffs;
        let at = holder.end(if by_wish { Signal::INT } else { Signal::KILL })?;
        let took = ms(next.taken().await?.saturating_since(at));
        let kind = if by_wish { &mut samples.released } else { &mut samples.killed };
        kind.push(took);
        holder = next;
    }
    Ok(samples)
}

fn start(server: u16, members: &str, folder: &Path) -> Result<Child> {
    Command::new("etcd")
        .args(["--name", &format!("s{server}"), "--log-level", "error"])
        .arg("--data-dir")
        .arg(folder.join(format!("s{server}")))
        .args(["--listen-client-urls", &client_url(server)])
        .args(["--advertise-client-urls", &client_url(server)])
        .args(["--listen-peer-urls", &peer_url(server)])
        .args(["--initial-advertise-peer-urls", &peer_url(server)])
        .args(["--initial-cluster", members])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("cannot run etcd")
}

/// One that has the lock or is in line for it.
struct Lock {
    process: Child,
    said: Lines<BufReader<ChildStdout>>,
}

impl Lock {
    fn wait(lease: Duration) -> Result<Self> {
        let urls: Vec<String> = (0..SERVERS).map(client_url).collect();
        let mut process = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &urls.join(",")])
            .args(["lock", "held", "--ttl", &lease.as_secs().max(1).to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("cannot run etcdctl")?;
        let said = process.stdout.take().context("it has no output")?;
        Ok(Self { process, said: BufReader::new(said).lines() })
    }

    /// It says so once it has the lock.
    async fn taken(&mut self) -> Result<BootTime> {
        let line = tokio::time::timeout(WITHIN, self.said.next_line()).await;
        let line = line.context("nobody got the lock")?.context("cannot read")?;
        ensure!(line.is_some(), "etcdctl ended without the lock");
        Ok(SystemClock.boot())
    }

    fn end(&self, how: Signal) -> Result<BootTime> {
        let pid = self.process.id().and_then(|pid| i32::try_from(pid).ok());
        let pid = pid.and_then(Pid::from_raw).context("it has ended")?;
        let at = SystemClock.boot();
        rustix::process::kill_process(pid, how).context("cannot end it")?;
        Ok(at)
    }
}

//! Three ZooKeeper servers, and two of its own clients: one holds an ephemeral node, the other watches
//! it and makes it anew once it is gone. Killed, the first one's session runs out; told to, it
//! deletes the node.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flocker_base::{BootTime, Clock as _, SystemClock};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::{Plan, Samples};
use crate::measure::ms;
use crate::programs::need;

/// The first of the ports: three a server.
const PORTS: u16 = 23890;
const SERVERS: u16 = 3;
const WITHIN: Duration = Duration::from_secs(60);
/// Where Debian's package has it.
const HOME: &str = "/usr/share/zookeeper";
const NODE: &str = "/held";

pub(super) fn check() -> Result<()> {
    need("java", "default-jre-headless")?;
    ensure!(
        Path::new(HOME).join("bin/zkCli.sh").is_file(),
        "there is no ZooKeeper here: install the package zookeeper"
    );
    Ok(())
}

pub(super) async fn run(plan: &Plan, folder: &Path) -> Result<Samples> {
    let mut servers = Vec::new();
    for server in 0..SERVERS {
        servers.push(start(server, plan.lease, folder)?);
    }
    let mut holder = Session::open(plan.lease).await?;
    holder.take().await?;
    let mut samples = Samples { lease: plan.lease, ..Samples::default() };
    for round in 0..plan.handoffs + plan.kills {
        let mut next = Session::open(plan.lease).await?;
        next.watch().await?;
        let moment = SystemClock.boot().since_boot().subsec_millis() % 1_000;
        tokio::time::sleep(Duration::from_millis(u64::from(moment))).await;
        let by_wish = round < plan.handoffs;
        let at = SystemClock.boot();
        if by_wish {
            holder.say(&format!("delete {NODE}")).await?;
        } else {
            holder.kill()?;
        }
        next.hears("NodeDeleted").await?;
        let took = ms(next.take().await?.saturating_since(at));
        let kind = if by_wish { &mut samples.released } else { &mut samples.killed };
        kind.push(took);
        holder = next;
    }
    Ok(samples)
}

/// The session's length must be at least two of its ticks, and at most twenty.
fn start(server: u16, session: Duration, folder: &Path) -> Result<Child> {
    let at = folder.join(format!("s{server}"));
    std::fs::create_dir_all(&at).context("cannot make a folder")?;
    let tick = (session / 4).min(Duration::from_secs(2)).as_millis();
    let members: String = (0..SERVERS)
        .map(|s| {
            format!("server.{}=127.0.0.1:{}:{}\n", s + 1, PORTS + 3 * s + 1, PORTS + 3 * s + 2)
        })
        .collect();
    let config = format!(
        "tickTime={tick}\ninitLimit=20\nsyncLimit=10\ndataDir={}\nclientPort={}\n\
         clientPortAddress=127.0.0.1\nadmin.enableServer=false\n{members}",
        at.display(),
        PORTS + 3 * server
    );
    put(&at.join("myid"), &format!("{}\n", server + 1))?;
    put(&at.join("zoo.cfg"), &config)?;
    Command::new("java")
        .arg("-cp")
        .arg(classes())
        .args(["-Xmx128m", "org.apache.zookeeper.server.quorum.QuorumPeerMain"])
        .arg(at.join("zoo.cfg"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("cannot run java")
}

/// As `zkEnv.sh` finds them.
fn classes() -> String {
    "/etc/zookeeper/conf:/usr/share/java/zookeeper.jar".to_owned()
}

fn put(path: &PathBuf, text: &str) -> Result<()> {
    use std::io::Write as _;
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).open(path);
    let mut file = file.with_context(|| format!("cannot make {}", path.display()))?;
    file.write_all(text.as_bytes()).context("cannot write it")
}

/// One client with a session.
struct Session {
    process: Child,
    orders: ChildStdin,
    said: Lines<BufReader<ChildStdout>>,
}

impl Session {
    async fn open(session: Duration) -> Result<Self> {
        let servers: Vec<String> =
            (0..SERVERS).map(|s| format!("127.0.0.1:{}", PORTS + 3 * s)).collect();
        // Some of what it says goes to one output, some to the other.
        let mut process = Command::new("sh")
            .args(["-c", r#"exec "$0" "$@" 2>&1"#, "java", "-cp"])
            .arg(classes())
            .args(["-Xmx64m", "-Dzookeeper.root.logger=ERROR,CONSOLE"])
            .args(["org.apache.zookeeper.ZooKeeperMain", "-server", &servers.join(",")])
            .args(["-timeout", &session.as_millis().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("cannot run java")?;
        let orders = process.stdin.take().context("it has no input")?;
        let said = process.stdout.take().context("it has no output")?;
        let mut client = Self { process, orders, said: BufReader::new(said).lines() };
        client.hears("SyncConnected").await.context("ZooKeeper does not connect")?;
        Ok(client)
    }

    async fn say(&mut self, line: &str) -> Result<()> {
        self.orders.write_all(format!("{line}\n").as_bytes()).await.context("it has ended")?;
        self.orders.flush().await.context("it has ended")
    }

    /// Waits until it prints this word.
    async fn hears(&mut self, word: &str) -> Result<BootTime> {
        let wait = async {
            loop {
                let line = self.said.next_line().await.context("cannot read")?;
                let line = line.with_context(|| format!("it ended before it said {word}"))?;
                if line.contains(word) {
                    return Ok(SystemClock.boot());
                }
            }
        };
        tokio::time::timeout(WITHIN, wait).await.with_context(|| format!("no word of {word}"))?
    }

    async fn take(&mut self) -> Result<BootTime> {
        self.say(&format!("create -e {NODE} held")).await?;
        self.hears("Created").await
    }

    async fn watch(&mut self) -> Result<()> {
        self.say(&format!("stat -w {NODE}")).await?;
        self.hears("ephemeralOwner").await.map(drop)
    }

    fn kill(&mut self) -> Result<()> {
        self.process.start_kill().context("cannot kill it")
    }
}

//! The command behind `scripts/measure`. It takes arguments and prints; what is measured and how
//! is in the library.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use flocker_chaos::measure::agents::Whose;
use flocker_chaos::measure::host::{self, HostOptions};
use flocker_chaos::measure::run::{self, Plan};
use flocker_chaos::measure::takeover;

/// Measures flocker beside a peer, in one run on this machine, and gives the ratios.
#[derive(Debug, Parser)]
#[command(name = "scripts/measure", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Real agents beside as many of `serf`: deaths, news, joins, idle cost, false alarms.
    ///
    /// Starts both meshes in network and process namespaces of their own and asks them in turns.
    /// Needs `serf`, `unshare` and `ip`, and 30 MiB for each agent. Ctrl-C ends everything.
    Gossip(Gossip),
    /// How soon another takes over, beside etcd's lease and ZooKeeper's session of the same length.
    ///
    /// Three servers of each, side by side on loopback addresses. Needs Debian's packages etcd-server,
    /// etcd-client and zookeeper, and 1 GiB of memory. Ctrl-C ends everything.
    Takeover(Takeover),
    /// Holds one mesh; `gossip` starts it.
    #[command(hide = true)]
    Host(Host),
}

#[derive(Debug, Args)]
struct Gossip {
    /// Agents of each kind; several sizes are measured one after the other.
    #[arg(long, value_delimiter = ',', default_value = "10,20")]
    nodes: Vec<usize>,
    /// Agents of each kind that are killed and restarted, one at a time.
    #[arg(long, default_value_t = 8)]
    rounds: usize,
    /// Changes told in each mesh, one at a time.
    #[arg(long, default_value_t = 30)]
    events: usize,
    /// For how many seconds the idle meshes are looked at.
    #[arg(long, default_value_t = 45)]
    idle: u64,
    /// For how many seconds the smallest meshes run with all cores and the disk kept busy.
    #[arg(long, default_value_t = 120)]
    busy: u64,
    /// Where the agents keep their state: its disk counts, since each change is synced to it.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    folder: PathBuf,
    /// Print the document instead of the table.
    #[arg(long)]
    json: bool,
    /// Keep the agents' states and logs.
    #[arg(long)]
    keep: bool,
}

#[derive(Debug, Args)]
struct Takeover {
    /// The length of leases and sessions, in milliseconds.
    #[arg(long, default_value_t = 3_000)]
    lease: u64,
    /// How often who holds is killed.
    #[arg(long, default_value_t = 30)]
    kills: usize,
    /// How often who holds gives up by wish.
    #[arg(long, default_value_t = 30)]
    handoffs: usize,
    /// Where all keep their state.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    folder: PathBuf,
    /// Print the document instead of the table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Host {
    #[arg(long)]
    whose: WhoseWord,
    #[arg(long)]
    nodes: usize,
    #[arg(long)]
    folder: PathBuf,
    #[arg(long)]
    binary: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum WhoseWord {
    Ours,
    Serf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime.context("cannot start").and_then(|runtime| {
        runtime.block_on(Box::pin(async move {
            match arguments.what {
                What::Gossip(gossip) => measure(gossip).await,
                What::Takeover(takeover) => measure_takeover(takeover).await,
                What::Host(host) => hold(host).await,
            }
        }))
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            flocker_chaos::say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn measure(gossip: Gossip) -> Result<()> {
    let plan = Plan {
        nodes: gossip.nodes,
        kills: gossip.rounds,
        events: gossip.events,
        idle: Duration::from_secs(gossip.idle),
        busy: Duration::from_secs(gossip.busy),
        folder: gossip.folder,
        binary: binary()?,
        keep: gossip.keep,
    };
    let report = tokio::select! {
        report = run::run(&plan) => report?,
        _told = tokio::signal::ctrl_c() => bail!("interrupted: every agent was ended"),
    };
    let text = if gossip.json {
        serde_json::to_string_pretty(&report).context("cannot write the document")?
    } else {
        report.table()
    };
    print(&text);
    Ok(())
}

async fn measure_takeover(wanted: Takeover) -> Result<()> {
    let plan = takeover::Plan {
        lease: Duration::from_millis(wanted.lease),
        kills: wanted.kills,
        handoffs: wanted.handoffs,
        folder: wanted.folder,
        binary: binary()?,
    };
    let report = tokio::select! {
        report = Box::pin(takeover::run(&plan)) => report?,
        _told = tokio::signal::ctrl_c() => bail!("interrupted: everything was ended"),
    };
    let text = if wanted.json {
        serde_json::to_string_pretty(&report).context("cannot write the document")?
    } else {
        report.table()
    };
    print(&text);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the result of the command")]
fn print(text: &str) {
    println!("{text}");
}

async fn hold(host: Host) -> Result<()> {
    let whose = match host.whose {
        WhoseWord::Ours => Whose::Ours,
        WhoseWord::Serf => Whose::Serf,
    };
    let Host { nodes, folder, binary, .. } = host;
    host::run(HostOptions { whose, nodes, folder, binary }).await
}

/// `FLOCKER_BIN`, or the binary that lies beside this one.
fn binary() -> Result<PathBuf> {
    if std::env::var_os("FLOCKER_BIN").is_some() {
        return flocker_chaos::binary::flocker();
    }
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    let beside = own.with_file_name("flocker");
    if !beside.is_file() {
        bail!("there is no {}: run `scripts/measure`, which builds it", beside.display());
    }
    Ok(beside)
}

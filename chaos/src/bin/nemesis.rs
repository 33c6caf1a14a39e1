//! The command behind `scripts/nemesis`. It takes arguments and prints; what is done and judged is in
//! the library.

use std::process::{ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum as _};
use flocker::tally::{self, TallyOptions};
use flocker_chaos::nemesis::beats::Heart;
use flocker_chaos::nemesis::faults::Fault;
use flocker_chaos::nemesis::report::Report;
use flocker_chaos::nemesis::rounds::{self, Rounds};
use flocker_chaos::programs::need;
use flocker_chaos::{plan, say};
use tokio::process::Command;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// What is needed, and the package that has it.
const PROGRAMS: [(&str, &str); 6] = [
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("mount", "mount"),
    ("ip", "iproute2"),
    ("dd", "coreutils"),
    ("strace", "strace"),
];

/// Does to a mesh of real agents on hosts of their own what may happen to one, again and again, and
/// judges what its clients saw.
#[derive(Debug, Parser)]
#[command(name = "scripts/nemesis", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Each fault so many times, a mesh a fault. Needs root, `strace` and `ip`, and 1 GiB a mesh.
    Run(Run),
    /// One fault, in namespaces made for it; `run` starts it.
    #[command(hide = true)]
    One(One),
    /// The service under test.
    #[command(hide = true)]
    Tally,
}

#[derive(Debug, Args)]
struct Run {
    /// The faults [default: all].
    #[arg(long, value_delimiter = ',')]
    faults: Vec<Fault>,
    /// Rounds of each.
    #[arg(long, default_value_t = 100)]
    rounds: u32,
    /// Meshes at the same time.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Print the documents instead of the table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct One {
    #[arg(long)]
    fault: Fault,
    #[arg(long)]
    rounds: u32,
    #[arg(long)]
    seed: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let outcome = runtime.context("cannot start").and_then(|runtime| {
        runtime.block_on(Box::pin(async move {
            match arguments.what {
                What::Run(run) => all(run).await,
                What::One(one) => in_namespaces(one).await,
                What::Tally => serve().await,
            }
        }))
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn word(fault: Fault) -> String {
    fault.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

async fn all(run: Run) -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "hosts of one's own need root: run it as root");
    for (program, package) in PROGRAMS {
        need(program, package)?;
    }
    let seed = plan::seed()?;
    say(&format!("nemesis: FLOCKER_CHAOS_SEED={seed}"));
    let faults = if run.faults.is_empty() { Fault::ALL.to_vec() } else { run.faults };
    let slots = std::sync::Arc::new(Semaphore::new(run.jobs.max(1)));
    let mut tasks = JoinSet::new();
    for fault in faults {
        let slots = std::sync::Arc::clone(&slots);
        let rounds = run.rounds;
        tasks.spawn(async move {
            let _slot = slots.acquire().await.context("no slot")?;
            apart(fault, rounds, seed).await.with_context(|| word(fault))
        });
    }
    let (mut reports, mut failures) = (Vec::new(), Vec::new());
    loop {
        let ended = tokio::select! {
            ended = tasks.join_next() => ended,
            _told = tokio::signal::ctrl_c() => bail!("interrupted: every mesh was ended"),
        };
        match ended {
            None => break,
            Some(Ok(Ok(report))) => {
                say(&report.line());
                reports.push(report);
            }
            Some(Ok(Err(error))) => {
                say(&format!("error: {error:#}"));
                failures.push(format!("{error:#}"));
            }
            Some(Err(error)) => failures.push(error.to_string()),
        }
    }
    print(&reports, run.json)?;
    ensure!(
        failures.is_empty(),
        "{} faults led to what must not be; replay with FLOCKER_CHAOS_SEED={seed}",
        failures.len()
    );
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the result of the command")]
fn print(reports: &[Report], json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(reports).context("cannot write it")?);
        return Ok(());
    }
    println!("{}", Report::head());
    for report in reports {
        println!("{}", report.line());
    }
    Ok(())
}

/// Starts this program again in namespaces of its own, which go with it.
async fn apart(fault: Fault, rounds: u32, seed: u64) -> Result<Report> {
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    let process = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(own)
        .args(["one", "--fault", &word(fault), "--rounds", &rounds.to_string()])
        .args(["--seed", &seed.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .context("cannot run unshare")?;
    let output = process.wait_with_output().await.context("cannot wait for its end")?;
    ensure!(output.status.success(), "it has ended with {}", output.status);
    serde_json::from_slice(&output.stdout).context("its report is not understood")
}

#[expect(clippy::print_stdout, reason = "the result of the command")]
async fn in_namespaces(one: One) -> Result<()> {
    let plan = Rounds { fault: one.fault, rounds: one.rounds, seed: one.seed };
    let report = Box::pin(rounds::run(plan, &word(one.fault))).await?;
    println!("{}", serde_json::to_string(&report).context("cannot write the report")?);
    Ok(())
}

async fn serve() -> Result<()> {
    let options = TallyOptions::from_environment()?;
    let _heart = Heart::start()?;
    tally::run(options).await
}

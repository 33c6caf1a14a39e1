//! One measurement: both meshes in turns at each size. It has bounds in nodes, rounds and time,
//! and gives no figure of a round that failed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use flocker_base::{Clock as _, SystemClock};

use super::agents::Whose;
use super::costs::{NodeCost, count_u64, machine_ticks};
use super::figures::Row;
use super::host::{Answer, HostOptions, Order};
use super::load::Load;
use super::namespace::{self, Remote};
use super::report::{Conditions, Report, SCHEMA, Size};
use super::rounds::{Death, Spread, Told};
use crate::say;

/// Between what was asked of one mesh and what is asked of the next.
const PAUSE: Duration = Duration::from_millis(700);
/// Between a return to life and the next death: failure detectors have settled by then.
const SETTLE: Duration = Duration::from_secs(3);
/// After both meshes have grown.
const CALM: Duration = Duration::from_secs(10);
/// What is told for the cost in bytes, and in which time.
const MANY: (usize, Duration) = (20, Duration::from_secs(20));
/// Most agents of a kind.
const MOST_NODES: usize = 200;

/// What is to be measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Sizes, one after the other.
    pub nodes: Vec<usize>,
    /// Deaths of each mesh.
    pub kills: usize,
    /// Things told in each mesh.
    pub events: usize,
    /// How long the idle meshes are looked at.
    pub idle: Duration,
    /// How long the first size's meshes run on a machine that is kept busy.
    pub busy: Duration,
    /// Where the agents keep their states: on the disk that is to count.
    pub folder: PathBuf,
    /// Our binary.
    pub binary: PathBuf,
    /// Whether the folder is kept.
    pub keep: bool,
}

impl Plan {
    fn check(&self) -> Result<()> {
        let wrong = |n: &usize| !(2..=MOST_NODES).contains(n);
        if let Some(nodes) = self.nodes.iter().find(|n| wrong(n)) {
            bail!("{nodes} agents cannot be measured: give from 2 to {MOST_NODES}");
        }
        Ok(())
    }
}

/// Runs the whole plan.
///
/// # Errors
/// If something that is needed is missing, or a round failed; the agents' logs are then kept.
pub async fn run(plan: &Plan) -> Result<Report> {
    plan.check()?;
    let serf = namespace::check_programs().await?;
    let mut report =
        Report { schema: SCHEMA.to_owned(), conditions: conditions(serf), sizes: vec![] };
    for (index, nodes) in plan.nodes.iter().enumerate() {
        let folder = tempfile::Builder::new().prefix("flocker-measure-").tempdir_in(&plan.folder);
        let folder = folder.context("cannot make a folder for the agents")?;
        let busy = if index == 0 { plan.busy } else { Duration::ZERO };
        let size = measure_size(plan, *nodes, busy, folder.path()).await;
        if size.is_err() || plan.keep {
            let kept = folder.keep();
            say(&format!("the agents' logs are kept in {}", kept.display()));
        }
        report.sizes.push(size?);
    }
    Ok(report)
}

fn conditions(serf: String) -> Conditions {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let cpu = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    Conditions {
        at_unix_ms: SystemClock.wall().as_millis(),
        cores: cores(),
        cpu: cpu.map_or_else(|| "unknown cores".to_owned(), |(_, name)| name.to_owned()),
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        flocker: env!("CARGO_PKG_VERSION").to_owned(),
        serf,
        serf_profile: "lan".to_owned(),
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Ours and serf's.
struct Pair {
    ours: Remote,
    serf: Remote,
}

impl Pair {
    fn start(plan: &Plan, nodes: usize, folder: &Path) -> Result<Self> {
        let host = |whose: Whose| -> Result<Remote> {
            let folder = folder.join(whose.word());
            std::fs::create_dir(&folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
            Remote::start(&HostOptions { whose, nodes, folder, binary: plan.binary.clone() })
        };
        Ok(Self { ours: host(Whose::Ours)?, serf: host(Whose::Serf)? })
    }

    /// Asks one after the other, with a pause after each.
    async fn in_turns(&mut self, order: &Order, pause: Duration) -> Result<(Answer, Answer)> {
        let ours = self.ours.ask(order.clone()).await?;
        tokio::time::sleep(pause).await;
        let serf = self.serf.ask(order.clone()).await?;
        tokio::time::sleep(pause).await;
        Ok((ours, serf))
    }

    /// Asks both at once: for what they do by themselves.
    async fn at_once(&mut self, order: &Order) -> Result<(Answer, Answer)> {
        tokio::try_join!(self.ours.ask(order.clone()), self.serf.ask(order.clone()))
    }

    async fn end(self) {
        tokio::join!(self.ours.end(), self.serf.end());
    }
}

async fn measure_size(plan: &Plan, nodes: usize, busy: Duration, folder: &Path) -> Result<Size> {
    let mut pair = Pair::start(plan, nodes, folder)?;
    let mut size = Size { nodes, busy_while_idle_percent: 0.0, rows: vec![] };
    say(&format!("{nodes} nodes: starting them, one after the other"));
    size.rows.extend(joins(&mut pair).await?);
    tokio::time::sleep(CALM).await;
    if !plan.idle.is_zero() {
        say(&format!("{nodes} nodes: idle for {} s", plan.idle.as_secs()));
        let before = machine_ticks()?;
        let rows = idle(&mut pair, plan.idle).await?;
        size.busy_while_idle_percent = busy_percent(before, machine_ticks()?);
        let idle_bytes = bytes_per_s(&rows);
        size.rows.extend(rows);
        if plan.events > 0 {
            size.rows.push(told_bytes(&mut pair, idle_bytes).await?);
        }
    }
    if plan.events > 0 {
        say(&format!("{nodes} nodes: {} things told in each mesh", plan.events));
        size.rows.extend(events(&mut pair, nodes, plan.events).await?);
    }
    if plan.kills > 0 {
        say(&format!("{nodes} nodes: {} deaths in each mesh", plan.kills));
        size.rows.extend(deaths(&mut pair, nodes, plan.kills).await?);
    }
    size.rows.push(false_suspicions(&mut pair).await?);
    if !busy.is_zero() {
        say(&format!("{nodes} nodes: on a busy machine for {} s", busy.as_secs()));
        size.rows.extend(on_busy_machine(&mut pair, busy, folder).await?);
    }
    pair.end().await;
    Ok(size)
}

fn busy_percent(before: (u64, u64), after: (u64, u64)) -> f64 {
    let all = count_u64(after.0.saturating_sub(before.0)).max(1.0);
    let idle = count_u64(after.1.saturating_sub(before.1));
    100.0 * (1.0 - idle / all)
}

async fn joins(pair: &mut Pair) -> Result<Vec<Row>> {
    let (Answer::Grown(ours), Answer::Grown(serf)) = pair.in_turns(&Order::Grow, PAUSE).await?
    else {
        bail!("a host answers nonsense")
    };
    // What a small mesh does is not what its last half of joins does.
    let last = |spreads: &[Spread]| -> Vec<f64> {
        spreads.iter().skip(spreads.len() / 2).map(|s| s.all_ms).collect()
    };
    Ok(vec![Row::new(
        "join_all_ms",
        "start of a new node to known by all, ms",
        &last(&ours),
        &last(&serf),
    )])
}

type Of = fn(&NodeCost) -> f64;
const COSTS: [(&str, &str, Of); 8] = [
    ("idle_bytes_per_s", "idle: IP bytes/s sent by a node", |c| c.bytes_per_s),
    ("idle_packets_per_s", "idle: packets/s sent by a node", |c| c.packets_per_s),
    ("idle_cpu_percent", "idle: CPU of a node, % of a core", |c| c.cpu_percent),
    ("idle_sleeps_per_s", "idle: thread sleeps/s of a node", |c| c.sleeps_per_s),
    ("resident_mib", "memory of a node, shared pages once, MiB", |c| c.resident_mib),
    ("rss_mib", "sum of its processes' Rss, MiB", |c| c.rss_mib),
    ("pss_mib", "sum of their Pss among all nodes, MiB", |c| c.pss_mib),
    ("processes", "processes of a node", |c| c.processes),
];

async fn idle(pair: &mut Pair, span: Duration) -> Result<Vec<Row>> {
    let (ours, serf) = look_on(pair, span).await?;
    let row = |(figure, what, of): (&str, &str, Of)| {
        let row = Row::new(figure, what, &[of(&ours.0)], &[of(&serf.0)]);
        match figure {
            "idle_bytes_per_s" => row.at_most("G3", 2.0),
            "resident_mib" => row.own_at_most("G3", 25.0),
            _ => row,
        }
    };
    Ok(COSTS.into_iter().map(row).collect())
}

fn bytes_per_s(rows: &[Row]) -> (f64, f64) {
    let row = rows.iter().find(|row| row.figure == "idle_bytes_per_s");
    let median = |s: Option<super::figures::Summary>| s.map_or(0.0, |s| s.median);
    row.map_or((0.0, 0.0), |row| (median(row.ours), median(row.serf)))
}

async fn look_on(pair: &mut Pair, span: Duration) -> Result<((NodeCost, u64), (NodeCost, u64))> {
    match pair.at_once(&Order::LookOn(crate::millis(span))).await? {
        (Answer::Seen(ours, of_ours), Answer::Seen(serf, of_serf)) => {
            Ok(((ours, of_ours), (serf, of_serf)))
        }
        _ => bail!("a host answers nonsense"),
    }
}

/// Bytes a node for one thing told: what is sent while things are told, less what is sent anyway.
async fn told_bytes(pair: &mut Pair, idle: (f64, f64)) -> Result<Row> {
    let (times, span) = MANY;
    let order = Order::TellMany(times, crate::millis(span));
    let (Answer::ToldMany(ours), Answer::ToldMany(serf)) = pair.at_once(&order).await? else {
        bail!("a host answers nonsense")
    };
    let one = |bytes: f64, idle: f64| {
        ((bytes - idle * span.as_secs_f64()) / super::costs::count(times)).max(0.0)
    };
    let (ours, serf) = (one(ours, idle.0), one(serf, idle.1));
    Ok(Row::new("told_bytes", "IP bytes sent by a node for one thing told", &[ours], &[serf]))
}

async fn events(pair: &mut Pair, nodes: usize, times: usize) -> Result<Vec<Row>> {
    let mut both = [Vec::<Told>::new(), Vec::new()];
    for time in 0..times {
        let order = Order::Tell(time * 7 % nodes);
        let (Answer::Told(ours), Answer::Told(serf)) = pair.in_turns(&order, PAUSE).await? else {
            bail!("a host answers nonsense")
        };
        for (all, told) in both.iter_mut().zip([ours, serf]) {
            all.push(told);
        }
    }
    let [ours, serf] = both;
    let row = |figure: &str, what: &str, of: fn(&Told) -> Vec<f64>| {
        let samples = |all: &[Told]| all.iter().flat_map(of).collect::<Vec<_>>();
        Row::new(figure, what, &samples(&ours), &samples(&serf))
    };
    Ok(vec![
        row("told_last_ms", "told: first to last node, ms", |t| vec![t.last_ms()])
            .at_most("G2", 0.3),
        row("told_each_ms", "told: first to each other node, ms", |t| t.others_ms.clone()),
        row("told_own_ms", "told: command to the first node, ms", |t| vec![t.own_ms]),
    ])
}

async fn deaths(pair: &mut Pair, nodes: usize, times: usize) -> Result<Vec<Row>> {
    let mut both = [Vec::<Death>::new(), Vec::new()];
    for time in 0..times {
        // Never the first: serf's others have no other to come back to at once.
        let order = Order::Kill(1 + time * 3 % (nodes - 1));
        let (Answer::Killed(ours), Answer::Killed(serf)) = pair.in_turns(&order, SETTLE).await?
        else {
            bail!("a host answers nonsense")
        };
        for (all, death) in both.iter_mut().zip([ours, serf]) {
            all.push(death);
        }
    }
    let [ours, serf] = both;
    let row = |figure: &str, what: &str, of: fn(&Death) -> f64| {
        let samples = |all: &[Death]| all.iter().map(of).collect::<Vec<_>>();
        Row::new(figure, what, &samples(&ours), &samples(&serf))
    };
    Ok(vec![
        row("killed_all_ms", "SIGKILL to known by all, ms", |d| d.known.all_ms).at_most("G1", 0.25),
        row("killed_first_ms", "SIGKILL to known by the first, ms", |d| d.known.first_ms),
        row("returned_all_ms", "restart to known by all, ms", |d| d.returned.all_ms),
    ])
}

async fn false_suspicions(pair: &mut Pair) -> Result<Row> {
    let (ours, serf) = look_on(pair, PAUSE).await?;
    let what = "false suspicions in all of the above";
    let [ours, serf] = [ours.1, serf.1].map(count_u64);
    Ok(Row::new("false_suspicions", what, &[ours], &[serf]).own_at_most("no false alarm", 0.0))
}

async fn on_busy_machine(pair: &mut Pair, span: Duration, folder: &Path) -> Result<Vec<Row>> {
    let (ours_before, serf_before) = look_on(pair, PAUSE).await?;
    let load = Load::start(folder, cores())?;
    let (ours, serf) = look_on(pair, span).await?;
    say(&format!("the load wrote {} MiB", load.written_mib()));
    drop(load);
    let hours = span.as_secs_f64() / 3600.0;
    let an_hour = |after: u64, before: u64| count_u64(after.saturating_sub(before)) / hours;
    let what = "false suspicions an hour, all cores busy";
    let (ours, serf) = (an_hour(ours.1, ours_before.1), an_hour(serf.1, serf_before.1));
    let row = Row::new("busy_false_suspicions_per_h", what, &[ours], &[serf]);
    Ok(vec![row.own_at_most("no false alarm", 0.0)])
}

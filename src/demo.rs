//! `flocker demo`: a mesh of three real agents on loopback addresses, a service moved under load,
//! its host killed, and what became of every acknowledged write.
//!
//! The demo only does what a user can: it starts agents, uses their API and sends requests to
//! their proxies. It never looks into an agent.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use flocker_base::{Clock, SystemClock};

use crate::cli::options::DemoOptions;

mod failover;
pub mod load;
mod network;
mod node;
mod report;
mod show;
mod steps;
mod tail;

use report::Report;
use show::Show;
use steps::Stage;

/// Runs the demo. Success means that every promise held.
///
/// # Errors
/// If a step could not be carried out at all; a promise that did not hold is a failing exit code.
pub async fn run(options: DemoOptions) -> Result<ExitCode> {
    let folder = Folder::new(options.dir.as_deref())?;
    let mut show = Show::new(options.style, options.json);
    let mut stage = Stage::new(folder.path(), Arc::new(SystemClock))?;
    let played = tokio::select! {
        played = play(&mut stage, &mut show, &options) => played,
        signal = interrupted() => {
            show.line("");
            show.line(&format!("{signal}: stopping"));
            Ok(None)
        }
    };
    stage.end().await;
    let report = match played {
        Ok(report) => report,
        Err(error) => {
            folder.keep();
            return Err(error.context(format!("logs are in {}", folder.path().display())));
        }
    };
    let Some(report) = report else { return Ok(ExitCode::from(130)) };
    if options.json {
        show.json(&report)?;
    }
    if report.all_held() {
        Ok(ExitCode::SUCCESS)
    } else {
        folder.keep();
        show.line(&format!("the agents' logs are in {}", folder.path().display()));
        Ok(ExitCode::FAILURE)
    }
}

/// Plays all steps; with `--once` answers the report at the end, else waits for Ctrl-C.
async fn play(stage: &mut Stage, show: &mut Show, options: &DemoOptions) -> Result<Option<Report>> {
    let mut report = Report::default();
    stage.start_mesh(show, &mut report).await?;
    stage.deploy(show, &mut report).await?;
    stage.load(show);
    stage.move_under_load(show, &mut report).await?;
    stage.kill_host(show, &mut report).await?;
    stage.bring_back(show, &mut report).await?;
    stage.finale(show, &report, options.once).await?;
    if options.once {
        return Ok(Some(report));
    }
    std::future::pending().await
}

async fn interrupted() -> &'static str {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut int), Ok(mut term), Ok(mut hup)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
        signal(SignalKind::hangup()),
    ) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = int.recv() => "interrupted",
        _ = term.recv() => "terminated",
        _ = hup.recv() => "hung up",
    }
}

/// The demo's folder: a temporary one is removed at the end, unless something went wrong in it.
struct Folder {
    path: PathBuf,
    remove: std::cell::Cell<bool>,
}

impl Folder {
    fn new(given: Option<&Path>) -> Result<Self> {
        if let Some(path) = given {
            std::fs::create_dir_all(path)
                .with_context(|| format!("cannot make the demo's folder {}", path.display()))?;
            let path = std::fs::canonicalize(path)
                .with_context(|| format!("cannot use the demo's folder {}", path.display()))?;
            anyhow::ensure!(
                std::fs::read_dir(&path)?.next().is_none(),
                "{} is not empty: give the demo an empty folder, or one that does not exist",
                path.display()
            );
            return Ok(Self { path, remove: std::cell::Cell::new(false) });
        }
        let name =
            format!("flocker-demo-{}-{}", std::process::id(), SystemClock.wall().as_millis());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path)
            .with_context(|| format!("cannot make the demo's folder {}", path.display()))?;
        Ok(Self { path, remove: std::cell::Cell::new(true) })
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn keep(&self) {
        self.remove.set(false);
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.remove.get()
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            tracing::warn!(folder = %self.path.display(), %error, "cannot remove the demo's folder");
        }
    }
}

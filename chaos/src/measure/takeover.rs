//! How soon another takes over from who died, and from who gives up by wish: agents beside etcd's lease
//! and ZooKeeper's session of the same length, all in one run and side by side.
//!
//! Each is three processes with their state on the same disk. Who holds is killed with all that it
//! runs; the time ends with the first request that another answers (ours), or with the moment when the
//! next one in line has the lock (the peers').

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use tokio::task::JoinSet;

use super::figures::Summary;

mod etcd;
mod ours;
mod zookeeper;

/// What is to be measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The length of leases and sessions.
    pub lease: Duration,
    /// How often who holds is killed.
    pub kills: usize,
    /// How often it gives up by wish.
    pub handoffs: usize,
    /// Where all keep their state.
    pub folder: PathBuf,
    /// The agents' binary.
    pub binary: PathBuf,
}

/// The samples of one system, in milliseconds.
#[derive(Clone, Debug, Default)]
pub(super) struct Samples {
    /// From the death of who held to its successor.
    pub(super) killed: Vec<f64>,
    /// From its wish to give up to its successor.
    pub(super) released: Vec<f64>,
    /// What the lease was in fact.
    pub(super) lease: Duration,
}

/// The figures of one system.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// Its lease or session, in milliseconds.
    pub lease_ms: u64,
    /// Takeovers after a death, in milliseconds.
    pub killed: Option<Summary>,
    /// Takeovers by wish, in milliseconds.
    pub released: Option<Summary>,
}

/// The document.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// By system.
    pub systems: BTreeMap<String, Figures>,
}

/// Measures all of them side by side.
///
/// # Errors
/// If a program is missing, or one does not do what it is there for.
pub async fn run(plan: &Plan) -> Result<Report> {
    etcd::check()?;
    zookeeper::check()?;
    let folder = tempfile::Builder::new().prefix("flocker-takeover-").tempdir_in(&plan.folder);
    let folder = folder.context("cannot make a folder")?;
    let mut all: JoinSet<Result<(&'static str, Samples)>> = JoinSet::new();
    let of = |name: &str| (plan.clone(), folder.path().join(name));
    let (plan_, at) = of("flocker");
    all.spawn(async move { Ok(("flocker", Box::pin(ours::run(&plan_, &at)).await?)) });
    let (plan_, at) = of("etcd");
    all.spawn(async move { Ok(("etcd", Box::pin(etcd::run(&plan_, &at)).await?)) });
    let (plan_, at) = of("zookeeper");
    all.spawn(async move { Ok(("zookeeper", Box::pin(zookeeper::run(&plan_, &at)).await?)) });
    let mut systems = BTreeMap::new();
    while let Some(ended) = all.join_next().await {
        let (name, samples) = ended.context("a measurement was cut short")??;
        crate::say(&format!("{name}: done"));
        let figures = Figures {
            lease_ms: crate::millis(samples.lease),
            killed: Summary::of(&samples.killed),
            released: Summary::of(&samples.released),
        };
        systems.insert(name.to_owned(), figures);
    }
    Ok(Report { systems })
}

impl Report {
    /// As a table, with our medians' ratios to the others'.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = String::from(
            "| system | lease ms | killed: p50 ms | p99 | max | n | ours over it | released: p50 ms | \
             p99 | max | n | ours over it |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n",
        );
        let ours = self.systems.get("flocker");
        for (name, figures) in &self.systems {
            let cells = |own: Option<Summary>, of_ours: Option<Summary>| {
                let Some(own) = own else { return "- | - | - | 0 | -".to_owned() };
                let ratio = of_ours.map_or(0.0, |of_ours| of_ours.median / own.median);
                let Summary { samples, median, p99, max } = own;
                format!("{median:.1} | {p99:.1} | {max:.1} | {samples} | {ratio:.2}")
            };
            text.push_str(&format!(
                "| {name} | {} | {} | {} |\n",
                figures.lease_ms,
                cells(figures.killed, ours.and_then(|o| o.killed)),
                cells(figures.released, ours.and_then(|o| o.released)),
            ));
        }
        text
    }
}

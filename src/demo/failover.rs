//! The demo's last steps: the host is killed, the service comes back elsewhere, the host returns.
//! Every figure is measured from outside, at the clients.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use flocker_base::{BootTime, Name};

use super::load;
use super::report::{
    FailoverFigures, LEASE_MS, REPLICATION_ALLOWANCE_MS, Report, SNAPSHOT_EVERY_MS,
    TAKEOVER_BEYOND_LEASE_MS,
};
use super::show::Show;
use super::steps::{HOST, PATIENCE, Stage, millis, running};
use super::tail::{self, Tail};
use crate::api::{ExportRequest, Liveness};
use crate::cli::render;

/// Largest log read back, in bytes.
const MAX_LOG: usize = 64 * 1024 * 1024;

impl Stage {
    pub(super) async fn kill_host(&mut self, show: &mut Show, report: &mut Report) -> Result<()> {
        show.step("The host dies: SIGKILL to its agent and its service");
        let status = self.nodes[0].client().status().await?;
        let service = status.services.first().context("the service is gone")?;
        let host = service.node.as_ref().context("the service runs nowhere")?.to_string();
        let pid = service.pid.context("the service's process is not known")?;
        let index = self.nodes.iter().position(|n| n.name == host).context("an unknown host")?;
        show.command(&format!("kill -9 $(agent of {host}) {pid}"));
        let _before = self.running_load()?.take();
        self.running_load()?.mark();
        let killed_at = self.nodes[index].kill(&*self.clock).await?;
        kill_group(pid)?;
        let survivors: Vec<String> =
            self.nodes.iter().filter(|n| n.name != host).map(|n| n.name.clone()).collect();
        let first = self.first_successes(&survivors, killed_at).await?;
        for (node, ms) in &first {
            show.say(&format!("first success through {node} after {ms} ms"));
        }
        let witness = self.nodes.iter().position(|n| n.name != host).context("no survivor")?;
        let status = self.until(witness, "the service runs elsewhere", |s| {
            running(s).is_some_and(|n| n != host)
        });
        let status = status.await?;
        let new_host = running(&status).unwrap_or_default();
        let epoch = status.volumes.first().and_then(|v| v.epoch).unwrap_or_default();
        show.say(&format!("it runs on {new_host} under epoch {epoch}"));
        let (acknowledged, tail) = self.measure_tail(witness, killed_at).await?;
        show.say(&format!(
            "{acknowledged} writes were acknowledged; the last {} of them, of {} ms, had not been \
             replicated",
            tail.lines.len(),
            millis(tail.length)
        ));
        let within = LEASE_MS + TAKEOVER_BEYOND_LEASE_MS;
        let quick = first.len() == survivors.len() && first.iter().all(|(_, ms)| *ms <= within);
        show.promise(&report.promise(
            format!("every surviving node serves again within the lease + 2 s ({within} ms)"),
            quick,
        ));
        let allowed = SNAPSHOT_EVERY_MS + REPLICATION_ALLOWANCE_MS;
        show.promise(&report.promise(
            format!("the lost tail is no longer than the snapshot interval allows ({allowed} ms)"),
            millis(tail.length) <= allowed,
        ));
        report.failover = Some(FailoverFigures {
            killed: host,
            first_success_ms: first,
            host: new_host,
            epoch: epoch.to_string(),
            acknowledged,
            lost_tail: tail.lines.len(),
            tail_ms: millis(tail.length),
            branch: None,
            tail_in_branch: 0,
        });
        self.lost = tail;
        Ok(())
    }
    /// From the kill to the first answer that each survivor gave to a request sent after it.
    async fn first_successes(
        &self,
        survivors: &[String],
        killed_at: BootTime,
    ) -> Result<Vec<(String, u64)>> {
        let deadline = self.clock.boot() + PATIENCE;
        loop {
            let seen = self.running_load()?.first_successes();
            if survivors.iter().all(|n| seen.contains_key(n)) {
                let ms = |n: &String| millis(seen[n].saturating_since(killed_at));
                return Ok(survivors.iter().map(|n| (n.clone(), ms(n))).collect());
            }
            if self.clock.boot() > deadline {
                let tally = self.running_load()?.take();
                bail!("no success within {} s: {:?}", PATIENCE.as_secs(), tally.reasons);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Stops the load and compares what was acknowledged before the kill with what is there.
    async fn measure_tail(&mut self, witness: usize, killed_at: BootTime) -> Result<(usize, Tail)> {
        let mut acknowledged = self.end_load().await?;
        let total = acknowledged.len();
        acknowledged.retain(|_, at| *at <= killed_at);
        let log = load::get(&self.nodes[witness].target(), HOST, "/entries", MAX_LOG)
            .await
            .map_err(anyhow::Error::msg)
            .context("cannot read the service's entries")?;
        Ok((total, tail::lost_tail(&acknowledged, &tail::lines(&log), killed_at)))
    }

    pub(super) async fn bring_back(&mut self, show: &mut Show, report: &mut Report) -> Result<()> {
        show.step("The dead node returns: a replica now, its unreplicated tail a branch");
        let figures = report.failover.as_mut().context("no node was killed")?;
        let index = self.nodes.iter().position(|n| n.name == figures.killed);
        let index = index.context("an unknown node was killed")?;
        let name = self.nodes[index].name.clone();
        show.command(&format!("flocker up --name {name}"));
        self.nodes[index].start(None)?;
        self.nodes[index].wait_until_up(&*self.clock).await?;
        let lost_something = !self.lost.lines.is_empty();
        let status = self
            .until(index, "the returned node is an up-to-date replica", |s| {
                let back =
                    s.nodes.iter().any(|n| n.name.as_str() == name && n.liveness == Liveness::Live);
                back && s.volumes.first().is_some_and(|v| {
                    let current = v.replicas.iter().any(|r| r.node.as_str() == name && r.acked);
                    let kept = v.branches.iter().any(|b| b.node.as_str() == name);
                    current
                        && v.master.as_ref().is_some_and(|m| m.as_str() != name)
                        && (kept || !lost_something)
                })
            })
            .await?;
        let volume = status.volumes.first().context("the volume is gone")?;
        show.promise(&report.promise(format!("{name} is a replica again, up to date"), true));
        let branches: Vec<String> = volume
            .branches
            .iter()
            .filter(|b| b.node.as_str() == name)
            .map(|b| b.name.clone())
            .collect();
        let mut kept = std::collections::BTreeSet::new();
        for branch in &branches {
            show.say(&format!("branch {branch} on {name}"));
            kept.extend(self.read_branch(index, branch).await?);
        }
        let in_branch = self.lost.lines.iter().filter(|l| kept.contains(*l)).count();
        show.say(&format!(
            "{in_branch} of the {} writes of the lost tail are in it",
            self.lost.lines.len()
        ));
        let all = in_branch == self.lost.lines.len();
        show.promise(&report.promise("every write of the lost tail is kept in a branch", all));
        if let Some(figures) = report.failover.as_mut() {
            figures.branch = branches.first().cloned();
            figures.tail_in_branch = in_branch;
        }
        Ok(())
    }

    async fn read_branch(
        &self,
        index: usize,
        branch: &str,
    ) -> Result<std::collections::BTreeSet<String>> {
        let into = self.folder.join(format!("branch-{branch}"));
        let request = ExportRequest {
            volume: Name::new("data")?,
            branch: Some(branch.to_owned()),
            into: into.clone(),
        };
        self.nodes[index].client().export(&request).await.context("cannot export the branch")?;
        let log = std::fs::read(into.join("log")).context("the branch has no log")?;
        Ok(tail::lines(&log))
    }

    pub(super) async fn finale(
        &mut self,
        show: &mut Show,
        report: &Report,
        once: bool,
    ) -> Result<()> {
        show.step("The mesh now");
        let status = self.nodes[0].client().status().await?;
        show.command("flocker status");
        show.block(&render::status(&status, show.style()));
        let broken = report.promises.iter().filter(|p| !p.held).count();
        show.line("");
        show.line(&if report.all_held() {
            format!("All {} promises held.", report.promises.len())
        } else {
            format!("{broken} of {} promises did not hold.", report.promises.len())
        });
        if once {
            return Ok(());
        }
        let node = &self.nodes[0];
        show.line("");
        show.line("The mesh keeps running. In another terminal:");
        show.say(&format!("export FLOCKER_SOCKET={}", node.socket().display()));
        show.say("flocker status");
        show.say("flocker move tally --to us-1");
        show.say(&format!("curl -H 'Host: {HOST}' http://{}/", node.target().address));
        show.say(&format!("curl -H 'Host: {HOST}' -d hello http://{}/", node.target().address));
        show.say(&format!("tail -f {}", node.log().display()));
        show.line("Ctrl-C ends it and removes its folder.");
        Ok(())
    }
}

/// SIGKILL to a service and all that it started.
fn kill_group(pid: u32) -> Result<()> {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    let pid = pid.context("the service's process id is none")?;
    match rustix::process::kill_process_group(pid, rustix::process::Signal::KILL) {
        // It may have ended with its agent.
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error).context("cannot kill the service"),
    }
}

//! What is done to the hosts: to the master's, or to others while the master's dies.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flocker_base::{BootTime, Clock as _, SystemClock};
use serde::{Deserialize, Serialize};

use super::hosts::Hosts;
use crate::mesh::{LEASE, Mesh};
use crate::processes;

/// The hosts: name and region. With three regions no one of them has a majority of the voters, who
/// are all five.
pub const HOSTS: [(&str, &str); 5] =
    [("eu-1", "eu"), ("eu-2", "eu"), ("us-1", "us"), ("us-2", "us"), ("ap-1", "ap")];

/// How long a disturbance lasts that another is to use to take over: longer than any promise.
const LONG: Duration = Duration::from_secs(6);
/// How much a disk is slowed down that a voter is to be killed over.
const SLOW_DISK: Duration = Duration::from_millis(150);

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// The master's agent is killed; its service and guard are left.
    AgentKilled,
    /// The service alone is killed: its agent starts it again.
    ServiceKilled,
    /// The master's agent and its service are killed.
    AgentAndServiceKilled,
    /// All of the master's host is killed at once, its cable pulled first.
    HostKilled,
    /// The master's agent is stopped for longer than its lease, and goes on.
    AgentStopped,
    /// The master is cut off from every other host.
    CutFromAll,
    /// The master and one other are cut off from the rest.
    CutFromMajority,
    /// Nothing that the master sends to other hosts arrives.
    Mute,
    /// Nothing that other hosts send to the master arrives.
    Deaf,
    /// The master is cut off from one other region.
    CutFromRegion,
    /// The master's host is killed, and a voter between the moment when its grant is on the disk and
    /// the one when it answers.
    VoterKilledInGrant,
    /// A voter's disk gets full, then the master's host is killed.
    VoterDiskFull,
    /// The master's host is killed while the two other copies do not hear one another: both ask at
    /// once.
    TwoCandidates,
}

/// What was done.
#[derive(Debug)]
pub struct Done {
    /// When.
    pub at: BootTime,
    /// Whether another master must follow.
    pub moves: bool,
    /// The hosts that cannot be expected to serve meanwhile.
    pub out: Vec<usize>,
    /// Hosts whose agents have to be started again.
    dead: Vec<usize>,
    /// The host whose agent has to go on.
    stopped: Option<usize>,
    /// The host whose disk has to be freed.
    full: Option<usize>,
    /// It ends by itself: another may not have followed yet.
    lasts: Duration,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::AgentKilled,
        Self::ServiceKilled,
        Self::AgentAndServiceKilled,
        Self::HostKilled,
        Self::AgentStopped,
        Self::CutFromAll,
        Self::CutFromMajority,
        Self::Mute,
        Self::Deaf,
        Self::CutFromRegion,
        Self::VoterKilledInGrant,
        Self::VoterDiskFull,
        Self::TwoCandidates,
    ];

    /// Does it. `pick` is a number that differs from round to round.
    ///
    /// # Errors
    /// If it cannot be done.
    pub async fn strike(
        self,
        mesh: &mut Mesh,
        hosts: &Hosts,
        master: usize,
        pick: usize,
    ) -> Result<Done> {
        let others: Vec<usize> = (0..HOSTS.len()).filter(|host| *host != master).collect();
        let one = *others.get(pick % others.len()).context("there are no others")?;
        let service = mesh.status(master).await?.services.first().and_then(|s| s.pid);
        let service = service.context("the service's process is not known")?;
        let mut done = Done {
            at: SystemClock.boot(),
            moves: true,
            out: vec![master],
            dead: Vec::new(),
            stopped: None,
            full: None,
            lasts: Duration::ZERO,
        };
        match self {
            Self::AgentKilled
            | Self::ServiceKilled
            | Self::AgentAndServiceKilled
            | Self::HostKilled
            | Self::AgentStopped => {
                self.end(&mut done, mesh, hosts, (master, service)).await?;
            }
            Self::CutFromAll
            | Self::CutFromMajority
            | Self::Mute
            | Self::Deaf
            | Self::CutFromRegion => {
                self.cut(&mut done, hosts, &others, one, master)?;
                done.at = SystemClock.boot();
            }
            Self::VoterKilledInGrant | Self::VoterDiskFull | Self::TwoCandidates => {
                self.hinder(&mut done, mesh, hosts, (master, pick, one)).await?;
            }
        }
        Ok(done)
    }

    /// What ends processes of the master's host.
    async fn end(
        self,
        done: &mut Done,
        mesh: &mut Mesh,
        hosts: &Hosts,
        (master, service): (usize, u32),
    ) -> Result<()> {
        match self {
            Self::ServiceKilled => {
                processes::kill_group(service)?;
                done.moves = false;
                done.out.clear();
                return Ok(());
            }
            Self::AgentStopped => {
                mesh.node_mut(master)?.pause()?;
                done.at = SystemClock.boot();
                done.stopped = Some(master);
                done.lasts = LONG;
                return Ok(());
            }
            Self::HostKilled => done.at = kill_host(mesh, hosts, master).await?,
            _ => done.at = mesh.node_mut(master)?.kill().await?,
        }
        if self == Self::AgentAndServiceKilled {
            processes::kill_group(service)?;
        }
        done.dead.push(master);
        Ok(())
    }

    /// What cuts the master off.
    fn cut(
        self,
        done: &mut Done,
        hosts: &Hosts,
        others: &[usize],
        one: usize,
        master: usize,
    ) -> Result<()> {
        done.lasts = LONG;
        match self {
            Self::CutFromMajority => {
                for other in others.iter().filter(|other| **other != one) {
                    hosts.part(master, *other)?;
                    hosts.part(one, *other)?;
                }
                done.out.push(one);
            }
            Self::CutFromRegion => {
                let region = HOSTS[one].1;
                let away = if region == HOSTS[master].1 { another_region(region) } else { region };
                done.out = others.iter().copied().filter(|host| HOSTS[*host].1 == away).collect();
                for other in &done.out {
                    hosts.part(master, *other)?;
                }
                done.moves = false;
            }
            _ => {
                for other in others {
                    if self != Self::Deaf {
                        hosts.cut(master, *other)?;
                    }
                    if self != Self::Mute {
                        hosts.cut(*other, master)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// What kills the master's host and makes it hard for the others to elect another.
    async fn hinder(
        self,
        done: &mut Done,
        mesh: &mut Mesh,
        hosts: &Hosts,
        (master, pick, one): (usize, usize, usize),
    ) -> Result<()> {
        done.dead.push(master);
        match self {
            Self::VoterKilledInGrant => {
                let victim = without_copy(mesh, master, pick).await?;
                let slow = SlowDisk::of(mesh, victim)?;
                done.at = kill_host(mesh, hosts, master).await?;
                slow.await_write_after(done.at + LEASE).await;
                mesh.node_mut(victim)?.kill().await?;
                done.dead.push(victim);
                done.out.push(victim);
            }
            Self::VoterDiskFull => {
                hosts.fill(one)?;
                done.full = Some(one);
                done.at = kill_host(mesh, hosts, master).await?;
                done.out.push(one);
            }
            _ => {
                let copies = copies(mesh, master).await?;
                for (number, first) in copies.iter().enumerate() {
                    for second in &copies[number + 1..] {
                        hosts.part(*first, *second)?;
                    }
                }
                done.at = kill_host(mesh, hosts, master).await?;
                // The one that does not hear the winner may serve late.
                done.out.extend(copies);
            }
        }
        Ok(())
    }
}

fn another_region(region: &str) -> &'static str {
    HOSTS.iter().map(|(_, of)| *of).find(|of| *of != region).unwrap_or_default()
}

impl Done {
    /// Waits out what has to last, undoes it, and starts what was killed.
    ///
    /// # Errors
    /// If it cannot be undone.
    pub async fn mend(self, mesh: &mut Mesh, hosts: &Hosts) -> Result<()> {
        let end = self.at + self.lasts;
        tokio::time::sleep(end.saturating_since(SystemClock.boot())).await;
        hosts.mend()?;
        if let Some(host) = self.stopped {
            mesh.node_mut(host)?.resume()?;
        }
        if let Some(host) = self.full {
            hosts.free(host)?;
            // It may have ended itself: what it could not write it must not go on from.
            mesh.node_mut(host)?.revive().await?;
        }
        for host in self.dead {
            mesh.node_mut(host)?.start(None)?;
            mesh.node_mut(host)?.wait_until_up().await?;
        }
        Ok(())
    }
}

/// Nothing of it gets out any more; then all that runs there is killed.
async fn kill_host(mesh: &mut Mesh, hosts: &Hosts, host: usize) -> Result<BootTime> {
    hosts.plug(host, false)?;
    let at = mesh.node_mut(host)?.kill().await?;
    let (folder, binary) = (mesh.folder().join(HOSTS[host].0), mesh.binary().to_owned());
    let deadline = at + LONG;
    while processes::kill_all(&folder, &binary)? > 0 {
        ensure!(SystemClock.boot() < deadline, "something on {} can't be killed", HOSTS[host].0);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(at)
}

/// The hosts that have copies, without the master.
///
/// # Errors
/// If the master's agent does not answer.
pub async fn copies(mesh: &Mesh, master: usize) -> Result<Vec<usize>> {
    let status = mesh.status(master).await?;
    let volume = status.volumes.first().context("there is no volume")?;
    let copies = volume.replicas.iter().map(|r| mesh.number_of(r.node.as_str()));
    let copies: Result<Vec<usize>> = copies.collect();
    Ok(copies?.into_iter().filter(|host| *host != master).collect())
}

async fn without_copy(mesh: &Mesh, master: usize, pick: usize) -> Result<usize> {
    let copies = copies(mesh, master).await?;
    let plain: Vec<usize> =
        (0..HOSTS.len()).filter(|host| *host != master && !copies.contains(host)).collect();
    plain.get(pick % plain.len().max(1)).copied().context("every host has a copy")
}

/// An agent whose syncs to the disk return late: what was synced is there, and it does not know.
struct SlowDisk {
    tracer: std::process::Child,
    log: std::path::PathBuf,
}

impl SlowDisk {
    fn of(mesh: &Mesh, host: usize) -> Result<Self> {
        let pid = mesh.nodes()[host].pid().context("its agent does not run")?.to_string();
        let log = mesh.folder().join("trace");
        drop(std::fs::remove_file(&log));
        let inject = format!("inject=fdatasync,fsync:delay_exit={}", SLOW_DISK.as_micros());
        let tracer = Command::new("strace")
            .args(["-f", "-qq", "-p", &pid, "-e", "trace=fdatasync,fsync", "-e", &inject, "-o"])
            .arg(&log)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run strace")?;
        Ok(Self { tracer, log })
    }

    fn length(log: &Path) -> u64 {
        std::fs::metadata(log).map_or(0, |found| found.len())
    }

    /// Returns once it has synced something after this instant, or long after.
    async fn await_write_after(&self, from: BootTime) {
        tokio::time::sleep(from.saturating_since(SystemClock.boot())).await;
        let before = Self::length(&self.log);
        let deadline = from + LONG;
        while Self::length(&self.log) == before && SystemClock.boot() < deadline {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        // In the midst of the delay.
        tokio::time::sleep(SLOW_DISK / 3).await;
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        drop(self.tracer.kill());
        drop(self.tracer.wait());
    }
}

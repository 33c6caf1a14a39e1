//! Hosts on one machine: each has a network namespace, a cable to a common bridge and a small disk in
//! memory. Cables can be pulled, and packets from one host to another can vanish, in one direction or
//! in both, without either being told.
//!
//! To be used in namespaces of one's own: what is made here goes with them.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use flocker_base::{Clock as _, SystemClock};

/// The room on a host's disk.
const DISK: &str = "512m";
/// How long a namespace may take to be there.
const MADE_WITHIN: Duration = Duration::from_secs(5);
/// Leaves a host for nowhere: what is routed there vanishes.
const NOWHERE: &str = "void";

/// The hosts.
#[derive(Debug)]
pub struct Hosts {
    hosts: Vec<Host>,
}

#[derive(Debug)]
struct Host {
    /// Holds the namespace.
    holder: Child,
    disk: PathBuf,
}

impl Hosts {
    /// Makes hosts with disks at these folders.
    ///
    /// # Errors
    /// What the system refused: mostly for want of root's rights.
    pub fn make(disks: Vec<PathBuf>) -> Result<Self> {
        run("ip", &["link", "set", "lo", "up"])?;
        run("ip", &["link", "add", "mesh", "type", "bridge"])?;
        run("ip", &["address", "add", "10.77.0.254/24", "dev", "mesh"])?;
        run("ip", &["link", "set", "mesh", "up"])?;
        let mut all = Self { hosts: Vec::new() };
        for disk in disks {
            all.add(disk)?;
        }
        Ok(all)
    }

    fn add(&mut self, disk: PathBuf) -> Result<()> {
        std::fs::create_dir_all(&disk).context("cannot make a folder for a disk")?;
        let size = format!("size={DISK},mode=700");
        let place = disk.display().to_string();
        run("mount", &["-t", "tmpfs", "-o", &size, "disk", &place])?;
        let holder = Command::new("unshare")
            .args(["--net", "--", "sleep", "infinity"])
            .stdin(Stdio::null())
            .spawn()
            .context("cannot run unshare")?;
        let host = self.hosts.len();
        self.hosts.push(Host { holder, disk });
        self.await_namespace(host)?;
        let (cable, pid) = (cable(host), self.pid(host)?.to_string());
        run("ip", &["link", "add", &cable, "type", "veth", "peer", "name", "net", "netns", &pid])?;
        run("ip", &["link", "set", &cable, "master", "mesh", "up"])?;
        let address = format!("{}/24", address(host));
        for arguments in [
            &["link", "set", "lo", "up"][..],
            &["address", "add", &address, "dev", "net"],
            &["link", "set", "net", "up"],
            &["link", "add", NOWHERE, "type", "veth", "peer", "name", "end"],
            &["link", "set", "end", "up"],
            &["link", "set", NOWHERE, "arp", "off", "up"],
        ] {
            self.within(host, "ip", arguments)?;
        }
        Ok(())
    }

    fn await_namespace(&self, host: usize) -> Result<()> {
        let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        let (own, pid) = (of("self"), self.pid(host)?.to_string());
        let deadline = SystemClock.boot() + MADE_WITHIN;
        while of(&pid).is_none_or(|theirs| Some(theirs) == own) {
            ensure!(SystemClock.boot() < deadline, "there is no namespace: is this root?");
            std::thread::yield_now();
        }
        Ok(())
    }

    fn pid(&self, host: usize) -> Result<u32> {
        Ok(self.hosts.get(host).context("no such host")?.holder.id())
    }

    /// What to put before a command that is to run on this host.
    ///
    /// # Errors
    /// If there is no such host.
    pub fn launcher(&self, host: usize) -> Result<Vec<OsString>> {
        let namespace = format!("--net=/proc/{}/ns/net", self.pid(host)?);
        Ok(vec!["nsenter".into(), namespace.into(), "--".into()])
    }

    /// Runs a command on a host, to its end.
    fn within(&self, host: usize, program: &str, arguments: &[&str]) -> Result<()> {
        let launcher = self.launcher(host)?;
        let mut all: Vec<&str> = launcher[1..].iter().filter_map(|a| a.to_str()).collect();
        all.push(program);
        all.extend(arguments);
        run("nsenter", &all)
    }

    /// From now on what the one host sends to the other vanishes.
    ///
    /// # Errors
    /// If it cannot be arranged.
    pub fn cut(&self, from: usize, to: usize) -> Result<()> {
        let (source, target) = (address(from).to_string(), format!("{}/32", address(to)));
        self.within(from, "ip", &["route", "replace", &target, "dev", NOWHERE, "src", &source])
    }

    /// The same in both directions.
    ///
    /// # Errors
    /// As for [`Self::cut`].
    pub fn part(&self, one: usize, other: usize) -> Result<()> {
        self.cut(one, other)?;
        self.cut(other, one)
    }

    /// Pulls a host's cable, or puts it back.
    ///
    /// # Errors
    /// If it cannot be done.
    pub fn plug(&self, host: usize, plugged: bool) -> Result<()> {
        run("ip", &["link", "set", &cable(host), if plugged { "up" } else { "down" }])
    }

    /// Undoes every cut and puts every cable back.
    ///
    /// # Errors
    /// If it cannot be done.
    pub fn mend(&self) -> Result<()> {
        for host in 0..self.hosts.len() {
            self.plug(host, true)?;
            self.within(host, "ip", &["route", "flush", "dev", NOWHERE])?;
        }
        Ok(())
    }

    /// Fills a host's disk to the last byte.
    ///
    /// # Errors
    /// If it does not get full.
    pub fn fill(&self, host: usize) -> Result<()> {
        let path = self.hosts.get(host).context("no such host")?.disk.join("filler");
        let place = format!("of={}", path.display());
        let written = Command::new("dd")
            .args(["if=/dev/zero", &place, "bs=64k", "status=none"])
            .stderr(Stdio::null())
            .status()
            .context("cannot run dd")?;
        ensure!(!written.success(), "the disk takes more and more");
        Ok(())
    }

    /// Saves what is on all disks into a folder, before they vanish.
    ///
    /// # Errors
    /// If it cannot be copied.
    pub fn save(&self, into: &Path) -> Result<()> {
        std::fs::create_dir_all(into).context("cannot make a folder")?;
        let into = into.display().to_string();
        for host in &self.hosts {
            run("cp", &["-r", &host.disk.display().to_string(), &into])?;
        }
        Ok(())
    }

    /// Makes room on it again.
    ///
    /// # Errors
    /// If what filled it cannot be taken away.
    pub fn free(&self, host: usize) -> Result<()> {
        let path = self.hosts.get(host).context("no such host")?.disk.join("filler");
        std::fs::remove_file(path).context("cannot free the disk")
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for host in &mut self.hosts {
            drop(host.holder.kill());
            drop(host.holder.wait());
            // Agents may still have files open there.
            drop(run("umount", &["--lazy", &host.disk.display().to_string()]));
        }
    }
}

/// A host's address, from number 0.
#[must_use]
pub fn address(host: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, u8::try_from(host + 1).unwrap_or(u8::MAX))
}

fn cable(host: usize) -> String {
    format!("cable{host}")
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot run {program}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    bail!("{program} {}: {}", arguments.join(" "), said.trim())
}

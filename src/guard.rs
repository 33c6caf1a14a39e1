//! The guard: a small process of its own that ends services whose lease has ended.
//!
//! ```text
//!   agent ── Guard (handle) ── GuardLink ── unix socket ──▶ guard process
//!                                                             │ table: service, pid, start,
//!                                                             │        freeze_at, deadline
//!                                                             ▼
//!                                           frozen at freeze_at; past the deadline killed, or
//!                                           kept frozen for a while if it stands still
//! ```
//!
//! Invariants:
//! - It acts by itself: no word from the agent is needed. Past a deadline nothing runs, whatever an
//!   agent says, unless the lease that it was frozen for is renewed.
//! - A deadline moves only forward, only for the epoch it was given for, and only at the word of
//!   the newest agent. (From "never" to an instant is the one exception: it is the safer side.)
//! - It alone lets run on what was frozen for a lease, by its own clock: an agent's word may be old by
//!   the time that it acts on it.
//! - It never waits: not for the disk, not for a peer. Its table is written by a second thread.
//! - Without a readable table it kills every process that carries its mark.
//! - It never signals a process that is not proven to be the one it was told of.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};

mod client;
mod hands;
mod notes;
mod peer;
mod serve;
mod store;
pub mod table;
mod watchdog;
pub mod wire;

pub use client::{ClientConfig, Guard, GuardError, GuardLink, GuardStatus};
pub use wire::{Extension, Phase, Protected};

/// The hidden subcommand's name.
pub const SUBCOMMAND: &str = "guard";

const SOCKET: &str = "guard.sock";
const LOCK: &str = "guard.lock";
const LOG: &str = "guard.log";

/// How the guard process is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardOptions {
    /// Where its socket, table and log are; its own, absolute, best on a tmpfs. Services carry it
    /// as their mark.
    pub runtime_dir: PathBuf,
    /// With no agent and nothing protected, it exits after this.
    pub linger: Duration,
    /// How long a service that was frozen in time may stand still past its deadline, in case its
    /// lease is renewed after all, before it is killed.
    pub frozen_limit: Duration,
}

impl GuardOptions {
    /// The arguments after the subcommand, as [`Self::parse`] reads them.
    #[must_use]
    pub fn to_arguments(&self) -> Vec<OsString> {
        let linger = self.linger.as_millis().to_string();
        let frozen_limit = self.frozen_limit.as_millis().to_string();
        vec![
            "--runtime-dir".into(),
            self.runtime_dir.clone().into(),
            "--linger-ms".into(),
            linger.into(),
            "--frozen-limit-ms".into(),
            frozen_limit.into(),
        ]
    }

    /// Reads the arguments after the subcommand.
    ///
    /// # Errors
    /// For anything that [`Self::to_arguments`] does not write.
    pub fn parse(arguments: &[OsString]) -> anyhow::Result<Self> {
        let (mut runtime_dir, mut linger, mut frozen_limit) = (None, None, None);
        let millis = |name: &OsString, value: &OsString| {
            let millis = value.to_str().and_then(|v| v.parse().ok()).map(Duration::from_millis);
            millis.with_context(|| format!("{}: no number", name.display()))
        };
        for pair in arguments.chunks(2) {
            match pair {
                [name, value] if name == "--runtime-dir" => runtime_dir = Some(value.into()),
                [name, value] if name == "--linger-ms" => linger = Some(millis(name, value)?),
                [name, value] if name == "--frozen-limit-ms" => {
                    frozen_limit = Some(millis(name, value)?);
                }
                other => bail!("'flocker {SUBCOMMAND}' is for flocker's own use, not {other:?}"),
            }
        }
        let runtime_dir: PathBuf = runtime_dir.context("--runtime-dir is missing")?;
        if !runtime_dir.is_absolute() {
            bail!("--runtime-dir must be an absolute path");
        }
        let linger = linger.context("--linger-ms is missing")?;
        // An agent of before there was one killed at the deadline.
        Ok(Self { runtime_dir, linger, frozen_limit: frozen_limit.unwrap_or_default() })
    }
}

/// The guard process's whole life: call it before any runtime or thread is started.
///
/// # Errors
/// When another guard has the folder, or the socket cannot be made.
#[expect(clippy::needless_pass_by_value, reason = "it is the process's whole life")]
pub fn run(options: GuardOptions) -> anyhow::Result<()> {
    serve::run(&options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read_as_they_were_written() {
        let options = GuardOptions {
            runtime_dir: "/run/x y".into(),
            linger: Duration::from_millis(700),
            frozen_limit: Duration::from_secs(60),
        };
        assert_eq!(GuardOptions::parse(&options.to_arguments()).expect("reads"), options);
        for bad in [
            &["--runtime-dir"][..],
            &["--runtime-dir", "/x"],
            &["--runtime-dir", "x", "--linger-ms", "1"],
            &["--runtime-dir", "/x", "--linger-ms", "soon"],
            &["--runtime-dir", "/x", "--linger-ms", "1", "--frozen-limit-ms", "-1"],
            &["--other", "1"],
        ] {
            let bad: Vec<OsString> = bad.iter().map(OsString::from).collect();
            assert!(GuardOptions::parse(&bad).is_err(), "{bad:?}");
        }
    }
}

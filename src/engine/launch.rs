//! `flocker launch`: holds a service's command back until its engine says go.
//!
//! The process makes a session of its own, tells the engine, and waits. The engine meanwhile
//! writes down whose process it is and has it guarded. Only then does the command take the
//! process over, with the same pid and start time. When the engine dies first, the wait ends and
//! the command never runs. This must not start a runtime or read a file.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, bail};

/// "The session is made; here I wait."
pub(super) const READY: u8 = b'r';
/// "Run it."
pub(super) const GO: u8 = b'g';
/// "It cannot be run", and why; nothing when it runs.
pub(super) const FAILED: u8 = b'e';
/// The hidden subcommand's name.
pub const SUBCOMMAND: &str = "launch";

/// Waits for the word on standard input (a socket), then becomes `command`.
///
/// # Errors
/// When not started by an engine, when the engine went away, or when the command cannot be run.
pub fn run(command: &[OsString]) -> anyhow::Result<()> {
    let Some((program, arguments)) = command.split_first() else {
        bail!("'flocker {SUBCOMMAND}' is for flocker's own use: no command was given");
    };
    let control = std::io::stdin().as_fd().try_clone_to_owned().context("cannot take stdin")?;
    let mut control = UnixStream::from(control);
    rustix::process::setsid().context("cannot make a session")?;
    control.write_all(&[READY]).context("'flocker launch' is for flocker's own use")?;
    let mut word = [0];
    control.read_exact(&mut word).context("the agent went away before it said go")?;
    if word != [GO] {
        bail!("the agent said something else than go");
    }
    let nothing = std::fs::File::open("/dev/null").context("cannot open /dev/null")?;
    rustix::stdio::dup2_stdin(&nothing).context("cannot replace stdin")?;
    let error = Command::new(program).args(arguments).exec();
    let text = format!("cannot run {}: {error}", program.display());
    let mut reply = vec![FAILED];
    reply.extend_from_slice(text.as_bytes());
    control.write_all(&reply).ok();
    bail!("{text}")
}

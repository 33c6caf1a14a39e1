//! One connection to a guard: found, started if need be, and greeted.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use super::{ClientConfig, GuardError};
use crate::engine::group::Stat;
use crate::guard::serve::socket_path;
use crate::guard::wire::{MOST_REPLY_BYTES, Reply, Request};
use crate::guard::{GuardOptions, LOCK, LOG, SUBCOMMAND};

/// A log that is longer is begun anew when a guard is started.
const MOST_LOG_BYTES: u64 = 1 << 20;
const LOOK: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
}

impl Connection {
    /// Finds the folder's guard or starts one. One that is there and does not answer is killed.
    pub(super) async fn open(config: &ClientConfig) -> Result<Self, GuardError> {
        let unreachable =
            |reason: String| GuardError::Unreachable { dir: config.runtime_dir.clone(), reason };
        if !config.runtime_dir.is_absolute() {
            return Err(unreachable("its folder must be an absolute path".to_owned()));
        }
        let mut builder = DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(&config.runtime_dir)
            .map_err(|e| unreachable(format!("cannot make its folder: {e}")))?;
        if let Ok(stream) = dial(&config.runtime_dir).await {
            match Self::greet(stream, config, config.call_deadline).await {
                Ok(connection) => return Ok(connection),
                Err(e @ (GuardError::Superseded(_) | GuardError::Refused(_))) => return Err(e),
                Err(e) => {
                    tracing::warn!("the guard that is there does not answer ({e}): killing it");
                    kill_hanging(&config.runtime_dir);
                }
            }
        }
        let late = || format!("it was not there {:?} after its start", config.spawn_deadline);
        let spawned = timeout(config.spawn_deadline, Self::spawn(config)).await;
        let stream = spawned.unwrap_or_else(|_elapsed| Err(late())).map_err(unreachable)?;
        // It listens before it is ready to answer: on a busy machine that takes a while.
        Self::greet(stream, config, config.spawn_deadline).await
    }

    async fn greet(
        stream: UnixStream,
        config: &ClientConfig,
        limit: Duration,
    ) -> Result<Self, GuardError> {
        let mut connection = Self { stream };
        let unreachable =
            |reason| GuardError::Unreachable { dir: config.runtime_dir.clone(), reason };
        match connection.ask(&Request::Hello(config.incarnation), limit).await {
            Ok(Reply::Done) => {}
            Ok(Reply::Refused(why)) => return Err(GuardError::Superseded(why)),
            Ok(other) => return Err(unreachable(format!("it answered {other:?} to a hello"))),
            Err(why) => return Err(unreachable(why)),
        }
        let Some(device) = &config.watchdog else { return Ok(connection) };
        match connection.ask(&Request::Watch(device.clone()), limit).await {
            Ok(Reply::Done) => Ok(connection),
            Ok(Reply::Refused(why)) => Err(GuardError::Refused(why)),
            Ok(other) => Err(unreachable(format!("it answered {other:?} to a watchdog"))),
            Err(why) => Err(unreachable(why)),
        }
    }

    /// Tries until one is there: another that still holds the folder may just be going.
    async fn spawn(config: &ClientConfig) -> Result<UnixStream, String> {
        loop {
            let mut child = start(config)?;
            loop {
                if let Ok(stream) = dial(&config.runtime_dir).await {
                    return Ok(stream);
                }
                match child.try_wait() {
                    Ok(Some(status)) => {
                        let log = config.runtime_dir.join(LOG);
                        tracing::warn!("a guard ended at once ({status}): see {}", log.display());
                        break;
                    }
                    Ok(None) => sleep(LOOK).await,
                    Err(e) => return Err(format!("cannot look after it: {e}")),
                }
            }
            sleep(LOOK * 4).await;
        }
    }

    /// One question and its answer. After an error the connection is of no use.
    pub(super) async fn ask(
        &mut self,
        request: &Request,
        limit: Duration,
    ) -> Result<Reply, String> {
        let exchange = async {
            self.stream.write_all(&request.to_frame()).await.map_err(|e| e.to_string())?;
            let length = self.stream.read_u32_le().await.map_err(|e| e.to_string())? as usize;
            if length > MOST_REPLY_BYTES {
                return Err(format!("it sent {length} bytes at once"));
            }
            let mut payload = vec![0; length];
            self.stream.read_exact(&mut payload).await.map_err(|e| e.to_string())?;
            Reply::from_payload(&payload).map_err(|e| e.to_string())
        };
        let silent = || Err(format!("no answer within {limit:?}"));
        timeout(limit, exchange).await.unwrap_or_else(|_| silent())
    }

    /// Returns when the guard goes away; it says nothing unasked. Cancel safe.
    pub(super) async fn lost(&mut self) -> String {
        let mut byte = [0];
        match self.stream.read(&mut byte).await {
            Ok(0) => "it closed the connection".to_owned(),
            Ok(_) => "it spoke unasked".to_owned(),
            Err(e) => e.to_string(),
        }
    }
}

/// A full backlog of a guard that hangs would hold the caller.
async fn dial(folder: &Path) -> std::io::Result<UnixStream> {
    let handle = File::open(folder)?;
    let connecting = UnixStream::connect(socket_path(&handle));
    let late = || Err(std::io::ErrorKind::TimedOut.into());
    timeout(Duration::from_millis(500), connecting).await.unwrap_or_else(|_| late())
}

/// Its own environment is bare: it must not carry a service's mark or the agent's secrets.
fn start(config: &ClientConfig) -> Result<tokio::process::Child, String> {
    let path = config.runtime_dir.join(LOG);
    let is_long = std::fs::metadata(&path).is_ok_and(|m| m.len() > MOST_LOG_BYTES);
    let mut log = OpenOptions::new();
    log.create(true).mode(0o600);
    if is_long {
        log.write(true).truncate(true)
    } else {
        log.append(true)
    };
    let log = log.open(&path).map_err(|e| format!("cannot open {}: {e}", path.display()))?;
    let options = GuardOptions {
        runtime_dir: config.runtime_dir.clone(),
        linger: config.linger,
        frozen_limit: config.frozen_limit,
    };
    let mut command = Command::new(&config.exe);
    command.arg(SUBCOMMAND).args(options.to_arguments()).env_clear().current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(false);
    command.spawn().map_err(|e| format!("cannot run {}: {e}", config.exe.display()))
}

/// Kills the process that the lock file names, if pid and start time prove that it is that one.
fn kill_hanging(folder: &Path) {
    let text = std::fs::read_to_string(folder.join(LOCK)).unwrap_or_default();
    let mut words = text.split(' ');
    let pid = words.next().and_then(|w| w.parse::<u32>().ok()).filter(|p| *p > 1);
    let start = words.next().and_then(|w| w.parse::<u64>().ok());
    let (Some(pid), Some(start)) = (pid, start) else { return };
    let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    let Ok(handle) = rustix::process::pidfd_open(number, PidfdFlags::empty()) else { return };
    if Stat::read(pid).is_some_and(|s| s.start_ticks == start) {
        rustix::process::pidfd_send_signal(handle, Signal::KILL).ok();
    }
}

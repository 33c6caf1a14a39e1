//! The agent's side of the guard: a handle for everyone, and the link that owns the connection.
//!
//! The link notices at once when the guard dies, starts another and protects again all that is to
//! be protected; a guard that hangs is killed first. It must never report a guard as live that has
//! not answered.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use flocker_base::{BootTime, Incarnation, ServiceId};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::wire::{Extension, MOST_EXTENSIONS, Phase, Protected, Reply, Request};
use crate::engine::ProcessGroup;

mod connect;

use connect::Connection;

/// Requests that wait for the link, at most.
const QUEUED: usize = 256;
/// A guard is asked this often whether it is there.
const PING_EVERY: Duration = Duration::from_secs(1);

/// How the agent reaches its guard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientConfig {
    /// The `flocker` binary, absolute.
    pub exe: PathBuf,
    /// The guard's own folder, absolute.
    pub runtime_dir: PathBuf,
    /// This agent's start. The guard obeys none but the newest.
    pub incarnation: Incarnation,
    /// With no agent and nothing protected, the guard exits after this.
    pub linger: Duration,
    /// How long what was frozen in time may stand still past its deadline.
    pub frozen_limit: Duration,
    /// The watchdog device that it is to feed, absolute.
    pub watchdog: Option<PathBuf>,
    /// A guard that does not answer within this is replaced.
    pub call_deadline: Duration,
    /// A guard that is not there within this after it was started counts as failed.
    pub spawn_deadline: Duration,
}

impl ClientConfig {
    /// The defaults for this node.
    #[must_use]
    pub const fn new(exe: PathBuf, runtime_dir: PathBuf, incarnation: Incarnation) -> Self {
        Self {
            exe,
            runtime_dir,
            incarnation,
            linger: Duration::from_millis(500),
            frozen_limit: Duration::from_secs(60),
            watchdog: None,
            call_deadline: Duration::from_millis(500),
            spawn_deadline: Duration::from_secs(5),
        }
    }
}

/// Why the guard did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// It could not be started or reached.
    #[error("no guard at {}: {reason}; no service may run without one", dir.display())]
    Unreachable {
        /// Its folder.
        dir: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// It refused.
    #[error("the guard refused: {0}")]
    Refused(String),
    /// Another agent has taken over this node. This one must stop.
    #[error("the guard obeys a newer agent: {0}")]
    Superseded(String),
    /// The link is not running.
    #[error("the link to the guard has ended")]
    Closed,
}

/// How the guard is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuardStatus {
    /// It answers.
    Live,
    /// It is being replaced: lead nothing new until it lives again.
    Down {
        /// What happened.
        why: String,
    },
    /// It obeys a newer agent.
    Superseded,
}

type Answer<T> = oneshot::Sender<Result<T, GuardError>>;

enum Command {
    Protect(Protected, Answer<()>),
    Extend(Vec<Extension>, Answer<Vec<ServiceId>>),
    Release(ServiceId, Answer<()>),
    List(Answer<Vec<(Protected, Phase)>>),
}

/// What the agent holds. Cheap to clone. Every call ends within about the call deadline plus the
/// time to start a guard.
#[derive(Clone, Debug)]
pub struct Guard {
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<GuardStatus>,
    limit: Duration,
}

impl Guard {
    /// Connects to the guard of this folder, starting one if there is none. The link must then be
    /// run, or no call is answered.
    ///
    /// # Errors
    /// [`GuardError::Unreachable`], or [`GuardError::Superseded`] if a newer agent was here.
    pub async fn connect_or_spawn(config: ClientConfig) -> Result<(Self, GuardLink), GuardError> {
        let connection = Connection::open(&config).await?;
        let (commands, queue) = mpsc::channel(QUEUED);
        let (shown, status) = watch::channel(GuardStatus::Live);
        let limit = config.call_deadline * 3 + config.spawn_deadline * 2;
        let wanted = BTreeMap::new();
        let link = GuardLink { config, connection: Some(connection), queue, shown, wanted };
        Ok((Self { commands, status, limit }, link))
    }

    /// Holds the service to its deadline. When this returns, the guard does.
    ///
    /// # Errors
    /// Any [`GuardError`]; the service must not run then.
    pub async fn protect(&self, protected: Protected) -> Result<(), GuardError> {
        self.call(|answer| Command::Protect(protected, answer)).await
    }

    /// Moves deadlines forward; says for which services there was nothing to move: those are
    /// dead, being killed, or held under another epoch.
    ///
    /// # Errors
    /// Any [`GuardError`]; the old deadlines then stand.
    pub async fn extend(&self, extensions: Vec<Extension>) -> Result<Vec<ServiceId>, GuardError> {
        self.call(|answer| Command::Extend(extensions, answer)).await
    }

    /// Ends the protection of a service that has ended.
    ///
    /// # Errors
    /// [`GuardError::Refused`] if something of it still runs: it then stays held.
    pub async fn release(&self, service: ServiceId) -> Result<(), GuardError> {
        self.call(|answer| Command::Release(service, answer)).await
    }

    /// Everything that the guard holds.
    ///
    /// # Errors
    /// Any [`GuardError`].
    pub async fn list(&self) -> Result<Vec<(Protected, Phase)>, GuardError> {
        self.call(Command::List).await
    }

    /// How the guard is, now and when it changes.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<GuardStatus> {
        self.status.clone()
    }

    async fn call<T>(&self, command: impl FnOnce(Answer<T>) -> Command) -> Result<T, GuardError> {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            self.commands.send(command(answer)).await.map_err(|_closed| GuardError::Closed)?;
            answered.await.unwrap_or(Err(GuardError::Closed))
        };
        tokio::time::timeout(self.limit, asked).await.unwrap_or(Err(GuardError::Closed))
    }
}

/// Owns the connection. Run it on the supervisor.
#[derive(Debug)]
pub struct GuardLink {
    config: ClientConfig,
    connection: Option<Connection>,
    queue: mpsc::Receiver<Command>,
    shown: watch::Sender<GuardStatus>,
    /// What is to be protected, with the newest deadlines.
    wanted: BTreeMap<ProcessGroup, Protected>,
}

impl GuardLink {
    /// Serves calls and keeps a guard alive until told to stop. The guard stays: it goes by
    /// itself when it holds nothing.
    ///
    /// # Errors
    /// [`GuardError::Superseded`]: this agent must stop.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), GuardError> {
        let mut ping = tokio::time::interval(PING_EVERY);
        ping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            if self.connection.is_none() {
                tokio::select! {
                    () = shutdown.cancelled() => return Ok(()),
                    outcome = self.reconnect() => outcome?,
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                why = lost(self.connection.as_mut()) => self.mark_down(why),
                command = self.queue.recv() => match command {
                    Some(command) => self.carry_out(command).await?,
                    None => return Ok(()),
                },
                _ = ping.tick() => match self.call(&Request::Ping).await {
                    Ok(_) => {}
                    Err(e @ GuardError::Superseded(_)) => return Err(self.superseded(e)),
                    Err(e) => tracing::warn!("the guard did not answer: {e}"),
                },
            }
        }
    }

    async fn carry_out(&mut self, command: Command) -> Result<(), GuardError> {
        match command {
            Command::Protect(protected, answer) => {
                let done = self.call(&Request::Protect(protected)).await.and_then(expect_done);
                if done.is_ok() {
                    self.wanted.insert(protected.group, protected);
                }
                self.answer(answer, done)
            }
            Command::Extend(extensions, answer) => {
                let missed = self.extend(&extensions).await;
                self.answer(answer, missed)
            }
            Command::Release(service, answer) => {
                let done = self.call(&Request::Release(service)).await.and_then(expect_done);
                if done.is_ok() {
                    self.wanted.retain(|group, _| group.service != service);
                }
                self.answer(answer, done)
            }
            Command::List(answer) => {
                let held = self.call(&Request::List).await.and_then(|reply| match reply {
                    Reply::Held(held) => Ok(held),
                    other => Err(unexpected(&other)),
                });
                self.answer(answer, held)
            }
        }
    }

    /// A newer agent's guard ends this link; anything else is the caller's to handle.
    fn answer<T>(
        &self,
        answer: Answer<T>,
        outcome: Result<T, GuardError>,
    ) -> Result<(), GuardError> {
        let over = match &outcome {
            Err(GuardError::Superseded(why)) => {
                Err(self.superseded(GuardError::Superseded(why.clone())))
            }
            _ => Ok(()),
        };
        answer.send(outcome).ok();
        over
    }

    fn superseded(&self, error: GuardError) -> GuardError {
        self.shown.send_replace(GuardStatus::Superseded);
        error
    }

    async fn extend(&mut self, extensions: &[Extension]) -> Result<Vec<ServiceId>, GuardError> {
        let mut missed = Vec::new();
        for part in extensions.chunks(MOST_EXTENSIONS) {
            match self.call(&Request::Extend(part.to_vec())).await? {
                Reply::Extended(services) => missed.extend(services),
                other => return Err(unexpected(&other)),
            }
            self.remember(part);
        }
        Ok(missed)
    }

    /// Only what the guard has acknowledged.
    fn remember(&mut self, extensions: &[Extension]) {
        let newest: BTreeMap<_, _> = extensions.iter().map(|e| ((e.service, e.epoch), e)).collect();
        for wanted in self.wanted.values_mut() {
            if let Some(e) = newest.get(&(wanted.group.service, wanted.epoch)) {
                wanted.freeze_at = wanted.freeze_at.max(e.freeze_at);
                wanted.deadline = wanted.deadline.max(e.deadline);
            }
        }
    }

    /// One question, asked again at a new guard if this one fails.
    async fn call(&mut self, request: &Request) -> Result<Reply, GuardError> {
        for _ in 0..2 {
            if self.connection.is_none() {
                self.try_reconnect().await?;
            }
            let Some(connection) = &mut self.connection else { continue };
            match connection.ask(request, self.config.call_deadline).await {
                Ok(Reply::Refused(why)) if why.starts_with("a newer agent") => {
                    return Err(GuardError::Superseded(why));
                }
                Ok(reply) => return Ok(reply),
                Err(why) => self.mark_down(why),
            }
        }
        Err(self.unreachable("it failed twice in a row"))
    }

    fn mark_down(&mut self, why: String) {
        tracing::error!("the guard is gone or hangs ({why}): replacing it");
        self.shown.send_replace(GuardStatus::Down { why });
        self.connection = None;
    }

    /// Until a guard answers and has everything. Only a newer agent ends it early. Cancel safe:
    /// a guard that was started meanwhile is found by the next try.
    async fn reconnect(&mut self) -> Result<(), GuardError> {
        let mut pause = Duration::from_millis(10);
        loop {
            match self.try_reconnect().await {
                Ok(()) => return Ok(()),
                Err(e @ GuardError::Superseded(_)) => return Err(self.superseded(e)),
                Err(e) => tracing::error!("cannot replace the guard: {e}"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    async fn try_reconnect(&mut self) -> Result<(), GuardError> {
        let mut connection = Connection::open(&self.config).await?;
        self.wanted.retain(|group, _| !group.is_gone());
        for wanted in self.wanted.values() {
            let request = Request::Protect(*wanted);
            match connection.ask(&request, self.config.call_deadline).await {
                Ok(Reply::Refused(why)) => {
                    tracing::warn!(service = %wanted.group.service, "not protected again: {why}");
                }
                Ok(_) => {}
                Err(why) => return Err(self.unreachable(&why)),
            }
        }
        tracing::warn!(services = self.wanted.len(), "a guard is there again");
        self.connection = Some(connection);
        self.shown.send_replace(GuardStatus::Live);
        Ok(())
    }

    fn unreachable(&self, reason: &str) -> GuardError {
        GuardError::Unreachable { dir: self.config.runtime_dir.clone(), reason: reason.to_owned() }
    }
}

fn expect_done(reply: Reply) -> Result<(), GuardError> {
    match reply {
        Reply::Done => Ok(()),
        other => Err(unexpected(&other)),
    }
}

fn unexpected(reply: &Reply) -> GuardError {
    GuardError::Refused(match reply {
        Reply::Refused(why) => why.clone(),
        other => format!("it answered {other:?}"),
    })
}

async fn lost(connection: Option<&mut Connection>) -> String {
    match connection {
        Some(connection) => connection.lost().await,
        None => std::future::pending().await,
    }
}

impl Extension {
    /// The extension of what is protected to these instants.
    #[must_use]
    pub const fn of(protected: &Protected, freeze_at: BootTime, deadline: BootTime) -> Self {
        let (service, epoch) = (protected.group.service, protected.epoch);
        Self { service, epoch, freeze_at, deadline, keep_frozen: false, resume: false }
    }
}

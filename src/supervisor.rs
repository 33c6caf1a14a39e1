//! Keeps the agent's long-running tasks alive and says how they fare.
//!
//! ```text
//!   add(name, factory) ──▶ run ──fails, panics──▶ back off ──▶ run ...
//!                           │ Ok                    ▲ twice as long each time, up to a limit
//!                           ▼                       │
//!                        finished          states() shows it all
//! ```
//!
//! The only place that may start a task on the runtime. Shutdown is in the reverse of the order
//! in which the tasks were added, each within its deadline; one that does not end is aborted and
//! named. It must never lose a task's error.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use flocker_base::{BootTime, Clock};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// What a task's future yields: `Ok` when it is done for good.
pub type TaskResult = anyhow::Result<()>;
type BoxedTask = Pin<Box<dyn Future<Output = TaskResult> + Send>>;

/// How long to wait before a failed task is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackOff {
    /// After the first failure.
    pub first: Duration,
    /// It doubles up to this.
    pub most: Duration,
    /// A task that ran this long starts over with the first pause.
    pub healthy_after: Duration,
}

impl Default for BackOff {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(100),
            most: Duration::from_secs(30),
            healthy_after: Duration::from_secs(60),
        }
    }
}

impl BackOff {
    /// Checks the values against one another.
    ///
    /// # Errors
    /// What does not fit, in words.
    pub fn validate(&self) -> Result<(), String> {
        if self.first.is_zero() {
            return Err("the first pause must be longer than zero: a task could spin".to_owned());
        }
        if self.most < self.first {
            return Err("the longest pause is shorter than the first".to_owned());
        }
        Ok(())
    }

    fn after(&self, pause: Option<Duration>, ran: Duration) -> Duration {
        match pause {
            Some(pause) if ran < self.healthy_after => (pause * 2).min(self.most),
            _ => self.first,
        }
    }
}

/// How a task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It runs.
    Running,
    /// It failed and waits for its next start.
    BackingOff,
    /// It is done, by its own word.
    Finished,
    /// It was told to stop and did.
    Stopped,
    /// It was told to stop, did not in time, and was cut off.
    Aborted,
}

/// A task, for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskState {
    /// Its name.
    pub name: String,
    /// How it stands.
    pub state: State,
    /// Since when.
    pub since: BootTime,
    /// How often it was started again.
    pub restarts: u64,
    /// What the newest failure said.
    pub last_error: Option<String>,
}

struct Task {
    shared: Arc<Mutex<TaskState>>,
    stop: CancellationToken,
    handle: JoinHandle<()>,
}

#[derive(Default)]
struct Tasks {
    running: Vec<Task>,
    /// Shown still after the shutdown.
    shown: Vec<Arc<Mutex<TaskState>>>,
    closed: bool,
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Supervisor {
    clock: Arc<dyn Clock>,
    back_off: BackOff,
    tasks: Arc<Mutex<Tasks>>,
}

impl std::fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Supervisor").field("states", &self.states()).finish_non_exhaustive()
    }
}

impl Supervisor {
    /// A supervisor of nothing yet.
    ///
    /// # Errors
    /// For a back-off that is not valid, what does not fit.
    pub fn new(clock: Arc<dyn Clock>, back_off: BackOff) -> Result<Self, String> {
        back_off.validate()?;
        Ok(Self { clock, back_off, tasks: Arc::default() })
    }

    /// Starts a task. The factory makes its future anew at each start; the token tells it to
    /// stop. After [`Self::shutdown`] nothing is started any more.
    pub fn spawn<F, Fut>(&self, name: impl Into<String>, mut factory: F)
    where
        F: FnMut(CancellationToken) -> Fut + Send + 'static,
        Fut: Future<Output = TaskResult> + Send + 'static,
    {
        let shared = Arc::new(Mutex::new(TaskState {
            name: name.into(),
            state: State::Running,
            since: self.clock.boot(),
            restarts: 0,
            last_error: None,
        }));
        let stop = CancellationToken::new();
        let mut tasks = lock(&self.tasks);
        if tasks.closed {
            tracing::warn!(task = %lock(&shared).name, "not started: the agent is shutting down");
            return;
        }
        let boxed = move |token| -> BoxedTask { Box::pin(factory(token)) };
        let keeper = Keeper {
            clock: Arc::clone(&self.clock),
            back_off: self.back_off,
            shared: Arc::clone(&shared),
            stop: stop.clone(),
        };
        let handle = start(keeper.keep(boxed));
        tasks.shown.push(Arc::clone(&shared));
        tasks.running.push(Task { shared, stop, handle });
    }

    /// Every task, in the order in which they were added.
    #[must_use]
    pub fn states(&self) -> Vec<TaskState> {
        lock(&self.tasks).shown.iter().map(|shared| lock(shared).clone()).collect()
    }

    /// Stops the tasks one by one, the newest first, each within the deadline. Returns the names
    /// of those that had to be aborted. Not cancel safe: call it once and await it.
    pub async fn shutdown(&self, deadline_each: Duration) -> Vec<String> {
        let mut aborted = Vec::new();
        loop {
            let newest = {
                let mut tasks = lock(&self.tasks);
                tasks.closed = true;
                tasks.running.pop()
            };
            let Some(Task { shared, stop, mut handle }) = newest else { return aborted };
            stop.cancel();
            if tokio::time::timeout(deadline_each, &mut handle).await.is_err() {
                handle.abort();
                handle.await.ok();
                let name = lock(&shared).name.clone();
                tracing::error!(task = %name, "did not stop within {deadline_each:?}: aborted");
                set(&shared, State::Aborted, self.clock.boot());
                aborted.push(name);
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the supervisor is where tasks are started")]
fn start(future: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    tokio::spawn(future)
}

/// Runs one task over and over.
struct Keeper {
    clock: Arc<dyn Clock>,
    back_off: BackOff,
    shared: Arc<Mutex<TaskState>>,
    stop: CancellationToken,
}

impl Keeper {
    async fn keep(self, mut factory: impl FnMut(CancellationToken) -> BoxedTask + Send) {
        let mut pause = None;
        loop {
            let started = self.clock.boot();
            let outcome = CatchPanic(factory(self.stop.clone())).await;
            let error = match outcome {
                Ok(()) if self.stop.is_cancelled() => return self.set(State::Stopped),
                Ok(()) => return self.set(State::Finished),
                Err(error) => error,
            };
            let next = self.back_off.after(pause, self.clock.boot() - started);
            pause = Some(next);
            self.failed(&error, next);
            if self.stop.is_cancelled() {
                return self.set(State::Stopped);
            }
            tokio::select! {
                () = self.stop.cancelled() => return self.set(State::Stopped),
                () = tokio::time::sleep(next) => {}
            }
            lock(&self.shared).restarts += 1;
            self.set(State::Running);
        }
    }

    fn failed(&self, error: &anyhow::Error, next: Duration) {
        let name = {
            let mut shared = lock(&self.shared);
            shared.last_error = Some(format!("{error:#}"));
            shared.name.clone()
        };
        self.set(State::BackingOff);
        tracing::error!(task = %name, "failed, to be started again in {next:?}: {error:#}");
    }

    fn set(&self, state: State) {
        set(&self.shared, state, self.clock.boot());
    }
}

/// The one place where a state changes.
fn set(shared: &Mutex<TaskState>, state: State, now: BootTime) {
    let mut shared = lock(shared);
    shared.state = state;
    shared.since = now;
}

/// Makes an error of a panic, so that it reaches the operator as any other.
struct CatchPanic(BoxedTask);

impl Future for CatchPanic {
    type Output = TaskResult;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<TaskResult> {
        let task = &mut self.0;
        let polled = std::panic::catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(context)));
        polled.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            Poll::Ready(Err(anyhow::anyhow!("it panicked: {}", text.unwrap_or("no message"))))
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;

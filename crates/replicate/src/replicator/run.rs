//! The shell of the schedule: one task that waits, steps the core and runs its commands. It
//! decides nothing.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use flocker_base::BootTime;
use rand::RngExt;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::schedule::{Command, DutySpec, Event, Schedule};
use super::{Inner, ReplicateError};
use crate::model::Duty;

/// Longest sleep, so that a clock that jumps is noticed.
const NAP: Duration = Duration::from_secs(1);

pub(super) async fn run(inner: &Arc<Inner>, shutdown: CancellationToken) {
    let inbox = inner.inbox.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(mut inbox) = inbox else {
        tracing::error!("replication runs already");
        return;
    };
    let mut core = Schedule::new(inner.config.schedule.clone());
    let mut duties = inner.duties.subscribe();
    let mut tasks: JoinSet<Option<Event>> = JoinSet::new();
    let mut event = Event::Duties(specs(&duties.borrow_and_update()));
    loop {
        let jitter: u64 = inner.random().random();
        for command in core.step(inner.clock.boot(), jitter, event) {
            tasks.spawn(perform(inner.clone(), command));
        }
        publish(inner, &core);
        let pause = pause(inner.clock.boot(), core.next_deadline());
        event = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Ok(()) = duties.changed() => Event::Duties(specs(&duties.borrow_and_update())),
            Some(done) = tasks.join_next() => match done {
                Ok(event) => event.unwrap_or(Event::Tick),
                Err(error) => {
                    tracing::error!(%error, "a replication task ended early");
                    Event::Tick
                }
            },
            Some(event) = inbox.recv() => event,
            () = tokio::time::sleep(pause) => Event::Tick,
        };
    }
    tasks.shutdown().await;
}

fn specs(duties: &[Duty]) -> Vec<DutySpec> {
    let spec = |duty: &Duty| DutySpec {
        volume: duty.volume,
        epoch: duty.epoch,
        interval: duty.interval,
        targets: duty.targets.iter().copied().collect::<BTreeSet<_>>(),
    };
    duties.iter().map(spec).collect()
}

fn pause(now: BootTime, deadline: BootTime) -> Duration {
    deadline.saturating_since(now).min(NAP)
}

fn publish(inner: &Inner, core: &Schedule) {
    let progress = core.progress();
    inner.progress.send_if_modified(|known| {
        let changed = **known != progress;
        if changed {
            *known = Arc::new(progress);
        }
        changed
    });
}

/// Does one thing and answers what came of it.
async fn perform(inner: Arc<Inner>, command: Command) -> Option<Event> {
    match command {
        Command::Snapshot(volume) => match inner.snapshot(volume).await {
            Ok((_taken, newest)) => Some(Event::Snapshotted(volume, Ok(newest))),
            Err(error) => {
                if !matches!(error, ReplicateError::NotMaster(_)) {
                    tracing::warn!(%volume, %error, "no snapshot was taken");
                }
                Some(Event::Snapshotted(volume, Err(error.to_string())))
            }
        },
        Command::Send(volume, to) => match inner.push(volume, to).await {
            Ok(info) => Some(Event::Sent(volume, to, Ok(info))),
            Err(error) => {
                tracing::debug!(%volume, %to, %error, "a replica was not reached");
                Some(Event::Sent(volume, to, Err(error.to_string())))
            }
        },
        Command::Prune(volume, retention) => {
            inner.prune(volume, retention).await;
            None
        }
    }
}

//! A planned move, run by the volume's master. Each step has a deadline and is told as progress;
//! until the lease is released every failure leads back to the service running where it was.

use std::time::Duration;

use flocker_base::{BootTime, Epoch, StoreId};
use flocker_gossip::control::Kind;
use flocker_gossip::model::{ServiceSpec, VolumeSpec};
use tokio::sync::mpsc;

use super::hands::Hand;
use super::parts::Parts;
use super::rpc::{self, Reply, Request};
use crate::api::{ApiError, ErrorCode, MoveReport, Progress, StepState};

/// Time for a full first copy.
const COPY_DEADLINE: Duration = Duration::from_secs(600);
/// A pre-copy round this short means that little is left to copy.
const SHORT_ROUND: Duration = Duration::from_millis(250);
/// Most rounds of pre-copy.
const ROUNDS: u32 = 4;
/// Time for the requests in flight to finish.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);
/// Time for the last snapshot to be durable at the target.
const LAST_DEADLINE: Duration = Duration::from_secs(10);
/// Time for the target to claim the lease and start the service.
const TAKEOVER_DEADLINE: Duration = Duration::from_secs(15);
/// Time for the service to serve here again after a failed move.
const UNDO_DEADLINE: Duration = Duration::from_secs(20);

/// What is moved, and where to.
#[derive(Clone, Debug)]
pub(super) struct Move {
    pub(super) service: ServiceSpec,
    pub(super) volume: VolumeSpec,
    pub(super) target: StoreId,
}

/// Moves the service. From the switch on the hand keeps the reconcile loop off its volume.
pub(super) async fn run(
    parts: &Parts,
    hand: Hand,
    plan: &Move,
    progress: mpsc::Sender<Progress>,
) -> Result<MoveReport, ApiError> {
    let steps = Steps { parts, hand: &hand, progress, began: parts.clock.boot() };
    steps
        .run("pre-copy", "copying the volume while the service runs", pre_copy(parts, plan))
        .await?;
    let held_at = parts.clock.boot();
    let began = steps.began;
    let switched = switch(parts, plan, &steps).await;
    drop(steps);
    drop(hand);
    match switched {
        Ok(epoch) => {
            let now = parts.clock.boot();
            Ok(MoveReport {
                service: plan.service.name.clone(),
                from: parts.name.clone(),
                to: parts.name_of(plan.target),
                epoch,
                pause_ms: millis(now - held_at),
                elapsed_ms: millis(now - began),
            })
        }
        Err(error) => {
            parts.wake.notify_one();
            Err(undo(parts, plan, error).await)
        }
    }
}

/// The same for an agent that ends: on failure nothing is undone.
pub(super) async fn hand_over(
    parts: &Parts,
    hand: &Hand,
    plan: &Move,
    progress: mpsc::Sender<Progress>,
) -> Result<Epoch, ApiError> {
    let steps = Steps { parts, hand, progress, began: parts.clock.boot() };
    steps
        .run("pre-copy", "copying the volume while the service runs", pre_copy(parts, plan))
        .await?;
    switch(parts, plan, &steps).await
}

/// Copies until little is left, so that the pause is short.
async fn pre_copy(parts: &Parts, plan: &Move) -> Result<(), ApiError> {
    for _ in 0..ROUNDS {
        let began = parts.clock.boot();
        bring_up_to_date(parts, plan, COPY_DEADLINE).await?;
        if parts.clock.boot() - began < SHORT_ROUND {
            break;
        }
    }
    Ok(())
}

async fn bring_up_to_date(parts: &Parts, plan: &Move, deadline: Duration) -> Result<(), ApiError> {
    let to = parts.name_of(plan.target);
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        ApiError::internal(format!("cannot {what} volume {} to {to}: {error}", plan.volume.name))
            .hint("the service runs on where it was; see the agents' logs")
    };
    Box::pin(parts.replicator.snapshot_now(plan.volume.id))
        .await
        .map_err(|e| failed("snapshot, to copy,", &e))?;
    // Boxed: a session's state is large, and every caller would carry it.
    Box::pin(parts.replicator.bring_up_to_date(plan.volume.id, plan.target, deadline))
        .await
        .map_err(|e| failed("copy", &e))?;
    Ok(())
}

/// The part during which requests are held.
async fn switch(parts: &Parts, plan: &Move, steps: &Steps<'_>) -> Result<Epoch, ApiError> {
    steps.hand.grip();
    parts.settled(plan.volume.id).await;
    parts.proxy.hold(plan.service.id);
    steps.run("drain", "letting the requests in flight finish", drain(parts, plan)).await?;
    steps.run("stop", "stopping the service", stop(parts, plan)).await?;
    steps
        .run(
            "last-snapshot",
            "sending the last snapshot",
            bring_up_to_date(parts, plan, LAST_DEADLINE),
        )
        .await?;
    steps.run("release", "handing the lease over", release(parts, plan)).await?;
    let epoch = steps.run("start", "starting the service there", take_over(parts, plan)).await?;
    parts.masters.learn(plan.volume.id, epoch, plan.target);
    parts.refresh_routes();
    parts.proxy.release(plan.service.id);
    Ok(epoch)
}

async fn drain(parts: &Parts, plan: &Move) -> Result<(), ApiError> {
    let drained = parts.proxy.drain(plan.service.id, DRAIN_DEADLINE).await;
    if drained.in_flight_left == 0 {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorCode::Busy,
        format!(
            "{} requests of {} did not finish within {} s",
            drained.in_flight_left,
            plan.service.name,
            DRAIN_DEADLINE.as_secs()
        ),
    )
    .hint("try again when they have finished"))
}

async fn stop(parts: &Parts, plan: &Move) -> Result<(), ApiError> {
    parts.ready.forget(plan.service.id);
    let exit = parts.engine.stop(plan.service.id, plan.service.stop_grace).await;
    parts.refresh_routes();
    exit.map(drop)
        .map_err(|e| ApiError::internal(format!("cannot stop {}: {e}", plan.service.name)))
}

async fn release(parts: &Parts, plan: &Move) -> Result<(), ApiError> {
    let text =
        format!("{} gives {} to {}", parts.name, plan.volume.name, parts.name_of(plan.target));
    parts.events.add(parts.clock.wall(), "lease.given", plan.volume.name.as_str(), text);
    let released = parts.leases.release(plan.volume.id, Some(plan.target)).await;
    released.map(drop).map_err(|e| {
        ApiError::new(ErrorCode::Fenced, format!("cannot hand {} over: {e}", plan.volume.name))
            .hint("see which voters live: flocker status")
    })
}

async fn take_over(parts: &Parts, plan: &Move) -> Result<Epoch, ApiError> {
    let request = Request::TakeOver { volume: plan.volume.id };
    match ask(parts, plan.target, &request, TAKEOVER_DEADLINE).await? {
        Reply::Serving { epoch } => Ok(epoch),
        other => Err(ApiError::internal(format!("an answer that makes no sense: {other:?}"))),
    }
}

/// Asks another agent, and makes its refusal ours.
pub(super) async fn ask(
    parts: &Parts,
    to: StoreId,
    request: &Request,
    deadline: Duration,
) -> Result<Reply, ApiError> {
    let bytes = rpc::encode(request).map_err(|e| ApiError::internal(e.to_string()))?;
    let answer = parts.wire.call(to, Kind::Agent, bytes, deadline).await.map_err(|e| {
        ApiError::internal(format!("node {} does not answer: {e}", parts.name_of(to)))
            .hint("see which nodes live: flocker status")
    })?;
    match rpc::decode(&answer) {
        Ok(Reply::Refused(error)) => Err(error),
        Ok(reply) => Ok(reply),
        Err(e) => Err(ApiError::internal(format!("node {} answers: {e}", parts.name_of(to)))),
    }
}

/// Waits until the service serves again, wherever that is, and lets the held requests go on.
async fn undo(parts: &Parts, plan: &Move, error: ApiError) -> ApiError {
    parts.reopen(plan.volume.id);
    let back = parts.until_served(plan.service.id, plan.volume.id, UNDO_DEADLINE).await;
    parts.refresh_routes();
    parts.proxy.release(plan.service.id);
    let state = match back {
        Some(store) => format!("the service runs on {}", parts.name_of(store)),
        None => "the service is not back yet: see flocker status".to_owned(),
    };
    let hint = if error.hint.is_empty() { state } else { format!("{state}; {}", error.hint) };
    ApiError { hint, ..error }
}

/// Tells of each step as it starts and ends.
struct Steps<'a> {
    parts: &'a Parts,
    hand: &'a Hand,
    progress: mpsc::Sender<Progress>,
    began: BootTime,
}

impl Steps<'_> {
    async fn run<T>(
        &self,
        step: &str,
        text: &str,
        work: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, ApiError> {
        self.hand.at(step);
        self.tell(step, text, StepState::Started);
        let done = work.await;
        self.tell(step, text, if done.is_ok() { StepState::Done } else { StepState::Failed });
        done
    }

    /// A reader that is slow or gone misses lines; the move does not wait for it.
    fn tell(&self, step: &str, text: &str, state: StepState) {
        let elapsed_ms = millis(self.parts.clock.boot() - self.began);
        tracing::info!(step, ?state, elapsed_ms, "move");
        let line = Progress { step: step.to_owned(), text: text.to_owned(), state, elapsed_ms };
        if let Err(error) = self.progress.try_send(line) {
            tracing::debug!(%error, "nobody reads the progress");
        }
    }
}

pub(super) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

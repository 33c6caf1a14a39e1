//! Answers what other agents ask. Each request is checked as if it came from a stranger: a peer may
//! run another version, or know less than this node.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flocker_base::{StoreId, VolumeId};
use flocker_gossip::control::Handler;
use flocker_gossip::map::Edit;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use super::moving::{self, Move};
use super::operations::resolve_move;
use super::parts::{Parts, locked};
use super::promoting;
use super::reports::own_report;
use super::rpc::{self, Reply, Request};
use super::waiting;
use crate::api::{ApiError, ErrorCode, MoveReport, MoveRequest, Progress};

/// How long this node may take to serve what it was asked to take over; less than what the asker
/// waits, so that the answer is heard.
const TAKEOVER: Duration = Duration::from_secs(14);
/// Lines of progress kept of one move.
const MAX_LINES: usize = 256;
/// Most snapshots of one volume that a peer is told of.
const MAX_SNAPSHOTS: usize = 4_096;
/// Moves whose outcome is kept for those who watch them.
const MAX_MOVES: usize = 64;

/// Moves that run or ran on this node, for remote watchers.
#[derive(Debug, Default)]
pub(super) struct Moves {
    known: Mutex<HashMap<u64, Watched>>,
    order: Mutex<(u64, VecDeque<u64>)>,
    pub(super) tasks: TaskTracker,
}

#[derive(Clone, Debug, Default)]
struct Watched {
    lines: Vec<Progress>,
    outcome: Option<Result<MoveReport, ApiError>>,
}

impl Moves {
    fn open(&self) -> u64 {
        let mut order = locked(&self.order);
        order.0 += 1;
        let number = order.0;
        order.1.push_back(number);
        let mut known = locked(&self.known);
        known.insert(number, Watched::default());
        while order.1.len() > MAX_MOVES {
            if let Some(old) = order.1.pop_front() {
                known.remove(&old);
            }
        }
        number
    }

    fn line(&self, number: u64, line: Progress) {
        if let Some(watched) = locked(&self.known).get_mut(&number)
            && watched.lines.len() < MAX_LINES
        {
            watched.lines.push(line);
        }
    }

    fn end(&self, number: u64, outcome: Result<MoveReport, ApiError>) {
        if let Some(watched) = locked(&self.known).get_mut(&number) {
            watched.outcome = Some(outcome);
        }
    }

    pub(super) fn watch(&self, number: u64, from: u32) -> Option<Reply> {
        let known = locked(&self.known);
        let watched = known.get(&number)?;
        let from = usize::try_from(from).unwrap_or(usize::MAX).min(watched.lines.len());
        Some(Reply::Progress {
            lines: watched.lines[from..].to_vec(),
            outcome: watched.outcome.clone(),
        })
    }
}

/// Starts a move on this node, the volume's master, and returns at once.
pub(super) fn start_move(parts: &Arc<Parts>, request: &MoveRequest) -> Result<u64, ApiError> {
    let plan = resolve_move(parts, request)?;
    let text = format!("move {} to {}", request.service, parts.name_of(plan.target));
    let hand = parts.hands.take(plan.volume.id, text, parts.now()).map_err(|other| {
        ApiError::new(ErrorCode::Busy, format!("{} is under way ({})", other.text, other.step))
            .hint("wait for it to end: flocker status")
    })?;
    let number = parts.moves.open();
    let parts = Arc::clone(parts);
    let moves = Arc::clone(&parts.moves);
    moves.tasks.clone().spawn(async move {
        let (lines, heard) = mpsc::channel(MAX_LINES);
        let work = run_move(&parts, hand, &plan, lines);
        let outcome = tell_as_it_goes(&parts.moves, number, heard, work).await;
        if let Err(error) = &outcome {
            tracing::warn!(%error, service = %plan.service.name, "the move failed");
        }
        parts.moves.end(number, outcome);
    });
    Ok(number)
}

async fn run_move(
    parts: &Parts,
    hand: super::hands::Hand,
    plan: &Move,
    lines: mpsc::Sender<Progress>,
) -> Result<MoveReport, ApiError> {
    moving::run(parts, hand, plan, lines).await
}

async fn tell_as_it_goes(
    moves: &Moves,
    number: u64,
    mut heard: mpsc::Receiver<Progress>,
    work: impl Future<Output = Result<MoveReport, ApiError>>,
) -> Result<MoveReport, ApiError> {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            biased;
            Some(line) = heard.recv() => moves.line(number, line),
            outcome = &mut work => {
                while let Ok(line) = heard.try_recv() {
                    moves.line(number, line);
                }
                return outcome;
            }
        }
    }
}

/// The handler of agents' requests. The parts come once they are composed; a request before that
/// is refused. Answers are worked out on the main runtime: the control plane's own thread, which
/// calls this, must not wait for a disk.
#[derive(Debug)]
pub(super) struct Answers {
    parts: OnceLock<Arc<Parts>>,
    runtime: Handle,
    tasks: TaskTracker,
}

impl Answers {
    pub(super) fn new(runtime: Handle) -> Self {
        Self { parts: OnceLock::new(), runtime, tasks: TaskTracker::new() }
    }

    /// The parts are there: answers can be given.
    pub(super) fn ready(&self, parts: Arc<Parts>) {
        // Called once; a second call would keep the first parts.
        drop(self.parts.set(parts));
    }
}

#[async_trait]
impl Handler for Answers {
    async fn on_message(&self, from: StoreId, _payload: Bytes) {
        tracing::warn!(from = %from.short(), "an agent's message that asks for no answer: ignored");
    }

    async fn on_call(&self, from: StoreId, payload: Bytes) -> Result<Bytes, String> {
        let Some(parts) = self.parts.get() else {
            return Err("this node is still starting: ask again in a moment".to_owned());
        };
        let request: Request = rpc::decode(&payload).map_err(|e| {
            tracing::warn!(from = %from.short(), error = %e, "a request that cannot be read");
            e.to_string()
        })?;
        let parts = Arc::clone(parts);
        let working = self.tasks.spawn_on(
            async move { answer(&parts, request).await.unwrap_or_else(Reply::Refused) },
            &self.runtime,
        );
        let reply = working.await.map_err(|e| format!("the request was cut short: {e}"))?;
        rpc::encode(&reply).map_err(|e| e.to_string())
    }
}

async fn answer(parts: &Arc<Parts>, request: Request) -> Result<Reply, ApiError> {
    match request {
        Request::Report => Ok(Reply::Report(own_report(parts).await)),
        Request::StartMove(request) => {
            Ok(Reply::Started { operation: start_move(parts, &request)? })
        }
        Request::WatchMove { operation, from } => {
            parts.moves.watch(operation, from).ok_or_else(|| {
                ApiError::not_found("this node knows no such move; it may have restarted")
            })
        }
        Request::TakeOver { volume } => take_over(parts, volume).await,
        Request::Amend(amendment) => waiting::answer(parts, amendment),
        Request::Promote(request) => {
            Box::pin(promoting::here(parts, request)).await.map(Reply::Promoted)
        }
        Request::Snapshots { volume } => snapshots(parts, volume).await,
        Request::PutService(spec) => {
            still_master(parts, spec.volume.volume)?;
            edit(parts, Edit::PutService(spec))
        }
        Request::PutVolume(spec) => {
            still_master(parts, spec.id)?;
            edit(parts, Edit::PutVolume(spec))
        }
        Request::DeleteService(id) => {
            let volume = parts.map_view().service(&id).map(|s| s.spec.volume.volume);
            if let Some(volume) = volume {
                still_master(parts, volume)?;
            }
            edit(parts, Edit::DeleteService(id))
        }
    }
}

/// Claims a volume that its master releases to this node, and waits until what runs with it
/// serves.
async fn take_over(parts: &Arc<Parts>, volume: VolumeId) -> Result<Reply, ApiError> {
    if parts.leaving.load(Ordering::Relaxed) {
        let error = ApiError::new(ErrorCode::CannotPlace, format!("{} is stopping", parts.name));
        return Err(error.hint("name another node"));
    }
    if !parts.map.has_room() {
        let text = format!("the disk of {} is full", parts.name);
        return Err(ApiError::new(ErrorCode::CannotPlace, text).hint("free some of it"));
    }
    parts.board().invited(volume);
    parts.wake.notify_one();
    let serving = parts.until_serving_here(volume, TAKEOVER).await;
    parts.board().uninvited(volume);
    serving.map(|epoch| Reply::Serving { epoch }).ok_or_else(|| {
        let what =
            if parts.holds(volume).is_some() { "start the service" } else { "get the lease" };
        ApiError::internal(format!("{} could not {what} within {TAKEOVER:?}", parts.name))
            .hint(format!("see the log of {}", parts.name))
    })
}

/// The newest snapshots of a volume that this node leads.
async fn snapshots(parts: &Arc<Parts>, volume: VolumeId) -> Result<Reply, ApiError> {
    still_master(parts, volume)?;
    let backend = Arc::clone(&parts.backend);
    let listed = tokio::task::spawn_blocking(move || backend.list(volume)).await;
    let listed = listed.map_err(|e| ApiError::internal(e.to_string()))?;
    let listed = listed.map_err(|e| ApiError::internal(e.to_string()))?;
    let newest = listed.iter().rev().take(MAX_SNAPSHOTS).map(|s| s.guid).collect();
    still_master(parts, volume)?;
    Ok(Reply::Snapshots(newest))
}

fn still_master(parts: &Parts, volume: VolumeId) -> Result<(), ApiError> {
    if parts.holds(volume).is_some() {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorCode::Fenced,
        format!("{} is not the master of this volume any more", parts.name),
    )
    .hint("try again in a moment"))
}

fn edit(parts: &Parts, edit: Edit) -> Result<Reply, ApiError> {
    parts.map.edit(vec![edit]).map_err(|e| ApiError::internal(e.to_string()))?;
    Ok(Reply::Done)
}

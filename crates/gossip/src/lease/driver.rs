//! The shell around the core: one task owns it, waits, steps, and runs the commands. It decides
//! nothing. One thread of its own commits to the disk; if a commit fails, the process aborts.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flocker_base::{BootTime, Clock, StoreId, VolumeId};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::config::{LeaseConfig, LeaseConfigError};
use super::core::LeaseCore;
use super::event::{Command, Event, LeaseError, LeaseEvent, Outcome, Request, Ticket};
use super::handle::{Leases, Shared};
use super::message::{self, Packet};
use super::record::{Start, Write, WriteKey};
use super::table;
use crate::control::{Handler, Kind, Quiet, Wire};
use crate::store::{StateDb, StoreError};

/// Packets that wait for the core; more are dropped, as the network might have.
const PACKET_QUEUE: usize = 1_024;
/// Events that wait for the agent before they are merged.
const EVENT_QUEUE: usize = 256;
/// Packets taken before anything else is looked at again.
const PACKETS_AT_ONCE: usize = 64;
/// The longest sleep: after a suspend, deadlines are looked at again this soon.
const LONGEST_SLEEP: Duration = Duration::from_millis(500);
/// The same alarm is logged once in this time.
const ALARM_PAUSE: Duration = Duration::from_secs(10);

/// Why leases can't be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The times do not fit together.
    #[error(transparent)]
    Config(#[from] LeaseConfigError),
    /// The durable records can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The system refused the committing thread.
    #[error("cannot start the thread that writes leases to the disk: {0}")]
    Thread(#[from] std::io::Error),
}

/// The task that owns the core. It does nothing until it is run.
#[derive(Debug)]
pub struct LeaseDriver {
    core: LeaseCore,
    /// When the core is to be stepped if nothing comes.
    due: BootTime,
    start: Start,
    wire: WireHandle,
    clock: Arc<dyn Clock>,
    shared: Arc<Shared>,
    packets: mpsc::Receiver<(StoreId, Packet)>,
    events: mpsc::Sender<LeaseEvent>,
    backlog: Backlog,
    writer: Writer,
    answers: BTreeMap<Request, oneshot::Sender<Result<Outcome, LeaseError>>>,
    requests: u64,
    alarms: BTreeMap<String, BootTime>,
}

struct WireHandle(Arc<dyn Wire>);

impl std::fmt::Debug for WireHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Wire")
    }
}

/// Builds leases from what is durable: the agent's handle, the task to run, and the handler for
/// [`Kind::Lease`]. The seed spaces retries and tells this start from a copy's.
///
/// # Errors
/// Any [`StartError`].
pub fn start(
    config: LeaseConfig,
    db: &StateDb,
    wire: Arc<dyn Wire>,
    clock: Arc<dyn Clock>,
    seed: u64,
) -> Result<(Leases, LeaseDriver, Arc<dyn Handler>), StartError> {
    config.validate()?;
    let durable = table::load(db)?;
    let mut random = StdRng::seed_from_u64(seed);
    let start = Start { incarnation: db.incarnation(), nonce: random.next_u64() };
    let seed = random.next_u64();
    let known: Vec<_> = durable.voters.keys().chain(durable.holders.keys()).copied().collect();
    let core = LeaseCore::new(clock.boot(), db.store_id(), start, config, durable, seed);
    let shared = Arc::new(Shared::default());
    for volume in known {
        shared.publish(volume, core.view(volume), core.floor(volume));
    }
    let (packet_tx, packets) = mpsc::channel(PACKET_QUEUE);
    let (events, event_rx) = mpsc::channel(EVENT_QUEUE);
    let driver = LeaseDriver {
        core,
        due: clock.boot(),
        start,
        wire: WireHandle(wire),
        clock: Arc::clone(&clock),
        shared: Arc::clone(&shared),
        packets,
        events,
        backlog: Backlog::default(),
        writer: Writer::start(db.clone())?,
        answers: BTreeMap::new(),
        requests: 0,
        alarms: BTreeMap::new(),
    };
    let inlet = Inlet { packets: packet_tx, clock, refused: Quiet::default() };
    Ok((Leases::new(shared, event_rx), driver, Arc::new(inlet)))
}

impl LeaseDriver {
    /// Runs until told to stop. Leases are not released by stopping: an agent that restarts in
    /// time keeps them.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let events = self.events.clone();
        self.step(vec![Event::Tick]);
        loop {
            let sleep = self.until_deadline();
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some(ticket) = self.writer.done.recv() => {
                    self.writer.finished();
                    self.step(vec![Event::Persisted(ticket)]);
                }
                // As many as fit, and before anything else is taken in: what the agent says to each
                // then comes together, and a step for each would go through all volumes.
                Ok(permit) = events.reserve(), if !self.backlog.is_empty() => {
                    let more = std::iter::from_fn(|| events.try_reserve().ok());
                    for permit in std::iter::once(permit).chain(more) {
                        let Some(event) = self.backlog.pop() else { break };
                        permit.send(event);
                    }
                }
                () = self.shared.wake.notified() => self.take_inbox(),
                Some(first) = self.packets.recv() => self.take_packets(first),
                () = tokio::time::sleep(sleep) => self.step(vec![Event::Tick]),
            }
        }
        self.shared.close();
        self.writer.stop().await;
    }

    fn until_deadline(&self) -> Duration {
        let now = self.clock.boot();
        self.due.saturating_since(now).min(LONGEST_SLEEP)
    }

    fn take_inbox(&mut self) {
        let (mut events, asked) = self.shared.take();
        for (ask, answer) in asked {
            self.requests += 1;
            let request = Request(self.requests);
            self.answers.insert(request, answer);
            events.push(ask.event(request));
        }
        self.step(events);
    }

    fn take_packets(&mut self, first: (StoreId, Packet)) {
        let more = std::iter::from_fn(|| self.packets.try_recv().ok()).take(PACKETS_AT_ONCE - 1);
        let packet = |(from, packet)| Event::Packet { from, packet };
        let events: Vec<Event> = std::iter::once(first).chain(more).map(packet).collect();
        self.step(events);
    }

    fn step(&mut self, events: Vec<Event>) {
        let commands = self.core.step_all(self.clock.boot(), events);
        self.due = self.core.next_deadline().unwrap_or(BootTime::NEVER);
        // Published before anything is sent, so that what is given up is not relied on here by
        // the time anyone hears of it.
        for volume in self.core.take_touched() {
            self.shared.publish(volume, self.core.view(volume), self.core.floor(volume));
        }
        for command in commands {
            match command {
                Command::Persist(ticket, writes) => self.writer.add(ticket, writes),
                Command::Send(to, messages) => match message::encode(self.start, &messages) {
                    Ok(packets) => packets.into_iter().for_each(|packet| {
                        self.wire.0.send(to, Kind::Lease, packet);
                    }),
                    Err(error) => tracing::error!(%error, "a lease message has no encoding"),
                },
                Command::Emit(event) => {
                    tracing::debug!(?event, "lease event");
                    self.backlog.push(event);
                }
                Command::Reply(request, outcome) => {
                    if let Some(answer) = self.answers.remove(&request) {
                        let _ = answer.send(outcome);
                    }
                }
                Command::Alarm(alarm) => self.log(&alarm.to_string()),
            }
        }
    }

    /// Logs an alarm unless it was logged just now.
    fn log(&mut self, alarm: &str) {
        let now = self.clock.boot();
        self.alarms.retain(|_, at| now.saturating_since(*at) < ALARM_PAUSE);
        if self.alarms.len() < 64 && !self.alarms.contains_key(alarm) {
            tracing::error!("{alarm}");
            self.alarms.insert(alarm.to_owned(), now);
        }
    }
}

/// Takes packets from the control endpoint.
struct Inlet {
    packets: mpsc::Sender<(StoreId, Packet)>,
    clock: Arc<dyn Clock>,
    refused: Quiet,
}

impl Inlet {
    fn refuse(&self, from: StoreId, why: &dyn std::fmt::Display) {
        if let Some(unsaid) = self.refused.due(self.clock.boot()) {
            tracing::warn!(%from, unsaid, "refused a lease packet: {why}");
        }
    }
}

#[async_trait]
impl Handler for Inlet {
    async fn on_message(&self, from: StoreId, payload: Bytes) {
        match message::decode(&payload) {
            Ok(packet) => {
                if self.packets.try_send((from, packet)).is_err() {
                    self.refuse(from, &"the lease task is busy or gone");
                }
            }
            Err(error) => self.refuse(from, &error),
        }
    }

    async fn on_call(&self, from: StoreId, _payload: Bytes) -> Result<Bytes, String> {
        self.refuse(from, &"leases take messages, no calls");
        Err("leases take messages, no calls".to_owned())
    }
}

/// Events that wait for a slow consumer: of one kind and volume only the newest.
#[derive(Debug, Default)]
struct Backlog {
    order: BTreeMap<u64, LeaseEvent>,
    newest: HashMap<(VolumeId, std::mem::Discriminant<LeaseEvent>), u64>,
    count: u64,
}

impl Backlog {
    fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    fn push(&mut self, event: LeaseEvent) {
        self.count += 1;
        let key = (event.volume(), std::mem::discriminant(&event));
        if let Some(older) = self.newest.insert(key, self.count) {
            self.order.remove(&older);
        }
        self.order.insert(self.count, event);
    }

    fn pop(&mut self) -> Option<LeaseEvent> {
        let (_, event) = self.order.pop_first()?;
        self.newest.remove(&(event.volume(), std::mem::discriminant(&event)));
        Some(event)
    }
}

/// The committing thread, and what waits for it. While a commit is under way, further writes
/// gather into the next.
#[derive(Debug)]
struct Writer {
    jobs: Option<SyncSender<(Ticket, Vec<Write>)>>,
    done: mpsc::Receiver<Ticket>,
    waiting: Option<(Ticket, BTreeMap<WriteKey, Write>)>,
    busy: bool,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Writer {
    fn start(db: StateDb) -> Result<Self, std::io::Error> {
        let (jobs, job_rx) = sync_channel(1);
        let (done_tx, done) = mpsc::channel(1);
        let thread = std::thread::Builder::new()
            .name("lease-disk".to_owned())
            .spawn(move || commit_all(&db, &job_rx, &done_tx))?;
        Ok(Self { jobs: Some(jobs), done, waiting: None, busy: false, thread: Some(thread) })
    }

    fn add(&mut self, ticket: Ticket, writes: Vec<Write>) {
        let (latest, all) = self.waiting.get_or_insert_with(|| (ticket, BTreeMap::new()));
        *latest = ticket;
        all.extend(writes.into_iter().map(|write| (write.key(), write)));
        self.submit();
    }

    fn submit(&mut self) {
        if self.busy {
            return;
        }
        if let (Some((ticket, writes)), Some(jobs)) = (self.waiting.take(), &self.jobs) {
            // The thread is idle and its queue holds one: this does not block.
            self.busy = jobs.send((ticket, writes.into_values().collect())).is_ok();
        }
    }

    fn finished(&mut self) {
        self.busy = false;
        self.submit();
    }

    /// Lets the commit under way, and the one that waits, end.
    async fn stop(mut self) {
        if self.busy && self.done.recv().await.is_some() {
            self.finished();
        }
        self.jobs = None;
        while self.done.recv().await.is_some() {}
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Commits what it is given. After a failed commit nobody knows what is on the disk, and what is
/// in memory may already differ from it: no answer is right but to stop here.
fn commit_all(db: &StateDb, jobs: &Receiver<(Ticket, Vec<Write>)>, done: &mpsc::Sender<Ticket>) {
    while let Ok((ticket, writes)) = jobs.recv() {
        if let Err(error) = table::commit(db, &writes) {
            tracing::error!(%error, "stopping at once");
            std::process::abort();
        }
        if done.blocking_send(ticket).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests;

//! The table behind [`super::Peers`]: it asks each peer's slot what to do and does it. The lock
//! guards the table for the length of a few lines, and is never held over an await.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flocker_base::{BootTime, Clock, StoreId, SystemClock};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::slot::{LinkId, Slot, Superfluous, Wanted};
use super::{AddressBook, tasks};
use crate::connection::{CloseCode, Connection, REMOVED};
use crate::endpoint::Endpoint;
use crate::error::QuicError;

/// Most dialled connections that nobody has taken yet; past it the oldest is not offered any more.
const MOST_UNTAKEN: usize = 4096;

pub(super) struct Pool {
    endpoint: Endpoint,
    book: Arc<dyn AddressBook>,
    table: Mutex<HashMap<StoreId, Entry>>,
    untaken: Mutex<VecDeque<Connection>>,
    taken: Notify,
    tasks: Mutex<JoinSet<()>>,
}

/// What is kept of one peer.
struct Entry {
    slot: Slot,
    links: HashMap<LinkId, Connection>,
    /// Why the last dial failed.
    last_error: Option<QuicError>,
    /// Counts the changes, for those who wait for one.
    changes: watch::Sender<u64>,
}

/// What someone who wants a connection gets.
pub(super) struct Want {
    pub(super) decision: Wanted,
    /// There if the decision is to use it.
    pub(super) connection: Option<Connection>,
    pub(super) last_error: Option<QuicError>,
    /// Tells of each change since.
    pub(super) changes: watch::Receiver<u64>,
}

/// This pool paces dials by the clock that leases run on: it counts suspend.
pub(super) fn now() -> BootTime {
    SystemClock.boot()
}

impl Pool {
    pub(super) fn new(endpoint: Endpoint, book: Arc<dyn AddressBook>) -> Self {
        Self {
            endpoint,
            book,
            table: Mutex::default(),
            untaken: Mutex::default(),
            taken: Notify::new(),
            tasks: Mutex::new(JoinSet::new()),
        }
    }

    pub(super) const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(super) fn book(&self) -> &dyn AddressBook {
        &*self.book
    }

    pub(super) fn existing(&self, to: StoreId) -> Option<Connection> {
        let table = lock(&self.table);
        let entry = table.get(&to)?;
        let connection = entry.links.get(&entry.slot.current()?)?;
        (!connection.is_closed()).then(|| connection.clone())
    }

    pub(super) fn connected(&self) -> Vec<StoreId> {
        let table = lock(&self.table);
        table.iter().filter(|(_, e)| e.slot.current().is_some()).map(|(store, _)| *store).collect()
    }

    pub(super) fn want(&self, to: StoreId) -> Want {
        self.with_entry(to, |entry, jitter| {
            entry.reap(jitter);
            let decision = entry.slot.wanted(now());
            let connection = match decision {
                Wanted::Use(id) => entry.links.get(&id).cloned(),
                _ => None,
            };
            let last_error = entry.last_error.clone();
            Want { decision, connection, last_error, changes: entry.changes.subscribe() }
        })
    }

    /// Takes a connection of either direction into use.
    pub(super) fn arrived(self: &Arc<Self>, connection: Connection) {
        let (peer, id) = (connection.peer(), connection.id());
        let (superfluous, closed) = self.with_entry(peer, |entry, jitter| {
            entry.reap(jitter);
            let superfluous = entry.slot.arrived(now(), id, connection.dialled());
            entry.links.insert(id, connection.clone());
            entry.last_error = None;
            entry.changed();
            let closed: Vec<_> = superfluous
                .iter()
                .filter_map(|what| match what {
                    Superfluous::Close(id) => entry.links.remove(id),
                    Superfluous::Retire(_) => None,
                })
                .collect();
            (superfluous, closed)
        });
        for connection in closed {
            connection.close(CloseCode::Superseded, "too many connections from this node");
        }
        if connection.dialled() {
            self.offer(connection.clone());
        }
        self.spawn(tasks::watch_over(Arc::downgrade(self), connection));
        for what in superfluous {
            if let Superfluous::Retire(id) = what {
                self.spawn(tasks::linger(Arc::downgrade(self), peer, id));
            }
        }
    }

    pub(super) fn start_dial(self: &Arc<Self>, to: StoreId) {
        let addresses = self.book.addresses(to);
        self.spawn(tasks::dial(Arc::downgrade(self), self.endpoint.clone(), to, addresses));
    }

    pub(super) fn dial_failed(&self, to: StoreId, error: QuicError) {
        self.with_entry(to, |entry, jitter| {
            entry.slot.dial_failed(now(), jitter);
            let failures = entry.slot.failures();
            // The first of a series and then ever more seldom: a dead peer must not fill the log.
            if failures.is_power_of_two() {
                tracing::warn!(failures, "{error}");
            } else {
                tracing::debug!(failures, "{error}");
            }
            entry.last_error = Some(error);
            entry.changed();
        });
    }

    pub(super) fn closed(&self, peer: StoreId, id: LinkId) {
        let mut table = lock(&self.table);
        // A peer that was dropped is not entered again.
        if let Some(entry) = table.get_mut(&peer) {
            let jitter = jitter(self.endpoint.store(), peer, entry.slot.failures());
            if entry.links.remove(&id).is_some() {
                entry.slot.closed(now(), id, jitter);
                entry.changed();
            }
        }
    }

    /// Closes a superseded connection that nothing uses any more. Whether it may go on lingering.
    pub(super) fn discard_if_unused(&self, peer: StoreId, id: LinkId) -> bool {
        let mut table = lock(&self.table);
        let Some(entry) = table.get_mut(&peer) else { return false };
        if !entry.slot.is_retired(id) {
            return false;
        }
        if entry.links.get(&id).is_some_and(|connection| connection.open_streams() > 0) {
            return true;
        }
        entry.slot.discard(id);
        if let Some(connection) = entry.links.remove(&id) {
            connection.close(CloseCode::Superseded, "another connection is in use");
        }
        false
    }

    pub(super) fn forget(&self, store: StoreId) {
        let entry = lock(&self.table).remove(&store);
        for connection in entry.into_iter().flat_map(|entry| entry.links.into_values()) {
            connection.close(CloseCode::NotAMember, REMOVED);
        }
    }

    pub(super) async fn take_dialled(&self) -> Connection {
        loop {
            let taken = self.taken.notified();
            let next = lock(&self.untaken).pop_front();
            if let Some(connection) = next {
                return connection;
            }
            taken.await;
        }
    }

    fn offer(&self, connection: Connection) {
        let mut untaken = lock(&self.untaken);
        untaken.retain(|connection| !connection.is_closed());
        if untaken.len() >= MOST_UNTAKEN {
            tracing::warn!("nobody serves the connections that this node dials");
            untaken.pop_front();
        }
        untaken.push_back(connection);
        self.taken.notify_one();
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = lock(&self.tasks);
        while let Some(ended) = tasks.try_join_next() {
            if let Err(e) = ended
                && e.is_panic()
            {
                tracing::error!("a task of the connection pool panicked: {e}");
            }
        }
        tasks.spawn_on(task, self.endpoint.runtime());
    }

    fn with_entry<T>(&self, peer: StoreId, work: impl FnOnce(&mut Entry, u8) -> T) -> T {
        let mine = self.endpoint.store();
        let mut table = lock(&self.table);
        let entry = table.entry(peer).or_insert_with(|| Entry {
            slot: Slot::new(mine < peer),
            links: HashMap::new(),
            last_error: None,
            changes: watch::Sender::new(0),
        });
        let jitter = jitter(mine, peer, entry.slot.failures());
        work(entry, jitter)
    }
}

impl Entry {
    /// Takes out what has ended and whose watcher has not yet said so.
    fn reap(&mut self, jitter: u8) {
        let ended: Vec<LinkId> =
            self.links.iter().filter(|(_, c)| c.is_closed()).map(|(id, _)| *id).collect();
        for id in ended {
            self.links.remove(&id);
            self.slot.closed(now(), id, jitter);
        }
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }
}

/// Spreads the dials of nodes that lost the same peer at the same time, alike in each run.
fn jitter(mine: StoreId, peer: StoreId, failures: u32) -> u8 {
    let failures = failures.to_le_bytes();
    let bytes = mine.as_bytes().iter().chain(peer.as_bytes()).chain(&failures);
    // FNV-1a, folded.
    let hash =
        bytes.fold(0x811c_9dc5, |hash: u32, b| (hash ^ u32::from(*b)).wrapping_mul(16_777_619));
    hash.to_le_bytes().into_iter().fold(0, |all, b| all ^ b)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that runs under these locks leaves them half changed if it panics.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! Seeds: addresses that a person named, tried while this node misses others. It finds out who is
//! there from the certificate alone, hands the connection over and notes the address; it removes
//! nothing, and never says who is alive.
//!
//! ```text
//!   View, address book ──▶ company ──▶ Seeking (when?) ──▶ reach: resolve, dial, staggered
//!                                                            └──▶ Peers::adopt, AddressBookStore
//! ```
//!
//! Gossip finds every node that is at an address in the book. Seeds are for the rest: a mesh whose
//! nodes all came back with other addresses has nothing in common but names that resolve to them.

mod reach;
mod seeking;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use flocker_base::{Clock, StoreId};
use flocker_quic::{CloseCode, Connection, DialFailure, Endpoint, Peers, QuicError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::reach::{Outcome, Reach};
use self::seeking::{Command, Company, Event, Seeking};
use crate::addresses::{AddressBookStore, AddressError};
use crate::join::Seed;
use crate::membership::{Liveness, View};

pub use self::reach::{Resolve, SystemResolver};

#[cfg(test)]
mod live;

/// How long an address may take to answer.
const ANSWER: Duration = Duration::from_secs(4);

/// The most addresses of its own that a node remembers not to dial.
const MAX_OWN: usize = 64;

/// Looks for other nodes at the seeds.
pub struct Seeker {
    endpoint: Endpoint,
    peers: Peers,
    book: AddressBookStore,
    view: watch::Receiver<Arc<View>>,
    seeds: Vec<Seed>,
    resolver: Arc<dyn Resolve>,
    clock: Arc<dyn Clock>,
    /// Addresses at which this node found itself.
    own: BTreeSet<SocketAddr>,
}

impl std::fmt::Debug for Seeker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seeker").field("seeds", &self.seeds).finish_non_exhaustive()
    }
}

impl Seeker {
    /// A seeker that dials from this endpoint and hands what it finds to these peers.
    #[must_use]
    pub fn new(
        endpoint: &Endpoint,
        peers: &Peers,
        book: &AddressBookStore,
        view: &watch::Receiver<Arc<View>>,
        seeds: Vec<Seed>,
        clock: &Arc<dyn Clock>,
    ) -> Self {
        Self {
            endpoint: endpoint.clone(),
            peers: peers.clone(),
            book: book.clone(),
            view: view.clone(),
            seeds,
            resolver: Arc::new(SystemResolver),
            clock: Arc::clone(clock),
            own: BTreeSet::new(),
        }
    }

    /// The same, with names resolved by this.
    #[must_use]
    pub fn resolving_by(mut self, resolver: Arc<dyn Resolve>) -> Self {
        self.resolver = resolver;
        self
    }

    /// Seeks while nodes are missing, until told to stop.
    ///
    /// # Errors
    /// [`AddressError::Database`], after which the process must end.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), AddressError> {
        let mut core = Seeking::new(self.clock.boot());
        let mut view = self.view.clone();
        loop {
            let company = company(&view.borrow_and_update(), self.endpoint.store(), &self.book);
            let mut commands = core.step(self.clock.boot(), Event::Company(company));
            let wait = core.next_deadline().saturating_since(self.clock.boot());
            if commands.is_empty() {
                let idle = self.seeds.is_empty();
                tokio::select! {
                    () = shutdown.cancelled() => return Ok(()),
                    changed = view.changed() => {
                        if changed.is_err() {
                            return Ok(());
                        }
                    }
                    () = tokio::time::sleep(wait), if !idle => {
                        commands = core.step(self.clock.boot(), Event::Due);
                    }
                }
            }
            for command in commands {
                let Command::Seek = command;
                let found = tokio::select! {
                    () = shutdown.cancelled() => return Ok(()),
                    found = self.seek() => found?,
                };
                core.step(self.clock.boot(), Event::Sought { found });
            }
        }
    }

    /// Tries every seed once. Whether a node was found that was not connected.
    async fn seek(&mut self) -> Result<bool, AddressError> {
        let endpoint = self.endpoint.clone();
        let mut reach =
            Reach::new(&self.seeds, &self.resolver, self.known_ends(), move |address| {
                let endpoint = endpoint.clone();
                async move { endpoint.find(address, ANSWER).await }
            });
        let mut found = false;
        while let Some(outcome) = reach.next().await {
            match outcome {
                Outcome::Unresolved { seed, reason } => {
                    tracing::debug!(%seed, reason, "a seed leads nowhere");
                }
                Outcome::Reached { seed, address, result: Ok(connection) } => {
                    found |= self.take(&seed, address, connection).await?;
                }
                Outcome::Reached { seed, address, result: Err(error) } => {
                    let itself =
                        matches!(error, QuicError::Seek { reason: DialFailure::Itself, .. });
                    if itself && self.own.len() < MAX_OWN {
                        self.own.insert(address);
                    }
                    tracing::debug!(%seed, "{error}");
                }
            }
        }
        Ok(found)
    }

    /// Notes who was found where, and takes the connection into use unless there is one.
    async fn take(
        &self,
        seed: &Seed,
        address: SocketAddr,
        connection: Connection,
    ) -> Result<bool, AddressError> {
        let peer = connection.peer();
        let book = self.book.clone();
        let learnt = tokio::task::spawn_blocking(move || book.learn(peer, &[address], &[])).await;
        match learnt {
            Ok(Err(AddressError::Full)) | Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(error),
            Err(error) => tracing::error!(%error, "an address was not noted"),
        }
        if self.peers.existing(peer).is_some() {
            connection.close(CloseCode::Done, "there is another connection");
            return Ok(false);
        }
        tracing::info!(%seed, %address, store = %peer, "found a node at a seed");
        self.peers.adopt(connection);
        Ok(true)
    }

    /// Where there is nobody to be found: this node, and those that it is connected to.
    fn known_ends(&self) -> BTreeSet<SocketAddr> {
        let mut known = self.own.clone();
        known.insert(self.endpoint.local_addr());
        known.extend(self.book.control().addresses(self.endpoint.store()));
        let connected = self.peers.connected();
        known.extend(
            connected.iter().filter_map(|s| self.peers.existing(*s)).map(|c| c.remote_addr()),
        );
        known
    }
}

/// How much of the mesh is here, as far as is known.
fn company(view: &View, me: StoreId, book: &AddressBookStore) -> Company {
    let lives = |store: &StoreId| {
        view.nodes.get(store).is_some_and(|member| member.liveness == Liveness::Live)
    };
    let mut others = view.nodes.keys().filter(|store| **store != me);
    if !others.any(lives) {
        return Company::None;
    }
    let known = book.stores();
    let missing = view.nodes.keys().chain(&known).any(|store| *store != me && !lives(store));
    if missing { Company::Some } else { Company::All }
}

//! Reaching a member behind one of many seeds: all names are looked up at once, their addresses are
//! tried one shortly after the other, and the first that answers is asked before any other is tried
//! on ("Happy Eyeballs", RFC 8305). It asks for nothing itself.

use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use flocker_quic::{JoinerConnection, QuicError};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::token::Seed;

/// How long a name may take to resolve.
const RESOLVE: Duration = Duration::from_secs(5);
/// How long a TLS session may take to stand.
const CONNECT: Duration = Duration::from_secs(4);
/// How long an address is given before the next is tried beside it.
const STAGGER: Duration = Duration::from_millis(250);
/// The most addresses tried behind one name.
pub(super) const MAX_ADDRESSES: usize = 8;

/// The next thing that is known of a seed.
#[derive(Debug)]
pub(super) enum Found {
    /// Its name stands for no address.
    NoAddress(Seed, String),
    /// Nobody of the cluster answers at this address.
    Silent(Seed, SocketAddr, String),
    /// A member answers here.
    Member(Seed, SocketAddr, JoinerConnection),
}

/// The search. At most one connection stands at a time.
#[derive(Debug)]
pub(super) struct Reach {
    authority: [u8; 32],
    resolving: JoinSet<(Seed, Result<Vec<SocketAddr>, String>)>,
    waiting: VecDeque<(Seed, SocketAddr)>,
    under_way: Vec<(Seed, SocketAddr)>,
    trying: JoinSet<(SocketAddr, Result<JoinerConnection, QuicError>)>,
    known: BTreeSet<SocketAddr>,
    next_try: Instant,
}

impl Reach {
    /// A search for a member whose chain ends in the authority with this fingerprint.
    pub(super) fn new(authority: [u8; 32]) -> Self {
        Self {
            authority,
            resolving: JoinSet::new(),
            waiting: VecDeque::new(),
            under_way: Vec::new(),
            trying: JoinSet::new(),
            known: BTreeSet::new(),
            next_try: Instant::now(),
        }
    }

    /// Adds a seed. Addresses are tried in the order in which they are added; names when they are
    /// resolved.
    pub(super) fn add(&mut self, seed: Seed) {
        if let Ok(ip) = seed.host.parse::<IpAddr>() {
            self.wait_for(&seed, [SocketAddr::new(ip, seed.port)]);
            return;
        }
        self.resolving.spawn(async move {
            let addresses = resolve(&seed).await;
            (seed, addresses)
        });
    }

    fn wait_for(&mut self, seed: &Seed, addresses: impl IntoIterator<Item = SocketAddr>) {
        for address in addresses {
            if self.known.insert(address) {
                self.waiting.push_back((seed.clone(), address));
            }
        }
    }

    /// What is found next; nothing once every address was tried.
    pub(super) async fn next(&mut self) -> Option<Found> {
        loop {
            let now = Instant::now();
            if now >= self.next_try || self.under_way.is_empty() {
                self.try_next(now);
            }
            tokio::select! {
                Some(resolved) = self.resolving.join_next() => {
                    if let Ok((seed, Err(reason))) = resolved {
                        return Some(Found::NoAddress(seed, reason));
                    } else if let Ok((seed, Ok(addresses))) = resolved {
                        self.wait_for(&seed, addresses);
                    }
                }
                Some(tried) = self.trying.join_next() => {
                    if let Some(found) = self.tried(tried.ok()?) {
                        return Some(found);
                    }
                }
                () = sleep_until(self.next_try), if !self.waiting.is_empty() => {}
                else => return None,
            }
        }
    }

    fn try_next(&mut self, now: Instant) {
        let Some((seed, address)) = self.waiting.pop_front() else { return };
        tracing::info!(%seed, %address, "asking to join");
        self.next_try = now + STAGGER;
        self.under_way.push((seed, address));
        let authority = self.authority;
        self.trying.spawn(async move {
            (address, flocker_quic::connect_to_join(address, authority, CONNECT).await)
        });
    }

    fn tried(
        &mut self,
        (address, outcome): (SocketAddr, Result<JoinerConnection, QuicError>),
    ) -> Option<Found> {
        let at = self.under_way.iter().position(|(_, of)| *of == address)?;
        let (seed, _) = self.under_way.remove(at);
        match outcome {
            Ok(connection) => {
                // If this member refuses, the others are tried again.
                self.trying = JoinSet::new();
                for other in self.under_way.drain(..).rev() {
                    self.waiting.push_front(other);
                }
                Some(Found::Member(seed, address, connection))
            }
            Err(error) => {
                self.next_try = Instant::now();
                Some(Found::Silent(seed, address, error.to_string()))
            }
        }
    }
}

async fn resolve(seed: &Seed) -> Result<Vec<SocketAddr>, String> {
    let found = timeout(RESOLVE, tokio::net::lookup_host((seed.host.as_str(), seed.port))).await;
    let addresses: Vec<SocketAddr> = match found {
        Err(_) => return Err(format!("the name did not resolve within {} s", RESOLVE.as_secs())),
        Ok(Err(error)) => return Err(format!("the name does not resolve: {error}")),
        Ok(Ok(found)) => found.take(MAX_ADDRESSES).collect(),
    };
    if addresses.is_empty() { Err("the name has no address".to_owned()) } else { Ok(addresses) }
}

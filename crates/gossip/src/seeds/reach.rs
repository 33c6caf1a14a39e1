//! Every address behind a list of seeds, each tried: names are resolved beside each other, and each
//! address gets a head start over the next. It knows nothing of what a try does.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::join::Seed;

/// How long a name may take to resolve.
const RESOLVE: Duration = Duration::from_secs(5);

/// The head start of each address over the next; less if it fails sooner (compare RFC 8305, 5).
const STAGGER: Duration = Duration::from_millis(150);

/// The most addresses tried behind one name.
const MAX_ADDRESSES: usize = 64;

/// The most names resolved, and addresses tried, at the same time.
const AT_ONCE: usize = 16;

/// How names become addresses.
#[async_trait]
pub trait Resolve: Send + Sync + 'static {
    /// Every address of this host, with this port.
    ///
    /// # Errors
    /// Why the name does not resolve.
    async fn resolve(&self, host: &str, port: u16) -> std::io::Result<Vec<SocketAddr>>;
}

/// The machine's own resolver.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemResolver;

#[async_trait]
impl Resolve for SystemResolver {
    async fn resolve(&self, host: &str, port: u16) -> std::io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host((host, port)).await?.take(MAX_ADDRESSES).collect())
    }
}

/// What came of a seed or an address.
#[derive(Debug)]
pub(super) enum Outcome<T, E> {
    /// The seed has no address.
    Unresolved { seed: Seed, reason: String },
    /// An address was tried.
    Reached { seed: Seed, address: SocketAddr, result: Result<T, E> },
}

type Try<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

/// The tries under way and those to come. Dropped, it gives them up.
pub(super) struct Reach<T, E> {
    unresolved: VecDeque<Seed>,
    resolver: Arc<dyn Resolve>,
    resolving: JoinSet<(Seed, Result<Vec<SocketAddr>, String>)>,
    waiting: VecDeque<(Seed, SocketAddr)>,
    trying: JoinSet<(Seed, SocketAddr, Result<T, E>)>,
    attempt: Box<dyn Fn(SocketAddr) -> Try<T, E> + Send>,
    seen: BTreeSet<SocketAddr>,
}

impl<T: Send + 'static, E: Send + 'static> Reach<T, E> {
    /// Tries what these seeds lead to, but not `except`.
    pub(super) fn new<F>(
        seeds: &[Seed],
        resolver: &Arc<dyn Resolve>,
        except: BTreeSet<SocketAddr>,
        attempt: impl Fn(SocketAddr) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        Self {
            unresolved: seeds.iter().cloned().collect(),
            resolver: Arc::clone(resolver),
            resolving: JoinSet::new(),
            waiting: VecDeque::new(),
            trying: JoinSet::new(),
            attempt: Box::new(move |address| Box::pin(attempt(address))),
            seen: except,
        }
    }

    /// What came of the next seed or address; `None` once all were tried.
    pub(super) async fn next(&mut self) -> Option<Outcome<T, E>> {
        loop {
            self.resolve_more();
            if self.trying.is_empty() {
                self.try_one();
            }
            tokio::select! {
                Some(resolved) = self.resolving.join_next(), if !self.resolving.is_empty() => {
                    if let Ok((seed, resolved)) = resolved {
                        match resolved {
                            Ok(addresses) => self.queue(&seed, addresses),
                            Err(reason) => return Some(Outcome::Unresolved { seed, reason }),
                        }
                    }
                }
                Some(tried) = self.trying.join_next(), if !self.trying.is_empty() => {
                    self.try_one();
                    if let Ok((seed, address, result)) = tried {
                        return Some(Outcome::Reached { seed, address, result });
                    }
                }
                () = tokio::time::sleep(STAGGER), if !self.waiting.is_empty() => self.try_one(),
                else => return None,
            }
        }
    }

    fn resolve_more(&mut self) {
        while self.resolving.len() < AT_ONCE
            && let Some(seed) = self.unresolved.pop_front()
        {
            let resolver = Arc::clone(&self.resolver);
            self.resolving.spawn(async move {
                let found = timeout(RESOLVE, resolver.resolve(&seed.host, seed.port)).await;
                let addresses = match found {
                    Err(_) => Err(format!("no answer within {} s", RESOLVE.as_secs())),
                    Ok(Err(error)) => Err(format!("the name does not resolve: {error}")),
                    Ok(Ok(found)) if found.is_empty() => Err("the name has no address".to_owned()),
                    Ok(Ok(found)) => Ok(found),
                };
                (seed, addresses)
            });
        }
    }

    fn queue(&mut self, seed: &Seed, addresses: Vec<SocketAddr>) {
        for address in addresses.into_iter().take(MAX_ADDRESSES) {
            if self.seen.insert(address) {
                self.waiting.push_back((seed.clone(), address));
            }
        }
    }

    fn try_one(&mut self) {
        if self.trying.len() < AT_ONCE
            && let Some((seed, address)) = self.waiting.pop_front()
        {
            let attempt = (self.attempt)(address);
            self.trying.spawn(async move { (seed, address, attempt.await) });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Mutex;

    use super::*;

    /// Names with fixed addresses; others do not resolve, and one hangs.
    struct Table;

    #[async_trait]
    impl Resolve for Table {
        async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
            match host {
                "three" => Ok((1..=3).map(|n| SocketAddr::from(([10, 0, 0, n], port))).collect()),
                "again" => Ok(vec![SocketAddr::from(([10, 0, 0, 2], port))]),
                "none" => Ok(Vec::new()),
                "hangs" => std::future::pending().await,
                _ => Err(io::Error::other("no such name")),
            }
        }
    }

    fn seeds(hosts: &[&str]) -> Vec<Seed> {
        hosts.iter().map(|host| host.parse().expect("a seed")).collect()
    }

    async fn all(hosts: &[&str], except: &[SocketAddr]) -> (Vec<String>, Vec<SocketAddr>) {
        let resolver: Arc<dyn Resolve> = Arc::new(Table);
        let tried = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&tried);
        let except = except.iter().copied().collect();
        let mut reach = Reach::new(&seeds(hosts), &resolver, except, move |address| {
            log.lock().expect("lock").push(address);
            async move { if address.ip().to_string() == "10.0.0.1" { Err(()) } else { Ok(()) } }
        });
        let mut outcomes = Vec::new();
        while let Some(outcome) = reach.next().await {
            outcomes.push(match outcome {
                Outcome::Unresolved { seed, reason } => format!("{seed} {reason}"),
                Outcome::Reached { address, result, .. } => format!("{address} {}", result.is_ok()),
            });
        }
        outcomes.sort();
        let tried = tried.lock().expect("lock").clone();
        (outcomes, tried)
    }

    #[tokio::test(start_paused = true)]
    async fn every_address_is_tried_once_and_names_that_fail_hold_nothing_up() {
        let (outcomes, tried) = all(&["gone", "three", "hangs", "again", "none"], &[]).await;
        assert_eq!(tried.len(), 3, "{tried:?}");
        let expected = [
            "10.0.0.1:4523 false",
            "10.0.0.2:4523 true",
            "10.0.0.3:4523 true",
            "gone:4523 the name does not resolve: no such name",
            "hangs:4523 no answer within 5 s",
            "none:4523 the name has no address",
        ];
        assert_eq!(outcomes, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_that_are_known_are_left_out() {
        let known = SocketAddr::from(([10, 0, 0, 2], 4523));
        let (_, tried) = all(&["three", "again"], &[known]).await;
        assert!(!tried.contains(&known) && tried.len() == 2, "{tried:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn silent_addresses_are_tried_beside_each_other() {
        let resolver: Arc<dyn Resolve> = Arc::new(Table);
        let mut reach =
            Reach::new(&seeds(&["three"]), &resolver, BTreeSet::new(), |address| async move {
                if address.ip().to_string() != "10.0.0.3" {
                    tokio::time::sleep(Duration::from_secs(4)).await;
                }
                Ok::<_, ()>(address)
            });
        let began = tokio::time::Instant::now();
        let Some(Outcome::Reached { address, .. }) = reach.next().await else { panic!("none") };
        assert_eq!(address.ip().to_string(), "10.0.0.3");
        assert!(began.elapsed() < Duration::from_secs(1));
    }
}

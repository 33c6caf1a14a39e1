//! Connections to one backend or one peer: the unused ones are kept and shared by all clients. A
//! pool belongs to one place, so a connection can't outlive it into another.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::AcqRel, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use flocker_base::{BootTime, Clock, StoreId};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::ProxyConfig;
use crate::dial::Dial;
use crate::route::Place;
use crate::upstream::{Upstream, UpstreamIo};

/// A place with the connections to it.
#[derive(Debug)]
pub(crate) struct Route {
    place: Place,
    pool: Arc<Pool>,
}

/// What pools need of the proxy they belong to.
#[derive(Clone)]
pub(crate) struct PoolContext {
    pub(crate) config: Arc<ProxyConfig>,
    pub(crate) dial: Arc<dyn Dial>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) tasks: TaskTracker,
    pub(crate) closing: CancellationToken,
}

/// The connections to one target.
pub(crate) struct Pool {
    target: Target,
    context: PoolContext,
    idle: Mutex<Vec<Idle>>,
    open: Arc<AtomicUsize>,
    connecting: Semaphore,
    /// A task watches over the idle connections.
    swept: AtomicBool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Backend(SocketAddr),
    Peer(StoreId),
}

/// Why there is no connection. In each case nothing was sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("connecting to the backend at {0} failed: {1}")]
    Backend(SocketAddr, io::Error),
    #[error("opening a stream to node {0} failed: {1}")]
    Peer(StoreId, io::Error),
    #[error("{0} connections to it are in use, which is the most this node makes")]
    Full(usize),
}

/// Counts an open connection for as long as it lives.
#[derive(Debug)]
pub(crate) struct OpenSlot(Arc<AtomicUsize>);

#[derive(Debug)]
struct Idle {
    upstream: Upstream,
    until: BootTime,
}

impl Route {
    pub(crate) const fn new(place: Place, pool: Arc<Pool>) -> Self {
        Self { place, pool }
    }

    pub(crate) const fn place(&self) -> Place {
        self.place
    }

    pub(crate) const fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }
}

impl PartialEq for Route {
    fn eq(&self, other: &Self) -> bool {
        self.place == other.place
    }
}

impl Pool {
    pub(crate) fn new(target: Target, context: PoolContext) -> Arc<Self> {
        let connecting = Semaphore::new(context.config.max_connecting);
        Arc::new(Self {
            target,
            context,
            idle: Mutex::new(Vec::new()),
            open: Arc::new(AtomicUsize::new(0)),
            connecting,
            swept: AtomicBool::new(false),
        })
    }

    /// A connection that is ready for a request: an unused one if there is, else a new one. The
    /// second part says whether it is new.
    pub(crate) async fn get(&self) -> Result<(Upstream, bool), ConnectError> {
        if let Some(upstream) = self.reuse().await {
            return Ok((upstream, false));
        }
        // When many come at once (after a release, say), few connect at a time: a backend's listen
        // queue is short, and an overflow there costs a second.
        let deadline = self.connect_deadline();
        let permit = tokio::time::timeout(deadline, self.connecting.acquire()).await;
        let Ok(Ok(_permit)) = permit else { return Err(self.error(late(deadline))) };
        match self.reuse().await {
            Some(upstream) => Ok((upstream, false)),
            None => Ok((self.connect().await?, true)),
        }
    }

    /// Makes a connection.
    pub(crate) async fn connect(&self) -> Result<Upstream, ConnectError> {
        let slot = self.slot()?;
        let deadline = self.connect_deadline();
        let connecting = async {
            match self.target {
                Target::Backend(address) => {
                    let stream = TcpStream::connect(address).await?;
                    stream.set_nodelay(true)?;
                    Ok(UpstreamIo::Backend(stream))
                }
                Target::Peer(node) => self.context.dial.open(node).await.map(UpstreamIo::Peer),
            }
        };
        let connected = tokio::time::timeout(deadline, connecting).await;
        let stream = connected.unwrap_or_else(|_| Err(late(deadline)));
        let stream = stream.map_err(|error| self.error(error))?;
        let begun = Upstream::begin(stream, self.idle_limit(), slot).await;
        begun.map_err(|error| self.error(io::Error::other(error)))
    }

    /// Keeps a connection for the next request.
    pub(crate) fn put(self: &Arc<Self>, upstream: Upstream) {
        let until = self.context.clock.boot() + upstream.idle_limit;
        {
            let mut idle = self.idle();
            if idle.len() >= self.context.config.max_idle || self.context.closing.is_cancelled() {
                return;
            }
            idle.push(Idle { upstream, until });
        }
        if !self.swept.swap(true, AcqRel) {
            let pool = Arc::downgrade(self);
            let closing = self.context.closing.clone();
            let every = self.idle_limit();
            self.context.tasks.spawn(closing.run_until_cancelled_owned(sweep(pool, every)));
        }
    }

    /// How long a connection may lie unused unless its backend says otherwise.
    pub(crate) fn idle_limit(&self) -> Duration {
        match self.target {
            Target::Backend(_) => self.context.config.backend_idle,
            Target::Peer(_) => self.context.config.peer_idle,
        }
    }

    async fn reuse(&self) -> Option<Upstream> {
        loop {
            let last = self.idle().pop()?;
            let mut upstream = last.upstream;
            if last.until > self.context.clock.boot() && upstream.is_alive().await {
                return Some(upstream);
            }
        }
    }

    /// Closes what lay unused for too long. Whether the sweeping is over.
    fn sweep(&self) -> bool {
        let now = self.context.clock.boot();
        let mut idle = self.idle();
        idle.retain(|idle| idle.until > now);
        if idle.is_empty() {
            self.swept.store(false, Relaxed);
        }
        idle.is_empty()
    }

    fn slot(&self) -> Result<OpenSlot, ConnectError> {
        let most = self.context.config.max_upstream;
        let slot = OpenSlot(Arc::clone(&self.open));
        if self.open.fetch_add(1, Relaxed) >= most {
            return Err(ConnectError::Full(most));
        }
        Ok(slot)
    }

    fn connect_deadline(&self) -> Duration {
        match self.target {
            Target::Backend(_) => self.context.config.connect_timeout,
            Target::Peer(_) => self.context.config.dial_timeout,
        }
    }

    const fn error(&self, error: io::Error) -> ConnectError {
        match self.target {
            Target::Backend(address) => ConnectError::Backend(address, error),
            Target::Peer(node) => ConnectError::Peer(node, error),
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for PoolContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PoolContext").field("config", &self.config).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("target", &self.target).finish_non_exhaustive()
    }
}

impl Drop for OpenSlot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

async fn sweep(pool: Weak<Pool>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        if pool.upgrade().is_none_or(|pool| pool.sweep()) {
            return;
        }
    }
}

fn late(deadline: Duration) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {deadline:?}"))
}

#[cfg(test)]
pub(crate) mod tests;

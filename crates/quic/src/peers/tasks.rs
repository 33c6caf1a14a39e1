//! What runs beside the table: dialling, watching a connection, letting a superseded one run out.
//! Each task holds the pool weakly and reports to it; none decides.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Weak;
use std::time::Duration;

use flocker_base::{BootTime, StoreId};
use tokio::task::JoinSet;

use super::pool::{Pool, now};
use super::silence::{Finding, Silence};
use super::slot::LinkId;
use crate::connection::{CloseCode, Connection};
use crate::endpoint::Endpoint;
use crate::error::QuicError;
use crate::probe;

/// The head start of each address over the next (compare RFC 8305, section 5).
const STAGGER: Duration = Duration::from_millis(150);
/// Most addresses of one node that are tried.
const MOST_ADDRESSES: usize = 16;
/// How long a superseded connection stays open at least, for what is still on its way.
const LINGER: Duration = Duration::from_secs(5);
/// The longest time between two looks at a connection.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long a host is given to say that a port is closed.
const PROBE_WAIT: Duration = Duration::from_millis(400);

/// Tries every address and reports what came of it.
pub(super) async fn dial(
    pool: Weak<Pool>,
    endpoint: Endpoint,
    to: StoreId,
    addresses: Vec<SocketAddr>,
) {
    let result = first_to_answer(&endpoint, to, &addresses).await;
    let Some(pool) = pool.upgrade() else { return };
    match result {
        Ok(connection) => pool.arrived(connection),
        Err(error) => pool.dial_failed(to, error),
    }
}

/// Each address gets a head start over the next, which ends early if it fails. The first to accept
/// wins, the others are given up.
async fn first_to_answer(
    endpoint: &Endpoint,
    to: StoreId,
    addresses: &[SocketAddr],
) -> Result<Connection, QuicError> {
    let mut seen = BTreeSet::new();
    let mut waiting =
        addresses.iter().copied().filter(|at| seen.insert(*at)).take(MOST_ADDRESSES).peekable();
    let mut attempts = JoinSet::new();
    let mut tried = Vec::new();
    loop {
        if let Some(at) = waiting.next() {
            let endpoint = endpoint.clone();
            let deadline = endpoint.config().handshake_timeout;
            attempts.spawn(async move { endpoint.connect(to, at, deadline).await });
        }
        let head_start = async {
            match waiting.peek() {
                Some(_) => tokio::time::sleep(STAGGER).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = attempts.join_next() => match ended {
                Some(Ok(Ok(connection))) => return Ok(connection),
                Some(Ok(Err(QuicError::Dial { at, reason, .. }))) => tried.push((at, reason)),
                Some(Ok(Err(other))) => return Err(other),
                Some(Err(e)) => tracing::error!("a dial's task failed: {e}"),
                None if tried.is_empty() => return Err(QuicError::NoAddress { to }),
                None => return Err(QuicError::Unreachable { to, tried }),
            },
            () = head_start => {}
        }
    }
}

/// Reports the end of a connection, and brings it about once a peer that was spoken to does not
/// answer: at once if its host says that nothing listens there, else after a while.
pub(super) async fn watch_over(pool: Weak<Pool>, connection: Connection) {
    let Some(patience) = pool.upgrade().map(|pool| pool.endpoint().config().silence) else {
        return;
    };
    let every = (patience / 6).min(LOOK_EVERY);
    // A look may end in a probe.
    let late = every * 3 + PROBE_WAIT;
    let mut silence = Silence::new(now(), connection.traffic(), late, patience);
    loop {
        tokio::select! {
            ended = connection.closed() => {
                tracing::debug!("{ended}");
                break;
            }
            () = tokio::time::sleep(to_next(now(), every)) => {}
        }
        let why = match silence.look(now(), connection.traffic()) {
            Finding::Well => continue,
            Finding::Dead => "it answers nothing",
            Finding::Waiting if listens_no_more(&pool, &connection).await => {
                "nothing listens there any more"
            }
            Finding::Waiting => continue,
        };
        tracing::warn!(
            peer = %connection.peer(), remote = %connection.remote_addr(),
            "closed a connection to a silent peer: {why}"
        );
        connection.close(CloseCode::Gone, why);
    }
    if let Some(pool) = pool.upgrade() {
        pool.closed(connection.peer(), connection.id());
    }
}

/// The time to the next of the instants that are a multiple of this apart: the looks at all
/// connections fall together, so that an idle node seldom wakes.
fn to_next(now: BootTime, every: Duration) -> Duration {
    let every = every.as_millis().max(1);
    let past = now.saturating_since(BootTime::ZERO).as_millis() % every;
    Duration::from_millis(u64::try_from(every - past).unwrap_or(u64::MAX))
}

/// Asks only at an address where the peer is known to listen: behind address translation, the port
/// that it comes from answers to no one else.
async fn listens_no_more(pool: &Weak<Pool>, connection: &Connection) -> bool {
    let at = connection.remote_addr();
    let Some(from) = pool.upgrade().and_then(|pool| {
        let listens =
            connection.dialled() || pool.book().addresses(connection.peer()).contains(&at);
        listens.then(|| connection.local_ip().unwrap_or(pool.endpoint().local_addr().ip()))
    }) else {
        return false;
    };
    tokio::time::timeout(PROBE_WAIT, probe::nothing_listens(from, at)).await.is_ok()
}

/// Where this node is expected to listen, and from which address to ask there: at the other end of
/// the connection in use if it listens there, or else at every address known of it.
pub(super) fn where_it_listens(pool: &Pool, store: StoreId) -> Vec<(IpAddr, SocketAddr)> {
    let from = pool.endpoint().local_addr().ip();
    let known = pool.book().addresses(store);
    if let Some(connection) = pool.existing(store) {
        let at = connection.remote_addr();
        if connection.dialled() || known.contains(&at) {
            return vec![(connection.local_ip().unwrap_or(from), at)];
        }
    }
    known.into_iter().take(MOST_ADDRESSES).map(|at| (from, at)).collect()
}

/// Lets a superseded connection run out.
pub(super) async fn linger(pool: Weak<Pool>, peer: StoreId, id: LinkId) {
    loop {
        tokio::time::sleep(LINGER).await;
        match pool.upgrade() {
            Some(pool) if pool.discard_if_unused(peer, id) => {}
            _ => return,
        }
    }
}

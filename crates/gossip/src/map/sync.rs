//! Keeping the maps of all nodes equal: each change is pushed at once to a few peers, who pass
//! on what was new to them; what that misses is pulled where hash trees differ. It must never
//! let a peer's bytes, slowness or number of messages hold up this node or its map.
//!
//! ```text
//!   map's outbox ─▶ push loop ─▶ 3 random peers        a peer's root differs ─▶ pull loop
//!   push handler ─▶ queue ─▶ receive loop ─▶ merge     pull handler ◀─ a peer that pulls
//! ```

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flocker_base::{BootTime, StoreId};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use self::choice::Choice;
use self::descent::Descent;
use self::message::{
    Hostile, MAX_PAGE, MAX_PUSH, Opened, Push, Request, Response, Sent, WireSummary,
};
use self::refusals::Refusals;
use super::key::RecordKey;
use super::outbox::MAX_HOPS;
use super::tree::{Hash, Path, Summary, value_hash};
use super::{Arrived, Map, MapError, Merged};
use crate::control::{Handler, Kind, Wire, WireError};

mod choice;
mod descent;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod message;
mod refusals;

/// Peers that each change is pushed to.
const FANOUT: usize = 3;
/// Time from one look at the peers' roots to the next.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Time that a peer has for one answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Time that one pull may take, a newcomer's included; the next goes on where it stood.
const PULL_WITHIN: Duration = Duration::from_secs(120);
/// Pushes that wait to be merged; what does not fit is pulled later.
const MAX_INBOX: usize = 64;
/// Pulls of peers answered at once.
const MAX_ANSWERS: usize = 8;

/// Who lives, and the root that each last announced.
pub trait PeerView: Send + Sync + 'static {
    /// The live peers, with or without this node.
    fn live(&self) -> Vec<(StoreId, Option<Hash>)>;
}

/// Keeps a map equal to its peers'.
pub struct MapSync {
    shared: Arc<Shared>,
    inbox: mpsc::Receiver<(StoreId, Bytes)>,
}

struct Shared {
    map: Map,
    wire: Arc<dyn Wire>,
    peers: Arc<dyn PeerView>,
    choice: Mutex<Choice>,
    refusals: Refusals,
}

/// Takes the pushes of peers.
struct PushHandler {
    shared: Arc<Shared>,
    inbox: mpsc::Sender<(StoreId, Bytes)>,
}

/// Answers the pulls of peers.
struct PullHandler {
    shared: Arc<Shared>,
    answers: Arc<Semaphore>,
}

/// Why a pull ended early.
#[derive(Debug, thiserror::Error)]
enum PullError {
    #[error("the peer did not answer: {0}")]
    Wire(#[from] WireError),
    #[error("{0}")]
    Hostile(#[from] Hostile),
    #[error("it took over {PULL_WITHIN:?}")]
    TooLong,
    #[error(transparent)]
    Map(#[from] MapError),
}

/// Builds the synchronisation of this map: what is to be run, and the handlers for
/// [`Kind::MapPush`] and [`Kind::MapPull`]. The seed decides which peers are chosen.
#[must_use]
pub fn build(
    map: Map,
    wire: Arc<dyn Wire>,
    peers: Arc<dyn PeerView>,
    seed: u64,
) -> (MapSync, Arc<dyn Handler>, Arc<dyn Handler>) {
    let choice = Mutex::new(Choice::new(seed));
    let shared = Arc::new(Shared { map, wire, peers, choice, refusals: Refusals::default() });
    let (sender, inbox) = mpsc::channel(MAX_INBOX);
    let push = PushHandler { shared: Arc::clone(&shared), inbox: sender };
    let answers = Arc::new(Semaphore::new(MAX_ANSWERS));
    let pull = PullHandler { shared: Arc::clone(&shared), answers };
    (MapSync { shared, inbox }, Arc::new(push), Arc::new(pull))
}

impl MapSync {
    /// Runs until the shutdown.
    ///
    /// # Errors
    /// [`MapError`] if the disk failed: the process must end, see [`MapError::is_fatal`].
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), MapError> {
        let Self { shared, inbox } = self;
        tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            failed = shared.push_changes() => Err(failed),
            failed = shared.take_pushes(inbox) => Err(failed),
            failed = shared.pull_differences() => Err(failed),
        }
    }
}

impl Shared {
    /// Pushes each change to a few peers. Returns only with a failure of the disk.
    async fn push_changes(&self) -> MapError {
        loop {
            let (keys, hops) = self.map.inner.outbox.take().await;
            if let Err(failure) = self.push(keys, hops).await {
                return failure;
            }
        }
    }

    async fn push(&self, keys: Vec<RecordKey>, hops: u8) -> Result<(), MapError> {
        let mut keys = keys.into_iter().peekable();
        while keys.peek().is_some() {
            let mut records = Vec::new();
            let mut size = 0;
            // One record over the bound still fits the frame: it is at most a quarter of it.
            while size < MAX_PUSH {
                let Some(key) = keys.next() else { break };
                let map = self.map.clone();
                let sent = blocking(move || {
                    let bytes = map.inner.store.get(&key)?;
                    Ok(bytes.map(|bytes| sent(&key, bytes)))
                });
                if let Some(record) = sent.await? {
                    size += record.0.len() + record.1.len();
                    records.push(record);
                }
            }
            let Ok(push) = message::encode(&Push { hops, records }) else { continue };
            let live = self.live();
            let live: Vec<StoreId> = live.into_iter().map(|(store, _)| store).collect();
            for peer in self.choice().some(&live, FANOUT) {
                self.wire.send(peer, Kind::MapPush, push.clone());
            }
        }
        Ok(())
    }

    /// Merges what peers push. Returns only with a failure of the disk.
    async fn take_pushes(&self, mut inbox: mpsc::Receiver<(StoreId, Bytes)>) -> MapError {
        let mut waiting = Vec::with_capacity(MAX_INBOX);
        loop {
            if inbox.recv_many(&mut waiting, MAX_INBOX).await == 0 {
                // The handler is gone: the node shuts down.
                std::future::pending::<()>().await;
            }
            let (mut arrived, mut most) = (Vec::new(), 0);
            for (from, bytes) in waiting.drain(..) {
                match self.open_push(from, &bytes) {
                    Ok((hops, records)) => {
                        most = most.max(hops);
                        arrived.extend(records);
                    }
                    Err(why) => self.refuse(from, "a push", &why),
                }
            }
            if let Err(failure) = self.merge(arrived, most.saturating_add(1)).await {
                return failure;
            }
        }
    }

    fn open_push(&self, from: StoreId, bytes: &[u8]) -> Result<(u8, Vec<Arrived>), Hostile> {
        let Push { hops, records } = message::decode(bytes)?;
        Ok((hops, self.open(from, records)?))
    }

    /// Reads the records of a message that are not here already, byte for byte: most pushes
    /// bring what another peer brought before.
    fn open(&self, from: StoreId, sent: Vec<Sent>) -> Result<Vec<Arrived>, Hostile> {
        let is_news = |(key, bytes): &Sent| {
            let present = RecordKey::from_bytes(key).and_then(|key| self.map.tree().get(&key));
            present != Some(value_hash(bytes))
        };
        let sent: Vec<Sent> = sent.into_iter().filter(is_news).collect();
        let Opened { records, newer } = message::open(&sent)?;
        for (key, why) in newer {
            self.refuse(from, &key.to_string(), &why);
        }
        Ok(records.into_iter().map(|(key, record)| Arrived { from, key, record }).collect())
    }

    async fn merge(&self, arrived: Vec<Arrived>, hops: u8) -> Result<Merged, MapError> {
        if arrived.is_empty() {
            return Ok(Merged::default());
        }
        let map = self.map.clone();
        let merged = blocking(move || map.take_in(arrived, hops)).await?;
        for refused in &merged.refused {
            self.refuse(refused.from, &refused.key.to_string(), &refused.why);
        }
        Ok(merged)
    }

    /// Pulls from peers whose roots differ. Returns only with a failure of the disk.
    async fn pull_differences(&self) -> MapError {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let (peers, ours) = (self.live(), self.map.root());
            let Some(peer) = self.choice().source(&peers, ours, self.now()) else { continue };
            let root = peers.iter().find(|(store, _)| *store == peer).and_then(|(_, root)| *root);
            let pulled = tokio::time::timeout(PULL_WITHIN, self.pull(peer)).await;
            match pulled.unwrap_or(Err(PullError::TooLong)) {
                Ok(0) => self.choice().nothing_from(peer, root, ours, self.now()),
                Ok(changed) => {
                    self.choice().something_from(peer);
                    tracing::debug!(%peer, changed, "pulled records of a peer");
                }
                Err(PullError::Map(failure)) => return failure,
                Err(why) => {
                    self.choice().nothing_from(peer, root, ours, self.now());
                    match why {
                        PullError::Hostile(why) => self.refuse(peer, "a pulled answer", &why),
                        other => tracing::debug!(%peer, why = %other, "a pull ended early"),
                    }
                }
            }
        }
    }

    /// Pulls what this peer has and we lack; gives the number of records that changed here.
    async fn pull(&self, peer: StoreId) -> Result<usize, PullError> {
        let mut descent = Descent::new();
        let mut changed = 0;
        while let Some(request) = descent.next() {
            let response = self.ask(peer, &request).await?;
            match (request, response) {
                (Request::Summaries(asked), Response::Summaries(theirs)) => {
                    let theirs = theirs.into_iter().map(Summary::try_from);
                    let theirs = theirs.collect::<Result<Vec<_>, _>>()?;
                    if asked == [Path::default()] && self.is_newcomer(&theirs) {
                        return self.pull_pages(peer).await;
                    }
                    descent.on_summaries(&self.map.tree(), &asked, theirs)?;
                }
                (Request::Records(asked), Response::Records(sent)) => {
                    let got: Vec<RecordKey> =
                        sent.iter().filter_map(|(key, _)| RecordKey::from_bytes(key)).collect();
                    let arrived = self.open(peer, sent)?;
                    changed += self.merge(arrived, MAX_HOPS).await?.changed.len();
                    descent.on_records(&asked, &got);
                }
                _ => return Err(Hostile::Answer.into()),
            }
        }
        Ok(changed)
    }

    fn is_newcomer(&self, theirs: &[Summary]) -> bool {
        let ours = self.map.view().records();
        theirs.first().is_some_and(|root| Descent::is_newcomer(ours, root))
    }

    /// Reads the peer's whole map page by page; each page is on disk before the next is asked.
    async fn pull_pages(&self, peer: StoreId) -> Result<usize, PullError> {
        let (mut after, mut changed): (Option<Bytes>, usize) = (None, 0);
        loop {
            let response = self.ask(peer, &Request::Page(after.clone())).await?;
            let Response::Page { records, more } = response else {
                return Err(Hostile::Answer.into());
            };
            let last = records.last().map(|(key, _)| key.clone());
            let arrived = self.open(peer, records)?;
            changed += self.merge(arrived, MAX_HOPS).await?.changed.len();
            match last {
                Some(last) if more && after.as_ref().is_none_or(|after| last > *after) => {
                    after = Some(last);
                }
                Some(_) if more => return Err(Hostile::Answer.into()),
                _ => return Ok(changed),
            }
        }
    }

    async fn ask(&self, peer: StoreId, request: &Request) -> Result<Response, PullError> {
        let payload = message::encode(request)?;
        let answer = self.wire.call(peer, Kind::MapPull, payload, ANSWER_WITHIN).await?;
        Ok(message::decode(&answer)?)
    }

    fn live(&self) -> Vec<(StoreId, Option<Hash>)> {
        let me = self.map.actor();
        self.peers.live().into_iter().filter(|(store, _)| *store != me).collect()
    }

    fn choice(&self) -> std::sync::MutexGuard<'_, Choice> {
        self.choice.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refuse(&self, from: StoreId, what: &str, why: &dyn std::fmt::Display) {
        self.refusals.warn(self.now(), from, what, why);
    }

    fn now(&self) -> BootTime {
        self.map.inner.clock.boot()
    }

    /// Answers a question; blocks on the disk.
    fn answer(&self, request: Request) -> Result<Response, MapError> {
        Ok(match request {
            Request::Summaries(paths) => {
                let tree = &self.map.tree();
                let summary = |path| WireSummary::from(tree.summary(path));
                Response::Summaries(paths.iter().map(summary).collect())
            }
            Request::Records(keys) => {
                let (mut records, mut size) = (Vec::new(), 0);
                for key in keys.iter().filter_map(|key| RecordKey::from_bytes(key)) {
                    if size > MAX_PAGE {
                        break;
                    }
                    if let Some(bytes) = self.map.inner.store.get(&key)? {
                        size += key.as_bytes().len() + bytes.len();
                        records.push(sent(&key, bytes));
                    }
                }
                Response::Records(records)
            }
            Request::Page(after) => {
                let after = after.and_then(|key| RecordKey::from_bytes(&key));
                let page = self.map.inner.store.page(after.as_ref(), MAX_PAGE)?;
                let more = !page.is_empty();
                let records = page.into_iter().map(|(key, bytes)| sent(&key, bytes)).collect();
                Response::Page { records, more }
            }
        })
    }
}

fn sent(key: &RecordKey, bytes: Vec<u8>) -> Sent {
    (Bytes::copy_from_slice(key.as_bytes()), Bytes::from(bytes))
}

/// Runs what blocks on the disk where blocking is allowed.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, MapError> + Send + 'static,
) -> Result<T, MapError> {
    // The work is only ever lost to a panic or to the end of the runtime.
    spawn_blocking(work).await.unwrap_or(Err(MapError::Stopped))
}

#[async_trait]
impl Handler for PushHandler {
    async fn on_message(&self, from: StoreId, payload: Bytes) {
        if self.inbox.try_send((from, payload)).is_err() {
            let why = "too many wait to be merged; they will be pulled";
            self.shared.refuse(from, "a push", &why);
        }
    }

    async fn on_call(&self, _from: StoreId, _payload: Bytes) -> Result<Bytes, String> {
        Err("changes of the map are pushed without an answer".to_owned())
    }
}

#[async_trait]
impl Handler for PullHandler {
    async fn on_message(&self, from: StoreId, _payload: Bytes) {
        self.shared.refuse(from, "a message", &"pulls of the map are calls");
    }

    async fn on_call(&self, from: StoreId, payload: Bytes) -> Result<Bytes, String> {
        let request = message::decode_request(&payload).map_err(|why| {
            self.shared.refuse(from, "a pull", &why);
            why.to_string()
        })?;
        let Ok(permit) = Arc::clone(&self.answers).try_acquire_owned() else {
            return Err("this node answers enough pulls at once; ask another".to_owned());
        };
        let shared = Arc::clone(&self.shared);
        let answer = blocking(move || {
            let answer = shared.answer(request);
            drop(permit);
            answer
        });
        let response = answer.await.map_err(|failure| {
            tracing::error!(%failure, "could not answer a pull of the map");
            failure.to_string()
        })?;
        message::encode(&response).map_err(|why| why.to_string())
    }
}

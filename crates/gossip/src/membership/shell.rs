//! Runs membership: waits for ticks, answers and wishes, asks the core, and does what it says. It
//! decides nothing about nodes.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flocker_base::{Incarnation, StoreId};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::core::{Command, Core, Sights};
use super::guard::StateId;
use super::pool::{Pool, sightings};
use super::roll::Sighting;
use super::roster::RegionId;
use super::roster::message::{MAX_REQUEST, Request, encode};
use super::{
    ALARM_STATES, Inner, KEY_FACTS, MAX_STATES, MembershipError, STEPPED_DOWN, STOPPED, Verdicts,
};
use crate::addresses::AddressError;
use crate::control::{Handler, Kind};
use crate::join::KnownNode;

/// How long a greeting and a pull may take.
const GREET_DEADLINE: Duration = Duration::from_secs(1);
const PULL_DEADLINE: Duration = Duration::from_secs(3);

/// The most calls under way; greetings beyond are left out, and come round again.
const MAX_CALLS: usize = 64;

/// The most requests that wait for an answer; more are refused.
pub(super) const MAX_REQUESTS: usize = 1024;

/// A peer's request that waits for an answer.
pub(super) struct Asked {
    from: StoreId,
    request: Bytes,
    answer: oneshot::Sender<Result<Vec<u8>, String>>,
}

/// Takes the calls of [`Kind::Roster`] to whoever runs membership.
pub(super) struct Desk(pub(super) mpsc::Sender<Asked>);

#[async_trait::async_trait]
impl Handler for Desk {
    async fn on_message(&self, from: StoreId, _payload: Bytes) {
        tracing::debug!(%from, "dropped a message about rosters: they are asked for by calls");
    }

    async fn on_call(&self, from: StoreId, request: Bytes) -> Result<Bytes, String> {
        // Many may wait, so none that would be refused.
        if request.len() > MAX_REQUEST {
            return Err("the request can't be read".to_owned());
        }
        let (answer, answered) = oneshot::channel();
        let asked = Asked { from, request, answer };
        self.0.try_send(asked).map_err(|_full| "this node is too busy to answer".to_owned())?;
        match answered.await {
            Ok(answer) => answer.map(Bytes::from),
            Err(_gone) => Err("membership does not run here".to_owned()),
        }
    }
}

/// How a call ended.
enum Called {
    Greeted(StoreId, Option<RegionId>, Option<Bytes>),
    Pulled(StoreId, Option<Bytes>),
}

type Ended = Pin<Box<dyn Future<Output = String> + Send>>;

/// One run of membership.
pub(super) struct Shell<'a> {
    inner: &'a Inner,
    core: Core,
    region: Pool,
    between: Option<(Pool, Ended)>,
    calls: JoinSet<Called>,
    leaving: JoinSet<()>,
    stores: Vec<StoreId>,
}

impl<'a> Shell<'a> {
    pub(super) async fn start(inner: &'a Inner) -> Result<Self, MembershipError> {
        let generation = inner.next_generation()?;
        let core = Core::new(
            inner.clock.boot(),
            inner.me,
            &inner.local,
            generation,
            inner.config.dead_node_grace,
            (**inner.view.borrow()).clone(),
        );
        let values = inner.announced_now();
        let region =
            Pool::enter(&inner.config, &inner.wire, &inner.region_inlet, generation, values)
                .await?;
        let stores = inner.stores();
        let (calls, leaving) = (JoinSet::new(), JoinSet::new());
        Ok(Self { inner, core, region, between: None, calls, leaving, stores })
    }

    /// Runs until told to stop, or something is wrong.
    pub(super) async fn drive(
        &mut self,
        requests: &mut mpsc::Receiver<Asked>,
        shutdown: &CancellationToken,
    ) -> Result<(), MembershipError> {
        let inner = self.inner;
        let mut reading = interval(inner.config.view_interval);
        reading.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reaching = interval(inner.config.reconnect_interval);
        reaching.set_missed_tick_behavior(MissedTickBehavior::Delay);
        reaching.reset();
        let mut verdicts = inner.verdicts.subscribe();
        let ended = self.region.ended();
        tokio::pin!(ended);
        loop {
            let between_ended = async {
                match &mut self.between {
                    Some((_, ended)) => ended.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                why = &mut ended => return Err(MembershipError::Ended(why)),
                why = between_ended => self.fall_out(&why).await,
                () = inner.announcement.notified() => self.announce().await,
                _ = reading.tick() => self.read().await?,
                Ok(()) = verdicts.changed() => self.read().await?,
                _ = reaching.tick() => {
                    self.stores = inner.stores();
                    let commands = self.core.reach(&self.stores);
                    self.obey(commands).await;
                }
                Some(called) = self.calls.join_next(), if !self.calls.is_empty() => {
                    if let Ok(called) = called {
                        self.take(called).await?;
                    }
                }
                Some(asked) = requests.recv() => {
                    let Asked { from, request, answer } = asked;
                    let now = inner.clock.boot();
                    let met = self.core.has_company(now);
                    // The caller may have given up.
                    let _ = answer.send(self.core.answer(now, from, &request));
                    if !met && self.core.has_company(now) {
                        self.read().await?;
                    }
                }
            }
        }
    }

    /// Leaves every pool. Said before, if this node stops as it was asked to.
    pub(super) async fn stop(mut self, as_asked: bool) {
        self.calls.abort_all();
        let between = self.between.take().map(|(pool, _)| pool);
        if as_asked {
            let between = async {
                if let Some(pool) = &between {
                    pool.bid_farewell(STOPPED).await;
                }
            };
            tokio::join!(self.region.bid_farewell(STOPPED), between);
        }
        if let Some(pool) = between {
            pool.close().await;
        }
        while self.leaving.join_next().await.is_some() {}
        self.region.close().await;
    }

    /// Reads the pools' states into the view, and does what follows.
    async fn read(&mut self) -> Result<(), MembershipError> {
        let inner = self.inner;
        let now = inner.clock.boot();
        let (outcome, held, held_between) = {
            let region = self.region.lock().await;
            let between = match &self.between {
                Some((pool, _)) => Some(pool.lock().await),
                None => None,
            };
            let (mut region, mut between) = (sightings(&region), between.as_deref().map(sightings));
            let Verdicts { suspected, vouched } = inner.verdicts_now();
            self.region.note(now, &region, &vouched, &suspected);
            if let (Some((pool, _)), Some(between)) = (&self.between, &between) {
                pool.note(now, between, &vouched, &suspected);
            }
            for run in region.iter_mut().chain(between.iter_mut().flatten()) {
                run.live = self.core.lives(run, &vouched, &suspected);
            }
            self.region.keep_peers(&region, &suspected);
            if let (Some((pool, _)), Some(between)) = (&self.between, &between) {
                pool.keep_peers(between, &suspected);
            }
            let sights = Sights {
                region: &region,
                between: between.as_deref(),
                suspected: &suspected,
                stores: &self.stores,
            };
            let outcome = self.core.read(now, &sights);
            (outcome, ids(&region), between.as_deref().map(|runs| (ids(runs), bridges(runs))))
        };
        let most = held.len().max(held_between.as_ref().map_or(0, |(held, _)| held.len()));
        if let Some(states) = self.core.roll.alarm(now, most) {
            tracing::warn!(
                states,
                alarm = ALARM_STATES,
                most = MAX_STATES,
                "there are many states in one pool of the membership gossip, and every restart of \
                 a node adds one for a while: look for nodes that start over and over \
                 (`flocker events`), and for regions of too many nodes"
            );
        }
        self.region.inlet().keep(&held);
        let mut bridges = BTreeMap::new();
        if let (Some((pool, _)), Some((held, seen))) = (&self.between, held_between) {
            pool.inlet().keep(&held);
            bridges = seen;
        }
        inner.bridges.send_if_modified(|before| {
            let changed = *before != bridges;
            *before = bridges;
            changed
        });
        self.note(outcome.changes.reached).await?;
        if let Some(view) = outcome.changes.view {
            inner.view.send_replace(view);
        }
        inner.tell(outcome.changes.events);
        self.obey(outcome.commands).await;
        Ok(())
    }

    async fn take(&mut self, called: Called) -> Result<(), MembershipError> {
        let now = self.inner.clock.boot();
        match called {
            Called::Greeted(from, probe, Some(answer)) => {
                let met = self.core.has_company(now);
                let (commands, known) = self.core.greeted(now, from, probe, &answer);
                self.note(known).await?;
                self.obey(commands).await;
                if !met && self.core.has_company(now) {
                    self.read().await?;
                }
            }
            Called::Greeted(_, _, None) => {}
            Called::Pulled(server, answer) => {
                self.core.pulled(now, server, answer.as_deref());
                self.read().await?;
            }
        }
        Ok(())
    }

    async fn obey(&mut self, commands: Vec<Command>) {
        for command in commands {
            match command {
                Command::Enter => self.enter().await,
                Command::Leave => self.leave().await,
                Command::Gossip(store) => self.region.gossip(store),
                Command::GossipBetween(store) => {
                    if let Some((pool, _)) = &self.between {
                        pool.gossip(store);
                    }
                }
                Command::Greet(store, probe) => self.greet(store, probe),
                Command::Pull(server, wants) => {
                    let request = encode(&Request::Pull(wants)).unwrap_or_default();
                    let wire = Arc::clone(&self.inner.wire);
                    self.calls.spawn(async move {
                        let call = wire.call(server, Kind::Roster, request.into(), PULL_DEADLINE);
                        Called::Pulled(server, call.await.ok())
                    });
                }
                Command::Say(key, value) => self.region.say([(key.to_owned(), value)]).await,
                Command::SayBetween(key, value) => {
                    if let Some((pool, _)) = &self.between {
                        pool.say([(key.to_owned(), value)]).await;
                    }
                }
            }
        }
    }

    fn greet(&mut self, store: StoreId, probe: Option<RegionId>) {
        if self.calls.len() >= MAX_CALLS {
            return;
        }
        let Some(request) = self.core.greeting() else { return };
        let wire = Arc::clone(&self.inner.wire);
        self.calls.spawn(async move {
            let call = wire.call(store, Kind::Roster, request.into(), GREET_DEADLINE);
            Called::Greeted(store, probe, call.await.ok())
        });
    }

    async fn enter(&mut self) {
        let inner = self.inner;
        while self.leaving.join_next().await.is_some() {}
        let entered = async {
            let (config, inlet) = (&inner.config, &inner.between_inlet);
            let generation = inner.next_generation()?;
            Pool::enter(config, &inner.wire, inlet, generation, inner.announced_now()).await
        };
        match entered.await {
            Ok(pool) => {
                tracing::info!("this node carries between its region and the others");
                for store in self.core.bridges_to_meet() {
                    pool.gossip(store);
                }
                let ended = Box::pin(pool.ended());
                self.between = Some((pool, ended));
                // Who must be met that is not known yet is asked for at once.
                let commands = self.core.reach(&self.stores);
                Box::pin(self.obey(commands)).await;
            }
            Err(error) => {
                tracing::error!(%error, "this node can't carry between regions");
                self.core.fell_out();
            }
        }
    }

    async fn leave(&mut self) {
        let Some((pool, _)) = self.between.take() else { return };
        tracing::info!("this node no longer carries between regions: others do");
        self.leaving.spawn(async move {
            pool.bid_farewell(STEPPED_DOWN).await;
            pool.close().await;
        });
    }

    /// The pool between regions has ended by itself; the core will have this node enter anew.
    async fn fall_out(&mut self, why: &str) {
        tracing::error!(why, "the gossip between regions ended by itself, and is started again");
        if let Some((pool, _)) = self.between.take() {
            pool.close().await;
        }
        self.core.fell_out();
    }

    async fn announce(&mut self) {
        let values = self.inner.announced_now();
        if let Some((pool, _)) = &self.between {
            pool.say(values.clone()).await;
        }
        self.region.say(values).await;
    }

    /// Writes addresses to the book, on a thread where that may block.
    async fn note(&mut self, reached: Vec<KnownNode>) -> Result<(), MembershipError> {
        if reached.is_empty() {
            return Ok(());
        }
        let book = self.inner.book.clone();
        let written = tokio::task::spawn_blocking(move || match book.learn_batch(&reached) {
            Err(error @ AddressError::Full) => {
                tracing::warn!(%error, "some addresses are not noted");
                Ok(())
            }
            other => other,
        });
        match written.await {
            Ok(result) => Ok(result?),
            Err(error) => Err(MembershipError::Ended(format!("writing addresses: {error}"))),
        }
    }
}

fn ids(sightings: &[Sighting<'_>]) -> Vec<StateId> {
    sightings.iter().map(|s| (s.store, s.generation)).collect()
}

/// The bridges that have not said that they leave, by the latest run whose facts have come: until
/// then what is held of the run before stands.
fn bridges(sightings: &[Sighting<'_>]) -> BTreeMap<StoreId, Incarnation> {
    let mut newest: BTreeMap<StoreId, &Sighting<'_>> = BTreeMap::new();
    for run in sightings.iter().filter(|run| run.value(KEY_FACTS).is_some()) {
        let known = newest.entry(run.store).or_insert(run);
        if known.generation < run.generation {
            *known = run;
        }
    }
    let stay = newest.into_iter().filter(|(_, run)| !run.is_leaving());
    stay.map(|(store, run)| (store, run.incarnation())).collect()
}

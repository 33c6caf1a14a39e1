//! The failure detector at work: the shell that owns a [`Watch`], brings it what the wire and the
//! view tell, and does what it says. It decides nothing, and never waits for a peer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flocker_base::{Clock, Incarnation, StoreId};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::detector::{Command, Event, Message, Report, Verdict, Watch, WatchConfig};
use super::{Liveness, Membership, Verdicts, View};
use crate::control::{Handler, Kind, Quiet, Wire};

/// The most messages that wait for the watch; what does not fit is dropped.
const MAX_WAITING: usize = 1024;

/// How long a host is given to say that a port is closed.
const PROBE: Duration = Duration::from_millis(400);

/// The most probes under way at once.
const MAX_PROBES: usize = 32;

/// The longest time between two looks at the clock.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// Whom a lookout watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The members of this node's region.
    Region = 0,
    /// The bridges of all regions, while this node is one.
    Bridges = 1,
}

impl Scope {
    fn config(self) -> WatchConfig {
        match self {
            Self::Region => WatchConfig::default(),
            Self::Bridges => WatchConfig::of_bridges(),
        }
    }

    /// The kind of its messages.
    const fn kind(self) -> Kind {
        match self {
            Self::Region => Kind::Watch,
            Self::Bridges => Kind::BridgeWatch,
        }
    }
}

/// A failure detector of this node. Build it with [`lookout`].
pub struct Lookout {
    scope: Scope,
    membership: Membership,
    wire: Arc<dyn Wire>,
    clock: Arc<dyn Clock>,
    seed: u64,
    inbox: mpsc::Receiver<(StoreId, Message)>,
    noted: Quiet,
}

/// Takes the messages of peers.
struct Ear {
    clock: Arc<dyn Clock>,
    inbox: mpsc::Sender<(StoreId, Message)>,
    refused: Quiet,
}

/// A lookout that tells this membership whom it suspects, and the handler of its messages with
/// their kind. The seed decides its jitter. Nothing is sent before [`Lookout::run`].
#[must_use]
pub fn lookout(
    scope: Scope,
    membership: Membership,
    wire: Arc<dyn Wire>,
    clock: Arc<dyn Clock>,
    seed: u64,
) -> (Lookout, (Kind, Arc<dyn Handler>)) {
    let (sender, inbox) = mpsc::channel(MAX_WAITING);
    let ear = Ear { clock: Arc::clone(&clock), inbox: sender, refused: Quiet::default() };
    let noted = Quiet::default();
    let lookout = Lookout { scope, membership, wire, clock, seed, inbox, noted };
    (lookout, (scope.kind(), Arc::new(ear)))
}

#[async_trait]
impl Handler for Ear {
    async fn on_message(&self, from: StoreId, payload: Bytes) {
        match Message::decode(&payload) {
            // A full queue drops it: the sender asks again, and news are exchanged again.
            Some(message) => drop(self.inbox.try_send((from, message))),
            None => {
                if let Some(more) = self.refused.due(self.clock.boot()) {
                    tracing::warn!(%from, more, "a message of the watch can't be read");
                }
            }
        }
    }

    async fn on_call(&self, _from: StoreId, _payload: Bytes) -> Result<Bytes, String> {
        Err("the watch answers no calls".to_owned())
    }
}

impl Lookout {
    /// Watches until told to shut down.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut view = self.membership.view();
        let mut bridges = self.membership.bridges();
        let (me, kind) = (self.wire.local(), self.scope.kind());
        let own = view.borrow().nodes.get(&me).map(|member| member.incarnation);
        let mut watch = Watch::new(me, own.unwrap_or_default(), self.scope.config(), self.seed);
        let mut probes = JoinSet::new();
        let mut members = Some(self.members(&mut view, &mut bridges));
        loop {
            let event = match members.take() {
                Some(members) => Event::Members(members),
                None => {
                    let wait = watch.next_deadline().saturating_since(self.clock.boot());
                    tokio::select! {
                        () = shutdown.cancelled() => return,
                        Some((from, message)) = self.inbox.recv() => {
                            Event::Message { from, message }
                        }
                        Ok(()) = view.changed() => {
                            Event::Members(self.members(&mut view, &mut bridges))
                        }
                        Ok(()) = bridges.changed() => {
                            Event::Members(self.members(&mut view, &mut bridges))
                        }
                        Some(ended) = probes.join_next(), if !probes.is_empty() => match ended {
                            Ok((store, refused)) => Event::Probed { store, refused },
                            Err(error) => {
                                tracing::error!("a probe's task failed: {error}");
                                continue;
                            }
                        },
                        () = tokio::time::sleep(wait.min(LONGEST_WAIT)) => Event::Tick,
                    }
                }
            };
            if self.scope == Scope::Bridges && matches!(event, Event::Members(_)) {
                watch.set_near(mates(me, &view.borrow()));
            }
            let mut changed = matches!(event, Event::Members(_) | Event::Message { .. });
            for command in watch.step(self.clock.boot(), event) {
                match command {
                    Command::Send { to, message } => {
                        self.wire.send(to, kind, message.encode().into());
                    }
                    Command::Probe { store } if probes.len() < MAX_PROBES => {
                        let wire = Arc::clone(&self.wire);
                        probes.spawn(
                            async move { (store, wire.nothing_listens(store, PROBE).await) },
                        );
                    }
                    Command::Probe { .. } => {}
                    Command::Changed => changed = true,
                    Command::Report(report) => self.note(report),
                }
            }
            if changed {
                self.membership.judge(self.scope, self.verdicts(&watch, &view.borrow()));
            }
        }
    }

    /// Those that it watches, by their run.
    fn members(
        &self,
        view: &mut watch::Receiver<Arc<View>>,
        bridges: &mut watch::Receiver<BTreeMap<StoreId, Incarnation>>,
    ) -> BTreeMap<StoreId, Incarnation> {
        let (view, bridges) = (view.borrow_and_update(), bridges.borrow_and_update());
        if self.scope == Scope::Bridges {
            return bridges.clone();
        }
        let region = view.nodes.get(&self.wire.local()).map(|member| &member.facts.region);
        let watched = |member: &super::Member| {
            member.liveness != Liveness::Left && Some(&member.facts.region) == region
        };
        let members = view.nodes.iter().filter(|(_, member)| watched(member));
        members.map(|(store, member)| (*store, member.incarnation)).collect()
    }

    /// What the watch says of others. Of this node's region the region's own watch says it.
    fn verdicts(&self, watch: &Watch, view: &View) -> Verdicts {
        let me = self.wire.local();
        let mates = mates(me, view);
        let mut verdicts = Verdicts::default();
        for (store, run, verdict) in watch.verdicts() {
            if store == me || (self.scope == Scope::Bridges && mates.contains(&store)) {
                continue;
            }
            match verdict {
                Verdict::Dead => drop(verdicts.suspected.insert((store, run))),
                Verdict::Alive => drop(verdicts.vouched.insert((store, run))),
                Verdict::Unknown => {}
            }
        }
        verdicts
    }

    /// Says why a member is suspected; that it is, the events of membership say.
    fn note(&self, report: Report) {
        let Some(more) = self.noted.due(self.clock.boot()) else { return };
        match report {
            Report::Convicted { store, by, why } => {
                tracing::info!(%store, %by, ?why, more, "the watch holds a node for dead");
            }
            Report::Returned { store } => {
                tracing::info!(%store, more, "the watch was told by a node that it lives");
            }
            Report::Unheard { store } => {
                tracing::info!(%store, more, "this node does not hear another, and asks in vain");
            }
            Report::Refuted { by, why } => {
                tracing::warn!(
                    %by, ?why, more,
                    "another node held this one for dead, and was told that it lives: look for \
                     loss between the two, or for overload"
                );
            }
        }
    }
}

/// The members of this node's region.
fn mates(me: StoreId, view: &View) -> BTreeSet<StoreId> {
    let region = view.nodes.get(&me).map(|member| &member.facts.region);
    let nodes = view.nodes.iter();
    let mates = nodes.filter(|(_, member)| Some(&member.facts.region) == region);
    mates.map(|(store, _)| *store).collect()
}

#[cfg(test)]
mod tests;

//! The parts of a running agent, held together for those who use several of them. Composing them
//! is [`super`]'s affair; deciding is [`super::reconcile`]'s.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flocker_base::{BootTime, Clock, ClusterId, Epoch, Name, ServiceId, StoreId, VolumeId};
use flocker_gossip::control::Wire;
use flocker_gossip::join::{BlockedTokens, Redemptions};
use flocker_gossip::lease::{LeaseView, Leases};
use flocker_gossip::map::{Map, MapView};
use flocker_gossip::membership::{Liveness, View};
use flocker_gossip::model::{Placement, ServiceSpec};
use flocker_proxy::Proxy;
use flocker_quic::Peers;
use flocker_replicate::{Backend, Guid, Replicator};
use rand::Rng as _;
use rand::rngs::StdRng;
use tokio::sync::{Notify, watch};

use super::answers::Moves;
use super::certificate::Certificate;
use super::events::EventLog;
use super::hands::Hands;
use super::masters::Masters;
use super::promoted::Promoted;
use super::revocation::RemovedFlag;
use super::routing::{Serving, route_table};
use super::signals::Board;
use crate::engine::{Engine, Instance};
use crate::guard::Guard;

/// The parts.
pub(super) struct Parts {
    pub(super) me: StoreId,
    pub(super) name: Name,
    pub(super) region: Name,
    pub(super) zone: Option<Name>,
    pub(super) cluster: ClusterId,
    /// The address that services listen on.
    pub(super) host: IpAddr,
    /// What a join line names first: this node's own control address.
    pub(super) seeds: Vec<String>,
    pub(super) clock: Arc<dyn Clock>,
    /// When this agent started.
    pub(super) started: BootTime,
    /// How long a node may be away before its copies are made again elsewhere.
    pub(super) replace_after: Duration,
    /// What happened, for people.
    pub(super) events: EventLog,
    pub(super) certificate: Arc<Certificate>,
    pub(super) map: Map,
    pub(super) leases: Leases,
    pub(super) members: watch::Receiver<Arc<View>>,
    pub(super) wire: Arc<dyn Wire>,
    pub(super) control_peers: Peers,
    pub(super) redemptions: Redemptions,
    pub(super) blocked: BlockedTokens,
    pub(super) backend: Arc<dyn Backend>,
    pub(super) replicator: Replicator,
    pub(super) proxy: Proxy,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) guard: Guard,
    pub(super) promoted: Arc<Promoted>,
    pub(super) masters: Arc<Masters>,
    pub(super) board: Mutex<Board>,
    pub(super) hands: Hands,
    pub(super) moves: Arc<Moves>,
    pub(super) ready: Ready,
    pub(super) instances: Mutex<Vec<Instance>>,
    /// The volumes for which a step of the reconcile loop is under way.
    pub(super) busy: Mutex<HashSet<VolumeId>>,
    /// Whether this agent is about to end: it takes nothing over any more.
    pub(super) leaving: AtomicBool,
    /// Whether this node was removed from the cluster and has heard of it.
    pub(super) removed: RemovedFlag,
    /// The services that are frozen for a snapshot at this moment.
    pub(super) snapshotting: Arc<Mutex<HashSet<ServiceId>>>,
    /// Wakes the reconcile loop.
    pub(super) wake: Arc<Notify>,
    /// Told after each pass of the reconcile loop, for those who wait for what it brings about.
    pub(super) passed: watch::Sender<u64>,
    pub(super) random: Mutex<StdRng>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts")
            .field("me", &self.me)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Which instances have answered their health check, and what they were started as.
#[derive(Debug, Default)]
pub(super) struct Ready {
    set: Mutex<HashSet<(ServiceId, Epoch)>>,
    /// What each service was started as. An agent that has restarted does not know, and leaves what
    /// it finds alone.
    launched: Mutex<HashMap<ServiceId, ServiceSpec>>,
}

impl Ready {
    pub(super) fn note(&self, service: ServiceId, epoch: Epoch) {
        locked(&self.set).insert((service, epoch));
    }

    pub(super) fn launched(&self, spec: ServiceSpec) {
        locked(&self.launched).insert(spec.id, spec);
    }

    /// Whether the service was started as it is now wanted, as far as is known.
    pub(super) fn is_current(&self, spec: &ServiceSpec) -> bool {
        locked(&self.launched).get(&spec.id).is_none_or(|launched| launched == spec)
    }

    pub(super) fn has(&self, service: ServiceId, epoch: Epoch) -> bool {
        locked(&self.set).contains(&(service, epoch))
    }

    pub(super) fn forget(&self, service: ServiceId) {
        locked(&self.set).retain(|(s, _)| *s != service);
    }
}

impl Parts {
    pub(super) fn board(&self) -> MutexGuard<'_, Board> {
        locked(&self.board)
    }

    pub(super) fn map_view(&self) -> Arc<MapView> {
        self.map.view()
    }

    /// A node's name; of a node that is in no list, its short id.
    pub(super) fn name_of(&self, store: StoreId) -> Name {
        if store == self.me {
            return self.name.clone();
        }
        let listed = self.map_view().node(&store).map(|n| n.spec.name.clone());
        listed.or_else(|| Name::new(store.short()).ok()).unwrap_or_else(|| self.name.clone())
    }

    pub(super) fn region_of(&self, store: StoreId) -> Option<Name> {
        if store == self.me {
            return Some(self.region.clone());
        }
        self.map_view().node(&store).map(|n| n.spec.region.clone())
    }

    pub(super) fn lives(&self, store: StoreId) -> bool {
        let view = self.members.borrow();
        store == self.me || view.nodes.get(&store).is_some_and(|m| m.liveness == Liveness::Live)
    }

    /// Ten random bytes, for an id.
    pub(super) fn random10(&self) -> [u8; 10] {
        let mut bytes = [0; 10];
        locked(&self.random).fill_bytes(&mut bytes);
        bytes
    }

    /// A new identity for a snapshot.
    pub(super) fn guid(&self) -> Guid {
        let mut bytes = [0; 16];
        locked(&self.random).fill_bytes(&mut bytes);
        bytes
    }

    /// A secret.
    pub(super) fn random32(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        locked(&self.random).fill_bytes(&mut bytes);
        bytes
    }

    /// The round trip to a peer on the control port, if there is a connection.
    pub(super) fn control_rtt(&self, store: StoreId) -> Option<Duration> {
        self.control_peers.existing(store).map(|c| c.rtt())
    }

    /// The epoch that this node holds the volume under at this instant.
    pub(super) fn holds(&self, volume: VolumeId) -> Option<Epoch> {
        let held = self.lease(volume)?.held?;
        let valid = self.leases.holds(volume, held.epoch, self.clock.boot()).is_some();
        valid.then_some(held.epoch)
    }

    pub(super) fn lease(&self, volume: VolumeId) -> Option<LeaseView> {
        self.leases.view(volume)
    }

    pub(super) fn placement(&self, volume: VolumeId) -> Option<Placement> {
        self.map_view().placement(&volume).map(|p| Placement::clone(p))
    }

    pub(super) fn service_of(&self, volume: VolumeId) -> Option<ServiceSpec> {
        let view = self.map_view();
        view.services().find(|s| s.spec.volume.volume == volume).map(|s| s.spec.clone())
    }

    pub(super) fn instance_of(&self, volume: VolumeId) -> Option<Instance> {
        locked(&self.instances).iter().find(|i| i.volume == volume).cloned()
    }

    /// The ready instances under leases that hold.
    fn serving(&self) -> HashMap<ServiceId, Serving> {
        locked(&self.instances)
            .iter()
            .filter(|i| self.ready.has(i.service, i.epoch))
            .filter(|i| self.holds(i.volume) == Some(i.epoch))
            .map(|i| (i.service, Serving { address: i.address, epoch: i.epoch }))
            .collect()
    }

    /// Gives the proxy the routes as they are now.
    pub(super) fn refresh_routes(&self) {
        let view = self.map_view();
        let table = route_table(
            self.me,
            view.routes().map(|r| &r.spec),
            view.services().map(|s| &s.spec),
            &self.serving(),
            |volume| self.masters.of(volume),
        );
        self.proxy.set_routes(&table);
    }

    /// Reads again what runs here.
    pub(super) async fn refresh_instances(&self) {
        let fresh = self.engine.instances().await;
        *locked(&self.instances) = fresh;
    }

    /// This node's release of the volume was not taken up: it may claim it again.
    pub(super) fn reopen(&self, volume: VolumeId) {
        self.board().reopened(volume);
        self.wake.notify_one();
    }

    /// Waits until no step of the reconcile loop is under way for the volume. The volume has to be
    /// gripped, or a next one follows.
    pub(super) async fn settled(&self, volume: VolumeId) {
        let mut passed = self.passed.subscribe();
        while locked(&self.busy).contains(&volume) {
            if passed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Waits until the service is served, here or by another master; answers where.
    pub(super) async fn until_served(
        &self,
        service: ServiceId,
        volume: VolumeId,
        deadline: Duration,
    ) -> Option<StoreId> {
        let served = async {
            let mut passed = self.passed.subscribe();
            loop {
                if self.serving().contains_key(&service) {
                    return Some(self.me);
                }
                let elsewhere = self.masters.of(volume).filter(|(_, store)| *store != self.me);
                if let Some((_, store)) = elsewhere {
                    return Some(store);
                }
                passed.changed().await.ok()?;
            }
        };
        tokio::time::timeout(deadline, served).await.ok().flatten()
    }

    /// Waits until this node serves what runs with the volume, under a lease; answers the epoch.
    pub(super) async fn until_serving_here(
        &self,
        volume: VolumeId,
        deadline: Duration,
    ) -> Option<Epoch> {
        let serving = async {
            let mut passed = self.passed.subscribe();
            loop {
                if let Some(epoch) = self.serves(volume) {
                    return Some(epoch);
                }
                passed.changed().await.ok()?;
            }
        };
        tokio::time::timeout(deadline, serving).await.ok().flatten()
    }

    /// The epoch under which this node is a working master: the service, if there is one, answers.
    fn serves(&self, volume: VolumeId) -> Option<Epoch> {
        let epoch = self.holds(volume)?;
        if self.promoted.epoch(volume) != Some(epoch) {
            return None;
        }
        match self.service_of(volume) {
            None => Some(epoch),
            Some(service) => {
                self.serving().get(&service.id).filter(|s| s.epoch == epoch).map(|s| s.epoch)
            }
        }
    }

    /// How many volumes each node is master of.
    pub(super) fn loads(&self) -> BTreeMap<StoreId, usize> {
        let view = self.map_view();
        let mut loads = BTreeMap::new();
        for placement in view.placements() {
            *loads.entry(placement.holder).or_default() += 1;
        }
        loads
    }

    pub(super) fn now(&self) -> BootTime {
        self.clock.boot()
    }
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! The proxy as the agent holds it: routes in, gates worked, connections served. It composes the
//! parts and decides nothing about a request.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use flocker_base::{Clock, ServiceId, StoreId};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::ProxyConfig;
use crate::dial::{Dial, Stream};
use crate::gate::core::Limits;
use crate::gate::{Drained, Gate, Probe};
use crate::pool::{Pool, PoolContext, Route, Target};
use crate::route::{Place, RouteTable, host_key};
use crate::server;
use crate::service::{Service, ServiceStats};
use crate::throttle::Throttle;

/// The proxy. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
}

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Arc<ProxyConfig>,
    pub(crate) context: PoolContext,
    pub(crate) throttle: Throttle,
    table: ArcSwap<Table>,
    /// Changes to the table and to gates happen one at a time.
    changing: Mutex<HashMap<StoreId, Arc<Pool>>>,
}

/// The routes as requests look them up.
#[derive(Debug, Default)]
struct Table {
    hosts: HashMap<String, Arc<Service>>,
    services: HashMap<ServiceId, Arc<Service>>,
    /// Not in the routes (any more), but remembered: on hold, or with requests in flight.
    others: HashMap<ServiceId, Arc<Service>>,
}

impl Proxy {
    /// A proxy without routes. The configuration must be valid: see [`ProxyConfig::validate`].
    #[must_use]
    pub fn new(config: ProxyConfig, dial: Arc<dyn Dial>, clock: Arc<dyn Clock>) -> Self {
        let config = Arc::new(config);
        let context = PoolContext {
            config: Arc::clone(&config),
            dial,
            clock,
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
        };
        let shared = Shared {
            config,
            context,
            throttle: Throttle::default(),
            table: ArcSwap::from_pointee(Table::default()),
            changing: Mutex::new(HashMap::new()),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Replaces all routes. Requests held for a service whose place is now known go on, unless it
    /// is on hold; requests in flight are not touched.
    pub fn set_routes(&self, routes: &RouteTable) {
        self.shared.set_routes(routes);
    }

    /// Serves public connections until `shutdown`; then lets those in flight finish for
    /// `shutdown_grace` and returns. Cancel safe in that dropping it closes all of them.
    pub async fn serve(&self, listener: TcpListener, shutdown: CancellationToken) {
        server::serve(Arc::clone(&self.shared), listener, shutdown).await;
    }

    /// Serves the requests on a stream that the peer `from` opened, until it ends.
    pub async fn serve_forwarded(&self, from: StoreId, stream: Box<dyn Stream>) {
        server::serve_forwarded(Arc::clone(&self.shared), from, stream).await;
    }

    /// Holds the requests that come for a service from now on, until [`Proxy::release`].
    pub fn hold(&self, service: ServiceId) {
        self.shared.remembered(service).gate.hold();
    }

    /// Waits until no request of the service is in flight, at most for `deadline`, and then cuts
    /// its tunnels. Call [`Proxy::hold`] before, or new requests keep coming. Cancel safe.
    pub async fn drain(&self, service: ServiceId, deadline: Duration) -> Drained {
        let service = self.shared.remembered(service);
        let in_flight_left = service.gate.drain(deadline).await;
        Drained { in_flight_left, tunnels_cut: service.cut_tunnels() }
    }

    /// Lets the held requests go to wherever the service now is; they wait on if that is unknown.
    pub fn release(&self, service: ServiceId) {
        self.shared.remembered(service).gate.release();
    }

    /// What happened to a service's requests here; all zero for one that is unknown.
    #[must_use]
    pub fn stats(&self, service: ServiceId) -> ServiceStats {
        self.shared.service_or_other(service).map(|service| service.stats()).unwrap_or_default()
    }

    /// Ends what works behind the scenes (probes, the care of unused connections, forwarded
    /// streams) and waits for it, at most for `deadline`.
    pub async fn close(&self, deadline: Duration) {
        let context = &self.shared.context;
        context.closing.cancel();
        context.tasks.close();
        if tokio::time::timeout(deadline, context.tasks.wait()).await.is_err() {
            tracing::warn!(?deadline, "the proxy's background work did not end in time");
        }
    }
}

impl Shared {
    /// The service that a host name (as [`host_key`] makes it) belongs to.
    pub(crate) fn host(&self, key: &str) -> Option<Arc<Service>> {
        self.table.load().hosts.get(key).cloned()
    }

    /// A service that the routes name.
    pub(crate) fn service(&self, id: ServiceId) -> Option<Arc<Service>> {
        self.table.load().services.get(&id).cloned()
    }

    /// Tries the place until it answers or nobody waits for it any more.
    pub(crate) fn probe(&self, service: &Arc<Service>, probe: Probe) {
        let first = self.config.probe_first;
        let longest = self.config.probe_longest;
        let gate = Arc::clone(&service.gate);
        let probing = async move {
            let mut pause = first.saturating_mul(1 << probe.attempt().min(16)).min(longest);
            loop {
                tokio::time::sleep(pause).await;
                if !gate.wants(&probe) {
                    return;
                }
                match probe.route.pool().connect().await {
                    Ok(upstream) => {
                        upstream.give_back(&probe.route);
                        gate.revived(&probe);
                        return;
                    }
                    Err(error) => tracing::debug!(%error, "still unreachable"),
                }
                pause = pause.saturating_mul(2).min(longest);
            }
        };
        let closing = self.context.closing.clone();
        self.context.tasks.spawn(closing.run_until_cancelled_owned(probing));
    }

    fn set_routes(&self, routes: &RouteTable) {
        let mut peers = self.changing();
        let old = self.table.load_full();
        let mut table = Table::default();
        let named = routes.hosts.values().chain(routes.services.keys());
        for &id in named {
            table.services.entry(id).or_insert_with(|| {
                let known = old.services.get(&id).or_else(|| old.others.get(&id));
                known.cloned().unwrap_or_else(|| self.new_service(id))
            });
        }
        for (host, id) in &routes.hosts {
            match (host_key(host), table.services.get(id)) {
                (Some(key), Some(service)) => {
                    table.hosts.insert(key.into_owned(), Arc::clone(service));
                }
                _ => tracing::warn!(host, "a route's host is no valid host name: left out"),
            }
        }
        for (id, service) in old.services.iter().chain(&old.others) {
            if !table.services.contains_key(id) && !service.is_forgettable() {
                table.others.insert(*id, Arc::clone(service));
            }
        }
        let removed: Vec<_> = old
            .services
            .iter()
            .filter(|(id, _)| !table.services.contains_key(id))
            .map(|(_, service)| Arc::clone(service))
            .collect();
        let services = table.services.clone();
        // Requests find the new table before any gate opens onto a new place.
        self.table.store(Arc::new(table));
        for (id, service) in &services {
            if let Some(name) = routes.names.get(id) {
                service.set_label(name);
            }
            let place = routes.services.get(id).copied().unwrap_or(Place::Unknown);
            service.gate.place(self.route(&mut peers, place));
        }
        for service in removed {
            service.gate.remove();
        }
        peers.retain(|node, _| {
            routes.services.values().any(|place| *place == Place::Remote { node: *node })
        });
    }

    fn route(&self, peers: &mut HashMap<StoreId, Arc<Pool>>, place: Place) -> Option<Arc<Route>> {
        let new = |target| Pool::new(target, self.context.clone());
        let pool = match place {
            Place::Unknown => return None,
            Place::Local { address, .. } => new(Target::Backend(address)),
            Place::Remote { node } => {
                Arc::clone(peers.entry(node).or_insert_with(|| new(Target::Peer(node))))
            }
        };
        Some(Arc::new(Route::new(place, pool)))
    }

    fn service_or_other(&self, id: ServiceId) -> Option<Arc<Service>> {
        let table = self.table.load();
        table.services.get(&id).or_else(|| table.others.get(&id)).cloned()
    }

    /// The service, remembered from now on even if the routes do not name it.
    fn remembered(&self, id: ServiceId) -> Arc<Service> {
        let _changing = self.changing();
        if let Some(service) = self.service_or_other(id) {
            return service;
        }
        let service = self.new_service(id);
        let old = self.table.load_full();
        let mut others = old.others.clone();
        others.insert(id, Arc::clone(&service));
        let (hosts, services) = (old.hosts.clone(), old.services.clone());
        self.table.store(Arc::new(Table { hosts, services, others }));
        service
    }

    fn new_service(&self, id: ServiceId) -> Arc<Service> {
        let limits = Limits {
            max_held: self.config.max_held,
            max_held_bytes: self.config.max_held_bytes,
            max_hold: self.config.max_hold,
        };
        Service::new(id, Gate::new(limits, Arc::clone(&self.context.clock)))
    }

    fn changing(&self) -> MutexGuard<'_, HashMap<StoreId, Arc<Pool>>> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! The control plane on a runtime thread of its own: endpoint, membership, map, leases. Nothing
//! that moves data or runs services may run here, so that no load delays a heartbeat.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use flocker_base::{Clock, Name, StoreId};
use flocker_gossip::addresses::AddressBookStore;
use flocker_gossip::control::{Admission, Control, Handler, Kind, Wire};
use flocker_gossip::identity::NodeIdentity;
use flocker_gossip::join::{BlockedTokens, Doorkeeper, Redemptions, Seed};
use flocker_gossip::lease::{self, LeaseConfig, LeaseEvent, Leases};
use flocker_gossip::map::quarantine::QuarantineConfig;
use flocker_gossip::map::room::DiskOf;
use flocker_gossip::map::sync::{self, Peer, PeerView};
use flocker_gossip::map::{Edit, Map, MapConfig};
use flocker_gossip::membership::{
    self, Liveness, LocalNode, Membership, MembershipConfig, Scope, View, lookout, starts,
};
use flocker_gossip::model::{NodeFacts, NodeSpec};
use flocker_gossip::seeds::Seeker;
use flocker_gossip::store::StateDb;
use flocker_quic::{Endpoint, EndpointConfig, Peers};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::advertised::{self, Advertised};
use super::attendance;
use super::capacity;
use super::home::Home;
use super::records::MeshRecords;
use super::revocation::{Refused, without_removed};

/// What the control plane is made from.
pub(super) struct Setup {
    pub(super) bind: SocketAddr,
    pub(super) advertised: Advertised,
    pub(super) http: Option<SocketAddr>,
    pub(super) zone: Option<Name>,
    /// Where volumes are: its disk is part of the node's capacity.
    pub(super) folder: PathBuf,
    pub(super) quarantine: QuarantineConfig,
    pub(super) leases: LeaseConfig,
    pub(super) answers: Arc<dyn Handler>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) seeds: [u64; 2],
}

/// What the rest of the agent uses of it.
pub(super) struct ControlPlane {
    pub(super) endpoint: Endpoint,
    pub(super) wire: Arc<dyn Wire>,
    pub(super) peers: Peers,
    pub(super) map: Map,
    pub(super) leases: Leases,
    pub(super) lease_events: mpsc::Receiver<LeaseEvent>,
    pub(super) members: watch::Receiver<Arc<View>>,
    pub(super) member_events: broadcast::Receiver<membership::Event>,
    pub(super) book: AddressBookStore,
    pub(super) standing: Standing,
}

/// What is kept of who may be of the cluster.
pub(super) struct Standing {
    pub(super) redemptions: Redemptions,
    pub(super) blocked: BlockedTokens,
    pub(super) admission: Arc<dyn Admission>,
    pub(super) refused: Refused,
}

/// The thread that it runs on.
#[derive(Debug)]
pub(super) struct ControlThread {
    stop: CancellationToken,
    /// Says why, when the control plane has ended.
    pub(super) ended: oneshot::Receiver<Result<()>>,
    thread: std::thread::JoinHandle<()>,
}

impl ControlThread {
    /// Asks it to end and waits for it. It closes its connections, so peers learn at once.
    pub(super) async fn stop(self) {
        self.stop.cancel();
        let thread = self.thread;
        let joined = tokio::task::spawn_blocking(move || thread.join()).await;
        if !matches!(joined, Ok(Ok(()))) {
            tracing::error!("the control plane's thread panicked");
        }
    }
}

/// Starts it.
pub(super) async fn start(home: &Home, setup: Setup) -> Result<(ControlPlane, ControlThread)> {
    let disk = Arc::new(DiskOf(home.folder.clone()));
    let config = MapConfig { disk, quarantine: setup.quarantine };
    let clock = Arc::clone(&setup.clock);
    let map = Map::open_with(home.db.open_map()?, home.db.store_id(), clock, config)?;
    let book = AddressBookStore::open(home.db.database())?;
    book.learn_all(&home.known)?;
    let own = setup.advertised;
    book.learn(home.db.store_id(), &own.controls(), &own.datas())?;
    introduce(home, &map)?;
    let builder = Builder {
        node: home.identity.clone(),
        db: home.db.clone(),
        name: home.name.clone(),
        region: home.region.clone(),
        map,
        book,
        seeds: home.seeds.clone(),
        setup,
    };
    let stop = CancellationToken::new();
    let (built, ready) = oneshot::channel();
    let (end, ended) = oneshot::channel();
    let token = stop.clone();
    let thread = std::thread::Builder::new()
        .name("control".to_owned())
        .spawn(move || {
            let outcome = run_thread(builder, built, &token);
            // Nobody listens any more once the agent itself ends.
            drop(end.send(outcome));
        })
        .context("cannot start the control plane's thread")?;
    match ready.await {
        Ok(plane) => Ok((plane, ControlThread { stop, ended, thread })),
        Err(_gone) => match ended.await {
            Ok(Err(error)) => Err(error),
            Ok(Ok(())) | Err(_) => Err(anyhow!("the control plane ended before it was up")),
        },
    }
}

/// Puts this node into the map, if it is not there or has changed.
fn introduce(home: &Home, map: &Map) -> Result<()> {
    let store = home.db.store_id();
    let spec = NodeSpec::new(store, home.name.clone(), home.region.clone());
    // What the map already says of this node is not said again. A joiner says the same as the node
    // that admitted it, and equal values are no conflict.
    if map.view().node(&store).is_some() {
        return Ok(());
    }
    map.edit(vec![Edit::PutNode(spec)]).context("cannot record this node")
}

fn run_thread(
    builder: Builder,
    built: oneshot::Sender<ControlPlane>,
    stop: &CancellationToken,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the control plane's runtime")?;
    runtime.block_on(async {
        let (plane, mut work) = builder.build(stop)?;
        if built.send(plane).is_err() {
            return Ok(());
        }
        let mut outcome = Ok(());
        while let Some(ended) = work.join_next().await {
            let ended = ended.map_err(anyhow::Error::from).and_then(|(name, result)| {
                result.with_context(|| format!("the control plane's {name} failed"))
            });
            if let Err(error) = ended {
                tracing::error!(error = format!("{error:#}"), "the control plane stops");
                outcome = Err(error);
                stop.cancel();
            } else if !stop.is_cancelled() {
                outcome = Err(anyhow!("a part of the control plane ended by itself"));
                stop.cancel();
            }
        }
        outcome
    })
}

struct Builder {
    node: NodeIdentity,
    db: StateDb,
    name: Name,
    region: Name,
    map: Map,
    book: AddressBookStore,
    seeds: Vec<Seed>,
    setup: Setup,
}

type Work = JoinSet<(&'static str, Result<()>)>;

impl Builder {
    fn build(self, stop: &CancellationToken) -> Result<(ControlPlane, Work)> {
        let Self { node, db, name, region, map, book, seeds, setup } = self;
        let identity = node.to_quic();
        let endpoint = listen(&setup, &identity)?;
        let mesh = Arc::new(MeshRecords::of(&setup, &db, &node, &map, &book));
        let control = Control::new(endpoint.clone(), book.control(), mesh.clone());
        let wire = control.wire();
        let own_region = region.clone();
        let facts = facts(name, region, &setup);
        let advertised = setup.advertised;
        let local = LocalNode {
            cluster: identity.cluster,
            incarnation: db.incarnation(),
            facts,
            seeds: book.stores(),
            announce_after: starts::note(&db.database(), setup.clock.wall())?,
        };
        let (config, clock) = (MembershipConfig::default(), Arc::clone(&setup.clock));
        let (membership, member_handlers) =
            Membership::new(config, local, Arc::clone(&wire), book.clone(), clock)?;
        let mut work = JoinSet::new();
        let members = membership.view();
        let watches = spawn_lookouts(&mut work, &membership, &wire, &setup, stop);
        let peer_view = Arc::new(MemberPeers { members: members.clone(), region: own_region });
        let [map_seed, lease_seed] = setup.seeds;
        let (map_sync, push, pull) =
            sync::build(map.clone(), Arc::clone(&wire), peer_view, map_seed);
        let (leases, driver, lease_handler) = lease::start(
            setup.leases,
            &db,
            Arc::clone(&wire),
            Arc::clone(&setup.clock),
            lease_seed,
        )?;
        let clock = Arc::clone(&setup.clock);
        let doorkeeper = Doorkeeper::new(node, mesh.clone(), mesh.clone(), clock);
        let standing = mesh.standing(doorkeeper.blocked());
        let handlers = member_handlers.into_iter().chain(watches);
        let control = handlers.fold(control, |c, (kind, h)| c.handle(kind, h));
        let control = control
            .handle(Kind::MapPush, push)
            .handle(Kind::MapPull, pull)
            .handle(Kind::Lease, lease_handler)
            .handle(Kind::Agent, setup.answers)
            .joiners(Arc::new(doorkeeper));
        let peers = control.peers();
        let seeker = Seeker::new(&endpoint, &peers, &book, &members, seeds, &setup.clock);
        let lease_events = leases.events();
        spawn_map_and_leases(&mut work, map_sync, driver, stop);
        spawn_seeking(&mut work, seeker, advertised, &membership, &book, stop);
        let member_events = membership.events();
        spawn_load(&mut work, &membership, setup.folder, stop);
        spawn_membership(&mut work, membership, map.clone(), control, stop);
        let members = spawn_list(&mut work, db.store_id(), members, &map, stop);
        let plane = ControlPlane {
            endpoint,
            wire,
            peers,
            map,
            leases,
            lease_events,
            members,
            member_events,
            book,
            standing,
        };
        Ok((plane, work))
    }
}

fn listen(setup: &Setup, identity: &flocker_quic::Identity) -> Result<Endpoint> {
    let config = EndpointConfig { admit_joiners: true, ..EndpointConfig::control(setup.bind) };
    let clock = Arc::clone(&setup.clock);
    Endpoint::bind_with_clock(&config, identity, clock).map_err(super::in_use)
}

fn facts(name: Name, region: Name, setup: &Setup) -> NodeFacts {
    NodeFacts {
        name,
        region,
        control: setup.advertised.control,
        data: setup.advertised.data,
        http: setup.http,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        zone: setup.zone.clone(),
        public: setup.advertised.public,
        capacity: capacity::measure(&setup.folder),
    }
}

fn spawn_load(work: &mut Work, membership: &Membership, folder: PathBuf, stop: &CancellationToken) {
    let (t, m) = (stop.clone(), membership.clone());
    work.spawn(async move { ("load", capacity::announce_load(&m, &folder, t).await) });
}

fn spawn_map_and_leases(
    work: &mut Work,
    map_sync: sync::MapSync,
    driver: lease::LeaseDriver,
    stop: &CancellationToken,
) {
    let t = stop.clone();
    work.spawn(async move { ("map", map_sync.run(t).await.map_err(Into::into)) });
    let t = stop.clone();
    work.spawn(async move {
        driver.run(t).await;
        ("leases", Ok(()))
    });
}

/// Where nodes are found, and where this one is.
fn spawn_seeking(
    work: &mut Work,
    seeker: Seeker,
    advertised: Advertised,
    membership: &Membership,
    book: &AddressBookStore,
    stop: &CancellationToken,
) {
    let t = stop.clone();
    work.spawn(async move { ("seeds", seeker.run(t).await.map_err(Into::into)) });
    let follow = advertised::follow(advertised, membership.clone(), book.clone(), stop.clone());
    work.spawn(async move { ("addresses", follow.await) });
}

/// The list of members, which names none that was removed.
fn spawn_list(
    work: &mut Work,
    me: StoreId,
    members: watch::Receiver<Arc<View>>,
    map: &Map,
    stop: &CancellationToken,
) -> watch::Receiver<Arc<View>> {
    let (shown, follow) = without_removed(me, members, map);
    let t = stop.clone();
    work.spawn(async move {
        let ended = tokio::select! {
            ended = follow => ended,
            () = t.cancelled() => Ok(()),
        };
        ("list of members", ended)
    });
    shown
}

fn spawn_membership(
    work: &mut Work,
    membership: Membership,
    map: Map,
    control: Control,
    stop: &CancellationToken,
) {
    let (t, m, others) = (stop.clone(), map.clone(), membership.view());
    work.spawn(async move { ("attendance", attendance::note_contacts(m, others, t).await) });
    // The endpoint ends after membership, which says goodbye over it.
    let until = CancellationToken::new();
    let endpoint = until.clone().drop_guard();
    work.spawn(async move {
        control.run(until).await;
        ("endpoint", Ok(()))
    });
    let (t, m) = (stop.clone(), membership.clone());
    work.spawn(async move {
        let result = m.run(t).await.map_err(Into::into);
        drop(endpoint);
        ("membership", result)
    });
    let t = stop.clone();
    work.spawn(async move { ("announcer", announce_root(map, membership, t).await) });
}

/// Starts to watch the members of the region, and the bridges while this node is one. Gives the
/// handlers of the watches' messages.
fn spawn_lookouts(
    work: &mut Work,
    membership: &Membership,
    wire: &Arc<dyn Wire>,
    setup: &Setup,
    stop: &CancellationToken,
) -> [(Kind, Arc<dyn Handler>); 2] {
    let seed = setup.seeds.iter().fold(1, |all: u64, seed| all.rotate_left(21) ^ seed);
    [(Scope::Region, seed), (Scope::Bridges, !seed)].map(|(scope, seed)| {
        let clock = Arc::clone(&setup.clock);
        let (lookout, handler) = lookout(scope, membership.clone(), Arc::clone(wire), clock, seed);
        let t = stop.clone();
        work.spawn(async move {
            lookout.run(t).await;
            ("lookout", Ok(()))
        });
        handler
    })
}

/// Announces the map's root whenever it changes, so that peers see who differs.
async fn announce_root(map: Map, membership: Membership, stop: CancellationToken) -> Result<()> {
    let mut changes = map.watch();
    loop {
        let root = changes.borrow_and_update().root();
        membership.set_map_root(root)?;
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = changes.changed() => changed.context("the map is gone")?,
        }
    }
}

/// The live peers and their roots, for the map's synchronisation.
struct MemberPeers {
    members: watch::Receiver<Arc<View>>,
    region: Name,
}

impl PeerView for MemberPeers {
    fn live(&self) -> Vec<Peer> {
        let view = self.members.borrow();
        let live = view.nodes.iter().filter(|(_, m)| m.liveness == Liveness::Live);
        live.map(|(store, m)| Peer {
            store: *store,
            region: m.facts.region.clone(),
            root: m.map_root,
        })
        .collect()
    }

    fn region(&self) -> Name {
        self.region.clone()
    }
}

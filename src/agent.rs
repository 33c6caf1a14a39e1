//! The agent. This is the only file that composes the concrete parts; it decides nothing about a
//! volume, a service or a lease.
//!
//! ```text
//!   home ──▶ control plane (own thread: endpoint, membership, map, leases)
//!                 │ handles
//!                 ▼
//!   Parts ◀── guard, engine, backend, replicator, proxy, data port
//!     │
//!     ├─ volumes: look ─▶ reconcile ─▶ executor       (what to do, and doing it)
//!     ├─ guarding: leases ─▶ guard                    (until when a service may run)
//!     └─ operations, answers: API and other agents    (what people and peers ask)
//! ```

use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use flocker_base::{Clock, SystemClock};
use flocker_gossip::lease::LeaseConfig;
use flocker_gossip::map::quarantine::QuarantineConfig;
use flocker_proxy::{Proxy, ProxyConfig};
use flocker_quic::{Endpoint, EndpointConfig, Peers};
use flocker_replicate::dir::DirBackend;
use flocker_replicate::{Backend, Replicator, ReplicatorConfig};
use rand::rngs::{StdRng, SysRng};
use rand::{Rng as _, SeedableRng as _};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};

mod advertised;
pub mod allocate;
mod answers;
mod attendance;
mod capacity;
mod care;
mod certificate;
mod control_plane;
mod data_port;
pub mod deploy;
mod events;
mod executor;
mod export;
mod fence;
mod guarding;
mod hands;
mod home;
mod leaving;
mod lookup;
mod masters;
mod mender;
pub mod mending;
mod moving;
mod nodes;
mod observed;
mod operations;
mod outside;
mod parts;
mod promoted;
mod promoting;
pub mod reconcile;
mod records;
pub mod repair;
mod reports;
mod revocation;
mod routing;
pub mod rpc;
mod seeds;
mod signals;
pub mod status;
mod story;
mod tokens;
mod volumes;
pub mod voting;
mod waiting;

use advertised::Advertised;
use answers::{Answers, Moves};
use certificate::Certificate;
use control_plane::{ControlPlane, ControlThread, Setup};
use data_port::{DataDialer, DataPort};
use events::EventLog;
use fence::LeaseFence;
use guarding::Fencing;
use hands::Hands;
use home::Home;
use masters::Masters;
use operations::AgentOperations;
use parts::{Parts, Ready};
use promoted::Promoted;
use revocation::{RemovedFlag, Revocation};

use crate::api::server::{ServerConfig, serve};
use crate::api::socket::ApiSocket;
use crate::api::{ApiError, ErrorCode};
use crate::cli::options::UpOptions;
use crate::guard::GuardStatus;
use crate::supervisor::{BackOff, Supervisor};

/// Time for each task to end when the agent stops.
const STOP_EACH: Duration = Duration::from_secs(3);

/// Runs the agent until it is told to stop: by SIGINT, SIGTERM, or the end of its parent if the
/// options say so.
///
/// # Errors
/// What keeps it from starting, or what made it stop.
pub async fn run(options: UpOptions) -> Result<()> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let random = StdRng::try_from_rng(&mut SysRng).context("the system gives no randomness")?;
    let mut agent = Agent::start(&options, clock, random).await?;
    agent.greet(&options);
    let why = agent.wait(&options).await;
    let hand_over = !matches!(why, Ok(End::ParentGone));
    agent.stop(hand_over).await;
    why.map(drop)
}

/// Why an agent ends by wish.
enum End {
    /// A signal.
    Told,
    /// Whoever started it is gone.
    ParentGone,
}

struct Agent {
    parts: Arc<Parts>,
    supervisor: Supervisor,
    control: Option<ControlThread>,
    founded: bool,
}

impl Agent {
    async fn start(options: &UpOptions, clock: Arc<dyn Clock>, mut random: StdRng) -> Result<Self> {
        // Whoever has the socket has the node: taken first, so that a second agent changes nothing.
        let socket = ApiSocket::bind(&options.socket).await?;
        let http = bind_http(options.http)?;
        let home = Home::open(options, &*clock, &mut random).await?;
        let supervisor = Supervisor::new(Arc::clone(&clock), BackOff::default())
            .map_err(|e| anyhow!("the supervisor's settings: {e}"))?;
        let answers = Arc::new(Answers::new(tokio::runtime::Handle::current()));
        let leases = LeaseConfig::of(options.lease);
        let fencing = Fencing::of(&leases);
        let setup = Setup {
            bind: SocketAddr::new(options.bind, options.control_port),
            advertised: Advertised::of(options),
            http: http.as_ref().map(|(address, _)| *address),
            zone: options.zone.clone(),
            folder: home.folder.clone(),
            quarantine: QuarantineConfig { after: options.quarantine_after },
            leases,
            answers: answers.clone(),
            clock: Arc::clone(&clock),
            seeds: [random.next_u64(), random.next_u64()],
        };
        let (plane, control) = control_plane::start(&home, setup).await?;
        let started =
            Self::compose(options, &home, &plane, &supervisor, clock, random, fencing).await;
        let (parts, data) = match started {
            Ok(started) => started,
            Err(error) => {
                supervisor.shutdown(STOP_EACH).await;
                control.stop().await;
                return Err(error);
            }
        };
        answers.ready(Arc::clone(&parts));
        let agent = Self { parts, supervisor, control: Some(control), founded: home.founded };
        agent.spawn_tasks(plane, data, http, fencing);
        let authority = home.identity.authority();
        agent.spawn_api(socket, (authority.fingerprint(), authority.is_outside()));
        observed::spawn(&agent.supervisor, &agent.parts);
        Ok(agent)
    }

    /// Builds the parts on top of the control plane.
    async fn compose(
        options: &UpOptions,
        home: &Home,
        plane: &ControlPlane,
        supervisor: &Supervisor,
        clock: Arc<dyn Clock>,
        mut random: StdRng,
        fencing: Fencing,
    ) -> Result<(Arc<Parts>, (Endpoint, Peers))> {
        let wake = Arc::new(Notify::new());
        let promoted = Arc::new(Promoted::open(&home.folder.join("promoted"))?);
        let masters = Arc::new(Masters::default());
        let endpoint = data_endpoint(options, home, Arc::clone(&clock))?;
        let endpoints = vec![plane.endpoint.clone(), endpoint.clone()];
        let data_peers = Peers::new(endpoint.clone(), plane.book.data());
        let dialer = DataDialer::new(data_peers.clone(), Arc::clone(&plane.standing.admission));
        let fence = LeaseFence::new(plane, &promoted, &masters, &clock, &wake);
        let backend: Arc<dyn Backend> = Arc::new(DirBackend::open(home.folder.join("volumes"))?);
        let mut seed = [0; 32];
        random.fill_bytes(&mut seed);
        let replicator = Replicator::new(
            ReplicatorConfig::default(),
            Arc::clone(&backend),
            Arc::new(fence),
            Arc::new(dialer.clone()),
            Arc::clone(&clock),
            seed,
        )?;
        let proxy = Proxy::new(ProxyConfig::default(), Arc::new(dialer), Arc::clone(&clock));
        let (engine, guard) =
            guarding::engine_and_guard(options, home, plane, supervisor, &clock, fencing).await?;
        let parts = Parts {
            me: home.db.store_id(),
            name: home.name.clone(),
            region: home.region.clone(),
            zone: options.zone.clone(),
            cluster: home.identity.cluster(),
            host: advertised::service_address(options.bind),
            seeds: vec![Advertised::of(options).control.to_string()],
            certificate: Arc::new(Certificate::of(home, options, endpoints, Arc::clone(&clock))),
            started: clock.boot(),
            replace_after: options.replace_after,
            clock,
            events: EventLog::default(),
            map: plane.map.clone(),
            leases: plane.leases.clone(),
            members: plane.members.clone(),
            wire: Arc::clone(&plane.wire),
            control_peers: plane.peers.clone(),
            redemptions: plane.standing.redemptions.clone(),
            blocked: plane.standing.blocked.clone(),
            backend,
            replicator,
            proxy,
            engine: Arc::new(engine),
            guard,
            promoted,
            masters,
            board: Mutex::default(),
            hands: Hands::new(Arc::clone(&wake)),
            moves: Arc::new(Moves::default()),
            ready: Ready::default(),
            instances: Mutex::default(),
            busy: Mutex::default(),
            leaving: AtomicBool::new(false),
            removed: RemovedFlag::default(),
            snapshotting: Arc::default(),
            wake,
            passed: watch::Sender::new(0),
            random: Mutex::new(random),
        };
        Ok((Arc::new(parts), (endpoint, data_peers)))
    }

    fn spawn_tasks(
        &self,
        plane: ControlPlane,
        (endpoint, peers): (Endpoint, Peers),
        http: Option<(SocketAddr, StdListener)>,
        fencing: Fencing,
    ) {
        let parts = &self.parts;
        let revocation = Arc::new(Revocation {
            parts: Arc::clone(parts),
            data_peers: peers.clone(),
            book: plane.book.clone(),
            refused: plane.standing.refused.clone(),
        });
        self.supervisor
            .spawn("revocation", move |stop| revocation::run(Arc::clone(&revocation), stop));
        let (p, e, admission) = (Arc::clone(parts), endpoint, plane.standing.admission);
        self.supervisor.spawn("data port", move |stop| {
            let (p, e, peers) = (Arc::clone(&p), e.clone(), peers.clone());
            let port = DataPort {
                replicator: p.replicator.clone(),
                proxy: p.proxy.clone(),
                admission: Arc::clone(&admission),
            };
            async move {
                data_port::run(e.clone(), peers, port, stop).await;
                e.close();
                Ok(())
            }
        });
        let p = Arc::clone(parts);
        self.supervisor
            .spawn("certificate", move |stop| certificate::run(Arc::clone(&p.certificate), stop));
        let p = Arc::clone(parts);
        self.supervisor.spawn("replication", move |stop| {
            let p = Arc::clone(&p);
            async move {
                p.replicator.run(stop).await;
                Ok(())
            }
        });
        let p = Arc::clone(parts);
        self.supervisor
            .spawn("guard deadlines", move |stop| guarding::run(Arc::clone(&p), fencing, stop));
        let p = Arc::clone(parts);
        self.supervisor.spawn("tokens", move |stop| tokens::clear(Arc::clone(&p), stop));
        let events = Arc::new(tokio::sync::Mutex::new(plane.lease_events));
        let p = Arc::clone(parts);
        self.supervisor.spawn("volumes", move |stop| {
            let (p, events) = (Arc::clone(&p), Arc::clone(&events));
            async move { volumes::run(p, &mut *events.lock().await, stop).await }
        });
        let members = Arc::new(tokio::sync::Mutex::new(plane.member_events));
        let p = Arc::clone(parts);
        self.supervisor.spawn("events", move |stop| {
            let (p, members) = (Arc::clone(&p), Arc::clone(&members));
            async move {
                p.events.follow(&mut *members.lock().await, &*p.clock, stop).await;
                Ok(())
            }
        });
        let p = Arc::clone(parts);
        self.supervisor.spawn("waiting edits", move |stop| waiting::run(Arc::clone(&p), stop));
        if let Some((_, listener)) = http {
            let p = Arc::clone(parts);
            self.supervisor.spawn("http proxy", move |stop| {
                let listener = listener.try_clone().and_then(TcpListener::from_std);
                let proxy = p.proxy.clone();
                async move {
                    proxy.serve(listener.context("cannot listen for HTTP")?, stop).await;
                    Ok(())
                }
            });
        }
    }

    fn spawn_api(&self, socket: ApiSocket, authority: ([u8; 32], bool)) {
        let operations = Arc::new(AgentOperations { parts: Arc::clone(&self.parts), authority });
        let path = socket.path().to_owned();
        let first = Arc::new(Mutex::new(Some(socket)));
        self.supervisor.spawn("api", move |stop| {
            let (operations, path) = (operations.clone(), path.clone());
            let taken = parts::locked(&first).take();
            async move {
                let socket = match taken {
                    Some(socket) => socket,
                    None => ApiSocket::bind(&path).await?,
                };
                serve(socket, operations, ServerConfig::default(), stop).await;
                Ok(())
            }
        });
    }

    /// Says where the node is and, on the first one, how the next joins.
    fn greet(&self, options: &UpOptions) {
        let parts = &self.parts;
        tracing::info!(
            node = %parts.name, region = %parts.region, store = %parts.me,
            cluster = %parts.cluster, control = %parts.seeds[0], "the agent is up"
        );
        let mut text = format!(
            "{} is up in region {} (cluster {})\n  control {}  data {}/udp  http {}\n  socket {}\n",
            parts.name,
            parts.region,
            parts.cluster.short(),
            parts.seeds[0],
            options.data_port,
            options.http.map_or_else(|| "off".to_owned(), |h| h.to_string()),
            options.socket.display(),
        );
        if self.founded {
            text.push_str(
                "A new cluster. To add a node, make a token here and run `up` there:\n  \
                 flocker token create\n  flocker up --join TOKEN@HOST\n",
            );
        }
        anstream::print!("{text}");
    }

    /// Waits for a reason to stop; an error if it is not a wish.
    async fn wait(&mut self, options: &UpOptions) -> Result<End> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut int = signal(SignalKind::interrupt()).context("cannot hear signals")?;
        let mut term = signal(SignalKind::terminate()).context("cannot hear signals")?;
        let mut guard = self.parts.guard.status();
        let Some(control) = &mut self.control else { bail!("the control plane does not run") };
        tokio::select! {
            _ = int.recv() => tracing::info!("SIGINT: stopping"),
            _ = term.recv() => tracing::info!("SIGTERM: stopping"),
            () = parent_gone(), if options.exit_with_parent => {
                tracing::info!("the parent is gone: stopping");
                return Ok(End::ParentGone);
            }
            ended = &mut control.ended => match ended {
                Ok(Ok(())) | Err(_) => bail!("the control plane has ended"),
                Ok(Err(error)) => return Err(error),
            },
            superseded = guard.wait_for(|s| *s == GuardStatus::Superseded) => {
                superseded.context("the guard's link has ended")?;
                bail!("a newer agent runs on this node: this one stops");
            }
        }
        Ok(End::Told)
    }

    async fn stop(mut self, hand_over: bool) {
        leaving::leave(&self.parts, hand_over).await;
        let aborted = self.supervisor.shutdown(STOP_EACH).await;
        if !aborted.is_empty() {
            tracing::warn!(?aborted, "tasks that did not end in time");
        }
        self.parts.proxy.close(STOP_EACH).await;
        if let Some(control) = self.control.take() {
            control.stop().await;
        }
    }
}

fn data_endpoint(options: &UpOptions, home: &Home, clock: Arc<dyn Clock>) -> Result<Endpoint> {
    let config = EndpointConfig::data(SocketAddr::new(options.bind, options.data_port));
    Endpoint::bind_with_clock(&config, &home.identity.to_quic(), clock).map_err(in_use)
}

/// Binds the proxy's port early, so that a port already taken ends the start with a clear error.
fn bind_http(address: Option<SocketAddr>) -> Result<Option<(SocketAddr, StdListener)>> {
    let Some(address) = address else { return Ok(None) };
    let listener = StdListener::bind(address).map_err(|e| {
        let taken = e.kind() == std::io::ErrorKind::AddrInUse;
        let code = if taken { ErrorCode::AddressInUse } else { ErrorCode::Internal };
        ApiError::new(code, format!("cannot take HTTP at {address}: {e}"))
            .hint("stop what uses it, or choose another address with --http")
    })?;
    listener.set_nonblocking(true).context("cannot use the HTTP socket")?;
    let bound = listener.local_addr().context("cannot use the HTTP socket")?;
    Ok(Some((bound, listener)))
}

/// A port that is taken, as an error with its own exit code.
fn in_use(error: flocker_quic::QuicError) -> anyhow::Error {
    let taken = matches!(error, flocker_quic::QuicError::PortTaken { .. });
    if taken {
        return ApiError::new(ErrorCode::AddressInUse, error.to_string())
            .hint("stop what uses it, or choose others with --control-port and --data-port")
            .into();
    }
    error.into()
}

/// Ends when standard input does: the parent holds its other end.
async fn parent_gone() {
    use tokio::io::AsyncReadExt as _;
    let mut input = tokio::io::stdin();
    let mut ignored = [0; 64];
    while matches!(input.read(&mut ignored).await, Ok(1..)) {}
}

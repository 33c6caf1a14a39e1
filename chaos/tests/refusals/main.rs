//! Who is not of the cluster, and who is but breaks the protocol, is refused by a running agent:
//! with a clear line in that agent's log, and without any effect. All of it over real sockets.

mod flood;
mod identities;
mod joins;
mod members;
mod stranger;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use flocker::api::{Liveness, Status};
use flocker_base::{Clock as _, ClusterId, Epoch, Name, StoreId, SystemClock};
use flocker_chaos::http::HttpClient;
use flocker_chaos::invariants::intact::Deployed;
use flocker_chaos::log::Mark;
use flocker_chaos::mesh::{HOST, Mesh, PATIENCE, running_on, settled, since};
use flocker_chaos::plan;
use flocker_chaos::say;
use flocker_gossip::identity::{Authority, NodeIdentity};
use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};

const NODES: [(&str, &str); 3] = [("eu-1", "eu"), ("eu-2", "eu"), ("us-1", "us")];
const CONTROL: &[u8] = b"flocker-control/1";
const DATA: &[u8] = b"flocker-data/1";
/// A refusal is in the log within this time.
const LOGGED: Duration = Duration::from_secs(5);
/// Datagrams of random bytes to each port.
const RANDOM_DATAGRAMS: usize = 5000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals() {
    let seed = plan::seed().expect("a seed");
    say(&format!("refusals: FLOCKER_CHAOS_SEED={seed}"));
    let mut mesh = Mesh::start(&NODES).await.expect("a mesh");
    let began = SystemClock.boot();
    match all(&mesh, seed).await {
        Ok(lines) => {
            for (case, line) in &lines {
                say(&format!("  {case}\n    {line}"));
            }
            say(&format!("refusals: {} cases, {} s", lines.len(), since(began) / 1000));
        }
        Err(error) => {
            mesh.keep();
            panic!(
                "{error:#}\nreplay with FLOCKER_CHAOS_SEED={seed}; logs and state are in {}",
                mesh.folder().display()
            );
        }
    }
}

/// Each case with the log line that refused it.
type Lines = Vec<(String, String)>;

async fn all(mesh: &Mesh, seed: u64) -> Result<Lines> {
    mesh.deploy(Duration::from_millis(500)).await?;
    let mut case = Case::new(mesh, seed).await?;
    case.strangers().await?;
    joins::all(&mut case).await?;
    members::all(&mut case).await?;
    identities::all(&mut case).await?;
    flood::all(&mut case).await?;
    case.random_datagrams().await?;
    // What was started wrong may show only later.
    tokio::time::sleep(Duration::from_secs(2)).await;
    case.nothing_changed("the end").await?;
    Ok(case.lines)
}

/// What the cases share: the mesh, what it was like before, and the lines that refused.
struct Case<'a> {
    mesh: &'a Mesh,
    before: Still,
    random: StdRng,
    address: u8,
    writes: u64,
    lines: Lines,
}

/// The parts of a status that no stranger may change.
#[derive(Debug, PartialEq, Eq)]
struct Still {
    deployed: Deployed,
    nodes: Vec<(String, Liveness, Option<SocketAddr>, Option<SocketAddr>)>,
    volumes: Vec<StillVolume>,
    service: Option<(String, Option<Epoch>)>,
    attention: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
struct StillVolume {
    name: Name,
    epoch: Option<Epoch>,
    voters: Vec<Name>,
    replicas: Vec<Name>,
    branches: usize,
}

impl Still {
    fn of(status: &Status) -> Self {
        Self {
            deployed: Deployed::of(status),
            nodes: status
                .nodes
                .iter()
                .map(|n| (n.name.to_string(), n.liveness, n.control, n.data))
                .collect(),
            volumes: status
                .volumes
                .iter()
                .map(|v| StillVolume {
                    name: v.name.clone(),
                    epoch: v.epoch,
                    voters: v.voters.clone(),
                    replicas: v.replicas.iter().map(|r| r.node.clone()).collect(),
                    branches: v.branches.len(),
                })
                .collect(),
            service: running_on(status)
                .map(|node| (node.to_owned(), status.services.first().and_then(|s| s.epoch))),
            attention: status.attention.iter().map(|a| a.text.clone()).collect(),
        }
    }
}

impl<'a> Case<'a> {
    async fn new(mesh: &'a Mesh, seed: u64) -> Result<Self> {
        let status = mesh.status(0).await?;
        Ok(Self {
            mesh,
            before: Still::of(&status),
            random: StdRng::seed_from_u64(seed),
            address: 100,
            writes: 0,
            lines: Vec::new(),
        })
    }

    /// An address that no one knocked from: the log says one line a second and address.
    fn fresh_address(&mut self) -> IpAddr {
        self.address += 1;
        let IpAddr::V4(first) = self.mesh.nodes()[0].control().ip() else {
            return IpAddr::V4(Ipv4Addr::LOCALHOST);
        };
        let [a, b, c, _] = first.octets();
        IpAddr::V4(Ipv4Addr::new(a, b, c, self.address))
    }

    /// Waits for the line, then checks that the agents serve as before.
    async fn refused(&mut self, case: &str, node: usize, mark: Mark, parts: &[&str]) -> Result<()> {
        let log = self.mesh.nodes()[node].log();
        let line = log.wait_for(mark, parts, LOGGED).await.with_context(|| case.to_owned())?;
        ensure!(line.contains("WARN"), "{case}: a refusal is a warning: {line}");
        self.lines.push((case.to_owned(), line));
        self.nothing_changed(case).await
    }

    async fn nothing_changed(&mut self, case: &str) -> Result<()> {
        for (node, (name, _)) in NODES.iter().enumerate() {
            let what = "all is as before";
            let same = |s: &Status| settled(s, NODES.len()) && Still::of(s) == self.before;
            let status = self.mesh.until(node, PATIENCE, what, same).await;
            status.with_context(|| format!("{case}: before it was {:?}", self.before))?;
            self.writes += 1;
            let line = format!("refusals-{}", self.writes);
            let mut client = HttpClient::new(self.mesh.nodes()[node].http(), HOST);
            let served = client.post(&line, PATIENCE).await;
            served.map_err(|why| anyhow!("{case}: {name} does not serve: {why}"))?;
        }
        self.mesh.judge_logs().with_context(|| case.to_owned())
    }

    /// No certificate; another cluster's.
    async fn strangers(&mut self) -> Result<()> {
        let now = SystemClock.wall();
        let other = ClusterId::new(now, self.random.random());
        let store = StoreId::new(now, self.random.random());
        let authority = Authority::generate(other, now)?;
        let identity = NodeIdentity::found(other, store, authority, now)?.to_quic();
        let node = &self.mesh.nodes()[0];
        let ports = [("control", node.control(), CONTROL), ("data", node.data(), DATA)];
        for (port, at, alpn) in ports {
            for (what, shown) in
                [("no certificate", None), ("another cluster's certificate", Some(&identity))]
            {
                let case = format!("{what} on the {port} port");
                let (from, mark) = (self.fresh_address(), self.mesh.nodes()[0].log().mark());
                let turned_away = stranger::knock(from, at, alpn, shown).await;
                turned_away.with_context(|| case.clone())?;
                let from = from.to_string();
                self.refused(&case, 0, mark, &["refused a connection", &from]).await?;
            }
        }
        Ok(())
    }

    /// Random bytes are no QUIC: they are dropped without an answer or a line, as RFC 9000 wants
    /// it, and cost nothing.
    async fn random_datagrams(&mut self) -> Result<()> {
        let node = &self.mesh.nodes()[0];
        let ports = [node.control(), node.data()];
        let socket = std::net::UdpSocket::bind((self.fresh_address(), 0)).context("a socket")?;
        socket.set_nonblocking(true).context("a socket")?;
        let mark = self.mesh.nodes()[0].log().mark();
        for number in 0..RANDOM_DATAGRAMS {
            let mut bytes = vec![0; self.random.random_range(1..1400)];
            self.random.fill_bytes(&mut bytes);
            if number % 3 == 0 {
                // As a first packet of this version of QUIC, for all that can be seen from outside.
                let head = [0xc0 | (bytes[0] & 0x0f), 0, 0, 0, 1, 8];
                let length = head.len().min(bytes.len());
                bytes[..length].copy_from_slice(&head[..length]);
                bytes.resize(1200, 7);
            }
            for port in ports {
                // A full socket buffer drops it: as good as any network.
                let _sent = socket.send_to(&bytes, port);
            }
            if number % 500 == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        self.nothing_changed("random bytes on both ports").await?;
        let text = self.mesh.nodes()[0].log().since(mark)?;
        let lines = text.lines().count();
        ensure!(lines < 100, "random bytes made {lines} log lines");
        self.lines.push((
            format!("{RANDOM_DATAGRAMS} random datagrams to each port"),
            format!("dropped: {lines} log lines"),
        ));
        Ok(())
    }
}

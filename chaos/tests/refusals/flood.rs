//! Clients that begin a thousand handshakes and finish none, at both ports of a running agent:
//! meanwhile it serves, keeps its leases and its peers, and its log and memory stay small.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context as Task, Poll};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use flocker_base::{Clock as _, SystemClock};
use flocker_chaos::http::HttpClient;
use flocker_chaos::mesh::{HOST, PATIENCE, since};
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime as _, TokioRuntime, UdpPoller};

use crate::{CONTROL, Case, DATA, stranger};

/// Sockets, each a port of its own, and the handshakes that each begins.
const SOCKETS: usize = 100;
const EACH: usize = 10;
/// Addresses that the sockets are spread over.
const ADDRESSES: usize = 5;
/// The agent may grow by this much, in KiB.
const GROWTH_KIB: u64 = 96 << 10;

/// A client's socket on which no handshake ever ends.
#[derive(Debug)]
struct NeverFinishes {
    inner: Arc<dyn AsyncUdpSocket>,
    /// Whether it hears the agent: then it proves its address, but never goes on. Else it only
    /// ever says hello.
    hears: bool,
    sent: Arc<AtomicUsize>,
}

impl AsyncUdpSocket for NeverFinishes {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        // The type of a long header's packet: only Initial packets go out.
        if transmit.contents.first().is_none_or(|first| first & 0xb0 != 0x80) {
            return Ok(());
        }
        self.sent.fetch_add(1, Ordering::Relaxed);
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        task: &mut Task<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        if self.hears { self.inner.poll_recv(task, buffers, meta) } else { Poll::Pending }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

pub(crate) async fn all(case: &mut Case<'_>) -> Result<()> {
    one(case, "a thousand hellos from many ports", false).await?;
    one(case, "a thousand handshakes that never end, from proven addresses", true).await
}

async fn one(case: &mut Case<'_>, name: &str, hears: bool) -> Result<()> {
    let node = &case.mesh.nodes()[0];
    let pid = node.pid().context("the agent runs")?;
    let (before, mark) = (resident_kib(pid)?, node.log().mark());
    let addresses: Vec<_> = (0..ADDRESSES).map(|_| case.fresh_address()).collect();
    let sent = Arc::new(AtomicUsize::new(0));
    let ports = [(node.control(), CONTROL), (node.data(), DATA)];
    let (mut kept, mut most, mut slowest, began) = (Vec::new(), before, 0, SystemClock.boot());
    for number in 0..SOCKETS {
        let own = std::net::UdpSocket::bind((addresses[number % ADDRESSES], 0))?;
        let inner = TokioRuntime.wrap_udp_socket(own)?;
        let socket = NeverFinishes { inner, hears, sent: Arc::clone(&sent) };
        let endpoint = quinn::Endpoint::new_with_abstract_socket(
            quinn::EndpointConfig::default(),
            None,
            Arc::new(socket),
            Arc::new(TokioRuntime),
        )?;
        for dial in 0..EACH {
            let (at, alpn) = ports[dial % 2];
            let config = stranger::config(alpn, None)?;
            kept.push(endpoint.connect_with(config, at, "x.node.flocker")?);
        }
        if number % 10 == 9 {
            slowest = slowest.max(serves(case).await.with_context(|| name.to_owned())?);
            most = most.max(resident_kib(pid)?);
        }
    }
    ensure!(sent.load(Ordering::Relaxed) >= SOCKETS * EACH, "{name}: the flood did not happen");
    // As long as unfinished handshakes may last, and a lease.
    while since(began) < 6_000 {
        slowest = slowest.max(serves(case).await.with_context(|| name.to_owned())?);
        most = most.max(resident_kib(pid)?);
    }
    let (grown, ms) = (most.saturating_sub(before), since(began));
    ensure!(grown < GROWTH_KIB, "{name}: the agent grew by {grown} KiB");
    let lines = node.log().since(mark)?.lines().count();
    // A line a second for each address and kind of refusal, and some for the rest.
    let allowed = usize::try_from(ms / 1000 + 2)? * ADDRESSES * 2 + 20;
    ensure!(lines <= allowed, "{name}: {lines} log lines, {allowed} are allowed");
    drop(kept);
    let line = format!("{lines} log lines, {grown} KiB more, slowest answer {slowest} ms");
    case.lines.push((name.to_owned(), line));
    case.nothing_changed(name).await
}

/// A status and a write to the service, and how long the slower took. The master's epoch is what
/// it was: its heartbeats got through.
async fn serves(case: &mut Case<'_>) -> Result<u64> {
    let began = SystemClock.boot();
    let status = case.mesh.status(0).await?;
    let first = since(began);
    let epoch = status.volumes.first().and_then(|volume| volume.epoch);
    ensure!(
        epoch == case.before.volumes.first().and_then(|v| v.epoch),
        "the epoch rose: {epoch:?}"
    );
    case.writes += 1;
    let line = format!("flood-{}", case.writes);
    let began = SystemClock.boot();
    let mut client = HttpClient::new(case.mesh.nodes()[0].http(), HOST);
    client.post(&line, PATIENCE).await.map_err(|why| anyhow!("it does not serve: {why}"))?;
    let second = since(began);
    tokio::time::sleep(Duration::from_millis(50)).await;
    Ok(first.max(second))
}

fn resident_kib(pid: u32) -> Result<u64> {
    let status =
        std::fs::read_to_string(format!("/proc/{pid}/status")).context("the agent runs")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB"));
    kib.context("no VmRSS")?.trim().parse().context("no number")
}

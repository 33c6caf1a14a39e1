//! Clients that begin handshakes by the thousand and finish none, while peers go on.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller};

use super::*;

const CONNECTIONS: usize = 1000;

/// A client's socket on which no handshake ever ends.
#[derive(Debug)]
struct NeverFinishes {
    inner: Arc<dyn AsyncUdpSocket>,
    /// Whether it hears the node: then it proves its address, but never sends what comes after a
    /// first packet. Else it only ever says hello.
    hears: bool,
    sent: AtomicUsize,
}

impl AsyncUdpSocket for NeverFinishes {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if !is_one_initial_packet(transmit.contents) {
            return Ok(());
        }
        self.sent.fetch_add(1, Ordering::Relaxed);
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        if self.hears { self.inner.poll_recv(cx, buffers, meta) } else { Poll::Pending }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

/// Whether the datagram is an Initial packet and nothing else (RFC 9000, section 17.2.2).
fn is_one_initial_packet(datagram: &[u8]) -> bool {
    let read = || {
        if datagram.first()? & 0xb0 != 0x80 {
            return None;
        }
        let mut at = 5;
        for _ in 0..2 {
            at += 1 + usize::from(*datagram.get(at)?);
        }
        let token = variable_length(datagram, &mut at)?;
        at += token;
        let length = variable_length(datagram, &mut at)?;
        Some(at + length == datagram.len())
    };
    read().unwrap_or(false)
}

fn variable_length(datagram: &[u8], at: &mut usize) -> Option<usize> {
    let first = *datagram.get(*at)?;
    let bytes = 1 << (first >> 6);
    let mut value = usize::from(first & 0x3f);
    for byte in datagram.get(*at + 1..*at + bytes)? {
        value = value << 8 | usize::from(*byte);
    }
    *at += bytes;
    Some(value)
}

async fn peers_get_through(hears: bool) -> (usize, testing::Log) {
    let log = capture_log();
    let ca = cluster();
    let config = EndpointConfig { max_handshakes: 64, prove_address_above: 16, ..control() };
    let node = Endpoint::bind(&config, &ca.identity(store(1))).expect("node");
    let inner = TokioRuntime
        .wrap_udp_socket(std::net::UdpSocket::bind(loopback()).expect("socket"))
        .expect("socket");
    let socket = Arc::new(NeverFinishes { inner, hears, sent: AtomicUsize::new(0) });
    let flood = quinn::Endpoint::new_with_abstract_socket(
        quinn::EndpointConfig::default(),
        None,
        Arc::clone(&socket) as Arc<dyn AsyncUdpSocket>,
        Arc::new(TokioRuntime),
    )
    .expect("endpoint");
    let evil = stranger::config(Purpose::Control.alpn(), None);
    let mut kept = Vec::new();
    let mut most_at_once = 0;
    let work = async {
        for round in 0..20_u8 {
            for _ in 0..CONNECTIONS / 20 {
                let dial = flood.connect_with(evil.clone(), node.local_addr(), "x.node.flocker");
                kept.push(dial.expect("a dial"));
            }
            let peer = Endpoint::bind(&control(), &ca.identity(store(2 + round))).expect("peer");
            peer.connect(store(1), node.local_addr(), SOON).await.expect("a peer gets through");
            most_at_once = most_at_once.max(node.inner.quic.open_connections());
        }
    };
    let (_, accepted) = serving(&node, work).await;
    assert_eq!(accepted.len(), 20, "the peers, and only they, got in");
    assert!(socket.sent.load(Ordering::Relaxed) >= CONNECTIONS, "the flood took place");
    (most_at_once, log)
}

#[tokio::test]
async fn a_thousand_hellos_from_unproven_addresses_keep_no_peer_out() {
    let (most_at_once, _log) = peers_get_through(false).await;
    // The peers' own connections, and those that were begun before proof was asked for.
    assert!(most_at_once <= 20 + 64, "{most_at_once}");
}

#[tokio::test]
async fn a_thousand_unfinished_handshakes_from_a_proven_address_keep_no_peer_out() {
    let (most_at_once, log) = peers_get_through(true).await;
    // Those given up stay with quinn for a moment after their close.
    assert!(most_at_once < CONNECTIONS, "{most_at_once}");
    assert!(
        !log.lines_with(&["WARN", "too many unfinished handshakes"]).is_empty(),
        "{}",
        log.text()
    );
}

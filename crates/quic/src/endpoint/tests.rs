//! The endpoint over real sockets on loopback: who gets in, who does not, and what is said of it.

mod flood;
mod renewal;
mod stranger;

use std::time::Duration;

use super::*;
use crate::testing::{self, capture_log, cluster, control, loopback, store};
use crate::{JOIN_EXPORTER_LABEL, connect_to_join, frame};
use stranger::Stranger;

const SOON: Duration = Duration::from_secs(5);

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("in time")
}

/// Serves until `client` is done; whoever got in meanwhile is returned with its result.
async fn serving<T>(endpoint: &Endpoint, client: impl Future<Output = T>) -> (T, Vec<Accepted>) {
    let mut accepted = Vec::new();
    tokio::pin!(client);
    let result = within(async {
        loop {
            tokio::select! {
                biased;
                Some(next) = endpoint.accept() => accepted.push(next),
                result = &mut client => return result,
            }
        }
    })
    .await;
    (result, accepted)
}

/// Serves `endpoint` until it has logged a line with these parts.
async fn serving_until_logged(endpoint: &Endpoint, log: &testing::Log, parts: &[&str]) {
    let logged = async {
        for _ in 0..1000 {
            if !log.lines_with(parts).is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("no line with {parts:?} in: {}", log.text());
    };
    let ((), accepted) = serving(endpoint, logged).await;
    assert!(accepted.is_empty(), "no one got in");
}

#[tokio::test]
async fn two_nodes_of_a_cluster_exchange_frames() {
    let ca = cluster();
    let a = Endpoint::bind(&control(), &ca.identity(store(1))).expect("a");
    let b = Endpoint::bind(&control(), &ca.identity(store(2))).expect("b");
    let (out, inward) =
        within(async { tokio::join!(a.connect(store(2), b.local_addr(), SOON), b.accept()) }).await;
    let out = out.expect("connected");
    let Some(Accepted::Peer(inward)) = inward else { panic!("no peer") };
    assert_eq!((out.peer(), inward.peer()), (store(2), store(1)));
    assert_eq!(inward.remote_addr(), a.local_addr());
    assert!(out.dialled() && !inward.dialled());

    let (mut send, mut recv) = out.open_bi().await.expect("stream");
    frame::write_frame(&mut send, b"ping").await.expect("written");
    send.finish();
    let (mut answer, mut question) = inward.accept_bi().await.expect("stream");
    assert_eq!(&frame::read_frame(&mut question, 10).await.expect("frame")[..], b"ping");
    frame::write_frame(&mut answer, &[7; 300_000]).await.expect("written");
    answer.finish();
    assert_eq!(frame::read_frame(&mut recv, 300_000).await.expect("frame").len(), 300_000);
    assert!(within(answer.delivered()).await);
    assert_eq!(out.open_streams(), 2);
    drop((send, recv));
    assert_eq!(out.open_streams(), 0);
    out.close(CloseCode::Done, "enough");
    let ended = within(inward.closed()).await.to_string();
    assert!(ended.contains("enough"), "{ended}");
}

#[tokio::test]
async fn a_data_endpoint_reaches_the_jumbo_size_on_loopback() {
    let ca = cluster();
    let a = Endpoint::bind(&EndpointConfig::data(loopback()), &ca.identity(store(1))).expect("a");
    let b = Endpoint::bind(&EndpointConfig::data(loopback()), &ca.identity(store(2))).expect("b");
    let (out, inward) =
        within(async { tokio::join!(a.connect(store(2), b.local_addr(), SOON), b.accept()) }).await;
    let out = out.expect("connected");
    let Some(Accepted::Peer(inward)) = inward else { panic!("no peer") };
    let (mut send, _recv) = out.open_bi().await.expect("stream");
    let payload = vec![1; 32 << 20];
    let write = async {
        frame::write_frame(&mut send, &payload).await.expect("written");
        send.finish();
    };
    let read = async {
        let (_, mut recv) = inward.accept_bi().await.expect("stream");
        frame::read_frame(&mut recv, 64 << 20).await.expect("frame").len()
    };
    let ((), length) = within(async { tokio::join!(write, read) }).await;
    assert_eq!(length, 32 << 20);
    assert!(out.mtu() > 6000, "{}", out.mtu());
}

#[tokio::test]
async fn a_client_without_a_certificate_is_not_heard() {
    let log = capture_log();
    let ca = cluster();
    let node = Endpoint::bind(&control(), &ca.identity(store(1))).expect("node");
    let stranger = Stranger::new(Purpose::Control.alpn(), None);
    let speak = async {
        let connection = stranger.connect(node.local_addr()).await.expect("TLS lets it in");
        // What it says is not read: it may not even open a stream to this node.
        let said = tokio::time::timeout(Duration::from_millis(200), connection.open_uni()).await;
        assert!(!matches!(said, Ok(Ok(_))), "a stranger opened a stream");
        connection.closed().await
    };
    let (ended, accepted) = serving(&node, speak).await;
    assert!(accepted.is_empty());
    let quinn::ConnectionError::ApplicationClosed(close) = ended else { panic!("{ended}") };
    assert_eq!(close.error_code, CloseCode::NotAMember.into());
    let lines = log.lines_with(&["WARN", "127.0.0.1", "it has no certificate of this cluster"]);
    assert_eq!(lines.len(), 1, "{}", log.text());
}

#[tokio::test]
async fn a_data_endpoint_refuses_the_same_within_tls() {
    let log = capture_log();
    let ca = cluster();
    let node =
        Endpoint::bind(&EndpointConfig::data(loopback()), &ca.identity(store(1))).expect("node");
    let stranger = Stranger::new(Purpose::Data.alpn(), None);
    let (ended, accepted) = serving(&node, stranger.connect_and_wait(node.local_addr())).await;
    assert!(accepted.is_empty());
    assert!(matches!(ended, quinn::ConnectionError::ConnectionClosed(_)), "{ended}");
    serving_until_logged(&node, &log, &["WARN", "the handshake failed", "certificate"]).await;
}

#[tokio::test]
async fn another_clusters_and_an_expired_certificate_are_refused_with_the_reason() {
    let ca = cluster();
    for (identity, reason) in [
        (cluster().identity(store(2)), "invalid peer certificate"),
        (ca.expired_identity(store(2)), "expired"),
    ] {
        let node = Endpoint::bind(&control(), &ca.identity(store(1))).expect("node");
        let log = capture_log();
        let stranger = Stranger::new(Purpose::Control.alpn(), Some(&identity));
        let (ended, accepted) = serving(&node, stranger.connect_and_wait(node.local_addr())).await;
        assert!(accepted.is_empty());
        assert!(matches!(ended, quinn::ConnectionError::ConnectionClosed(_)), "{ended}");
        serving_until_logged(&node, &log, &["WARN", "127.0.0.1", reason]).await;
    }
}

#[tokio::test]
async fn a_certificate_that_names_no_node_or_this_one_is_refused() {
    let ca = cluster();
    let node = Endpoint::bind(&control(), &ca.identity(store(1))).expect("node");
    let nameless = ca.identity_for_names(&["localhost".to_owned()]);
    for (identity, reason) in
        [(nameless, "names no node"), (ca.identity(store(1)), "this node's own identity")]
    {
        let log = capture_log();
        let stranger = Stranger::new(Purpose::Control.alpn(), Some(&identity));
        let (ended, accepted) = serving(&node, stranger.connect_and_wait(node.local_addr())).await;
        assert!(accepted.is_empty());
        assert!(ended.to_string().contains(reason), "{ended}");
        assert_eq!(log.lines_with(&["WARN", reason]).len(), 1, "{}", log.text());
    }
}

#[tokio::test]
async fn a_node_trusts_only_the_store_it_asked_for() {
    let ca = cluster();
    let a = Endpoint::bind(&control(), &ca.identity(store(1))).expect("a");
    let b = Endpoint::bind(&control(), &ca.identity(store(2))).expect("b");
    let other = Endpoint::bind(&control(), &cluster().identity(store(3))).expect("other");
    for (to, at, serves) in [(store(3), b.local_addr(), &b), (store(3), other.local_addr(), &other)]
    {
        let (result, accepted) = serving(serves, a.connect(to, at, SOON)).await;
        assert!(accepted.is_empty());
        assert!(
            matches!(result, Err(QuicError::Dial { reason: DialFailure::Untrusted(_), .. })),
            "{result:?}"
        );
    }
    assert!(matches!(
        a.connect(store(1), a.local_addr(), SOON).await,
        Err(QuicError::Itself { .. })
    ));
}

#[tokio::test]
async fn a_refused_node_learns_why_before_it_believes_itself_connected() {
    let ca = cluster();
    let node = Endpoint::bind(&control(), &ca.identity(store(1))).expect("node");
    let expired = Endpoint::bind(&control(), &ca.expired_identity(store(2))).expect("expired");
    let dial = expired.connect(store(1), node.local_addr(), SOON);
    let (result, accepted) = serving(&node, dial).await;
    assert!(accepted.is_empty());
    let error = result.expect_err("refused").to_string();
    assert!(error.contains("it refused this node"), "{error}");
}

#[tokio::test]
async fn a_closed_port_fails_at_once_and_a_silent_one_at_the_deadline() {
    let ca = cluster();
    let node = Endpoint::bind(&control(), &ca.identity(store(1))).expect("node");
    let silent = tokio::net::UdpSocket::bind(loopback()).await.expect("socket");
    let at = silent.local_addr().expect("address");
    let wait = Duration::from_millis(300);
    let result = node.connect(store(2), at, wait).await;
    assert!(
        matches!(result, Err(QuicError::Dial { reason: DialFailure::Silent(w), .. }) if w == wait),
        "{result:?}"
    );
    drop(silent);
    let dial = node.connect(store(2), at, Duration::from_secs(60));
    let result = tokio::time::timeout(SOON, dial).await.expect("at once");
    assert!(
        matches!(result, Err(QuicError::Dial { reason: DialFailure::NothingListens, .. })),
        "{result:?}"
    );
}

#[tokio::test]
async fn one_socket_serves_both_address_families() {
    let ca = cluster();
    let any = (std::net::Ipv6Addr::UNSPECIFIED, 0).into();
    let both = EndpointConfig { bind: any, ..control() };
    let a = Endpoint::bind(&both, &ca.identity(store(1))).expect("a");
    let b = Endpoint::bind(&control(), &ca.identity(store(2))).expect("b");
    let v4 = (std::net::Ipv4Addr::LOCALHOST, a.local_addr().port()).into();
    let (inward, accepted) = serving(&a, b.connect(store(1), v4, SOON)).await;
    assert_eq!(inward.expect("connected").remote_addr(), v4);
    let Some(Accepted::Peer(seen)) = accepted.first() else { panic!("no peer") };
    assert_eq!(seen.remote_addr(), b.local_addr(), "an IPv4 address as such");
    let (outward, _) = serving(&b, a.connect(store(2), b.local_addr(), SOON)).await;
    assert_eq!(outward.expect("connected").remote_addr(), b.local_addr());
    let silent = tokio::net::UdpSocket::bind(loopback()).await.expect("socket");
    let closed = silent.local_addr().expect("address");
    drop(silent);
    let result = within(a.connect(store(2), closed, Duration::from_secs(60))).await;
    assert!(
        matches!(result, Err(QuicError::Dial { reason: DialFailure::NothingListens, .. })),
        "{result:?}"
    );
}

#[tokio::test]
async fn a_taken_port_and_a_foreign_certificate_are_told_apart_before_listening() {
    let ca = cluster();
    let first = Endpoint::bind(&control(), &ca.identity(store(1))).expect("first");
    let config = EndpointConfig { bind: first.local_addr(), ..control() };
    let error = Endpoint::bind(&config, &ca.identity(store(2))).expect_err("taken");
    assert!(matches!(error, QuicError::PortTaken { .. }), "{error}");
    assert!(error.to_string().contains(&first.local_addr().port().to_string()), "{error}");
    let wrong = Identity { store: store(3), ..ca.identity(store(2)) };
    let error = Endpoint::bind(&control(), &wrong).expect_err("not its certificate");
    assert!(matches!(error, QuicError::Identity(_)), "{error}");
}

#[tokio::test]
async fn a_newcomer_and_a_node_share_a_secret_and_one_frame_each_way() {
    let ca = cluster();
    let node = Endpoint::bind(&control(), &ca.identity(store(1))).expect("node");
    let join = async {
        let joiner = connect_to_join(node.local_addr(), ca.fingerprint(), SOON).await?;
        let secret = joiner.exporter(JOIN_EXPORTER_LABEL)?;
        Ok::<_, QuicError>((secret, joiner.exchange(b"let me in", SOON).await?))
    };
    let serve = async {
        let Some(Accepted::Joiner(mut joiner)) = node.accept().await else { panic!("no joiner") };
        let secret = joiner.exporter(JOIN_EXPORTER_LABEL).expect("exporter");
        let request = joiner.receive(SOON).await.expect("request");
        joiner.reply(b"welcome", SOON).await.expect("answered");
        (secret, request)
    };
    let (joined, (secret, request)) = within(async { tokio::join!(join, serve) }).await;
    let (mine, answer) = joined.expect("joined");
    assert_eq!((mine, &request[..], &answer[..]), (secret, &b"let me in"[..], &b"welcome"[..]));
    assert_ne!(secret, [0; 32]);
}

#[tokio::test]
async fn a_newcomer_refuses_every_cluster_but_the_pinned_one() {
    let ca = cluster();
    let honest = Endpoint::bind(&control(), &ca.identity(store(1))).expect("honest");
    let evil_ca = cluster();
    // It shows the pinned authority's certificate, which is public, beside a leaf of its own.
    let forged = Identity { ca_der: ca.ca_der().to_vec(), ..evil_ca.identity(store(2)) };
    let forger = Endpoint::bind(&control(), &forged).expect("forger");
    for (at, serves, pin) in [
        (honest.local_addr(), &honest, evil_ca.fingerprint()),
        (forger.local_addr(), &forger, ca.fingerprint()),
    ] {
        let (result, accepted) = serving(serves, connect_to_join(at, pin, SOON)).await;
        assert!(accepted.is_empty());
        assert!(
            matches!(result, Err(QuicError::Join { reason: DialFailure::Untrusted(_), .. })),
            "{result:?}"
        );
    }
}

#[tokio::test]
async fn a_joiner_is_held_to_its_bounds() {
    let ca = cluster();
    let node = Endpoint::bind(&control(), &ca.identity(store(1))).expect("node");
    let wait = Duration::from_millis(300);
    for (request, reason) in [
        (Some(vec![0; crate::MAX_JOIN_REQUEST + 1]), "are allowed"),
        (None, "no answer within 300ms"),
    ] {
        let join = async {
            let joiner = connect_to_join(node.local_addr(), ca.fingerprint(), SOON).await?;
            match request {
                Some(request) => joiner.exchange(&request, SOON).await,
                None => std::future::pending().await,
            }
        };
        let serve = async {
            let Some(Accepted::Joiner(mut joiner)) = node.accept().await else {
                panic!("no joiner")
            };
            joiner.receive(wait).await.expect_err("over the bound").to_string()
        };
        let error = within(async {
            tokio::select! {
                error = serve => error,
                joined = join => panic!("{joined:?}"),
            }
        })
        .await;
        assert!(error.contains(reason), "{error}");
    }
}

#[tokio::test]
async fn where_joiners_are_not_admitted_their_protocol_is_unknown() {
    let ca = cluster();
    let config = EndpointConfig::control(loopback());
    let node = Endpoint::bind(&config, &ca.identity(store(1))).expect("node");
    let join = connect_to_join(node.local_addr(), ca.fingerprint(), SOON);
    let (result, accepted) = serving(&node, join).await;
    assert!(accepted.is_empty());
    assert!(matches!(result, Err(QuicError::Join { reason: DialFailure::Refused(_), .. })));
}

#[tokio::test]
async fn garbage_on_the_socket_disturbs_no_one() {
    let ca = cluster();
    let a = Endpoint::bind(&control(), &ca.identity(store(1))).expect("a");
    let b = Endpoint::bind(&control(), &ca.identity(store(2))).expect("b");
    let garbage = tokio::net::UdpSocket::bind(loopback()).await.expect("socket");
    let throw = async {
        let mut byte = 1_u8;
        for length in (0..1400).step_by(7) {
            let datagram: Vec<u8> = (0..length)
                .map(|_| {
                    byte = byte.wrapping_mul(73).wrapping_add(41);
                    byte
                })
                .collect();
            garbage.send_to(&datagram, b.local_addr()).await.expect("sent");
        }
        a.connect(store(2), b.local_addr(), SOON).await
    };
    let (connection, accepted) = serving(&b, throw).await;
    connection.expect("connected");
    assert!(accepted.len() <= 1);
}

#[tokio::test]
async fn a_peer_that_vanished_and_returned_is_noticed_without_waiting_for_the_idle_timeout() {
    let ca = cluster();
    let long = EndpointConfig { idle_timeout: Duration::from_secs(120), ..control() };
    let a = Endpoint::bind(&long, &ca.identity(store(1))).expect("a");
    // A runtime of its own, so that the node can vanish without a word.
    let other = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("runtime");
    let identity = ca.identity(store(2));
    let b = other.block_on_here(&long, &identity);
    let at = b.local_addr();
    let serve = {
        let b = b.clone();
        async move {
            let _peer = b.accept().await;
            std::future::pending::<()>().await;
        }
    };
    let mut served = tokio::task::JoinSet::new();
    served.spawn_on(serve, other.handle());
    let connection = within(a.connect(store(2), at, SOON)).await.expect("connected");
    // In this order: a handle dropped while the runtime runs would say goodbye.
    other.shutdown_background();
    drop((served, b));
    let returned = within(async {
        loop {
            let config = EndpointConfig { bind: at, ..long.clone() };
            match Endpoint::bind(&config, &identity) {
                Ok(endpoint) => return endpoint,
                Err(QuicError::PortTaken { .. }) => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(e) => panic!("{e}"),
            }
        }
    })
    .await;
    // Unless what QUIC itself had under way has told it already.
    if let Ok(mut stream) = within(connection.open_uni()).await {
        drop(within(AsyncWriteExt::write_all(&mut stream, b"?")).await);
    }
    let ended = within(connection.closed()).await.to_string();
    assert!(ended.contains("reset by peer"), "{ended}");
    let (again, _) = serving(&returned, a.connect(store(2), at, SOON)).await;
    again.expect("connected again");
}

/// Binds an endpoint whose tasks run on another runtime.
trait BlockOnHere {
    fn block_on_here(&self, config: &EndpointConfig, identity: &Identity) -> Endpoint;
}

impl BlockOnHere for tokio::runtime::Runtime {
    fn block_on_here(&self, config: &EndpointConfig, identity: &Identity) -> Endpoint {
        let _inside = self.enter();
        Endpoint::bind(config, identity).expect("bound")
    }
}

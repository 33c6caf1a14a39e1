//! Clients that mean ill: malformed, ambiguous, endless and slow requests.

use std::time::Duration;

use flocker_proxy::ProxyConfig;
use hyper::StatusCode;
use proptest::prelude::*;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::harness::{
    Backend, HOST, Mesh, Node, SERVICE, Stopwatch, config, eventually, raw, read_for,
};

const PATIENCE: Duration = Duration::from_secs(5);

async fn node(mesh: &Mesh, config: ProxyConfig) -> (Node, Backend) {
    let backend = Backend::start(mesh, Duration::ZERO).await;
    let node = mesh.node(1, config).await;
    node.local(&backend, 1);
    (node, backend)
}

#[tokio::test]
async fn ambiguous_and_malformed_requests_are_refused() {
    let mesh = Mesh::new();
    let (node, backend) = node(&mesh, config()).await;
    let h = format!("host: {HOST}\r\n");
    let cases: Vec<(&str, String)> = vec![
        (
            "two lengths",
            format!("POST / HTTP/1.1\r\n{h}content-length: 5\r\ncontent-length: 6\r\n\r\nhello!"),
        ),
        ("a list of lengths", format!("POST / HTTP/1.1\r\n{h}content-length: 5, 6\r\n\r\nhello!")),
        ("a signed length", format!("POST / HTTP/1.1\r\n{h}content-length: +5\r\n\r\nhello")),
        ("a negative length", format!("POST / HTTP/1.1\r\n{h}content-length: -5\r\n\r\nhello")),
        (
            "a length beyond all numbers",
            format!("POST / HTTP/1.1\r\n{h}content-length: 99999999999999999999\r\n\r\n"),
        ),
        ("a hexadecimal length", format!("POST / HTTP/1.1\r\n{h}content-length: 0x5\r\n\r\nhello")),
        (
            "an unknown coding",
            format!("POST / HTTP/1.1\r\n{h}transfer-encoding: xchunked\r\n\r\n0\r\n\r\n"),
        ),
        (
            "chunked not last",
            format!("POST / HTTP/1.1\r\n{h}transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
        ),
        (
            "chunked in HTTP/1.0",
            format!("POST / HTTP/1.0\r\n{h}transfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
        ),
        (
            "a space before the colon",
            format!("GET / HTTP/1.1\r\n{h}content-length : 5\r\n\r\nhello"),
        ),
        ("a folded header", format!("GET / HTTP/1.1\r\n{h}x-a: b\r\n c\r\n\r\n")),
        ("a header without a name", format!("GET / HTTP/1.1\r\n{h}: x\r\n\r\n")),
        ("a NUL in a value", format!("GET / HTTP/1.1\r\n{h}x-a: b\0c\r\n\r\n")),
        ("a bare CR in a value", format!("GET / HTTP/1.1\r\n{h}x-a: b\rc\r\n\r\n")),
        ("no host", "GET / HTTP/1.1\r\n\r\n".to_owned()),
        ("an empty host", "GET / HTTP/1.1\r\nhost:\r\n\r\n".to_owned()),
        ("two hosts", format!("GET / HTTP/1.1\r\n{h}host: other\r\n\r\n")),
        ("a host with a path", format!("GET / HTTP/1.1\r\nhost: {HOST}/x\r\n\r\n")),
        ("a host with a user", format!("GET / HTTP/1.1\r\nhost: me@{HOST}\r\n\r\n")),
        ("an unknown version", format!("GET / HTTP/3.0\r\n{h}\r\n")),
        ("HTTP/2 in the clear", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned()),
        ("a tunnel", format!("CONNECT {HOST}:80 HTTP/1.1\r\n{h}\r\n")),
        ("no HTTP at all", "\u{16}\u{3}\u{1}\u{2}hello".to_owned()),
    ];
    for (what, bytes) in cases {
        let answer = raw(node.address, bytes.as_bytes(), PATIENCE).await;
        let refused = answer.is_empty() || answer.starts_with("HTTP/1.1 4");
        assert!(refused, "{what}: {answer}");
    }
    assert_eq!(backend.count(), 0, "{:?}", backend.seen);
    assert_eq!(node.proxy.stats(SERVICE).in_flight, 0);
}

#[tokio::test]
async fn a_length_beside_a_coding_smuggles_nothing() {
    let mesh = Mesh::new();
    let (node, backend) = node(&mesh, config()).await;
    // CL.TE: a backend that trusted the length would take the rest for a second request.
    let smuggled = format!("GET /evil HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
    for order in [
        "content-length: 4\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 4",
    ] {
        let before = backend.count();
        let request = format!(
            "POST /good HTTP/1.1\r\nhost: {HOST}\r\n{order}\r\n\r\n5\r\nhello\r\n0\r\n\r\n{smuggled}"
        );
        let answer = raw(node.address, request.as_bytes(), PATIENCE).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "the connection ends there: {answer}");
        assert_eq!(backend.count(), before + 1);
        let seen = backend.last();
        assert_eq!((seen.target.as_str(), &seen.body[..]), ("/good", &b"hello"[..]));
        assert!(!seen.headers.contains_key("content-length"), "one framing only: {seen:?}");
    }
}

#[tokio::test]
async fn a_backend_never_takes_the_rest_of_a_body_for_a_request() {
    let mesh = Mesh::new();
    let (node, backend) = node(&mesh, config()).await;
    // The body breaks off; the next client's request must not be glued to it.
    let part =
        format!("POST /part HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 100\r\n\r\nGET /evil");
    raw(node.address, part.as_bytes(), Duration::from_millis(100)).await;
    eventually("it is over", || node.proxy.stats(SERVICE).in_flight == 0).await;
    assert_eq!(node.client().await.get("/good").await.status, StatusCode::OK);
    assert_eq!(backend.last().target, "/good");
    assert_eq!(backend.count(), 1);
}

#[tokio::test]
async fn a_head_that_is_too_long_is_431() {
    let mesh = Mesh::new();
    let (node, backend) = node(&mesh, config()).await;
    let fits = format!(
        "GET / HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\nx: {}\r\n\r\n",
        "y".repeat(30_000)
    );
    let answer = raw(node.address, fits.as_bytes(), PATIENCE).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    for size in [40_000, 64 * 1024, 300_000] {
        let long = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nx: {}\r\n\r\n", "y".repeat(size));
        let answer = raw(node.address, long.as_bytes(), PATIENCE).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{size}: {answer}");
    }
    let exact = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nx: {}", "y".repeat(32 * 1024));
    let answer = raw(node.address, &exact.as_bytes()[..32 * 1024], PATIENCE).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    let many: String = (0..200).map(|at| format!("x-{at}: y\r\n")).collect();
    let many = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n{many}\r\n");
    let answer = raw(node.address, many.as_bytes(), PATIENCE).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    assert_eq!(backend.count(), 1);
}

#[tokio::test]
async fn a_head_that_drips_is_408_however_steadily() {
    let mesh = Mesh::new();
    let quick = ProxyConfig { header_timeout: Duration::from_millis(200), ..config() };
    let (node, _) = node(&mesh, quick).await;
    let mut stream = TcpStream::connect(node.address).await.expect("connect");
    let began = Stopwatch::start();
    let head = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nx-slow: ");
    let _ = stream.write_all(head.as_bytes()).await;
    loop {
        if stream.write_all(b"y").await.is_err() || began.read() > PATIENCE {
            break;
        }
        let mut answer = [0; 12];
        match tokio::time::timeout(Duration::from_millis(20), stream.peek(&mut answer)).await {
            Ok(Ok(0) | Err(_)) => break,
            Ok(Ok(_)) => {
                assert_eq!(&answer, b"HTTP/1.1 408");
                break;
            }
            Err(_) => {}
        }
    }
    assert!(began.read() < Duration::from_secs(2), "{:?}", began.read());
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed_and_an_idle_one_later() {
    let mesh = Mesh::new();
    let quick = ProxyConfig {
        header_timeout: Duration::from_millis(100),
        idle_timeout: Duration::from_millis(600),
        ..config()
    };
    let (node, _) = node(&mesh, quick).await;
    let began = Stopwatch::start();
    assert_eq!(raw(node.address, b"", PATIENCE).await, "");
    let silent = began.read();
    let request = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
    let began = Stopwatch::start();
    let answer = raw(node.address, request.as_bytes(), PATIENCE).await;
    let idle = began.read();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(silent < Duration::from_millis(500), "{silent:?}");
    assert!(idle >= Duration::from_millis(500) && idle < Duration::from_secs(2), "{idle:?}");
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut_and_its_request_ends() {
    let mesh = Mesh::new();
    let address = crate::harness::raw_backend(&mesh, |_, mut stream| async move {
        crate::harness::read_head(&mut stream).await;
        let head = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n";
        stream.write_all(head).await.expect("write");
        let piece = vec![b'x'; 1 << 20];
        while stream.write_all(&piece).await.is_ok() {}
    })
    .await;
    let quick = ProxyConfig {
        write_stall: Duration::from_millis(200),
        header_timeout: Duration::from_millis(100),
        ..config()
    };
    let node = mesh.node(1, quick).await;
    let place = flocker_proxy::Place::Local { address, epoch: crate::harness::epoch(1) };
    node.route(place);
    let mut stream = TcpStream::connect(node.address).await.expect("connect");
    let request = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("write");
    eventually("in flight", || node.proxy.stats(SERVICE).in_flight == 1).await;
    eventually("it is over", || node.proxy.stats(SERVICE).in_flight == 0).await;
}

#[tokio::test]
async fn connections_over_the_limit_are_told_and_closed() {
    let mesh = Mesh::new();
    let (small, _backend) = node(&mesh, ProxyConfig { max_connections: 2, ..config() }).await;
    let (mut first, mut second) = (small.client().await, small.client().await);
    assert_eq!(first.get("/").await.status, StatusCode::OK);
    assert_eq!(second.get("/").await.status, StatusCode::OK);
    let mut third = TcpStream::connect(small.address).await.expect("connect");
    let answer = read_for(&mut third, PATIENCE).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("retry-after: 1"), "{answer}");
    let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
    assert!(answer.contains(&format!("content-length: {}\r\n", body.len())), "{answer}");
    drop(first);
    eventually("room", || {
        std::net::TcpStream::connect(small.address).is_ok_and(|stream| {
            stream.set_read_timeout(Some(Duration::from_millis(20))).is_ok()
                && std::io::Read::read(&mut &stream, &mut [0; 1]).is_err()
        })
    })
    .await;
}

#[tokio::test]
async fn one_client_may_have_so_many_connections_and_no_more() {
    let mesh = Mesh::new();
    let limited = ProxyConfig { max_connections_per_client: 1, ..config() };
    let (node, _backend) = node(&mesh, limited).await;
    let mut first = node.client().await;
    assert_eq!(first.get("/").await.status, StatusCode::OK);
    let answer = raw(node.address, b"", PATIENCE).await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert_eq!(first.get("/").await.status, StatusCode::OK);
}

#[test]
fn arbitrary_bytes_never_reach_the_backend_nor_stop_the_proxy() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("runtime");
    let mesh = Mesh::new();
    let quick = ProxyConfig {
        header_timeout: Duration::from_millis(20),
        idle_timeout: Duration::from_millis(20),
        body_stall: Duration::from_millis(20),
        ..config()
    };
    let (node, backend) = runtime.block_on(node(&mesh, quick));
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let line = proptest::collection::vec(any::<u8>(), 0..60);
    let bytes =
        (any::<bool>(), proptest::collection::vec(line, 0..8)).prop_map(|(begun, lines)| {
            let start: &[u8] = if begun { b"POST / HTTP/1.1\r\nhost: nowhere\r\n" } else { b"" };
            [start, &lines.join(&b"\r\n"[..])].concat()
        });
    let outcome = runner.run(&bytes, |bytes| {
        let answer = runtime.block_on(raw(node.address, &bytes, PATIENCE));
        prop_assert!(answer.is_empty() || answer.starts_with("HTTP/1."), "{answer}");
        Ok(())
    });
    outcome.expect("every input ends in silence or an answer");
    assert_eq!(backend.count(), 0);
    runtime.block_on(async {
        assert_eq!(node.client().await.get("/").await.status, StatusCode::OK);
        assert_eq!(node.proxy.stats(SERVICE).in_flight, 0);
    });
}

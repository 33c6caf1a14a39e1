//! Bodies both ways: framed as they came, whole, bounded.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use flocker_proxy::{Place, ProxyConfig};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::harness::{
    Backend, HOST, Mesh, Node, SERVICE, config, epoch, eventually, post, raw, raw_backend,
    read_for, read_head, routes,
};

const PATIENCE: Duration = Duration::from_secs(5);

/// A node that hosts the service and one that forwards to it.
async fn pair(mesh: &Mesh, backend: &Backend, config: ProxyConfig) -> [Node; 2] {
    let (here, there) = (mesh.node(1, config.clone()).await, mesh.node(2, config).await);
    here.remote(there.id);
    there.local(backend, 1);
    [there, here]
}

#[tokio::test]
async fn large_bodies_pass_whole_both_ways_locally_and_forwarded() {
    let mesh = Mesh::new();
    let backend = Backend::start(&mesh, Duration::ZERO).await;
    for node in pair(&mesh, &backend, config()).await {
        for size in [1, 1_000, 65_535, 65_537, 3_000_000] {
            let body: Vec<u8> =
                (0..size).map(|at| u8::try_from(at % 251).expect("small")).collect();
            let answer = node.client().await.post(body.clone()).await;
            assert_eq!(answer.status, StatusCode::OK);
            assert!(backend.last().body == body, "{size} bytes came otherwise");
        }
    }
}

#[tokio::test]
async fn chunked_bodies_pass_both_ways() {
    let mesh = Mesh::new();
    let address = raw_backend(&mesh, |_, mut stream| async move {
        let mut request = read_head(&mut stream).await;
        while !request.ends_with("0\r\n\r\n") {
            request.push_str(&read_for(&mut stream, Duration::from_millis(20)).await);
        }
        assert!(request.contains("transfer-encoding: chunked"), "{request}");
        assert!(!request.contains("content-length"), "{request}");
        let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
                      3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.expect("write");
        read_head(&mut stream).await;
    })
    .await;
    let node = mesh.node(1, config()).await;
    node.proxy.set_routes(&routes(Place::Local { address, epoch: epoch(1) }));
    let stream = TcpStream::connect(node.address).await.expect("connect");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("handshake");
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { drop(connection.await) });
    let body = Pieces(vec!["a", "b", "c"].into_iter());
    let request = Request::post("/").header("host", HOST).body(body).expect("request");
    let response = sender.send_request(request).await.expect("answer");
    assert_eq!(response.headers()["transfer-encoding"], "chunked");
    assert_eq!(response.into_body().collect().await.expect("body").to_bytes(), "onetwo");
}

/// A body of pieces whose length nobody knows beforehand.
struct Pieces(std::vec::IntoIter<&'static str>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.next().map(|piece| Ok(Frame::data(Bytes::from(piece)))))
    }
}

#[tokio::test]
async fn a_body_over_the_limit_is_413_whether_its_length_is_said_or_not() {
    let mesh = Mesh::new();
    let backend = Backend::start(&mesh, Duration::ZERO).await;
    let limited = ProxyConfig { max_body_bytes: Some(10), ..config() };
    for node in pair(&mesh, &backend, limited).await {
        let answer = node.client().await.post("0123456789").await;
        assert_eq!(answer.status, StatusCode::OK);
        let before = backend.count();
        let answer = node.client().await.post("01234567890").await;
        assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
        assert!(answer.text.contains("10 bytes"), "{}", answer.text);
        let chunked = format!(
            "POST / HTTP/1.1\r\nhost: {HOST}\r\ntransfer-encoding: chunked\r\n\r\n\
             8\r\n01234567\r\n8\r\n01234567\r\n0\r\n\r\n"
        );
        let answer = raw(node.address, chunked.as_bytes(), PATIENCE).await;
        assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
        // What came before the limit may have reached the backend, but never as a whole request.
        let whole =
            backend.seen.lock().expect("lock")[before..].iter().any(|seen| seen.body.len() > 10);
        assert!(!whole);
    }
}

#[tokio::test]
async fn head_answers_keep_their_length_and_have_no_body() {
    let mesh = Mesh::new();
    let address = raw_backend(&mesh, |_, mut stream| async move {
        loop {
            let head = read_head(&mut stream).await;
            if head.is_empty() {
                return;
            }
            assert!(head.starts_with("HEAD "), "{head}");
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n";
            stream.write_all(answer).await.expect("write");
        }
    })
    .await;
    let node = mesh.node(1, config()).await;
    node.proxy.set_routes(&routes(Place::Local { address, epoch: epoch(1) }));
    let mut client = node.client().await;
    for _ in 0..3 {
        let request = Request::head("/").header("host", HOST).body(Full::default());
        let answer = client.send(request.expect("request")).await.expect("answer");
        assert_eq!((answer.status, answer.text.as_str()), (StatusCode::OK, ""));
        assert_eq!(answer.headers["content-length"], "1234");
    }
    assert_eq!(node.proxy.stats(SERVICE).in_flight, 0);
}

#[tokio::test]
async fn answers_without_a_body_keep_the_connections_on_both_sides() {
    let mesh = Mesh::new();
    let address = raw_backend(&mesh, |number, mut stream| async move {
        assert_eq!(number, 0, "one connection serves them all");
        for status in ["204 No Content", "304 Not Modified", "200 OK\r\ncontent-length: 0"] {
            read_head(&mut stream).await;
            let answer = format!("HTTP/1.1 {status}\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.expect("write");
        }
        read_head(&mut stream).await;
    })
    .await;
    let node = mesh.node(1, config()).await;
    node.proxy.set_routes(&routes(Place::Local { address, epoch: epoch(1) }));
    let mut client = node.client().await;
    for status in [204, 304, 200] {
        assert_eq!(client.get("/").await.status, status);
    }
}

#[tokio::test]
async fn expect_100_continue_is_answered_when_the_request_is_let_through_and_not_before() {
    let mesh = Mesh::new();
    let backend = Backend::start(&mesh, Duration::ZERO).await;
    let [node, forwarding] = pair(&mesh, &backend, config()).await;
    for (node, at) in [(&node, &node), (&forwarding, &node)] {
        at.proxy.hold(SERVICE);
        let mut stream = TcpStream::connect(node.address).await.expect("connect");
        let head = format!(
            "POST / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 4\r\nexpect: 100-continue\r\n\
             connection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.expect("write");
        eventually("held", || at.proxy.stats(SERVICE).held == 1).await;
        if node.id == at.id {
            let early = read_for(&mut stream, Duration::from_millis(50)).await;
            assert_eq!(early, "", "the body is not asked for while it can't go anywhere");
        }
        at.proxy.release(SERVICE);
        let head = read_head(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 100"), "{head}");
        stream.write_all(b"body").await.expect("write");
        let answer = read_for(&mut stream, PATIENCE).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert_eq!(backend.last().body, "body");
        assert!(!backend.last().headers.contains_key("expect"));
    }
}

#[tokio::test]
async fn a_body_that_stops_coming_is_408_and_the_backend_is_not_blamed() {
    let mesh = Mesh::new();
    let backend = Backend::start(&mesh, Duration::ZERO).await;
    let quick = ProxyConfig {
        body_stall: Duration::from_millis(100),
        header_timeout: Duration::from_millis(50),
        ..config()
    };
    let [node, forwarding] = pair(&mesh, &backend, quick).await;
    for node in [node, forwarding] {
        let part = format!("POST / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 10\r\n\r\nhalf");
        let answer = raw(node.address, part.as_bytes(), PATIENCE).await;
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
        eventually("it is over", || node.proxy.stats(SERVICE).in_flight == 0).await;
        assert_eq!(node.proxy.stats(SERVICE).failed, 0);
    }
}

#[tokio::test]
async fn a_malformed_chunk_is_the_clients_fault() {
    let mesh = Mesh::new();
    let backend = Backend::start(&mesh, Duration::ZERO).await;
    let [node, _] = pair(&mesh, &backend, config()).await;
    let bad =
        format!("POST / HTTP/1.1\r\nhost: {HOST}\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n");
    let answer = raw(node.address, bad.as_bytes(), PATIENCE).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert_eq!(node.proxy.stats(SERVICE).failed, 0);
}

#[tokio::test]
async fn an_early_answer_reaches_the_client_though_its_body_was_not_taken() {
    let mesh = Mesh::new();
    let address = raw_backend(&mesh, |_, mut stream| async move {
        read_head(&mut stream).await;
        let answer = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno";
        stream.write_all(answer).await.expect("write");
        read_for(&mut stream, Duration::from_secs(1)).await;
    })
    .await;
    let node = mesh.node(1, config()).await;
    node.proxy.set_routes(&routes(Place::Local { address, epoch: epoch(1) }));
    let head = format!("POST / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 1000000\r\n\r\nbegin");
    let answer = raw(node.address, head.as_bytes(), Duration::from_secs(2)).await;
    assert!(answer.starts_with("HTTP/1.1 403") && answer.ends_with("no"), "{answer}");
}

#[tokio::test]
async fn an_http_1_0_client_gets_a_plain_answer() {
    let mesh = Mesh::new();
    let address = raw_backend(&mesh, |_, mut stream| async move {
        let head = read_head(&mut stream).await;
        assert!(head.starts_with("GET / HTTP/1.1\r\n"), "{head}");
        let answer =
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
        stream.write_all(answer).await.expect("write");
        read_head(&mut stream).await;
    })
    .await;
    let node = mesh.node(1, config()).await;
    node.proxy.set_routes(&routes(Place::Local { address, epoch: epoch(1) }));
    let request = format!("GET / HTTP/1.0\r\nhost: {HOST}\r\n\r\n");
    let answer = raw(node.address, request.as_bytes(), PATIENCE).await;
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    assert!(!answer.contains("chunked") && answer.ends_with("\r\n\r\nhello"), "{answer}");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let mesh = Mesh::new();
    let backend = Backend::start(&mesh, Duration::ZERO).await;
    let [node, _] = pair(&mesh, &backend, config()).await;
    let one = format!("GET /1 HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
    let two = format!("POST /2 HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 2\r\n\r\nhi");
    let last = format!("GET /3 HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n");
    let all = [one, two, last].concat();
    let answers = raw(node.address, all.as_bytes(), PATIENCE).await;
    let found: Vec<_> =
        answers.match_indices("request ").map(|(at, _)| &answers[at + 8..at + 9]).collect();
    assert_eq!(found, ["1", "2", "3"]);
    assert_eq!(backend.last().target, "/3");
}

#[tokio::test]
async fn a_forwarded_post_with_a_body_is_counted_once_among_many() {
    let mesh = Mesh::new();
    let backend = Backend::start(&mesh, Duration::ZERO).await;
    let [_, forwarding] = pair(&mesh, &backend, config()).await;
    let mut clients = JoinSet::new();
    for _ in 0..8 {
        let mut client = forwarding.client().await;
        clients.spawn(async move {
            for _ in 0..25 {
                assert_eq!(client.send(post("x")).await.expect("answer").status, StatusCode::OK);
            }
        });
    }
    clients.join_all().await;
    assert_eq!(backend.count(), 200);
    assert!(mesh.opened() <= 8, "streams are reused: {}", mesh.opened());
}

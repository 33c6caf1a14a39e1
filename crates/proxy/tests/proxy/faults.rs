//! Backends and peers that misbehave: a request is never sent again once any of it was written.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use flocker_proxy::{Place, ProxyConfig};
use hyper::StatusCode;
use tokio::io::AsyncWriteExt;

use crate::harness::{
    Backend, HOST, Mesh, Node, SERVICE, config, epoch, get, post, raw, raw_backend, read_head,
    routes,
};

/// A node in front of a backend that holds each conversation as given; counts them.
async fn in_front_of<F, R>(mesh: &Mesh, config: ProxyConfig, talk: F) -> (Node, Arc<AtomicUsize>)
where
    F: Fn(usize, tokio::net::TcpStream) -> R + Send + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let address = raw_backend(mesh, move |number, stream| {
        counted.fetch_add(1, SeqCst);
        talk(number, stream)
    })
    .await;
    let node = mesh.node(1, config).await;
    node.proxy.set_routes(&routes(Place::Local { address, epoch: epoch(1) }));
    (node, count)
}

#[tokio::test]
async fn a_backend_that_dies_before_answering_is_not_asked_twice() {
    let mesh = Mesh::new();
    let (node, count) = in_front_of(&mesh, config(), |_, mut stream| async move {
        read_head(&mut stream).await;
    })
    .await;
    for request in [post("x"), get("/")] {
        let answer = node.client().await.send(request).await.expect("an answer");
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
        assert!(answer.text.contains("may have acted"), "{}", answer.text);
    }
    assert_eq!(count.load(SeqCst), 2, "each was sent once");
    assert_eq!(node.proxy.stats(SERVICE).failed, 2);
    assert_eq!(node.proxy.stats(SERVICE).in_flight, 0);
}

#[tokio::test]
async fn a_backend_that_dies_in_the_middle_of_a_response_breaks_it_off() {
    let mesh = Mesh::new();
    let (node, count) = in_front_of(&mesh, config(), |_, mut stream| async move {
        read_head(&mut stream).await;
        let part = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf of it";
        stream.write_all(part).await.expect("write");
        tokio::time::sleep(Duration::from_millis(50)).await;
    })
    .await;
    assert!(node.client().await.send(get("/")).await.is_err(), "not passed off as whole");
    let request = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
    let answer = raw(node.address, request.as_bytes(), Duration::from_secs(5)).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("half of it"), "{answer}");
    assert_eq!(count.load(SeqCst), 2, "each was sent once");
    assert_eq!(node.proxy.stats(SERVICE).failed, 2);
    assert_eq!(node.proxy.stats(SERVICE).in_flight, 0);
}

#[tokio::test]
async fn a_chunked_response_that_breaks_off_is_not_ended_properly() {
    let mesh = Mesh::new();
    let (node, _) = in_front_of(&mesh, config(), |_, mut stream| async move {
        read_head(&mut stream).await;
        let part = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n";
        stream.write_all(part).await.expect("write");
        tokio::time::sleep(Duration::from_millis(50)).await;
    })
    .await;
    let request = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
    let answer = raw(node.address, request.as_bytes(), Duration::from_secs(5)).await;
    assert!(answer.contains("half") && !answer.contains("\r\n0\r\n"), "{answer}");
}

#[tokio::test]
async fn a_backend_that_accepts_and_says_nothing_times_out_with_504() {
    let mesh = Mesh::new();
    let quick = ProxyConfig {
        response_timeout: Duration::from_millis(150),
        header_timeout: Duration::from_millis(50),
        ..config()
    };
    let (node, count) = in_front_of(&mesh, quick, |_, mut stream| async move {
        read_head(&mut stream).await;
        std::future::pending::<()>().await;
    })
    .await;
    let answer = node.client().await.post("x").await;
    assert_eq!(answer.status, StatusCode::GATEWAY_TIMEOUT);
    assert!(answer.text.contains("did not answer in time"), "{}", answer.text);
    assert_eq!(count.load(SeqCst), 1);
    assert_eq!(node.proxy.stats(SERVICE).in_flight, 0);
}

#[tokio::test]
async fn a_backend_that_stops_in_the_middle_of_a_response_is_cut() {
    let mesh = Mesh::new();
    let quick = ProxyConfig {
        response_idle: Duration::from_millis(150),
        header_timeout: Duration::from_millis(50),
        ..config()
    };
    let (node, _) = in_front_of(&mesh, quick, |_, mut stream| async move {
        read_head(&mut stream).await;
        let part = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf of it";
        stream.write_all(part).await.expect("write");
        std::future::pending::<()>().await;
    })
    .await;
    assert!(node.client().await.send(get("/")).await.is_err());
    assert_eq!(node.proxy.stats(SERVICE).in_flight, 0);
}

#[tokio::test]
async fn what_is_no_http_response_is_a_502() {
    let mesh = Mesh::new();
    let (node, count) = in_front_of(&mesh, config(), |_, mut stream| async move {
        read_head(&mut stream).await;
        stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").await.expect("write");
    })
    .await;
    let answer = node.client().await.get("/").await;
    assert_eq!((answer.status, count.load(SeqCst)), (StatusCode::BAD_GATEWAY, 1));
}

#[tokio::test]
async fn a_connection_closed_while_it_lay_unused_costs_no_request() {
    let mesh = Mesh::new();
    // Each connection serves one request, says that it goes on, and is closed.
    let (node, count) = in_front_of(&mesh, config(), |_, mut stream| async move {
        read_head(&mut stream).await;
        let whole = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        stream.write_all(whole).await.expect("write");
    })
    .await;
    let mut client = node.client().await;
    for _ in 0..50 {
        assert_eq!(client.get("/").await.text, "ok");
        // Let the close arrive: one that crosses the next request on its way is honestly a 502.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(count.load(SeqCst), 50);
    assert_eq!(node.proxy.stats(SERVICE).failed, 0);
}

#[tokio::test]
async fn a_response_that_nobody_asked_for_poisons_no_request() {
    let mesh = Mesh::new();
    let (node, _) = in_front_of(&mesh, config(), |number, mut stream| async move {
        read_head(&mut stream).await;
        let extra =
            if number == 0 { "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil" } else { "" };
        let whole = format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok{extra}");
        stream.write_all(whole.as_bytes()).await.expect("write");
        read_head(&mut stream).await;
    })
    .await;
    assert_eq!(node.client().await.get("/").await.text, "ok");
    assert_eq!(node.client().await.get("/").await.text, "ok");
}

#[tokio::test]
async fn a_peer_that_dies_after_it_got_the_request_is_not_asked_twice() {
    let mesh = Mesh::new();
    let (there, count) = in_front_of(&mesh, config(), |_, mut stream| async move {
        read_head(&mut stream).await;
    })
    .await;
    let here = mesh.node(2, config()).await;
    here.remote(there.id);
    let answer = here.client().await.post("x").await;
    assert_eq!((answer.status, count.load(SeqCst)), (StatusCode::BAD_GATEWAY, 1));
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_request_at_the_backend() {
    let mesh = Mesh::new();
    let gone = Arc::new(AtomicUsize::new(0));
    let noticed = Arc::clone(&gone);
    let (node, _) = in_front_of(&mesh, config(), move |_, mut stream| {
        let noticed = Arc::clone(&noticed);
        async move {
            read_head(&mut stream).await;
            read_head(&mut stream).await;
            noticed.fetch_add(1, SeqCst);
        }
    })
    .await;
    let request = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
    raw(node.address, request.as_bytes(), Duration::from_millis(100)).await;
    crate::harness::eventually("the backend saw it", || gone.load(SeqCst) == 1).await;
    crate::harness::eventually("it is over", || node.proxy.stats(SERVICE).in_flight == 0).await;
}

#[tokio::test]
async fn a_backend_over_its_connection_limit_gets_no_more_and_clients_are_told() {
    let mesh = Mesh::new();
    let backend = Backend::start(&mesh, Duration::from_millis(300)).await;
    let node = mesh.node(1, ProxyConfig { max_upstream: 1, ..config() }).await;
    node.local(&backend, 1);
    let (mut first, mut second) = (node.client().await, node.client().await);
    let (served, refused) = tokio::join!(first.get("/"), async {
        crate::harness::eventually("one is in flight", || node.proxy.stats(SERVICE).in_flight == 1)
            .await;
        second.get("/").await
    });
    assert_eq!(served.status, StatusCode::OK);
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.text.contains("busy"), "{}", refused.text);
}

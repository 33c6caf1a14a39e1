//! Which request goes where, and over which connections.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use flocker_proxy::{Place, RouteTable};
use http_body_util::Full;
use hyper::{Request, StatusCode};

use crate::harness::{Backend, HOST, Mesh, SERVICE, config, epoch, raw, routes, store};

#[tokio::test]
async fn a_request_reaches_a_local_service_and_its_answer_comes_back() {
    let mesh = Mesh::new();
    let backend = Backend::start(&mesh, Duration::ZERO).await;
    let node = mesh.node(1, config()).await;
    node.local(&backend, 1);
    let mut client = node.client().await;
    let answer = client.get("/a/b?c=d").await;
    assert_eq!((answer.status, answer.text.as_str()), (StatusCode::OK, "request 1"));
    assert_eq!(backend.last().target, "/a/b?c=d");
    let answer = client.post("hello").await;
    assert_eq!(answer.text, "request 2");
    assert_eq!(backend.last().body, "hello");
    let stats = node.proxy.stats(SERVICE);
    assert_eq!((stats.requests, stats.forwarded, stats.failed, stats.in_flight), (2, 0, 0, 0));
}

#[tokio::test]
async fn a_request_is_forwarded_to_the_node_that_hosts_the_service() {
    let mesh = Mesh::new();
    let backend = Backend::start(&mesh, Duration::ZERO).await;
    let (here, there) = (mesh.node(1, config()).await, mesh.node(2, config()).await);
    here.remote(there.id);
    there.local(&backend, 1);
    let mut client = here.client().await;
    for number in 1..=20 {
        let answer = client.post(format!("body {number}")).await;
        assert_eq!(answer.text, format!("request {number}"));
        assert_eq!(backend.last().body, format!("body {number}"));
    }
    assert_eq!(here.proxy.stats(SERVICE).forwarded, 20);
    assert_eq!(there.proxy.stats(SERVICE).forwarded, 0);
    assert_eq!(mesh.opened(), 1, "one stream carried them all");
    assert_eq!(backend.connections(), 1, "one connection carried them all");
}

#[tokio::test]
async fn connections_to_a_backend_are_shared_by_all_clients() {
    let mesh = Mesh::new();
    let backend = Backend::start(&mesh, Duration::ZERO).await;
    let node = mesh.node(1, config()).await;
    node.local(&backend, 1);
    for _ in 0..10 {
        let mut client = node.client().await;
        assert_eq!(client.get("/").await.status, StatusCode::OK);
    }
    assert_eq!(backend.connections(), 1);
}

#[tokio::test]
async fn a_pooled_connection_never_outlives_its_epoch() {
    let mesh = Mesh::new();
    let backend = Backend::start(&mesh, Duration::ZERO).await;
    let node = mesh.node(1, config()).await;
    let mut client = node.client().await;
    node.local(&backend, 1);
    client.get("/").await;
    // The same routes again change nothing.
    node.local(&backend, 1);
    client.get("/").await;
    assert_eq!(backend.connections(), 1);
    node.local(&backend, 2);
    client.get("/").await;
    assert_eq!(backend.connections(), 2);
}

#[tokio::test]
async fn hosts_are_matched_without_case_and_port() {
    let mesh = Mesh::new();
    let backend = Backend::start(&mesh, Duration::ZERO).await;
    let node = mesh.node(1, config()).await;
    let mut table = routes(Place::Local { address: backend.address, epoch: epoch(1) });
    table.hosts = HashMap::from([("App.EXAMPLE.com:80".to_owned(), SERVICE)]);
    node.proxy.set_routes(&table);
    let mut client = node.client().await;
    for host in ["app.example.com", "APP.example.COM", "app.example.com:8080", "app.example.com."] {
        let request = Request::get("/").header("host", host).body(Full::<Bytes>::default());
        let answer = client.send(request.expect("request")).await.expect("answer");
        assert_eq!(answer.status, StatusCode::OK, "{host}");
        assert_eq!(backend.last().headers["host"], host, "the backend gets the host as it was");
    }
}

#[tokio::test]
async fn an_unknown_host_is_named_and_nothing_of_it_is_echoed_raw() {
    let mesh = Mesh::new();
    let node = mesh.node(1, config()).await;
    node.proxy.set_routes(&RouteTable::default());
    let mut client = node.client().await;
    let request = Request::get("/").header("host", "nowhere.example:81");
    let answer = client.send(request.body(Full::default()).expect("request")).await;
    let answer = answer.expect("answer");
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert!(answer.text.contains("'nowhere.example'"), "{}", answer.text);
    // The connection goes on.
    assert_eq!(client.get("/").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn an_absolute_target_counts_more_than_the_host_header() {
    let mesh = Mesh::new();
    let backend = Backend::start(&mesh, Duration::ZERO).await;
    let node = mesh.node(1, config()).await;
    node.local(&backend, 1);
    let request = format!(
        "GET http://{HOST}/x?y HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n"
    );
    let answer = raw(node.address, request.as_bytes(), Duration::from_secs(5)).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(backend.last().target, "/x?y");
    assert_eq!(backend.last().headers["host"], HOST);
}

#[tokio::test]
async fn a_stale_node_forwards_to_the_old_host_which_forwards_on() {
    let mesh = Mesh::new();
    let backend = Backend::start(&mesh, Duration::ZERO).await;
    let mut nodes = Vec::new();
    for number in 1..=4 {
        nodes.push(mesh.node(number, config()).await);
    }
    nodes[0].remote(store(2));
    nodes[1].remote(store(3));
    nodes[2].remote(store(4));
    nodes[3].local(&backend, 1);
    let answer = nodes[0].client().await.post("three hops").await;
    assert_eq!(answer.text, "request 1");
    let seen = backend.last();
    assert_eq!(seen.body, "three hops");
    assert!(!seen.headers.keys().any(|name| name.as_str().starts_with("flocker-")), "{seen:?}");
    assert_eq!(seen.headers["x-forwarded-for"], "127.0.0.1");
}

#[tokio::test]
async fn a_removed_service_is_unknown_and_its_held_requests_are_told() {
    let mesh = Mesh::new();
    let node = mesh.node(1, config()).await;
    node.route(Place::Unknown);
    let mut client = node.client().await;
    let waiting = client.get("/");
    let remove = async {
        crate::harness::eventually("held", || node.proxy.stats(SERVICE).held == 1).await;
        node.proxy.set_routes(&RouteTable::default());
    };
    let (answer, ()) = tokio::join!(waiting, remove);
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert!(answer.text.contains("'tally' was removed"), "{}", answer.text);
}

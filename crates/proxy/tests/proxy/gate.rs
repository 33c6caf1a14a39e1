//! Hold, drain, release, and the waits that nobody ordered.

use std::sync::Arc;
use std::time::Duration;

use flocker_proxy::{Drained, Place, ProxyConfig};
use hyper::StatusCode;
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::harness::{
    Backend, Client, HOST, Mesh, Node, SERVICE, Stopwatch, config, epoch, eventually, get, raw,
    raw_backend, read_for, read_head, routes, store,
};

const HUNDRED: usize = 100;

async fn held(node: &Node, count: usize) {
    eventually("held", || node.proxy.stats(SERVICE).held == count).await;
}

#[tokio::test]
async fn a_request_waits_while_its_place_is_unknown_and_goes_when_it_is_known() {
    let mesh = Mesh::new();
    let backend = Backend::start(&mesh, Duration::ZERO).await;
    let node = mesh.node(1, config()).await;
    node.route(Place::Unknown);
    let mut client = node.client().await;
    let (answer, ()) = tokio::join!(client.post("patience"), async {
        held(&node, 1).await;
        node.local(&backend, 1);
    });
    assert_eq!(answer.text, "request 1");
    assert_eq!(backend.last().body, "patience");
    assert!(node.proxy.stats(SERVICE).longest_hold > Duration::ZERO);
}

#[tokio::test]
async fn all_held_requests_are_served_within_moments_of_the_release() {
    let mesh = Mesh::new();
    let backend = Backend::start(&mesh, Duration::ZERO).await;
    let node = mesh.node(1, config()).await;
    node.local(&backend, 1);
    node.proxy.hold(SERVICE);
    let mut clients = JoinSet::new();
    for _ in 0..HUNDRED {
        let mut client = node.client().await;
        clients.spawn(async move { client.get("/").await.status });
    }
    held(&node, HUNDRED).await;
    assert_eq!(backend.count(), 0);
    let released = Stopwatch::start();
    node.proxy.release(SERVICE);
    let statuses = clients.join_all().await;
    let took = released.read();
    assert!(statuses.iter().all(|status| *status == StatusCode::OK), "{statuses:?}");
    assert_eq!(backend.count(), HUNDRED);
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(backend.connections() <= HUNDRED);
}

#[tokio::test]
async fn draining_waits_for_requests_in_flight_until_their_bodies_are_sent() {
    let mesh = Mesh::new();
    let backend = Backend::start(&mesh, Duration::from_millis(200)).await;
    let node = mesh.node(1, config()).await;
    node.local(&backend, 1);
    let mut client = node.client().await;
    let drain = async {
        eventually("in flight", || node.proxy.stats(SERVICE).in_flight == 1).await;
        node.proxy.hold(SERVICE);
        let short = node.proxy.drain(SERVICE, Duration::from_millis(20)).await;
        assert_eq!(short, Drained { in_flight_left: 1, tunnels_cut: 0 });
        let whole = node.proxy.drain(SERVICE, Duration::from_secs(5)).await;
        assert_eq!(whole, Drained { in_flight_left: 0, tunnels_cut: 0 });
        assert_eq!(backend.count(), 1, "it had its answer when the drain ended");
    };
    let (answer, ()) = tokio::join!(client.get("/"), drain);
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn a_request_is_in_flight_until_the_last_byte_of_its_response() {
    let mesh = Mesh::new();
    let go = CancellationToken::new();
    let may = go.clone();
    let address = raw_backend(&mesh, move |_, mut stream| {
        let may = may.clone();
        async move {
            read_head(&mut stream).await;
            let head = b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nhalf";
            stream.write_all(head).await.expect("write");
            may.cancelled().await;
            stream.write_all(b"done").await.expect("write");
            read_head(&mut stream).await;
        }
    })
    .await;
    let (here, there) = (mesh.node(1, config()).await, mesh.node(2, config()).await);
    there.proxy.set_routes(&routes(Place::Local { address, epoch: epoch(1) }));
    here.remote(there.id);
    let mut stream = tokio::net::TcpStream::connect(here.address).await.expect("connect");
    let request = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("write");
    let mut answer = read_head(&mut stream).await;
    for node in [&here, &there] {
        assert_eq!(node.proxy.stats(SERVICE).in_flight, 1);
        let drained = node.proxy.drain(SERVICE, Duration::from_millis(30)).await;
        assert_eq!(drained.in_flight_left, 1);
    }
    go.cancel();
    for node in [&here, &there] {
        let drained = node.proxy.drain(SERVICE, Duration::from_secs(5)).await;
        assert_eq!(drained, Drained { in_flight_left: 0, tunnels_cut: 0 });
    }
    while !answer.ends_with("halfdone") {
        answer.push_str(&read_for(&mut stream, Duration::from_millis(20)).await);
    }
}

#[tokio::test]
async fn too_many_held_requests_get_an_honest_503() {
    let mesh = Mesh::new();
    let node = mesh.node(1, ProxyConfig { max_held: 2, ..config() }).await;
    node.route(Place::Unknown);
    let mut waiting = JoinSet::new();
    for _ in 0..2 {
        let mut client = node.client().await;
        waiting.spawn(async move { client.send(get("/")).await.map(|answer| answer.status) });
    }
    held(&node, 2).await;
    let answer = node.client().await.get("/").await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.headers["retry-after"], "1");
    assert!(answer.text.contains("'tally'") && answer.text.contains("nothing"), "{}", answer.text);
    // A client that goes away makes room.
    waiting.shutdown().await;
    held(&node, 0).await;
}

#[tokio::test]
async fn held_bytes_are_bounded() {
    let mesh = Mesh::new();
    let node = mesh.node(1, ProxyConfig { max_held_bytes: 20_000, ..config() }).await;
    node.route(Place::Unknown);
    let long = format!("/{}", "x".repeat(9_000));
    let mut first = node.client().await;
    let mut second = node.client().await;
    let (waiting, refused) = (first.send(get(&long)), async {
        held(&node, 1).await;
        second.get(&long).await
    });
    let refused = tokio::select! {
        _ = waiting => panic!("nobody knows where the service is"),
        refused = refused => refused,
    };
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.text.contains("20000 bytes"), "{}", refused.text);
}

#[tokio::test]
async fn a_request_held_for_too_long_gets_an_honest_503() {
    let mesh = Mesh::new();
    let quick = ProxyConfig {
        max_hold: Duration::from_millis(100),
        connect_timeout: Duration::from_millis(50),
        dial_timeout: Duration::from_millis(50),
        ..config()
    };
    let node = mesh.node(1, quick).await;
    node.route(Place::Unknown);
    let mut client = node.client().await;
    let answer = client.get("/").await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.headers["retry-after"], "1");
    assert!(answer.text.contains("waited 100ms"), "{}", answer.text);
    assert_eq!(node.proxy.stats(SERVICE).failed, 1);
    // The connection goes on.
    assert_eq!(client.get("/").await.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn a_dead_remote_host_makes_requests_wait_for_the_new_place() {
    let mesh = Mesh::new();
    let backend = Backend::start(&mesh, Duration::ZERO).await;
    let node = mesh.node(1, config()).await;
    node.remote(store(2));
    mesh.set_down(store(2), true);
    let mut client = node.client().await;
    let (answer, ()) = tokio::join!(client.post("once"), async {
        held(&node, 1).await;
        node.local(&backend, 2);
    });
    assert_eq!((answer.status, backend.count()), (StatusCode::OK, 1));
    assert_eq!(backend.last().body, "once");
}

#[tokio::test]
async fn a_remote_host_that_comes_back_is_noticed_without_a_change_of_routes() {
    let mesh = Mesh::new();
    let backend = Backend::start(&mesh, Duration::ZERO).await;
    let (here, there) = (mesh.node(1, config()).await, mesh.node(2, config()).await);
    there.local(&backend, 1);
    here.remote(there.id);
    mesh.set_down(there.id, true);
    let mut clients = JoinSet::new();
    for _ in 0..20 {
        let mut client = here.client().await;
        clients.spawn(async move { client.get("/").await.status });
    }
    held(&here, 20).await;
    let tried = mesh.opened();
    mesh.set_down(there.id, false);
    let statuses = clients.join_all().await;
    assert!(statuses.iter().all(|status| *status == StatusCode::OK), "{statuses:?}");
    assert!(tried <= 45, "one probe for all of them: {tried}");
}

#[tokio::test]
async fn a_backend_that_refuses_connections_is_awaited() {
    let mesh = Mesh::new();
    let first = Backend::start(&mesh, Duration::ZERO).await;
    let node = mesh.node(1, config()).await;
    node.local(&first, 1);
    let mut client = node.client().await;
    client.get("/").await;
    first.stop().await;
    let (answer, second) = tokio::join!(client.post("after"), async {
        held(&node, 1).await;
        let at = first.address.to_string();
        Backend::start_on(&mesh, Duration::ZERO, Arc::clone(&first.seen), &at).await
    });
    assert_eq!(answer.text, "request 2");
    assert_eq!(second.last().body, "after");
}

#[tokio::test]
async fn nodes_that_point_at_each_other_hold_the_request_until_they_agree() {
    let mesh = Mesh::new();
    let backend = Backend::start(&mesh, Duration::ZERO).await;
    let (a, b) = (mesh.node(1, config()).await, mesh.node(2, config()).await);
    a.remote(b.id);
    b.remote(a.id);
    let mut client = a.client().await;
    let (answer, ()) = tokio::join!(client.post("round and round"), async {
        held(&a, 1).await;
        a.local(&backend, 1);
    });
    assert_eq!((answer.status, backend.count()), (StatusCode::OK, 1));
    assert_eq!(backend.last().body, "round and round", "the body was sent again whole");
    // And the other way: the far node learns first.
    a.remote(b.id);
    let (answer, ()) = tokio::join!(client.post("again"), async {
        held(&a, 1).await;
        b.local(&backend, 2);
    });
    assert_eq!((answer.status, backend.count()), (StatusCode::OK, 2));
    assert_eq!(backend.last().body, "again");
}

#[tokio::test]
async fn a_peer_that_does_not_know_the_service_yet_hands_the_request_back() {
    let mesh = Mesh::new();
    let backend = Backend::start(&mesh, Duration::ZERO).await;
    let (a, b) = (mesh.node(1, config()).await, mesh.node(2, config()).await);
    a.remote(b.id);
    let mut client = a.client().await;
    let (answer, ()) = tokio::join!(client.post("new"), async {
        held(&a, 1).await;
        b.local(&backend, 1);
    });
    assert_eq!((answer.status, backend.last().body), (StatusCode::OK, "new".into()));
}

#[tokio::test]
async fn a_body_too_long_to_be_sent_twice_gets_an_honest_503() {
    let mesh = Mesh::new();
    let (a, b) = (
        mesh.node(1, ProxyConfig { replay_bytes: 1_000, ..config() }).await,
        mesh.node(2, config()).await,
    );
    a.remote(b.id);
    b.remote(a.id);
    let answer = a.client().await.post("x".repeat(2_000)).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.text.contains("too long"), "{}", answer.text);
    assert!(!answer.headers.contains_key("flocker-refused"));
}

#[tokio::test]
async fn more_hops_than_allowed_are_not_made() {
    let mesh = Mesh::new();
    let mut nodes = Vec::new();
    for number in 1..=5 {
        nodes.push(mesh.node(number, config()).await);
    }
    for (at, node) in nodes.iter().enumerate() {
        node.remote(nodes[(at + 1) % 5].id);
    }
    let mut client = nodes[0].client().await;
    let pending = client.send(get("/"));
    let looked = async {
        held(&nodes[0], 1).await;
        // Four nodes are within three hops; the fifth is never asked.
        assert_eq!(nodes[4].proxy.stats(SERVICE).requests, 0);
        assert!(nodes[3].proxy.stats(SERVICE).requests >= 1);
    };
    tokio::select! {
        _ = pending => panic!("there is no such place"),
        () = looked => {}
    }
}

#[tokio::test]
async fn a_client_that_leaves_while_held_is_never_served() {
    let mesh = Mesh::new();
    let backend = Backend::start(&mesh, Duration::ZERO).await;
    let node = mesh.node(1, config()).await;
    node.route(Place::Unknown);
    let request = b"GET / HTTP/1.1\r\nhost: app.example.com\r\n\r\n";
    let (_, ()) = tokio::join!(raw(node.address, request, Duration::from_millis(300)), async {
        held(&node, 1).await;
    });
    held(&node, 0).await;
    node.local(&backend, 1);
    assert_eq!(node.client().await.get("/last").await.text, "request 1");
    assert_eq!(backend.last().target, "/last");
}

#[tokio::test]
async fn the_shutdown_lets_requests_finish_and_takes_no_new_ones() {
    let mesh = Mesh::new();
    let backend = Backend::start(&mesh, Duration::from_millis(200)).await;
    let node = mesh.node(1, config()).await;
    node.local(&backend, 1);
    let mut client = node.client().await;
    let mut idle = node.client().await;
    let address = node.address;
    let (answer, ()) = tokio::join!(client.get("/"), async {
        eventually("in flight", || node.proxy.stats(SERVICE).in_flight == 1).await;
        mesh.shutdown.cancel();
        for _ in 0..200 {
            if tokio::net::TcpStream::connect(address).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("it still accepts");
    });
    assert_eq!(answer.status, StatusCode::OK);
    assert!(client.send(get("/")).await.is_err(), "closed after its answer");
    assert!(idle.send(get("/")).await.is_err(), "closed at once");
    node.proxy.close(Duration::from_secs(1)).await;
}

#[tokio::test]
async fn the_shutdown_cuts_what_does_not_finish() {
    let mesh = Mesh::new();
    let address = raw_backend(&mesh, |_, mut stream| async move {
        read_head(&mut stream).await;
        std::future::pending::<()>().await;
    })
    .await;
    let quick = ProxyConfig { shutdown_grace: Duration::from_millis(50), ..config() };
    let node = mesh.node(1, quick).await;
    node.proxy.set_routes(&routes(Place::Local { address, epoch: epoch(1) }));
    let mut client = Client::connect(node.address).await;
    let (answer, ()) = tokio::join!(client.send(get("/")), async {
        eventually("in flight", || node.proxy.stats(SERVICE).in_flight == 1).await;
        mesh.shutdown.cancel();
    });
    assert!(answer.is_err());
    eventually("nothing is in flight", || node.proxy.stats(SERVICE).in_flight == 0).await;
}

//! Connections that switch protocols (WebSocket): carried locally and between nodes, counted, cut.

use std::time::Duration;

use flocker_proxy::{Drained, Place, ProxyConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{
    HOST, Mesh, Node, SERVICE, config, epoch, eventually, raw, raw_backend, read_for, read_head,
    routes,
};

async fn pair(mesh: &Mesh, config: ProxyConfig) -> [Node; 2] {
    let address = raw_backend(mesh, |_, mut stream| async move {
        let head = read_head(&mut stream).await.to_ascii_lowercase();
        assert!(head.contains("connection: upgrade") && head.contains("upgrade: websocket"));
        let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\n\
            upgrade: websocket\r\nsec-websocket-accept: abc\r\n\r\nfirst";
        stream.write_all(answer.as_bytes()).await.expect("write");
        let mut buffer = [0; 1024];
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            let upper = buffer[..read].to_ascii_uppercase();
            stream.write_all(&upper).await.expect("write");
        }
    })
    .await;
    let (here, there) = (mesh.node(1, config.clone()).await, mesh.node(2, config).await);
    there.proxy.set_routes(&routes(Place::Local { address, epoch: epoch(1) }));
    here.remote(there.id);
    [there, here]
}

/// Opens a tunnel, with a word sent along at once.
async fn open(node: &Node) -> TcpStream {
    let mut stream = TcpStream::connect(node.address).await.expect("connect");
    let request = format!(
        "GET /chat HTTP/1.1\r\nhost: {HOST}\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-key: x\r\n\r\nearly"
    );
    stream.write_all(request.as_bytes()).await.expect("write");
    let mut answer = read_head(&mut stream).await;
    while !answer.contains("EARLY") {
        let more = read_for(&mut stream, Duration::from_millis(20)).await;
        answer.push_str(&more);
    }
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("upgrade: websocket"), "{answer}");
    assert!(answer.contains("sec-websocket-accept: abc"), "{answer}");
    assert!(answer.ends_with("firstEARLY"), "{answer}");
    stream
}

#[tokio::test]
async fn a_websocket_is_carried_locally_and_between_nodes() {
    let mesh = Mesh::new();
    for node in pair(&mesh, config()).await {
        let mut stream = open(&node).await;
        for number in 0..20 {
            let word = format!("word {number}");
            stream.write_all(word.as_bytes()).await.expect("write");
            let mut answer = vec![0; word.len()];
            stream.read_exact(&mut answer).await.expect("read");
            assert_eq!(answer, word.to_ascii_uppercase().as_bytes());
        }
        let stats = node.proxy.stats(SERVICE);
        assert_eq!((stats.tunnels, stats.in_flight), (1, 0));
        drop(stream);
        eventually("it is over", || node.proxy.stats(SERVICE).tunnels == 0).await;
    }
}

#[tokio::test]
async fn a_tunnel_does_not_keep_a_drain_waiting_and_is_cut_by_it() {
    let mesh = Mesh::new();
    let [node, _] = pair(&mesh, config()).await;
    let mut stream = open(&node).await;
    node.proxy.hold(SERVICE);
    let drained = node.proxy.drain(SERVICE, Duration::from_secs(5)).await;
    assert_eq!(drained, Drained { in_flight_left: 0, tunnels_cut: 1 });
    assert_eq!(read_for(&mut stream, Duration::from_secs(5)).await, "");
    eventually("it is over", || node.proxy.stats(SERVICE).tunnels == 0).await;
    node.proxy.release(SERVICE);
    open(&node).await;
}

#[tokio::test]
async fn a_tunnel_that_carries_nothing_is_closed() {
    let mesh = Mesh::new();
    let quick = ProxyConfig { tunnel_idle: Duration::from_millis(100), ..config() };
    let [node, _] = pair(&mesh, quick).await;
    let _stream = open(&node).await;
    eventually("it is over", || node.proxy.stats(SERVICE).tunnels == 0).await;
}

#[tokio::test]
async fn a_backend_that_switches_unasked_is_a_502() {
    let mesh = Mesh::new();
    let address = raw_backend(&mesh, |_, mut stream| async move {
        read_head(&mut stream).await;
        let answer = "HTTP/1.1 101 Switching Protocols\r\nupgrade: evil\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.expect("write");
        read_head(&mut stream).await;
    })
    .await;
    let node = mesh.node(1, config()).await;
    node.proxy.set_routes(&routes(Place::Local { address, epoch: epoch(1) }));
    for headers in ["", "connection: upgrade, http2-settings\r\nupgrade: h2c\r\n"] {
        let request = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n{headers}\r\n");
        let answer = raw(node.address, request.as_bytes(), Duration::from_secs(5)).await;
        assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
    }
    assert_eq!(node.proxy.stats(SERVICE).tunnels, 0);
}

#[tokio::test]
async fn a_refused_upgrade_is_an_ordinary_answer() {
    let mesh = Mesh::new();
    let backend = crate::harness::Backend::start(&mesh, Duration::ZERO).await;
    let node = mesh.node(1, config()).await;
    node.local(&backend, 1);
    let one = format!(
        "GET / HTTP/1.1\r\nhost: {HOST}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
    );
    let two = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n");
    let both = [one, two].concat();
    let answer = raw(node.address, both.as_bytes(), Duration::from_secs(5)).await;
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 2, "{answer}");
}

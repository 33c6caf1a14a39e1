//! What headers lose and gain on the way.

use std::time::Duration;

use flocker_proxy::{ForwardedPolicy, Place, ProxyConfig};
use hyper::header::HeaderName;
use tokio::io::AsyncWriteExt;

use crate::harness::{
    Backend, HOST, Mesh, Seen, config, epoch, raw, raw_backend, read_head, routes,
};

const SPOOFED: &str = "x-forwarded-for: 6.6.6.6\r\nforwarded: for=6.6.6.6\r\n\
    x-forwarded-proto: https\r\nx-forwarded-host: evil\r\nx-real-ip: 6.6.6.6\r\n\
    flocker-service: 07070707070707070707070707070707\r\nflocker-hops: nonsense\r\n";

async fn seen_with(config: ProxyConfig, forwarded: bool, headers: &str) -> Seen {
    let mesh = Mesh::new();
    let backend = Backend::start(&mesh, Duration::ZERO).await;
    let (here, there) = (mesh.node(1, config.clone()).await, mesh.node(2, config).await);
    there.local(&backend, 1);
    if forwarded {
        here.remote(there.id);
    } else {
        here.local(&backend, 1);
    }
    let request = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n{headers}\r\n");
    let answer = raw(here.address, request.as_bytes(), Duration::from_millis(300)).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    backend.last()
}

fn all(seen: &Seen, name: &str) -> Vec<String> {
    let values = seen.headers.get_all(name).iter();
    values.map(|value| value.to_str().expect("text").to_owned()).collect()
}

#[tokio::test]
async fn the_clients_address_is_told_and_what_it_claims_itself_is_dropped() {
    for forwarded in [false, true] {
        let seen = seen_with(config(), forwarded, SPOOFED).await;
        assert_eq!(all(&seen, "x-forwarded-for"), ["127.0.0.1"]);
        assert_eq!(all(&seen, "forwarded"), ["for=127.0.0.1;proto=http"]);
        assert_eq!(all(&seen, "x-forwarded-proto"), ["http"]);
        for gone in ["x-forwarded-host", "x-real-ip", "flocker-service", "flocker-hops"] {
            assert!(!seen.headers.contains_key(gone), "{gone}");
        }
    }
}

#[tokio::test]
async fn a_trusted_proxy_in_front_is_believed_and_appended_to() {
    let net = "127.0.0.0/8".parse().expect("a network");
    let trusting = ProxyConfig { forwarded: ForwardedPolicy::AppendFrom(vec![net]), ..config() };
    for forwarded in [false, true] {
        let seen = seen_with(trusting.clone(), forwarded, SPOOFED).await;
        assert_eq!(all(&seen, "x-forwarded-for"), ["6.6.6.6, 127.0.0.1"]);
        assert_eq!(all(&seen, "forwarded"), ["for=6.6.6.6, for=127.0.0.1;proto=http"]);
        assert_eq!(all(&seen, "x-forwarded-proto"), ["https"]);
        assert!(!seen.headers.contains_key("flocker-hops"));
    }
}

#[tokio::test]
async fn headers_of_one_connection_do_not_pass() {
    let headers = "connection: keep-alive, x-mine\r\nconnection: x-other, host, content-length\r\n\
        x-mine: 1\r\nx-other: 2\r\nx-kept: 3\r\nkeep-alive: timeout=5\r\nte: trailers\r\n\
        proxy-connection: keep-alive\r\nproxy-authorization: secret\r\nupgrade: h2c\r\n";
    let seen = seen_with(config(), false, headers).await;
    for gone in [
        "connection",
        "x-mine",
        "x-other",
        "keep-alive",
        "te",
        "proxy-connection",
        "proxy-authorization",
        "upgrade",
    ] {
        assert!(!seen.headers.contains_key(gone), "{gone}: {seen:?}");
    }
    assert_eq!(seen.headers["x-kept"], "3");
    assert_eq!(seen.headers["host"], HOST, "a client can't have the host taken out");
}

#[tokio::test]
async fn responses_lose_what_concerned_the_backends_connection_only() {
    let mesh = Mesh::new();
    let address = raw_backend(&mesh, |_, mut stream| async move {
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: keep-alive, x-mine\r\n\
            x-mine: 1\r\nkeep-alive: timeout=5\r\nproxy-authenticate: Basic\r\n\
            flocker-refused: unsent\r\nset-cookie: a=1\r\nset-cookie: b=2\r\n\r\nok";
        while !read_head(&mut stream).await.is_empty() {
            stream.write_all(answer.as_bytes()).await.expect("write");
        }
    })
    .await;
    let (here, there) = (mesh.node(1, config()).await, mesh.node(2, config()).await);
    there.proxy.set_routes(&routes(Place::Local { address, epoch: epoch(1) }));
    here.remote(there.id);
    for node in [there, here] {
        let answer = node.client().await.get("/").await;
        assert_eq!(answer.text, "ok", "a backend can't hand a request back");
        for gone in ["x-mine", "keep-alive", "proxy-authenticate", "flocker-refused"] {
            assert!(!answer.headers.contains_key(gone), "{gone}");
        }
        assert_eq!(answer.headers.get_all(HeaderName::from_static("set-cookie")).iter().count(), 2);
    }
}

//! One probe of a service: a GET of its health path, or a connection to its port.
//!
//! It must be cheap, for it is repeated every few milliseconds, and read no more of an answer
//! than its first line.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The longest that one probe may take.
const PROBE_LIMIT: Duration = Duration::from_secs(2);
const STATUS_LINE_BYTES: usize = 12;

/// The pauses between probes: 5 ms, and twice as long each time up to 50 ms.
pub(super) fn next_pause(pause: Option<Duration>) -> Duration {
    pause.map_or(Duration::from_millis(5), |p| (p * 2).min(Duration::from_millis(50)))
}

/// Cancel safe: the connection is dropped.
pub(super) async fn probe(address: SocketAddr, path: Option<&str>) -> Result<(), String> {
    let attempt = async {
        let mut stream = TcpStream::connect(address)
            .await
            .map_err(|e| format!("nothing listens on {address} ({e})"))?;
        match path {
            None => Ok(()),
            Some(path) => get(&mut stream, address, path).await,
        }
    };
    tokio::time::timeout(PROBE_LIMIT, attempt)
        .await
        .unwrap_or_else(|_| Err(format!("{address} did not answer within {PROBE_LIMIT:?}")))
}

async fn get(stream: &mut TcpStream, address: SocketAddr, path: &str) -> Result<(), String> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    let failed = |e: std::io::Error| format!("GET {path} on {address}: {e}");
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    let mut line = [0; STATUS_LINE_BYTES];
    stream.read_exact(&mut line).await.map_err(failed)?;
    if line.starts_with(b"HTTP/1.") && matches!(line[9], b'2' | b'3') {
        return Ok(());
    }
    Err(format!("GET {path} on {address} answered '{}'", line.escape_ascii()))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn answer(text: &'static str, path: Option<&str>) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("address");
        let serve = async {
            let (mut stream, _) = listener.accept().await.expect("accepts");
            if path.is_some() {
                let mut request = [0; 256];
                let n = stream.read(&mut request).await.expect("reads");
                assert!(request[..n].starts_with(b"GET /health HTTP/1.1\r\n"));
            }
            stream.write_all(text.as_bytes()).await.expect("answers");
            stream.shutdown().await.ok();
        };
        tokio::join!(probe(address, path), serve).0
    }

    #[tokio::test]
    async fn only_2xx_and_3xx_are_ready() {
        for good in ["HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.0 302 Found\r\n\r\n"] {
            answer(good, Some("/health")).await.expect(good);
        }
        for bad in ["HTTP/1.1 503 Busy\r\n\r\n", "SSH-2.0-OpenSSH_9\r\n", "", "HTTP/1.1 2"] {
            assert!(answer(bad, Some("/health")).await.is_err(), "{bad}");
        }
        answer("", None).await.expect("an open port will do");
    }

    #[tokio::test]
    async fn a_closed_port_is_named() {
        let closed = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = closed.local_addr().expect("address");
        drop(closed);
        let error = probe(address, None).await.expect_err("refused");
        assert!(error.contains(&address.to_string()), "{error}");
    }

    #[test]
    fn pauses_grow_from_5_to_50_ms() {
        let mut pause = None;
        let millis: Vec<u128> = (0..6)
            .map(|_| {
                pause = Some(next_pause(pause));
                pause.expect("set").as_millis()
            })
            .collect();
        assert_eq!(millis, [5, 10, 20, 40, 50, 50]);
    }
}

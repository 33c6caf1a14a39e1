//! The tally: many clients at once, and a SIGKILL in the middle, over and over.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flocker::tally::{Checksum, TallyOptions};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::waiting::{LIMIT, exe, now, signal, until};

/// One request on its own connection: status and body.
async fn request(
    at: SocketAddr,
    method: &str,
    path: &str,
    body: &[u8],
) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(at).await?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: tally\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let cut = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(cut)?;
    let status = head.get(9..12).and_then(|s| s.parse().ok()).ok_or_else(cut)?;
    Ok((status, body.to_owned()))
}

async fn get(at: SocketAddr, path: &str) -> String {
    let (status, body) = request(at, "GET", path, b"").await.expect("answers");
    assert_eq!(status, 200, "{body}");
    body
}

struct Local {
    at: SocketAddr,
    stop: CancellationToken,
    serving: tokio::task::JoinHandle<anyhow::Result<()>>,
}

#[expect(clippy::disallowed_methods, reason = "the test awaits it in `end`")]
async fn local(folder: &Path) -> Local {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let at = listener.local_addr().expect("address");
    let (host, grace) = (at.ip(), Duration::from_secs(5));
    let options = TallyOptions { folder: folder.to_owned(), host, port: at.port(), grace };
    let stop = CancellationToken::new();
    let serving = tokio::spawn(flocker::tally::serve(options, listener, stop.clone()));
    Local { at, stop, serving }
}

impl Local {
    async fn end(self) {
        self.stop.cancel();
        self.serving.await.expect("no panic").expect("no error");
    }
}

#[tokio::test]
async fn posts_that_come_together_all_count_and_the_checksum_is_the_recomputed_one() {
    let folder = tempfile::tempdir().expect("folder");
    let tally = local(folder.path()).await;
    let mut posts = JoinSet::new();
    for n in 0..200 {
        let at = tally.at;
        posts.spawn(async move { request(at, "POST", "/", format!("line {n}").as_bytes()).await });
    }
    let mut numbers = BTreeSet::new();
    while let Some(done) = posts.join_next().await {
        let (status, body) = done.expect("no panic").expect("answers");
        assert_eq!(status, 200, "{body}");
        let answer: serde_json::Value = serde_json::from_str(&body).expect("json");
        numbers.insert(answer["count"].as_u64().expect("number"));
    }
    assert_eq!(numbers, (1..=200).collect(), "each got a number of its own");
    let entries = get(tally.at, "/entries").await;
    let sum: Checksum = entries.lines().map(str::as_bytes).collect();
    let totals: serde_json::Value = serde_json::from_str(&get(tally.at, "/").await).expect("json");
    assert_eq!(totals, serde_json::json!({ "count": 200, "checksum": sum.to_string() }));
    assert_eq!(get(tally.at, "/healthz").await, "ok");
    tally.end().await;
    let again = local(folder.path()).await;
    let same: serde_json::Value = serde_json::from_str(&get(again.at, "/").await).expect("json");
    assert_eq!(same, totals, "the state is the volume alone");
    again.end().await;
}

#[tokio::test]
async fn what_is_not_one_line_is_refused_and_changes_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    let tally = local(folder.path()).await;
    for (bad, expected) in
        [(&b""[..], 400), (b"a\nb", 400), (&[b'x'; 4097], 400), (&[b'x'; 10_000], 413)]
    {
        let (status, _) = request(tally.at, "POST", "/", bad).await.expect("answers");
        assert_eq!(status, expected);
    }
    assert_eq!(request(tally.at, "DELETE", "/", b"").await.expect("answers").0, 405);
    assert_eq!(request(tally.at, "GET", "/other", b"").await.expect("answers").0, 404);
    assert!(get(tally.at, "/").await.contains("\"count\":0"));
    tally.end().await;
}

fn start(folder: &Path, at: SocketAddr) -> Child {
    let mut command = Command::new(exe());
    command.arg("tally").env("FLOCKER_VOLUME", folder);
    command.env("HOST", at.ip().to_string()).env("PORT", at.port().to_string());
    command.stderr(std::process::Stdio::null()).spawn().expect("starts")
}

async fn is_up(at: SocketAddr) {
    let start = now();
    while request(at, "GET", "/healthz", b"").await.is_err() {
        assert!(now() - start < LIMIT, "the tally did not come up");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Posts until refused; keeps what was acknowledged.
async fn post_on(at: SocketAddr, round: u32, client: u32, acked: Arc<Mutex<BTreeSet<String>>>) {
    for n in 0.. {
        let line = format!("{round}-{client}-{n}");
        match request(at, "POST", "/", line.as_bytes()).await {
            Ok((200, _)) => acked.lock().expect("lock").insert(line),
            _ => return,
        };
    }
}

#[tokio::test]
async fn twenty_kills_in_the_middle_lose_no_acknowledged_line() {
    let folder = tempfile::tempdir().expect("folder");
    let port = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let at = port.local_addr().expect("address");
    drop(port);
    let acked = Arc::new(Mutex::new(BTreeSet::new()));
    for round in 0..20 {
        let mut child = start(folder.path(), at);
        is_up(at).await;
        let before = acked.lock().expect("lock").len();
        let mut clients = JoinSet::new();
        for client in 0..8 {
            clients.spawn(post_on(at, round, client, Arc::clone(&acked)));
        }
        let enough = before + 5 + round as usize * 3;
        until("enough were acknowledged", || acked.lock().expect("lock").len() >= enough).await;
        child.kill().expect("kills");
        child.wait().expect("ends");
        clients.join_all().await;
        let log = std::fs::read_to_string(folder.path().join("log")).expect("reads");
        let whole = &log[..log.rfind('\n').map_or(0, |end| end + 1)];
        let kept: BTreeSet<&str> = whole.lines().collect();
        for line in acked.lock().expect("lock").iter() {
            assert!(kept.contains(line.as_str()), "round {round} lost {line}");
        }
    }
}

#[tokio::test]
async fn sigterm_ends_it_with_success_and_a_taken_port_is_said() {
    let folder = tempfile::tempdir().expect("folder");
    let holder = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let at = holder.local_addr().expect("address");
    let mut command = Command::new(exe());
    command.arg("tally").env("FLOCKER_VOLUME", folder.path());
    command.env("HOST", "127.0.0.1").env("PORT", at.port().to_string());
    let output = command.output().expect("runs");
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains(&at.to_string()) && said.contains("taken"), "{said}");
    drop(holder);
    let mut child = start(folder.path(), at);
    is_up(at).await;
    signal(child.id(), Signal::TERM);
    assert!(child.wait().expect("ends").success());
}

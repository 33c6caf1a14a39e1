//! Real agents under an authority of the operator's own: requests are written, signed outside, and
//! what was signed makes a mesh, together with a token and not without.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use data_encoding::BASE64;
use flocker::api::client::Client;
use flocker::api::{Liveness, Status};
use flocker_base::{Clock, ClusterId, SystemClock, durable};
use flocker_gossip::identity::{Authority, NODE_VALIDITY};
use tokio::process::{Child, Command};

const IN_TIME: Duration = Duration::from_secs(120);

/// The operator: an authority that no node has the key of.
struct Operator {
    authority: Authority,
    folder: PathBuf,
}

struct Agent {
    process: Child,
    client: Client,
}

fn binary(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flocker"));
    for name in
        ["FLOCKER_SOCKET", "FLOCKER_JOIN", "FLOCKER_STATE_DIR", "FLOCKER_LOG", "FLOCKER_SEEDS"]
    {
        command.env_remove(name);
    }
    command.args(arguments).kill_on_drop(true);
    command
}

fn put(path: &Path, label: &str, der: &[u8]) {
    let text = format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", BASE64.encode(der));
    durable::write_plain(path, text.as_bytes(), 0o600).expect("written");
}

impl Operator {
    fn new(folder: &Path) -> Self {
        let id = ClusterId::from_bytes([9; 16]);
        let authority = Authority::generate(id, SystemClock.wall()).expect("an authority");
        put(&folder.join("ca.pem"), "CERTIFICATE", authority.cert_der());
        Self { authority, folder: folder.to_owned() }
    }

    fn state(&self, name: &str) -> String {
        self.folder.join(name).join("state").display().to_string()
    }

    /// Has a node write a request, and signs it.
    async fn sign(&self, name: &str) -> serde_json::Value {
        let out = binary(&["identity", "csr", "--json", "--state-dir", &self.state(name)])
            .output()
            .await
            .expect("runs");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let made: serde_json::Value = serde_json::from_slice(&out.stdout).expect("a document");
        let body: String = made["csr"]
            .as_str()
            .expect("a request")
            .lines()
            .filter(|line| !line.starts_with('-'))
            .collect();
        let csr = BASE64.decode(body.as_bytes()).expect("PEM");
        let store = made["store"].as_str().expect("a store").parse().expect("a store");
        let now = SystemClock.wall();
        let cert = self.authority.issue(&csr, store, now, NODE_VALIDITY).expect("signed");
        put(&self.folder.join(name).join("cert.pem"), "CERTIFICATE", &cert);
        made
    }

    fn up(&self, name: &str, last: u8, more: &[&str]) -> Command {
        let folder = self.folder.join(name);
        let path = |name: &str| folder.join(name).display().to_string();
        let bind = IpAddr::from(Ipv4Addr::new(127, 93, 7, last)).to_string();
        let mut command = binary(&["up", "--name", name, "--http", "none", "--exit-with-parent"]);
        command
            .args(["--state-dir", &self.state(name), "--socket", &path("sock"), "--bind", &bind])
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn start(&self, name: &str, last: u8, join: &[&str]) -> Agent {
        let (cert, key) = (self.folder.join(name).join("cert.pem"), self.state(name) + "/node.key");
        let (ca, cert) = (self.folder.join("ca.pem"), cert.display().to_string());
        let ca = ca.display().to_string();
        let given = ["--ca-cert", &ca, "--cert", &cert, "--key", &key];
        let mut command = self.up(name, last, &[&given[..], join].concat());
        let process = command.stdout(Stdio::null()).stderr(Stdio::inherit()).spawn();
        let client = Client::new(self.folder.join(name).join("sock"), Duration::from_secs(10));
        Agent { process: process.expect("starts"), client }
    }
}

impl Agent {
    async fn until(&self, what: &str, is_so: impl Fn(&Status) -> bool) -> Status {
        let waiting = async {
            loop {
                if let Ok(status) = self.client.status().await
                    && is_so(&status)
                {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(IN_TIME, waiting).await.unwrap_or_else(|_late| panic!("{what}"))
    }

    async fn stop(mut self) {
        // The closed pipe asks it to end.
        drop(self.process.stdin.take());
        let _ended = tokio::time::timeout(IN_TIME, self.process.wait()).await;
    }
}

fn live(status: &Status) -> usize {
    status.nodes.iter().filter(|node| node.liveness == Liveness::Live).count()
}

#[tokio::test]
async fn an_operators_own_authority_makes_a_mesh_with_tokens_and_not_without() {
    let folder = tempfile::tempdir().expect("a folder");
    let operator = Operator::new(folder.path());
    for name in ["one", "two", "alone"] {
        operator.sign(name).await;
    }
    let again = operator.sign("one").await;
    assert_eq!(again["schema"], "flocker.csr/1");
    assert!(!again.to_string().contains("PRIVATE KEY"), "the key never leaves");

    let one = operator.start("one", 1, &[]);
    one.until("the first is up", |s| live(s) == 1).await;
    let socket = folder.path().join("one/sock").display().to_string();
    let token =
        binary(&["token", "create", "-q", "--socket", &socket]).output().await.expect("runs");
    let line = String::from_utf8(token.stdout).expect("text").trim().to_owned();

    // A certificate and no token: a cluster of its own, which the first has nothing to do with.
    let alone = operator.start("alone", 3, &["--seeds", "127.93.7.1"]);
    alone.until("up", |s| live(s) == 1).await;
    // A token and no certificate.
    let refused = operator.up("bare", 4, &["--join", &line]).output().await.expect("runs");
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && text.contains("flocker identity csr"), "{text}");
    // Both.
    let two = operator.start("two", 2, &["--join", &line]);
    two.until("the second sees both", |s| live(s) == 2).await;
    let seen = one.until("the first sees both", |s| live(s) == 2).await;
    assert_eq!(seen.nodes.len(), 2, "and nobody else: {:?}", seen.nodes);
    assert!(seen.attention.is_empty(), "{:?}", seen.attention);
    let shut_out = alone.until("answers", |_| true).await;
    assert_eq!((live(&shut_out), shut_out.nodes.len()), (1, 1), "{:?}", shut_out.nodes);

    // It comes back with its files, and not without.
    two.stop().await;
    let without = operator.up("two", 2, &[]).output().await.expect("runs");
    let text = String::from_utf8_lossy(&without.stderr).into_owned();
    assert!(!without.status.success() && text.contains("--ca-cert"), "{text}");
    let two = operator.start("two", 2, &[]);
    two.until("the second is back", |s| live(s) == 2).await;
    for agent in [alone, two, one] {
        agent.stop().await;
    }
}

//! The demo's clients: they POST numbered lines through every node's proxy and keep a ledger of
//! what was answered. A line counts as acknowledged only once its 2xx answer was read whole.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use flocker_base::{BootTime, Clock};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long one client waits for one answer.
const REQUEST_DEADLINE: Duration = Duration::from_secs(15);
/// Pause between two requests of one client, so that the demo leaves the machine breathing room.
const PACE: Duration = Duration::from_millis(10);
/// Largest answer read, in bytes.
const MAX_ANSWER: usize = 64 * 1024;

/// A proxy that the load goes through.
#[derive(Clone, Debug)]
pub struct Target {
    /// The node's name.
    pub node: String,
    /// Its proxy's HTTP address.
    pub address: SocketAddr,
}

/// What the clients saw between two looks at the ledger.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Requests sent.
    pub sent: u64,
    /// Requests that got no 2xx answer.
    pub failed: u64,
    /// The longest time from sending a request to its 2xx answer.
    pub longest: Duration,
    /// The first few reasons of failures.
    pub reasons: Vec<String>,
}

#[derive(Debug, Default)]
struct Ledger {
    window: Tally,
    acknowledged: BTreeMap<String, BootTime>,
    first_success_since: BTreeMap<String, BootTime>,
    since: BootTime,
}

/// Running clients.
#[derive(Debug)]
pub struct Load {
    ledger: Arc<Mutex<Ledger>>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
    clock: Arc<dyn Clock>,
}

impl Load {
    /// Starts `clients` clients a target, each sending to `host`.
    #[must_use]
    pub fn start(targets: &[Target], clients: usize, host: &str, clock: Arc<dyn Clock>) -> Self {
        let ledger = Arc::new(Mutex::new(Ledger::default()));
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        for target in targets {
            for number in 0..clients {
                let client = Client {
                    name: format!("{}-{number}", target.node),
                    target: target.clone(),
                    host: host.to_owned(),
                    ledger: Arc::clone(&ledger),
                    clock: Arc::clone(&clock),
                };
                tasks.spawn(client.run(stop.clone()));
            }
        }
        Self { ledger, stop, tasks, clock }
    }

    /// What was seen since the last call.
    #[must_use]
    pub fn take(&self) -> Tally {
        std::mem::take(&mut locked(&self.ledger).window)
    }

    /// Forgets which targets have answered; from now on [`Load::first_successes`] counts anew.
    pub fn mark(&self) -> BootTime {
        let now = self.clock.boot();
        let mut ledger = locked(&self.ledger);
        ledger.since = now;
        ledger.first_success_since.clear();
        now
    }

    /// When each target first answered a request that was *sent* after the mark.
    #[must_use]
    pub fn first_successes(&self) -> BTreeMap<String, BootTime> {
        locked(&self.ledger).first_success_since.clone()
    }

    /// How many lines were acknowledged so far.
    #[must_use]
    pub fn acknowledged(&self) -> usize {
        locked(&self.ledger).acknowledged.len()
    }

    /// Every line acknowledged so far, with the time of its acknowledgement.
    #[must_use]
    pub fn lines(&self) -> BTreeMap<String, BootTime> {
        locked(&self.ledger).acknowledged.clone()
    }

    /// Stops the clients after their present request and returns every line acknowledged, with
    /// the time of its acknowledgement.
    pub async fn stop(mut self) -> BTreeMap<String, BootTime> {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
        std::mem::take(&mut locked(&self.ledger).acknowledged)
    }
}

struct Client {
    name: String,
    target: Target,
    host: String,
    ledger: Arc<Mutex<Ledger>>,
    clock: Arc<dyn Clock>,
}

impl Client {
    async fn run(self, stop: CancellationToken) {
        let mut connection = None;
        let mut number = 0u64;
        while !stop.is_cancelled() {
            number += 1;
            let line = format!("{}-{number}", self.name);
            let sent = self.clock.boot();
            locked(&self.ledger).window.sent += 1;
            let answer =
                tokio::time::timeout(REQUEST_DEADLINE, self.post(&mut connection, &line)).await;
            match answer {
                Ok(Ok(())) => self.succeeded(line, sent),
                Ok(Err(reason)) => {
                    connection = None;
                    self.failed(&reason);
                }
                Err(_) => {
                    connection = None;
                    self.failed(&format!("no answer within {REQUEST_DEADLINE:?}"));
                }
            }
            tokio::time::sleep(PACE).await;
        }
    }

    async fn post(
        &self,
        connection: &mut Option<SendRequest<Full<Bytes>>>,
        line: &str,
    ) -> Result<(), String> {
        let mut sender = match connection.take().filter(|c| !c.is_closed()) {
            Some(sender) => sender,
            None => connect(self.target.address).await.map_err(|e| format!("connect: {e}"))?,
        };
        let request = hyper::Request::post("/")
            .header(hyper::header::HOST, &self.host)
            .body(Full::new(Bytes::from(line.to_owned())))
            .map_err(|e| e.to_string())?;
        sender.ready().await.map_err(|e| format!("connection: {e}"))?;
        let response = sender.send_request(request).await.map_err(|e| format!("request: {e}"))?;
        let status = response.status();
        let body = http_body_util::Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await
            .map_err(|e| format!("answer: {e}"))?
            .to_bytes();
        if !status.is_success() {
            let text = String::from_utf8_lossy(&body).trim().to_owned();
            return Err(format!("{status}: {text}"));
        }
        *connection = Some(sender);
        Ok(())
    }

    fn succeeded(&self, line: String, sent: BootTime) {
        let now = self.clock.boot();
        let mut ledger = locked(&self.ledger);
        ledger.window.longest = ledger.window.longest.max(now - sent);
        ledger.acknowledged.insert(line, now);
        if sent >= ledger.since {
            ledger.first_success_since.entry(self.target.node.clone()).or_insert(now);
        }
    }

    fn failed(&self, reason: &str) {
        let mut ledger = locked(&self.ledger);
        ledger.window.failed += 1;
        if ledger.window.reasons.len() < 5 {
            ledger.window.reasons.push(format!("through {}: {reason}", self.target.node));
        }
    }
}

async fn connect(address: SocketAddr) -> std::io::Result<SendRequest<Full<Bytes>>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) =
        handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
    // The connection ends with its sender, which lives in the client that called.
    drive(connection);
    Ok(sender)
}

#[expect(
    clippy::disallowed_methods,
    reason = "a client connection's driver ends with its sender; nobody needs to watch it"
)]
fn drive<C>(connection: C)
where
    C: Future<Output = Result<(), hyper::Error>> + Send + 'static,
{
    tokio::spawn(async move {
        // An error here reaches the client as the failure of its request.
        let _: Result<(), hyper::Error> = connection.await;
    });
}

/// Reads a whole small answer of a GET through a proxy.
///
/// # Errors
/// A text that names what failed.
pub async fn get(target: &Target, host: &str, path: &str, limit: usize) -> Result<Bytes, String> {
    let mut sender = connect(target.address).await.map_err(|e| format!("connect: {e}"))?;
    let request = hyper::Request::get(path)
        .header(hyper::header::HOST, host)
        .body(Full::new(Bytes::new()))
        .map_err(|e| e.to_string())?;
    let response = sender.send_request(request).await.map_err(|e| format!("request: {e}"))?;
    let status = response.status();
    let body = http_body_util::Limited::new(response.into_body(), limit)
        .collect()
        .await
        .map_err(|e| format!("answer: {e}"))?
        .to_bytes();
    if status.is_success() {
        Ok(body)
    } else {
        Err(format!("{status}: {}", String::from_utf8_lossy(&body).trim()))
    }
}

fn locked(ledger: &Mutex<Ledger>) -> std::sync::MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

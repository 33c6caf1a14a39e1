//! A small mesh: proxies that dial each other in memory, backends that do as they are told, and
//! clients.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flocker_base::{BootTime, Clock, Epoch, ServiceId, StoreId, SystemClock};
use flocker_proxy::{Dial, Place, Proxy, ProxyConfig, RouteTable, Stream};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub(crate) const SERVICE: ServiceId = ServiceId::from_bytes([7; 16]);
pub(crate) const HOST: &str = "app.example.com";

pub(crate) const fn store(number: u8) -> StoreId {
    StoreId::from_bytes([number; 16])
}

pub(crate) const fn epoch(counter: u64) -> Epoch {
    Epoch { generation: 1, counter }
}

/// Several proxies that reach each other.
pub(crate) struct Mesh {
    net: Arc<Net>,
    pub(crate) tasks: Arc<Mutex<JoinSet<()>>>,
    pub(crate) shutdown: CancellationToken,
}

/// One node of it.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) id: StoreId,
    pub(crate) proxy: Proxy,
    pub(crate) address: SocketAddr,
}

#[derive(Default)]
struct Net {
    proxies: Mutex<HashMap<StoreId, Proxy>>,
    down: Mutex<HashSet<StoreId>>,
    opened: Mutex<usize>,
    tasks: Mutex<Option<Arc<Mutex<JoinSet<()>>>>>,
}

struct NodeDial {
    from: StoreId,
    net: Arc<Net>,
}

#[async_trait]
impl Dial for NodeDial {
    async fn open(&self, node: StoreId) -> io::Result<Box<dyn Stream>> {
        *self.net.opened.lock().expect("lock") += 1;
        if self.net.down.lock().expect("lock").contains(&node) {
            return Err(io::Error::new(io::ErrorKind::HostUnreachable, "the node is down"));
        }
        let proxy = self.net.proxies.lock().expect("lock").get(&node).cloned();
        let Some(proxy) = proxy else { return Err(io::Error::other("no such node")) };
        let (near, far) = tokio::io::duplex(64 * 1024);
        let from = self.from;
        let tasks = self.net.tasks.lock().expect("lock").clone().expect("set at the start");
        tasks.lock().expect("lock").spawn(async move {
            proxy.serve_forwarded(from, Box::new(far)).await;
        });
        Ok(Box::new(near))
    }
}

impl Mesh {
    pub(crate) fn new() -> Self {
        let tasks = Arc::new(Mutex::new(JoinSet::new()));
        let net = Net::default();
        *net.tasks.lock().expect("lock") = Some(Arc::clone(&tasks));
        Self { net: Arc::new(net), tasks, shutdown: CancellationToken::new() }
    }

    pub(crate) async fn node(&self, number: u8, config: ProxyConfig) -> Node {
        config.validate().expect("a valid configuration");
        let id = store(number);
        let dial = NodeDial { from: id, net: Arc::clone(&self.net) };
        let proxy = Proxy::new(config, Arc::new(dial), Arc::new(SystemClock));
        self.net.proxies.lock().expect("lock").insert(id, proxy.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let (serving, shutdown) = (proxy.clone(), self.shutdown.clone());
        self.spawn(async move { serving.serve(listener, shutdown).await });
        Node { id, proxy, address }
    }

    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.lock().expect("lock").spawn(task);
    }

    pub(crate) fn set_down(&self, node: StoreId, down: bool) {
        let mut all = self.net.down.lock().expect("lock");
        if down {
            all.insert(node)
        } else {
            all.remove(&node)
        };
    }

    /// How often any node opened a stream to another, or tried to.
    pub(crate) fn opened(&self) -> usize {
        *self.net.opened.lock().expect("lock")
    }
}

impl Node {
    /// The one service is there.
    pub(crate) fn route(&self, place: Place) {
        self.proxy.set_routes(&routes(place));
    }

    pub(crate) fn local(&self, backend: &Backend, counter: u64) {
        self.route(Place::Local { address: backend.address, epoch: epoch(counter) });
    }

    pub(crate) fn remote(&self, node: StoreId) {
        self.route(Place::Remote { node });
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.address).await
    }
}

pub(crate) fn routes(place: Place) -> RouteTable {
    RouteTable {
        hosts: HashMap::from([(HOST.to_owned(), SERVICE)]),
        services: HashMap::from([(SERVICE, place)]),
        names: HashMap::from([(SERVICE, "tally".to_owned())]),
    }
}

pub(crate) fn config() -> ProxyConfig {
    ProxyConfig {
        max_hold: Duration::from_secs(10),
        connect_timeout: Duration::from_secs(1),
        dial_timeout: Duration::from_secs(1),
        ..ProxyConfig::default()
    }
}

/// What a backend saw of a request.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// A backend that counts and remembers what it is asked.
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<Mutex<Vec<Seen>>>,
    pub(crate) connections: Arc<Mutex<usize>>,
    stop: CancellationToken,
    stopped: CancellationToken,
}

impl Backend {
    /// Answers each request with `200` and its number, after `delay`.
    pub(crate) async fn start(mesh: &Mesh, delay: Duration) -> Self {
        Self::start_on(mesh, delay, Arc::default(), "127.0.0.1:0").await
    }

    /// The same, going on with what an earlier instance saw: its volume, so to speak.
    pub(crate) async fn start_on(
        mesh: &Mesh,
        delay: Duration,
        seen: Arc<Mutex<Vec<Seen>>>,
        at: &str,
    ) -> Self {
        let listener = TcpListener::bind(at).await.expect("bind");
        let address = listener.local_addr().expect("address");
        let connections = Arc::new(Mutex::new(0));
        let (stop, stopped) = (CancellationToken::new(), CancellationToken::new());
        let backend = Self { address, seen, connections, stop, stopped };
        let (seen, connections) = (Arc::clone(&backend.seen), Arc::clone(&backend.connections));
        let (stop, done) = (backend.stop.clone(), backend.stopped.clone());
        mesh.spawn(async move {
            let mut open = JoinSet::new();
            while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
                let (stream, _) = accepted.expect("accept");
                *connections.lock().expect("lock") += 1;
                open.spawn(serve_backend(stream, Arc::clone(&seen), delay));
            }
            drop(listener);
            open.shutdown().await;
            done.cancel();
        });
        backend
    }

    /// Closes everything, as a stopped process does.
    pub(crate) async fn stop(&self) {
        self.stop.cancel();
        self.stopped.cancelled().await;
    }

    pub(crate) fn count(&self) -> usize {
        self.seen.lock().expect("lock").len()
    }

    pub(crate) fn last(&self) -> Seen {
        self.seen.lock().expect("lock").last().expect("a request came").clone()
    }

    pub(crate) fn connections(&self) -> usize {
        *self.connections.lock().expect("lock")
    }
}

async fn serve_backend(stream: TcpStream, seen: Arc<Mutex<Vec<Seen>>>, delay: Duration) {
    stream.set_nodelay(true).expect("nodelay");
    let service = service_fn(move |request: Request<Incoming>| {
        let seen = Arc::clone(&seen);
        async move {
            let (head, body) = request.into_parts();
            let Ok(body) = body.collect().await else {
                let mut response = Response::new(Full::new(Bytes::from_static(b"broken")));
                *response.status_mut() = StatusCode::BAD_REQUEST;
                return Ok::<_, Infallible>(response);
            };
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            let one =
                Seen { target: head.uri.to_string(), headers: head.headers, body: body.to_bytes() };
            let mut seen = seen.lock().expect("lock");
            seen.push(one);
            let body = Bytes::from(format!("request {}", seen.len()));
            Ok(Response::new(Full::new(body)))
        }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
    // A proxy that closes its idle connections, or a test that ends, is no failure here.
    drop(served);
}

/// A backend that handles each connection by hand: one raw conversation after the other.
pub(crate) async fn raw_backend<F, R>(mesh: &Mesh, conversation: F) -> SocketAddr
where
    F: Fn(usize, TcpStream) -> R + Send + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    mesh.spawn(async move {
        let mut open = JoinSet::new();
        let mut number = 0;
        while let Ok((stream, _)) = listener.accept().await {
            open.spawn(conversation(number, stream));
            number += 1;
        }
    });
    address
}

/// Reads a request head (and what came with it) by hand.
pub(crate) async fn read_head(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    while !all.windows(4).any(|at| at == b"\r\n\r\n") {
        let read = stream.read(&mut buffer).await.expect("read");
        if read == 0 {
            break;
        }
        all.extend_from_slice(&buffer[..read]);
    }
    String::from_utf8_lossy(&all).into_owned()
}

/// A keep-alive client.
pub(crate) struct Client {
    sender: SendRequest<Full<Bytes>>,
    _connection: JoinSet<()>,
}

/// An answer, read whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("connect");
        stream.set_nodelay(true).expect("nodelay");
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("handshake");
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { drop(connection.await) });
        Self { sender, _connection: tasks }
    }

    pub(crate) async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Answer, hyper::Error> {
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        let (head, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        let text = String::from_utf8_lossy(&body).into_owned();
        Ok(Answer { status: head.status, headers: head.headers, text })
    }

    pub(crate) async fn get(&mut self, path: &str) -> Answer {
        self.send(get(path)).await.expect("an answer")
    }

    pub(crate) async fn post(&mut self, body: impl Into<Bytes>) -> Answer {
        self.send(post(body)).await.expect("an answer")
    }
}

pub(crate) fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(path).header("host", HOST).body(Full::default()).expect("a request")
}

pub(crate) fn post(body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::post("/").header("host", HOST).body(Full::new(body.into())).expect("a request")
}

/// Sends bytes as they are and reads until the proxy closes, or `patience` is over.
pub(crate) async fn raw(address: SocketAddr, bytes: &[u8], patience: Duration) -> String {
    let mut stream = TcpStream::connect(address).await.expect("connect");
    // The proxy may have refused and closed before all of it is written.
    let _ = stream.write_all(bytes).await;
    read_for(&mut stream, patience).await
}

/// Reads until the other side closes, or `patience` is over.
pub(crate) async fn read_for(stream: &mut TcpStream, patience: Duration) -> String {
    let mut all = Vec::new();
    let reading = async {
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            all.extend_from_slice(&buffer[..read]);
        }
    };
    let _ = tokio::time::timeout(patience, reading).await;
    String::from_utf8_lossy(&all).into_owned()
}

/// Waits for something to become true. Integration tests wait on real sockets and real time.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never came true: {what}");
}

/// Measures real time.
pub(crate) struct Stopwatch(BootTime);

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self(SystemClock.boot())
    }

    pub(crate) fn read(&self) -> Duration {
        SystemClock.boot() - self.0
    }
}

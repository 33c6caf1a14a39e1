//! The server and the client over a real socket, with a fake agent and with hostile peers.

use std::sync::atomic::{AtomicUsize, Ordering};

use flocker_base::{ClusterId, Epoch, WallTime};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::api::client::Client;
use crate::api::{
    ClusterStatus, DeployReply, EventList, EventQuery, ExportRequest, Exported, MoveReport,
    PromoteRequest, Promoted, Removed, ServiceList, Status, StepState, Version, VolumeList,
};
use crate::manifest::Deployment;

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

/// An agent that answers at once, but moves only when the test lets it.
struct Fake {
    moved: Arc<AtomicUsize>,
    gate: Arc<Semaphore>,
}

impl Default for Fake {
    fn default() -> Self {
        Self { moved: Arc::default(), gate: Arc::new(Semaphore::new(0)) }
    }
}

#[async_trait::async_trait]
impl Operations for Fake {
    async fn status(&self) -> Result<Status, ApiError> {
        Ok(Status {
            viewed_from: name("eu-1"),
            at: WallTime::from_millis(1),
            oldest_fact_ms: None,
            cluster: ClusterStatus { id: ClusterId::from_bytes([7; 16]) },
            attention: Vec::new(),
            nodes: Vec::new(),
            volumes: Vec::new(),
            services: Vec::new(),
            routes: Vec::new(),
            operations: Vec::new(),
        })
    }

    async fn deploy(&self, deployment: Deployment) -> Result<DeployReply, ApiError> {
        assert!(deployment.services.is_empty());
        Ok(DeployReply { changes: Vec::new(), warnings: Vec::new() })
    }

    async fn events(&self, query: EventQuery) -> Result<EventList, ApiError> {
        Ok(EventList { newest: query.after + query.wait_ms, ..EventList::default() })
    }

    async fn services(&self) -> Result<ServiceList, ApiError> {
        Ok(ServiceList { services: Vec::new() })
    }

    async fn remove_service(&self, service: Name) -> Result<Removed, ApiError> {
        Err(ApiError::not_found(format!("there is no service '{service}'")).hint("list them"))
    }

    async fn volumes(&self) -> Result<VolumeList, ApiError> {
        Ok(VolumeList { volumes: Vec::new() })
    }

    async fn move_service(
        &self,
        request: MoveRequest,
        progress: mpsc::Sender<Progress>,
    ) -> Result<MoveReport, ApiError> {
        for index in 0..3_u64 {
            let _lost = progress.try_send(Progress {
                step: "pre-copy".to_owned(),
                text: format!("round {index}"),
                state: StepState::Started,
                elapsed_ms: index,
            });
        }
        self.gate.acquire().await.expect("open").forget();
        self.moved.fetch_add(1, Ordering::SeqCst);
        Ok(MoveReport {
            service: request.service,
            from: name("eu-1"),
            to: name("eu-2"),
            epoch: Epoch::new(0, 2),
            pause_ms: 12,
            elapsed_ms: 34,
        })
    }

    async fn export(&self, request: ExportRequest) -> Result<Exported, ApiError> {
        if request.branch.is_some() {
            return Err(ApiError::not_found("no such branch").hint("list them"));
        }
        Ok(Exported { into: request.into, head: flocker_base::Head::NONE })
    }

    async fn promote(&self, request: PromoteRequest) -> Result<Promoted, ApiError> {
        let PromoteRequest { volume, node, gone } = request;
        let node = node.ok_or_else(|| ApiError::new(ErrorCode::Fenced, "it is held"))?;
        let (epoch, forced) = (Epoch::new(1, 7), gone.is_some());
        Ok(Promoted { volume, node, epoch, forced, voters: Vec::new(), serving: None })
    }

    async fn version(&self) -> Version {
        Version { version: "9.9.9".to_owned(), node: name("eu-1") }
    }
}

mod members;

struct Running {
    folder: tempfile::TempDir,
    shutdown: CancellationToken,
    server: JoinSet<()>,
}

impl Running {
    async fn start(fake: Fake, config: ServerConfig) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let socket = ApiSocket::bind(&folder.path().join("s")).await.expect("binds");
        let shutdown = CancellationToken::new();
        let mut server = JoinSet::new();
        server.spawn(serve(socket, Arc::new(fake), config, shutdown.clone()));
        Self { folder, shutdown, server }
    }

    fn client(&self) -> Client {
        Client::new(self.folder.path().join("s"), Duration::from_secs(20))
    }

    async fn raw(&self) -> UnixStream {
        UnixStream::connect(self.folder.path().join("s")).await.expect("connects")
    }

    async fn stop(mut self) {
        self.shutdown.cancel();
        while let Some(ended) = self.server.join_next().await {
            ended.expect("the server ends in order");
        }
        assert!(!self.folder.path().join("s").exists());
    }
}

fn move_tally() -> MoveRequest {
    MoveRequest { service: name("tally"), to: crate::api::Destination::Node(name("eu-2")) }
}

#[tokio::test]
async fn every_call_is_answered() {
    let fake = Fake::default();
    fake.gate.add_permits(1);
    let running = Running::start(fake, ServerConfig::default()).await;
    let client = running.client();
    assert_eq!(client.status().await.expect("status").viewed_from, name("eu-1"));
    assert!(client.services().await.expect("services").services.is_empty());
    assert!(client.volumes().await.expect("volumes").volumes.is_empty());
    assert_eq!(client.version().await.expect("version").version, "9.9.9");
    let promote = PromoteRequest { volume: name("data"), node: None, gone: Some(name("eu-1")) };
    let error = client.promote(&promote).await.expect_err("held");
    assert_eq!(error.code, ErrorCode::Fenced);
    let promote = PromoteRequest { node: Some(name("eu-2")), ..promote };
    let promoted = client.promote(&promote).await.expect("promoted");
    assert_eq!((promoted.node, promoted.forced), (name("eu-2"), true));
    let export = ExportRequest { volume: name("data"), branch: None, into: "/x".into() };
    assert_eq!(client.export(&export).await.expect("export").into, std::path::Path::new("/x"));
    let export = ExportRequest { branch: Some("tail".to_owned()), ..export };
    let error = client.export(&export).await.expect_err("no such branch");
    assert_eq!(error.code, ErrorCode::NotFound);
    let token = client.create_token(&crate::api::TokenCreate::lasting(5)).await.expect("token");
    assert_eq!(token.valid_for_ms, 5);
    assert!(client.deploy(Deployment::default()).await.expect("deploy").changes.is_empty());
    let error = client.remove_service(&name("web")).await.expect_err("refused");
    assert_eq!((error.code, error.hint.as_str()), (ErrorCode::NotFound, "list them"));
    let mut steps = Vec::new();
    let report = client
        .move_service(&move_tally(), |step| steps.push(step.text.clone()))
        .await
        .expect("moves");
    assert_eq!(steps, ["round 0", "round 1", "round 2"]);
    assert_eq!((report.pause_ms, report.to), (12, name("eu-2")));
    running.stop().await;
}

#[tokio::test]
async fn a_move_goes_on_when_its_caller_goes_away() {
    let fake = Fake::default();
    let (moved, gate) = (Arc::clone(&fake.moved), Arc::clone(&fake.gate));
    let running = Running::start(fake, ServerConfig::default()).await;
    let client = running.client();
    let (seen, mut first_step) = mpsc::channel(8);
    let request = move_tally();
    {
        let calling = client.move_service(&request, |_| {
            let _full = seen.try_send(());
        });
        tokio::select! {
            _ended = calling => panic!("the gate is closed"),
            _step = first_step.recv() => {}
        }
    }
    assert_eq!(moved.load(Ordering::SeqCst), 0);
    gate.add_permits(1);
    running.stop().await;
    assert_eq!(moved.load(Ordering::SeqCst), 1, "it was carried out to its end");
}

#[tokio::test]
async fn more_operations_than_slots_are_refused() {
    let config = ServerConfig { max_operations: 1, ..ServerConfig::default() };
    let fake = Fake::default();
    let gate = Arc::clone(&fake.gate);
    let running = Running::start(fake, config).await;
    let client = running.client();
    let request = move_tally();
    let (seen, mut first_step) = mpsc::channel(8);
    let mut first = std::pin::pin!(client.move_service(&request, |_| {
        let _full = seen.try_send(());
    }));
    tokio::select! {
        ended = &mut first => panic!("the gate is closed: {ended:?}"),
        _step = first_step.recv() => {}
    }
    let refused = client.deploy(Deployment::default()).await.expect_err("no slot is free");
    assert_eq!(refused.code, ErrorCode::Busy);
    gate.add_permits(1);
    first.await.expect("ends");
    running.stop().await;
}

#[tokio::test]
async fn wrong_requests_are_refused_by_name() {
    let config = ServerConfig { max_request_bytes: 1000, ..ServerConfig::default() };
    let running = Running::start(Fake::default(), config).await;
    for (request, status, says) in [
        ("GET /nope HTTP/1.1", "404", "no GET /nope"),
        ("PUT /v1/status HTTP/1.1", "404", "no PUT /v1/status"),
        ("DELETE /v1/services/..%2f HTTP/1.1", "400", "not a name"),
        ("POST /v1/moves HTTP/1.1\r\ncontent-length: 2", "400", "missing field"),
        ("POST /v1/deploy HTTP/1.1\r\ncontent-length: 99999999", "400", "limit 1000 bytes"),
    ] {
        let mut stream = running.raw().await;
        let text = format!("{request}\r\nhost: x\r\nconnection: close\r\n\r\n{{}}");
        stream.write_all(text.as_bytes()).await.expect("writes");
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.expect("reads");
        assert!(reply.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {reply}");
        assert!(reply.contains(says), "{request}: {reply}");
        assert!(reply.contains("flocker.error/1"), "{request}: {reply}");
    }
    let unknown = br#"{"service":"a","to":{"node":"b"},"forcibly":true}"#;
    let mut stream = running.raw().await;
    let head = format!(
        "POST /v1/moves HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        unknown.len()
    );
    stream.write_all(head.as_bytes()).await.expect("writes");
    stream.write_all(unknown).await.expect("writes");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.expect("reads");
    assert!(reply.contains("unknown field `forcibly`"), "{reply}");
    running.stop().await;
}

#[tokio::test]
async fn idle_and_slow_peers_are_shed_and_do_not_starve_others() {
    let config = ServerConfig {
        max_connections: 4,
        head_deadline: Duration::from_millis(100),
        body_deadline: Duration::from_millis(100),
        ..ServerConfig::default()
    };
    let running = Running::start(Fake::default(), config).await;
    let mut idle = Vec::new();
    for _ in 0..4 {
        let mut stream = running.raw().await;
        stream.write_all(b"GET /v1/st").await.expect("writes");
        idle.push(stream);
    }
    let mut slow = running.raw().await;
    slow.write_all(b"POST /v1/deploy HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n{")
        .await
        .expect("writes");
    running.client().status().await.expect("is answered all the same");
    let mut reply = [0; 12];
    slow.read_exact(&mut reply).await.expect("reads");
    assert_eq!(&reply, b"HTTP/1.1 400");
    running.stop().await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any bytes at all: the server answers or hangs up, and goes on serving.
    #[test]
    fn hostile_bytes_do_not_stop_the_server(
        junk in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..2000), 1..4),
        prefix in prop::sample::select(vec!["", "GET ", "POST /v1/moves HTTP/1.1\r\nhost: x\r\n",
            "POST /v1/deploy HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"]),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async move {
            let running = Running::start(Fake::default(), ServerConfig::default()).await;
            for bytes in junk {
                let mut stream = running.raw().await;
                let _hung_up = stream.write_all(prefix.as_bytes()).await;
                let _hung_up = stream.write_all(&bytes).await;
                let _hung_up = stream.shutdown().await;
                let mut reply = Vec::new();
                let _hung_up = stream.read_to_end(&mut reply).await;
            }
            assert!(running.client().status().await.is_ok());
            running.stop().await;
        });
    }

    /// An agent's socket that answers with junk is an error with a hint, whatever the junk.
    #[test]
    fn hostile_answers_do_not_break_the_client(junk in prop::collection::vec(any::<u8>(), 0..500),
        prefix in prop::sample::select(vec!["", "HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 500 X\r\n\r\n"])) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let errors = runtime.block_on(async move {
            let folder = tempfile::tempdir().expect("folder");
            let path = folder.path().join("s");
            let listener = tokio::net::UnixListener::bind(&path).expect("binds");
            let client = Client::new(path, Duration::from_millis(500));
            let serving = async {
                for _ in 0..2 {
                    let (mut stream, _) = listener.accept().await.expect("accepts");
                    let mut head = [0; 1024];
                    let _read = stream.read(&mut head).await;
                    let _hung_up = stream.write_all(prefix.as_bytes()).await;
                    let _hung_up = stream.write_all(&junk).await;
                }
            };
            let request = move_tally();
            let calling = async {
                (client.status().await, client.move_service(&request, |_| {}).await)
            };
            tokio::join!(serving, calling).1
        });
        for error in [errors.0.expect_err("refused"), errors.1.expect_err("refused")] {
            prop_assert!(!error.hint.is_empty() && !error.message.is_empty());
        }
    }
}

#[tokio::test]
async fn events_are_asked_for_by_number_and_wait() {
    let running = Running::start(Fake::default(), ServerConfig::default()).await;
    let query = EventQuery { after: 3, wait_ms: 4 };
    let list = running.client().events(&query).await.expect("a list");
    assert_eq!(list.newest, 7);
    running.stop().await;
}

//! The program as a user meets it: help, errors, exit codes, and its talk with an agent. The
//! agent is a fake behind the real API server; nothing here may need a real one.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use flocker::api::server::{ServerConfig, serve};
use flocker::api::socket::ApiSocket;
use flocker::api::{
    ApiError, Attention, Change, ChangeKind, ChangedRecord, ClusterStatus, DeployReply,
    Destination, ErrorCode, EventEntry, EventList, EventQuery, ExportRequest, Exported, MoveReport,
    MoveRequest, Operations, Progress, PromoteRequest, Promoted, Removed, ServiceList,
    ServiceState, ServiceStatus, Severity, Status, StepState, Version, VolumeList,
};
use flocker::manifest::Deployment;
use flocker_base::{ClusterId, Epoch, Name, ServiceId, WallTime};
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

/// The program in a clean environment, in a folder of its own.
fn flocker(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flocker"));
    command
        .args(arguments)
        .current_dir(folder)
        .env_clear()
        .env("COLUMNS", "100")
        .env("HOME", folder)
        .env("FLOCKER_SOCKET", folder.join("agent.sock"))
        .env("FLOCKER_STATE_DIR", folder.join("state"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

async fn ends(mut command: Command) -> (i32, String, String) {
    let run = tokio::time::timeout(Duration::from_secs(60), command.output());
    let Output { status, stdout, stderr } = run.await.expect("ends").expect("runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (status.code().expect("an exit code"), text(stdout), text(stderr))
}

struct Fake;

impl Fake {
    fn service() -> ServiceStatus {
        ServiceStatus {
            id: ServiceId::from_bytes([6; 16]),
            name: name("tally"),
            volume: name("tally-data"),
            node: Some(name("eu-1")),
            state: ServiceState::Running,
            address: None,
            pid: None,
            epoch: None,
        }
    }
}

#[async_trait::async_trait]
impl Operations for Fake {
    async fn status(&self) -> Result<Status, ApiError> {
        Ok(Status {
            viewed_from: name("eu-1"),
            at: WallTime::from_millis(0),
            oldest_fact_ms: None,
            cluster: ClusterStatus { id: ClusterId::from_bytes([7; 16]) },
            attention: vec![Attention {
                severity: Severity::Critical,
                text: "pg has no master".to_owned(),
                command: Some("flocker volume promote pg".to_owned()),
            }],
            nodes: Vec::new(),
            volumes: Vec::new(),
            services: vec![Self::service()],
            routes: Vec::new(),
            operations: Vec::new(),
        })
    }

    async fn deploy(&self, deployment: Deployment) -> Result<DeployReply, ApiError> {
        let change = |service: flocker::manifest::ServiceDraft| Change {
            record: ChangedRecord::Service,
            name: service.name.to_string(),
            change: ChangeKind::Created,
        };
        Ok(DeployReply {
            changes: deployment.services.into_iter().map(change).collect(),
            warnings: vec![],
        })
    }

    /// By force it works, else a voter is missing.
    async fn promote(&self, request: PromoteRequest) -> Result<Promoted, ApiError> {
        let PromoteRequest { volume, node, gone } = request;
        if gone.is_none() {
            let error = ApiError::new(ErrorCode::Fenced, "too few voters answer; missing: eu-1");
            return Err(error.hint("start it again"));
        }
        let node = node.unwrap_or_else(|| name("eu-2"));
        let (epoch, voters, serving) = (Epoch::new(1, 5), vec![node.clone()], Some(name("tally")));
        Ok(Promoted { volume, node, epoch, forced: true, voters, serving })
    }

    async fn events(&self, query: EventQuery) -> Result<EventList, ApiError> {
        let event = EventEntry {
            sequence: 8,
            at: WallTime::from_millis(1_800_000_000_000),
            kind: "node.suspected".to_owned(),
            subject: "eu-2".to_owned(),
            text: "eu-2 (eu) is silent\u{7} and may be dead".to_owned(),
        };
        Ok(EventList { events: vec![event], newest: 8, missed: query.after })
    }

    async fn services(&self) -> Result<ServiceList, ApiError> {
        Ok(ServiceList { services: vec![Self::service()] })
    }

    async fn remove_service(&self, service: Name) -> Result<Removed, ApiError> {
        if service.as_str() == "tally" {
            return Ok(Removed { service, routes: Vec::new(), volume_kept: Some(name("v")) });
        }
        Err(ApiError::not_found(format!("there is no service '{service}'"))
            .hint("'flocker service ls' lists them"))
    }

    async fn volumes(&self) -> Result<VolumeList, ApiError> {
        Ok(VolumeList { volumes: Vec::new() })
    }

    /// Moves to the node `never` take for ever; to `fenced`, are refused.
    async fn move_service(
        &self,
        request: MoveRequest,
        progress: mpsc::Sender<Progress>,
    ) -> Result<MoveReport, ApiError> {
        let _lost = progress.try_send(Progress {
            step: "pre-copy".to_owned(),
            text: "3 MiB to go".to_owned(),
            state: StepState::Started,
            elapsed_ms: 10,
        });
        let Destination::Node(to) = request.to else {
            return Err(ApiError::new(ErrorCode::CannotPlace, "no node in that region"));
        };
        match to.as_str() {
            "never" => std::future::pending().await,
            "fenced" => Err(ApiError::new(ErrorCode::Fenced, "another node holds the lease")),
            _ => Ok(MoveReport {
                service: request.service,
                from: name("eu-1"),
                to,
                epoch: Epoch::new(0, 4),
                pause_ms: 87,
                elapsed_ms: 900,
            }),
        }
    }

    async fn export(&self, _: ExportRequest) -> Result<Exported, ApiError> {
        Err(ApiError::not_found("no such branch"))
    }

    async fn version(&self) -> Version {
        Version { version: "9.9.9".to_owned(), node: name("eu-1") }
    }
}

#[path = "cli/members.rs"]
mod members;

/// A folder with an agent that answers in it.
struct Agent {
    folder: tempfile::TempDir,
    stop: CancellationToken,
    server: JoinSet<()>,
}

impl Agent {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let socket = ApiSocket::bind(&folder.path().join("agent.sock")).await.expect("binds");
        let stop = CancellationToken::new();
        let config =
            ServerConfig { drain_deadline: Duration::from_millis(50), ..ServerConfig::default() };
        let mut server = JoinSet::new();
        server.spawn(serve(socket, Arc::new(Fake), config, stop.clone()));
        Self { folder, stop, server }
    }

    async fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        ends(flocker(self.folder.path(), arguments)).await
    }

    async fn stop(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.server.join_next().await {
            ended.expect("the server ends in order");
        }
    }
}

async fn alone(arguments: &[&str]) -> (i32, String, String) {
    let folder = tempfile::tempdir().expect("folder");
    ends(flocker(folder.path(), arguments)).await
}

#[tokio::test]
async fn every_command_has_help_that_teaches() {
    for command in [
        &["up"][..],
        &["status"],
        &["deploy"],
        &["service", "ls"],
        &["service", "rm"],
        &["volume", "ls"],
        &["volume", "promote"],
        &["move"],
        &["token", "create"],
        &["token", "ls"],
        &["token", "revoke"],
        &["node", "ls"],
        &["node", "show"],
        &["node", "rm"],
        &["node", "label"],
        &["demo"],
        &["version"],
    ] {
        let (code, out, err) = alone(&[command, &["--help"]].concat()).await;
        assert_eq!((code, err.as_str()), (0, ""), "{command:?}");
        for part in ["Usage: flocker", "Examples:\n", "Exit codes:\n  0    done\n"] {
            assert!(out.contains(part), "{command:?}: {out}");
        }
        assert!(out.lines().all(|line| line.chars().count() <= 100), "{command:?}: {out}");
    }
}

#[tokio::test]
async fn the_help_pages_are_as_reviewed() {
    let (_, top, _) = alone(&["--help"]).await;
    assert_eq!(top, include_str!("cli/help.txt"), "if this is meant, renew tests/cli/help.txt");
    let (_, moving, _) = alone(&["move", "--help"]).await;
    assert_eq!(moving, include_str!("cli/help-move.txt"), "if this is meant, renew the file");
    let (code, out, err) = alone(&[]).await;
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(err.contains("Usage: flocker"), "{err}");
}

#[tokio::test]
async fn each_mistake_is_one_line_that_says_what_to_do() {
    let folder = tempfile::tempdir().expect("folder");
    let misspelt = "services:\n  web:\n    comand: x\n";
    let unset = "services:\n  web:\n    command: $NOPE\n    volumes: [v:/v]\nvolumes: {v: }\n";
    for (file, text) in [("misspelt.yaml", misspelt), ("unset.yaml", unset), ("seeds", "a b\n")] {
        flocker_base::durable::write_plain(&folder.path().join(file), text.as_bytes(), 0o600)
            .expect("writes");
    }
    for (arguments, code, line) in [
        (
            &["move", "tally", "--too", "x"][..],
            2,
            "error: unexpected argument '--too' found; a similar argument exists: '--to'; see 'flocker move --help'",
        ),
        (
            &["move", "tally"],
            2,
            "error: missing: <--to <NODE>|--region <REGION>>; see 'flocker move --help'",
        ),
        (
            &["stauts"],
            2,
            "error: unrecognized subcommand 'stauts'; a similar subcommand exists: 'status'; see 'flocker --help'",
        ),
        (
            &["deploy", "nope.yaml"],
            11,
            "error: there is no file nope.yaml; check the path; 'flocker help deploy' shows what goes into such a file",
        ),
        (
            &["deploy", "misspelt.yaml"],
            10,
            "error: misspelt.yaml:3: services.web.comand: unknown key 'comand'; did you mean 'command'?",
        ),
        (
            &["deploy", "unset.yaml"],
            10,
            "error: unset.yaml:3: services.web.command: the environment variable NOPE is not set; set it, or give a default: '${NOPE:-default}'",
        ),
        (
            &["service", "rm", "tally"],
            2,
            "error: this needs a yes, and nobody is here to ask; add --yes",
        ),
        (
            &["up", "--control-port", "7", "--data-port", "7"],
            2,
            "error: the control and the data port are both 7; give --control-port and --data-port different numbers",
        ),
        (
            &["up", "--seed-file", "seeds"],
            2,
            "error: the seed 'a b' is no address; write it as HOST, HOST:PORT or [IPV6]:PORT",
        ),
        (
            &["up", "--join", "secret"],
            2,
            "error: the join string has not the form TOKEN@HOST[:PORT],...; copy the whole line that 'flocker token create' printed",
        ),
    ] {
        let (found, out, err) = ends(flocker(folder.path(), arguments)).await;
        assert_eq!((found, out.as_str(), err.as_str()), (code, "", format!("{line}\n").as_str()));
    }
    let (code, _, err) = alone(&["move", "--json"]).await;
    assert_eq!(code, 2);
    assert!(err.starts_with(r#"{"schema":"flocker.error/1","code":"usage","#), "{err}");
}

#[tokio::test]
async fn without_an_agent_it_says_how_to_start_one() {
    let folder = tempfile::tempdir().expect("folder");
    let socket = folder.path().join("agent.sock");
    let line = format!(
        "error: no agent runs here: nobody answers on {}; start one with 'flocker up', or name its socket with --socket or FLOCKER_SOCKET\n",
        socket.display()
    );
    for stale in [false, true] {
        if stale {
            drop(std::os::unix::net::UnixListener::bind(&socket).expect("a stale socket"));
        }
        for arguments in [&["status"][..], &["service", "ls"], &["move", "a", "--to", "b"]] {
            let (code, out, err) = ends(flocker(folder.path(), arguments)).await;
            assert_eq!((code, out.as_str(), err.as_str()), (4, "", line.as_str()));
        }
    }
    let (code, out, _) = ends(flocker(folder.path(), &["version"])).await;
    assert_eq!(code, 0);
    assert!(out.contains("no agent runs here"), "{out}");
    let (code, _, err) = ends(flocker(folder.path(), &["status", "-o", "json"])).await;
    assert_eq!(code, 4);
    let error: BTreeMap<String, String> = serde_json::from_str(&err).expect("JSON");
    assert_eq!((error["schema"].as_str(), error["code"].as_str()), ("flocker.error/1", "no-agent"));
}

#[tokio::test]
async fn data_comes_for_people_and_for_programs() {
    let agent = Agent::start().await;
    let (code, out, err) = agent.run(&["status"]).await;
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(
        out.contains("○ critical: pg has no master\n      → flocker volume promote pg"),
        "{out}"
    );
    assert_eq!(agent.run(&["status", "--check", "-q"]).await.0, 3);
    let (_, out, _) = agent.run(&["status", "--ascii", "--color", "always"]).await;
    assert!(out.is_ascii() && out.contains("\x1b["), "{out}");
    for (arguments, schema) in [
        (&["status", "--json"][..], "flocker.status/1"),
        (&["service", "ls", "-o", "json"], "flocker.services/1"),
        (&["volume", "ls", "--json"], "flocker.volumes/1"),
        (&["token", "create", "--json"], "flocker.token/1"),
        (&["token", "ls", "--json"], "flocker.tokens/1"),
        (
            &["token", "revoke", "abababababababababababababababab", "--json"],
            "flocker.tokens-revoked/1",
        ),
        (&["node", "ls", "--json"], "flocker.nodes/1"),
        (&["node", "show", "eu-1", "--json"], "flocker.node/1"),
        (&["node", "rm", "eu-1", "-y", "--json"], "flocker.node-removed/1"),
        (&["node", "label", "eu-1", "rack=r7", "--json"], "flocker.node-labels/1"),
        (&["version", "--json"], "flocker.versions/1"),
        (&["service", "rm", "tally", "-y", "--json"], "flocker.removed/1"),
    ] {
        let (code, out, err) = agent.run(arguments).await;
        assert_eq!((code, err.as_str()), (0, ""), "{arguments:?}");
        let document: serde_json::Value = serde_json::from_str(&out).expect("one document");
        assert_eq!(document["schema"], schema);
    }
    assert_eq!(agent.run(&["service", "ls", "-q"]).await.1, "tally\n");
    assert_eq!(agent.run(&["volume", "ls", "-q"]).await.1, "");
    assert_eq!(agent.run(&["token", "create", "-q"]).await.1, "flk1-x@h\n");
    assert_eq!(agent.run(&["token", "create"]).await.1, "flocker up --join flk1-x@h\n");
    agent.tells_of_tokens_and_nodes().await;
    let (code, _, err) = agent.run(&["service", "rm", "web", "-y"]).await;
    let line = "error: there is no service 'web'; 'flocker service ls' lists them\n";
    assert_eq!((code, err.as_str()), (5, line));
    agent.stop().await;
}

#[tokio::test]
async fn a_file_is_deployed_with_its_variables() {
    let agent = Agent::start().await;
    let text = "services: {'${X:-a}': {}}\n";
    let good = "services: {web: {command: $RUN, volumes: [v:/v]}}\nvolumes: {v: }\n";
    for (file, text) in [("bad.yaml", text), ("good.yaml", good)] {
        let path = agent.folder.path().join(file);
        flocker_base::durable::write_plain(&path, text.as_bytes(), 0o600).expect("writes");
    }
    assert_eq!(agent.run(&["deploy", "bad.yaml"]).await.0, 10, "keys are not interpolated");
    let mut command = flocker(agent.folder.path(), &["deploy", "good.yaml"]);
    command.env("RUN", "flocker tally");
    let (code, out, err) = ends(command).await;
    assert_eq!((code, out.as_str(), err.as_str()), (0, "created    service  web\n", ""));
    agent.stop().await;
}

#[tokio::test]
async fn a_move_is_told_step_by_step_and_ends_with_its_code() {
    let agent = Agent::start().await;
    let (code, out, err) = agent.run(&["move", "tally", "--to", "eu-2"]).await;
    assert_eq!(code, 0);
    assert_eq!(
        out,
        "tally moved from eu-1 to eu-2 in 900 ms, on epoch 4; requests waited for 87 ms at most\n"
    );
    assert!(err.contains("10 ms  pre-copy") && err.contains("3 MiB to go"), "{err}");
    let (_, out, err) = agent.run(&["move", "tally", "--to", "eu-2", "--json"]).await;
    assert_eq!(err, "");
    let events: Vec<serde_json::Value> =
        out.lines().map(|line| serde_json::from_str(line).expect("JSON lines")).collect();
    assert_eq!((&events[0]["event"], &events[1]["event"]), (&"step".into(), &"done".into()));
    assert_eq!(events[1]["pause_ms"], 87);
    assert_eq!(agent.run(&["move", "tally", "--to", "fenced"]).await.0, 6);
    assert_eq!(agent.run(&["move", "tally", "--region", "us"]).await.0, 9);
    let (code, _, err) = agent.run(&["move", "tally", "--to", "never", "--timeout", "200ms"]).await;
    assert_eq!(code, 7);
    assert!(err.contains("is not done after 200ms and goes on; 'flocker status'"), "{err}");
    agent.stop().await;
}

#[tokio::test]
async fn ctrl_c_leaves_the_move_running_and_says_so() {
    use tokio::io::{AsyncBufReadExt, BufReader};
    let agent = Agent::start().await;
    let mut child =
        flocker(agent.folder.path(), &["move", "tally", "--to", "never"]).spawn().expect("spawns");
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    let step = lines.next_line().await.expect("reads").expect("a step");
    assert!(step.contains("pre-copy"), "{step}");
    let pid = i32::try_from(child.id().expect("runs")).expect("a pid");
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("is sent");
    let line = lines.next_line().await.expect("reads").expect("an error");
    assert_eq!(line, "error: interrupted; the move goes on: watch it with 'flocker status'");
    assert_eq!(child.wait().await.expect("ends").code(), Some(130));
    agent.stop().await;
}

#[tokio::test]
async fn a_reader_that_goes_away_ends_it_quietly() {
    let agent = Agent::start().await;
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = flocker(agent.folder.path(), &["status"]);
    let child = command.stdout(writer).spawn().expect("spawns");
    let ended = child.wait_with_output().await.expect("ends");
    assert_eq!((ended.status.code(), ended.stderr.as_slice()), (Some(141), &b""[..]));
    agent.stop().await;
}

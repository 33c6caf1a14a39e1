//! Screens, whole.

use flocker_base::{ClusterId, Epoch, Head, Name, ServiceId, StoreId, VolumeId, WallTime};

use super::*;
use crate::api::{
    Attention, BranchStatus, Change, ClusterStatus, Envelope, Liveness, NodeStatus,
    OperationStatus, ReplicaStatus, RouteStatus, ServiceState, ServiceStatus, Severity, Status,
    VolumeState, VolumeStatus,
};

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

fn node(id: u8, text: &str, region: &str) -> NodeStatus {
    NodeStatus {
        store: StoreId::from_bytes([id; 16]),
        name: name(text),
        region: name(region),
        liveness: Liveness::Live,
        suspected_for_ms: None,
        control: Some(([127, 0, 0, id], 4523).into()),
        data: Some(([127, 0, 0, id], 4524).into()),
        http: Some(([127, 0, 0, id], 8080).into()),
        version: Some("0.1.0".to_owned()),
        is_self: false,
        rtt_ms: Some(1),
    }
}

fn volume() -> VolumeStatus {
    let replica = |text, seq, lag_ms, acked| ReplicaStatus {
        node: name(text),
        head: Some(Head::new(Epoch::new(0, 3), seq)),
        lag_ms,
        acked,
    };
    VolumeStatus {
        id: VolumeId::from_bytes([5; 16]),
        name: name("tally-data"),
        master: Some(name("eu-1")),
        epoch: Some(Epoch::new(0, 3)),
        state: VolumeState::Active,
        lease_left_ms: Some(2_150),
        snapshot_every_ms: 5_000,
        voters: vec![name("eu-1"), name("eu-2"), name("us-1")],
        replicas: vec![
            replica("eu-1", 41, Some(0), true),
            replica("eu-2", 41, Some(0), true),
            ReplicaStatus { head: None, ..replica("us-1", 0, None, false) },
        ],
        branches: vec![BranchStatus {
            name: "epoch-2-tail".to_owned(),
            node: name("eu-2"),
            head: Some(Head::new(Epoch::new(0, 2), 33)),
        }],
        can_fail_over: true,
        why_not: None,
    }
}

/// A mesh with one of everything, some of it unknown.
fn mesh() -> Status {
    let lost = NodeStatus {
        liveness: Liveness::Suspected,
        suspected_for_ms: Some(12_340),
        rtt_ms: None,
        http: None,
        version: None,
        ..node(3, "us-1", "us")
    };
    Status {
        viewed_from: name("eu-1"),
        at: WallTime::from_millis(1_750_000_000_000),
        oldest_fact_ms: Some(400),
        cluster: ClusterStatus { id: ClusterId::from_bytes([0xab; 16]) },
        attention: vec![Attention {
            severity: Severity::Warning,
            text: "us-1 has not been heard of for 12 s".to_owned(),
            command: Some("flocker status".to_owned()),
        }],
        nodes: vec![
            NodeStatus { is_self: true, rtt_ms: None, ..node(1, "eu-1", "eu") },
            node(2, "eu-2", "eu"),
            lost,
        ],
        volumes: vec![volume()],
        services: vec![ServiceStatus {
            id: ServiceId::from_bytes([6; 16]),
            name: name("tally"),
            volume: name("tally-data"),
            node: Some(name("eu-1")),
            state: ServiceState::Running,
            address: Some(([127, 0, 0, 1], 40_001).into()),
            pid: Some(4711),
            epoch: Some(Epoch::new(0, 3)),
        }],
        routes: vec![RouteStatus {
            route: "http://tally.demo".to_owned(),
            service: name("tally"),
            node: None,
        }],
        operations: vec![OperationStatus {
            id: "1".to_owned(),
            text: "move tally to eu-2".to_owned(),
            step: "pre-copy".to_owned(),
            elapsed_ms: 61_000,
        }],
    }
}

#[test]
fn the_mesh_at_a_glance() {
    let expected = "\
Mesh abababab as eu-1 sees it at 2025-06-15T15:06:40Z, no fact older than 400 ms

Needs a person
  ◐ warning: us-1 has not been heard of for 12 s
      → flocker status

Region eu
  ● eu-1  live  this node  version 0.1.0  http 127.0.0.1:8080
  ● eu-2  live  rtt 1 ms   version 0.1.0  http 127.0.0.2:8080

Region us
  ◐ us-1  suspected for 12.3 s  rtt ?  version ?  http ?

Volumes
  ● tally-data  active, master eu-1, epoch 3, lease for 2.1 s, fails over by itself: yes
      ● eu-1  master   snapshot 3/41
      ● eu-2  current  snapshot 3/41
      ? us-1  lag ?    snapshot ?
      kept on eu-2: branch epoch-2-tail up to 2/33

Services
  ● tally  running  on eu-1  volume tally-data  epoch 3

Routes
  http://tally.demo  → tally  on ?

Under way
  move tally to eu-2: pre-copy, for 1 min 1 s

Next: flocker status
";
    assert_eq!(status(&mesh(), &Style::default()), expected);
}

#[test]
fn nothing_known_is_shown_as_unknown_and_never_as_nought() {
    let mut mesh = mesh();
    mesh.oldest_fact_ms = None;
    mesh.at = WallTime::from_millis(u64::MAX);
    let volume = &mut mesh.volumes[0];
    (volume.master, volume.epoch, volume.lease_left_ms) = (None, None, None);
    volume.state = VolumeState::Unknown;
    volume.can_fail_over = false;
    volume.why_not = Some("no copy has been heard of".to_owned());
    for replica in &mut volume.replicas {
        (replica.head, replica.lag_ms, replica.acked) = (None, None, false);
    }
    let service = &mut mesh.services[0];
    (service.node, service.epoch, service.pid, service.address) = (None, None, None, None);
    service.state = ServiceState::Unknown;
    let text = status(&mesh, &Style { wide: true, ..Style::default() });
    for line in [
        "Mesh abababab as eu-1 sees it at ?, some facts of unknown age",
        "  ? tally-data  unknown, master ?, epoch ?, fails over by itself: no: no copy has been heard of",
        "      ? eu-1  lag ?  snapshot ?",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    assert!(
        text.contains("? tally  unknown  on ?  volume tally-data  epoch ?  at ?  pid ?"),
        "{text}"
    );
    let table = services(&mesh.services, &Style::default());
    assert_eq!(
        table,
        "SERVICE  STATE      NODE  VOLUME      EPOCH\ntally    ? unknown  ?     tally-data  ?\n"
    );
}

#[test]
fn ascii_and_colour_change_symbols_only() {
    let plain = status(&mesh(), &Style::default());
    let ascii = status(&mesh(), &Style { ascii: true, ..Style::default() });
    assert!(ascii.is_ascii(), "{ascii}");
    assert!(ascii.contains("[+] tally  running  on eu-1"), "{ascii}");
    let mut coloured = status(&mesh(), &Style { colour: true, ..Style::default() });
    for code in ["\x1b[0m", "\x1b[1m", "\x1b[31m", "\x1b[32m", "\x1b[33m"] {
        coloured = coloured.replace(code, "");
    }
    assert_eq!(coloured, plain);
}

#[test]
fn lists_are_tables() {
    let mesh = mesh();
    assert_eq!(
        volumes(&mesh.volumes, &Style::default()),
        "\
VOLUME      STATE     MASTER  EPOCH  COPIES        FAILS OVER
tally-data  ● active  eu-1    3      eu-2 current  yes
                                     us-1 lag ?
"
    );
    assert!(volumes(&[], &Style::default()).contains("flocker deploy FILE"));
    assert!(services(&[], &Style::default()).contains("flocker deploy FILE"));
    let wide = services(&mesh.services, &Style { wide: true, ..Style::default() });
    assert!(wide.contains("127.0.0.1:40001  4711"), "{wide}");
}

#[test]
fn what_was_done_is_said_in_a_line() {
    let reply = DeployReply {
        changes: vec![
            Change {
                record: ChangedRecord::Volume,
                name: "v".to_owned(),
                change: ChangeKind::Created,
            },
            Change {
                record: ChangedRecord::Route,
                name: "http://x".to_owned(),
                change: ChangeKind::Unchanged,
            },
        ],
        warnings: Vec::new(),
    };
    assert_eq!(changes(&reply), "created    volume   v\nunchanged  route    http://x\n");
    assert_eq!(
        changes(&DeployReply { changes: Vec::new(), warnings: Vec::new() }),
        "nothing to change\n"
    );
    let report = MoveReport {
        service: name("tally"),
        from: name("eu-1"),
        to: name("eu-2"),
        epoch: Epoch::new(0, 4),
        pause_ms: 87,
        elapsed_ms: 2_310,
    };
    assert_eq!(
        moved(&report),
        "tally moved from eu-1 to eu-2 in 2.3 s, on epoch 4; requests waited for 87 ms at most\n"
    );
}

#[test]
fn text_from_elsewhere_can_not_drive_the_terminal() {
    let mut mesh = mesh();
    mesh.attention[0].text = "a\x1b]0;evil\x07\nb\u{202e}c".to_owned();
    mesh.nodes[1].version = Some("\x1b[2J".to_owned());
    mesh.volumes[0].branches[0].name = "x\r\x08".to_owned();
    let text = status(&mesh, &Style::default());
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    assert!(text.contains("a?]0;evil??b?c"), "{text}");
}

/// The document's form is a promise to programs: fields are added, never changed.
#[test]
fn the_status_document_keeps_its_form() {
    let text = serde_json::to_string_pretty(&Envelope::new(mesh())).expect("JSON");
    assert_eq!(text, include_str!("status.golden.json").trim_end());
    let back: Envelope<Status> = serde_json::from_str(&text).expect("reads");
    assert_eq!((back.schema.as_str(), back.body), ("flocker.status/1", mesh()));
    let newer = text.replace("\"running\"", "\"levitating\"").replacen('{', "{\"new\":1,", 1);
    let read: Envelope<Status> = serde_json::from_str(&newer).expect("newer agents are read");
    assert_eq!(read.body.services[0].state, ServiceState::Unknown);
}

//! The status from complete, partial and absent knowledge.

use std::time::Duration;

use flocker_base::{Head, ServiceId, VolumeId};
use flocker_gossip::model::{Birth, EngineKind, VolumeMount, VolumePolicy, VoterConfig, Voters};

use super::*;
use crate::agent::rpc::ReplicaReport;

const fn store(n: u8) -> StoreId {
    StoreId::from_bytes([n; 16])
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

fn node(n: u8, region: &str, liveness: Liveness) -> NodeStatus {
    NodeStatus {
        store: store(n),
        name: name(&format!("{region}-{n}")),
        region: name(region),
        liveness,
        suspected_for_ms: None,
        control: None,
        data: None,
        http: None,
        version: None,
        is_self: n == 1,
        rtt_ms: None,
    }
}

fn head(seq: u64) -> Head {
    Head::new(Epoch::new(0, 2), seq)
}

fn instance(service: ServiceId) -> InstanceReport {
    InstanceReport {
        service,
        pid: 7,
        address: "127.0.0.1:9".parse().expect("an address"),
        epoch: Epoch::new(0, 2),
        ready: true,
        frozen: false,
        held: false,
    }
}

fn report(copy: CopyReport, instances: Vec<InstanceReport>) -> Report {
    Report { copies: vec![copy], instances, disk_full: false }
}

fn sources() -> Sources {
    let volume = VolumeId::new(WallTime::from_millis(1), [1; 10]);
    let service = ServiceId::new(WallTime::from_millis(1), [2; 10]);
    let replicas = vec![store(2), store(1), store(3)];
    let voters: Voters = replicas.iter().copied().collect();
    let spec = VolumeSpec {
        id: volume,
        name: name("data"),
        policy: VolumePolicy::default(),
        birth: Birth { master: store(2), replicas: replicas.clone(), voters: voters.clone() },
    };
    let placement = Placement {
        volume,
        epoch: Epoch::new(0, 2),
        sequence: 1,
        holder: store(2),
        voters: VoterConfig::birth(voters),
        replicas,
        head: head(1),
        state: PlacementState::Active,
    };
    let copy = |head| CopyReport {
        volume,
        head: Some(head),
        lease: None,
        frozen: false,
        replicas: Vec::new(),
        branches: Vec::new(),
        needs_decision: None,
    };
    let master = CopyReport {
        lease: Some((Epoch::new(0, 2), 2_500)),
        replicas: vec![
            ReplicaReport { store: store(1), acked: Some(head(9)), lag_ms: Some(5), error: None },
            ReplicaReport { store: store(3), acked: Some(head(7)), lag_ms: Some(900), error: None },
        ],
        ..copy(head(9))
    };
    Sources {
        me: store(1),
        at: WallTime::from_millis(10),
        cluster: ClusterId::from_bytes([7; 16]),
        nodes: vec![
            node(1, "eu", Liveness::Live),
            node(2, "eu", Liveness::Live),
            node(3, "us", Liveness::Live),
        ],
        volumes: vec![(spec, Some(placement))],
        services: vec![ServiceSpec {
            id: service,
            name: name("tally"),
            command: vec!["tally".into()],
            environment: BTreeMap::new(),
            volume: VolumeMount { volume, path: "/data".into() },
            health_path: None,
            stop_grace: Duration::from_secs(1),
            engine: EngineKind::Process,
        }],
        routes: Vec::new(),
        conflicts: Vec::new(),
        certificate: Vec::new(),
        reports: [
            (store(1), report(copy(head(9)), Vec::new())),
            (store(2), report(master, vec![instance(service)])),
            (store(3), report(copy(head(7)), Vec::new())),
        ]
        .into(),
        operations: Vec::new(),
    }
}

#[test]
fn a_healthy_mesh_needs_no_one() {
    let status = build(&sources());
    assert!(status.attention.is_empty(), "{:?}", status.attention);
    assert_eq!(status.oldest_fact_ms, Some(0));
    let volume = &status.volumes[0];
    assert_eq!(volume.master, Some(name("eu-2")));
    assert_eq!(volume.state, VolumeState::Active);
    assert!(volume.can_fail_over);
    let shown: Vec<_> =
        volume.replicas.iter().map(|r| (r.node.as_str(), r.lag_ms, r.acked)).collect();
    assert_eq!(
        shown,
        [("eu-2", Some(0), true), ("eu-1", Some(5), true), ("us-3", Some(900), false)]
    );
    assert_eq!(status.services[0].state, ServiceState::Running);
}

#[test]
fn what_was_not_reported_is_unknown_and_never_zero() {
    let mut sources = sources();
    sources.reports.remove(&store(2));
    let status = build(&sources);
    assert_eq!(status.oldest_fact_ms, None, "a node did not answer");
    let volume = &status.volumes[0];
    assert_eq!(volume.state, VolumeState::Unknown);
    assert_eq!(volume.lease_left_ms, None);
    assert!(volume.replicas.iter().skip(1).all(|r| r.lag_ms.is_none() && !r.acked));
    assert_eq!(status.services[0].state, ServiceState::Unknown);
    assert_eq!(status.services[0].pid, None);
}

#[test]
fn a_dead_master_is_an_election_and_a_branch_is_shown() {
    let mut sources = sources();
    sources.reports.remove(&store(2));
    sources.nodes[1].liveness = Liveness::Suspected;
    if let Some(report) = sources.reports.get_mut(&store(1)) {
        report.copies[0].branches.push(("tail-2".into(), head(9)));
    }
    let status = build(&sources);
    assert_eq!(status.volumes[0].state, VolumeState::Electing);
    assert_eq!(status.volumes[0].master, None);
    assert_eq!(status.volumes[0].branches[0].node, name("eu-1"));
    let texts: Vec<_> = status.attention.iter().map(|a| a.text.as_str()).collect();
    assert!(texts.iter().any(|t| t.contains("no master")), "{texts:?}");
    assert!(texts.iter().any(|t| t.contains("branch tail-2")), "{texts:?}");
    assert!(texts.iter().any(|t| t.contains("eu-2 does not answer")), "{texts:?}");
}

#[test]
fn a_full_disk_needs_a_person() {
    let mut sources = sources();
    sources.reports.get_mut(&store(1)).expect("it reports").disk_full = true;
    let status = build(&sources);
    let said: Vec<_> = status.attention.iter().filter(|a| a.text.contains("is full")).collect();
    assert_eq!(said.len(), 1, "{:?}", status.attention);
    assert_eq!(said[0].severity, Severity::Critical);
}

#[test]
fn a_volume_that_stays_in_its_region_says_when_nobody_there_could_take_over() {
    let mut sources = sources();
    let able = |sources: &Sources| build(sources).volumes[0].can_fail_over;
    assert!(able(&sources));
    sources.volumes[0].0.policy.failover = Failover::InRegion;
    let master = build(&sources).volumes[0].master.clone().expect("a master");
    let home = sources.nodes.iter().find(|n| n.name == master).expect("known").region.clone();
    let near = sources.nodes.iter().filter(|n| n.region == home && n.name != master).count();
    assert_eq!(able(&sources), near > 0);
    for node in sources.nodes.iter_mut().filter(|n| n.name != master) {
        node.region = name("elsewhere");
    }
    let volume = &build(&sources).volumes[0];
    assert!(!volume.can_fail_over);
    assert!(volume.why_not.as_ref().is_some_and(|why| why.contains("in-region")), "{volume:?}");
}

#[test]
fn the_loss_of_voters_says_that_failover_is_off() {
    let mut sources = sources();
    sources.nodes[0].liveness = Liveness::Suspected;
    let status = build(&sources);
    assert!(!status.volumes[0].can_fail_over);
    assert!(status.volumes[0].why_not.as_deref().is_some_and(|w| w.contains("voters")));
}

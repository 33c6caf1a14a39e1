//! What this crate reads from outside, as functions of bytes that assert what must hold whatever
//! the bytes are: other agents' calls, the guard's socket, the API's documents, deployment files.
//! For the fuzzer and for tests; never part of a running node.

use flocker_base::{BootTime, Epoch, Incarnation, Name, ServiceId, VolumeId};
use flocker_quic::fuzzing::Target;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::agent::rpc;
use crate::api::{
    ApiError, DeployRequest, Destination, ExportRequest, MoveEvent, MoveRequest, NodeLabel,
    NodeRemove, Status, TokenCreate, TokenRevoke,
};
use crate::engine::ProcessGroup;
use crate::guard::wire::{self, Extension, Phase, Protected, WireError};
use crate::manifest::{self, Deployment};

/// The targets of this crate.
pub const TARGETS: &[Target] = &[
    Target { name: "agent", run: agent, seeds: agents },
    Target { name: "guard", run: guard, seeds: guards },
    Target { name: "api", run: api, seeds: documents },
    Target { name: "manifest", run: deployment, seeds: deployments },
];

/// A call of another agent, and an answer to ours.
fn agent(input: &[u8]) {
    call::<rpc::Request>(input);
    call::<rpc::Reply>(input);
}

fn call<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(input: &[u8]) {
    if let Ok(read) = rpc::decode::<T>(input) {
        let written = rpc::encode(&read).expect("what was read");
        let again = rpc::decode::<T>(&written).expect("what was written");
        assert_eq!(again, read, "it is read otherwise");
    }
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

fn agents() -> Vec<Vec<u8>> {
    let to_us = MoveRequest { service: name("tally"), to: Destination::Region(name("us")) };
    let requests = [
        rpc::Request::Report,
        rpc::Request::StartMove(to_us),
        rpc::Request::WatchMove { operation: 300, from: 2 },
        rpc::Request::TakeOver { volume: VolumeId::from_bytes([1; 16]) },
        rpc::Request::DeleteService(ServiceId::from_bytes([2; 16])),
    ];
    let replies = [
        rpc::Reply::Report(rpc::Report::default()),
        rpc::Reply::Progress { lines: Vec::new(), outcome: Some(Err(ApiError::not_found("no"))) },
        rpc::Reply::Serving { epoch: Epoch::new(0, 7) },
        rpc::Reply::Refused(ApiError::not_found("no such service").hint("look")),
    ];
    let requests = requests.iter().map(rpc::encode);
    let all = requests.chain(replies.iter().map(rpc::encode));
    all.map(|bytes| bytes.expect("it is written").into()).collect()
}

/// The guard's socket, from both ends: a buffer of frames, and a payload.
fn guard(input: &[u8]) {
    frame(input);
    if let Ok(request) = wire::Request::from_payload(input) {
        assert_eq!(&request.to_frame()[4..], input, "a request has one form");
    }
    if let Ok(reply) = wire::Reply::from_payload(input) {
        let again = wire::Reply::from_payload(&reply.to_frame()[4..]);
        match (&reply, again) {
            // A long reason is cut.
            (wire::Reply::Refused(_), Ok(wire::Reply::Refused(_))) => {}
            (reply, again) => assert_eq!(again.as_ref(), Ok(reply), "it is read otherwise"),
        }
    }
}

fn frame(buffer: &[u8]) {
    let most = 1000;
    let claimed = buffer.first_chunk().map(|length| u32::from_le_bytes(*length) as usize);
    match (claimed, wire::split_frame(buffer, most)) {
        (Some(claimed), Err(WireError::TooLong(told))) => {
            assert!(claimed > most && told == claimed);
        }
        (Some(claimed), Ok(Some((payload, taken)))) => {
            assert!(claimed <= most && taken == claimed + 4);
            assert_eq!(payload, &buffer[4..taken]);
        }
        (Some(claimed), Ok(None)) => assert!(claimed <= most && buffer.len() < claimed + 4),
        (None, Ok(None)) => {}
        (claimed, other) => panic!("{other:?} of {claimed:?} bytes"),
    }
}

fn guards() -> Vec<Vec<u8>> {
    let service = ServiceId::from_bytes([1; 16]);
    let (epoch, freeze_at, deadline) =
        (Epoch::new(4, 5), BootTime::from_millis(6), BootTime::NEVER);
    let group = ProcessGroup { service, leader: 2, start_ticks: 3 };
    let protected = Protected { group, epoch, freeze_at, deadline };
    let extension =
        Extension { service, epoch, freeze_at, deadline, keep_frozen: true, resume: false };
    let requests = [
        wire::Request::Hello(Incarnation(9)),
        wire::Request::Protect(protected),
        wire::Request::Extend(vec![extension; 2]),
        wire::Request::Release(service),
        wire::Request::List,
        wire::Request::Ping,
    ];
    let replies = [
        wire::Reply::Done,
        wire::Reply::Refused("no".to_owned()),
        wire::Reply::Extended(vec![service]),
        wire::Reply::Held(vec![(protected, Phase::Frozen)]),
    ];
    let frames = requests.iter().map(wire::Request::to_frame);
    let frames: Vec<_> = frames.chain(replies.iter().map(wire::Reply::to_frame)).collect();
    frames.iter().map(|frame| frame[4..].to_vec()).chain(frames.first().cloned()).collect()
}

/// A body that a client sends, and a document that an agent answers.
fn api(input: &[u8]) {
    if let Some(DeployRequest { deployment }) = document::<DeployRequest>(input) {
        check(&deployment);
    }
    document::<MoveRequest>(input);
    document::<TokenCreate>(input);
    document::<TokenRevoke>(input);
    document::<NodeRemove>(input);
    document::<NodeLabel>(input);
    document::<ExportRequest>(input);
    document::<MoveEvent>(input);
    document::<Status>(input);
    if let Some(error) = document::<ApiError>(input) {
        let status = error.code.http_status();
        assert!(!status.is_success(), "an error of status {status}");
    }
}

fn document<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(
    input: &[u8],
) -> Option<T> {
    let read: T = serde_json::from_slice(input).ok()?;
    let written = serde_json::to_vec(&read).expect("what was read");
    let again: T = serde_json::from_slice(&written).expect("what was written");
    assert_eq!(again, read, "it is read otherwise");
    Some(read)
}

fn check(deployment: &Deployment) {
    for volume in &deployment.volumes {
        assert!(volume.name.as_str().len() <= Name::MAX_LEN);
    }
}

fn documents() -> Vec<Vec<u8>> {
    let deployment = manifest::parse("seed", DEPLOYMENT.as_bytes(), &|_| None).expect("it is one");
    let to = Destination::Node(name("eu-2"));
    let written = [
        serde_json::to_vec(&DeployRequest { deployment }),
        serde_json::to_vec(&MoveRequest { service: name("web"), to }),
        serde_json::to_vec(&TokenCreate { uses: Some(2), ..TokenCreate::lasting(60_000) }),
        serde_json::to_vec(&TokenRevoke { tokens: vec!["5be1a3f9".to_owned()] }),
        serde_json::to_vec(&NodeRemove { node: "eu-2".to_owned(), force: true }),
        serde_json::to_vec(&NodeLabel {
            node: "eu-2".to_owned(),
            labels: [("rack".to_owned(), Some("r7".to_owned())), ("disk".to_owned(), None)].into(),
        }),
        serde_json::to_vec(&ExportRequest {
            volume: name("data"),
            branch: None,
            into: "/tmp/out".into(),
        }),
        serde_json::to_vec(&MoveEvent::Failed(ApiError::not_found("no"))),
    ];
    written.into_iter().map(|document| document.expect("it is written")).collect()
}

const DEPLOYMENT: &str = "services:
  web:
    command: [/bin/web, --port, '80']
    environment: {A: b}
    volumes: ['data:/data']
    x-flocker: {engine: process, health: /healthz, routes: ['http://example.org']}
volumes:
  data:
    x-flocker: {replicas: 1, remote-replicas: 1, snapshot-every: 500ms}
";

/// A deployment file: what is read can be deployed over the API, and a fault names its place.
fn deployment(input: &[u8]) {
    let lookup = |variable: &str| (variable == "SET").then(|| "set".to_owned());
    match manifest::parse("file", input, &lookup) {
        Ok(deployment) => {
            let body = serde_json::to_vec(&deployment).expect("a deployment has a JSON form");
            assert_eq!(serde_json::from_slice::<Deployment>(&body).expect("its own"), deployment);
        }
        Err(fault) => {
            assert!(fault.line <= input.len() + 1, "{fault}");
            assert!(!fault.what.is_empty());
        }
    }
}

fn deployments() -> Vec<Vec<u8>> {
    let merged = "x-common: &c {A: ${SET:-1}}\nservices:\n  a:\n    environment: {<<: *c}\n";
    vec![DEPLOYMENT.as_bytes().to_vec(), merged.as_bytes().to_vec(), b"services: {a: ~}".to_vec()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_holds_over_its_seeds_and_what_broke_it_once() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/regressions");
        assert!(folder.is_dir(), "{} is missing", folder.display());
        for target in TARGETS {
            (target.seeds)().iter().for_each(|seed| (target.run)(seed));
            let Ok(files) = std::fs::read_dir(folder.join(target.name)) else { continue };
            for file in files {
                let input = std::fs::read(file.expect("an entry").path()).expect("an input");
                (target.run)(&input);
            }
        }
    }
}

//! Joining over real QUIC sockets on loopback: a doorkeeper behind an endpoint, and newcomers.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use flocker_base::{Clock, ClusterId, Name, SystemClock, TokenId, WallTime};
use flocker_quic::{Endpoint, EndpointConfig};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::tests::{Cluster, SECRET, store, token_id};
use super::*;
use crate::control::{Admission, Control};
use crate::identity::{Authority, NodeIdentity};
use crate::model::TokenSpec;

/// A cluster of one node that admits.
struct Member {
    token: Token,
    at: SocketAddr,
    cluster: Arc<Cluster>,
    identity: NodeIdentity,
    tasks: JoinSet<()>,
}

fn loopback() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

/// An address on which nothing listens.
fn dead() -> Seed {
    let socket = UdpSocket::bind(loopback()).expect("binds");
    socket.local_addr().expect("bound").into()
}

impl Member {
    fn start() -> Self {
        let now = SystemClock.wall();
        let id = ClusterId::from_bytes([1; 16]);
        let authority = Authority::generate(id, now).expect("authority");
        let identity =
            NodeIdentity::found(id, store(100), authority.clone(), now).expect("identity");
        let token = Token { id: token_id(), secret: SECRET, ca: authority.fingerprint() };
        let cluster = Arc::new(Cluster::with_token());
        cluster.change(|t| t.expires = now + Duration::from_secs(3600));
        let keeper = Arc::new(Doorkeeper::new(
            identity.clone(),
            Arc::<Cluster>::clone(&cluster),
            Arc::<Cluster>::clone(&cluster),
            Arc::new(SystemClock),
        ));
        let config = EndpointConfig { admit_joiners: true, ..EndpointConfig::control(loopback()) };
        let endpoint = Endpoint::bind(&config, &identity.to_quic()).expect("binds");
        let at = endpoint.local_addr();
        let mut tasks = JoinSet::new();
        let control = Control::new(endpoint, Arc::new(NoAddresses), Arc::new(NoneRemoved));
        tasks.spawn(control.joiners(keeper).run(CancellationToken::new()));
        Self { token, at, cluster, identity, tasks }
    }

    fn line(&self, token: &Token) -> JoinString {
        JoinString { token: token.clone(), seeds: vec![self.at.into()] }
    }

    fn change(&self, change: impl Fn(&mut TokenSpec)) {
        self.cluster.change(change);
    }
}

struct NoneRemoved;

impl Admission for NoneRemoved {
    fn is_removed(&self, _store: StoreId) -> bool {
        false
    }
}

struct NoAddresses;

impl flocker_quic::AddressBook for NoAddresses {
    fn addresses(&self, _store: StoreId) -> Vec<SocketAddr> {
        Vec::new()
    }
}

fn newcomer(id: u8) -> Newcomer {
    Newcomer {
        store: store(id),
        name: Name::new(format!("new-{id}")).expect("name"),
        region: Name::new("eu").expect("name"),
        control: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 7001)),
        data: SocketAddr::from(([10, 0, 0, 1], 7002)),
        takes: Takes::default(),
    }
}

fn attempts(result: Result<Joined, JoinError>) -> Vec<Attempt> {
    match result {
        Err(JoinError::NoneAdmitted(attempts)) => attempts,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_newcomer_with_the_line_becomes_a_member_that_the_mesh_accepts() {
    let member = Member::start();
    let joined = join(&member.line(&member.token), &newcomer(1)).await.expect("joined");
    assert_eq!(joined.identity.store(), store(1));
    assert_eq!(joined.identity.cluster(), member.identity.cluster());
    assert_eq!(joined.identity.authority(), member.identity.authority());
    assert_eq!(joined.known[0].store, store(100), "first, who admitted it");
    assert_eq!(joined.known[0].control[0], member.at, "and where that was");
    assert_eq!(joined.known[1].store, store(99));
    let recorded = member.cluster.admitted();
    assert_eq!(recorded.len(), 1);
    assert_eq!(recorded[0].node.name.as_str(), "new-1");
    let seen_from = SocketAddr::from((Ipv4Addr::LOCALHOST, 7001));
    assert_eq!(recorded[0].control, seen_from, "its own address it did not know");

    let config = EndpointConfig::control(loopback());
    let endpoint = Endpoint::bind(&config, &joined.identity.to_quic()).expect("binds");
    let deadline = Duration::from_secs(5);
    let connection = endpoint.connect(store(100), member.at, deadline).await.expect("a peer");
    assert_eq!(connection.peer(), store(100));
}

#[tokio::test]
async fn a_node_admitted_by_a_newcomer_is_a_member_too() {
    let member = Member::start();
    let joined = join(&member.line(&member.token), &newcomer(1)).await.expect("joined");
    let request = crate::identity::KeyRequest::generate(store(2)).expect("key");
    let now = SystemClock.wall();
    let cert = joined
        .identity
        .authority()
        .issue(&request.csr_der, store(2), now, crate::identity::NODE_VALIDITY)
        .expect("any member signs");
    let second = NodeIdentity::from_parts(
        joined.identity.cluster(),
        store(2),
        joined.identity.authority().clone(),
        cert,
        request.key_der,
    )
    .expect("holds");
    let endpoint = Endpoint::bind(&EndpointConfig::control(loopback()), &second.to_quic());
    let endpoint = endpoint.expect("binds");
    endpoint.connect(store(100), member.at, Duration::from_secs(5)).await.expect("a peer");
}

#[tokio::test]
async fn wrong_unknown_revoked_and_expired_tokens_are_refused_with_what_to_do() {
    let member = Member::start();
    let refused = async |token: &Token, says: &str| {
        let result = join(&member.line(token), &newcomer(1)).await;
        let text = result.as_ref().expect_err("refused").to_string();
        assert!(text.contains(says) && text.contains("A member answered and refused"), "{text}");
        assert!(attempts(result)[0].refused);
    };
    let wrong = Token { secret: [0; 32], ..member.token.clone() };
    refused(&wrong, "proof is wrong").await;
    let unknown = Token { id: TokenId::from_bytes([8; 16]), ..member.token.clone() };
    refused(&unknown, "knows no such token").await;
    member.change(|t| t.expires = WallTime::from_millis(1000));
    refused(&member.token, "expired").await;
    member.change(|t| t.revoked = true);
    refused(&member.token, "revoked").await;
    assert!(member.cluster.admitted().is_empty());
}

#[tokio::test]
async fn a_server_of_another_authority_gets_no_request() {
    let member = Member::start();
    let pinned_elsewhere = Token { ca: [7; 32], ..member.token.clone() };
    let result = join(&member.line(&pinned_elsewhere), &newcomer(1)).await;
    let attempts = attempts(result);
    assert!(!attempts[0].refused, "it never got as far as asking: {attempts:?}");
    assert!(member.cluster.admitted().is_empty());
}

#[tokio::test]
async fn a_proof_replayed_on_another_connection_is_refused() {
    let member = Member::start();
    let deadline = Duration::from_secs(5);
    let connect = || flocker_quic::connect_to_join(member.at, member.token.ca, deadline);
    let first = connect().await.expect("connects");
    let exporter = first.exporter(flocker_quic::JOIN_EXPORTER_LABEL).expect("exports");
    let key = crate::identity::KeyRequest::generate(store(1)).expect("key");
    let request = exchange::Request {
        token: member.token.id,
        store: store(1),
        name: "n".to_owned(),
        region: "r".to_owned(),
        control: SocketAddr::from(([10, 0, 0, 1], 1)),
        data: SocketAddr::from(([10, 0, 0, 1], 2)),
        csr: key.csr_der.clone(),
        takes: Takes::default(),
    };
    let message = request.encode(&member.token.secret, &exporter).expect("encodes");
    let second = connect().await.expect("connects");
    let replayed = second.exchange(&message, deadline).await.expect("answered");
    let answer = exchange::Answer::decode(&replayed).expect("decodes");
    let exchange::Reply::Refused(reason) = answer.reply else {
        panic!("admitted by a replay");
    };
    assert!(reason.contains("proof is wrong"), "{reason}");
    assert!(member.cluster.admitted().is_empty());
    let answered = first.exchange(&message, deadline).await.expect("answered");
    let reply = exchange::Answer::decode(&answered).expect("decodes").reply;
    assert!(matches!(reply, exchange::Reply::Admitted(_)), "on its own connection it is good");
}

#[tokio::test]
async fn dead_seeds_are_passed_over_and_all_are_listed_when_none_lives() {
    let member = Member::start();
    let nowhere = Seed { host: "no-such-host.invalid".to_owned(), port: 4523 };
    let mut line = member.line(&member.token);
    line.seeds = vec![nowhere.clone(), dead(), member.at.into()];
    join(&line, &newcomer(1)).await.expect("the third seed lives");
    line.seeds = vec![nowhere, dead()];
    let error = join(&line, &newcomer(2)).await.expect_err("none lives");
    let text = error.to_string();
    for seed in &line.seeds {
        assert!(text.contains(&seed.to_string()), "{text}");
    }
    assert!(text.contains("4523/udp"), "says what to do: {text}");
    assert_eq!(attempts(Err(error)).len(), 2);
}

#[tokio::test]
async fn seeds_that_say_nothing_do_not_hold_up_one_that_answers() {
    let member = Member::start();
    let mute: Vec<UdpSocket> =
        (0..6).map(|_| UdpSocket::bind(loopback()).expect("binds")).collect();
    let mut line = member.line(&member.token);
    let silent = mute.iter().map(|socket| socket.local_addr().expect("bound").into());
    line.seeds = silent.chain([member.at.into()]).collect();
    join(&line, &newcomer(1)).await.expect("joined");
    // Refused by the member, it tries the silent ones to their end, each listed once.
    let wrong = Token { secret: [0; 32], ..member.token.clone() };
    line.token = wrong;
    let attempts = attempts(join(&line, &newcomer(2)).await);
    let listed: std::collections::BTreeSet<_> =
        attempts.iter().map(|it| it.seed.to_string()).collect();
    assert_eq!((attempts.len(), listed.len()), (7, 7), "{attempts:?}");
    assert!(attempts[0].refused, "the one that answered was asked first: {attempts:?}");
}

#[tokio::test]
async fn a_member_that_stops_serving_is_an_attempt_and_no_hang() {
    let mut member = Member::start();
    member.tasks.shutdown().await;
    let began = SystemClock.boot();
    let result = join(&member.line(&member.token), &newcomer(1)).await;
    assert_eq!(attempts(result).len(), 1);
    assert!(SystemClock.boot() - began < Duration::from_secs(20));
}

#[tokio::test]
async fn hostile_bytes_over_the_wire_are_refused_and_the_door_stays_open() {
    let member = Member::start();
    let deadline = Duration::from_secs(5);
    for bytes in [&[][..], &[1; 40], &[0xff; 3000]] {
        let connection = flocker_quic::connect_to_join(member.at, member.token.ca, deadline);
        let connection = connection.await.expect("connects");
        let reply = connection.exchange(bytes, deadline).await.expect("answered");
        let answer = exchange::Answer::decode(&reply).expect("decodes");
        assert!(matches!(answer.reply, exchange::Reply::Refused(_)));
    }
    join(&member.line(&member.token), &newcomer(1)).await.expect("joined");
}

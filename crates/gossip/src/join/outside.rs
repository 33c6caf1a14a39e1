//! Joining a cluster whose authority is outside it, over real sockets: a certificate and a token
//! together make a member; either alone gets nothing.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use flocker_base::{Clock, ClusterId, Name, SystemClock};
use flocker_quic::{Endpoint, EndpointConfig};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::tests::{Cluster, SECRET, store, token_id};
use super::*;
use crate::control::{Admission, Control};
use crate::identity::{Authority, KeyRequest, NODE_VALIDITY, NodeIdentity, Outside};

const SOON: Duration = Duration::from_secs(10);

/// Knows those whom it has admitted.
struct Admits(Arc<Cluster>);

impl Admission for Admits {
    fn is_removed(&self, _store: StoreId) -> bool {
        false
    }

    fn is_stranger(&self, store: StoreId) -> bool {
        !self.0.admitted().iter().any(|admitted| admitted.node.store == store)
    }
}

struct NoAddresses;

impl flocker_quic::AddressBook for NoAddresses {
    fn addresses(&self, _store: StoreId) -> Vec<SocketAddr> {
        Vec::new()
    }
}

fn loopback() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

fn cluster() -> ClusterId {
    ClusterId::from_bytes([1; 16])
}

/// The operator's authority: any will do.
fn operator() -> Authority {
    Authority::generate(cluster(), SystemClock.wall()).expect("authority")
}

fn issued(by: &Authority, id: u8) -> Outside {
    let request = KeyRequest::generate(store(id)).expect("key");
    let now = SystemClock.wall();
    let cert = by.issue(&request.csr_der, store(id), now, NODE_VALIDITY).expect("issued");
    Outside {
        authority_cert: by.cert_der().to_vec(),
        cert,
        intermediates: Vec::new(),
        key: request.key_der,
    }
}

struct Member {
    line: JoinString,
    at: SocketAddr,
    cluster: Arc<Cluster>,
    _tasks: JoinSet<()>,
}

fn member(by: &Authority) -> Member {
    let identity = NodeIdentity::outside(cluster(), store(100), issued(by, 100));
    let cluster = Arc::new(Cluster::with_token());
    cluster.change(|t| t.expires = SystemClock.wall() + Duration::from_secs(3600));
    let keeper = Doorkeeper::new(
        identity.clone(),
        Arc::<Cluster>::clone(&cluster),
        Arc::<Cluster>::clone(&cluster),
        Arc::new(SystemClock),
    );
    let config = EndpointConfig { admit_joiners: true, ..EndpointConfig::control(loopback()) };
    let endpoint = Endpoint::bind(&config, &identity.to_quic()).expect("binds");
    let at = endpoint.local_addr();
    let admits = Arc::new(Admits(Arc::clone(&cluster)));
    let control = Control::new(endpoint, Arc::new(NoAddresses), admits).joiners(Arc::new(keeper));
    let mut tasks = JoinSet::new();
    tasks.spawn(control.run(CancellationToken::new()));
    let token = Token { id: token_id(), secret: SECRET, ca: by.fingerprint() };
    Member { line: JoinString { token, seeds: vec![at.into()] }, at, cluster, _tasks: tasks }
}

fn newcomer(id: u8) -> Newcomer {
    Newcomer {
        store: store(id),
        name: Name::new(format!("new-{id}")).expect("name"),
        region: Name::new("eu").expect("name"),
        control: SocketAddr::from(([10, 0, 0, 1], 7001)),
        data: SocketAddr::from(([10, 0, 0, 1], 7002)),
        takes: Takes::default(),
    }
}

fn endpoint(given: &Outside, id: u8) -> Endpoint {
    let identity = NodeIdentity::outside(cluster(), store(id), given.clone());
    Endpoint::bind(&EndpointConfig::control(loopback()), &identity.to_quic()).expect("binds")
}

#[tokio::test]
async fn a_certificate_and_a_token_make_a_member() {
    let operator = operator();
    let member = member(&operator);
    let given = issued(&operator, 1);
    let node = endpoint(&given, 1);
    let early = node.connect(store(100), member.at, SOON).await.expect("TLS lets it in");
    let ended = tokio::time::timeout(SOON, early.closed()).await.expect("in time").to_string();
    assert!(ended.contains("admission"), "a certificate alone gets nothing: {ended}");

    let joined = join_as(&member.line, &newcomer(1), Some(&given)).await.expect("joined");
    assert_eq!(joined.identity.store(), store(1));
    assert!(joined.identity.authority().is_outside(), "no key is handed out");
    assert_eq!(joined.identity.cert_der(), given.cert);
    assert_eq!(member.cluster.admitted().len(), 1);
    let connection = node.connect(store(100), member.at, SOON).await.expect("connected");
    let ended = tokio::time::timeout(Duration::from_millis(500), connection.closed()).await;
    assert!(ended.is_err(), "{ended:?}");
}

#[tokio::test]
async fn a_token_alone_gets_nothing_and_is_told_what_to_do() {
    let member = member(&operator());
    let error = join(&member.line, &newcomer(1)).await.expect_err("refused").to_string();
    assert!(error.contains("flocker identity csr"), "{error}");
    assert!(member.cluster.admitted().is_empty());
}

#[tokio::test]
async fn certificates_of_others_and_of_other_nodes_get_nothing() {
    let operator = operator();
    let member = member(&operator);
    let others = issued(&operator, 2);
    let stranger = issued(&self::operator(), 1);
    let stranger = Outside { authority_cert: operator.cert_der().to_vec(), ..stranger };
    for (given, says) in [(others, "must name"), (stranger, "does not hold")] {
        let error = join_as(&member.line, &newcomer(1), Some(&given)).await.expect_err(says);
        assert!(error.to_string().contains(says), "{error}");
    }
    assert!(member.cluster.admitted().is_empty());
}

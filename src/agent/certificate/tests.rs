//! Renewal under real endpoints, with a clock that is told.

use std::net::Ipv4Addr;

use flocker_base::{BootTime, ClusterId, ManualClock, StoreId, SystemClock};
use flocker_gossip::identity::Authority;
use flocker_quic::{Accepted, Connection, EndpointConfig};

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);
const SOON: Duration = Duration::from_secs(10);

fn store(number: u8) -> StoreId {
    StoreId::from_bytes([number; 16])
}

struct Mesh {
    clock: Arc<ManualClock>,
    cluster: ClusterId,
    authority: Authority,
}

impl Mesh {
    fn new() -> Self {
        let wall = SystemClock.wall();
        let cluster = ClusterId::from_bytes([1; 16]);
        let authority = Authority::generate(cluster, wall).expect("an authority");
        Self { clock: Arc::new(ManualClock::new(BootTime::ZERO, wall)), cluster, authority }
    }

    fn clock(&self) -> Arc<dyn Clock> {
        Arc::<ManualClock>::clone(&self.clock)
    }

    fn identity(&self, number: u8) -> NodeIdentity {
        let now = self.clock.wall();
        NodeIdentity::found(self.cluster, store(number), self.authority.clone(), now).expect("one")
    }

    fn endpoint(&self, identity: &NodeIdentity, config: &EndpointConfig) -> Endpoint {
        Endpoint::bind_with_clock(config, &identity.to_quic(), self.clock()).expect("binds")
    }
}

fn control() -> EndpointConfig {
    EndpointConfig::control((Ipv4Addr::LOCALHOST, 0).into())
}

fn data() -> EndpointConfig {
    EndpointConfig::data((Ipv4Addr::LOCALHOST, 0).into())
}

async fn connect(from: &Endpoint, to: &Endpoint) -> (Connection, Connection) {
    let dial = from.connect(to.store(), to.local_addr(), SOON);
    let (out, inward) = tokio::join!(dial, to.accept());
    let Some(Accepted::Peer(inward)) = inward else { panic!("no peer: {out:?}") };
    (out.expect("connected"), inward)
}

#[tokio::test]
async fn a_certificate_near_its_end_is_renewed_under_running_endpoints() {
    let mesh = Mesh::new();
    let folder = tempfile::tempdir().expect("a folder");
    let (mine, theirs) = (mesh.identity(1), mesh.identity(2));
    mine.save(folder.path()).expect("saved");
    let (a, a_data) = (mesh.endpoint(&mine, &control()), mesh.endpoint(&mine, &data()));
    let (b, b_data) = (mesh.endpoint(&theirs, &control()), mesh.endpoint(&theirs, &data()));
    let endpoints = vec![a.clone(), a_data.clone()];
    let certificate =
        Certificate::new(folder.path().to_owned(), mine.clone(), endpoints, mesh.clock());
    let (old_out, old_in) = connect(&a, &b).await;

    assert!(certificate.look(), "nothing to do");
    assert_eq!(NodeIdentity::load(folder.path()).expect("reads"), Some(mine.clone()));
    mesh.clock.advance(DAY * 200);
    assert!(certificate.look());
    let stored = NodeIdentity::load(folder.path()).expect("reads").expect("there");
    assert_ne!(stored.cert_der(), mine.cert_der());
    assert_eq!(stored.authority(), mine.authority());

    // Past the end of the old one, the new one is what peers see and accept, either way.
    mesh.clock.advance(DAY * 160);
    for (from, to) in [(&a, &b), (&a_data, &b_data)] {
        let (_, inward) = connect(from, to).await;
        assert_eq!(inward.peer_certificate().as_deref(), Some(stored.cert_der()));
        let (out, _) = connect(to, from).await;
        assert_eq!(out.peer_certificate().as_deref(), Some(stored.cert_der()));
    }
    let mut stream = old_out.open_uni().await.expect("the old connection lives");
    flocker_quic::frame::write_frame(&mut stream, b"on").await.expect("written");
    let mut stream = old_in.accept_uni().await.expect("a stream");
    assert_eq!(&flocker_quic::frame::read_frame(&mut stream, 9).await.expect("read")[..], b"on");
    assert!(certificate.attention().is_empty());
}

#[tokio::test]
async fn what_could_not_be_stored_is_not_shown_and_said_with_what_is_left() {
    let mesh = Mesh::new();
    let folder = tempfile::tempdir().expect("a folder");
    // A file where the folder should be: nothing can be stored.
    let taken = folder.path().join("taken");
    flocker_base::durable::write_plain(&taken, b"", 0o600).expect("a file");
    let (mine, theirs) = (mesh.identity(1), mesh.identity(2));
    let (a, b) = (mesh.endpoint(&mine, &control()), mesh.endpoint(&theirs, &control()));
    let certificate = Certificate::new(taken, mine.clone(), vec![a.clone()], mesh.clock());
    mesh.clock.advance(DAY * 200);
    assert!(!certificate.look());
    let (_, inward) = connect(&a, &b).await;
    assert_eq!(inward.peer_certificate().as_deref(), Some(mine.cert_der()));
    let [note] = &certificate.attention()[..] else { panic!("one note") };
    assert_eq!(note.severity, Severity::Warning);
    assert!(
        note.text.contains("ends in 165 days") || note.text.contains("ends in 164"),
        "{note:?}"
    );
    mesh.clock.advance(DAY * 170);
    assert!(!certificate.look());
    let [note] = &certificate.attention()[..] else { panic!("one note") };
    assert_eq!(note.severity, Severity::Critical);
    assert!(note.text.contains("has ended"), "{note:?}");
}

#[test]
fn the_authoritys_end_is_told_of_two_years_before() {
    let now = SystemClock.wall();
    let fine = Validity { from: now, until: now + DAY * 300 };
    let said = |days| {
        let authority = Validity { from: now, until: now + DAY * days };
        notes(&fine, &authority, now, None)
    };
    assert!(said(800).is_empty());
    let [note] = &said(700)[..] else { panic!("one note") };
    assert_eq!(note.severity, Severity::Warning);
    assert!(note.text.contains("authority ends in 700 days"), "{note:?}");
    assert_eq!(said(3)[0].severity, Severity::Critical);
}

fn put(folder: &std::path::Path, name: &str, label: &str, der: &[u8]) {
    let body = data_encoding::BASE64.encode(der);
    let pem = format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n");
    flocker_base::durable::write_plain(&folder.join(name), pem.as_bytes(), 0o600).expect("written");
}

/// Has the operator's authority issue a certificate, and puts it into the files.
fn issue(mesh: &Mesh, folder: &std::path::Path, days: u32) -> OutsideFiles {
    let request = flocker_gossip::identity::KeyRequest::generate(store(1)).expect("a key");
    let now = mesh.clock.wall();
    let cert = mesh.authority.issue(&request.csr_der, store(1), now, DAY * days).expect("issued");
    put(folder, "ca.pem", "CERTIFICATE", mesh.authority.cert_der());
    put(folder, "cert.pem", "CERTIFICATE", &cert);
    put(folder, "key.pem", "PRIVATE KEY", &request.key_der);
    let path = |name: &str| folder.join(name);
    OutsideFiles { ca_cert: path("ca.pem"), cert: path("cert.pem"), key: path("key.pem") }
}

#[tokio::test]
async fn a_certificate_from_outside_is_taken_when_its_file_changes() {
    let mesh = Mesh::new();
    let folder = tempfile::tempdir().expect("a folder");
    let files = issue(&mesh, folder.path(), 40);
    let given = outside::read(&files, store(1), mesh.clock.wall()).expect("good");
    let first = NodeIdentity::outside(mesh.cluster, store(1), given);
    let (a, b) = (mesh.endpoint(&first, &control()), mesh.endpoint(&mesh.identity(2), &control()));
    let state_folder = folder.path().join("state");
    let mut certificate =
        Certificate::new(state_folder.clone(), first.clone(), vec![a.clone()], mesh.clock());
    certificate.files = Some(files);
    let (old_out, old_in) = connect(&a, &b).await;
    assert!(certificate.look());
    assert!(certificate.attention().is_empty());

    mesh.clock.advance(DAY * 35);
    assert!(certificate.look());
    let [note] = &certificate.attention()[..] else { panic!("one note") };
    assert!(note.text.contains("flocker identity csr"), "{note:?}");

    issue(&mesh, folder.path(), 300);
    assert!(certificate.look());
    assert!(certificate.attention().is_empty());
    mesh.clock.advance(DAY * 10);
    let (_, inward) = connect(&a, &b).await;
    let shown = inward.peer_certificate().expect("shown");
    assert_ne!(shown, first.cert_der(), "the new one");
    let mut stream = old_out.open_uni().await.expect("the old connection lives");
    flocker_quic::frame::write_frame(&mut stream, b"on").await.expect("written");
    old_in.accept_uni().await.expect("a stream");

    put(folder.path(), "cert.pem", "CERTIFICATE", b"half of a file");
    assert!(!certificate.look());
    let [note] = &certificate.attention()[..] else { panic!("one note") };
    assert!(note.text.contains("cert.pem"), "{note:?}");
    let (_, inward) = connect(&a, &b).await;
    assert_eq!(inward.peer_certificate(), Some(shown), "what can't be used is not shown");
    assert!(!state_folder.exists(), "no key of the operator's is copied");
}

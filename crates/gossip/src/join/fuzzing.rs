//! The exchange of a join and its text over hostile bytes: a request is judged by a real door,
//! and its certificate request goes to a real authority.

use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::Duration;

use flocker_base::{BootTime, ClusterId, Name, StoreId, TokenId, WallTime};

use super::KnownNode;
use super::door::{Admitted, Door, Knock};
use super::doorkeeper::{Roster, TokenSource};
use super::exchange::{Admission, Answer, Claim, MAX_REQUEST_BYTES, Reply, Request, Takes};
use super::token::{JoinString, Token};
use crate::identity::{Authority, KeyRequest, NODE_VALIDITY};
use crate::model::TokenSpec;

const NOW: WallTime = WallTime::from_millis(1_800_000_000_000);
const EXPORTER: [u8; 32] = [9; 32];
const SECRET: [u8; 32] = [4; 32];
const TOKEN: TokenId = TokenId::from_bytes([3; 16]);

static AUTHORITY: LazyLock<Authority> = LazyLock::new(|| {
    Authority::generate(ClusterId::from_bytes([9; 16]), NOW).expect("an authority")
});

/// A cluster with one token, one node of the name `taken` and one that was removed.
struct Cluster;

impl TokenSource for Cluster {
    fn find(&self, id: TokenId) -> Option<TokenSpec> {
        (id == TOKEN).then(token_spec)
    }
}

impl Roster for Cluster {
    fn name_holder(&self, name: &Name) -> Option<StoreId> {
        (name.as_str() == "taken").then_some(StoreId::from_bytes([2; 16]))
    }

    fn is_removed(&self, store: StoreId) -> bool {
        store == StoreId::from_bytes([8; 16])
    }

    fn known(&self) -> Vec<KnownNode> {
        Vec::new()
    }

    fn admit(&self, _admitted: &Admitted) -> Result<(), String> {
        Ok(())
    }
}

fn token_spec() -> TokenSpec {
    TokenSpec::new(TOKEN, SECRET, NOW + Duration::from_secs(60))
}

/// The bytes as a request, as one whose proof is right, and as a reply.
pub(crate) fn exchange(input: &[u8]) {
    if let Ok(claim) = Claim::decode(input) {
        let proven = claim.request.token == TOKEN && claim.is_proven(&SECRET, &EXPORTER);
        assert!(judge(input).is_none() || proven, "it is admitted without a proof");
        let message = claim.request.encode(&SECRET, &EXPORTER).expect("what was read");
        let read = Claim::decode(&message).map(|claim| claim.request);
        assert_eq!(read.as_ref(), Ok(&claim.request), "it is read otherwise");
        if let Some((admitted, csr)) = judge(&message) {
            check(&claim.request, &admitted);
            sign(&csr, admitted.node.store);
        }
    } else {
        assert!(judge(input).is_none(), "what cannot be read is admitted");
    }
    if let Ok(answer) = Answer::decode(input) {
        let bytes = answer.encode(2).expect("what was read");
        assert!(Answer::decode(&bytes) == Ok(answer), "a reply is read otherwise");
    }
}

fn judge(message: &[u8]) -> Option<(Admitted, Vec<u8>)> {
    let knock = Knock {
        me: StoreId::from_bytes([7; 16]),
        boot: BootTime::from_millis(5_000),
        wall: NOW,
        remote: SocketAddr::from(([192, 0, 2, 1], 40_000)),
        exporter: &EXPORTER,
        message,
    };
    let passed = Door::default().judge(&knock, &Cluster, &Cluster).ok()?;
    Some((passed.admitted, passed.csr))
}

fn check(request: &Request, admitted: &Admitted) {
    assert!(admitted.token == TOKEN && admitted.node.store == request.store);
    assert!(!Cluster.is_removed(request.store), "a removed node is admitted");
    assert_eq!(admitted.node.name.as_str(), request.name);
    for address in [admitted.control, admitted.data] {
        let ip = address.ip();
        assert!(address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast(), "{address}");
    }
}

/// Whatever the request for a certificate says, the certificate names the store.
fn sign(csr: &[u8], store: StoreId) {
    if let Ok(cert) = AUTHORITY.issue(csr, store, NOW, NODE_VALIDITY) {
        assert_eq!(flocker_quic::store_of_certificate(&cert), Some(store));
    }
}

/// Requests of both versions, one that is not admitted among them, and the replies to each.
pub(crate) fn exchanges() -> Vec<Vec<u8>> {
    let store = StoreId::from_bytes([1; 16]);
    let request = |name: &str, csr| Request {
        token: TOKEN,
        store,
        name: name.to_owned(),
        region: "eu".to_owned(),
        control: SocketAddr::from(([10, 0, 0, 1], 4523)),
        data: SocketAddr::from(([0, 0, 0, 0], 4524)),
        csr,
        takes: Takes::default(),
    };
    let csr = KeyRequest::generate(store).expect("a key").csr_der;
    let cert = AUTHORITY.issue(&csr, store, NOW, NODE_VALIDITY).expect("a certificate");
    let known = KnownNode { store, control: vec![([10, 0, 0, 1], 4523).into()], data: Vec::new() };
    let admission = Admission {
        cluster: ClusterId::from_bytes([9; 16]),
        by: store,
        cert,
        authority_cert: AUTHORITY.cert_der().to_vec(),
        authority_key: vec![7; 32],
        known: vec![known],
    };
    let takes = Takes { name: true, region: true };
    let requests = [
        request("web-1", csr.clone()),
        Request { takes, ..request("web-2", csr.clone()) },
        request("taken", csr),
        request("A", Vec::new()),
    ];
    let requests = requests.iter().map(|r| r.encode(&SECRET, &EXPORTER).expect("it is written"));
    let try_at = vec![([10, 0, 0, 2], 4523).into()];
    let name = |text| Name::new(text).expect("a name");
    let recorded = Some((name("web-2"), name("eu")));
    let answers = [
        Answer { reply: Reply::Admitted(admission), recorded, try_at: Vec::new() },
        Answer { try_at, ..Answer::refused("no".to_owned()) },
    ];
    let written = |version| {
        let encode = move |answer: &Answer| answer.encode(version).expect("it is written");
        answers.iter().map(encode).collect::<Vec<_>>()
    };
    let replies = [1, 2].into_iter().flat_map(written).collect::<Vec<_>>();
    requests.inspect(|request| assert!(request.len() <= MAX_REQUEST_BYTES)).chain(replies).collect()
}

/// Text as a join string, which a person pastes: it is read in one meaning, or refused without a
/// word of its secret.
pub(crate) fn text(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    match text.parse::<JoinString>() {
        Ok(join) => {
            let written = join.to_string();
            assert_eq!(written.parse().as_ref(), Ok(&join), "{written} is read otherwise");
        }
        Err(error) => assert!(error.to_string().len() < 1000, "{error}"),
    }
    if let Ok(token) = text.parse::<Token>() {
        assert_eq!(token.to_string().parse().as_ref(), Ok(&token));
        assert!(!format!("{token:?}").contains(&token.to_string()), "the secret is shown");
    }
}

/// Join strings with every form of a host.
pub(crate) fn texts() -> Vec<Vec<u8>> {
    let token = Token::new(&token_spec(), &AUTHORITY);
    let whole = format!("{token}@a.example,10.0.0.1:4523,[2001:db8::1]:9,[::1]");
    vec![whole.into_bytes(), token.to_string().into_bytes(), b"flk9-abc@host".to_vec()]
}

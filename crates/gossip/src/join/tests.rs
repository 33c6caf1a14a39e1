//! Joining without a network: tokens as text, every refusal of the doorkeeper, hostile bytes.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use flocker_base::{BootTime, Clock, ClusterId, ManualClock, Name, TokenId, WallTime};
use proptest::prelude::*;

use super::door::{Door, Knock, Passed};
use super::exchange::{Admission, Answer, Claim, Reply, Request};
use super::limiter::{Limiter, MAX_ADDRESSES, TRIES, WINDOW};
use super::*;
use crate::control::JoinHandler;
use crate::identity::{Authority, KeyRequest, NodeIdentity};
use crate::model::TokenSpec;

mod tokens;

const NOW: WallTime = WallTime::from_millis(1_800_000_000_000);
const BOOT: BootTime = BootTime::from_millis(5_000);
const EXPORTER: [u8; 32] = [9; 32];
pub(super) const SECRET: [u8; 32] = [4; 32];

pub(super) fn token_id() -> TokenId {
    TokenId::from_bytes([3; 16])
}

pub(super) fn store(byte: u8) -> StoreId {
    StoreId::from_bytes([byte; 16])
}

fn remote(last: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, last], 40_000))
}

/// A cluster as the doorkeeper sees it.
#[derive(Default)]
pub(super) struct Cluster {
    tokens: Mutex<Vec<TokenSpec>>,
    names: Vec<(Name, StoreId)>,
    removed: Vec<StoreId>,
    admitted: Mutex<Vec<Admitted>>,
    full_disk: bool,
    counts: Option<Redemptions>,
}

impl Cluster {
    pub(super) fn with_token() -> Self {
        let token = TokenSpec::new(token_id(), SECRET, NOW + Duration::from_secs(3600));
        Self { tokens: Mutex::new(vec![token]), ..Self::default() }
    }

    pub(super) fn admitted(&self) -> Vec<Admitted> {
        self.admitted.lock().expect("lock").clone()
    }

    pub(super) fn change(&self, change: impl Fn(&mut TokenSpec)) {
        self.tokens.lock().expect("lock").iter_mut().for_each(change);
    }
}

impl TokenSource for Cluster {
    fn find(&self, id: TokenId) -> Option<TokenSpec> {
        self.tokens.lock().expect("lock").iter().find(|t| t.id == id).cloned()
    }

    fn redeem(&self, token: TokenId, key: [u8; 32]) -> Result<u32, RedeemError> {
        self.counts.as_ref().ok_or(RedeemError::NotKept)?.redeem(token, key)
    }
}

impl Roster for Cluster {
    fn name_holder(&self, name: &Name) -> Option<StoreId> {
        self.names.iter().find(|(n, _)| n == name).map(|(_, s)| *s)
    }

    fn is_removed(&self, store: StoreId) -> bool {
        self.removed.contains(&store)
    }

    fn known(&self) -> Vec<KnownNode> {
        let at = |port| SocketAddr::from(([192, 0, 2, 200], port));
        vec![KnownNode { store: store(99), control: vec![at(4523); 9], data: vec![at(4524)] }]
    }

    fn admit(&self, admitted: &Admitted) -> Result<(), String> {
        if self.full_disk {
            return Err("no space left on device".to_owned());
        }
        self.admitted.lock().expect("lock").push(admitted.clone());
        Ok(())
    }
}

fn request() -> Request {
    Request {
        token: token_id(),
        store: store(1),
        name: "web-1".to_owned(),
        region: "eu".to_owned(),
        control: SocketAddr::from(([10, 0, 0, 1], 4523)),
        data: SocketAddr::from(([10, 0, 0, 1], 4524)),
        csr: vec![1, 2, 3],
        takes: Takes::default(),
    }
}

fn message(change: impl FnOnce(&mut Request)) -> Vec<u8> {
    let mut request = request();
    change(&mut request);
    request.encode(&SECRET, &EXPORTER).expect("encodes")
}

fn knock<'a>(message: &'a [u8], from: u8) -> Knock<'a> {
    Knock {
        me: store(100),
        boot: BOOT,
        wall: NOW,
        remote: remote(from),
        exporter: &EXPORTER,
        message,
    }
}

fn judge(cluster: &Cluster, message: &[u8]) -> Result<Passed, Refusal> {
    Door::default().judge(&knock(message, 1), cluster, cluster).map_err(|t| t.refusal)
}

fn refusal(cluster: &Cluster, message: &[u8]) -> Refusal {
    judge(cluster, message).expect_err("refused")
}

// Tokens and join strings.

fn token() -> Token {
    Token { id: token_id(), secret: SECRET, ca: [5; 32] }
}

#[test]
fn a_tokens_text_is_fixed() {
    let text = token().to_string();
    assert_eq!(
        text,
        "flk1-ambqgaydambqgaydambqgaydamcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibifaucqk\
         bifaucqkbifaucqkbifaucqkbifaucqkbifaucqkbifrn6v33q"
    );
    assert_eq!(text.parse(), Ok(token()));
    assert_eq!(format!(" {} \n", text.to_uppercase()).parse(), Ok(token()), "case and blanks");
    assert!(!format!("{:?}", token()).contains('4'), "the secret is not printed");
}

#[test]
fn every_typo_in_a_token_is_called_a_typo() {
    let text = token().to_string();
    for position in 5..text.len() {
        let mut bad = text.clone().into_bytes();
        bad[position] = if bad[position] == b'a' { b'b' } else { b'a' };
        let bad = String::from_utf8(bad).expect("text");
        assert_eq!(bad.parse::<Token>(), Err(TokenError::Typo), "{position}");
    }
    assert_eq!("hunter2".parse::<Token>(), Err(TokenError::NotAToken));
    assert_eq!("flk2-abc".parse::<Token>(), Err(TokenError::Version));
    assert!(matches!(text[..60].parse::<Token>(), Err(TokenError::Length { found: 55 })));
}

#[test]
fn a_join_string_names_hosts_with_and_without_ports() {
    let text = format!("{}@a.example, 10.0.0.1:99,[2001:db8::1],[::1]:7", token());
    let join: JoinString = text.parse().expect("parses");
    let seeds: Vec<String> = join.seeds.iter().map(Seed::to_string).collect();
    assert_eq!(seeds, ["a.example:4523", "10.0.0.1:99", "[2001:db8::1]:4523", "[::1]:7"]);
    assert_eq!(join.to_string().parse(), Ok(join));
}

#[test]
fn what_is_no_join_string_is_refused_with_the_reason() {
    let with = |hosts: &str| format!("{}@{hosts}", token()).parse::<JoinString>();
    for bad in
        ["2001:db8::1", "[::1", "[::1]x", "[x]", "a:0", "a:x", "a:70000", "a b", "-a", "a..b"]
    {
        assert!(matches!(with(bad), Err(JoinStringError::Host { .. })), "{bad}");
    }
    for bad in ["", ",", " , "] {
        assert_eq!(with(bad), Err(JoinStringError::Form), "{bad}");
    }
    assert_eq!(with(&"a,".repeat(33)), Err(JoinStringError::TooMany));
    assert_eq!(token().to_string().parse::<JoinString>(), Err(JoinStringError::Form));
    let typo = format!("{}a@a", &token().to_string()[..139]).parse::<JoinString>();
    assert_eq!(typo, Err(JoinStringError::Token(TokenError::Typo)));
}

// The doorkeeper's core.

#[test]
fn a_good_request_passes_as_it_was_made() {
    let passed = judge(&Cluster::with_token(), &message(|_| ())).expect("passes");
    assert_eq!(passed.csr, [1, 2, 3]);
    assert_eq!(passed.admitted.node.name.as_str(), "web-1");
    assert_eq!(passed.admitted.node.store, store(1));
    assert_eq!(passed.admitted.control, request().control);
    assert_eq!(passed.admitted.token, token_id());
}

#[test]
fn a_request_of_another_form_is_refused() {
    let cluster = Cluster::with_token();
    assert!(matches!(refusal(&cluster, &[0; MAX_REQUEST_BYTES + 1]), Refusal::TooLarge(_)));
    for bad in [&[][..], &[1], &[1; 33], &[9; 200]] {
        assert!(matches!(refusal(&cluster, bad), Refusal::Unreadable(_)));
    }
    let mut longer = message(|_| ());
    longer.push(0);
    assert!(matches!(refusal(&cluster, &longer), Refusal::Unreadable(_)));
    let text = refusal(&cluster, &[9; 200]).to_string();
    assert!(text.contains("same version"), "{text}");
}

#[test]
fn tokens_that_are_unknown_wrong_revoked_or_expired_are_refused() {
    let cluster = Cluster::with_token();
    let unknown = message(|r| r.token = TokenId::from_bytes([8; 16]));
    assert_eq!(refusal(&cluster, &unknown), Refusal::UnknownToken);
    let wrong_secret = request().encode(&[5; 32], &EXPORTER).expect("encodes");
    assert_eq!(refusal(&cluster, &wrong_secret), Refusal::WrongProof);
    let other_connection = request().encode(&SECRET, &[8; 32]).expect("encodes");
    assert_eq!(refusal(&cluster, &other_connection), Refusal::WrongProof);
    cluster.change(|t| t.expires = NOW);
    assert_eq!(refusal(&cluster, &message(|_| ())), Refusal::Expired(Duration::ZERO));
    cluster.change(|t| t.revoked = true);
    assert_eq!(refusal(&cluster, &message(|_| ())), Refusal::Revoked);
    assert_eq!(refusal(&cluster, &wrong_secret), Refusal::WrongProof, "told only to who proves");
}

#[test]
fn a_proof_covers_every_byte_of_the_request() {
    let cluster = Cluster::with_token();
    let good = message(|_| ());
    for bit in 8..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(judge(&cluster, &bad).is_err(), "bit {bit}");
    }
}

#[test]
fn three_wrong_proofs_block_the_token_here_and_no_other() {
    let cluster = Cluster::with_token();
    let mut door = Door::default();
    let wrong = request().encode(&[5; 32], &EXPORTER).expect("encodes");
    let good = message(|_| ());
    for from in 1..=3 {
        let turned = door.judge(&knock(&wrong, from), &cluster, &cluster).expect_err("refused");
        assert_eq!((turned.refusal, turned.token), (Refusal::WrongProof, Some(token_id())));
    }
    let turned = door.judge(&knock(&good, 4), &cluster, &cluster).expect_err("refused");
    assert_eq!(turned.refusal, Refusal::Blocked);
    let other = TokenId::from_bytes([7; 16]);
    cluster.tokens.lock().expect("lock").push(TokenSpec::new(
        other,
        SECRET,
        NOW + Duration::from_secs(1),
    ));
    assert!(door.judge(&knock(&message(|r| r.token = other), 5), &cluster, &cluster).is_ok());
}

#[test]
fn names_regions_stores_and_addresses_are_checked() {
    let taken = Name::new("db").expect("name");
    let cluster = Cluster {
        names: vec![(taken.clone(), store(2))],
        removed: vec![store(6)],
        ..Cluster::with_token()
    };
    let refused = |change: fn(&mut Request)| refusal(&cluster, &message(change));
    let bad = refused(|r| r.name = "../x".to_owned());
    assert!(matches!(bad, Refusal::BadName { what: "name", .. }), "{bad}");
    let bad = refused(|r| r.region = String::new());
    assert!(matches!(bad, Refusal::BadName { what: "region", .. }), "{bad}");
    let bad = refused(|r| r.name = "db".to_owned());
    assert_eq!(bad, Refusal::NameTaken { name: taken, holder: store(2) });
    assert!(bad.to_string().contains("--name"), "{bad}");
    assert_eq!(refused(|r| r.store = store(6)), Refusal::Removed(store(6)));
    assert!(matches!(refused(|r| r.control.set_port(0)), Refusal::BadAddress { .. }));
    let multicast = refused(|r| r.data = SocketAddr::from(([224, 0, 0, 1], 1)));
    assert!(matches!(multicast, Refusal::BadAddress { what: "data", .. }));
    let again = message(|r| {
        r.name = "db".to_owned();
        r.store = store(2);
    });
    assert!(judge(&cluster, &again).is_ok(), "the same store may take its own name again");
}

#[test]
fn a_newcomer_that_does_not_know_its_address_gets_the_one_it_came_from() {
    let message = message(|r| r.control = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 4523)));
    let passed = judge(&Cluster::with_token(), &message).expect("passes");
    assert_eq!(passed.admitted.control, SocketAddr::new(remote(1).ip(), 4523));
}

#[test]
fn the_sixth_try_within_a_minute_waits_and_others_do_not() {
    let cluster = Cluster::with_token();
    let mut door = Door::default();
    let good = message(|_| ());
    for _ in 0..TRIES {
        door.judge(&knock(&good, 1), &cluster, &cluster).expect("passes");
    }
    let turned = door.judge(&knock(&good, 1), &cluster, &cluster).expect_err("refused");
    assert_eq!(turned.refusal, Refusal::TooOften(WINDOW));
    assert_eq!(door.log_line(&turned.refusal, BOOT), Some(0));
    assert_eq!(door.log_line(&turned.refusal, BOOT), None, "a flood is not logged line by line");
    let later = BOOT + Duration::from_secs(11);
    assert_eq!(door.log_line(&turned.refusal, later), Some(1), "but counted");
    assert_eq!(door.log_line(&Refusal::WrongProof, BOOT), Some(0), "each other one is logged");
    door.judge(&knock(&good, 2), &cluster, &cluster).expect("another address");
    let later = Knock { boot: BOOT + WINDOW, ..knock(&good, 1) };
    door.judge(&later, &cluster, &cluster).expect("a minute later");
}

#[test]
fn the_limiters_memory_is_bounded_and_a_v6_network_counts_as_one() {
    let mut limiter = Limiter::default();
    let v6 = |high: u32, low: u32| {
        IpAddr::V6(Ipv6Addr::from(
            (0x2001_0db8_u128 << 96) | (u128::from(high) << 64) | u128::from(low),
        ))
    };
    for low in 0..TRIES {
        limiter.admit(v6(0, low), BOOT).expect("admitted");
    }
    limiter.admit(v6(0, 99), BOOT).expect_err("the same /64");
    for high in 1..20_000 {
        limiter.admit(v6(high, 0), BOOT + Duration::from_millis(1)).expect("admitted");
    }
    assert!(limiter.remembered() <= MAX_ADDRESSES);
    limiter.admit(v6(1, 0), BOOT + 2 * WINDOW).expect("admitted");
    assert_eq!(limiter.remembered(), 1, "what is over is forgotten");
    let mapped: IpAddr = "::ffff:192.0.2.1".parse().expect("address");
    for _ in 0..TRIES {
        limiter.admit(mapped, BOOT + 2 * WINDOW).expect("admitted");
    }
    limiter.admit(remote(1).ip(), BOOT + 2 * WINDOW).expect_err("the same host as IPv4");
}

// The doorkeeper's shell.

struct Desk {
    keeper: Doorkeeper,
    cluster: Arc<Cluster>,
    authority: Authority,
}

fn desk(cluster: Cluster) -> Desk {
    let cluster = Arc::new(cluster);
    let id = ClusterId::from_bytes([1; 16]);
    let authority = Authority::generate(id, NOW).expect("authority");
    let identity = NodeIdentity::found(id, store(100), authority.clone(), NOW).expect("identity");
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::new(BOOT, NOW));
    let keeper = Doorkeeper::new(
        identity,
        Arc::<Cluster>::clone(&cluster),
        Arc::<Cluster>::clone(&cluster),
        clock,
    );
    Desk { keeper, cluster, authority }
}

async fn answer(desk: &Desk, message: Vec<u8>) -> Reply {
    let reply = desk.keeper.on_join(remote(1), EXPORTER, Bytes::from(message)).await;
    Answer::decode(&reply).expect("a reply").reply
}

#[tokio::test]
async fn an_admitted_node_gets_an_identity_that_holds_and_is_recorded() {
    let desk = desk(Cluster::with_token());
    let key = KeyRequest::generate(store(1)).expect("key");
    let message = message(|r| r.csr.clone_from(&key.csr_der));
    let Reply::Admitted(admission) = answer(&desk, message).await else { panic!("refused") };
    let authority = Authority::from_parts(
        admission.authority_cert.clone(),
        admission.authority_key.clone().into(),
    )
    .expect("authority");
    assert_eq!(authority, desk.authority);
    let identity = NodeIdentity::from_parts(
        admission.cluster,
        store(1),
        authority,
        admission.cert.clone(),
        key.key_der,
    )
    .expect("holds");
    assert_eq!(identity.store(), store(1));
    assert_eq!(admission.known[0].control.len(), 4, "addresses told are bounded");
    assert_eq!(desk.cluster.admitted.lock().expect("lock").len(), 1);
}

#[tokio::test]
async fn nothing_is_recorded_for_a_bad_certificate_request() {
    let desk = desk(Cluster::with_token());
    let Reply::Refused(reason) = answer(&desk, message(|_| ())).await else { panic!("admitted") };
    assert!(reason.contains("certificate request"), "{reason}");
    assert!(desk.cluster.admitted.lock().expect("lock").is_empty());
}

#[tokio::test]
async fn a_node_that_could_not_be_recorded_is_not_admitted() {
    let desk = desk(Cluster { full_disk: true, ..Cluster::with_token() });
    let key = KeyRequest::generate(store(1)).expect("key");
    let reply = answer(&desk, message(|r| r.csr = key.csr_der)).await;
    let Reply::Refused(reason) = reply else { panic!("admitted") };
    assert!(reason.contains("no space left") && reason.contains("another node"), "{reason}");
}

#[test]
fn the_wire_forms_are_fixed() {
    let older = request().encode_in(1, &SECRET, &EXPORTER).expect("encodes");
    let mut body = vec![16];
    body.extend([3; 16]);
    body.push(16);
    body.extend([1; 16]);
    body.extend(b"\x05web-1\x02eu");
    body.extend([0, 10, 0, 0, 1]);
    body.extend([0xab, 0x23]); // 4523 as a varint
    body.extend([0, 10, 0, 0, 1]);
    body.extend([0xac, 0x23]);
    body.extend([3, 1, 2, 3]);
    assert_eq!(older[0], 1);
    assert_eq!(older[33..], body);
    let newer = message(|_| ());
    assert_eq!(newer[0], 2);
    assert_eq!(newer[33..], [body.as_slice(), &[0]].concat(), "and no extras");
    assert_eq!(
        data_encoding::HEXLOWER.encode(&older[1..33]),
        "7ac87c08cb258c1c333ba4ca6de92def4fc18c4008549b90296a3fbdf6e59d8d",
        "the proof is HMAC-SHA256 (RFC 2104) of 'flocker join v1', exporter and body"
    );
    let reply = Answer::refused("no".to_owned()).encode(1).expect("encodes");
    assert_eq!(reply, [1, 1, 2, b'n', b'o']);
    let admission = Admission {
        cluster: ClusterId::from_bytes([1; 16]),
        by: store(2),
        cert: vec![3],
        authority_cert: vec![4, 4],
        authority_key: vec![5],
        known: vec![KnownNode { store: store(6), control: vec![request().control], data: vec![] }],
    };
    let mut golden = vec![1, 0, 16];
    golden.extend([1; 16]);
    golden.push(16);
    golden.extend([2; 16]);
    golden.extend([1, 3, 2, 4, 4, 1, 5, 1, 16]);
    golden.extend([6; 16]);
    golden.extend([1, 0, 10, 0, 0, 1, 0xab, 0x23, 0]);
    let answer = Answer { reply: Reply::Admitted(admission), recorded: None, try_at: Vec::new() };
    assert_eq!(answer.encode(1).expect("encodes"), golden);
    golden[0] = 2;
    golden.push(0);
    assert_eq!(answer.encode(2).expect("encodes"), golden, "with no extras");
}

proptest! {
    #[test]
    fn any_token_round_trips(id: [u8; 16], secret: [u8; 32], ca: [u8; 32]) {
        let token = Token { id: TokenId::from_bytes(id), secret, ca };
        prop_assert_eq!(token.to_string().parse(), Ok(token));
    }

    #[test]
    fn any_text_is_refused_without_a_panic(text in ".{0,200}") {
        prop_assert!(text.parse::<Token>().is_err());
        let prefixed = format!("flk1-{text}");
        prop_assert!(prefixed.parse::<Token>().is_err());
        prop_assert!(text.parse::<JoinString>().is_err(), "no join string");
        let _ = text.parse::<Seed>();
    }

    #[test]
    fn hostile_requests_are_refused_without_a_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..600),
        version in 0_u8..4,
    ) {
        let mut bytes = bytes;
        if version > 0 && !bytes.is_empty() {
            bytes[0] = version;
        }
        prop_assert!(judge(&Cluster::with_token(), &bytes).is_err());
    }

    #[test]
    fn a_cut_or_changed_request_is_refused(
        cut in 0_usize..100,
        position in 1_usize..100,
        value: u8,
    ) {
        let good = message(|_| ());
        let mut bad = good.clone();
        let position = position % good.len();
        bad[position.max(1)] = value;
        bad.truncate(good.len() - cut.min(good.len()));
        prop_assume!(bad != good);
        prop_assert!(judge(&Cluster::with_token(), &bad).is_err());
        let _ = Claim::decode(&bad);
    }

    #[test]
    fn hostile_replies_do_not_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..600),
        version in 1_u8..3,
    ) {
        let mut versioned = vec![version];
        versioned.extend(bytes);
        let _ = Answer::decode(&versioned);
    }
}

//! Tokens for a limited number of nodes, and tokens that fix a name or a region.

use redb::Database;
use redb::backends::InMemoryBackend;

use super::*;
use crate::join::exchange::Takes;

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

/// A cluster whose token was made by this store for so many nodes.
fn limited(issuer: u8, uses: u32) -> Cluster {
    let database = Database::builder().create_with_backend(InMemoryBackend::new());
    let counts = Redemptions::new(Arc::new(database.expect("opens")));
    counts.issue(token_id(), uses).expect("kept");
    let cluster = Cluster { counts: Some(counts), ..Cluster::with_token() };
    cluster.change(|t| (t.issuer, t.uses) = (Some(store(issuer)), Some(uses)));
    cluster
}

fn takes(name: bool, region: bool) -> Vec<u8> {
    message(|r| r.takes = Takes { name, region })
}

#[test]
fn only_its_issuer_admits_with_a_limited_token_and_others_say_where_that_is() {
    assert!(judge(&limited(100, 1), &message(|_| ())).is_ok(), "this node made it");
    let refused = refusal(&limited(99, 1), &message(|_| ()));
    let text = refused.to_string();
    assert!(text.contains("192.0.2.200:4523") && text.contains(&store(99).to_string()), "{text}");
    assert_eq!(refused.try_at().len(), 8, "bounded, though the roster knows nine");
    let unknown = refusal(&limited(77, 1), &message(|_| ()));
    assert!(unknown.try_at().is_empty() && unknown.to_string().ends_with("that node"), "{unknown}");
    let nobody = limited(100, 3);
    nobody.change(|t| t.issuer = None);
    assert_eq!(refusal(&nobody, &message(|_| ())), Refusal::UsedUp(3), "a limit nobody keeps");
    let anyone = Cluster::with_token();
    anyone.change(|t| t.issuer = Some(store(99)));
    assert!(judge(&anyone, &message(|_| ())).is_ok(), "an unlimited one is good everywhere");
}

#[test]
fn where_to_go_is_told_only_to_who_proves_the_token() {
    let wrong = request().encode(&[5; 32], &EXPORTER).expect("encodes");
    assert_eq!(refusal(&limited(99, 1), &wrong), Refusal::WrongProof);
}

#[test]
fn a_removed_nodes_tokens_are_void_limited_or_not() {
    for uses in [None, Some(2)] {
        let cluster = Cluster { removed: vec![store(99)], ..Cluster::with_token() };
        cluster.change(|t| (t.issuer, t.uses) = (Some(store(99)), uses));
        assert_eq!(refusal(&cluster, &message(|_| ())), Refusal::IssuerRemoved);
    }
}

#[test]
fn a_preset_is_taken_by_who_chose_nothing_and_refused_to_who_chose_otherwise() {
    let cluster = Cluster::with_token();
    cluster.change(|t| (t.name, t.region) = (Some(name("db-7")), Some(name("us"))));
    let passed = judge(&cluster, &takes(true, true)).expect("passes");
    assert_eq!(passed.admitted.node.name, name("db-7"));
    assert_eq!(passed.admitted.node.region, name("us"));
    assert_eq!(passed.admitted.node.origin.map(|o| o.token), Some(token_id()));
    let refused = refusal(&cluster, &takes(true, false)).to_string();
    assert!(refused.contains("region 'us'") && refused.contains("'eu'"), "{refused}");
    let refused = refusal(&cluster, &takes(false, true)).to_string();
    assert!(refused.contains("name 'db-7'") && refused.contains("--name"), "{refused}");
    let same = message(|r| (r.name, r.region) = ("db-7".to_owned(), "us".to_owned()));
    assert!(judge(&cluster, &same).is_ok(), "what it chose is what the token says");
    let plain = Cluster::with_token();
    let passed = judge(&plain, &takes(true, true)).expect("passes");
    assert_eq!(passed.admitted.node.name, name("web-1"), "without a preset its own stand");
}

#[tokio::test]
async fn one_use_admits_one_key_and_spends_before_it_signs() {
    let desk = desk(limited(100, 1));
    let left =
        |desk: &Desk| desk.cluster.counts.as_ref().expect("kept").left(token_id()).expect("reads");
    let key = KeyRequest::generate(store(1)).expect("key");
    let ask = || message(|r| r.csr.clone_from(&key.csr_der));
    assert!(matches!(answer(&desk, ask()).await, Reply::Admitted(_)));
    assert_eq!(left(&desk), Some(0));
    assert!(
        matches!(answer(&desk, ask()).await, Reply::Admitted(_)),
        "its reply may have been lost: the same key asks again"
    );
    let thief = KeyRequest::generate(store(1)).expect("key");
    let reply = answer(&desk, message(|r| r.csr = thief.csr_der)).await;
    let Reply::Refused(reason) = reply else { panic!("one too many") };
    assert!(reason.contains("was for 1 node(s)"), "{reason}");
    assert_eq!(desk.cluster.admitted().len(), 2);
}

#[tokio::test]
async fn a_failure_after_the_spending_costs_a_use_and_admits_nobody() {
    let desk = desk(Cluster { full_disk: true, ..limited(100, 2) });
    let key = KeyRequest::generate(store(1)).expect("key");
    let reply = answer(&desk, message(|r| r.csr = key.csr_der)).await;
    assert!(matches!(reply, Reply::Refused(_)));
    let left = desk.cluster.counts.as_ref().expect("kept").left(token_id()).expect("reads");
    assert_eq!(left, Some(1), "spent before the disk failed");
    assert!(desk.cluster.admitted().is_empty());
}

#[tokio::test]
async fn an_issuer_that_lost_its_count_admits_nobody() {
    let cluster = Cluster { counts: None, ..limited(100, 5) };
    let desk = desk(cluster);
    let key = KeyRequest::generate(store(1)).expect("key");
    let reply = answer(&desk, message(|r| r.csr = key.csr_der)).await;
    assert!(matches!(reply, Reply::Refused(_)));
}

#[tokio::test]
async fn a_blocked_token_is_shown_as_blocked_here() {
    let desk = desk(Cluster::with_token());
    let blocked = desk.keeper.blocked();
    let wrong = request().encode(&[5; 32], &EXPORTER).expect("encodes");
    for from in 1..=3 {
        assert!(!blocked.contains(token_id()));
        desk.keeper.on_join(remote(from), EXPORTER, Bytes::from(wrong.clone())).await;
    }
    assert!(blocked.contains(token_id()));
}

#[tokio::test]
async fn version_two_says_what_was_recorded_and_where_to_try() {
    let first = desk(limited(99, 1));
    // Also to a node that takes nothing from the token.
    for asked in [takes(true, true), message(|_| ())] {
        let reply = first.keeper.on_join(remote(1), EXPORTER, Bytes::from(asked)).await;
        let answer = Answer::decode(&reply).expect("decodes");
        assert_eq!(answer.try_at.len(), 8);
        assert!(matches!(answer.reply, Reply::Refused(_)));
    }
    let older = request().encode_in(1, &SECRET, &EXPORTER).expect("encodes");
    let reply = first.keeper.on_join(remote(1), EXPORTER, Bytes::from(older)).await;
    assert_eq!(reply[0], 1, "who asks in version 1 is answered in it");
    let cluster = Cluster::with_token();
    cluster.change(|t| t.region = Some(name("us")));
    let second = desk(cluster);
    let key = KeyRequest::generate(store(1)).expect("key");
    let request = message(|r| {
        r.csr = key.csr_der;
        r.takes.region = true;
    });
    let reply = second.keeper.on_join(remote(1), EXPORTER, Bytes::from(request)).await;
    let answer = Answer::decode(&reply).expect("decodes");
    assert_eq!(answer.recorded, Some((name("web-1"), name("us"))));
    assert_eq!(second.cluster.admitted()[0].node.region, name("us"));
}

#[test]
fn a_request_with_extras_has_a_fixed_form_and_unknown_extras_are_left_aside() {
    let plain = request().encode_in(1, &SECRET, &EXPORTER).expect("encodes");
    let open = takes(true, true);
    assert_eq!((plain[0], open[0]), (1, 2));
    assert_eq!(open[33..open.len() - 4], plain[33..], "the fields are those of version 1");
    assert_eq!(open[open.len() - 4..], [1, 1, 1, 3], "one extra: number 1, one byte, both bits");
    // As a later version would say it: one more extra.
    let mut later = open.clone();
    let end = later.len();
    later[end - 4] = 2;
    later.extend([99, 2, 7, 7]);
    let claim = Claim::decode(&later).expect("reads");
    assert_eq!(claim.request.takes, Takes { name: true, region: true });
    assert!(!claim.is_proven(&SECRET, &EXPORTER), "the proof covers the extras");
    let mut downgraded = plain;
    downgraded[0] = 2;
    downgraded.push(0);
    let claim = Claim::decode(&downgraded).expect("reads");
    assert!(!claim.is_proven(&SECRET, &EXPORTER), "a proof of one version says nothing in another");
    let mut many = open;
    many.truncate(end - 4);
    many.push(65);
    many.extend([9, 0].repeat(65));
    assert!(Claim::decode(&many).is_err(), "extras are bounded");
}

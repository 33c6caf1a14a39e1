//! Tokens and nodes in the map: what older records say, labels that meet, flags that stay.

use std::collections::BTreeMap;

use super::*;
use crate::map::typed::{Fields, Typed};
use crate::map::{NodeChange, TokenChange};
use crate::model::{LabelKey, MAX_LABELS, Origin, Removal};

fn key(text: &str) -> LabelKey {
    LabelKey::new(text).expect("a label")
}

fn label(node: u8, pairs: &[(&str, Option<&str>)]) -> Edit {
    let pairs = pairs.iter().map(|(k, v)| (key(k), v.map(str::to_owned))).collect();
    Edit::ChangeNode(store_id(node), NodeChange::Label(pairs))
}

fn labels(map: &Map, node: u8) -> Vec<(String, String)> {
    let view = map.view();
    let labels = view.node(&store_id(node)).expect("there").labels.clone();
    labels.into_iter().map(|(k, v)| (k.as_str().to_owned(), v)).collect()
}

fn removal() -> Removal {
    Removal { at: NOON, by: store_id(1) }
}

fn full_token() -> TokenSpec {
    TokenSpec {
        issuer: Some(store_id(5)),
        uses: Some(3),
        uses_left: Some(2),
        region: Some(name("eu")),
        name: Some(name("db-1")),
        note: Some("for the new rack".to_owned()),
        ended: Some(NOON),
        ..token(1)
    }
}

fn full_node() -> NodeSpec {
    NodeSpec {
        removed: true,
        removal: Some(removal()),
        origin: Some(Origin { token: token(1).id, by: store_id(2), at: NOON }),
        labels: BTreeMap::from([(key("rack"), "r7".to_owned()), (key("disk"), String::new())]),
        ..node(9, "n9")
    }
}

fn hash<T: Typed>(spec: &T) -> String {
    let mut hasher = blake3::Hasher::new();
    for (id, bytes) in spec.fields() {
        hasher.update(&id.to_le_bytes());
        hasher.update(&bytes);
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

#[test]
fn every_field_is_read_as_it_was_written() {
    let (token, node) = (full_token(), full_node());
    assert_eq!(TokenSpec::read(token.id, &token.fields()), Ok(token.clone()));
    assert_eq!(NodeSpec::read(node.store, &node.fields()), Ok(node.clone()));
    let ids = |fields: Fields| fields.into_keys().collect::<Vec<_>>();
    assert_eq!(ids(token.fields()), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    assert_eq!(ids(node.fields()), [1, 2, 3, 4, 5, 444, 453]);
    assert_eq!((hash(&token), hash(&node)), (GOLDEN_TOKEN.to_owned(), GOLDEN_NODE.to_owned()));
}

const GOLDEN_TOKEN: &str = "957f73fef069733e";
const GOLDEN_NODE: &str = "74c5015f78a4d28c";

#[test]
fn records_of_the_first_version_are_read_with_nothing_more_than_they_say() {
    let ids = |fields: Fields| fields.into_keys().collect::<Vec<_>>();
    // What has no more to say has the fields of the first version, byte for byte: see the golden
    // fields of each kind.
    assert_eq!(ids(token(1).fields()), [1, 2, 3]);
    assert_eq!(ids(node(9, "n9").fields()), [1, 2, 3]);
    let token = TokenSpec::read(token(1).id, &token(1).fields()).expect("reads");
    assert_eq!((token.issuer, token.uses, token.ended), (None, None, None));
    let node = NodeSpec::read(store_id(9), &node(9, "n9").fields()).expect("reads");
    assert!(node.labels.is_empty() && node.removal.is_none() && node.origin.is_none());
}

#[test]
fn a_limit_that_cannot_be_read_fails_closed_and_lesser_fields_do_not_hide_a_removal() {
    for field in [4, 5, 6, 7, 8] {
        let mut fields = full_token().fields();
        fields.insert(field, vec![0xff; 3]);
        assert!(TokenSpec::read(token(1).id, &fields).is_err(), "{field}");
    }
    let mut fields = full_node().fields();
    for field in [4, 5, 444, 453, 300] {
        fields.insert(field, vec![0xff; 3]);
    }
    let node = NodeSpec::read(store_id(9), &fields).expect("reads");
    assert!(node.removed && node.labels.is_empty() && node.removal.is_none());
}

#[test]
fn edits_of_different_labels_on_two_sides_both_survive() {
    let ((a, _), (b, _)) = (map(1), map(2));
    a.edit([Edit::PutNode(node(9, "n9")), label(9, &[("old", Some("1"))])]).expect("edits");
    carry(&a, &b);
    a.edit([label(9, &[("rack", Some("r7")), ("old", None)])]).expect("edits");
    b.edit([label(9, &[("disk", Some("ssd"))])]).expect("edits");
    carry(&a, &b);
    carry(&b, &a);
    let wanted = [("disk".to_owned(), "ssd".to_owned()), ("rack".to_owned(), "r7".to_owned())];
    assert_eq!(labels(&a, 9), wanted);
    assert_eq!(labels(&b, 9), wanted);
    assert_eq!(a.view().conflicts().count(), 0);
    a.edit([label(9, &[("disk", Some("hdd"))])]).expect("edits");
    b.edit([label(9, &[("disk", Some("nvme"))])]).expect("edits");
    carry(&a, &b);
    let conflicts: Vec<_> = b.view().conflicts().cloned().collect();
    assert_eq!(conflicts.len(), 1, "one label set twice is a conflict that is shown");
    assert_eq!(conflicts[0].field_name(), "label");
}

#[test]
fn labels_that_share_a_field_stand_beside_each_other() {
    // Found by trying: both names hash into one field.
    let field = |text: &str| typed::members::field_of_label(&key(text));
    let (one, other) = (0..2_000)
        .map(|n| (format!("k{n}"), "k0".to_owned()))
        .find(|(one, other)| one != other && field(one) == field(other))
        .expect("256 fields");
    let (a, _) = map(1);
    a.edit([Edit::PutNode(node(9, "n9"))]).expect("edits");
    a.edit([label(9, &[(&one, Some("1")), (&other, Some("2"))])]).expect("edits");
    assert_eq!(labels(&a, 9).len(), 2);
    a.edit([label(9, &[(&one, None)])]).expect("edits");
    assert_eq!(labels(&a, 9), [(other, "2".to_owned())]);
}

#[test]
fn labels_are_bounded_and_a_removal_still_fits_beside_them() {
    let (a, _) = map(1);
    a.edit([Edit::PutNode(node(9, "n9"))]).expect("edits");
    let long = "v".repeat(crate::model::MAX_LABEL_VALUE);
    // Names come and go, so that every field has been used.
    for round in 0..20 {
        let names: Vec<String> =
            (0..MAX_LABELS).map(|n| format!("{}-{round}-{n}", "k".repeat(50))).collect();
        let set: Vec<_> = names.iter().map(|k| (k.as_str(), Some(long.as_str()))).collect();
        a.edit([label(9, &set)]).expect("as many as allowed");
        let one_more = a.edit([label(9, &[("one-more", Some("x"))])]);
        assert!(matches!(one_more, Err(MapError::TooManyLabels { count: 65, .. })), "{one_more:?}");
        if round < 19 {
            let unset: Vec<_> = names.iter().map(|k| (k.as_str(), None)).collect();
            a.edit([label(9, &unset)]).expect("edits");
        }
    }
    a.edit([Edit::ChangeNode(store_id(9), NodeChange::Remove(removal()))]).expect("still fits");
    assert!(a.view().node(&store_id(9)).expect("there").removed);
}

#[test]
fn a_removal_keeps_the_labels_and_cannot_be_taken_back_by_an_admission() {
    let ((a, _), (b, _)) = (map(1), map(2));
    a.edit([Edit::AdmitNode(node(9, "n9")), label(9, &[("rack", Some("r7"))])]).expect("edits");
    a.edit([Edit::AdmitNode(node(9, "n9"))]).expect("the same node joins again");
    assert_eq!(labels(&a, 9).len(), 1, "its labels stay");
    carry(&a, &b);
    a.edit([Edit::ChangeNode(store_id(9), NodeChange::Remove(removal()))]).expect("edits");
    b.edit([label(9, &[("disk", Some("ssd"))])]).expect("edits");
    carry(&a, &b);
    let view = b.view();
    let node9 = view.node(&store_id(9)).expect("there");
    assert!(node9.removed && node9.removal == Some(removal()) && node9.labels.len() == 2);
    let again = b.edit([Edit::AdmitNode(node(9, "n9"))]);
    assert!(matches!(again, Err(MapError::Deleted { .. })), "{again:?}");
    let absent = b.edit([Edit::ChangeNode(store_id(8), NodeChange::Remove(removal()))]);
    assert!(matches!(absent, Err(MapError::Unknown { .. })), "{absent:?}");
}

#[test]
fn a_tokens_revocation_and_count_meet_without_conflict_and_its_grave_keeps_no_secret() {
    let ((a, _), (b, _)) = (map(1), map(2));
    let id = token(1).id;
    a.edit([Edit::PutToken(TokenSpec { uses: Some(3), uses_left: Some(3), ..token(1) })])
        .expect("edits");
    carry(&a, &b);
    a.edit([Edit::ChangeToken(id, TokenChange::UsesLeft { left: 2, at: NOON })]).expect("edits");
    b.edit([Edit::ChangeToken(id, TokenChange::Revoke { at: NOON })]).expect("edits");
    carry(&a, &b);
    carry(&b, &a);
    for map in [&a, &b] {
        let view = map.view();
        let token = view.token(&id).expect("there");
        assert!(token.revoked && token.uses_left == Some(2) && token.ended == Some(NOON));
    }
    let root = a.root();
    a.edit([Edit::ChangeToken(id, TokenChange::Revoke { at: NOON })]).expect("edits");
    assert_eq!(a.root(), root, "revoking twice changes nothing");
    // A secret that reads as text must not become a label.
    let spoken = TokenSpec { secret: *b"\x1fabcdefghijklmnopqrstuvwxyz12345", ..token(2) };
    a.edit([Edit::PutToken(spoken.clone())]).expect("edits");
    a.edit([Edit::DeleteToken(spoken.id), Edit::DeleteToken(id)]).expect("edits");
    carry(&a, &b);
    let view = b.view();
    assert!(view.token(&id).is_none() && view.token(&spoken.id).is_none());
    assert_eq!(view.all_deleted().count(), 2);
    assert!(view.all_deleted().all(|(_, grave)| grave.label.is_empty()));
}

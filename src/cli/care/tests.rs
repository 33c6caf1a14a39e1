//! The lists as people and programs see them.

use flocker_base::StoreId;

use super::*;
use crate::api::{
    Envelope, FieldConflict, FieldValue, NameConflict, PendingEdit, QuarantinedRecord,
    UnreadableRecord,
};

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

fn value(number: u32, text: &str) -> FieldValue {
    FieldValue {
        number,
        text: text.to_owned(),
        node: name("eu-1"),
        store: StoreId::from_bytes([1; 16]),
        at: WallTime::from_millis(1_700_000_000_000),
        stamp: 7,
    }
}

fn list() -> ConflictList {
    ConflictList {
        fields: vec![FieldConflict {
            record: "volume/pg".to_owned(),
            field: "lag-limit".to_owned(),
            values: vec![value(1, "60s"), value(2, "5s\u{1b}[2J")],
        }],
        names: vec![NameConflict { record: "volume/pg-02".to_owned(), wanted: name("pg") }],
        unreadable: vec![UnreadableRecord { record: "route/x".to_owned(), why: "new".to_owned() }],
        alarms: vec!["a store is in use twice".to_owned()],
    }
}

#[test]
fn conflicts_show_every_value_and_nothing_that_a_terminal_obeys() {
    let text = conflict_text(&list());
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "volume/pg  lag-limit");
    assert_eq!(lines[1], "  1  60s  by eu-1 at 2023-11-14T22:13:20Z  (in use)");
    assert!(lines[2].starts_with("  2  5s") && !text.contains('\u{1b}'), "{text:?}");
    assert_eq!(lines[3], "volume/pg-02  wants the name pg, which another had first");
    assert_eq!(lines[4], "route/x  can't be read: new");
    assert_eq!(conflict_text(&ConflictList::default()), "nothing is in conflict\n");
}

#[test]
fn the_documents_stand() {
    let json = serde_json::to_string(&Envelope::new(list())).expect("encodes");
    assert!(json.starts_with(r#"{"schema":"flocker.conflicts/1","fields":[{"record":"volume/pg""#));
    let asked = MapRequest::Admit { record: "volume/pg".to_owned() };
    let json = serde_json::to_string(&asked).expect("encodes");
    assert_eq!(json, r#"{"admit":{"record":"volume/pg"}}"#);
    assert_eq!(serde_json::to_string(&MapRequest::Pending).expect("encodes"), r#""pending""#);
    let more = r#"{"admit":{"record":"a","force":true}}"#;
    assert!(serde_json::from_str::<MapRequest>(more).is_err(), "half an order is refused");
}

#[test]
fn waiting_and_refused_edits_are_told_apart() {
    let edit = |number, master, refused: Option<&str>| PendingEdit {
        number,
        record: "volume/pg".to_owned(),
        change: "lag limit to 5s".to_owned(),
        master,
        made: WallTime::from_millis(0),
        refused: refused.map(str::to_owned),
    };
    let edits = vec![
        edit(1, Some(name("eu-2")), None),
        edit(2, None, None),
        edit(3, Some(name("eu-2")), Some("changed")),
    ];
    assert_eq!(
        pending_text(&PendingList { edits }),
        "1  volume/pg  lag limit to 5s  waits for eu-2\n\
         2  volume/pg  lag limit to 5s  waits for a master\n\
         3  volume/pg  lag limit to 5s  refused: changed\n"
    );
    assert_eq!(pending_text(&PendingList::default()), "no edit waits on this node\n");
}

#[test]
fn the_quarantine_says_who_brought_what_when() {
    let records = vec![QuarantinedRecord {
        record: "volume/0193".to_owned(),
        name: Some("pg".to_owned()),
        from: name("eu-2"),
        came: WallTime::from_millis(1_700_000_000_000),
        written: None,
    }];
    assert_eq!(
        quarantine_text(&QuarantineList { records }),
        "volume/0193  (pg)  written ?, brought by eu-2 at 2023-11-14T22:13:20Z\n"
    );
}

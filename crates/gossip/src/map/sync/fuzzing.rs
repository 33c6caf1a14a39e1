//! What maps say to each other over hostile bytes: pushes are merged into a real map, questions
//! are answered by one, and answers lead a descent. What is refused must change nothing.

use std::sync::LazyLock;

use flocker_base::StoreId;

use super::descent::Descent;
use super::message::{self, MAX_KEYS, MAX_PATHS, Push, Request, Response, WireSummary};
use super::work::{respond, sent};
use crate::control::Kind;
use crate::map::fuzzing::{content, empty, sample};
use crate::map::tree::{HashTree, Path, Summary, value_hash};
use crate::map::{Arrived, Map, RecordKey, encoding};

/// The records of a peer's push, merged into a map that has others.
pub(crate) fn push(input: &[u8]) {
    let Ok(push) = message::decode::<Push>(input) else { return };
    assert_eq!(message::decode(&message::encode(&push).expect("memory")).as_ref(), Ok(&push));
    let count = push.records.len();
    let Ok(opened) = message::open(&push.records) else { return };
    assert_eq!(opened.records.len() + opened.newer.len(), count, "a record got lost");
    if count > 0 {
        merge(opened.records);
    }
}

fn merge(records: Vec<(RecordKey, crate::map::record::Record)>) {
    let (map, from) = (empty(2), StoreId::from_bytes([9; 16]));
    let before = map.root();
    let arrived = |(key, record): (RecordKey, _)| Arrived { from, key, record };
    let again = records.clone();
    let merged = map.take_in(records.into_iter().map(arrived).collect(), 1).expect("memory");
    check(&map);
    if merged.changed.is_empty() {
        assert_eq!(map.root(), before, "what is refused changes something");
    }
    let after = map.root();
    let twice = map.take_in(again.into_iter().map(arrived).collect(), 1).expect("memory");
    assert!(twice.changed.is_empty(), "the same again changes {:?}", twice.changed);
    assert_eq!(map.root(), after);
}

/// The tree, the view and the disk of a map say the same.
fn check(map: &Map) {
    let content = content(map);
    for (key, bytes) in &content {
        assert!(encoding::decode(bytes).is_ok(), "{key} is stored and cannot be read");
    }
    let hashes = content.into_iter().map(|(key, bytes)| (key, value_hash(&bytes))).collect();
    let tree = HashTree::of(hashes);
    assert_eq!((tree.root(), tree.count()), (map.root(), map.view().records()));
}

/// A question, answered by a real map; and an answer, to a map that descends.
pub(crate) fn pull(input: &[u8]) {
    if let Ok(request) = message::decode_request(input) {
        question(request);
    }
    if let Ok(response) = message::decode::<Response>(input) {
        assert_eq!(
            message::decode(&message::encode(&response).expect("memory")).as_ref(),
            Ok(&response)
        );
        answer(response);
    }
}

fn question(request: Request) {
    let asked = request.clone();
    let response = respond(&SHARED, request).expect("memory");
    let bytes = message::encode(&response).expect("memory");
    assert!(bytes.len() <= Kind::MapPull.max_frame(), "an answer of {} bytes", bytes.len());
    match (asked, message::decode(&bytes).expect("our own answer")) {
        (Request::Summaries(paths), Response::Summaries(parts)) => {
            assert_eq!(paths.len(), parts.len());
        }
        (Request::Records(keys), Response::Records(records)) => {
            assert!(records.len() <= keys.len());
            assert_eq!(message::open(&records).expect("our own").records.len(), records.len());
        }
        (Request::Page(_), Response::Page { records, .. }) => {
            assert!(message::open(&records).is_ok(), "our own page");
        }
        (asked, other) => panic!("{other:?} to {asked:?}"),
    }
}

/// The peer gives this one answer to everything; the descent ends all the same.
fn answer(response: Response) {
    let theirs = match response {
        Response::Summaries(theirs) => theirs,
        Response::Records(records) | Response::Page { records, .. } => {
            if let Ok(opened) = message::open(&records) {
                assert_eq!(opened.records.len() + opened.newer.len(), records.len());
            }
            return;
        }
    };
    let tree = SHARED.tree();
    let Ok(theirs) = theirs.into_iter().map(Summary::try_from).collect::<Result<Vec<_>, _>>()
    else {
        return;
    };
    let mut descent = Descent::new();
    for _question in 0..8 {
        let Some(request) = descent.next() else { return };
        let bytes = message::encode(&request).expect("memory");
        assert!(bytes.len() <= Kind::MapPull.max_frame());
        assert_eq!(message::decode_request(&bytes).as_ref(), Ok(&request), "a peer refuses it");
        match request {
            Request::Summaries(paths) => {
                assert!(paths.len() <= MAX_PATHS);
                let answers = (0..paths.len()).filter_map(|n| theirs.get(n % theirs.len().max(1)));
                if descent.on_summaries(&tree, &paths, answers.cloned().collect()).is_err() {
                    return;
                }
            }
            Request::Records(keys) => {
                assert!(keys.len() <= MAX_KEYS);
                descent.on_records(&keys, &[]);
            }
            Request::Page(_) => panic!("no pages in a descent"),
        }
    }
}

/// A map that peers ask, and that nothing here changes.
static SHARED: LazyLock<Map> = LazyLock::new(|| sample(1));

/// A push of each record of a map, and of all.
pub(crate) fn pushes() -> Vec<Vec<u8>> {
    let content = content(&sample(1));
    let records: Vec<_> = content.into_iter().map(|(key, bytes)| sent(&key, bytes)).collect();
    let one = records.iter().map(|record| Push { hops: 1, records: vec![record.clone()] });
    let pushes = one.chain([Push { hops: 0, records: records.clone() }]);
    pushes.map(|push| message::encode(&push).expect("memory").into()).collect()
}

/// Questions of each kind, and their answers.
pub(crate) fn pulls() -> Vec<Vec<u8>> {
    let keys: Vec<_> = content(&SHARED).into_iter().map(|(key, _)| key).collect();
    let bytes = |key: &RecordKey| bytes::Bytes::copy_from_slice(key.as_bytes());
    let root = Path::default();
    let questions = [
        Request::Summaries(vec![root.clone(), root.child(3), root.child(3).child(15)]),
        Request::Records(keys.iter().take(2).map(bytes).collect()),
        Request::Page(None),
        Request::Page(keys.first().map(bytes)),
    ];
    let inner = Response::Summaries(vec![WireSummary::Inner(2000, Box::new([[7; 32]; 16]))]);
    let mut inputs = vec![message::encode(&inner).expect("memory").to_vec()];
    for question in questions {
        inputs.push(message::encode(&question).expect("memory").into());
        let response = respond(&SHARED, question).expect("memory");
        inputs.push(message::encode(&response).expect("memory").into());
    }
    inputs
}

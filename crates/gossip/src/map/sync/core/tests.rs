//! Tests of the core: the exact commands, and that nothing it holds grows without bound.

use std::sync::Arc;

use super::super::inbox;
use super::super::links::Member;
use super::super::message::WireSummary;
use super::super::waiting::{MAX_HOPS, MAX_WAITING};
use super::*;
use crate::map::key::Kind;
use crate::map::tree::{Path, value_hash};

fn store(number: u8) -> StoreId {
    StoreId::from_bytes([number; 16])
}

fn at(millis: u64) -> BootTime {
    BootTime::from_millis(millis)
}

fn key(number: u32) -> RecordKey {
    RecordKey::new(Kind::VOLUME, &number.to_be_bytes())
}

fn record(key: &RecordKey, size: usize) -> Sent {
    (Bytes::copy_from_slice(key.as_bytes()), Bytes::from(vec![7; size]))
}

fn region(text: &str) -> Name {
    Name::new(text).expect("a name")
}

/// The core of store 1 in "eu", among these.
struct Case {
    core: SyncCore,
    tree: HashTree,
}

impl Case {
    fn new(peers: &[(u8, &str)]) -> Self {
        let core = SyncCore::new(store(1), region("eu"), 3, BootTime::ZERO);
        let mut case = Self { core, tree: HashTree::default() };
        case.tree.set(key(1_000_000), [1; 32]);
        let member =
            |(number, of): &(u8, &str)| Member { store: store(*number), region: region(of) };
        let members: Arc<[Member]> = peers.iter().map(member).collect();
        assert_eq!(case.step(0, Event::Members(members)), []);
        case
    }

    /// Steps, and leaves the looks out.
    fn step(&mut self, millis: u64, event: Event) -> Vec<Command> {
        let mut commands = self.core.step(at(millis), &self.tree, event);
        commands.retain(|command| *command != Command::Look);
        commands
    }

    fn merged(&mut self, millis: u64, changed: Vec<(RecordKey, StoreId, u8)>) -> Vec<Command> {
        self.step(millis, Event::Merged(Outcome { changed, ..Outcome::default() }))
    }

    fn read(&mut self, millis: u64, keys: &[RecordKey], size: usize) -> Vec<Command> {
        let records = keys.iter().map(|key| record(key, size)).collect();
        self.step(millis, Event::Read { records, left: Vec::new() })
    }
}

fn pushed(commands: &[Command]) -> Vec<(Vec<StoreId>, Push)> {
    let push = |command: &Command| match command {
        Command::Push { to, bytes } => {
            let mut to = to.clone();
            to.sort_unstable();
            (to, message::decode::<Push>(bytes).expect("a push"))
        }
        other => panic!("{other:?}"),
    };
    commands.iter().map(push).collect()
}

fn a_push(number: u8) -> Bytes {
    Bytes::from(vec![number; 100])
}

#[test]
fn a_change_made_here_goes_at_once_to_the_own_and_to_other_regions() {
    let mut case = Case::new(&[(1, "eu"), (2, "eu"), (3, "eu"), (4, "us"), (5, "ap")]);
    let keys = vec![key(1)];
    assert_eq!(case.step(5, Event::Changed(keys.clone())), [Command::Read(keys.clone())]);
    let push = || Push { hops: 0, records: vec![record(&key(1), 9)] };
    let near = (vec![store(2), store(3)], push());
    let far = (vec![store(4), store(5)], push());
    assert_eq!(pushed(&case.read(6, &keys, 9)), [near, far]);
    // What changes within the pause goes together.
    assert_eq!(case.step(7, Event::Changed(vec![key(2)])), []);
    assert_eq!(case.step(8, Event::Changed(vec![key(3)])), []);
    assert_eq!(case.core.next_deadline(), at(16));
    assert_eq!(case.step(16, Event::Tick), [Command::Read(vec![key(2), key(3)])]);
}

#[test]
fn what_was_new_is_passed_on_and_crosses_regions_only_where_it_enters_one() {
    let mut case = Case::new(&[(2, "eu"), (3, "eu"), (4, "us"), (5, "us"), (6, "ap")]);
    for (from, now, near, far) in [(2, 0, vec![3], vec![]), (4, 1_000, vec![2, 3], vec![6])] {
        let push = case.step(now, Event::Pushed { from: store(from), bytes: a_push(1) });
        let content = Content::Push(a_push(1));
        assert_eq!(push, [Command::Merge(vec![Parcel { from: store(from), content }])]);
        let read = case.merged(now + 5, vec![(key(1), store(from), 3)]);
        assert_eq!(read, [Command::Read(vec![key(1)])]);
        let said = || Push { hops: 4, records: vec![record(&key(1), 9)] };
        let mut expected = vec![(near.into_iter().map(store).collect::<Vec<_>>(), said())];
        if !far.is_empty() {
            expected.push((far.into_iter().map(store).collect(), said()));
        }
        assert_eq!(pushed(&case.read(now + 6, &[key(1)], 9)), expected, "from {from}");
    }
}

#[test]
fn what_was_not_new_or_came_too_far_ends_here() {
    let mut case = Case::new(&[(2, "eu"), (3, "eu")]);
    case.step(0, Event::Pushed { from: store(2), bytes: a_push(1) });
    assert_eq!(case.merged(1, Vec::new()), []);
    case.step(2, Event::Pushed { from: store(2), bytes: a_push(1) });
    assert_eq!(case.merged(3, vec![(key(1), store(2), MAX_HOPS)]), []);
    case.step(4, Event::Pushed { from: store(2), bytes: a_push(1) });
    assert_eq!(case.merged(5, vec![(key(1), store(2), u8::MAX)]), []);
}

#[test]
fn changes_made_while_nobody_is_known_wait_for_the_first_peer() {
    let mut case = Case::new(&[]);
    assert_eq!(case.step(0, Event::Changed(vec![key(1)])), []);
    assert!(case.core.next_deadline() > at(0), "it does not spin");
    let members = [Member { store: store(2), region: region("eu") }].into();
    assert_eq!(case.step(9, Event::Members(members)), [Command::Read(vec![key(1)])]);
}

#[test]
fn a_burst_of_a_hundred_thousand_changes_is_bounded_in_memory_and_rate() {
    let mut case = Case::new(&[(2, "eu"), (3, "eu"), (4, "us"), (5, "ap")]);
    let (mut sent, mut pushes) = (0, 0);
    let mut now = 0;
    let mut reading: Option<Vec<RecordKey>> = None;
    let mut take = |commands: Vec<Command>| {
        let mut reads = None;
        for command in commands {
            match command {
                Command::Push { to, bytes } => {
                    sent += bytes.len() * to.len();
                    pushes += 1;
                }
                Command::Read(keys) => reads = Some(keys),
                other => panic!("{other:?}"),
            }
        }
        (reads, sent, pushes)
    };
    for change in 0..100_000_u32 {
        let (read, ..) = take(case.step(now, Event::Changed(vec![key(change)])));
        reading = reading.or(read);
        assert!(case.core.waiting.len() <= MAX_WAITING);
        if change % 100 == 99 {
            // Reading takes a while, and finds records of 1 KiB.
            now += 1;
            if let Some(keys) = reading.take() {
                reading = take(case.read(now, &keys, 1_024)).0;
            }
        }
    }
    let (_, sent, pushes) = take(Vec::new());
    assert!(pushes > 2, "they go out all the while");
    let allowed = usize::try_from(now * PUSH_RATE / 1_000).expect("small");
    let largest = MAX_READ * 1_100 * 4;
    assert!(sent <= allowed + largest, "{sent} bytes in {now} ms");
}

#[test]
fn a_flood_of_pushes_is_bounded_and_merged_one_change_at_a_time() {
    let mut case = Case::new(&[(2, "eu"), (3, "eu")]);
    let large = Bytes::from(vec![0; 400_000]);
    let mut merges = Vec::new();
    let mut dropped_from = std::collections::BTreeSet::new();
    let mut take = |commands: Vec<Command>| {
        for command in commands {
            match command {
                Command::Merge(parcels) => merges.push(parcels.len()),
                Command::Warn { from, .. } => drop(dropped_from.insert(from)),
                other => panic!("{other:?}"),
            }
        }
        merges.len()
    };
    for turn in 0..10_000_u64 {
        take(case.step(turn, Event::Pushed { from: store(2), bytes: large.clone() }));
        if turn % 100 == 0 {
            take(case.step(turn, Event::Pushed { from: store(3), bytes: a_push(3) }));
        }
        assert!(case.core.inbox.bytes() <= inbox::MAX_BYTES);
    }
    assert_eq!(take(Vec::new()), 1, "one merge is under way, however many pushes come");
    for now in 10_000..10_100 {
        take(case.merged(now, Vec::new()));
    }
    assert!(merges.iter().all(|parcels| *parcels <= 101), "{merges:?}");
    assert!(case.core.inbox.is_empty());
    assert_eq!(dropped_from, [store(2)].into(), "the flood lost its own, the other nothing");
}

/// The one question in these commands.
fn asked(commands: Vec<Command>) -> (Ask, StoreId, Request) {
    let mut commands = commands.into_iter();
    let Some(Command::Ask { ask, peer, bytes, .. }) = commands.next() else {
        panic!("no question")
    };
    assert_eq!(commands.next(), None);
    (ask, peer, message::decode_request(&bytes).expect("a question"))
}

fn answer(ask: Ask, response: &Response) -> Event {
    Event::Answered(ask, Ok(message::encode(response).expect("encodes")))
}

fn leaf(entries: &[Sent]) -> Response {
    let hashed = |(key, bytes): &Sent| (key.clone(), value_hash(bytes));
    Response::Summaries(vec![WireSummary::Leaf(entries.iter().map(hashed).collect())])
}

#[test]
fn what_differs_for_a_second_is_pulled_merged_and_passed_on() {
    let mut case = Case::new(&[(2, "eu"), (3, "eu"), (4, "us")]);
    let news = record(&key(5), 9);
    let mut theirs = HashTree::default();
    theirs.set(key(1_000_000), [1; 32]);
    theirs.set(key(5), value_hash(&news.1));
    let roots = vec![(store(2), theirs.root())];
    assert_eq!(case.step(0, Event::Roots(roots.clone())), []);
    assert_eq!(case.step(500, Event::Roots(roots.clone())), []);
    let (ask, peer, request) = asked(case.step(1_000, Event::Roots(roots)));
    assert_eq!((peer, request), (store(2), Request::Summaries(vec![Path::default()])));
    let (ask, peer, request) =
        asked(case.step(1_010, answer(ask, &leaf(std::slice::from_ref(&news)))));
    assert_eq!((peer, request), (store(2), Request::Records(vec![news.0.clone()])));
    let merge = case.step(1_020, answer(ask, &Response::Records(vec![news.clone()])));
    let content = Content::Pulled(vec![news]);
    assert_eq!(merge, [Command::Merge(vec![Parcel { from: store(2), content }])]);
    case.tree = theirs;
    let read = case.merged(1_030, vec![(key(5), store(2), 0)]);
    assert_eq!(read, [Command::Read(vec![key(5)])]);
    let push = Push { hops: 1, records: vec![record(&key(5), 9)] };
    assert_eq!(pushed(&case.read(1_031, &[key(5)], 9)), [(vec![store(3)], push)]);
}

#[test]
fn many_pulled_records_are_not_passed_on() {
    let mut case = Case::new(&[(2, "eu"), (3, "eu")]);
    let roots = vec![(store(2), [9; 32])];
    case.step(0, Event::Roots(roots.clone()));
    let (ask, ..) = asked(case.step(1_000, Event::Roots(roots)));
    let (ask, ..) = asked(case.step(1_001, answer(ask, &leaf(&[record(&key(5), 9)]))));
    case.step(1_002, answer(ask, &Response::Records(vec![record(&key(5), 9)])));
    let many = (0..65).map(|n| (key(n), store(2), 0)).collect();
    let next = case.merged(1_003, many);
    assert!(!next.iter().any(|command| matches!(command, Command::Read(_))), "{next:?}");
}

#[test]
fn a_question_of_a_pull_takes_one_answer() {
    let mut case = Case::new(&[(2, "eu")]);
    let roots = vec![(store(2), [9; 32])];
    case.step(0, Event::Roots(roots.clone()));
    let (ask, ..) = asked(case.step(1_000, Event::Roots(roots)));
    let (ask, ..) = asked(case.step(1_001, answer(ask, &leaf(&[record(&key(5), 9)]))));
    // A merge of pushes is under way: what was pulled waits, and then goes before other pushes.
    case.step(1_002, Event::Pushed { from: store(2), bytes: a_push(1) });
    let records = || answer(ask, &Response::Records(vec![record(&key(5), 9)]));
    assert_eq!(case.step(1_003, records()), []);
    let failure = || Event::Answered(ask, Err("late".to_owned()));
    for second in [records(), failure(), answer(ask, &Response::Records(Vec::new()))] {
        assert_eq!(case.step(1_004, second), [], "while it waits");
    }
    assert!(matches!(case.merged(1_005, Vec::new())[..], [Command::Merge(_)]));
    for second in [records(), failure()] {
        assert_eq!(case.step(1_006, second), [], "while it is merged");
    }
    let root = asked(case.merged(1_007, vec![(key(6), store(2), MAX_HOPS)])).2;
    assert_eq!(root, Request::Summaries(vec![Path::default()]), "its end begins another pull");
}

#[test]
fn two_pulls_at_once_at_most_and_never_two_of_one_peer() {
    let mut case = Case::new(&[(2, "eu"), (3, "eu"), (4, "eu")]);
    let roots: Vec<_> = (2..5).map(|n| (store(n), [n; 32])).collect();
    case.step(0, Event::Roots(roots.clone()));
    let (first, one, _) = asked(case.step(1_000, Event::Roots(roots.clone())));
    let (_, other, _) = asked(case.step(1_500, Event::Roots(roots.clone())));
    assert_ne!(one, other);
    assert_eq!(case.step(2_000, Event::Roots(roots.clone())), []);
    // A peer that fails is left alone for a while; the third has its turn.
    assert_eq!(case.step(2_001, Event::Answered(first, Err("gone".to_owned()))), []);
    let (_, third, _) = asked(case.step(2_500, Event::Roots(roots)));
    assert!(third != one && third != other);
    assert_eq!(case.step(2_501, Event::Answered(first, Err("late".to_owned()))), []);
}

#[test]
fn an_answer_that_makes_no_sense_ends_the_pull_with_a_warning() {
    let nonsense = Bytes::from_static(b"\x01nonsense");
    let other = message::encode(&Response::Records(Vec::new())).expect("encodes");
    for bytes in [nonsense, other, Bytes::new()] {
        let mut case = Case::new(&[(2, "eu")]);
        let roots = vec![(store(2), [9; 32])];
        case.step(0, Event::Roots(roots.clone()));
        let (ask, ..) = asked(case.step(1_000, Event::Roots(roots.clone())));
        let ended = case.step(1_001, Event::Answered(ask, Ok(bytes)));
        assert!(matches!(ended[..], [Command::Warn { .. }]), "{ended:?}");
        assert_eq!(case.step(1_500, Event::Roots(roots)), [], "not again at once");
    }
}

#[test]
fn pulls_of_peers_are_answered_within_bounds_a_peer_and_in_all() {
    let mut case = Case::new(&[(2, "eu")]);
    let bytes = message::encode(&Request::Summaries(vec![Path::default()])).expect("encodes");
    let mut number = 0;
    let mut ask = |case: &mut Case, from: u8| {
        number += 1;
        let event = Event::Asked { from: store(from), reply: Reply(number), bytes: bytes.clone() };
        match case.step(number, event).as_slice() {
            [Command::Answer { to, reply: Reply(n), .. }] => *to == store(from) && *n == number,
            [Command::Refuse { reply: Reply(n), .. }] => *n != number,
            other => panic!("{other:?}"),
        }
    };
    assert!(ask(&mut case, 2) && ask(&mut case, 2));
    assert!(!ask(&mut case, 2), "two of one peer");
    for peer in 3..9 {
        assert!(ask(&mut case, peer), "{peer}");
    }
    assert!(!ask(&mut case, 9), "eight in all");
    assert_eq!(case.step(100, Event::Replied { to: store(2) }), []);
    assert!(ask(&mut case, 9));
    let hostile = Event::Asked { from: store(66), reply: Reply(99), bytes: Bytes::new() };
    let refused = case.step(101, hostile);
    assert!(matches!(
        refused[..],
        [Command::Warn { .. }, Command::Refuse { reply: Reply(99), .. }]
    ));
}

#[test]
fn looks_and_redraws_come_by_themselves() {
    let mut core = SyncCore::new(store(1), region("eu"), 3, BootTime::ZERO);
    let tree = HashTree::default();
    let mut now = BootTime::ZERO;
    let mut looks = 0;
    while now < at(2_000_000) {
        assert!(core.next_deadline() > now || now == BootTime::ZERO);
        now = core.next_deadline().max(now);
        looks += core.step(now, &tree, Event::Tick).len();
    }
    assert!((3_950..=4_050).contains(&looks), "{looks}");
}

//! The guard: what honest nodes send passes, bombs and lies do not, and memory stays bounded.

use proptest::prelude::*;

use super::*;

const POOL: &str = "pool";
const GENERATION: u64 = 7 << 16;

fn store(byte: u8) -> StoreId {
    StoreId::from_bytes([byte; 16])
}

fn guard() -> Guard {
    let mut guard = Guard::new(store(1), POOL.to_owned());
    guard.begin(GENERATION);
    guard
}

/// Builds messages byte by byte, so that they can be wrong.
#[derive(Clone, Default)]
pub(in crate::membership) struct Builder(pub(in crate::membership) Vec<u8>);

impl Builder {
    pub(in crate::membership) fn message(kind: u8) -> Self {
        Self([&MAGIC[..], &[VERSION, kind]].concat())
    }

    fn u16(mut self, n: usize) -> Self {
        self.0.extend(u16::try_from(n).expect("small").to_le_bytes());
        self
    }

    fn u64(mut self, n: u64) -> Self {
        self.0.extend(n.to_le_bytes());
        self
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    pub(in crate::membership) fn text(self, text: &str) -> Self {
        self.u16(text.len()).raw(text.as_bytes())
    }

    fn id(self, store: StoreId, generation: u64) -> Self {
        self.text("n").u64(generation).raw(&[6]).raw(store.as_bytes()).u16(4523)
    }

    pub(in crate::membership) fn digest(self, ids: impl ExactSizeIterator<Item = StateId>) -> Self {
        let builder = self.u16(ids.len());
        ids.fold(builder, |b, (s, g)| b.id(s, g).u64(5).u64(0).u64(3))
    }

    fn node(self, store: StoreId, generation: u64) -> Self {
        self.raw(&[0]).id(store, generation).u64(0).u64(0)
    }

    fn value(self, key: &str, value: &str, version: u64) -> Self {
        self.raw(&[1]).text(key).text(value).u64(version).raw(&[0])
    }

    fn max_version(self, version: u64) -> Self {
        self.raw(&[2]).u64(version)
    }

    /// These operations as stored blocks.
    fn blocks(self, operations: &Self) -> Self {
        let stored = |b: Self, chunk: &[u8]| b.raw(&[2]).u16(chunk.len()).raw(chunk);
        operations.0.chunks(BLOCK_BYTES).fold(self, stored).raw(&[0])
    }
}

fn syn(ids: &[StateId]) -> Vec<u8> {
    Builder::message(0).digest(ids.iter().copied()).text(POOL).0
}

fn ack(operations: &Builder) -> Vec<u8> {
    Builder::message(2).blocks(operations).0
}

pub(in crate::membership) fn many(count: u64) -> Vec<StateId> {
    (0..count).map(|n| (store(2), n)).collect()
}

#[test]
fn what_honest_nodes_send_passes() {
    let mut guard = guard();
    assert_eq!(guard.admit(&syn(&[(store(1), GENERATION), (store(2), 1)])), Ok(()));
    let told = Builder::default()
        .node(store(2), 1)
        .value("f", "facts", 1)
        .value("load", "3", 2)
        .node(store(3), 1)
        .max_version(9)
        .node(store(1), GENERATION - 1);
    assert_eq!(guard.admit(&ack(&told)), Ok(()), "this node's earlier run among them");
    let syn_ack = Builder::message(1).digest([(store(2), 1)].into_iter()).blocks(&told).0;
    assert_eq!(guard.admit(&syn_ack), Ok(()));
    assert_eq!(guard.admit(&Builder::message(3).0), Ok(()));
}

#[test]
fn a_message_of_another_form_or_cluster_is_refused() {
    let mut guard = guard();
    assert_eq!(guard.admit(&[]), Err(Reject::Length));
    assert_eq!(guard.admit(b"GET / HTTP/1.1"), Err(Reject::Form));
    assert_eq!(guard.admit(&Builder::message(4).0), Err(Reject::Form));
    assert_eq!(guard.admit(&Builder::message(3).raw(&[0]).0), Err(Reject::Length));
    let other = Builder::message(0).digest([].into_iter()).text("other").0;
    assert_eq!(guard.admit(&other), Err(Reject::Cluster));
    let good = syn(&[(store(2), 1)]);
    for cut in 0..good.len() {
        assert!(guard.admit(&good[..cut]).is_err(), "cut at {cut}");
    }
}

#[test]
fn a_name_that_is_no_store_of_ours_is_refused() {
    let entry = |name: &str, port| {
        Builder::message(0)
            .u16(1)
            .text(name)
            .u64(1)
            .raw(&[6])
            .raw(store(2).as_bytes())
            .u16(port)
            .u64(1)
            .u64(0)
            .u64(1)
            .text(POOL)
            .0
    };
    assert_eq!(guard().admit(&entry("n", 4523)), Ok(()));
    for (name, port) in [("m", 4523), ("", 4523), ("nn", 4523), ("n", 1)] {
        assert_eq!(guard().admit(&entry(name, port)), Err(Reject::Name), "{name} {port}");
    }
    let v4 = Builder::message(0).u16(1).text("n").u64(1).raw(&[4, 127, 0, 0, 1]).0;
    assert_eq!(guard().admit(&v4), Err(Reject::Name));
}

#[test]
fn a_peer_cannot_write_this_nodes_own_state() {
    let told = Builder::default().node(store(1), GENERATION).value("f", "lie", u64::MAX);
    assert_eq!(guard().admit(&ack(&told)), Err(Reject::Own));
}

#[test]
fn what_would_make_chitchat_panic_is_refused() {
    let own = |operations: Builder| guard().admit(&ack(&operations));
    let node = || Builder::default().node(store(2), 1);
    assert_eq!(own(node().value("a", "", 5).max_version(1)), Err(Reject::Versions));
    assert_eq!(own(node().max_version(9).value("a", "", 1)), Err(Reject::Versions));
    assert_eq!(own(node().value("a", "", 5).value("b", "", 5)), Err(Reject::Versions));
    assert_eq!(own(node().value("a", "", 0)), Err(Reject::Versions));
    assert_eq!(own(Builder::default().value("a", "", 1)), Err(Reject::Versions));
    assert_eq!(own(node().node(store(2), 1)), Err(Reject::States), "twice the same");
    let collected = Builder::default().raw(&[0]).id(store(2), 1).u64(8).u64(0);
    assert_eq!(own(collected), Err(Reject::Versions), "no key is ever collected");
    let deleted = node().raw(&[1]).text("a").text("").u64(1).raw(&[1]);
    assert_eq!(own(deleted), Err(Reject::Versions), "nor deleted");
}

#[test]
fn long_or_odd_keys_and_values_are_refused() {
    let one = |key: &str, value: &str| {
        guard().admit(&ack(&Builder::default().node(store(2), 1).value(key, value, 1)))
    };
    assert_eq!(one("a", &"x".repeat(MAX_VALUE_BYTES)), Ok(()));
    assert_eq!(one("a", &"x".repeat(MAX_VALUE_BYTES + 1)), Err(Reject::Value));
    for key in ["", "A", "a b", "é", &"k".repeat(MAX_KEY_BYTES + 1)] {
        assert_eq!(one(key, ""), Err(Reject::Value), "{key}");
    }
}

#[test]
fn decompression_bombs_are_refused_before_they_unfold() {
    let packed = |len: usize| zstd::bulk::compress(&vec![0; len], 3).expect("compresses");
    let bomb = |len, times| {
        let block = packed(len);
        let message = Builder::message(2);
        let all = (0..times).fold(message, |b, _| b.raw(&[1]).u16(block.len()).raw(&block));
        assert!(all.0.len() < 65_536, "it would fit a frame");
        guard().admit(&all.raw(&[0]).0)
    };
    assert_eq!(bomb(BLOCK_BYTES + 1, 1), Err(Reject::Blocks), "a block too large");
    assert_eq!(bomb(65_535, 1), Err(Reject::Blocks), "the largest that chitchat would take");
    assert_eq!(bomb(BLOCK_BYTES, MAX_BLOCKS + 1), Err(Reject::Blocks), "too many");
    assert_ne!(bomb(BLOCK_BYTES, 1), Ok(()), "zeros are no operations");
    let garbage = Builder::message(2).raw(&[1]).u16(3).raw(&[1, 2, 3]).raw(&[0]).0;
    assert_eq!(guard().admit(&garbage), Err(Reject::Blocks));
    let unterminated = Builder::message(2).raw(&[2]).u16(0).0;
    assert_eq!(guard().admit(&unterminated), Err(Reject::Length));
}

#[test]
fn the_number_of_states_is_bounded_over_all_messages() {
    let mut guard = guard();
    // One is this node's own.
    let most = u64::try_from(MAX_STATES - 1).expect("small");
    assert_eq!(guard.admit(&syn(&many(most + 1))), Err(Reject::States));
    assert_eq!(guard.admit(&syn(&many(most))), Ok(()));
    assert_eq!(guard.admit(&syn(&many(most))), Ok(()), "none of them is new");
    assert_eq!(guard.admit(&syn(&[(store(3), 1)])), Err(Reject::States));
    guard.keep(&many(most - 1));
    assert_eq!(guard.admit(&syn(&[(store(3), 1)])), Ok(()), "once there is room");
}

#[test]
fn what_is_remembered_of_one_state_is_bounded_over_all_messages() {
    let mut one = guard();
    let tell = |key: &str, len, version| {
        ack(&Builder::default().node(store(2), 1).value(key, &"x".repeat(len), version))
    };
    one.admit(&syn(&[(store(2), 1)])).expect("known");
    for n in 0..3 {
        assert_eq!(one.admit(&tell(&format!("k{n}"), 1000, n + 1)), Ok(()));
    }
    for version in 10..1000 {
        assert_eq!(one.admit(&tell("k0", 1000, version)), Ok(()), "the same key, again");
    }
    assert_eq!(one.admit(&tell("k3", 1024, 2000)), Ok(()));
    assert_eq!(one.admit(&tell("k4", 1024, 2001)), Err(Reject::Held));
    let mut many_keys = guard();
    many_keys.admit(&syn(&[(store(2), 1)])).expect("known");
    for n in 0..MAX_HELD_KEYS {
        assert_eq!(many_keys.admit(&tell(&format!("k{n}"), 1, 1)), Ok(()));
    }
    assert_eq!(many_keys.admit(&tell("onemore", 1, 1)), Err(Reject::Held));
}

#[test]
fn values_of_states_that_no_digest_named_are_not_counted_since_chitchat_drops_them() {
    let mut guard = guard();
    for n in 0..2000 {
        let told = Builder::default().node(store(2), n).value("a", "x", 1);
        assert_eq!(guard.admit(&ack(&told)), Ok(()));
    }
    assert!(guard.ledger.is_empty());
}

proptest! {
    #[test]
    fn hostile_bytes_never_panic(
        kind in 0_u8..5,
        bytes in proptest::collection::vec(any::<u8>(), 0..2000),
    ) {
        let mut guard = guard();
        let _ = guard.admit(&bytes);
        let _ = guard.admit(&Builder::message(kind).raw(&bytes).0);
        let _ = guard.admit(&ack(&Builder::default().raw(&bytes)));
        prop_assert!(guard.ledger.len() <= MAX_STATES);
    }

    /// What passes the guard is decoded by chitchat, whole: the two read one form.
    #[test]
    fn what_passes_is_what_chitchat_reads(
        operations in proptest::collection::vec((0_u8..3, 2_u8..5, 1_u64..9, "[a-z]{0,17}"), 0..12),
        digest in proptest::collection::vec((2_u8..6, 0_u64..9), 0..6),
        flips in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..2),
    ) {
        use chitchat::Deserializable;
        let told = operations.iter().fold(Builder::default(), |b, (op, s, n, text)| match op {
            0 => b.node(store(*s), *n),
            1 => b.value(text, text, *n),
            _ => b.max_version(*n),
        });
        let ids = digest.iter().map(|(s, g)| (store(*s), *g));
        let mut message = Builder::message(1).digest(ids.collect::<Vec<_>>().into_iter()).blocks(&told).0;
        for (position, value) in flips {
            let position = position % message.len();
            message[position] = value;
        }
        if guard().admit(&message).is_ok() {
            let mut rest = &message[..];
            let decoded = chitchat::ChitchatMessage::deserialize(&mut rest);
            prop_assert!(decoded.is_ok(), "{:?}", decoded);
            prop_assert!(rest.is_empty());
        }
    }
}

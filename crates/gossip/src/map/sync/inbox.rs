//! The pushes that wait to be merged: bounded in bytes and number, and fair. Pure. A peer that
//! sends more than can be merged must lose its own pushes, never those of others.
//!
//! When there is no room, the newest push of the peer with most waiting is dropped (longest queue
//! drop: McKenney, "Stochastic Fairness Queueing", 1990); peers are served in turn. What is dropped
//! is found again by the hash tree.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use flocker_base::StoreId;

/// Most bytes that wait.
pub(super) const MAX_BYTES: usize = 8 << 20;
/// What a push costs beside its bytes, so that small ones are bounded in number.
const OVERHEAD: usize = 256;
/// Most bytes that one peer's pushes have while they wait.
const MAX_OF_PEER: usize = MAX_BYTES / 4;

/// The pushes, by sender.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    peers: BTreeMap<StoreId, Waiting>,
    /// Whose turn it is.
    turns: VecDeque<StoreId>,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Waiting {
    pushes: VecDeque<Bytes>,
    bytes: usize,
}

impl Inbox {
    /// Takes a push; gives the peer of which one was dropped for it, if one was.
    pub(super) fn add(&mut self, from: StoreId, push: Bytes) -> Option<StoreId> {
        let size = push.len() + OVERHEAD;
        let waiting = self.peers.entry(from).or_default();
        if waiting.bytes + size > MAX_OF_PEER {
            return Some(from);
        }
        if waiting.pushes.is_empty() {
            self.turns.push_back(from);
        }
        waiting.bytes += size;
        waiting.pushes.push_back(push);
        self.bytes += size;
        let mut dropped = None;
        while self.bytes > MAX_BYTES {
            let longest = self.peers.iter().max_by_key(|(_, waiting)| waiting.bytes);
            let Some(longest) = longest.map(|(peer, _)| *peer) else { break };
            self.drop_newest_of(longest);
            dropped = Some(longest);
        }
        dropped
    }

    fn drop_newest_of(&mut self, peer: StoreId) {
        let Some(waiting) = self.peers.get_mut(&peer) else { return };
        if let Some(push) = waiting.pushes.pop_back() {
            let size = push.len() + OVERHEAD;
            waiting.bytes -= size;
            self.bytes -= size;
        }
        if waiting.pushes.is_empty() {
            self.peers.remove(&peer);
            self.turns.retain(|turn| *turn != peer);
        }
    }

    /// Takes pushes of so many bytes, at least one if there is one: one of each peer in turn.
    pub(super) fn take(&mut self, most: usize) -> Vec<(StoreId, Bytes)> {
        let (mut taken, mut size) = (Vec::new(), 0);
        while size < most {
            let Some(peer) = self.turns.pop_front() else { break };
            let Some(waiting) = self.peers.get_mut(&peer) else { continue };
            if let Some(push) = waiting.pushes.pop_front() {
                waiting.bytes -= push.len() + OVERHEAD;
                self.bytes -= push.len() + OVERHEAD;
                size += push.len() + OVERHEAD;
                taken.push((peer, push));
            }
            if waiting.pushes.is_empty() {
                self.peers.remove(&peer);
            } else {
                self.turns.push_back(peer);
            }
        }
        taken
    }

    pub(super) fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// Bytes that wait, what each push costs beside them included.
    #[cfg(test)]
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(number: u8) -> StoreId {
        StoreId::from_bytes([number; 16])
    }

    #[test]
    fn a_peer_that_floods_loses_its_own_pushes_and_no_one_else_s() {
        let mut inbox = Inbox::default();
        let large = Bytes::from(vec![0; 512 * 1024]);
        for _ in 0..10_000 {
            // Five peers that flood fill the whole inbox.
            for flooder in 1..=5 {
                inbox.add(store(flooder), large.clone());
                assert!(inbox.bytes() <= MAX_BYTES);
            }
        }
        let small = Bytes::from_static(b"small");
        for _ in 0..20 {
            let dropped = inbox.add(store(9), small.clone());
            assert_ne!(dropped, Some(store(9)), "the flood gives way");
        }
        // Peers are served in turn: the quiet one is not behind the flood.
        let first = inbox.take(4 << 20);
        assert!(first.iter().any(|(from, _)| *from == store(9)));
        let mut of_quiet = first.iter().filter(|(from, _)| *from == store(9)).count();
        while !inbox.is_empty() {
            of_quiet += inbox.take(1).iter().filter(|(from, _)| *from == store(9)).count();
        }
        assert_eq!((of_quiet, inbox.bytes()), (20, 0));
    }

    #[test]
    fn small_pushes_are_bounded_in_number() {
        let mut inbox = Inbox::default();
        for number in 0..1_000_000_u32 {
            inbox.add(store(u8::try_from(number % 40).expect("small")), Bytes::new());
        }
        let count = inbox.take(usize::MAX).len();
        assert!(count <= MAX_BYTES / OVERHEAD, "{count}");
        assert!(inbox.is_empty());
    }

    #[test]
    fn what_fits_is_taken_whole_and_in_order_of_its_peer() {
        let mut inbox = Inbox::default();
        for number in 0..5_u8 {
            assert_eq!(inbox.add(store(1), Bytes::from(vec![number])), None);
        }
        assert_eq!(inbox.add(store(2), Bytes::from_static(&[7])), None);
        let order: Vec<u8> = inbox.take(usize::MAX).iter().map(|(_, push)| push[0]).collect();
        assert_eq!(order, [0, 7, 1, 2, 3, 4]);
        assert!(inbox.take(1).is_empty());
    }
}

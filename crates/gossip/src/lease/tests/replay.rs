//! Real traffic between voters, recorded and sent again in any order, also to a voter that has
//! restarted and on behalf of a peer that has: nothing that is durable changes, and the master
//! keeps what it holds.

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use super::super::event::Request;
use super::super::fuzzing::{Bench, Trio, VOLUME, store};
use super::super::message;
use super::*;

/// Elections of node 2 and, after its release, of node 3. What node 1 heard of both.
fn two_masters() -> (Bench, Vec<(StoreId, Packet)>) {
    let mut trio = Trio::new();
    trio.elect();
    let successor = Some(store(3));
    trio.tell(2, Event::Release { volume: VOLUME, successor, request: Request(1) });
    trio.run(10);
    let reason = "it was released to it".to_owned();
    trio.tell(3, Event::Campaign { volume: VOLUME, rank: 0, reason });
    trio.run(40);
    let record = trio.nodes[0].core.record(VOLUME).expect("it voted");
    assert_eq!((record.grantee, record.confirmed), (Some(store(3)), true), "{record:?}");
    assert!(trio.nodes[2].core.held(VOLUME).is_some(), "node 3 holds it");
    let [one, ..] = trio.nodes;
    let read = |bytes: &Vec<u8>| {
        (store(2 + bytes[0]), message::decode(&bytes[1..]).expect("what was sent"))
    };
    (one, trio.heard.iter().map(read).collect())
}

/// The packets as they came, from the last to the first, and in three other orders.
fn orders(heard: &[(StoreId, Packet)]) -> Vec<Vec<(StoreId, Packet)>> {
    let mut orders = vec![heard.to_vec(), heard.iter().rev().cloned().collect()];
    for seed in 0..3 {
        let mut shuffled = heard.to_vec();
        shuffled.shuffle(&mut StdRng::seed_from_u64(seed));
        orders.push(shuffled);
    }
    orders
}

fn replay(node: &mut Bench, packets: Vec<(StoreId, Packet)>) {
    for (from, packet) in packets {
        node.step(Event::Packet { from, packet });
    }
}

#[test]
fn a_voter_that_hears_everything_again_keeps_its_record() {
    let (one, heard) = two_masters();
    assert!(heard.len() > 20, "{} packets are no traffic", heard.len());
    for packets in orders(&heard) {
        let mut node = one.clone();
        replay(&mut node, packets);
        assert_eq!(node.disk, one.disk, "a replay changes the disk");
        assert_eq!(node.core.view(VOLUME), one.core.view(VOLUME));
    }
}

#[test]
fn a_voter_that_has_restarted_since_keeps_its_record_too() {
    let (one, heard) = two_masters();
    for packets in orders(&heard) {
        let mut node = Bench::started(1, 2, one.disk.clone(), one.now);
        replay(&mut node, packets);
        assert_eq!(node.disk.voters, one.disk.voters, "a replay changes the disk");
        assert_eq!(node.disk.supports, one.disk.supports);
        let record = node.core.record(VOLUME).expect("it is on the disk");
        assert_eq!((record.grantee, record.confirmed), (Some(store(3)), true));
    }
}

/// Once a peer was heard in its second start, nothing of its first counts.
#[test]
fn what_a_peer_said_before_its_restart_is_refused_after_it() {
    let (mut one, heard) = two_masters();
    let mut three = Bench::started(3, 2, Durable::default(), one.now);
    let start = Start { incarnation: Incarnation(2), nonce: 3 };
    let question = three.step(Event::Campaign { volume: VOLUME, rank: 0, reason: String::new() });
    let messages = question.into_iter().flat_map(|(_, messages)| messages).collect();
    let packet = Packet { start, messages };
    one.step(Event::Packet { from: store(3), packet });
    let (before, promised) = (one.disk.clone(), one.core.peers[&store(3)].promised_until);
    let old: Vec<_> = heard.into_iter().filter(|(from, _)| *from == store(3)).collect();
    assert!(!old.is_empty());
    for packets in orders(&old) {
        let mut node = one.clone();
        for (from, packet) in packets {
            let answers = node.step(Event::Packet { from, packet });
            let refused = |message: &Message| matches!(message, Message::StaleStart { .. });
            assert!(answers.iter().all(|(_, said)| said.iter().all(refused)), "{answers:?}");
        }
        assert_eq!(node.disk, before);
        assert_eq!(node.core.peers[&store(3)].promised_until, promised, "an old start is promised");
    }
}

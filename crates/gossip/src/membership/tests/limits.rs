//! Membership at its limits: a full pool, a full state, a node that starts over and over.

use super::*;
use crate::control::Handler;
use crate::membership::guard::Guard;
use crate::membership::guard::tests::{Builder, many};

/// Keeps what a node sends.
struct Catcher(Mutex<Vec<Bytes>>);

#[async_trait::async_trait]
impl Handler for Catcher {
    async fn on_message(&self, _from: StoreId, payload: Bytes) {
        self.0.lock().expect("lock").push(payload);
    }

    async fn on_call(&self, _from: StoreId, _payload: Bytes) -> Result<Bytes, String> {
        Err("no calls".to_owned())
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_pool_still_fits_its_messages_and_goes_on() {
    let mut mesh = Mesh::new();
    let node = mesh.start(1, 1, &[], Mesh::book());
    fill(&node.membership);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let catcher = Arc::new(Catcher(Mutex::default()));
    mesh.net.handle(store(2), Kind::Membership, Arc::<Catcher>::clone(&catcher));
    let wire = mesh.net.node(store(2));
    let inlet = &node.membership.inner.region_inlet;
    let states = many(u64::try_from(MAX_STATES - 1).expect("small"));
    let syn = Builder::message(0).digest(states.into_iter()).text(inlet.pool()).0;
    assert!(syn.len() < Kind::Membership.max_frame(), "{}", syn.len());
    wire.send(store(1), Kind::Membership, syn.into());
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!((inlet.refused(), inlet.states()), (0, MAX_STATES - 1));
    let sent = catcher.0.lock().expect("lock").clone();
    assert!(sent.len() >= 2, "an answer, and rounds of its own: {}", sent.len());
    let mut guard = Guard::new(store(2), inlet.pool().to_owned());
    for message in &sent {
        assert!(message.len() <= 65_507, "{}", message.len());
        assert_eq!(guard.admit(message), Ok(()), "{}", message.len());
    }
    let full = sent.iter().filter(|m| m.len() > 54 * MAX_STATES).count();
    assert!(full >= 2, "with the whole digest in them");
    // One state more is refused, and the gossip goes on.
    let one = Builder::message(0).digest([(store(3), 1)].into_iter()).text(inlet.pool()).0;
    wire.send(store(1), Kind::Membership, one.into());
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!((inlet.refused(), inlet.states()), (1, MAX_STATES - 1));
    assert!(mesh.tasks.try_join_next().is_none(), "membership runs");
}

/// Announces as much as may be announced, in as many keys.
fn fill(membership: &Membership) -> BTreeMap<String, String> {
    membership.set_map_root([9; 32]).expect("set");
    membership.set_load(Load { cpu: 10, memory: 20, disk: 30 }).expect("set");
    let mut values = BTreeMap::new();
    for n in 0..MAX_KEYS - 3 {
        let (key, mut value) = (format!("key_{n}"), "v".repeat(60));
        if n == 0 {
            value = "v".repeat(300);
        }
        membership.set(&key, value.clone()).expect("set");
        values.insert(key, value);
    }
    // The last byte that fits.
    for len in (60..MAX_VALUE_BYTES).rev() {
        if membership.set("key_1", "w".repeat(len)).is_ok() {
            values.insert("key_1".to_owned(), "w".repeat(len));
            break;
        }
    }
    assert!(membership.set("key_2", "v".repeat(61)).is_err(), "it is full");
    assert!(membership.set("one_more", "").is_err(), "in keys as well");
    values
}

#[tokio::test(start_paused = true)]
async fn a_full_state_arrives_whole_at_every_peer_and_changes_of_it_do() {
    let mut mesh = Mesh::new();
    let nodes = mesh.start_all(5);
    mesh.settled(&nodes).await;
    let mut values = fill(&nodes[4].membership);
    for round in 0..3 {
        let changed = format!("{round}").repeat(60);
        nodes[4].membership.set("key_7", changed.clone()).expect("set");
        values.insert("key_7".to_owned(), changed);
        for node in &nodes {
            node.wait("whole", 10, |v| {
                let member = &v.nodes[&store(5)];
                member.values == values
                    && member.map_root == Some([9; 32])
                    && member.load == Some(Load { cpu: 10, memory: 20, disk: 30 })
            })
            .await;
            assert_eq!(node.refused(), 0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn load_is_told_seldom_and_in_steps() {
    let mut mesh = Mesh::new();
    let nodes = mesh.start_all(2);
    mesh.settled(&nodes).await;
    let mut told = 0;
    let mut last = None;
    for second in 0..120_u8 {
        nodes[0]
            .membership
            .set_load(Load { cpu: second % 100, memory: 44, disk: 46 })
            .expect("set");
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = nodes[1].sees(&nodes[0]).expect("seen").load;
        told += usize::from(now != last);
        last = now;
    }
    assert!((3..=5).contains(&told), "{told} changes in two minutes");
    let last = last.expect("told");
    assert_eq!((last.cpu % 10, last.memory, last.disk), (0, 40, 50));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_starts_over_and_over_does_not_fill_the_pool() {
    let mut mesh = Mesh::new();
    let nodes = mesh.start_all(3);
    mesh.settled(&nodes).await;
    let database = Database::builder().create_with_backend(InMemoryBackend::new());
    let database = database.expect("opens");
    let mut last = None;
    for start in 1..200 {
        let wait = starts::note(&database, mesh.clock.wall()).expect("noted");
        let node = mesh.start_after(wait, "eu", 9, start, &[1], Mesh::book());
        tokio::time::sleep(Duration::from_secs(4)).await;
        mesh.net.remove(node.store);
        node.kill.cancel();
        last = Some(start);
    }
    let states = nodes[0].membership.inner.region_inlet.states();
    assert!((4..=3 + 160).contains(&states), "{states} states after 199 starts");
    for node in &nodes {
        assert_eq!(liveness_of(&node.view(), &nodes[0]), Some(Liveness::Live));
    }
    // It is known once it stays up.
    let start = last.expect("some") + 1;
    let wait = starts::note(&database, mesh.clock.wall()).expect("noted");
    let node = mesh.start_after(wait, "eu", 9, start, &[1], Mesh::book());
    nodes[2]
        .wait("seen", 90, |v| {
            let member = v.nodes.get(&node.store);
            member.is_some_and(|m| {
                m.liveness == Liveness::Live && m.incarnation == Incarnation(start)
            })
        })
        .await;
}

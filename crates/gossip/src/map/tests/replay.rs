//! Real pushes between two maps, recorded and sent again in any order, also to a map that was
//! opened again: nothing changes. A newcomer that hears them out of order ends up the same.

use std::sync::Mutex;

use async_trait::async_trait;
use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::control::{Handler, Kind as Channel, MemoryNet};
use crate::map::sync::{Peer, PeerView, build};

/// These stores live, and none says what its map is: nothing is pulled.
struct Silent(Vec<Map>);

impl PeerView for Silent {
    fn live(&self) -> Vec<Peer> {
        let peer = |map: &Map| Peer { store: map.actor(), region: self.region(), root: None };
        self.0.iter().map(peer).collect()
    }

    fn region(&self) -> Name {
        name("eu")
    }
}

/// Writes down what is pushed on its way to the real handler.
struct Ear {
    handler: Arc<dyn Handler>,
    heard: Arc<Mutex<Vec<Bytes>>>,
}

#[async_trait]
impl Handler for Ear {
    async fn on_message(&self, from: StoreId, payload: Bytes) {
        self.heard.lock().expect("no panic").push(payload.clone());
        self.handler.on_message(from, payload).await;
    }

    async fn on_call(&self, _from: StoreId, _payload: Bytes) -> Result<Bytes, String> {
        Err("nothing is pulled here".to_owned())
    }
}

struct Pair {
    net: MemoryNet,
    heard: Arc<Mutex<Vec<Bytes>>>,
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

impl Pair {
    fn new() -> Self {
        let (net, stop) = (MemoryNet::new(), CancellationToken::new());
        Self { net, heard: Arc::default(), tasks: JoinSet::new(), stop }
    }

    /// Runs the map; what is pushed to it is written down.
    fn run(&mut self, map: &Map, peers: &[&Map]) {
        let peers = peers.iter().copied().cloned().collect();
        let wire = self.net.node(map.actor());
        let (sync, handler, _pull) = build(map.clone(), wire, Arc::new(Silent(peers)), 1);
        let ear = Ear { handler, heard: Arc::clone(&self.heard) };
        self.net.handle(map.actor(), Channel::MapPush, Arc::new(ear));
        let stop = self.stop.clone();
        self.tasks.spawn(async move { sync.run(stop).await.expect("no disk fails here") });
    }

    fn heard(&self) -> Vec<Bytes> {
        self.heard.lock().expect("no panic").clone()
    }

    async fn end(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("no task panics");
        }
    }
}

async fn a_while() {
    tokio::time::sleep(Duration::from_secs(5)).await;
}

/// A life of records at node 1: made, changed, deleted, made again, moved.
async fn history(one: &Map, clock: &ManualClock) {
    let changed = |number: u32| {
        let mut spec = volume(1, &format!("pg-{number}"));
        spec.policy.local_replicas = u8::try_from(number).expect("small");
        Edit::PutVolume(spec)
    };
    let edits = [
        changed(1),
        Edit::PutService(service(1, "web")),
        Edit::PutRoute(route("example.org", 1)),
        changed(2),
        Edit::DeleteRoute(RouteKey::HttpHost("example.org".to_owned())),
        Edit::PutRoute(route("example.org", 2)),
        Edit::DeleteService(ServiceId::from_bytes([1; 16])),
        changed(3),
        Edit::PutToken(TokenSpec { revoked: true, ..token(1) }),
        Edit::PutNode(NodeSpec { removed: true, ..node(9, "gone") }),
    ];
    for edit in edits {
        clock.advance(Duration::from_millis(10));
        one.edit([edit]).expect("it is edited");
        a_while().await;
    }
    for counter in 1..4 {
        clock.advance(Duration::from_millis(10));
        one.place(placement(1, Epoch::new(0, counter), 1, 1)).expect("it is placed");
        a_while().await;
    }
}

fn orders(heard: &[Bytes]) -> Vec<Bytes> {
    let mut all = heard.to_vec();
    all.extend(heard.iter().rev().cloned());
    let mut shuffled = heard.to_vec();
    shuffled.shuffle(&mut StdRng::seed_from_u64(3));
    all.extend(shuffled);
    all
}

#[tokio::test(start_paused = true)]
async fn old_pushes_change_nothing_and_any_order_ends_the_same() {
    let clock = clock();
    let open = |db: &Arc<Database>, n| Map::open(Arc::clone(db), store_id(n), clock.clone());
    let dbs = [memory_db(), memory_db(), memory_db()];
    let one = open(&dbs[0], 1).expect("opens");
    let two = open(&dbs[1], 2).expect("opens");
    let mut pair = Pair::new();
    pair.run(&one, &[&two]);
    pair.run(&two, &[]);
    history(&one, &clock).await;
    let heard = pair.heard();
    assert!(heard.len() >= 13, "{} pushes are no history", heard.len());
    assert_eq!(two.root(), one.root(), "each was taken in as it came");

    let replayed = orders(&heard);
    for push in &replayed {
        pair.net.node(store_id(1)).send(store_id(2), Channel::MapPush, push.clone());
        a_while().await;
    }
    assert_eq!(pair.heard().len(), heard.len() + replayed.len(), "all were sent again");
    assert_eq!(two.root(), one.root(), "a replay changes the map");
    pair.end().await;

    drop(two);
    let again = open(&dbs[1], 2).expect("opens again");
    let newcomer = open(&dbs[2], 3).expect("opens");
    let mut pair = Pair::new();
    pair.run(&again, &[]);
    pair.run(&newcomer, &[]);
    for push in heard.iter().rev() {
        for to in [2, 3] {
            pair.net.node(store_id(1)).send(store_id(to), Channel::MapPush, push.clone());
        }
        a_while().await;
    }
    assert_eq!(again.root(), one.root(), "a replay changes the map after a restart");
    assert_eq!(newcomer.root(), one.root(), "the order of pushes shows");
    assert!(newcomer.view().nodes().any(|node| node.removed), "what was taken away stays so");
    assert!(newcomer.view().conflicts().next().is_none(), "nobody was in conflict");
    pair.end().await;
}

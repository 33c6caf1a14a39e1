//! Lookouts of a small mesh over an in-memory wire, beside real membership, in virtual time.

use flocker_base::{BootTime, ClusterId, Name, WallTime};
use redb::Database;
use redb::backends::InMemoryBackend;
use tokio::time::{Instant, timeout};

use super::*;
use crate::addresses::AddressBookStore;
use crate::control::MemoryNet;
use crate::membership::{LocalNode, MembershipConfig};
use crate::model::NodeFacts;

/// The runtime's own clock, which stands still but for sleeps.
#[derive(Debug)]
struct VirtualClock(Instant);

impl Clock for VirtualClock {
    fn boot(&self) -> BootTime {
        BootTime::from_duration(self.0.elapsed())
    }

    fn wall(&self) -> WallTime {
        WallTime::from_millis(1_800_000_000_000) + self.0.elapsed()
    }
}

fn store(byte: u8) -> StoreId {
    StoreId::from_bytes([byte; 16])
}

struct Mesh {
    net: MemoryNet,
    clock: Arc<dyn Clock>,
    tasks: JoinSet<()>,
}

struct Node {
    store: StoreId,
    membership: Membership,
    handler: Arc<dyn Handler>,
    stop: CancellationToken,
}

impl Mesh {
    fn start(&mut self, id: u8, start: u64) -> Node {
        let me = store(id);
        let at = std::net::SocketAddr::from(([10, 0, 0, id], 4523));
        let local = LocalNode {
            cluster: ClusterId::from_bytes([9; 16]),
            incarnation: Incarnation(start),
            facts: NodeFacts {
                name: Name::new(format!("n{id}")).expect("name"),
                region: Name::new("eu").expect("name"),
                control: at,
                data: at,
                http: None,
                version: String::new(),
                zone: None,
                public: None,
                capacity: None,
            },
            seeds: vec![store(1)],
            announce_after: Duration::ZERO,
        };
        let database = Database::builder().create_with_backend(InMemoryBackend::new());
        let book = AddressBookStore::open(Arc::new(database.expect("opens"))).expect("opens");
        let wire = self.net.node(me);
        let (membership, members) = Membership::new(
            MembershipConfig::default(),
            local,
            Arc::clone(&wire),
            book,
            Arc::clone(&self.clock),
        )
        .expect("starts");
        let clock = Arc::clone(&self.clock);
        let (lookout, (_, handler)) =
            lookout(Scope::Region, membership.clone(), wire, clock, id.into());
        for (kind, handler) in members {
            self.net.handle(me, kind, handler);
        }
        self.net.handle(me, Kind::Watch, Arc::clone(&handler));
        let stop = CancellationToken::new();
        let (running, t) = (membership.clone(), stop.clone());
        self.tasks.spawn(async move { drop(running.run(t).await) });
        self.tasks.spawn(lookout.run(stop.clone()));
        Node { store: me, membership, handler, stop }
    }

    async fn settled(count: u8) -> (Self, Vec<Node>) {
        let clock = Arc::new(VirtualClock(Instant::now()));
        let mut mesh = Self { net: MemoryNet::new(), clock, tasks: JoinSet::new() };
        let nodes: Vec<Node> = (1..=count).map(|id| mesh.start(id, 1)).collect();
        for node in &nodes {
            node.wait(20, |view| live(view) == usize::from(count)).await;
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        (mesh, nodes)
    }
}

impl Node {
    async fn wait(&self, secs: u64, is_so: impl Fn(&View) -> bool) {
        let mut view = self.membership.view();
        let reached = timeout(Duration::from_secs(secs), view.wait_for(|v| is_so(v))).await;
        let now = self.membership.view().borrow().clone();
        assert!(reached.is_ok(), "{:?}: {now:#?}", self.store);
    }
}

fn live(view: &View) -> usize {
    view.nodes.values().filter(|m| m.liveness == Liveness::Live).count()
}

#[tokio::test(start_paused = true)]
async fn a_killed_node_is_suspected_by_all_within_two_seconds_and_returns_when_restarted() {
    let (mut mesh, nodes) = Mesh::settled(6).await;
    let victim = store(3);
    mesh.net.remove(victim);
    nodes[2].stop.cancel();
    let killed = mesh.clock.boot();
    let others = || nodes.iter().filter(|node| node.store != victim);
    for node in others() {
        node.wait(4, |view| view.nodes[&victim].liveness == Liveness::Suspected).await;
    }
    let took = mesh.clock.boot() - killed;
    assert!(took <= Duration::from_millis(2_100), "{took:?}");
    let _again = mesh.start(3, 2);
    for node in others() {
        node.wait(10, |view| live(view) == 6).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_cut_off_is_suspected_and_suspects_all_and_all_is_well_when_it_heals() {
    let (mesh, nodes) = Mesh::settled(6).await;
    let lonely = &nodes[3];
    for node in &nodes {
        mesh.net.cut(node.store, lonely.store);
    }
    for node in nodes.iter().filter(|node| node.store != lonely.store) {
        node.wait(8, |view| view.nodes[&lonely.store].liveness == Liveness::Suspected).await;
        node.wait(1, |view| live(view) == 5).await;
    }
    lonely.wait(15, |view| live(view) == 1).await;
    assert!(mesh.net.swallowed() > 10);
    mesh.net.heal_all();
    for node in &nodes {
        node.wait(10, |view| live(view) == 6).await;
    }
}

#[tokio::test(start_paused = true)]
async fn hostile_bytes_and_false_obituaries_change_nothing_that_lasts() {
    let (_mesh, nodes) = Mesh::settled(4).await;
    let (me, liar) = (&nodes[0], nodes[3].store);
    for length in 0..200 {
        me.handler.on_message(liar, vec![1; length].into()).await;
        me.handler.on_message(liar, vec![0xff; length].into()).await;
    }
    // Version 1, news, one item: store 2, run 1, round 0, dead by store 4 for the reason 1, now.
    let mut lie = vec![1, 4, 1, 16];
    lie.extend([2; 16]);
    lie.extend([1, 0, 1, 16]);
    lie.extend([4; 16]);
    lie.extend([1, 0]);
    assert!(Message::decode(&lie).is_some());
    for _ in 0..2_000 {
        me.handler.on_message(liar, lie.clone().into()).await;
    }
    me.wait(1, |view| view.nodes[&store(2)].liveness == Liveness::Suspected).await;
    for node in &nodes {
        node.wait(2, |view| live(view) == 4).await;
    }
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(nodes.iter().all(|node| live(&node.membership.view().borrow()) == 4));
}

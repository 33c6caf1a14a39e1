//! Membership of small meshes over an in-memory wire, in virtual time.

mod limits;
mod measure;
mod regions;
mod replay;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use flocker_base::{Name, WallTime};
use redb::Database;
use redb::backends::InMemoryBackend;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::*;
use crate::control::{Kind, MemoryNet};

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

fn facts(name: &str, number: u8) -> NodeFacts {
    facts_in("eu", name, number)
}

fn facts_in(region: &str, name: &str, number: u8) -> NodeFacts {
    NodeFacts {
        name: Name::new(name).expect("name"),
        region: Name::new(region).expect("name"),
        control: std::net::SocketAddr::from(([10, 0, 0, number], 4523)),
        data: std::net::SocketAddr::from(([10, 0, 0, number], 4524)),
        http: None,
        version: "0.1.0".to_owned(),
        zone: None,
        public: None,
        capacity: None,
    }
}

struct Mesh {
    net: MemoryNet,
    clock: Arc<dyn Clock>,
    config: MembershipConfig,
    tasks: JoinSet<(StoreId, Result<(), MembershipError>)>,
    watches: JoinSet<()>,
    /// Whether its nodes watch each other.
    watchful: bool,
}

struct Node {
    store: StoreId,
    number: u8,
    start: u64,
    region: String,
    kill: CancellationToken,
    membership: Membership,
    book: AddressBookStore,
    shutdown: CancellationToken,
}

impl Mesh {
    fn new() -> Self {
        let clock = Arc::new(VirtualClock(Instant::now()));
        let config = MembershipConfig::default();
        let (tasks, watches) = (JoinSet::new(), JoinSet::new());
        Self { net: MemoryNet::new(), clock, config, tasks, watches, watchful: true }
    }

    fn book() -> AddressBookStore {
        let database = Database::builder().create_with_backend(InMemoryBackend::new());
        AddressBookStore::open(Arc::new(database.expect("opens"))).expect("opens")
    }

    /// Starts a node that is told of these others.
    fn start(&mut self, id: u8, start: u64, seeds: &[u8], book: AddressBookStore) -> Node {
        self.start_in("eu", id, start, seeds, book)
    }

    fn start_in(
        &mut self,
        region: &str,
        id: u8,
        start: u64,
        seeds: &[u8],
        book: AddressBookStore,
    ) -> Node {
        self.start_after(Duration::ZERO, region, id, start, seeds, book)
    }

    fn start_after(
        &mut self,
        announce_after: Duration,
        region: &str,
        id: u8,
        start: u64,
        seeds: &[u8],
        book: AddressBookStore,
    ) -> Node {
        let node = LocalNode {
            cluster: ClusterId::from_bytes([9; 16]),
            incarnation: Incarnation(start),
            facts: facts_in(region, &format!("n{id}-{start}"), id),
            seeds: seeds.iter().copied().map(store).collect(),
            announce_after,
        };
        let store = store(id);
        let wire = self.net.node(store);
        let config = self.config;
        let (membership, handlers) =
            Membership::new(config, node, wire, book.clone(), Arc::clone(&self.clock))
                .expect("starts");
        for (kind, handler) in handlers {
            self.net.handle(store, kind, handler);
        }
        let (shutdown, kill) = (CancellationToken::new(), CancellationToken::new());
        for scope in [Scope::Region, Scope::Bridges].into_iter().filter(|_| self.watchful) {
            let (wire, clock) = (self.net.node(store), Arc::clone(&self.clock));
            let (lookout, (kind, handler)) =
                lookout(scope, membership.clone(), wire, clock, id.into());
            self.net.handle(store, kind, handler);
            let (shutdown, kill) = (shutdown.clone(), kill.clone());
            self.watches.spawn(async move {
                tokio::select! {
                    () = lookout.run(shutdown) => {}
                    () = kill.cancelled() => {}
                }
            });
        }
        let node = Node {
            store,
            number: id,
            start,
            region: region.to_owned(),
            kill,
            membership,
            book,
            shutdown,
        };
        self.run(&node);
        node
    }

    fn run(&mut self, node: &Node) {
        let (store, membership) = (node.store, node.membership.clone());
        let (shutdown, kill) = (node.shutdown.clone(), node.kill.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                result = membership.run(shutdown) => (store, result),
                () = kill.cancelled() => (store, Ok(())),
            }
        });
    }

    fn start_all(&mut self, count: u8) -> Vec<Node> {
        (1..=count).map(|id| self.start(id, 1, &[1], Self::book())).collect()
    }

    /// Everyone sees everyone live.
    async fn settled(&mut self, nodes: &[Node]) {
        self.settled_within(nodes, 10).await;
    }

    async fn settled_within(&mut self, nodes: &[Node], secs: u64) {
        for node in nodes {
            node.wait("all live", secs, |view| {
                view.nodes.len() == nodes.len()
                    && view.nodes.values().all(|m| m.liveness == Liveness::Live)
            })
            .await;
        }
    }
}

impl Node {
    /// Waits until the view is so; how long that took.
    async fn wait(&self, what: &str, within_secs: u64, is_so: impl Fn(&View) -> bool) -> Duration {
        let start = Instant::now();
        let mut view = self.membership.view();
        let reached = timeout(Duration::from_secs(within_secs), view.wait_for(|v| is_so(v))).await;
        if reached.is_err() {
            let now = self.membership.view().borrow().clone();
            panic!("{:?}: not {what} within {within_secs} s: {now:#?}", self.store);
        }
        start.elapsed()
    }

    fn sees(&self, other: &Self) -> Option<Arc<Member>> {
        self.membership.view().borrow().nodes.get(&other.store).cloned()
    }

    fn view(&self) -> View {
        self.membership.view().borrow().as_ref().clone()
    }

    fn facts(&self) -> NodeFacts {
        facts_in(&self.region, &format!("n{}-{}", self.number, self.start), self.number)
    }

    fn refused(&self) -> u64 {
        let inner = &self.membership.inner;
        inner.region_inlet.refused() + inner.between_inlet.refused()
    }
}

fn liveness_of(view: &View, node: &Node) -> Option<Liveness> {
    view.nodes.get(&node.store).map(|m| m.liveness)
}

#[tokio::test(start_paused = true)]
async fn nodes_that_know_one_seed_all_see_each_other() {
    for count in [2, 3, 5] {
        let mut mesh = Mesh::new();
        let nodes = mesh.start_all(count);
        let began = Instant::now();
        mesh.settled(&nodes).await;
        assert!(began.elapsed() < Duration::from_secs(5), "{count}: {:?}", began.elapsed());
        for node in &nodes {
            for (n, other) in (1..).zip(&nodes) {
                let member = node.sees(other).expect("seen");
                assert_eq!(member.facts, facts(&format!("n{n}-1"), n));
                assert_eq!(member.incarnation, Incarnation(1));
            }
            assert_eq!(node.refused(), 0, "honest messages pass the guard");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_node_announces_reaches_all() {
    let mut mesh = Mesh::new();
    let nodes = mesh.start_all(4);
    mesh.settled(&nodes).await;
    nodes[3].membership.set_map_root([7; 32]).expect("set");
    nodes[3].membership.set("load", "12").expect("set");
    nodes[3].membership.set_facts(&facts("renamed", 44)).expect("set");
    for node in &nodes {
        node.wait("told", 5, |view| {
            let member = &view.nodes[&store(4)];
            member.map_root == Some([7; 32])
                && member.values.get("load").is_some_and(|v| v == "12")
                && member.facts.name.as_str() == "renamed"
        })
        .await;
    }
    let known = nodes[0].book.control().addresses(store(4));
    let at = |n| std::net::SocketAddr::from(([10, 0, 0, n], 4523));
    assert_eq!(known, [at(44), at(4)], "both addresses are in the book");
}

#[tokio::test(start_paused = true)]
async fn a_node_cut_off_is_suspected_within_seconds_and_comes_back() {
    for count in [3, 5, 20] {
        let mut mesh = Mesh::new();
        let nodes = mesh.start_all(count);
        mesh.settled(&nodes).await;
        tokio::time::sleep(Duration::from_secs(30)).await;
        let (last, others) = nodes.split_last().expect("some");
        for other in others {
            mesh.net.cut(last.store, other.store);
        }
        let cut = Instant::now();
        for other in others {
            other
                .wait("suspected", 10, |v| liveness_of(v, last) == Some(Liveness::Suspected))
                .await;
            let took = cut.elapsed();
            assert!(took > Duration::from_millis(500) && took < Duration::from_secs(6), "{took:?}");
            let stays = other.sees(&others[0]).expect("seen").liveness;
            assert_eq!(stays, Liveness::Live, "those that hear each other stay");
        }
        last.wait("alone", 10, |v| {
            others.iter().all(|o| liveness_of(v, o) == Some(Liveness::Suspected))
        })
        .await;
        for other in others {
            mesh.net.heal(last.store, other.store);
        }
        assert!(mesh.net.swallowed() > 0, "the cut was real");
        mesh.settled(&nodes).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_quiet_mesh_suspects_no_one() {
    let mut mesh = Mesh::new();
    let nodes = mesh.start_all(5);
    mesh.settled(&nodes).await;
    let suspected = Arc::new(AtomicBool::new(false));
    let mut view = nodes[0].membership.view();
    let watch = async {
        loop {
            let healthy = view.borrow().nodes.values().all(|m| m.liveness == Liveness::Live);
            suspected.fetch_or(!healthy, Ordering::Relaxed);
            if view.changed().await.is_err() {
                break;
            }
        }
    };
    assert!(timeout(Duration::from_secs(600), watch).await.is_err(), "ten minutes went by");
    assert!(!suspected.load(Ordering::Relaxed));
}

#[tokio::test(start_paused = true)]
async fn a_restart_with_a_higher_incarnation_takes_the_place_of_the_old() {
    let mut mesh = Mesh::new();
    let mut nodes = mesh.start_all(3);
    mesh.settled(&nodes).await;
    let stopped = nodes.pop().expect("some");
    stopped.shutdown.cancel();
    let (who, result) = mesh.tasks.join_next().await.expect("ends").expect("no panic");
    assert_eq!(who, stopped.store);
    result.expect("a shutdown is no error");
    nodes.push(mesh.start(3, 2, &[], stopped.book));
    for node in &nodes {
        node.wait("restarted", 5, |view| {
            view.nodes
                .get(&store(3))
                .is_some_and(|m| m.incarnation == Incarnation(2) && m.facts.name.as_str() == "n3-2")
        })
        .await;
    }
    mesh.settled(&nodes).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    for node in &nodes {
        assert_eq!(node.sees(&nodes[2]).expect("seen").incarnation, Incarnation(2));
        assert_eq!(node.refused(), 0, "its earlier state is told to it, and that is no offence");
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_stops_as_asked_has_left_at_once_and_is_never_suspected() {
    let mut mesh = Mesh::new();
    let nodes = mesh.start_all(4);
    mesh.settled(&nodes).await;
    let mut events = nodes[0].membership.events();
    nodes[3].shutdown.cancel();
    let took =
        nodes[0].wait("left", 5, |view| liveness_of(view, &nodes[3]) == Some(Liveness::Left)).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    tokio::time::sleep(Duration::from_secs(30)).await;
    let told: Vec<_> = std::iter::from_fn(|| events.try_recv().ok()).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((told[0].kind, told[0].store), (EventKind::Left, store(4)));
    mesh.start(4, 2, &[1], Mesh::book());
    nodes[0].wait("back", 10, |v| liveness_of(v, &nodes[3]) == Some(Liveness::Live)).await;
    assert_eq!(events.try_recv().map(|e| e.kind), Ok(EventKind::Restarted));
}

#[tokio::test(start_paused = true)]
async fn what_a_watch_suspects_is_suspected_at_once_until_it_takes_it_back() {
    let mut mesh = Mesh { watchful: false, ..Mesh::new() };
    let nodes = mesh.start_all(3);
    mesh.settled(&nodes).await;
    let mut events = nodes[0].membership.events();
    let suspected = [(store(2), Incarnation(1)), (store(3), Incarnation(7))].into();
    let verdicts = Verdicts { suspected, ..Verdicts::default() };
    nodes[0].membership.judge(Scope::Bridges, verdicts);
    let took = nodes[0]
        .wait("suspected", 1, |v| liveness_of(v, &nodes[1]) == Some(Liveness::Suspected))
        .await;
    assert!(took < Duration::from_millis(10), "{took:?}");
    assert_eq!(nodes[0].sees(&nodes[2]).expect("seen").liveness, Liveness::Live, "another run");
    nodes[0].membership.judge(Scope::Bridges, Verdicts::default());
    nodes[0].wait("live", 1, |v| liveness_of(v, &nodes[1]) == Some(Liveness::Live)).await;
    let told: Vec<_> = std::iter::from_fn(|| events.try_recv().ok()).map(|e| e.kind).collect();
    assert_eq!(told, [EventKind::Suspected, EventKind::Returned]);
}

#[tokio::test(start_paused = true)]
async fn a_node_finds_the_mesh_by_its_book_alone_and_after_all_forgot_it() {
    let mut mesh = Mesh::new();
    let nodes = mesh.start_all(3);
    mesh.settled(&nodes).await;
    for other in &nodes[..2] {
        mesh.net.cut(nodes[2].store, other.store);
    }
    nodes[0].wait("forgotten", 3600, |view| !view.nodes.contains_key(&store(3))).await;
    tokio::time::sleep(Duration::from_secs(1300)).await;
    assert_eq!(nodes[2].membership.view().borrow().nodes.len(), 1, "it forgot them as well");
    for other in &nodes[..2] {
        mesh.net.heal(nodes[2].store, other.store);
    }
    for node in &nodes {
        node.wait("together", 60, |view| {
            view.nodes.values().filter(|m| m.liveness == Liveness::Live).count() == 3
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn hostile_messages_change_nothing() {
    let mut mesh = Mesh::new();
    let nodes = mesh.start_all(3);
    mesh.settled(&nodes).await;
    let before = nodes[0].membership.view().borrow().clone();
    let wire = mesh.net.node(store(66));
    let mut sent = 0;
    for n in 0..500_u32 {
        let hash = blake3::hash(&n.to_le_bytes());
        let mut bytes = hash.as_bytes().repeat(1 + usize::try_from(n % 90).expect("small"));
        if n % 2 == 0 {
            bytes[..3].copy_from_slice(&[0x53, 0xb0, 0]);
            bytes[3] = u8::try_from(n % 5).expect("small");
        }
        wire.send(store(1), Kind::Membership, bytes.into());
        sent += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    wire.send(store(1), Kind::Membership, Bytes::from(vec![0; Kind::Membership.max_frame() + 1]));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(nodes[0].refused() >= sent - 2, "{} of {sent} were refused", nodes[0].refused());
    assert_eq!(*nodes[0].membership.view().borrow(), before);
}

#[tokio::test(start_paused = true)]
async fn a_gossip_task_that_dies_is_an_error_and_can_be_run_again() {
    let mut mesh = Mesh::new();
    let nodes = mesh.start_all(3);
    mesh.settled(&nodes).await;
    // Behind the guard's back: a version that falls makes chitchat 0.11.2 panic.
    let delta = {
        let mut ops = vec![0];
        ops.extend([1, 0, b'n']);
        ops.extend(chat_id::generation(Incarnation(1), 0).expect("small").to_le_bytes());
        ops.push(6);
        ops.extend([2; 16]);
        ops.extend(4523_u16.to_le_bytes());
        ops.extend([0; 16]);
        ops.extend([1, 1, 0, b'z', 0, 0]);
        ops.extend(1_000_000_u64.to_le_bytes());
        ops.push(0);
        ops.push(2);
        ops.extend(500_000_u64.to_le_bytes());
        let len = u16::try_from(ops.len()).expect("small").to_le_bytes();
        [&[0x53, 0xb0, 0, 2, 2][..], &len, &ops, &[0]].concat()
    };
    nodes[0].membership.inner.region_inlet.push_unguarded(store(2), delta.into());
    let ended = timeout(Duration::from_secs(5), mesh.tasks.join_next()).await.expect("ends");
    let (who, result) = ended.expect("one").expect("no panic of ours");
    assert_eq!(who, store(1));
    let error = result.expect_err("an error");
    assert!(matches!(error, MembershipError::Ended(_)), "{error}");
    mesh.run(&nodes[0]);
    mesh.settled(&nodes).await;
    assert_eq!(nodes[0].sees(&nodes[0]).expect("itself").incarnation, Incarnation(1));
}

#[tokio::test(start_paused = true)]
async fn membership_runs_once_at_a_time() {
    let mut mesh = Mesh::new();
    let node = mesh.start(1, 1, &[], Mesh::book());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let again = node.membership.run(CancellationToken::new()).await;
    assert!(matches!(again, Err(MembershipError::Running)));
    assert_eq!(node.membership.view().borrow().nodes.len(), 1, "a node sees itself");
}

#[tokio::test(start_paused = true)]
async fn what_is_too_large_or_reserved_cannot_be_announced() {
    let mut mesh = Mesh::new();
    let node = mesh.start(1, 1, &[], Mesh::book());
    let membership = &node.membership;
    let long = membership.set("big", "x".repeat(MAX_VALUE_BYTES + 1));
    assert!(matches!(long, Err(ValueError::Long { .. })), "{long:?}");
    assert_eq!(membership.set("one", "x".repeat(MAX_VALUE_BYTES)), Ok(()));
    let total = membership.set("two", "x".repeat(MAX_VALUE_BYTES));
    assert!(matches!(total, Err(ValueError::Total { .. })), "{total:?}");
    assert_eq!(membership.set("one", "small again"), Ok(()));
    assert_eq!(membership.set("two", "x".repeat(MAX_VALUE_BYTES)), Ok(()));
    for key in ["f", "m", "x", "", "UP", "a b", "waytoolongforakey"] {
        assert!(matches!(membership.set(key, ""), Err(ValueError::Key(_))), "{key}");
    }
    for n in 3..MAX_KEYS {
        assert_eq!(membership.set(&format!("k{n}"), ""), Ok(()));
    }
    assert!(matches!(membership.set("onemore", ""), Err(ValueError::Total { .. })));
}

#[test]
fn the_inbox_is_bounded_and_drops_the_oldest() {
    let inbox = transport::Inbox::default();
    for n in 0..1000_u32 {
        inbox.push(store(1), Bytes::copy_from_slice(&n.to_le_bytes()));
    }
    let first = inbox.pop().expect("some").1;
    assert_eq!(*first, 744_u32.to_le_bytes());
    let inbox = transport::Inbox::default();
    for _ in 0..200 {
        inbox.push(store(1), Bytes::from(vec![0; 90_000]));
    }
    let waiting = std::iter::from_fn(|| inbox.pop()).count();
    assert!((40..50).contains(&waiting), "bounded in bytes too: {waiting}");
}

//! Nodes over real QUIC sockets on loopback that stop and come back: at their old addresses in any
//! order, at others, or all at others at once with nothing but a name in common.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use flocker_base::{ClusterId, Incarnation, Name, SystemClock};
use flocker_quic::EndpointConfig;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng as _, SeedableRng};
use redb::Database;
use redb::backends::InMemoryBackend;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use super::*;
use crate::control::{Admission, Control};
use crate::identity::{Authority, NodeIdentity};
use crate::membership::{LocalNode, Membership, MembershipConfig};
use crate::model::NodeFacts;

const IN_TIME: Duration = Duration::from_secs(60);

struct NoneRemoved;

impl Admission for NoneRemoved {
    fn is_removed(&self, _store: StoreId) -> bool {
        false
    }
}

/// A name that stands for whatever addresses it is told, as a person would change a DNS record.
#[derive(Clone, Default)]
struct Record(Arc<Mutex<Vec<SocketAddr>>>);

impl Record {
    fn set(&self, addresses: Vec<SocketAddr>) {
        *self.0.lock().expect("lock") = addresses;
    }
}

#[async_trait]
impl Resolve for Record {
    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        match host.parse() {
            Ok(ip) => Ok(vec![SocketAddr::new(ip, port)]),
            Err(_) if host == "mesh.test" => Ok(self.0.lock().expect("lock").clone()),
            Err(_) => Err(io::Error::other("no such name")),
        }
    }
}

/// What a node keeps while it is off.
struct Disk {
    identity: NodeIdentity,
    database: Arc<Database>,
    starts: u64,
}

struct Running {
    at: SocketAddr,
    facts: NodeFacts,
    membership: Membership,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

fn store(id: u8) -> StoreId {
    StoreId::from_bytes([id; 16])
}

fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

fn disks(count: u8) -> Vec<Disk> {
    let now = SystemClock.wall();
    let cluster = ClusterId::from_bytes([1; 16]);
    let authority = Authority::generate(cluster, now).expect("authority");
    let disk = |id| {
        let identity = NodeIdentity::found(cluster, store(id), authority.clone(), now);
        let database = Database::builder().create_with_backend(InMemoryBackend::new());
        Disk {
            identity: identity.expect("one"),
            database: Arc::new(database.expect("opens")),
            starts: 0,
        }
    };
    (1..=count).map(disk).collect()
}

impl Disk {
    fn book(&self) -> AddressBookStore {
        AddressBookStore::open(Arc::clone(&self.database)).expect("opens")
    }

    /// Starts the node; `bind` with port 0 gives it an address that it never had.
    async fn start(&mut self, bind: SocketAddr, seeds: &[&str], resolver: &Record) -> Running {
        self.start_as(bind, None, seeds, resolver).await
    }

    /// Starts the node; peers are told this address of it, if not the bound one.
    async fn start_as(
        &mut self,
        bind: SocketAddr,
        told: Option<SocketAddr>,
        seeds: &[&str],
        resolver: &Record,
    ) -> Running {
        self.starts += 1;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let config = EndpointConfig { admit_joiners: true, ..EndpointConfig::control(bind) };
        let endpoint = loop {
            match Endpoint::bind(&config, &self.identity.to_quic()) {
                Ok(endpoint) => break endpoint,
                // The socket of its last run is closed a moment after it ended.
                Err(QuicError::PortTaken { .. }) => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(error) => panic!("{error}"),
            }
        };
        let (at, me, book) = (endpoint.local_addr(), endpoint.store(), self.book());
        let told = told.unwrap_or(at);
        book.learn(me, &[told], &[told]).expect("learnt");
        let name = |text: &str| Name::new(text).expect("a name");
        let facts = NodeFacts {
            name: name(&format!("n{}", me.as_bytes()[0])),
            region: name("eu"),
            control: told,
            data: told,
            http: None,
            version: "0.1.0".to_owned(),
            zone: None,
            public: None,
            capacity: None,
        };
        let local = LocalNode {
            cluster: self.identity.cluster(),
            incarnation: Incarnation(self.starts),
            facts: facts.clone(),
            seeds: book.stores(),
            announce_after: Duration::ZERO,
        };
        let control = Control::new(endpoint.clone(), book.control(), Arc::new(NoneRemoved));
        let (config, wire) = (MembershipConfig::default(), control.wire());
        let (membership, handlers) =
            Membership::new(config, local, wire, book.clone(), Arc::clone(&clock)).expect("starts");
        let seeds = seeds.iter().map(|seed| seed.parse().expect("a seed")).collect();
        let (peers, view) = (control.peers(), membership.view());
        let seeker = Seeker::new(&endpoint, &peers, &book, &view, seeds, &clock)
            .resolving_by(Arc::new(resolver.clone()));
        let control =
            handlers.into_iter().fold(control, |c, (kind, handler)| c.handle(kind, handler));
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        tasks.spawn(control.run(stop.clone()));
        let (running, t) = (membership.clone(), stop.clone());
        tasks.spawn(async move { running.run(t).await.expect("goes on") });
        let t = stop.clone();
        tasks.spawn(async move { seeker.run(t).await.expect("goes on") });
        Running { at, facts, membership, stop, tasks }
    }
}

impl Running {
    async fn stop(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("ended well");
        }
    }
}

/// Waits until each sees as many nodes alive as there are.
async fn all_see_all(nodes: &[Running]) {
    for node in nodes {
        let mut view = node.membership.view();
        let live = |view: &Arc<View>| {
            view.nodes.values().filter(|m| m.liveness == Liveness::Live).count() == nodes.len()
        };
        let seen = tokio::time::timeout(IN_TIME, view.wait_for(live)).await;
        assert!(seen.is_ok(), "{:#?}", *node.membership.view().borrow());
    }
}

/// A mesh whose nodes have met, at these kinds of address.
async fn met(disks: &mut [Disk], binds: &[SocketAddr]) -> Vec<Running> {
    let mut nodes: Vec<Running> = Vec::new();
    for (disk, bind) in disks.iter_mut().zip(binds) {
        let seeds: Vec<String> = nodes.first().map(|n| n.at.to_string()).into_iter().collect();
        let seeds: Vec<&str> = seeds.iter().map(String::as_str).collect();
        nodes.push(disk.start(*bind, &seeds, &Record::default()).await);
    }
    all_see_all(&nodes).await;
    nodes
}

async fn stop_all(nodes: Vec<Running>) -> Vec<SocketAddr> {
    let at = nodes.iter().map(|n| n.at).collect();
    for node in nodes {
        node.stop().await;
    }
    at
}

#[tokio::test]
async fn a_seed_is_enough_to_meet_though_others_are_dead_or_no_names() {
    let mut disks = disks(3);
    let first = disks[0].start(loopback(), &[], &Record::default()).await;
    let dead = std::net::UdpSocket::bind(loopback()).expect("binds");
    let dead = dead.local_addr().expect("bound");
    let record = Record::default();
    record.set(vec![dead, first.at]);
    let at = first.at.to_string();
    let second = disks[1].start(loopback(), &["gone.test", "mesh.test"], &record).await;
    let third = disks[2].start(loopback(), &[&dead.to_string(), &at], &record).await;
    let nodes = [first, second, third];
    all_see_all(&nodes).await;
    let known = disks[2].book().control().addresses(store(1));
    assert_eq!(known, vec![nodes[0].at], "who was found at a seed is in the book");
}

#[tokio::test]
async fn a_mesh_that_was_off_starts_from_disk_in_any_order() {
    let mut disks = disks(5);
    let nodes = met(&mut disks, &[loopback(); 5]).await;
    let mut at = stop_all(nodes).await;
    for seed in 1..=3 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut order: Vec<usize> = (0..disks.len()).collect();
        order.shuffle(&mut random);
        let mut nodes = Vec::new();
        for index in &order {
            nodes.push(disks[*index].start(at[*index], &[], &Record::default()).await);
            let gap = Duration::from_millis(u64::from(random.next_u32() % 400));
            tokio::time::sleep(gap).await;
        }
        all_see_all(&nodes).await;
        let now = stop_all(nodes).await;
        for (index, now) in order.iter().zip(now) {
            at[*index] = now;
        }
    }
}

#[tokio::test]
async fn a_node_with_a_new_address_is_found_and_finds_the_others() {
    let mut disks = disks(3);
    let mut nodes = met(&mut disks, &[loopback(); 3]).await;
    let old = nodes[2].at;
    nodes.pop().expect("the third").stop().await;
    nodes.push(disks[2].start(loopback(), &[], &Record::default()).await);
    assert_ne!(nodes[2].at, old);
    all_see_all(&nodes).await;
    for disk in &disks[..2] {
        let addresses = disk.book().control().addresses(store(3));
        assert_eq!(addresses.first(), Some(&nodes[2].at), "the newest first: {addresses:?}");
        assert!(addresses.contains(&old), "and none is forgotten");
    }
}

#[tokio::test]
async fn half_of_a_mesh_with_new_addresses_finds_the_other_half() {
    let mut disks = disks(4);
    let mut nodes = met(&mut disks, &[loopback(); 4]).await;
    let moved: Vec<Running> = nodes.drain(2..).collect();
    stop_all(moved).await;
    for disk in &mut disks[2..] {
        nodes.push(disk.start(loopback(), &[], &Record::default()).await);
    }
    all_see_all(&nodes).await;
}

#[tokio::test]
async fn a_whole_mesh_with_new_addresses_meets_by_a_name_once_it_is_right() {
    let mut disks = disks(4);
    let nodes = met(&mut disks, &[loopback(); 4]).await;
    let record = Record::default();
    record.set(stop_all(nodes).await);
    let mut nodes = Vec::new();
    for disk in &mut disks {
        nodes.push(disk.start(loopback(), &["mesh.test"], &record).await);
    }
    // The name leads to where they were: each is alone, and asks again.
    tokio::time::sleep(Duration::from_secs(3)).await;
    for node in &nodes {
        let view = node.membership.view();
        let live = view.borrow().nodes.values().filter(|m| m.liveness == Liveness::Live).count();
        assert_eq!(live, 1, "nothing leads from one to another");
    }
    record.set(nodes.iter().map(|n| n.at).collect());
    all_see_all(&nodes).await;
}

#[tokio::test]
async fn a_node_behind_address_translation_is_reached_at_its_outer_address() {
    let mut disks = disks(3);
    let inner = free();
    let nat = Nat::to(inner).await;
    let first = disks[0].start(loopback(), &[], &Record::default()).await;
    let at = first.at.to_string();
    let second = disks[1].start_as(inner, Some(nat.outer), &[&at], &Record::default()).await;
    let mut nodes = vec![first, second];
    all_see_all(&nodes).await;
    let known = disks[0].book().control().addresses(store(2));
    assert_eq!(known, vec![nat.outer], "the inner address is told to nobody");

    // It restarts, and the third can only come in from outside.
    nodes.pop().expect("the second").stop().await;
    let before = nat.passed.load(Ordering::Relaxed);
    let second = disks[1].start_as(inner, Some(nat.outer), &[], &Record::default()).await;
    nodes.push(second);
    let outer = nat.outer.to_string();
    nodes.push(disks[2].start(loopback(), &[&outer], &Record::default()).await);
    all_see_all(&nodes).await;
    assert!(nat.passed.load(Ordering::Relaxed) > before, "through the translation");
}

#[tokio::test]
async fn an_address_that_changes_while_a_node_runs_is_told() {
    let mut disks = disks(2);
    let nodes = met(&mut disks, &[loopback(); 2]).await;
    let nat = Nat::to(nodes[1].at).await;
    let moved = NodeFacts { control: nat.outer, ..nodes[1].facts.clone() };
    nodes[1].membership.set_facts(&moved).expect("told");
    let mut view = nodes[0].membership.view();
    let told = |view: &Arc<View>| view.nodes[&store(2)].facts.control == nat.outer;
    tokio::time::timeout(IN_TIME, view.wait_for(told)).await.expect("in time").expect("a view");
    // The book is written before the view says so.
    assert_eq!(disks[0].book().control().addresses(store(2)), [nat.outer, nodes[1].at]);
    all_see_all(&nodes).await;
}

#[tokio::test]
async fn nodes_of_both_address_families_form_one_mesh() {
    let mut disks = disks(3);
    let both = SocketAddr::from((Ipv6Addr::UNSPECIFIED, free().port()));
    let told = SocketAddr::from((Ipv4Addr::LOCALHOST, both.port()));
    let first = disks[0].start_as(both, Some(told), &[], &Record::default()).await;
    let old = disks[1].start(loopback(), &[&told.to_string()], &Record::default()).await;
    let seed = format!("[::1]:{}", both.port());
    let new = SocketAddr::from((Ipv6Addr::LOCALHOST, 0));
    let new = disks[2].start(new, &[&seed], &Record::default()).await;
    all_see_all(&[first, old, new]).await;
}

#[tokio::test]
async fn a_mesh_of_one_family_alone_meets_and_starts_from_disk() {
    let mut disks = disks(3);
    let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, 0));
    let at = stop_all(met(&mut disks, &[v6; 3]).await).await;
    let mut nodes = Vec::new();
    for (disk, at) in disks.iter_mut().zip(at) {
        nodes.push(disk.start(at, &[], &Record::default()).await);
    }
    all_see_all(&nodes).await;
}

/// An address that was free a moment ago.
fn free() -> SocketAddr {
    std::net::UdpSocket::bind(loopback()).and_then(|s| s.local_addr()).expect("free")
}

/// Plays a translation of addresses: what comes to `outer` goes on to the inner address, from a
/// port of its own for each sender, and back.
struct Nat {
    outer: SocketAddr,
    passed: Arc<AtomicUsize>,
    _task: JoinSet<()>,
}

impl Nat {
    async fn to(inner: SocketAddr) -> Self {
        let socket = Arc::new(UdpSocket::bind(loopback()).await.expect("binds"));
        let (outer, passed) = (socket.local_addr().expect("bound"), Arc::new(AtomicUsize::new(0)));
        let mut task = JoinSet::new();
        task.spawn(forward(socket, inner, Arc::clone(&passed)));
        Self { outer, passed, _task: task }
    }
}

async fn forward(socket: Arc<UdpSocket>, inner: SocketAddr, passed: Arc<AtomicUsize>) {
    let mut ways: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut answers = JoinSet::new();
    let mut bytes = vec![0; 65_536];
    loop {
        // An error is a port that answered that it is closed: nothing to pass on.
        let Ok((length, from)) = socket.recv_from(&mut bytes).await else { continue };
        let way = match ways.entry(from) {
            Entry::Occupied(way) => Arc::clone(way.get()),
            Entry::Vacant(free) => {
                let way = Arc::new(UdpSocket::bind(loopback()).await.expect("binds"));
                way.connect(inner).await.expect("connects");
                answers.spawn(pass_back(Arc::clone(&way), Arc::clone(&socket), from));
                Arc::clone(free.insert(way))
            }
        };
        let _lost = way.send(&bytes[..length]).await;
        passed.fetch_add(1, Ordering::Relaxed);
    }
}

async fn pass_back(way: Arc<UdpSocket>, outer: Arc<UdpSocket>, to: SocketAddr) {
    let mut bytes = vec![0; 65_536];
    loop {
        if let Ok(length) = way.recv(&mut bytes).await {
            let _lost = outer.send_to(&bytes[..length], to).await;
        }
    }
}

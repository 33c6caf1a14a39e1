//! A mesh from nothing over real QUIC sockets on loopback: one node founds it, others join with
//! its line, each at another member, and membership shows them all.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use flocker_base::{Name, SystemClock, TokenId};
use flocker_quic::{Endpoint, EndpointConfig};
use redb::Database;
use redb::backends::InMemoryBackend;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::*;
use crate::control::{Admission, Control};
use crate::identity::{Authority, NodeIdentity};
use crate::join::{
    Admitted, Doorkeeper, JoinString, KnownNode, Newcomer, Roster, Token, TokenSource, join,
};
use crate::model::TokenSpec;

/// What the map would be: shared by the nodes of one process.
struct Map {
    token: TokenSpec,
    book: AddressBookStore,
    names: Mutex<BTreeMap<Name, StoreId>>,
    removed: Arc<Mutex<Option<StoreId>>>,
}

impl TokenSource for Map {
    fn find(&self, id: TokenId) -> Option<TokenSpec> {
        (id == self.token.id).then(|| self.token.clone())
    }
}

impl Roster for Map {
    fn name_holder(&self, name: &Name) -> Option<StoreId> {
        self.names.lock().expect("lock").get(name).copied()
    }

    fn is_removed(&self, store: StoreId) -> bool {
        *self.removed.lock().expect("lock") == Some(store)
    }

    fn known(&self) -> Vec<KnownNode> {
        self.book.known()
    }

    fn admit(&self, admitted: &Admitted) -> Result<(), String> {
        let node = &admitted.node;
        self.names.lock().expect("lock").insert(node.name.clone(), node.store);
        let learnt = self.book.learn(node.store, &[admitted.control], &[admitted.data]);
        learnt.map(|_| ()).map_err(|e| e.to_string())
    }
}

struct Removals(Arc<Mutex<Option<StoreId>>>);

impl Admission for Removals {
    fn is_removed(&self, store: StoreId) -> bool {
        *self.0.lock().expect("lock") == Some(store)
    }
}

struct Node {
    at: SocketAddr,
    membership: Membership,
    book: AddressBookStore,
}

#[derive(Default)]
struct Mesh {
    tasks: JoinSet<()>,
    removed: Arc<Mutex<Option<StoreId>>>,
}

fn store(id: u8) -> StoreId {
    StoreId::from_bytes([id; 16])
}

fn name(text: &str) -> Name {
    Name::new(text).expect("name")
}

fn book() -> AddressBookStore {
    let database = Database::builder().create_with_backend(InMemoryBackend::new());
    AddressBookStore::open(Arc::new(database.expect("opens"))).expect("opens")
}

impl Mesh {
    fn start(
        &mut self,
        identity: &NodeIdentity,
        bind: SocketAddr,
        token: &TokenSpec,
        known: &[KnownNode],
    ) -> Node {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let book = book();
        book.learn_all(known).expect("learnt");
        let config = EndpointConfig { admit_joiners: true, ..EndpointConfig::control(bind) };
        let endpoint = Endpoint::bind(&config, &identity.to_quic()).expect("binds");
        let at = endpoint.local_addr();
        let me = identity.store();
        book.learn(me, &[at], &[at]).expect("learnt");
        let map = Arc::new(Map {
            token: token.clone(),
            book: book.clone(),
            names: Mutex::default(),
            removed: Arc::clone(&self.removed),
        });
        let removals = Arc::new(Removals(Arc::clone(&self.removed)));
        let control = Control::new(endpoint, book.control(), removals);
        let local = LocalNode {
            cluster: identity.cluster(),
            incarnation: Incarnation(1),
            facts: NodeFacts {
                name: name(&format!("n{}", me.as_bytes()[0])),
                region: name("eu"),
                control: at,
                data: at,
                http: None,
                version: "0.1.0".to_owned(),
                zone: None,
                public: None,
                capacity: None,
            },
            seeds: known.iter().map(|n| n.store).collect(),
            announce_after: Duration::ZERO,
        };
        let (membership, handlers) = Membership::new(
            MembershipConfig::default(),
            local,
            control.wire(),
            book.clone(),
            Arc::clone(&clock),
        )
        .expect("starts");
        let (lookout, (kind, watch)) =
            lookout(Scope::Region, membership.clone(), control.wire(), Arc::clone(&clock), 1);
        let keeper = Doorkeeper::new(identity.clone(), Arc::<Map>::clone(&map), map, clock);
        let control = handlers
            .into_iter()
            .fold(control, |control, (kind, handler)| control.handle(kind, handler));
        let control = control.handle(kind, watch).joiners(Arc::new(keeper));
        self.tasks.spawn(lookout.run(CancellationToken::new()));
        self.tasks.spawn(control.run(CancellationToken::new()));
        let running = membership.clone();
        self.tasks.spawn(async move {
            running.run(CancellationToken::new()).await.expect("goes on");
        });
        Node { at, membership, book }
    }
}

async fn wait(node: &Node, what: &str, is_so: impl Fn(&View) -> bool) {
    let mut view = node.membership.view();
    let reached = timeout(Duration::from_secs(20), view.wait_for(|v| is_so(v))).await;
    assert!(reached.is_ok(), "{what}: {:#?}", *node.membership.view().borrow());
}

fn live(view: &View) -> usize {
    view.nodes.values().filter(|m| m.liveness == Liveness::Live).count()
}

#[tokio::test]
async fn a_mesh_grows_from_one_line_and_a_removed_node_is_suspected() {
    let now = SystemClock.wall();
    let cluster = ClusterId::from_bytes([1; 16]);
    let authority = Authority::generate(cluster, now).expect("authority");
    let spec =
        TokenSpec::new(TokenId::from_bytes([3; 16]), [4; 32], now + Duration::from_secs(600));
    let token = Token::new(&spec, &authority);
    let founder = NodeIdentity::found(cluster, store(1), authority, now).expect("identity");
    let mut mesh = Mesh::default();
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut nodes = vec![mesh.start(&founder, loopback, &spec, &[])];
    for id in 2..=4 {
        // The newest member admits the next one: no seed is special.
        let last = nodes.last().expect("some");
        let text = format!("{token}@{}", last.at);
        let line: JoinString = text.parse().expect("a line");
        let at = std::net::UdpSocket::bind(loopback).and_then(|s| s.local_addr()).expect("free");
        let newcomer = Newcomer {
            store: store(id),
            name: name(&format!("n{id}")),
            region: name("eu"),
            control: at,
            data: at,
            takes: crate::join::Takes::default(),
        };
        let joined = join(&line, &newcomer).await.expect("joined");
        assert_eq!(joined.known[0].store, store(id - 1));
        assert!(joined.known[0].control.contains(&last.at));
        nodes.push(mesh.start(&joined.identity, at, &spec, &joined.known));
        for node in &nodes {
            wait(node, "all live", |v| {
                v.nodes.len() == usize::from(id) && live(v) == usize::from(id)
            })
            .await;
        }
    }
    let known: Vec<SocketAddr> = nodes[0].book.control().addresses(store(4));
    assert_eq!(known, [nodes[3].at], "who joined elsewhere is in the founder's book");
    *mesh.removed.lock().expect("lock") = Some(store(4));
    for node in &nodes[..3] {
        wait(node, "suspected", |v| v.nodes[&store(4)].liveness == Liveness::Suspected).await;
        wait(node, "the others stay", |v| live(v) == 3).await;
    }
}

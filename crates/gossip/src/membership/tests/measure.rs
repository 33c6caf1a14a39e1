//! What membership costs and how fast news cross regions, in virtual time. Figures, not checks.

use std::sync::atomic::AtomicU64;

use super::*;
use crate::control::{Wire, WireError};

/// Counts what a node sends.
struct Counted {
    wire: Arc<dyn Wire>,
    bytes: Arc<AtomicU64>,
    messages: Arc<AtomicU64>,
}

impl Counted {
    fn count(&self, bytes: usize) {
        self.bytes.fetch_add(u64::try_from(bytes).expect("small"), Ordering::Relaxed);
        self.messages.fetch_add(1, Ordering::Relaxed);
    }
}

#[async_trait::async_trait]
impl Wire for Counted {
    fn local(&self) -> StoreId {
        self.wire.local()
    }

    fn send(&self, to: StoreId, kind: Kind, payload: Bytes) {
        self.count(payload.len());
        self.wire.send(to, kind, payload);
    }

    async fn call(
        &self,
        to: StoreId,
        kind: Kind,
        payload: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, WireError> {
        self.count(payload.len());
        let answer = self.wire.call(to, kind, payload, deadline).await;
        if let Ok(answer) = &answer {
            // The peer's, but as many are asked as ask.
            self.count(answer.len());
        }
        answer
    }
}

fn wide_store(n: u16) -> StoreId {
    let mut bytes = [7; 16];
    bytes[..2].copy_from_slice(&n.to_be_bytes());
    StoreId::from_bytes(bytes)
}

/// What is measured.
struct Measured {
    store: StoreId,
    region: String,
    membership: Membership,
    kill: CancellationToken,
}

#[derive(Default)]
struct Count {
    bytes: Arc<AtomicU64>,
    messages: Arc<AtomicU64>,
}

impl Count {
    fn now(&self) -> (u64, u64) {
        (self.bytes.load(Ordering::Relaxed), self.messages.load(Ordering::Relaxed))
    }
}

fn start(mesh: &Mesh, count: &Count, tasks: &mut JoinSet<()>, n: u16, region: String) -> Measured {
    let mut facts = facts_in(&region, &format!("node-{n}"), 1);
    let [high, low] = n.to_be_bytes();
    facts.control = std::net::SocketAddr::from(([10, 0, high, low], 4523));
    facts.data = std::net::SocketAddr::from(([10, 0, high, low], 4524));
    let local = LocalNode {
        cluster: ClusterId::from_bytes([9; 16]),
        incarnation: Incarnation(1),
        facts,
        seeds: vec![wide_store(0)],
        announce_after: Duration::ZERO,
    };
    let store = wide_store(n);
    let (bytes, messages) = (Arc::clone(&count.bytes), Arc::clone(&count.messages));
    let wire: Arc<dyn Wire> = Arc::new(Counted { wire: mesh.net.node(store), bytes, messages });
    let (config, clock) = (MembershipConfig::default(), Arc::clone(&mesh.clock));
    let (membership, handlers) =
        Membership::new(config, local, Arc::clone(&wire), Mesh::book(), clock).expect("starts");
    for (kind, handler) in handlers {
        mesh.net.handle(store, kind, handler);
    }
    let (kill, running) = (CancellationToken::new(), membership.clone());
    for (scope, seed) in [(Scope::Region, n), (Scope::Bridges, !n)] {
        let (wire, clock) = (Arc::clone(&wire), Arc::clone(&mesh.clock));
        let (watch, (kind, handler)) =
            lookout(scope, membership.clone(), wire, clock, u64::from(seed));
        mesh.net.handle(store, kind, handler);
        tasks.spawn(watch.run(kill.clone()));
    }
    let killed = kill.clone();
    tasks.spawn(async move {
        tokio::select! {
            _ = running.run(CancellationToken::new()) => {}
            () = killed.cancelled() => {}
        }
    });
    Measured { store, region, membership, kill }
}

async fn wait(node: &Measured, is_so: impl Fn(&Arc<View>) -> bool) {
    let mut view = node.membership.view();
    let reached = timeout(Duration::from_secs(120), view.wait_for(|v| is_so(v))).await;
    reached.expect("in time").expect("runs");
}

async fn measure(regions: u16, each: u16) {
    let (mesh, count, mut tasks) = (Mesh::new(), Count::default(), JoinSet::new());
    let nodes: Vec<_> = (0..regions * each)
        .map(|n| start(&mesh, &count, &mut tasks, n, format!("r{}", n % regions)))
        .collect();
    let began = Instant::now();
    for node in &nodes {
        wait(node, |v| {
            v.nodes.len() == nodes.len() && v.nodes.values().all(|m| m.liveness == Liveness::Live)
        })
        .await;
    }
    let converged = began.elapsed();
    tokio::time::sleep(Duration::from_secs(40)).await;
    let idle = Duration::from_secs(20);
    let before = count.now();
    tokio::time::sleep(idle).await;
    let after = count.now();
    let share = u64::try_from(nodes.len()).expect("small") * idle.as_secs();
    let (bytes, messages) = ((after.0 - before.0) / share, (after.1 - before.1) / share);
    let is_bridge = |node: &&Measured| node.membership.inner.between_inlet.is_open();
    let victim = nodes.iter().find(|node| !is_bridge(node)).expect("some");
    mesh.net.remove(victim.store);
    victim.kill.cancel();
    let died = Instant::now();
    let (mut own, mut others) = (Duration::ZERO, Duration::ZERO);
    let living = nodes.iter().filter(|node| node.store != victim.store);
    let (near, far): (Vec<_>, Vec<_>) = living.partition(|node| node.region == victim.region);
    for node in near.into_iter().chain(far) {
        wait(node, |v| v.nodes[&victim.store].liveness == Liveness::Suspected).await;
        let latest = if node.region == victim.region { &mut own } else { &mut others };
        *latest = (*latest).max(died.elapsed());
    }
    println!(
        "{regions} regions of {each}: all see all after {converged:?}; idle {bytes} B/s and \
         {messages} messages/s a node; a death is known in its region after {own:?}, in all \
         others after {others:?} or sooner"
    );
}

#[tokio::test(start_paused = true)]
#[ignore = "run by scripts/measure-membership: a measurement"]
async fn ten_regions_of_ten() {
    measure(10, 10).await;
}

#[tokio::test(start_paused = true)]
#[ignore = "run by scripts/measure-membership: a measurement of some minutes"]
async fn ten_regions_of_thirty() {
    measure(10, 30).await;
}

#[tokio::test(start_paused = true)]
#[ignore = "run by scripts/measure-membership: a measurement of an hour or so"]
async fn ten_regions_of_a_hundred() {
    measure(10, 100).await;
}

//! What membership costs and how fast news cross regions, in virtual time. Figures, not checks.

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::*;
use crate::control::{Wire, WireError};

/// What nodes have sent.
#[derive(Clone, Default)]
struct Count {
    /// Messages and bytes of each kind.
    kinds: Arc<Mutex<BTreeMap<String, (u64, u64)>>>,
}

impl Count {
    fn add(&self, kind: Kind, bytes: usize) {
        let mut kinds = self.kinds.lock().expect("no panic");
        let (messages, sum) = kinds.entry(format!("{kind:?}")).or_default();
        *messages += 1;
        *sum += u64::try_from(bytes).expect("small");
    }

    /// What was sent so far, and is counted no more.
    fn take(&self) -> BTreeMap<String, (u64, u64)> {
        std::mem::take(&mut *self.kinds.lock().expect("no panic"))
    }
}

/// Counts what a node sends.
struct Counted {
    wire: Arc<dyn Wire>,
    count: Count,
}

#[async_trait::async_trait]
impl Wire for Counted {
    fn local(&self) -> StoreId {
        self.wire.local()
    }

    fn send(&self, to: StoreId, kind: Kind, payload: Bytes) {
        self.count.add(kind, payload.len());
        self.wire.send(to, kind, payload);
    }

    async fn call(
        &self,
        to: StoreId,
        kind: Kind,
        payload: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, WireError> {
        self.count.add(kind, payload.len());
        let answer = self.wire.call(to, kind, payload, deadline).await;
        if let Ok(answer) = &answer {
            // The peer's, but as many are asked as ask.
            self.count.add(kind, answer.len());
        }
        answer
    }
}

fn wide_store(n: u16) -> StoreId {
    let mut bytes = [7; 16];
    bytes[..2].copy_from_slice(&n.to_be_bytes());
    StoreId::from_bytes(bytes)
}

/// What this process has used.
struct Usage {
    busy: Duration,
    /// KiB.
    resident: usize,
}

impl Usage {
    fn now() -> Self {
        let busy = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        let busy = Duration::try_from(busy).expect("some");
        let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
        let number = line.split_whitespace().next().and_then(|text| text.parse().ok());
        Self { busy, resident: number.expect("a number") }
    }
}

/// What is measured.
struct Measured {
    store: StoreId,
    region: String,
    membership: Membership,
    kill: CancellationToken,
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
    let wire: Arc<dyn Wire> =
        Arc::new(Counted { wire: mesh.net.node(store), count: count.clone() });
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
    let runs = nodes.iter().map(|node| node.membership.inner.between_inlet.states()).max();
    tokio::time::sleep(Duration::from_secs(120)).await;
    let idle = Duration::from_secs(60);
    let busy = Usage::now().busy;
    count.take();
    tokio::time::sleep(idle).await;
    let (sent, usage) = (count.take(), Usage::now());
    let share_of_core = 100.0 * (usage.busy - busy).as_secs_f64()
        / (idle.as_secs_f64() * f64::from(regions * each));
    let memory = usage.resident / nodes.len();
    let each_second = |sum: u64| {
        f64::from(u32::try_from(sum).expect("small"))
            / (f64::from(regions * each) * idle.as_secs_f64())
    };
    let kind = |(kind, (messages, bytes)): (&String, &(u64, u64))| {
        format!("{:.2} of {kind} with {:.1} B", each_second(*messages), each_second(*bytes))
    };
    let kinds: Vec<_> = sent.iter().map(kind).collect();
    let messages = each_second(sent.values().map(|(messages, _)| messages).sum());
    let bytes = each_second(sent.values().map(|(_, bytes)| bytes).sum());
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
        "{regions} regions of {each}: all see all after {converged:?}, with {} states in the pool \
         between regions; idle {bytes:.0} B/s, {messages:.2} messages/s ({}), {share_of_core:.3} % \
         of a core and {memory} KiB a node; a death is known in its region after {own:?}, in all others \
         after {others:?} or sooner",
        runs.unwrap_or_default(),
        kinds.join(", ")
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
#[ignore = "run by scripts/measure-membership: a measurement of some minutes"]
async fn ten_regions_of_a_hundred() {
    measure(10, 100).await;
}

#[tokio::test(start_paused = true)]
#[ignore = "run by scripts/measure-membership: a measurement of an hour or so"]
async fn ten_regions_of_three_hundred() {
    measure(10, 300).await;
}

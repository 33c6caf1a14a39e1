//! Three drivers over an in-memory network, with real disks and the real clock.

use super::*;
use crate::control::MemoryNet;
use crate::lease::event::{LeaseView, VolumeFacts};
use crate::model::VoterConfig;
use flocker_base::Epoch;
use flocker_base::{Head, SystemClock, WallTime};
use std::collections::BTreeSet;
use tokio::task::JoinSet;

struct Node {
    store: StoreId,
    leases: Leases,
    events: mpsc::Receiver<LeaseEvent>,
    shutdown: CancellationToken,
}

struct Cluster {
    net: MemoryNet,
    folder: tempfile::TempDir,
    tasks: JoinSet<()>,
}

const DEADLINE: Duration = Duration::from_secs(20);

fn volume() -> VolumeId {
    VolumeId::from_bytes([42; 16])
}

impl Cluster {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        Self { net: MemoryNet::new(), folder, tasks: JoinSet::new() }
    }

    fn boot(&mut self, number: u8) -> Node {
        let path = self.folder.path().join(format!("{number}.redb"));
        let db = StateDb::open(&path, WallTime::from_millis(1), [number; 10]).expect("open");
        let store = db.store_id();
        let wire = self.net.node(store);
        let clock = Arc::new(SystemClock);
        let (leases, driver, handler) =
            start(LeaseConfig::default(), &db, wire, clock, u64::from(number)).expect("start");
        self.net.handle(store, Kind::Lease, handler);
        let shutdown = CancellationToken::new();
        self.tasks.spawn(driver.run(shutdown.clone()));
        let events = leases.events();
        Node { store, leases, events, shutdown }
    }
}

async fn until(node: &mut Node, what: impl Fn(&LeaseEvent) -> bool) -> LeaseEvent {
    tokio::time::timeout(DEADLINE, async {
        loop {
            let event = node.events.recv().await.expect("driver runs");
            if what(&event) {
                return event;
            }
        }
    })
    .await
    .expect("the event comes")
}

fn observe(nodes: &[&Node], voters: &BTreeSet<StoreId>) {
    for node in nodes {
        node.leases.observe(VolumeFacts {
            volume: volume(),
            config: VoterConfig::birth(voters.clone()),
            lag_limit: Duration::from_secs(60),
        });
        node.leases.set_local_head(volume(), Head::NONE, WallTime::default());
    }
}

fn held(view: &LeaseView) -> Epoch {
    view.held.expect("held").epoch
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_is_won_handed_over_kept_across_a_restart_and_taken_over() {
    let mut cluster = Cluster::new();
    let (mut a, mut b, mut c) = (cluster.boot(1), cluster.boot(2), cluster.boot(3));
    let voters = BTreeSet::from([a.store, b.store, c.store]);
    observe(&[&a, &b, &c], &voters);
    let clock = SystemClock;

    a.leases.campaign(volume(), 0, "birth");
    until(&mut a, |event| matches!(event, LeaseEvent::Won { .. })).await;
    let first = held(&a.leases.view(volume()).expect("view"));
    assert!(a.leases.holds(volume(), first, clock.boot()).is_some());

    // Planned: B campaigns on the release it hears of.
    let began = clock.boot();
    let successor = b.store;
    let (released, ()) = tokio::join!(a.leases.release(volume(), Some(successor)), async {
        until(&mut b, |event| {
            matches!(event, LeaseEvent::HolderReleased { successor: Some(s), .. } if *s == successor)
        })
        .await;
        b.leases.campaign(volume(), 0, "handed over");
        until(&mut b, |event| matches!(event, LeaseEvent::Won { .. })).await;
    });
    let took = clock.boot() - began;
    assert_eq!(released, Ok(first));
    assert_eq!(a.leases.holds(volume(), first, clock.boot()), None);
    let second = held(&b.leases.view(volume()).expect("view"));
    assert!(second > first);
    println!("handed over in {took:?}");
    assert!(took < Duration::from_millis(2_000), "{took:?}");

    // A restart within the lease keeps the epoch.
    b.shutdown.cancel();
    cluster.tasks.join_next().await.expect("stopped").expect("no panic");
    drop(b);
    let mut b = cluster.boot(2);
    assert_eq!(b.store, successor);
    observe(&[&b], &voters);
    let won = until(&mut b, |event| matches!(event, LeaseEvent::Won { .. })).await;
    assert!(matches!(won, LeaseEvent::Won { epoch, .. } if epoch == second), "{won:?}");

    // Unplanned: C takes over once the promise to B has ended.
    b.shutdown.cancel();
    let dead = clock.boot();
    until(&mut c, |event| matches!(event, LeaseEvent::HolderSilent { .. })).await;
    let silent = clock.boot();
    c.leases.campaign(volume(), 0, "holder silent");
    until(&mut c, |event| matches!(event, LeaseEvent::Won { .. })).await;
    println!("silent after {:?}, won {:?} later", silent - dead, clock.boot() - silent);
    assert!(held(&c.leases.view(volume()).expect("view")) > second);
    assert!(c.leases.floor(volume()) > second);
    assert_eq!(a.leases.release(volume(), None).await, Err(LeaseError::NotHolder(volume())));
    let _ = a.events.try_recv();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lone_voter_holds_without_end_until_it_gets_company() {
    let mut cluster = Cluster::new();
    let (mut a, b, c) = (cluster.boot(1), cluster.boot(2), cluster.boot(3));
    observe(&[&a], &BTreeSet::from([a.store]));
    a.leases.campaign(volume(), 0, "birth");
    let won = until(&mut a, |event| matches!(event, LeaseEvent::Won { .. })).await;
    assert!(matches!(won, LeaseEvent::Won { until: BootTime::NEVER, .. }), "{won:?}");
    let voters = BTreeSet::from([a.store, b.store, c.store]);
    let changed = a.leases.change_voters(volume(), voters.clone().into()).await.expect("changed");
    assert_eq!((changed.voters, changed.joint), (voters.into(), None));
    let until = a.leases.view(volume()).expect("view").held.expect("held").until;
    assert!(until < BootTime::NEVER && until > SystemClock.boot());
}

#[test]
fn a_slow_consumer_gets_the_newest_of_each_kind() {
    let mut backlog = Backlog::default();
    let renewed = |n| LeaseEvent::Renewed {
        volume: volume(),
        epoch: Epoch::new(0, 1),
        until: BootTime::from_millis(n),
    };
    let freeze = LeaseEvent::Freeze { volume: volume(), epoch: Epoch::new(0, 1) };
    for n in 0..1_000 {
        backlog.push(renewed(n));
        backlog.push(freeze.clone());
    }
    backlog.push(renewed(1_000));
    assert_eq!(backlog.pop(), Some(freeze));
    assert_eq!(backlog.pop(), Some(renewed(1_000)));
    assert!(backlog.is_empty());
}

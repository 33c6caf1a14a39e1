//! Maps that meet over a network in memory: loss, partitions, a newcomer, hostile bytes. Time is
//! virtual.

use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::control::{Handler, Kind as Channel, MemoryNet, Wire, WireError};
use crate::map::record::{Intent, IntentState, Placed};
use crate::map::stamp::Stamp;
use crate::map::sync::{Peer, PeerView, build};

const STEP: Duration = Duration::from_millis(100);

/// A wire that loses some of what is sent, and checks the size of all.
struct Lossy {
    inner: Arc<dyn Wire>,
    random: Mutex<StdRng>,
    loss_percent: u32,
    lost: Arc<AtomicUsize>,
    calls: Arc<AtomicUsize>,
}

impl Lossy {
    fn loses(&self) -> bool {
        let lost = self.random.lock().expect("no panic").random_range(0..100) < self.loss_percent;
        if lost {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        lost
    }
}

fn most(kind: Channel) -> usize {
    match kind {
        Channel::MapPush => 1 << 20,
        Channel::MapPull => 4 << 20,
        _ => 0,
    }
}

#[async_trait]
impl Wire for Lossy {
    fn local(&self) -> StoreId {
        self.inner.local()
    }

    fn send(&self, to: StoreId, kind: Channel, payload: Bytes) {
        assert!(payload.len() <= most(kind), "{} bytes in one frame", payload.len());
        if !self.loses() {
            self.inner.send(to, kind, payload);
        }
    }

    async fn call(
        &self,
        to: StoreId,
        kind: Channel,
        payload: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, WireError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if self.loses() {
            return Err(WireError::Refused("lost".to_owned()));
        }
        let answer = self.inner.call(to, kind, payload, deadline).await?;
        assert!(answer.len() <= most(kind), "{} bytes in one answer", answer.len());
        Ok(answer)
    }
}

/// What membership would say: everyone on our side, with the root that each announced.
struct Side {
    maps: Vec<Map>,
    cut: Arc<Mutex<Vec<StoreId>>>,
    me: StoreId,
    announce: bool,
}

impl PeerView for Side {
    fn region(&self) -> Name {
        name("eu")
    }

    fn live(&self) -> Vec<Peer> {
        let cut = self.cut.lock().expect("no panic");
        let mine = self.maps.iter().find(|map| map.actor() == self.me).expect("in it").root();
        self.maps
            .iter()
            .filter(|map| cut.contains(&map.actor()) == cut.contains(&self.me))
            .map(|map| Peer {
                store: map.actor(),
                region: self.region(),
                root: Some(if self.announce { map.root() } else { mine }),
            })
            .collect()
    }
}

struct Mesh {
    maps: Vec<Map>,
    net: MemoryNet,
    clock: Arc<ManualClock>,
    cut: Arc<Mutex<Vec<StoreId>>>,
    lost: Arc<AtomicUsize>,
    calls: Arc<AtomicUsize>,
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

impl Mesh {
    fn new(count: u8, loss_percent: u32, announce: bool) -> Self {
        let clock = clock();
        let maps: Vec<Map> = (1..=count)
            .map(|n| Map::open(memory_db(), store_id(n), clock.clone()).expect("opens"))
            .collect();
        let mut mesh = Self {
            maps,
            net: MemoryNet::new(),
            clock,
            cut: Arc::default(),
            lost: Arc::default(),
            calls: Arc::default(),
            tasks: JoinSet::new(),
            stop: CancellationToken::new(),
        };
        for map in mesh.maps.clone() {
            mesh.start(map, loss_percent, announce);
        }
        mesh
    }

    fn start(&mut self, map: Map, loss_percent: u32, announce: bool) {
        let me = map.actor();
        let seed = u64::from(me.as_bytes()[0]);
        let wire: Arc<dyn Wire> = Arc::new(Lossy {
            inner: self.net.node(me),
            random: Mutex::new(StdRng::seed_from_u64(seed)),
            loss_percent,
            lost: Arc::clone(&self.lost),
            calls: Arc::clone(&self.calls),
        });
        let maps = self.maps.clone();
        let side = Side { maps, cut: Arc::clone(&self.cut), me, announce };
        let (sync, push, pull) = build(map, wire, Arc::new(side), seed);
        self.net.handle(me, Channel::MapPush, push);
        self.net.handle(me, Channel::MapPull, pull);
        let stop = self.stop.clone();
        self.tasks.spawn(async move { sync.run(stop).await.expect("no disk fails here") });
    }

    /// Cuts the first stores off from the rest; none heals all.
    fn partition(&self, first: &[u8]) {
        let cut: Vec<StoreId> = first.iter().map(|n| store_id(*n)).collect();
        for a in &self.maps {
            for b in &self.maps {
                if a.actor() == b.actor() {
                    continue;
                }
                if cut.contains(&a.actor()) == cut.contains(&b.actor()) {
                    self.net.heal(a.actor(), b.actor());
                } else {
                    self.net.cut(a.actor(), b.actor());
                }
            }
        }
        *self.cut.lock().expect("no panic") = cut;
    }

    /// Lets this much virtual time pass, or less once `done`.
    async fn run_until(&self, most: Duration, done: impl Fn(&Self) -> bool) -> bool {
        let mut passed = Duration::ZERO;
        while passed < most {
            if done(self) {
                return true;
            }
            tokio::time::sleep(STEP).await;
            self.clock.advance(STEP);
            passed += STEP;
        }
        done(self)
    }

    fn is_one(&self) -> bool {
        self.maps.windows(2).all(|pair| pair[0].root() == pair[1].root())
    }

    async fn end(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("no task panics");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn five_nodes_meet_through_loss_and_a_partition() {
    let mesh = Mesh::new(5, 30, true);
    let put = |at: usize, number: u32| {
        mesh.maps[at]
            .edit([Edit::PutVolume(volume(number, &format!("v{number}")))])
            .expect("edits");
    };
    for round in 0..10_u32 {
        put(usize::try_from(round % 5).expect("small"), round);
        mesh.run_until(STEP, |_| false).await;
    }
    assert!(mesh.run_until(Duration::from_secs(60), Mesh::is_one).await, "with loss alone");
    mesh.partition(&[1, 2]);
    for round in 10..30_u32 {
        put(usize::try_from(round % 5).expect("small"), round);
        let mut spec = volume(1, "v1");
        spec.policy.local_replicas = u8::try_from(round).expect("small");
        mesh.maps[usize::try_from(round % 5).expect("small")]
            .edit([Edit::PutVolume(spec)])
            .expect("edits");
        mesh.run_until(STEP, |_| false).await;
    }
    mesh.maps[4].edit([Edit::DeleteVolume(volume_id(2))]).expect("deletes");
    mesh.run_until(Duration::from_secs(20), |_| false).await;
    assert_eq!(mesh.maps[0].root(), mesh.maps[1].root(), "one side agrees");
    assert_eq!(mesh.maps[2].root(), mesh.maps[4].root(), "the other too");
    assert_ne!(mesh.maps[0].root(), mesh.maps[4].root(), "the partition held");
    mesh.partition(&[]);
    assert!(mesh.run_until(Duration::from_secs(60), Mesh::is_one).await, "healed");
    assert!(mesh.lost.load(Ordering::Relaxed) > 20, "messages were lost");
    for map in &mesh.maps {
        let view = map.view();
        assert_eq!(view.volumes().count(), 29);
        assert!(view.is_volume_deleted(&volume_id(2)));
        assert_eq!(view.conflicts().count(), 1, "written on both sides");
    }
    mesh.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_push_alone_reaches_nodes_that_the_writer_does_not_push_to() {
    // Nobody sees another root, so nobody pulls: what spreads is pushed and passed on.
    let mesh = Mesh::new(9, 0, false);
    for number in 0..20 {
        mesh.maps[0].edit([Edit::PutVolume(volume(number, &format!("v{number}")))]).expect("edits");
        mesh.run_until(Duration::from_secs(1), |_| false).await;
    }
    let reached: usize = mesh.maps.iter().map(|map| map.view().volumes().count()).sum();
    assert_eq!(mesh.calls.load(Ordering::Relaxed), 0, "nothing was pulled");
    assert!(reached > 20 * 7, "{reached} of 180: more than the writer's own three pushes");
    mesh.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_gets_ten_thousand_records_in_a_few_pages() {
    let mut mesh = Mesh::new(1, 0, true);
    let edits = |from: u32, to: u32| -> Vec<Edit> {
        (from..to).map(|n| Edit::PutVolume(volume(n, &format!("v{n}")))).collect()
    };
    mesh.maps[0].edit(edits(0, 10_000)).expect("edits");
    let newcomer = Map::open(memory_db(), store_id(2), mesh.clock.clone()).expect("opens");
    mesh.maps.push(newcomer.clone());
    mesh.start(newcomer, 0, true);
    assert!(mesh.run_until(Duration::from_secs(30), Mesh::is_one).await);
    assert_eq!(mesh.maps[1].view().records(), 10_000);
    let calls = mesh.calls.swap(0, Ordering::Relaxed);
    assert!(calls < 12, "{calls} calls");
    // From then on one change costs what one change costs.
    mesh.partition(&[1]);
    mesh.maps[0].edit(edits(10_000, 10_001)).expect("edits");
    mesh.run_until(Duration::from_secs(2), |_| false).await;
    mesh.partition(&[]);
    // What was asked in vain meanwhile depends on how fast the machine is.
    mesh.calls.store(0, Ordering::Relaxed);
    assert!(mesh.run_until(Duration::from_secs(30), Mesh::is_one).await);
    let calls = mesh.calls.load(Ordering::Relaxed);
    assert!(calls <= 8, "{calls} calls for one record");
    mesh.end().await;
}

#[tokio::test(start_paused = true)]
async fn unknown_kinds_and_fields_cross_store_and_wire() {
    let mesh = Mesh::new(3, 0, true);
    let mut register = register::Register::default();
    register.write(store_id(9), Stamp::from_u64(5), b"new".to_vec());
    let state = IntentState::Live([(1, register.clone()), (900, register)].into());
    let strange = RecordKey::new(Kind(4_000), b"id");
    let said = Placed {
        epoch: Epoch::new(0, 1),
        sequence: 1,
        holder: store_id(1),
        content: [(9, vec![9])].into(),
    };
    let news = vec![
        (strange, Record::Intent(Intent { life: 0, state })),
        (RecordKey::new(Kind(4_001), b"id"), Record::Placed(said)),
    ];
    mesh.maps[0].merge(store_id(9), news).expect("merges");
    assert!(mesh.run_until(Duration::from_secs(30), Mesh::is_one).await);
    assert_eq!(copy(&mesh.maps[2]), copy(&mesh.maps[0]));
    assert_eq!(mesh.maps[2].view().records(), 2);
    mesh.end().await;
}

#[tokio::test(start_paused = true)]
async fn large_changes_are_split_into_frames() {
    let mesh = Mesh::new(2, 0, false);
    let web = |n: u8| {
        let mut web = service(n, &format!("s{n}"));
        web.environment.insert("BIG".to_owned(), "x".repeat(30_000));
        Edit::PutService(web)
    };
    // Six megabytes in one change: the wire asserts the size of each frame.
    mesh.maps[0].edit((0..200).map(web).collect::<Vec<_>>()).expect("edits");
    assert!(mesh.run_until(Duration::from_secs(30), Mesh::is_one).await);
    assert_eq!(mesh.calls.load(Ordering::Relaxed), 0, "all came by push");
    mesh.end().await;
}

/// The two handlers of a map that syncs with nobody, and the running shell.
async fn alone(map: &Map) -> (Arc<dyn Handler>, Arc<dyn Handler>, JoinSet<()>) {
    let net = MemoryNet::new();
    let maps = vec![map.clone()];
    let side = Side { maps, cut: Arc::default(), me: map.actor(), announce: true };
    let (sync, push, pull) = build(map.clone(), net.node(map.actor()), Arc::new(side), 1);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { sync.run(CancellationToken::new()).await.expect("runs") });
    tokio::task::yield_now().await;
    (push, pull, tasks)
}

#[tokio::test(start_paused = true)]
async fn hostile_bytes_are_refused_and_change_nothing() {
    let (map, _) = map(1);
    map.edit([Edit::PutVolume(volume(1, "pg"))]).expect("edits");
    let root = map.root();
    let (push, pull, _tasks) = alone(&map).await;
    let mut random = StdRng::seed_from_u64(5);
    let good = {
        let (other, _) = super::map(2);
        other.edit([Edit::PutVolume(volume(2, "ok"))]).expect("edits");
        let page = other.inner.store.page(None, usize::MAX).expect("reads");
        let (key, bytes) = page[0].clone();
        (Bytes::copy_from_slice(key.as_bytes()), Bytes::from(bytes))
    };
    let framed = |records: &[(Bytes, Bytes)]| {
        Bytes::from(postcard::to_extend(&(0_u8, records), vec![1_u8]).expect("encodes"))
    };
    let mut hostile: Vec<Bytes> = vec![Bytes::new(), Bytes::from_static(&[9, 9, 9])];
    // A sound record beside a broken one: the whole message is refused.
    hostile.push(framed(&[good.clone(), (good.0.clone(), Bytes::from_static(b"\x01broken"))]));
    hostile.push(framed(&[good.clone(), (Bytes::from_static(b"k"), good.1.clone())]));
    // A length that promises more than any memory holds.
    hostile.push(Bytes::from_static(&[1, 0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1]));
    for _ in 0..2_000 {
        let mut bytes = framed(std::slice::from_ref(&good)).to_vec();
        let cut = random.random_range(0..bytes.len());
        bytes.truncate(cut);
        hostile.push(bytes.into());
        let noise: Vec<u8> = (0..random.random_range(0..300)).map(|_| random.random()).collect();
        hostile.push(noise.into());
    }
    for bytes in hostile {
        push.on_message(store_id(66), bytes.clone()).await;
        let _refused_or_answered = pull.on_call(store_id(66), bytes).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(map.root(), root);
    }
    push.on_message(store_id(2), framed(&[good])).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_ne!(map.root(), root, "the good message alone was good, and the loop still runs");
}

#[tokio::test(start_paused = true)]
async fn questions_without_sense_are_refused_with_a_reason() {
    let (map, _) = map(1);
    let (_push, pull, _tasks) = alone(&map).await;
    // Request::Summaries with one way too many, with a way too deep, with a step too wide.
    let many = (0_u8, vec![vec![0_u8]; 257]);
    let deep = (0_u8, vec![vec![0_u8; 33]]);
    let wide = (0_u8, vec![vec![16_u8]]);
    for question in [many, deep, wide] {
        let bytes = postcard::to_extend(&question, vec![1_u8]).expect("encodes");
        assert!(pull.on_call(store_id(66), bytes.into()).await.is_err());
    }
    let sound = postcard::to_extend(&(0_u8, vec![vec![15_u8; 32]]), vec![1_u8]).expect("encodes");
    assert!(pull.on_call(store_id(66), sound.into()).await.is_ok());
    let newer = pull.on_call(store_id(66), Bytes::from_static(&[2, 0])).await;
    assert!(newer.expect_err("refused").contains("version 2"));
    assert!(pull.on_call(store_id(66), Bytes::new()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_pushes_is_bounded_and_the_map_goes_on() {
    let (map, _) = map(1);
    let (push, _pull, _tasks) = alone(&map).await;
    for _ in 0..100_000 {
        push.on_message(store_id(66), Bytes::from_static(b"\x01flood")).await;
    }
    map.edit([Edit::PutVolume(volume(1, "pg"))]).expect("edits");
    assert_eq!(map.view().records(), 1);
}

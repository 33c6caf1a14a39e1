//! What every backend must do, as one suite that runs on all of them.
//!
//! Each check is given two fresh backends of a kind: a master's and a replica's. A check panics
//! with what was expected; it must never depend on how a backend stores anything.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use flocker_base::{Epoch, VolumeId, WallTime};

use super::{Backend, BackendError, Quiesce, Still};
use crate::model::{Destroy, Guid, Keep, Retention, SnapshotInfo};

/// Makes a pair of fresh backends.
pub type Fresh<'a> = &'a dyn Fn() -> (Box<dyn Backend>, Box<dyn Backend>);

/// Runs every check.
pub fn run(fresh: Fresh<'_>) {
    type Check = fn(&dyn Backend, &dyn Backend);
    let checks: [(&str, Check); 12] = [
        ("a new volume is empty and standing", new_volume),
        ("a snapshot is taken only if something changed", snapshot_if_changed),
        ("a replica shows what the master wrote", replicate),
        ("a stream is taken up where it broke", resume),
        ("a bad stream changes nothing", bad_stream),
        ("an older snapshot is refused", not_newer),
        ("a diverged line becomes a branch", divergence),
        ("a live tail becomes a branch", live_tail),
        ("a roll-back is followed by replicas", rollback),
        ("a clone has a life of its own", clone),
        ("pruning keeps what is pinned", prune),
        ("destroying refuses what is unique", destroy),
    ];
    for (what, check) in checks {
        tracing::info!(what, "conformance");
        let (master, replica) = fresh();
        check(&*master, &*replica);
    }
}

const V: VolumeId = VolumeId::from_bytes([7; 16]);

fn epoch(counter: u64) -> Epoch {
    Epoch::new(0, counter)
}

fn guid(number: u8) -> Guid {
    [number; 16]
}

fn keep(number: u8, counter: u64) -> Keep {
    let now = WallTime::from_millis(u64::from(number));
    Keep { name: format!("tail-{number}"), epoch: epoch(counter), now, guid: guid(number) }
}

fn take(backend: &dyn Backend, counter: u64, number: u8) -> Option<SnapshotInfo> {
    let now = WallTime::from_millis(u64::from(number));
    backend.snapshot(V, epoch(counter), now, guid(number), &Still).expect("snapshot")
}

#[expect(clippy::disallowed_methods, reason = "a user's file in a test, not a state file")]
fn put(folder: &Path, name: &str, content: &str) {
    fs::write(folder.join(name), content).expect("write");
}

fn get(folder: &Path, name: &str) -> Option<String> {
    fs::read_to_string(folder.join(name)).ok()
}

/// Sends the newest snapshot on top of this base.
fn send(from: &dyn Backend, to: &dyn Backend, base: Option<Guid>) -> SnapshotInfo {
    let newest = from.list(V).expect("list").last().expect("a snapshot").guid;
    let header = from.plan(V, base, newest).expect("plan");
    let mut bytes = Vec::new();
    from.send(&header, 0, &mut bytes).expect("send");
    assert_eq!(bytes.len() as u64, header.length, "the length is told right");
    let info = to.receive(&header, 0, &mut bytes.as_slice()).expect("receive");
    to.settle(V).expect("settle");
    info
}

fn new_volume(master: &dyn Backend, _: &dyn Backend) {
    assert!(!master.exists(V).expect("exists"));
    assert!(matches!(master.list(V), Err(BackendError::NoVolume(_))));
    master.create(V).expect("create");
    assert!(matches!(master.create(V), Err(BackendError::Exists(_))));
    assert_eq!(master.volumes().expect("volumes"), [V]);
    assert!(master.list(V).expect("list").is_empty());
    assert_eq!(master.live(V).expect("live"), None);
    let refused = master.snapshot(V, epoch(1), WallTime::default(), guid(1), &Still);
    assert!(matches!(refused, Err(BackendError::NotWritable(_))));
    let live = master.promote(V).expect("promote");
    assert_eq!(master.live(V).expect("live"), Some(live.clone()));
    assert_eq!(fs::read_dir(live).expect("list").count(), 0);
}

fn snapshot_if_changed(master: &dyn Backend, _: &dyn Backend) {
    #[derive(Debug, Default)]
    struct Counting(std::sync::atomic::AtomicI32, std::sync::atomic::AtomicI32);
    impl Quiesce for Counting {
        fn freeze(&self) -> bool {
            self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            true
        }
        fn thaw(&self) {
            self.1.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
    }
    master.create(V).expect("create");
    let live = master.promote(V).expect("promote");
    put(&live, "a", "1");
    let quiesce = Counting::default();
    let now = WallTime::from_millis(5);
    let first = master.snapshot(V, epoch(1), now, guid(1), &quiesce).expect("snapshot");
    let first = first.expect("the first is always taken");
    assert_eq!((first.head.seq.0, first.parent, first.bytes), (1, None, 1));
    assert_eq!(quiesce.0.into_inner(), 1, "frozen once");
    assert_eq!(quiesce.1.into_inner(), 1, "and thawed");
    assert!(take(master, 1, 2).is_none(), "nothing changed");
    put(&live, "a", "2");
    let second = take(master, 1, 3).expect("it changed");
    assert_eq!((second.head.seq.0, second.parent), (2, Some(guid(1))));
    let opened = take(master, 2, 4).expect("a new epoch opens with a snapshot of its own");
    assert_eq!(opened.head.epoch, epoch(2));
    let stale = master.snapshot(V, epoch(1), now, guid(5), &Still);
    assert!(matches!(stale, Err(BackendError::StaleEpoch { .. })));
    let guids: Vec<Guid> = master.list(V).expect("list").iter().map(|info| info.guid).collect();
    assert_eq!(guids, [guid(1), guid(3), guid(4)]);
    assert_eq!(master.lineage(V).expect("lineage").len(), 3);
}

fn replicate(master: &dyn Backend, replica: &dyn Backend) {
    master.create(V).expect("create");
    let live = master.promote(V).expect("promote");
    put(&live, "a", "1");
    fs::create_dir_all(live.join("deep/er")).expect("folders");
    put(&live, "deep/er/file", &"x".repeat(300_000));
    std::os::unix::fs::symlink("../nowhere", live.join("link")).expect("link");
    take(master, 1, 1).expect("snapshot");
    send(master, replica, None);
    put(&live, "a", "2");
    fs::remove_dir_all(live.join("deep/er")).expect("remove");
    put(&live, "deep/other", "y");
    take(master, 1, 2).expect("snapshot");
    assert_eq!(send(master, replica, Some(guid(1))).guid, guid(2));
    assert_eq!(master.list(V).expect("list"), replica.list(V).expect("list"));
    let copy = replica.promote(V).expect("promote");
    assert_eq!(get(&copy, "a").as_deref(), Some("2"));
    assert_eq!(get(&copy, "deep/other").as_deref(), Some("y"));
    assert!(!copy.join("deep/er").exists());
    assert_eq!(fs::read_link(copy.join("link")).expect("link"), Path::new("../nowhere"));
    assert!(take(replica, 1, 9).is_none(), "a promoted replica has nothing new to say");
}

/// Ends with an error after so many bytes.
struct Cut<'a>(&'a [u8], usize);

impl Read for Cut<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.1 == 0 {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let len = buffer.len().min(self.1).min(self.0.len());
        buffer[..len].copy_from_slice(&self.0[..len]);
        (self.0, self.1) = (&self.0[len..], self.1 - len);
        Ok(len)
    }
}

fn resume(master: &dyn Backend, replica: &dyn Backend) {
    master.create(V).expect("create");
    let live = master.promote(V).expect("promote");
    put(&live, "a", &(0..40_000).map(|n: u32| n.to_string()).collect::<String>());
    take(master, 1, 1).expect("snapshot");
    let header = master.plan(V, None, guid(1)).expect("plan");
    let step = usize::try_from(header.length / 7 + 1).expect("small");
    let mut attempts = 0;
    loop {
        attempts += 1;
        let offset = replica.received(&header).expect("received");
        let mut bytes = Vec::new();
        master.send(&header, offset, &mut bytes).expect("send");
        assert_eq!(bytes.len() as u64, header.length - offset, "only the rest is sent");
        match replica.receive(&header, offset, &mut Cut(&bytes, step)) {
            Ok(info) => break assert_eq!(info, header.snapshot),
            Err(BackendError::Cut { at, .. }) => {
                assert!(at > offset, "each attempt gets further");
                assert!(replica.list(V).expect("list").is_empty(), "and shows nothing");
                assert_eq!(replica.partial(V).expect("partial").as_ref(), Some(&header));
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(attempts > 5, "it was cut");
    assert_eq!(replica.partial(V).expect("partial"), None);
    let copy = replica.promote(V).expect("promote");
    assert_eq!(get(&copy, "a"), get(&live, "a"));
}

fn bad_stream(master: &dyn Backend, replica: &dyn Backend) {
    master.create(V).expect("create");
    let live = master.promote(V).expect("promote");
    put(&live, "a", "first");
    take(master, 1, 1).expect("snapshot");
    send(master, replica, None);
    put(&live, "a", &"second".repeat(1000));
    take(master, 1, 2).expect("snapshot");
    let header = master.plan(V, Some(guid(1)), guid(2)).expect("plan");
    let mut good = Vec::new();
    master.send(&header, 0, &mut good).expect("send");
    let noise: Vec<u8> = (0..good.len()).map(|n| n.wrapping_mul(167).to_le_bytes()[0]).collect();
    let mut longer = good.clone();
    longer.push(0);
    for bad in [noise, longer] {
        let refused = replica.receive(&header, 0, &mut bad.as_slice());
        assert!(matches!(refused, Err(BackendError::BadStream { .. })), "{refused:?}");
        assert_eq!(replica.list(V).expect("list").len(), 1);
        assert_eq!(replica.received(&header).expect("received"), 0, "it is thrown away");
    }
    let mut headless = header.clone();
    headless.base = Some(guid(99));
    let refused = replica.receive(&headless, 0, &mut good.as_slice());
    assert!(matches!(refused, Err(BackendError::NoSnapshot { .. })), "{refused:?}");
    replica.receive(&header, 0, &mut good.as_slice()).expect("the good one is still taken");
}

fn not_newer(master: &dyn Backend, replica: &dyn Backend) {
    master.create(V).expect("create");
    let live = master.promote(V).expect("promote");
    put(&live, "a", "1");
    take(master, 1, 1).expect("snapshot");
    send(master, replica, None);
    let header = master.plan(V, None, guid(1)).expect("plan");
    let refused = replica.receive(&header, 0, &mut io::empty());
    assert!(matches!(refused, Err(BackendError::NotNewer { .. })), "{refused:?}");
    assert!(replica.branches(V).expect("branches").is_empty());
}

fn divergence(master: &dyn Backend, replica: &dyn Backend) {
    master.create(V).expect("create");
    let live = master.promote(V).expect("promote");
    put(&live, "a", "common");
    take(master, 1, 1).expect("snapshot");
    send(master, replica, None);
    // The master writes on, is cut off, and the replica takes over.
    put(&live, "a", "lost");
    take(master, 1, 2).expect("snapshot");
    put(&live, "a", "lost too");
    take(master, 1, 3).expect("snapshot");
    put(&live, "a", "never snapshotted");
    let new = replica.promote(V).expect("promote");
    put(&new, "a", "new line");
    take(replica, 2, 4).expect("snapshot");
    send(replica, master, Some(guid(1)));
    let line: Vec<Guid> = master.list(V).expect("list").iter().map(|info| info.guid).collect();
    assert_eq!(line, [guid(1), guid(4)]);
    let refused = master.snapshot(V, epoch(2), WallTime::default(), guid(8), &Still);
    assert!(matches!(refused, Err(BackendError::Superseded { .. })), "{refused:?}");
    assert!(matches!(master.promote(V), Err(BackendError::Superseded { .. })));
    assert_eq!(get(&live, "a").as_deref(), Some("never snapshotted"), "the live folder stands");
    let tail = master.demote(V, &keep(5, 1)).expect("demote").expect("a tail");
    assert_eq!(tail.snapshots.last().map(|info| info.guid), Some(guid(5)));
    let kept: Vec<Guid> = master
        .branches(V)
        .expect("branches")
        .iter()
        .flat_map(|branch| branch.snapshots.iter().map(|info| info.guid))
        .collect();
    assert_eq!(kept, [guid(2), guid(3), guid(5)], "nothing is lost");
    let folder = tempfile::tempdir().expect("folder");
    master.export(V, guid(5), &folder.path().join("tail")).expect("export");
    assert_eq!(get(&folder.path().join("tail"), "a").as_deref(), Some("never snapshotted"));
    let back = master.promote(V).expect("promote");
    assert_eq!(get(&back, "a").as_deref(), Some("new line"));
}

fn live_tail(master: &dyn Backend, _: &dyn Backend) {
    master.create(V).expect("create");
    let live = master.promote(V).expect("promote");
    put(&live, "a", "1");
    take(master, 1, 1).expect("snapshot");
    assert_eq!(master.branch(V, &keep(2, 1)).expect("branch"), None, "no tail, no branch");
    put(&live, "a", "tail");
    let branch = master.branch(V, &keep(3, 1)).expect("branch").expect("a branch");
    assert_eq!((branch.name.as_str(), branch.forked_from), ("tail-3", Some(guid(1))));
    assert_eq!(master.branch(V, &keep(4, 1)).expect("branch"), None, "it is kept once");
    assert_eq!(master.demote(V, &keep(5, 1)).expect("demote"), None);
    assert_eq!(master.live(V).expect("live"), None);
    let live = master.promote(V).expect("promote");
    assert_eq!(get(&live, "a").as_deref(), Some("1"));
    assert!(matches!(master.drop_branch(V, "other"), Err(BackendError::NoBranch { .. })));
    master.drop_branch(V, "tail-3").expect("drop");
    assert!(master.branches(V).expect("branches").is_empty());
}

fn rollback(master: &dyn Backend, replica: &dyn Backend) {
    master.create(V).expect("create");
    let live = master.promote(V).expect("promote");
    put(&live, "a", "old");
    take(master, 1, 1).expect("snapshot");
    put(&live, "a", "new");
    take(master, 1, 2).expect("snapshot");
    send(master, replica, None);
    put(&live, "a", "newest");
    let info = master.rollback(V, guid(1), guid(3), &keep(4, 1)).expect("roll back");
    assert_eq!((info.guid, info.parent), (guid(3), Some(guid(2))));
    assert_eq!(get(&live, "a").as_deref(), Some("old"));
    let branches = master.branches(V).expect("branches");
    assert_eq!(branches.len(), 1, "the state before is kept");
    assert!(take(master, 1, 5).is_none(), "the live folder equals the new snapshot");
    send(master, replica, Some(guid(2)));
    assert!(replica.branches(V).expect("branches").is_empty(), "replicas simply follow");
    let copy = replica.promote(V).expect("promote");
    assert_eq!(get(&copy, "a").as_deref(), Some("old"));
}

fn clone(master: &dyn Backend, _: &dyn Backend) {
    let other = VolumeId::from_bytes([8; 16]);
    master.create(V).expect("create");
    let live = master.promote(V).expect("promote");
    put(&live, "a", "shared");
    take(master, 1, 1).expect("snapshot");
    let info = master.clone_volume(V, guid(1), other, WallTime::default(), guid(2));
    assert_eq!(info.expect("clone").volume, other);
    let again = master.clone_volume(V, guid(1), other, WallTime::default(), guid(3));
    assert!(matches!(again, Err(BackendError::Exists(_))));
    let copy = master.promote(other).expect("promote");
    put(&copy, "a", "changed");
    put(&live, "a", "changed otherwise");
    master.destroy(V, &Destroy::Everything).expect("destroy");
    assert_eq!(get(&copy, "a").as_deref(), Some("changed"));
    let folder = tempfile::tempdir().expect("folder");
    master.export(other, guid(2), &folder.path().join("x")).expect("export");
    assert_eq!(get(&folder.path().join("x"), "a").as_deref(), Some("shared"));
}

fn prune(master: &dyn Backend, replica: &dyn Backend) {
    master.create(V).expect("create");
    let live = master.promote(V).expect("promote");
    for number in 1..=10 {
        put(&live, "a", &format!("state {number}"));
        take(master, 1, number).expect("snapshot");
        if number == 2 {
            send(master, replica, None);
        }
    }
    let pinned = [(flocker_base::StoreId::from_bytes([1; 16]), vec![guid(2)])].into();
    let gone = master.prune(V, &Retention { newest: 3, pinned }).expect("prune");
    assert_eq!(gone, 6);
    let line: Vec<Guid> = master.list(V).expect("list").iter().map(|info| info.guid).collect();
    assert_eq!(line, [guid(2), guid(8), guid(9), guid(10)]);
    send(master, replica, Some(guid(2)));
    assert!(replica.branches(V).expect("branches").is_empty());
    let copy = replica.promote(V).expect("promote");
    assert_eq!(get(&copy, "a").as_deref(), Some("state 10"));
    assert_eq!(master.usage(V).expect("usage").snapshots, 4);
}

fn destroy(master: &dyn Backend, replica: &dyn Backend) {
    master.create(V).expect("create");
    let live = master.promote(V).expect("promote");
    put(&live, "a", "1");
    let only = |guids: &[Guid]| Destroy::OnlyIfHeldElsewhere(guids.to_vec());
    let unique =
        |mode: &Destroy| matches!(master.destroy(V, mode), Err(BackendError::Unique { .. }));
    assert!(unique(&only(&[])), "written and never snapshotted");
    take(master, 1, 1).expect("snapshot");
    assert!(unique(&only(&[])), "nobody else has it");
    send(master, replica, None);
    put(&live, "a", "2");
    assert!(unique(&only(&[guid(1)])), "a tail was written");
    master.demote(V, &keep(2, 1)).expect("demote").expect("a branch");
    assert!(unique(&only(&[guid(1)])), "the branch is nowhere else");
    master.drop_branch(V, "tail-2").expect("drop");
    master.limit(V, Some(1000)).expect("limit");
    assert_eq!(master.usage(V).expect("usage").limit_bytes, Some(1000));
    master.destroy(V, &only(&[guid(1)])).expect("it is all held elsewhere");
    assert!(!master.exists(V).expect("exists"));
    assert!(replica.exists(V).expect("exists"));
}

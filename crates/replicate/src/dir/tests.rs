//! The `dir` backend: the conformance suite, and what is its own.

use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};

use super::*;
use crate::backend::memory::MemoryBackend;
use crate::backend::{Still, conformance};

mod crashes;
mod hostile;
mod trees;

const V: VolumeId = VolumeId::from_bytes([7; 16]);

struct Fresh {
    folder: tempfile::TempDir,
    backend: DirBackend,
}

fn fresh() -> Fresh {
    let folder = tempfile::tempdir().expect("folder");
    let backend = DirBackend::open(folder.path()).expect("opens");
    Fresh { folder, backend }
}

impl Fresh {
    /// Closes the backend and opens it again, as after a crash of the process.
    fn reopen(self) -> Self {
        let Self { folder, backend } = self;
        drop(backend);
        let backend = DirBackend::open(folder.path()).expect("opens again");
        Self { folder, backend }
    }

    fn master() -> (Self, PathBuf) {
        let fresh = fresh();
        fresh.backend.create(V).expect("create");
        let live = fresh.backend.promote(V).expect("promote");
        (fresh, live)
    }

    fn take(&self, number: u8) -> Option<SnapshotInfo> {
        let now = WallTime::from_millis(u64::from(number));
        self.backend.snapshot(V, Epoch::new(0, 1), now, [number; 16], &Still).expect("snapshot")
    }

    fn newest(&self) -> Option<Guid> {
        self.backend.list(V).ok().and_then(|line| line.last().map(|info| info.guid))
    }

    fn stream(&self, base: Option<Guid>) -> (StreamHeader, Vec<u8>) {
        let newest = self.newest().expect("a snapshot");
        let header = self.backend.plan(V, base, newest).expect("plan");
        let mut bytes = Vec::new();
        self.backend.send(&header, 0, &mut bytes).expect("send");
        (header, bytes)
    }

    /// Brings another backend to the newest snapshot, from the newest that both have.
    fn replicate(&self, to: &Self) {
        let (header, bytes) = self.stream(to.newest());
        let offset = to.backend.received(&header).expect("received");
        let rest = usize::try_from(offset).expect("small");
        to.backend.receive(&header, offset, &mut &bytes[rest..]).expect("receive");
        to.backend.settle(V).expect("settle");
    }

    /// Makes every cached file settled, as after a quiet moment.
    fn calm(&self) {
        let volume = self.backend.volume(V).expect("volume");
        let mut work = volume.work();
        for cached in work.cache.iter_mut().flatten() {
            cached.settled = true;
        }
    }
}

fn keep(number: u8) -> Keep {
    let now = WallTime::from_millis(1);
    Keep { name: "tail".into(), epoch: Epoch::new(0, 1), now, guid: [number; 16] }
}

/// Bytes that do not compress.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

#[test]
fn the_memory_backend_conforms() {
    conformance::run(&|| {
        let fresh = || Box::new(MemoryBackend::new().expect("memory"));
        (fresh(), fresh())
    });
}

#[test]
fn the_dir_backend_conforms() {
    let folder = tempfile::tempdir().expect("folder");
    let count = std::cell::Cell::new(0);
    conformance::run(&|| {
        let fresh = || {
            count.set(count.get() + 1);
            let path = folder.path().join(count.get().to_string());
            Box::new(DirBackend::open(path).expect("opens"))
        };
        (fresh(), fresh())
    });
}

#[test]
fn a_small_change_in_a_large_file_costs_a_few_chunks() {
    let (master, live) = Fresh::master();
    let replica = fresh();
    let mut content = noise(1, 8 << 20);
    fs::write(live.join("large"), &content).expect("write");
    master.take(1).expect("first");
    master.replicate(&replica);
    let before = master.backend.usage(V).expect("usage").stored_bytes;
    content.splice(4_000_000..4_000_000, *b"inserted");
    fs::write(live.join("large"), &content).expect("write");
    master.take(2).expect("second");
    let grown = master.backend.usage(V).expect("usage").stored_bytes - before;
    let (header, _) = master.stream(Some([1; 16]));
    assert!(grown < 600_000, "stored {grown}");
    assert!(header.length < 600_000, "sent {}", header.length);
    master.replicate(&replica);
    let copy = replica.backend.promote(V).expect("promote");
    assert_eq!(fs::read(copy.join("large")).expect("read"), content);
}

#[test]
fn an_unchanged_file_is_not_read_again() {
    let (master, live) = Fresh::master();
    fs::write(live.join("quiet"), noise(1, 100_000)).expect("write");
    fs::write(live.join("busy"), "1").expect("write");
    master.take(1).expect("first");
    master.calm();
    // If it were read, it would fail: a hole is torn into its chunks instead of its content.
    let volume = master.backend.volume(V).expect("volume");
    let before = volume.work().cache.clone().expect("cache");
    fs::write(live.join("busy"), "2").expect("write");
    master.take(2).expect("second");
    let after = volume.work().cache.clone().expect("cache");
    let entry = |cache: &[capture::Cached], path: &[u8]| {
        cache.iter().find(|cached| cached.entry.path == path).cloned().expect("there")
    };
    assert!(entry(&after, b"quiet").settled, "taken over from the cache, not read anew");
    assert_eq!(entry(&before, b"quiet").signature, entry(&after, b"quiet").signature);
    assert_ne!(entry(&before, b"busy").entry, entry(&after, b"busy").entry);
}

#[test]
fn a_change_that_keeps_size_and_time_is_seen() {
    let (master, live) = Fresh::master();
    let path = live.join("file");
    fs::write(&path, "aaaa").expect("write");
    let time = fs::metadata(&path).expect("stat").modified().expect("time");
    master.take(1).expect("first");
    // Within the same tick, with the same size, and the old time put back.
    fs::write(&path, "bbbb").expect("write");
    File::options().write(true).open(&path).and_then(|f| f.set_modified(time)).expect("set");
    master.take(2).expect("the change is seen");
}

#[test]
fn a_process_that_died_reads_everything_anew_and_finds_the_change() {
    let (master, live) = Fresh::master();
    fs::write(live.join("file"), "1").expect("write");
    master.take(1).expect("first");
    let master = master.reopen();
    assert_eq!(master.backend.promote(V).expect("still writable"), live);
    assert!(master.take(2).is_none(), "nothing changed");
    fs::write(live.join("file"), "2").expect("write");
    master.take(3).expect("changed");
}

/// Writes to a file each time it is asked to freeze, and says that it cannot.
#[derive(Debug)]
struct Writing(PathBuf);

impl Quiesce for Writing {
    fn freeze(&self) -> bool {
        let len = fs::metadata(&self.0).expect("stat").len();
        let file = File::options().write(true).open(&self.0).expect("open");
        file.write_all_at(b"written between the passes", len).expect("write");
        false
    }

    fn thaw(&self) {
        panic!("it was never frozen");
    }
}

#[test]
fn what_is_written_between_the_passes_is_in_the_snapshot() {
    let (master, live) = Fresh::master();
    fs::write(live.join("file"), "start ").expect("write");
    let quiesce = Writing(live.join("file"));
    let now = WallTime::default();
    let info = master.backend.snapshot(V, Epoch::new(0, 1), now, [1; 16], &quiesce);
    info.expect("snapshot").expect("taken");
    let out = tempfile::tempdir().expect("folder");
    master.backend.export(V, [1; 16], &out.path().join("x")).expect("export");
    let kept = fs::read_to_string(out.path().join("x/file")).expect("read");
    assert_eq!(kept, "start written between the passes");
}

#[test]
fn a_service_is_thawed_even_if_the_snapshot_fails() {
    #[derive(Debug, Default)]
    struct Thawed(std::sync::atomic::AtomicBool, PathBuf);
    impl Quiesce for Thawed {
        fn freeze(&self) -> bool {
            // The second pass fails on this.
            let long = "x/".repeat(2100);
            let mut at =
                rustix::fs::open(&self.1, rustix::fs::OFlags::DIRECTORY, rustix::fs::Mode::empty())
                    .expect("open");
            for part in long.split_terminator('/') {
                rustix::fs::mkdirat(&at, part, rustix::fs::Mode::RWXU).expect("make");
                at = rustix::fs::openat(
                    &at,
                    part,
                    rustix::fs::OFlags::DIRECTORY,
                    rustix::fs::Mode::empty(),
                )
                .expect("open");
            }
            true
        }
        fn thaw(&self) {
            self.0.store(true, std::sync::atomic::Ordering::SeqCst);
        }
    }
    let (master, live) = Fresh::master();
    fs::write(live.join("file"), "x").expect("write");
    let quiesce = Thawed(false.into(), live);
    let failed =
        master.backend.snapshot(V, Epoch::new(0, 1), WallTime::default(), [1; 16], &quiesce);
    let error = failed.expect_err("a path is too long").to_string();
    assert!(error.contains("longer than"), "{error}");
    assert!(quiesce.0.into_inner(), "it was thawed");
    assert!(master.newest().is_none());
}

#[test]
fn a_file_that_changes_while_it_is_read_does_no_harm() {
    let (master, live) = Fresh::master();
    let path = live.join("busy");
    fs::write(&path, noise(1, 3 << 20)).expect("write");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut round = 0;
            while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                round += 1;
                let file = File::options().write(true).open(&path).expect("open");
                let len = 1 << (10 + round % 12);
                file.set_len(len).expect("truncate");
                file.write_all_at(&noise(round, 100_000), len / 2).expect("write");
            }
        });
        for number in 1..6 {
            master.take(number);
        }
        stop.store(true, std::sync::atomic::Ordering::SeqCst);
    });
    let last = master.take(9);
    assert!(last.is_some() || master.newest().is_some());
    assert!(master.take(10).is_none(), "it has come to rest");
    let replica = fresh();
    master.replicate(&replica);
    let copy = replica.backend.promote(V).expect("promote");
    assert_eq!(fs::read(copy.join("busy")).ok(), fs::read(&path).ok());
}

#[test]
fn links_holes_fifos_and_odd_names_come_over() {
    use std::os::unix::ffi::OsStrExt;
    let (master, live) = Fresh::master();
    let replica = fresh();
    let odd = live.join(std::ffi::OsStr::from_bytes(b"odd\xff\xfe\nname"));
    fs::write(&odd, "odd").expect("write");
    fs::write(live.join("a"), "linked").expect("write");
    fs::hard_link(live.join("a"), live.join("z")).expect("link");
    symlink("/etc/passwd", live.join("absolute")).expect("link");
    rustix::fs::mkfifoat(
        rustix::fs::CWD,
        live.join("fifo"),
        rustix::fs::Mode::from_raw_mode(0o640),
    )
    .expect("fifo");
    let sparse = File::create_new(live.join("sparse")).expect("create");
    sparse.set_len(64 << 20).expect("grow");
    sparse.write_all_at(b"island", 32 << 20).expect("write");
    fs::create_dir(live.join("closed")).expect("folder");
    fs::write(live.join("closed/in"), "in").expect("write");
    fs::set_permissions(live.join("closed/in"), fs::Permissions::from_mode(0o4750)).expect("mode");
    fs::set_permissions(live.join("closed"), fs::Permissions::from_mode(0o551)).expect("mode");
    master.take(1).expect("first");
    master.replicate(&replica);
    trees::assert_same(&live, &replica.backend.volume(V).expect("volume").path("live"));
    // A link is broken up, another made, an island moved, a mode changed, a file replaced.
    fs::remove_file(live.join("z")).expect("remove");
    fs::write(live.join("z"), "alone").expect("write");
    fs::hard_link(live.join("z"), live.join("closed/zz")).expect("link");
    fs::write(live.join("a"), "longer than before").expect("write");
    rustix::fs::fallocate(
        &sparse,
        rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE,
        32 << 20,
        4096,
    )
    .expect("punch");
    sparse.write_all_at(b"atoll", 1 << 20).expect("write");
    fs::remove_file(live.join("fifo")).expect("remove");
    fs::create_dir(live.join("fifo")).expect("folder");
    master.take(2).expect("second");
    master.replicate(&replica);
    let copy = replica.backend.promote(V).expect("promote");
    trees::assert_same(&live, &copy);
    let blocks = fs::metadata(copy.join("sparse")).expect("stat").blocks();
    assert!(blocks * 512 < 1 << 20, "the copy has holes, too: {blocks} blocks");
    let ino = |path: &str| fs::metadata(copy.join(path)).expect("stat").ino();
    assert_eq!(ino("z"), ino("closed/zz"));
    assert_ne!(ino("a"), ino("z"));
    // The other way round, after a restart: the promoted copy has nothing new to say.
    assert!(replica.reopen().take(9).is_none());
}

#[test]
fn what_is_in_the_way_is_moved_aside_not_destroyed() {
    let (master, live) = Fresh::master();
    let replica = fresh();
    fs::create_dir(live.join("folder")).expect("folder");
    master.take(1).expect("first");
    master.replicate(&replica);
    let copy = replica.backend.volume(V).expect("volume").path("live");
    fs::write(copy.join("folder/by-hand"), "precious").expect("write");
    fs::write(copy.join("new"), "also precious").expect("write");
    fs::remove_dir(live.join("folder")).expect("remove");
    fs::write(live.join("new"), "the master's").expect("write");
    master.take(2).expect("second");
    master.replicate(&replica);
    let copy = replica.backend.promote(V).expect("promote");
    trees::assert_same(&live, &copy);
    let strays = replica.backend.volume(V).expect("volume").path("strays");
    let mut found = Vec::new();
    for entry in walk(&strays) {
        found.extend(fs::read_to_string(entry).ok());
    }
    found.sort();
    assert_eq!(found, ["also precious", "precious"]);
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).expect("list") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            all.extend(walk(&path));
        } else {
            all.push(path);
        }
    }
    all
}

#[test]
fn pruning_gives_room_back_and_packs_stay_few() {
    let (master, live) = Fresh::master();
    for number in 1..=200_u8 {
        fs::write(live.join("file"), noise(u64::from(number), 50_000)).expect("write");
        fs::write(live.join(format!("kept-{number}")), noise(1000, 10)).expect("write");
        master.take(number).expect("snapshot");
        if number % 16 == 0 {
            master.backend.prune(V, &Retention::default()).expect("prune");
        }
    }
    let stored = master.backend.usage(V).expect("usage").stored_bytes;
    assert!(stored < 3_000_000, "{stored} bytes for 32 states of 50 KB");
    let packs = master.backend.volume(V).expect("volume").path("packs");
    assert!(fs::read_dir(packs).expect("list").count() < 90);
    let master = master.reopen();
    let out = tempfile::tempdir().expect("folder");
    for info in master.backend.list(V).expect("list") {
        let into = out.path().join(short_name(&info));
        master.backend.export(V, info.guid, &into).expect("every snapshot is whole");
        let number = u64::from(info.guid[0]);
        assert_eq!(fs::read(into.join("file")).expect("read"), noise(number, 50_000));
    }
}

fn short_name(info: &SnapshotInfo) -> String {
    info.head.seq.0.to_string()
}

#[test]
fn a_stream_planned_before_a_rewrite_still_comes_through_or_is_planned_again() {
    let (master, live) = Fresh::master();
    let replica = fresh();
    fs::write(live.join("dead"), noise(1, 900_000)).expect("write");
    fs::write(live.join("alive"), noise(2, 100_000)).expect("write");
    master.take(1).expect("first");
    fs::remove_file(live.join("dead")).expect("remove");
    master.take(2).expect("second");
    let header = master.backend.plan(V, None, [2; 16]).expect("plan");
    master.backend.prune(V, &Retention { newest: 1, ..Default::default() }).expect("prune");
    assert!(master.backend.usage(V).expect("usage").stored_bytes < 200_000, "it was rewritten");
    let mut bytes = Vec::new();
    master.backend.send(&header, 0, &mut bytes).expect("the same bytes");
    replica.backend.receive(&header, 0, &mut bytes.as_slice()).expect("receive");
    trees::assert_same(&live, &replica.backend.promote(V).expect("promote"));
}

#[test]
fn a_folder_belongs_to_one_process_and_damage_is_named() {
    let (master, live) = Fresh::master();
    let second = DirBackend::open(master.folder.path()).expect_err("locked").to_string();
    assert!(second.contains("another process"), "{second}");
    fs::write(live.join("file"), noise(1, 1000)).expect("write");
    master.take(1).expect("first");
    let volume = master.backend.volume(V).expect("volume");
    let (state, packs) = (volume.path("state"), volume.path("packs"));
    drop(volume);
    let pack = walk(&packs).pop().expect("a pack");
    let good = fs::read(&pack).expect("read");
    let mut refused = 0;
    for at in (0..good.len()).step_by(7) {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        fs::write(&pack, &bad).expect("write");
        let broken = DirBackend { volumes: Mutex::default(), ..master_again(&master) };
        let out = tempfile::tempdir().expect("folder");
        let result = broken.export(V, [1; 16], &out.path().join("x"));
        match result {
            Err(BackendError::Damaged { .. }) => refused += 1,
            // A frame's own header is a copy of the index, which is what is read.
            Ok(()) => {
                let read = fs::read(out.path().join("x/file")).expect("read");
                assert_eq!(read, noise(1, 1000), "byte {at}");
            }
            Err(error) => panic!("byte {at}: {error}"),
        }
    }
    assert!(refused * 7 > good.len() * 8 / 10, "{refused} of {}", good.len() / 7);
    fs::write(&pack, &good).expect("write");
    let mut bad = fs::read(&state).expect("read");
    bad[60] ^= 1;
    fs::write(&state, bad).expect("write");
    let broken = DirBackend { volumes: Mutex::default(), ..master_again(&master) };
    assert!(matches!(broken.list(V), Err(BackendError::Damaged { .. })));
    assert!(matches!(broken.create(V), Err(BackendError::Exists(_))), "it is never made anew");
}

/// A second look at the same folder, past the lock.
fn master_again(master: &Fresh) -> DirBackend {
    DirBackend {
        folder: master.folder.path().to_owned(),
        volumes: Mutex::default(),
        _lock: File::open(master.folder.path().join("lock")).expect("open"),
    }
}

#[test]
#[ignore = "run by hand: a measurement, not a test"]
fn figures() {
    let (master, live) = Fresh::master();
    let replica = fresh();
    let clock = flocker_base::SystemClock;
    let now = || flocker_base::Clock::boot(&clock);
    for number in 0..100 {
        fs::write(live.join(format!("file-{number}")), noise(number, 10_000)).expect("write");
    }
    master.take(1).expect("first");
    master.replicate(&replica);
    master.calm();
    let mut start = now();
    for _ in 0..1000 {
        assert!(master.take(2).is_none());
    }
    println!("unchanged, 100 files: {:?}", (now() - start) / 1000);
    for (what, len) in [("4 KiB", 4096), ("200 KiB", 200 * 1024)] {
        let mut taking = std::time::Duration::ZERO;
        let (mut streaming, mut settling) = (taking, taking);
        for round in 0..50_u8 {
            fs::write(live.join("file-7"), noise(1000 + u64::from(round), len)).expect("write");
            start = now();
            let base = master.newest();
            let guid =
                [100 + round, u8::from(len > 5000), 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1];
            let wall = WallTime::default();
            let taken = master.backend.snapshot(V, Epoch::new(0, 1), wall, guid, &Still);
            taken.expect("snapshot").expect("changed");
            let took = now();
            let (header, bytes) = master.stream(base);
            replica.backend.receive(&header, 0, &mut bytes.as_slice()).expect("receive");
            let came = now();
            replica.backend.settle(V).expect("settle");
            taking += took - start;
            streaming += came - took;
            settling += now() - came;
        }
        println!(
            "{what}: snapshot {:?}, plan+send+durable receive {:?}, live folder {:?}",
            taking / 50,
            streaming / 50,
            settling / 50
        );
    }
    start = now();
    replica.backend.promote(V).expect("promote");
    println!("promote: {:?}", now() - start);
}

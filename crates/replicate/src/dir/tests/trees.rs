//! Random trees: a snapshot that is sent, received and promoted equals the original.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// What a file is, for comparison.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Looks {
    kind: &'static str,
    mode: u32,
    mtime: (i64, i64),
    content: Vec<u8>,
    /// The first path of the same file.
    same_as: Option<PathBuf>,
}

pub(super) fn look(root: &Path) -> BTreeMap<PathBuf, Looks> {
    fn add(
        root: &Path,
        path: &Path,
        all: &mut BTreeMap<PathBuf, Looks>,
        first: &mut BTreeMap<u64, PathBuf>,
    ) {
        use std::os::unix::ffi::OsStrExt;
        let meta = fs::symlink_metadata(path).expect("stat");
        let name = path.strip_prefix(root).expect("below").to_owned();
        let (kind, content) = if meta.is_dir() {
            ("folder", Vec::new())
        } else if meta.is_symlink() {
            let target = fs::read_link(path).expect("target");
            ("symlink", target.as_os_str().as_bytes().to_vec())
        } else if meta.is_file() {
            ("file", fs::read(path).expect("read"))
        } else {
            ("other", Vec::new())
        };
        let linked = meta.is_file() && meta.nlink() > 1;
        let same_as = linked.then(|| first.entry(meta.ino()).or_insert(name.clone()).clone());
        let mode = if meta.is_symlink() { 0 } else { meta.mode() & 0o7777 };
        let mtime = (meta.mtime(), meta.mtime_nsec());
        all.insert(name, Looks { kind, mode, mtime, content, same_as });
        if meta.is_dir() {
            let mut children: Vec<PathBuf> = fs::read_dir(path)
                .expect("list")
                .map(|entry| entry.expect("entry").path())
                .collect();
            children.sort();
            for child in children {
                add(root, &child, all, first);
            }
        }
    }
    let mut all = BTreeMap::new();
    add(root, root, &mut all, &mut BTreeMap::new());
    all
}

pub(super) fn assert_same(a: &Path, b: &Path) {
    let (a, b) = (look(a), look(b));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (path, looks) in &a {
        let other = &b[path];
        assert!(looks.content == other.content, "the content of {path:?} differs");
        let rest = |looks: &Looks| (looks.kind, looks.mode, looks.mtime, looks.same_as.clone());
        assert_eq!(rest(looks), rest(other), "{path:?}");
    }
}

/// One change to a tree. Names are few, so that changes meet.
#[derive(Clone, Debug)]
enum Step {
    Write(String, u64, usize),
    Append(String, u64, usize),
    Patch(String, u64, usize),
    Folder(String),
    Symlink(String, String),
    Link(String, String),
    Remove(String),
    Rename(String, String),
    Mode(String, u32),
    Time(String, u64),
    Truncate(String, u64),
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "a.b", "c\u{fffd}"]), 1..4)
        .prop_map(|parts| parts.join("/"))
}

fn step() -> impl Strategy<Value = Step> {
    let size = || prop_oneof![0..50_usize, 1000..60_000_usize, 60_000..400_000_usize];
    prop_oneof![
        4 => (path(), any::<u64>(), size()).prop_map(|(p, s, n)| Step::Write(p, s, n)),
        2 => (path(), any::<u64>(), size()).prop_map(|(p, s, n)| Step::Append(p, s, n)),
        2 => (path(), any::<u64>(), size()).prop_map(|(p, s, n)| Step::Patch(p, s, n)),
        3 => path().prop_map(Step::Folder),
        1 => (path(), path()).prop_map(|(p, to)| Step::Symlink(p, to)),
        2 => (path(), path()).prop_map(|(p, to)| Step::Link(p, to)),
        2 => path().prop_map(Step::Remove),
        2 => (path(), path()).prop_map(|(p, to)| Step::Rename(p, to)),
        1 => (path(), 0..0o10000_u32).prop_map(|(p, mode)| Step::Mode(p, mode)),
        1 => (path(), 0..4_000_000_000_u64).prop_map(|(p, at)| Step::Time(p, at)),
        1 => (path(), 0..500_000_u64).prop_map(|(p, len)| Step::Truncate(p, len)),
    ]
}

/// Makes the change if it can be made; one that cannot is no change.
fn perform(live: &Path, step: &Step) {
    let open = |path: &str| File::options().write(true).open(live.join(path));
    let regular =
        |path: &str| fs::symlink_metadata(live.join(path)).is_ok_and(|meta| meta.is_file());
    let free = |path: &str| fs::symlink_metadata(live.join(path)).is_err();
    // A symbolic link on the way must not lead the test itself out of the tree.
    let plain = |path: &str| {
        Path::new(path)
            .ancestors()
            .skip(1)
            .all(|parent| fs::symlink_metadata(live.join(parent)).is_ok_and(|meta| meta.is_dir()))
    };
    let _impossible = match step {
        Step::Write(path, seed, len) if plain(path) && (free(path) || regular(path)) => {
            fs::write(live.join(path), noise(*seed, *len))
        }
        Step::Append(path, seed, len) if plain(path) && regular(path) => {
            let at = fs::metadata(live.join(path)).expect("stat").len();
            open(path).and_then(|file| file.write_all_at(&noise(*seed, *len), at))
        }
        Step::Patch(path, seed, at) if plain(path) && regular(path) => {
            open(path).and_then(|file| file.write_all_at(&noise(*seed, 100), *at as u64))
        }
        Step::Folder(path) if plain(path) => fs::create_dir(live.join(path)),
        Step::Symlink(path, to) if plain(path) => symlink(to, live.join(path)),
        Step::Link(path, to) if plain(path) && plain(to) && regular(to) => {
            fs::hard_link(live.join(to), live.join(path))
        }
        Step::Remove(path) if plain(path) => {
            fs::remove_file(live.join(path)).or_else(|_| fs::remove_dir_all(live.join(path)))
        }
        Step::Rename(path, to) if plain(path) && plain(to) => {
            fs::rename(live.join(path), live.join(to))
        }
        Step::Mode(path, mode) if plain(path) && !free(path) => {
            let is_link = fs::symlink_metadata(live.join(path)).expect("stat").is_symlink();
            if is_link {
                return;
            }
            fs::set_permissions(live.join(path), fs::Permissions::from_mode(*mode))
        }
        Step::Time(path, at) if plain(path) && regular(path) => {
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_nanos(*at * 1_000_007);
            open(path).and_then(|file| file.set_modified(time))
        }
        Step::Truncate(path, len) if plain(path) && regular(path) => {
            open(path).and_then(|file| file.set_len(*len))
        }
        _ => Ok(()),
    };
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_promoted_replica_equals_the_original(
        rounds in prop::collection::vec(prop::collection::vec(step(), 1..12), 1..5),
        settle in prop::collection::vec(any::<bool>(), 5),
        restart in any::<bool>(),
    ) {
        let (master, live) = Fresh::master();
        let mut replica = fresh();
        for (round, steps) in rounds.iter().enumerate() {
            for step in steps {
                perform(&live, step);
            }
            let number = u8::try_from(round).expect("few") + 1;
            if master.take(number).is_none() {
                continue;
            }
            let (header, bytes) = master.stream(replica.newest());
            replica.backend.receive(&header, 0, &mut bytes.as_slice()).expect("receive");
            if settle[round] {
                replica.backend.settle(V).expect("settle");
            }
            if restart {
                replica = replica.reopen();
            }
        }
        let out = tempfile::tempdir().expect("folder");
        let newest = master.newest().expect("the first is always taken");
        master.backend.export(V, newest, &out.path().join("export")).expect("export");
        assert_same(&live, &out.path().join("export"));
        let copy = replica.backend.promote(V).expect("promote");
        assert_same(&live, &copy);
        prop_assert!(replica.take(77).is_none(), "and it has nothing new to say");
        // Rolled back to the first, it equals the first again.
        let first = master.backend.list(V).expect("list")[0].guid;
        master.backend.export(V, first, &out.path().join("first")).expect("export");
        master.backend.rollback(V, first, [200; 16], &keep(201)).expect("roll back");
        assert_same(&out.path().join("first"), &live);
    }
}

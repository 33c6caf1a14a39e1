//! Streams that no honest sender makes: each leaves everything as it was.

use std::io;

use proptest::prelude::*;

use super::chunk::{ChunkHash, Packer};
use super::outgoing::Detail;
use super::tree::{Content, Entry, Extent, Kind};
use super::*;

/// A replica with one snapshot, and what it looks like.
fn replica() -> (Fresh, Fresh, PathBuf) {
    let (master, live) = Fresh::master();
    fs::create_dir(live.join("folder")).expect("folder");
    fs::write(live.join("folder/file"), "good").expect("write");
    symlink("/tmp", live.join("way-out")).expect("link");
    master.take(1).expect("first");
    let replica = fresh();
    master.replicate(&replica);
    (master, replica, live)
}

fn entry(path: &[u8], kind: Kind) -> Entry {
    Entry { path: path.to_vec(), mode: 0o755, uid: 0, gid: 0, mtime: (1, 0), kind }
}

/// The stream of a tree made up of these entries and chunks.
fn forged(entries: &[Entry], chunks: &[Vec<u8>], told: (u64, u64)) -> (StreamHeader, Vec<u8>) {
    let mut bytes = Vec::new();
    let mut packer = Packer::new();
    let mut hasher = blake3::Hasher::new();
    let mut put = |content: &[u8]| {
        let hash = ChunkHash::of(content);
        let (header, payload) = packer.pack(hash, content);
        hasher.update(&header.encode());
        bytes.extend(header.encode());
        bytes.extend(payload);
        hash
    };
    for chunk in chunks {
        put(chunk);
    }
    let page = postcard::to_extend(&entries.to_vec(), vec![1]).expect("encodes");
    let page = put(&page);
    let root = put(&postcard::to_extend(&vec![page], vec![1]).expect("encodes"));
    let detail = Detail { root, stream: *hasher.finalize().as_bytes() };
    let snapshot = SnapshotInfo {
        volume: V,
        head: Head::new(Epoch::new(0, 1), 2),
        guid: [66; 16],
        parent: Some([1; 16]),
        taken_at: WallTime::default(),
        bytes: told.0,
        files: told.1,
    };
    let header = StreamHeader {
        lineage: vec![
            Ancestor { guid: [1; 16], head: Head::new(Epoch::new(0, 1), 1) },
            snapshot.ancestor(),
        ],
        snapshot,
        base: Some([1; 16]),
        length: bytes.len() as u64,
        detail: postcard::to_stdvec(&detail).expect("encodes"),
    };
    (header, bytes)
}

fn file(size: u64, extents: Vec<Extent>) -> Kind {
    Kind::File { size, links: 1, content: Content::Direct(extents) }
}

#[expect(clippy::too_many_lines, reason = "a table of hostile trees, one a line")]
#[test]
fn trees_that_climb_out_or_lie_are_refused() {
    let chunk = b"evil".to_vec();
    let data = |len| Extent::Data { hash: ChunkHash::of(b"evil"), len };
    let evil = || file(4, vec![data(4)]);
    let root = || entry(b"", Kind::Folder);
    let link = |path: &[u8], to: &[u8]| entry(path, Kind::Symlink(to.to_vec()));
    let long = vec![b'x'; 300];
    let cases: Vec<(&str, Vec<Entry>)> = vec![
        ("dot dot", vec![root(), entry(b"../evil", evil())]),
        ("dot dot inside", vec![root(), entry(b"a", Kind::Folder), entry(b"a/../../evil", evil())]),
        ("absolute", vec![root(), entry(b"/tmp/evil", evil())]),
        ("dot", vec![root(), entry(b"./evil", evil())]),
        ("empty part", vec![root(), entry(b"a", Kind::Folder), entry(b"a//b", evil())]),
        ("zero byte", vec![root(), entry(b"a\0b", evil())]),
        ("long name", vec![root(), entry(&long, evil())]),
        ("through a link", vec![root(), link(b"a", b"/tmp"), entry(b"a/evil", evil())]),
        ("through a file", vec![root(), entry(b"a", evil()), entry(b"a/b", evil())]),
        ("no parent", vec![root(), entry(b"a/b", evil())]),
        ("no root", vec![entry(b"a", evil())]),
        ("nothing", vec![]),
        ("root is a file", vec![entry(b"", evil())]),
        ("out of order", vec![root(), entry(b"b", evil()), entry(b"a", evil())]),
        ("twice", vec![root(), entry(b"a", evil()), entry(b"a", evil())]),
        ("link to the outside", vec![root(), entry(b"a", Kind::Link(b"../../x".to_vec()))]),
        ("link to nothing", vec![root(), entry(b"b", Kind::Link(b"a".to_vec()))]),
        ("link forward", vec![root(), entry(b"a", Kind::Link(b"b".to_vec())), entry(b"b", evil())]),
        (
            "link to a symlink",
            vec![root(), link(b"a", b"/x"), entry(b"b", Kind::Link(b"a".to_vec()))],
        ),
        ("empty symlink", vec![root(), link(b"a", b"")]),
        ("size too large", vec![root(), entry(b"a", file(5, vec![data(4)]))]),
        ("extent lies", vec![root(), entry(b"a", file(9, vec![data(9)]))]),
        (
            "huge hole",
            vec![root(), entry(b"a", file(u64::MAX, vec![Extent::Hole { len: u64::MAX }]))],
        ),
        ("empty extent", vec![root(), entry(b"a", file(0, vec![Extent::Hole { len: 0 }]))]),
        (
            "missing chunk",
            vec![
                root(),
                entry(b"a", file(4, vec![Extent::Data { hash: ChunkHash([9; 32]), len: 4 }])),
            ],
        ),
        (
            "missing links",
            vec![
                root(),
                entry(
                    b"a",
                    Kind::File { size: 4, links: 3, content: Content::Direct(vec![data(4)]) },
                ),
            ],
        ),
        ("strange mode", vec![root(), Entry { mode: 0o170_644, ..entry(b"a", evil()) }]),
        ("strange time", vec![root(), Entry { mtime: (0, 2_000_000_000), ..entry(b"a", evil()) }]),
    ];
    let (master, replica, live) = replica();
    let copy = replica.backend.volume(V).expect("volume").path("live");
    let before = trees::look(&copy);
    for (what, entries) in cases {
        let size = |entry: &Entry| match entry.kind {
            Kind::File { size, .. } => size,
            _ => 0,
        };
        let bytes = entries.iter().map(size).fold(0, u64::wrapping_add);
        let (header, stream) =
            forged(&entries, std::slice::from_ref(&chunk), (bytes, entries.len() as u64));
        let result = replica.backend.receive(&header, 0, &mut stream.as_slice());
        assert!(matches!(result, Err(BackendError::BadStream { .. })), "{what}: {result:?}");
        assert_eq!(replica.newest(), Some([1; 16]), "{what}");
        replica.backend.settle(V).expect("settle");
        assert_eq!(trees::look(&copy), before, "{what}");
    }
    let honest = [root(), entry(b"a", evil())];
    let (header, stream) = forged(&honest, std::slice::from_ref(&chunk), (5, 2));
    let result = replica.backend.receive(&header, 0, &mut stream.as_slice());
    assert!(matches!(result, Err(BackendError::BadStream { .. })), "the header lies: {result:?}");
    let (header, stream) = forged(&honest, &[chunk], (4, 2));
    replica.backend.receive(&header, 0, &mut stream.as_slice()).expect("the forgery is sound");
    drop((master, live));
}

#[test]
fn a_symlink_swapped_in_by_hand_leads_nowhere() {
    let (master, replica, live) = replica();
    let outside = tempfile::tempdir().expect("folder");
    fs::write(outside.path().join("file"), "untouched").expect("write");
    let copy = replica.backend.volume(V).expect("volume").path("live");
    fs::remove_dir_all(copy.join("folder")).expect("remove");
    symlink(outside.path(), copy.join("folder")).expect("swap");
    fs::write(live.join("folder/file"), "overwritten?").expect("write");
    fs::write(live.join("folder/new"), "made?").expect("write");
    master.take(2).expect("second");
    let (header, bytes) = master.stream(Some([1; 16]));
    replica.backend.receive(&header, 0, &mut bytes.as_slice()).expect("the snapshot is sound");
    assert!(replica.backend.settle(V).is_err(), "the folder cannot follow");
    assert_eq!(fs::read_dir(outside.path()).expect("list").count(), 1);
    let kept = fs::read_to_string(outside.path().join("file")).expect("read");
    assert_eq!(kept, "untouched");
    let out = tempfile::tempdir().expect("folder");
    replica.backend.export(V, [2; 16], &out.path().join("x")).expect("it is held all the same");
}

#[test]
fn a_bomb_is_refused_before_it_goes_off() {
    let (_master, replica, _live) = replica();
    let zeros = vec![0; 64 << 20];
    let packed = zstd::bulk::compress(&zeros, 1).expect("compresses");
    let stored = u32::try_from(packed.len()).expect("small");
    for raw in [64 << 20, 1 << 20] {
        let header = chunk::FrameHeader { hash: ChunkHash::of(&zeros), form: 1, raw, stored };
        let mut stream = header.encode().to_vec();
        stream.extend(&packed);
        let (mut offer, _) = forged(&[], &[], (0, 0));
        offer.length = stream.len() as u64;
        let result = replica.backend.receive(&offer, 0, &mut stream.as_slice());
        assert!(matches!(result, Err(BackendError::BadStream { .. })), "{result:?}");
    }
    // A limit bounds what a small stream may unfold to.
    replica.backend.limit(V, Some(1000)).expect("limit");
    let hole =
        vec![entry(b"", Kind::Folder), entry(b"a", file(2000, vec![Extent::Hole { len: 2000 }]))];
    let (header, stream) = forged(&hole, &[], (2000, 2));
    let result = replica.backend.receive(&header, 0, &mut stream.as_slice());
    assert!(matches!(result, Err(BackendError::BadStream { .. })), "{result:?}");
}

#[test]
fn a_flipped_bit_anywhere_is_refused() {
    let (master, replica, live) = replica();
    fs::write(live.join("folder/file"), noise(3, 3000)).expect("write");
    fs::write(live.join("other"), "text ".repeat(1000)).expect("write");
    master.take(2).expect("second");
    let (header, good) = master.stream(Some([1; 16]));
    for at in (0..good.len()).step_by(5) {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        let result = replica.backend.receive(&header, 0, &mut bad.as_slice());
        assert!(
            matches!(result, Err(BackendError::BadStream { .. })),
            "byte {at} of {}: {result:?}",
            good.len()
        );
        assert_eq!(replica.newest(), Some([1; 16]));
    }
    replica.backend.receive(&header, 0, &mut good.as_slice()).expect("the good one is taken");
}

#[test]
fn two_streams_for_one_volume_at_once_do_not_mix() {
    let (master, live) = Fresh::master();
    fs::write(live.join("a"), noise(1, 400_000)).expect("write");
    master.take(1).expect("first");
    let (header, bytes) = master.stream(None);
    let replica = fresh();
    /// Lets the other go first when half has come.
    struct Meanwhile<'a>(&'a [u8], usize, &'a dyn Fn());
    impl Read for Meanwhile<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.len() < self.1 {
                self.1 = 0;
                (self.2)();
            }
            let len = buffer.len().min(1000).min(self.0.len());
            buffer[..len].copy_from_slice(&self.0[..len]);
            self.0 = &self.0[len..];
            Ok(len)
        }
    }
    let busy = std::cell::Cell::new(false);
    let other = || {
        let result = replica.backend.receive(&header, 0, &mut bytes.as_slice());
        assert!(matches!(result, Err(BackendError::Busy(_))), "{result:?}");
        busy.set(true);
    };
    let mut input = Meanwhile(&bytes, bytes.len() / 2, &other);
    replica.backend.receive(&header, 0, &mut input).expect("the first goes through");
    assert!(busy.get(), "the other came meanwhile");
    trees::assert_same(&live, &replica.backend.promote(V).expect("promote"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_are_refused(
        noise in prop::collection::vec(any::<u8>(), 0..3000),
        length in 0..4000_u64,
        detail in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let (_master, replica, _live) = replica();
        let (mut header, _) = forged(&[], &[], (0, 0));
        header.length = length;
        if detail.len() > 64 {
            header.detail = detail;
        }
        prop_assert!(replica.backend.receive(&header, 0, &mut noise.as_slice()).is_err());
        prop_assert_eq!(replica.newest(), Some([1; 16]));
        prop_assert_eq!(replica.backend.list(V).expect("list").len(), 1);
    }
}

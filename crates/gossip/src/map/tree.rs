//! The hash tree over all records: its root tells whether two maps are equal, its nodes where
//! they differ. Its shape follows from its content alone, so equal maps have equal trees. It
//! must never hold a record that is not durable.
//!
//! A prefix tree over the hash of the key with sixteen children a node; up to sixteen entries
//! lie in a leaf. One change rehashes one path: O(log n), some microseconds.

use serde::{Deserialize, Serialize};

use super::key::RecordKey;

/// A hash. All zero for an empty part.
pub type Hash = [u8; 32];

const NOTHING: Hash = [0; 32];
const LEAF_MAX: usize = 16;
const FANOUT: usize = 16;
/// Nibbles of a key's place.
pub const MAX_DEPTH: usize = 32;

/// The way from the root to a part of the tree: one nibble a step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Path(Vec<u8>);

impl Path {
    /// The way to the child with this number.
    #[must_use]
    pub fn child(&self, number: u8) -> Self {
        let mut steps = self.0.clone();
        steps.push(number);
        Self(steps)
    }

    /// Whether it can lead anywhere.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.0.len() <= MAX_DEPTH && self.0.iter().all(|step| usize::from(*step) < FANOUT)
    }
}

/// What one part of the tree holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Summary {
    /// At most sixteen records: their keys and the hashes of their bytes.
    Leaf(Vec<(RecordKey, Hash)>),
    /// More: how many, and the hashes of the sixteen parts.
    Inner {
        /// Records below.
        count: u64,
        /// Hashes of the parts.
        parts: Box<[Hash; FANOUT]>,
    },
}

/// The tree.
#[derive(Debug, Default)]
pub struct HashTree {
    root: Node,
}

#[derive(Debug)]
enum Node {
    Leaf { hash: Hash, entries: Vec<Entry> },
    Inner { hash: Hash, count: u64, parts: Box<[Node; FANOUT]> },
}

#[derive(Clone, Debug)]
struct Entry {
    place: [u8; MAX_DEPTH / 2],
    value: Hash,
    key: RecordKey,
}

impl Default for Node {
    fn default() -> Self {
        Self::Leaf { hash: NOTHING, entries: Vec::new() }
    }
}

/// The hash of a record's bytes.
#[must_use]
pub fn value_hash(bytes: &[u8]) -> Hash {
    *blake3::hash(bytes).as_bytes()
}

impl HashTree {
    /// The hash of everything.
    #[must_use]
    pub const fn root(&self) -> Hash {
        self.root.hash()
    }

    /// How many records it holds.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.root.count()
    }

    /// The tree of all these records, each key once.
    #[must_use]
    pub fn of(records: Vec<(RecordKey, Hash)>) -> Self {
        let entry = |(key, value)| Entry { place: place_of(&key), value, key };
        let mut entries: Vec<Entry> = records.into_iter().map(entry).collect();
        entries.sort_by(|a, b| (&a.place, &a.key).cmp(&(&b.place, &b.key)));
        Self { root: Node::of(entries, 0) }
    }

    /// Notes a record's bytes by their hash.
    pub fn set(&mut self, key: RecordKey, value: Hash) {
        let entry = Entry { place: place_of(&key), value, key };
        self.root.set(entry, 0);
    }

    /// The hash of a record's bytes.
    #[must_use]
    pub fn get(&self, key: &RecordKey) -> Option<Hash> {
        let place = place_of(key);
        let mut node = &self.root;
        for depth in 0..=MAX_DEPTH {
            match node {
                Node::Leaf { entries, .. } => {
                    return entries.iter().find(|entry| entry.key == *key).map(|e| e.value);
                }
                Node::Inner { parts, .. } => node = &parts[nibble(&place, depth)],
            }
        }
        None
    }

    /// The hash of the part that this way leads to.
    #[must_use]
    pub fn hash_at(&self, path: &Path) -> Hash {
        match self.find(path) {
            (node, true) => node.hash(),
            (node, false) => leaf_hash(&node.below(path)),
        }
    }

    /// What lies in the part that this way leads to.
    #[must_use]
    pub fn summary(&self, path: &Path) -> Summary {
        let (node, _) = self.find(path);
        match node {
            Node::Leaf { .. } => {
                Summary::Leaf(node.below(path).into_iter().map(|e| (e.key, e.value)).collect())
            }
            Node::Inner { count, parts, .. } => {
                let hashes = std::array::from_fn(|number| parts[number].hash());
                Summary::Inner { count: *count, parts: Box::new(hashes) }
            }
        }
    }

    /// The node at the end of the way, or the leaf that it ends in before.
    fn find(&self, path: &Path) -> (&Node, bool) {
        let mut node = &self.root;
        for step in &path.0 {
            match node {
                Node::Inner { parts, .. } => node = &parts[usize::from(*step) % FANOUT],
                Node::Leaf { .. } => return (node, false),
            }
        }
        (node, true)
    }
}

impl Node {
    const fn hash(&self) -> Hash {
        match self {
            Self::Leaf { hash, .. } | Self::Inner { hash, .. } => *hash,
        }
    }

    fn count(&self) -> u64 {
        match self {
            Self::Leaf { entries, .. } => u64::try_from(entries.len()).unwrap_or(u64::MAX),
            Self::Inner { count, .. } => *count,
        }
    }

    fn set(&mut self, entry: Entry, depth: usize) {
        match self {
            Self::Inner { hash, count, parts } => {
                let part = &mut parts[nibble(&entry.place, depth)];
                let before = part.count();
                part.set(entry, depth + 1);
                *count += part.count() - before;
                *hash = inner_hash(parts);
            }
            Self::Leaf { hash, entries } => {
                let order =
                    |e: &Entry| (e.place, e.key.clone()).cmp(&(entry.place, entry.key.clone()));
                match entries.binary_search_by(order) {
                    Ok(at) => entries[at] = entry,
                    Err(at) => entries.insert(at, entry),
                }
                if entries.len() <= LEAF_MAX || depth >= MAX_DEPTH {
                    *hash = leaf_hash(entries);
                } else {
                    *self = Self::of(std::mem::take(entries), depth);
                }
            }
        }
    }

    /// The node of these entries, which are sorted.
    fn of(mut entries: Vec<Entry>, depth: usize) -> Self {
        if entries.len() <= LEAF_MAX || depth >= MAX_DEPTH {
            return Self::Leaf { hash: leaf_hash(&entries), entries };
        }
        let count = u64::try_from(entries.len()).unwrap_or(u64::MAX);
        let mut parts: Box<[Self; FANOUT]> = Box::default();
        for number in (0..FANOUT).rev() {
            let from = entries.partition_point(|entry| nibble(&entry.place, depth) < number);
            parts[number] = Self::of(entries.split_off(from), depth + 1);
        }
        Self::Inner { hash: inner_hash(&parts), count, parts }
    }

    /// The entries of a leaf that lie on this way.
    fn below(&self, path: &Path) -> Vec<Entry> {
        let on_the_way = |entry: &&Entry| {
            path.0.iter().enumerate().all(|(i, step)| nibble(&entry.place, i) == usize::from(*step))
        };
        match self {
            Self::Leaf { entries, .. } => entries.iter().filter(on_the_way).cloned().collect(),
            Self::Inner { .. } => Vec::new(),
        }
    }
}

fn place_of(key: &RecordKey) -> [u8; MAX_DEPTH / 2] {
    let mut place = [0; MAX_DEPTH / 2];
    place.copy_from_slice(&blake3::hash(key.as_bytes()).as_bytes()[..MAX_DEPTH / 2]);
    place
}

/// The step at this depth; past the end everything lies together.
fn nibble(place: &[u8; MAX_DEPTH / 2], depth: usize) -> usize {
    let Some(byte) = place.get(depth / 2) else { return 0 };
    usize::from(if depth.is_multiple_of(2) { byte >> 4 } else { byte & 0xf })
}

fn leaf_hash(entries: &[Entry]) -> Hash {
    if entries.is_empty() {
        return NOTHING;
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"flocker map leaf 1");
    for entry in entries {
        hasher.update(&entry.place);
        hasher.update(&entry.value);
    }
    *hasher.finalize().as_bytes()
}

fn inner_hash(parts: &[Node; FANOUT]) -> Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"flocker map node 1");
    for part in parts {
        hasher.update(&part.hash());
    }
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::super::key::Kind;
    use super::*;

    fn key(number: u32) -> RecordKey {
        RecordKey::new(Kind::VOLUME, &number.to_be_bytes())
    }

    fn filled(numbers: impl Iterator<Item = u32>) -> HashTree {
        let mut tree = HashTree::default();
        for number in numbers {
            tree.set(key(number), value_hash(&number.to_le_bytes()));
        }
        tree
    }

    #[test]
    fn the_order_of_arrival_leaves_no_trace() {
        for size in [0, 1, 16, 17, 18, 300, 5_000] {
            let up = filled(0..size);
            let down = filled((0..size).rev());
            assert_eq!(up.root(), down.root(), "{size}");
            let records = (0..size).map(|n| (key(n), value_hash(&n.to_le_bytes())));
            assert_eq!(up.root(), HashTree::of(records.rev().collect()).root(), "{size}");
            assert_eq!(up.count(), u64::from(size));
        }
        assert_eq!(HashTree::default().root(), NOTHING);
    }

    #[test]
    fn every_change_shows_in_the_root_and_goes_when_taken_back() {
        let mut tree = filled(0..1_000);
        let before = tree.root();
        for number in (0..1_000).step_by(97) {
            tree.set(key(number), value_hash(b"other"));
            assert_ne!(tree.root(), before);
            assert_eq!(tree.get(&key(number)), Some(value_hash(b"other")));
            tree.set(key(number), value_hash(&number.to_le_bytes()));
            assert_eq!(tree.root(), before);
        }
        assert_eq!(tree.get(&key(1_001)), None);
    }

    #[test]
    fn a_part_hashes_alike_whether_or_not_the_tree_goes_that_deep() {
        let (small, large) = (filled(0..10), filled(0..400));
        for number in 0..16 {
            let way = Path::default().child(number);
            let Summary::Leaf(entries) = small.summary(&way) else { panic!("small is a leaf") };
            let mut alone = HashTree::default();
            for (key, value) in &entries {
                alone.set(key.clone(), *value);
            }
            assert_eq!(small.hash_at(&way), alone.root());
            let Summary::Inner { parts, .. } = large.summary(&Path::default()) else {
                panic!("large is not a leaf")
            };
            assert_eq!(large.hash_at(&way), parts[usize::from(number)]);
        }
    }
}

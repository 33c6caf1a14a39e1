//! Finding what a peer's map has and ours lacks, by going down its hash tree where the hashes
//! differ. Pure: questions out, answers in. It must never ask more than a bounded number of
//! questions, whatever the peer answers.

use bytes::Bytes;

use super::message::{Hostile, MAX_KEYS, MAX_PATHS, Request};
use crate::map::key::RecordKey;
use crate::map::tree::{HashTree, Path, Summary};

/// Most parts of a peer's tree that one pull looks at: some 16 times the map's largest size.
const MAX_PARTS: usize = 1 << 20;
/// A peer with this many records more than ours is read page by page instead.
const PAGED_FROM: u64 = 1_000;

/// One pull.
#[derive(Debug)]
pub(super) struct Descent {
    /// Parts to look at, the deepest last: the list stays short.
    parts: Vec<Path>,
    wanted: Vec<RecordKey>,
    looked_at: usize,
}

impl Descent {
    /// Starts at the root.
    pub(super) fn new() -> Self {
        Self { parts: vec![Path::default()], wanted: Vec::new(), looked_at: 0 }
    }

    /// The next question; none when all is known.
    pub(super) fn next(&mut self) -> Option<Request> {
        if self.wanted.len() >= MAX_KEYS || (self.parts.is_empty() && !self.wanted.is_empty()) {
            let rest = self.wanted.len().saturating_sub(MAX_KEYS);
            let keys = self.wanted.split_off(rest);
            let bytes = |key: &RecordKey| Bytes::copy_from_slice(key.as_bytes());
            return Some(Request::Records(keys.iter().map(bytes).collect()));
        }
        if self.parts.is_empty() {
            return None;
        }
        let rest = self.parts.len().saturating_sub(MAX_PATHS);
        Some(Request::Summaries(self.parts.split_off(rest)))
    }

    /// Takes in what lies in the parts that were asked about.
    pub(super) fn on_summaries(
        &mut self,
        ours: &HashTree,
        asked: &[Path],
        theirs: Vec<Summary>,
    ) -> Result<(), Hostile> {
        if asked.len() != theirs.len() {
            return Err(Hostile::Answer);
        }
        self.looked_at += asked.len();
        if self.looked_at > MAX_PARTS {
            return Err(Hostile::TooMany);
        }
        for (path, summary) in asked.iter().zip(theirs) {
            match summary {
                Summary::Leaf(entries) => {
                    let lacking =
                        entries.into_iter().filter(|(k, hash)| ours.get(k) != Some(*hash));
                    self.wanted.extend(lacking.map(|(key, _)| key));
                }
                Summary::Inner { parts, .. } => {
                    for (number, hash) in (0_u8..).zip(*parts) {
                        let part = path.child(number);
                        if hash != [0; 32] && part.is_sound() && ours.hash_at(&part) != hash {
                            self.parts.push(part);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Asks again for what an answer left out, if it held anything at all.
    pub(super) fn on_records(&mut self, asked: &[Bytes], got: &[RecordKey]) {
        if got.is_empty() {
            return;
        }
        let missing = |key: &Bytes| RecordKey::from_bytes(key).filter(|key| !got.contains(key));
        if got.len() < asked.len() {
            let got_last = got.last();
            let answered = asked
                .iter()
                .position(|key| got_last.is_some_and(|last| last.as_bytes() == key.as_ref()));
            // What stands before the last answer and was not answered does not exist there.
            let rest = answered.map_or(asked.len(), |at| at + 1);
            self.wanted.extend(asked[rest..].iter().filter_map(missing));
        }
    }

    /// Whether the peer has so much more than we that its pages cost less than the way down.
    pub(super) fn is_newcomer(ours: u64, root: &Summary) -> bool {
        match root {
            Summary::Leaf(_) => false,
            Summary::Inner { count, .. } => *count > PAGED_FROM && *count / 2 > ours,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::map::key::Kind;
    use crate::map::tree::value_hash;

    fn key(number: u32) -> RecordKey {
        RecordKey::new(Kind::VOLUME, &number.to_be_bytes())
    }

    fn tree(records: impl Iterator<Item = (u32, u8)>) -> HashTree {
        let mut tree = HashTree::default();
        for (number, value) in records {
            tree.set(key(number), value_hash(&[value]));
        }
        tree
    }

    /// Runs a descent; gives the records asked for and the questions about parts.
    fn run(ours: &HashTree, theirs: &HashTree) -> (BTreeSet<RecordKey>, usize) {
        let mut descent = Descent::new();
        let (mut got, mut questions) = (BTreeSet::new(), 0);
        while let Some(request) = descent.next() {
            match request {
                Request::Summaries(paths) => {
                    questions += paths.len();
                    let answers = paths.iter().map(|path| theirs.summary(path)).collect();
                    descent.on_summaries(ours, &paths, answers).expect("honest");
                }
                Request::Records(keys) => {
                    let keys: Vec<_> =
                        keys.iter().map(|key| RecordKey::from_bytes(key).expect("a key")).collect();
                    got.extend(keys);
                }
                Request::Page(_) => panic!("no pages in a descent"),
            }
        }
        (got, questions)
    }

    #[test]
    fn exactly_what_differs_is_asked_for() {
        for size in [0, 3, 16, 17, 40, 1_000, 20_000] {
            let theirs = tree((0..size).map(|n| (n, u8::from(n % 500 == 7))));
            let ours =
                tree((0..size).filter(|n| n % 700 != 3).map(|n| (n, 0)).chain([(99_999, 1)]));
            let expected: BTreeSet<_> =
                (0..size).filter(|n| n % 500 == 7 || n % 700 == 3).map(key).collect();
            assert_eq!(run(&ours, &theirs).0, expected, "{size}");
        }
    }

    #[test]
    fn one_change_costs_one_way_down_however_large_the_map() {
        for (size, most) in [(1_000, 4), (100_000, 6)] {
            let theirs = tree((0..size).map(|n| (n, u8::from(n == 5))));
            let ours = tree((0..size).map(|n| (n, 0)));
            let (got, questions) = run(&ours, &theirs);
            assert_eq!(got.len(), 1);
            assert!(questions <= most, "{questions} questions at {size}");
        }
    }

    #[test]
    fn a_peer_that_invents_parts_without_end_is_left() {
        let ours = HashTree::default();
        let mut descent = Descent::new();
        let mut asked = 0;
        let refused = loop {
            let Some(Request::Summaries(paths)) = descent.next() else { panic!("only parts") };
            asked += paths.len();
            let lie = |_: &Path| Summary::Inner { count: u64::MAX, parts: Box::new([[1; 32]; 16]) };
            let lies = paths.iter().map(lie).collect();
            if let Err(refused) = descent.on_summaries(&ours, &paths, lies) {
                break refused;
            }
            assert!(descent.parts.len() < 200_000, "the list of parts stays bounded");
        };
        assert_eq!(refused, Hostile::TooMany);
        assert!(asked <= MAX_PARTS + MAX_PATHS);
    }

    #[test]
    fn an_answer_of_another_length_is_refused() {
        let mut descent = Descent::new();
        let Some(Request::Summaries(paths)) = descent.next() else { panic!("the root") };
        let ours = HashTree::default();
        assert_eq!(descent.on_summaries(&ours, &paths, Vec::new()), Err(Hostile::Answer));
    }

    #[test]
    fn what_an_answer_had_no_room_for_is_asked_again() {
        let mut descent = Descent::new();
        descent.parts.clear();
        let asked: Vec<Bytes> = (0..4).map(|n| Bytes::copy_from_slice(key(n).as_bytes())).collect();
        descent.on_records(&asked, &[key(0), key(2)]);
        assert_eq!(descent.wanted, [key(3)], "1 is not there, 3 had no room");
        descent.wanted.clear();
        descent.on_records(&asked, &[]);
        assert!(descent.next().is_none(), "an empty answer ends it");
    }
}

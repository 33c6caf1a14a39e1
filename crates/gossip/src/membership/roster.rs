//! A region's members as other regions are told of them: lines, in a ledger that can say what has
//! changed since a version that it gave out. It knows nothing of who asks or how lines travel.

pub(super) mod follow;
pub(super) mod message;

use std::collections::BTreeMap;
use std::sync::Arc;

use flocker_base::{Incarnation, Name, StoreId};
use serde::{Deserialize, Serialize};

use super::{Liveness, MAX_STATES, MAX_VALUE_BYTES, chat_id, facts};
use crate::model::NodeFacts;

/// The most regions of one mesh, this node's own among them.
pub const MAX_REGIONS: usize = 32;

/// The most lines of one roster: what a region's pool holds.
pub(super) const MAX_LINES: usize = MAX_STATES;

/// The most members that a ledger remembers to have gone; what is older makes a whole roster.
const MAX_GONE: usize = 256;

/// A region's name in short, in announcements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(super) struct RegionId(pub(super) [u8; 6]);

impl RegionId {
    pub(super) fn of(name: &Name) -> Self {
        let mut id = [0; 6];
        let hash = blake3::hash(name.as_str().as_bytes());
        id.copy_from_slice(&hash.as_bytes()[..6]);
        Self(id)
    }
}

/// A digest of a roster's lines: equal lines have equal digests, whoever made them.
pub(super) type Digest = [u8; 8];

/// A member, as its region sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Line {
    /// The generation of its run in its region's pool.
    pub(super) generation: u64,
    /// 0 live, 1 suspected, 2 left; others, of a later version, count as suspected.
    pub(super) standing: u8,
    /// Its facts as it announces them, so that fields unknown here are passed on.
    pub(super) facts: String,
}

impl Line {
    pub(super) fn new(generation: u64, liveness: Liveness, facts: String) -> Self {
        let standing = match liveness {
            Liveness::Live => 0,
            Liveness::Suspected => 1,
            Liveness::Left => 2,
        };
        Self { generation, standing, facts }
    }

    pub(super) const fn liveness(&self) -> Liveness {
        match self.standing {
            0 => Liveness::Live,
            2 => Liveness::Left,
            _ => Liveness::Suspected,
        }
    }

    pub(super) const fn incarnation(&self) -> Incarnation {
        chat_id::incarnation(self.generation)
    }

    /// The facts, if they can be read and are of this region.
    pub(super) fn facts_in(&self, region: &Name) -> Option<NodeFacts> {
        facts::decode(&self.facts).filter(|facts| facts.region == *region)
    }
}

/// Lines by store, shared: a roster is handed on often and changes seldom.
pub(super) type Lines = BTreeMap<StoreId, Arc<Line>>;

/// A version of a ledger: which run of which process made it, and its number there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Version {
    pub(super) edition: u64,
    pub(super) number: u64,
}

/// A roster or what changed in it, as it travels. The order of the fields is the wire form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Part {
    pub(super) region: Name,
    pub(super) version: Version,
    /// Of the whole roster once this is applied.
    pub(super) digest: Digest,
    /// The lines that changed since this number of the same edition; without one, all.
    pub(super) since: Option<u64>,
    pub(super) lines: Vec<(StoreId, Line)>,
    pub(super) gone: Vec<StoreId>,
}

impl Part {
    /// Whether it keeps the bounds. What does not is not used.
    pub(super) fn is_sound(&self) -> bool {
        self.lines.len() <= MAX_LINES
            && self.gone.len() <= MAX_GONE
            && self.lines.iter().all(|(_, line)| line.facts.len() <= MAX_VALUE_BYTES)
    }

    /// About how many bytes it takes.
    pub(super) fn weight(&self) -> usize {
        let lines: usize = self.lines.iter().map(|(_, line)| 32 + line.facts.len()).sum();
        128 + lines + 17 * self.gone.len()
    }
}

/// A roster with the memory of when each line last changed.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    number: u64,
    digest: Digest,
    lines: Lines,
    changed: BTreeMap<StoreId, u64>,
    gone: BTreeMap<StoreId, u64>,
    /// Deltas can be given since this number and later ones.
    floor: u64,
}

impl Ledger {
    pub(super) const fn lines(&self) -> &Lines {
        &self.lines
    }

    pub(super) const fn digest(&self) -> Digest {
        self.digest
    }

    /// Takes these as all lines. Returns whether anything changed.
    pub(super) fn replace(&mut self, lines: Lines) -> bool {
        if lines == self.lines {
            return false;
        }
        self.number += 1;
        for (store, line) in &lines {
            if self.lines.get(store) != Some(line) {
                self.changed.insert(*store, self.number);
                self.gone.remove(store);
            }
        }
        for store in self.lines.keys().filter(|store| !lines.contains_key(store)) {
            self.changed.remove(store);
            self.gone.insert(*store, self.number);
        }
        while self.gone.len() > MAX_GONE {
            let Some((store, number)) = self.gone.iter().map(|(s, n)| (*s, *n)).min_by_key(|g| g.1)
            else {
                break;
            };
            self.gone.remove(&store);
            self.floor = self.floor.max(number);
        }
        self.digest = digest(&lines);
        self.lines = lines;
        true
    }

    /// The roster, or what changed in it since this version, if this ledger gave that out.
    pub(super) fn part(&self, region: &Name, edition: u64, since: Option<Version>) -> Part {
        let since = since
            .filter(|v| v.edition == edition && (self.floor..=self.number).contains(&v.number))
            .map(|v| v.number);
        let is_new = |n: u64| since.is_none_or(|since| n > since);
        let lines = self.changed.iter().filter(|(_, n)| is_new(**n));
        let lines = lines.filter_map(|(s, _)| Some((*s, Line::clone(self.lines.get(s)?))));
        let gone = self.gone.iter().filter(|(_, n)| since.is_some() && is_new(**n));
        Part {
            region: region.clone(),
            version: Version { edition, number: self.number },
            digest: self.digest,
            since,
            lines: lines.collect(),
            gone: gone.map(|(store, _)| *store).collect(),
        }
    }

    /// Takes a part. Returns whether the ledger now holds what the server does; if not, it needs
    /// the whole roster.
    pub(super) fn apply(&mut self, part: &Part) -> bool {
        let mut lines = if part.since.is_some() { self.lines.clone() } else { Lines::new() };
        for store in &part.gone {
            lines.remove(store);
        }
        for (store, line) in &part.lines {
            let known = self.lines.get(store).filter(|known| ***known == *line);
            lines.insert(*store, known.map_or_else(|| Arc::new(line.clone()), Arc::clone));
        }
        if lines.len() > MAX_LINES || digest(&lines) != part.digest {
            return false;
        }
        self.replace(lines);
        true
    }
}

/// Nothing has a digest of zeros.
fn digest(lines: &Lines) -> Digest {
    if lines.is_empty() {
        return Digest::default();
    }
    let mut hasher = blake3::Hasher::new();
    for (store, line) in lines {
        let len = u16::try_from(line.facts.len()).unwrap_or(u16::MAX);
        hasher
            .update(store.as_bytes())
            .update(&line.generation.to_le_bytes())
            .update(&[line.standing])
            .update(&len.to_le_bytes())
            .update(line.facts.as_bytes());
    }
    let mut digest = [0; 8];
    digest.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    digest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn store(byte: u8) -> StoreId {
        StoreId::from_bytes([byte; 16])
    }

    fn name() -> Name {
        Name::new("eu").expect("name")
    }

    fn lines(of: &[(u8, u64)]) -> Lines {
        of.iter()
            .map(|(s, g)| (store(*s), Arc::new(Line::new(*g, Liveness::Live, format!("{g}")))))
            .collect()
    }

    #[test]
    fn a_delta_holds_what_changed_and_a_stranger_gets_the_whole() {
        let mut server = Ledger::default();
        assert!(server.replace(lines(&[(1, 1), (2, 1), (3, 1)])));
        assert!(!server.replace(lines(&[(1, 1), (2, 1), (3, 1)])), "nothing new");
        let first = server.part(&name(), 7, None);
        assert_eq!((first.lines.len(), first.since), (3, None));
        let mut client = Ledger::default();
        assert!(client.apply(&first));
        assert!(server.replace(lines(&[(1, 1), (2, 2), (4, 1)])));
        let delta = server.part(&name(), 7, Some(first.version));
        assert_eq!((delta.lines.len(), delta.gone.as_slice()), (2, &[store(3)][..]));
        assert!(client.apply(&delta));
        assert_eq!(client.lines(), server.lines());
        assert_eq!(client.digest(), server.digest());
        for stranger in [Version { edition: 8, number: 1 }, Version { edition: 7, number: 99 }] {
            assert_eq!(server.part(&name(), 7, Some(stranger)).since, None, "{stranger:?}");
        }
        let mut other = Ledger::default();
        assert!(!other.apply(&delta), "a delta on another base is noticed");
        assert!(other.lines().is_empty(), "and changes nothing");
    }

    #[test]
    fn what_a_ledger_remembers_is_bounded() {
        let mut ledger = Ledger::default();
        ledger.replace(lines(&[(1, 0)]));
        let old = ledger.part(&name(), 1, None).version;
        for n in 0..1000_u64 {
            let mut bytes = [9; 16];
            bytes[..8].copy_from_slice(&n.to_le_bytes());
            let line = Arc::new(Line::new(1, Liveness::Live, String::new()));
            ledger.replace([(StoreId::from_bytes(bytes), line)].into());
        }
        assert_eq!(ledger.gone.len(), MAX_GONE);
        assert_eq!(ledger.changed.len(), 1);
        let part = ledger.part(&name(), 1, Some(old));
        assert_eq!(part.since, None, "too old for a delta");
        assert!(part.is_sound());
    }

    #[test]
    fn a_region_is_named_in_short() {
        let other = Name::new("us").expect("name");
        assert_eq!(RegionId::of(&name()), RegionId::of(&name()));
        assert_ne!(RegionId::of(&name()), RegionId::of(&other));
    }

    proptest! {
        /// Whatever happens at the server, a client that pulls now and then holds the same.
        #[test]
        fn deltas_lead_where_the_whole_would(
            steps in proptest::collection::vec(
                (proptest::collection::vec((0_u8..12, 0_u64..3), 0..8), any::<bool>()), 1..30),
        ) {
            let (mut server, mut client) = (Ledger::default(), Ledger::default());
            let mut version = None;
            for (of, pulls) in steps {
                server.replace(lines(&of));
                if pulls {
                    let part = server.part(&name(), 3, version);
                    prop_assert_eq!(part.since.is_some(), version.is_some());
                    prop_assert!(client.apply(&part));
                    prop_assert_eq!(client.lines(), server.lines());
                    version = Some(part.version);
                }
            }
        }
    }
}

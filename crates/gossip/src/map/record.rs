//! A record of the map and the merge of two copies of it: pure, total and free of the clock.
//!
//! ```text
//!   Record = Intent   life rises: even lives with a register a field, odd is deleted
//!          | Placed   the highest (generation, counter, sequence, holder, hash, content)
//! ```
//!
//! Both are join-semilattices, so copies meet in one value in whatever order, how often and
//! along whatever way they come. The merge must never look at what a field means: fields and
//! kinds of newer versions are merged, kept and passed on like any other.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use flocker_base::{Epoch, StoreId};

use super::register::{DoubleWrite, Register};
use super::stamp::Stamp;

/// The number of a field within its kind. Never given to another field.
pub type FieldId = u16;

/// A record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// What someone wants.
    Intent(Intent),
    /// What the master of a volume last said of it.
    Placed(Placed),
}

/// An intent record. Deletion and re-creation are successors: they raise `life`, and the higher
/// life wins whole, so an old copy can't bring anything back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    /// How often it was deleted or made again: even while it lives, odd while it is deleted.
    pub life: u32,
    /// What is known of this life.
    pub state: IntentState,
}

/// What is known of one life of an intent record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IntentState {
    /// The fields while it lives.
    Live(BTreeMap<FieldId, Register>),
    /// The little that is kept for ever of a deleted record.
    Deleted(Tombstone),
}

/// A deleted record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tombstone {
    /// When it was deleted.
    pub stamp: Stamp,
    /// The store that deleted it.
    pub actor: StoreId,
    /// What to call it in the trash: the name that it last had.
    pub label: String,
}

/// A placement record: a max-register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The epoch of the master that wrote it.
    pub epoch: Epoch,
    /// Counts that master's writes.
    pub sequence: u64,
    /// The master.
    pub holder: StoreId,
    /// What it says, a field each.
    pub content: BTreeMap<FieldId, Vec<u8>>,
}

/// What a merge found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Writes that cannot both be honest: the store to blame, with the field if there is one.
    pub double_writes: Vec<(Option<FieldId>, DoubleWrite)>,
}

impl Record {
    /// Takes in another copy of the record.
    pub fn merge(&mut self, other: Self) -> Found {
        match (&mut *self, other) {
            (Self::Intent(mine), Self::Intent(theirs)) => mine.merge(theirs),
            (Self::Placed(mine), Self::Placed(theirs)) => mine.merge(theirs),
            // A kind has one shape; the order of shapes only makes the merge total.
            (Self::Intent(_), theirs @ Self::Placed(_)) => {
                *self = theirs;
                Found::default()
            }
            (Self::Placed(_), Self::Intent(_)) => Found::default(),
        }
    }

    /// The highest stamp in it.
    #[must_use]
    pub fn newest(&self) -> Stamp {
        match self {
            Self::Placed(_) => Stamp::ZERO,
            Self::Intent(Intent { state: IntentState::Deleted(tombstone), .. }) => tombstone.stamp,
            Self::Intent(Intent { state: IntentState::Live(fields), .. }) => {
                fields.values().map(Register::newest).max().unwrap_or(Stamp::ZERO)
            }
        }
    }
}

impl Intent {
    /// A record in its first life, without a field.
    #[must_use]
    pub const fn empty() -> Self {
        Self { life: 0, state: IntentState::Live(BTreeMap::new()) }
    }

    /// Its fields while it lives.
    #[must_use]
    pub const fn fields(&self) -> Option<&BTreeMap<FieldId, Register>> {
        match &self.state {
            IntentState::Live(fields) => Some(fields),
            IntentState::Deleted(_) => None,
        }
    }

    /// Deletes it; no change if it is deleted.
    pub fn delete(&mut self, tombstone: Tombstone) {
        if self.fields().is_some() {
            self.life = self.life.saturating_add(1);
            self.state = IntentState::Deleted(tombstone);
        }
    }

    /// Makes it again, without a field; no change if it lives.
    pub fn revive(&mut self) {
        if self.fields().is_none() {
            self.life = self.life.saturating_add(1);
            self.state = IntentState::Live(BTreeMap::new());
        }
    }

    fn merge(&mut self, other: Self) -> Found {
        let mut found = Found::default();
        match self.life.cmp(&other.life) {
            Ordering::Greater => return found,
            Ordering::Less => {
                *self = other;
                return found;
            }
            Ordering::Equal => {}
        }
        match (&mut self.state, other.state) {
            (IntentState::Live(mine), IntentState::Live(theirs)) => {
                for (field, register) in theirs {
                    if let Some(double) = mine.entry(field).or_default().merge(&register) {
                        found.double_writes.push((Some(field), double));
                    }
                }
            }
            (IntentState::Deleted(mine), IntentState::Deleted(theirs)) => {
                if theirs > *mine {
                    *mine = theirs;
                }
            }
            // The parity of `life` forbids both; a deletion outranks to keep the merge total.
            (mine @ IntentState::Live(_), theirs @ IntentState::Deleted(_)) => *mine = theirs,
            (IntentState::Deleted(_), IntentState::Live(_)) => {}
        }
        found
    }
}

impl Placed {
    /// The key that a master's writes are ordered by.
    #[must_use]
    pub const fn rank(&self) -> (Epoch, u64, StoreId) {
        (self.epoch, self.sequence, self.holder)
    }

    fn merge(&mut self, other: Self) -> Found {
        let mut found = Found::default();
        let order = match self.rank().cmp(&other.rank()) {
            Ordering::Equal if self.content != other.content => {
                let double = DoubleWrite { actor: self.holder };
                found.double_writes.push((None, double));
                let theirs = (content_hash(&other.content), &other.content);
                (content_hash(&self.content), &self.content).cmp(&theirs)
            }
            order => order,
        };
        if order == Ordering::Less {
            *self = other;
        }
        found
    }
}

fn content_hash(content: &BTreeMap<FieldId, Vec<u8>>) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for (field, bytes) in content {
        hasher.update(&field.to_le_bytes());
        hasher.update(&u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_le_bytes());
        hasher.update(bytes);
    }
    *hasher.finalize().as_bytes()
}

//! The values of one kind by id, and the names that they go by. A name taken twice stays with
//! the one who took it first; the later one is shown under a name made from its id. A value must
//! never be hidden because of its name.

use std::sync::Arc;

use data_encoding::HEXLOWER;
use flocker_base::Name;
use rpds::{RedBlackTreeMapSync, RedBlackTreeSetSync};

use super::key::RecordKey;
use super::stamp::Stamp;
use super::typed::Typed;
use super::view::Listed;

/// Digits of the id that a renamed value's name ends in.
const SUFFIX_DIGITS: usize = 8;

#[derive(Clone, Debug)]
pub(super) struct Table<T: Typed> {
    rows: RedBlackTreeMapSync<T::Id, Arc<Listed<T>>>,
    /// Who wants which name since when: the first of a name has it.
    claims: RedBlackTreeSetSync<(Name, Stamp, RecordKey)>,
    /// The names that were made up.
    renamed: RedBlackTreeSetSync<(Name, RecordKey)>,
}

impl<T: Typed> Default for Table<T> {
    fn default() -> Self {
        Self {
            rows: RedBlackTreeMapSync::new_sync(),
            claims: RedBlackTreeSetSync::new_sync(),
            renamed: RedBlackTreeSetSync::new_sync(),
        }
    }
}

impl<T: Typed> Table<T> {
    pub(super) fn get(&self, id: &T::Id) -> Option<&Arc<Listed<T>>> {
        self.rows.get(id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Listed<T>>> {
        self.rows.values()
    }

    pub(super) fn by_key(&self, key: &RecordKey) -> Option<&Arc<Listed<T>>> {
        self.rows.get(&T::id_of(key)?)
    }

    /// The value that goes by this name: a given name goes before a made-up one.
    pub(super) fn named(&self, name: &Name) -> Option<&Arc<Listed<T>>> {
        if let Some(first) = self.claimants(name).next() {
            return self.by_key(first);
        }
        let from = (name.clone(), lowest_key());
        let (_, key) = self.renamed.range(from..).next().filter(|(made, _)| made == name)?;
        self.by_key(key)
    }

    /// The values that go by a made-up name: key, that name, and the name they were given.
    pub(super) fn renamed(&self) -> impl Iterator<Item = (RecordKey, &Name, &Name)> {
        self.renamed.iter().filter_map(|(made, key)| {
            Some((key.clone(), made, self.by_key(key)?.renamed_from.as_ref()?))
        })
    }

    pub(super) fn insert(&mut self, mut spec: T, named_at: Stamp) {
        let key = T::key_of(&spec.id());
        let claims = spec.claims_name();
        let name = spec.name_mut().filter(|_| claims).map(|name| name.clone());
        let row = Listed { spec, renamed_from: None, named_at };
        self.rows.insert_mut(row.spec.id(), Arc::new(row));
        if let Some(name) = name {
            self.claims.insert_mut((name.clone(), named_at, key.clone()));
            self.refresh(&name, Some(&key));
        }
    }

    pub(super) fn remove(&mut self, id: &T::Id) {
        let Some(row) = self.rows.get(id).cloned() else { return };
        self.rows.remove_mut(id);
        let key = T::key_of(id);
        let Some(shown) = row.spec.clone().name_mut().map(|name| name.clone()) else { return };
        let wanted = row.renamed_from.clone().unwrap_or_else(|| shown.clone());
        if row.renamed_from.is_some() {
            self.renamed.remove_mut(&(shown, key.clone()));
        }
        if self.claims.remove_mut(&(wanted.clone(), row.named_at, key)) {
            self.refresh(&wanted, None);
        }
    }

    fn claimants(&self, name: &Name) -> impl Iterator<Item = &RecordKey> {
        let from = (name.clone(), Stamp::ZERO, lowest_key());
        self.claims
            .range(from..)
            .take_while({
                let name = name.clone();
                move |(claimed, _, _)| *claimed == name
            })
            .map(|(_, _, key)| key)
    }

    /// Puts right who has this name. Only the first two claimants and a new one can be wrong.
    fn refresh(&mut self, name: &Name, new: Option<&RecordKey>) {
        let firsts: Vec<RecordKey> = self.claimants(name).take(2).cloned().collect();
        let others = firsts.iter().skip(1).chain(new.filter(|new| firsts.first() != Some(*new)));
        for key in others {
            let made = made_up(name, key);
            self.renamed.insert_mut((made.clone(), key.clone()));
            self.rename(key, made, Some(name.clone()));
        }
        if let Some(first) = firsts.first() {
            self.renamed.remove_mut(&(made_up(name, first), first.clone()));
            self.rename(first, name.clone(), None);
        }
    }

    fn rename(&mut self, key: &RecordKey, to: Name, renamed_from: Option<Name>) {
        let Some(id) = T::id_of(key) else { return };
        let Some(row) = self.rows.get(&id).filter(|row| row.renamed_from != renamed_from) else {
            return;
        };
        let mut row = Listed::clone(row);
        if let Some(name) = row.spec.name_mut() {
            *name = to;
        }
        row.renamed_from = renamed_from;
        self.rows.insert_mut(id, Arc::new(row));
    }
}

fn lowest_key() -> RecordKey {
    RecordKey::new(super::key::Kind(0), &[])
}

fn made_up(name: &Name, key: &RecordKey) -> Name {
    let digits = HEXLOWER.encode(key.as_bytes());
    let suffix = &digits[digits.len().saturating_sub(SUFFIX_DIGITS)..];
    let stem = name.as_str();
    let stem = &stem[..stem.len().min(Name::MAX_LEN - SUFFIX_DIGITS - 1)];
    Name::new(format!("{stem}-{suffix}")).unwrap_or_else(|_impossible| name.clone())
}

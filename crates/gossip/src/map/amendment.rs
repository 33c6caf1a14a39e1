//! A change of a record together with what its author saw: it is made only where nobody changed
//! the same fields since. What is edited through a volume's master travels, and waits, in this
//! form. It must never write a field that its author left alone.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::MapError;
use super::conflict::{describe, field_name};
use super::key::{Kind, RecordKey};
use super::record::FieldId;
use super::typed::{Fields, Typed};
use super::view::Listed;

/// A change of a record that exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Wire", into = "Wire")]
pub struct Amendment {
    key: RecordKey,
    /// The fields as the author saw them.
    base: Fields,
    /// The fields as the author wants them; nothing to delete the record.
    wanted: Option<Fields>,
}

/// Its stored and sent form.
#[derive(Serialize, Deserialize)]
struct Wire {
    key: Vec<u8>,
    base: Fields,
    wanted: Option<Fields>,
}

impl From<Amendment> for Wire {
    fn from(it: Amendment) -> Self {
        Self { key: it.key.as_bytes().to_vec(), base: it.base, wanted: it.wanted }
    }
}

impl TryFrom<Wire> for Amendment {
    type Error = &'static str;

    fn try_from(wire: Wire) -> Result<Self, Self::Error> {
        let key = RecordKey::from_bytes(&wire.key).ok_or("a key that is none")?;
        if key.kind() == Kind::PLACEMENT {
            return Err("a placement is not edited");
        }
        Ok(Self { key, base: wire.base, wanted: wire.wanted })
    }
}

impl Amendment {
    /// The change from what someone saw to what that one wants.
    #[must_use]
    pub fn change<T: Typed>(seen: &T, wanted: &T) -> Self {
        Self { key: T::key_of(&seen.id()), base: seen.fields(), wanted: Some(wanted.fields()) }
    }

    /// The change of what the map shows: a name that the map made up counts as the one that it
    /// stands for, unless it is changed.
    #[must_use]
    pub fn to<T: Typed>(seen: &Listed<T>, wanted: &T) -> Self {
        let (written, mut wanted) = (seen.written(), wanted.clone());
        let shown = seen.spec.clone().name_mut().map(|name| name.clone());
        let given = written.clone().name_mut().map(|name| name.clone());
        if let (Some(name), Some(given)) = (wanted.name_mut(), given)
            && shown.as_ref() == Some(&*name)
        {
            *name = given;
        }
        Self::change(&written, &wanted)
    }

    /// The deletion of what someone saw.
    #[must_use]
    pub fn deletion<T: Typed>(seen: &T) -> Self {
        Self { key: T::key_of(&seen.id()), base: seen.fields(), wanted: None }
    }

    /// The record.
    #[must_use]
    pub const fn key(&self) -> &RecordKey {
        &self.key
    }

    /// Whether it deletes the record.
    #[must_use]
    pub const fn deletes(&self) -> bool {
        self.wanted.is_none()
    }

    /// What it changes, for people.
    #[must_use]
    pub fn describe(&self) -> String {
        let Some(wanted) = &self.wanted else { return "delete it".to_owned() };
        let mut text = String::new();
        for (id, bytes) in wanted.iter().filter(|(id, bytes)| self.base.get(id) != Some(bytes)) {
            let comma = if text.is_empty() { "" } else { ", " };
            let (kind, name) = (self.key.kind(), field_name(self.key.kind(), *id));
            let _ = write!(text, "{comma}{name} to {}", describe(kind, *id, bytes));
        }
        if text.is_empty() { "nothing".to_owned() } else { text }
    }

    /// What is to be written now that these fields are shown; nothing to delete the record.
    ///
    /// # Errors
    /// [`MapError::ChangedMeanwhile`] if someone else changed what this changes.
    pub(super) fn writes(&self, shown: &Fields) -> Result<Option<Fields>, MapError> {
        let Some(wanted) = &self.wanted else {
            let others = self.base.iter().filter(|(id, seen)| shown.get(id) != Some(seen));
            self.refuse(&others.map(|(id, _)| *id).collect::<Vec<_>>())?;
            return Ok(None);
        };
        let changed: Fields = wanted
            .iter()
            .filter(|(id, bytes)| self.base.get(id) != Some(bytes))
            .map(|(id, bytes)| (*id, bytes.clone()))
            .collect();
        let is_others = |id: &FieldId, bytes: &Vec<u8>| {
            shown.get(id) != self.base.get(id) && shown.get(id) != Some(bytes)
        };
        let others = changed.iter().filter(|(id, bytes)| is_others(id, bytes));
        self.refuse(&others.map(|(id, _)| *id).collect::<Vec<_>>())?;
        Ok(Some(changed.into_iter().filter(|(id, b)| shown.get(id) != Some(b)).collect()))
    }

    fn refuse(&self, fields: &[FieldId]) -> Result<(), MapError> {
        if fields.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = fields.iter().map(|id| field_name(self.key.kind(), *id)).collect();
        Err(MapError::ChangedMeanwhile { key: self.key.clone(), fields: names.join(", ") })
    }
}

//! Typed edits and what they write: the fields that change and no other. Pure; it must never
//! write a field whose value stays, since that would settle or reorder what others did.

use flocker_base::{Name, ServiceId, StoreId, TokenId, VolumeId};

use super::MapError;
use super::amendment::Amendment;
use super::key::{Kind, RecordKey};
use super::record::{FieldId, Intent, IntentState, Record, Tombstone};
use super::register::Register;
use super::stamp::Stamp;
use super::typed::{self, BIRTH, NAME, Typed};
use super::view::MapView;
use crate::model::{NodeSpec, RouteKey, RouteSpec, ServiceSpec, TokenSpec, VolumeSpec};

mod members;

pub use members::{NodeChange, TokenChange};

/// A change that someone wants.
#[derive(Clone, Debug)]
pub enum Edit {
    /// Creates the volume or changes what differs. A deleted id is refused.
    PutVolume(VolumeSpec),
    /// Deletes the volume. No change if it is deleted.
    DeleteVolume(VolumeId),
    /// Creates the service or changes what differs. A deleted id is refused.
    PutService(ServiceSpec),
    /// Deletes the service. No change if it is deleted.
    DeleteService(ServiceId),
    /// Creates the route, again if it was deleted, or changes what differs.
    PutRoute(RouteSpec),
    /// Deletes the route. No change if it is deleted.
    DeleteRoute(RouteKey),
    /// Creates the token or changes what differs.
    PutToken(TokenSpec),
    /// Changes one thing of a token.
    ChangeToken(TokenId, TokenChange),
    /// Deletes the token. No change if it is deleted.
    DeleteToken(TokenId),
    /// Creates the node or changes what differs.
    PutNode(NodeSpec),
    /// The same for a node that is admitted: a removed one is refused.
    AdmitNode(NodeSpec),
    /// Changes one thing of a node.
    ChangeNode(StoreId, NodeChange),
    /// Changes or deletes a record, unless someone changed the same fields since its author
    /// looked.
    Amend(Amendment),
    /// Settles a conflict: one value replaces all others.
    Settle {
        /// The record.
        key: RecordKey,
        /// The field.
        field: FieldId,
        /// The value, by its writer and its stamp; nothing for the one that is shown.
        to: Option<(StoreId, Stamp)>,
    },
}

/// Who edits, when, and what that one sees.
pub(super) struct Author<'a> {
    pub actor: StoreId,
    pub stamp: Stamp,
    pub view: &'a MapView,
}

impl Edit {
    /// The record that it changes.
    #[must_use]
    pub fn key(&self) -> RecordKey {
        match self {
            Self::PutVolume(spec) => VolumeSpec::key_of(&spec.id),
            Self::DeleteVolume(id) => VolumeSpec::key_of(id),
            Self::PutService(spec) => ServiceSpec::key_of(&spec.id),
            Self::DeleteService(id) => ServiceSpec::key_of(id),
            Self::PutRoute(spec) => RouteSpec::key_of(&spec.key),
            Self::DeleteRoute(key) => RouteSpec::key_of(key),
            Self::PutToken(spec) => TokenSpec::key_of(&spec.id),
            Self::ChangeToken(id, _) | Self::DeleteToken(id) => TokenSpec::key_of(id),
            Self::PutNode(spec) | Self::AdmitNode(spec) => NodeSpec::key_of(&spec.store),
            Self::ChangeNode(store, _) => NodeSpec::key_of(store),
            Self::Amend(amendment) => amendment.key().clone(),
            Self::Settle { key, .. } => key.clone(),
        }
    }

    /// The record after the edit.
    pub(super) fn apply(
        &self,
        present: Option<Record>,
        author: &Author<'_>,
    ) -> Result<Record, MapError> {
        let key = self.key();
        let mut intent = match present {
            None => None,
            Some(Record::Intent(intent)) => Some(intent),
            Some(Record::Placed(_)) => return Err(MapError::NotEditable { key }),
        };
        match self {
            Self::PutVolume(spec) => {
                check_birth(spec, intent.as_ref())?;
                put(spec, &mut intent, author)?;
            }
            Self::PutService(spec) => put(spec, &mut intent, author)?,
            Self::PutRoute(spec) => {
                if let Some(intent) = &mut intent {
                    intent.revive();
                }
                put(spec, &mut intent, author)?;
            }
            Self::PutToken(spec) => put(spec, &mut intent, author)?,
            Self::ChangeToken(_, change) => {
                members::change_token(&key, change, intent.as_mut(), author)?;
            }
            Self::PutNode(spec) => put(spec, &mut intent, author)?,
            Self::AdmitNode(spec) => members::admit_node(spec, &mut intent, author)?,
            Self::ChangeNode(_, change) => {
                members::change_node(&key, change, intent.as_mut(), author)?;
            }
            Self::DeleteVolume(_)
            | Self::DeleteService(_)
            | Self::DeleteRoute(_)
            | Self::DeleteToken(_) => {
                let intent = intent.as_mut().ok_or(MapError::Unknown { key: key.clone() })?;
                let (stamp, actor) = (author.stamp, author.actor);
                let label = label_of(&key, intent);
                intent.delete(Tombstone { stamp, actor, label });
            }
            Self::Amend(amendment) => amend(amendment, intent.as_mut(), author)?,
            Self::Settle { field, to, .. } => settle(&key, *field, *to, intent.as_mut(), author)?,
        }
        Ok(Record::Intent(intent.ok_or(MapError::Unknown { key })?))
    }
}

/// Writes the fields of `spec` that differ from what is shown now.
fn put<T: Typed>(
    spec: &T,
    present: &mut Option<Intent>,
    author: &Author<'_>,
) -> Result<(), MapError> {
    let key = T::key_of(&spec.id());
    let intent = present.get_or_insert_with(Intent::empty);
    let shown = typed::shown(key.kind(), intent);
    // Compared as this version reads them, so that what a newer version added stays unwritten.
    let before = T::read(spec.id(), &shown).map(|old| old.fields()).unwrap_or_default();
    let renamed = author.view.renamed_from(&key);
    let IntentState::Live(fields) = &mut intent.state else {
        return Err(MapError::Deleted { key });
    };
    let mut wanted = spec.clone();
    if let (Some(name), Some(original)) = (wanted.name_mut(), renamed) {
        // The caller gives back the name that the map itself put in a taken one's place.
        if author.view.shown_name(&key).as_ref() == Some(&*name) {
            *name = original;
        }
    }
    let after = wanted.fields();
    if let Some(name) = wanted.name_mut().filter(|_| before.get(&NAME) != after.get(&NAME))
        && let Some(by) = author.view.holder_of_name(key.kind(), name).filter(|by| *by != key)
    {
        return Err(MapError::NameTaken { name: name.clone(), by });
    }
    for (id, bytes) in after {
        if before.get(&id) != Some(&bytes) {
            fields.entry(id).or_default().write(author.actor, author.stamp, bytes);
        }
    }
    Ok(())
}

/// A volume's birth is what voters fall back on: it is written once.
fn check_birth(spec: &VolumeSpec, present: Option<&Intent>) -> Result<(), MapError> {
    let Some(intent) = present else { return Ok(()) };
    let shown = typed::shown(VolumeSpec::KIND, intent);
    match VolumeSpec::read(spec.id, &shown) {
        Ok(old) if old.birth != spec.birth => Err(MapError::BirthFixed { volume: spec.id }),
        _ => Ok(()),
    }
}

fn label_of(key: &RecordKey, intent: &Intent) -> String {
    // A token's first field is its secret, which must not outlive it.
    if key.kind() == Kind::TOKEN {
        return String::new();
    }
    let shown = typed::shown(key.kind(), intent);
    let name = shown.get(&NAME).and_then(|bytes| postcard::from_bytes::<String>(bytes).ok());
    name.unwrap_or_default()
}

/// Makes the change that someone wanted of what that one saw.
fn amend(
    amendment: &Amendment,
    intent: Option<&mut Intent>,
    author: &Author<'_>,
) -> Result<(), MapError> {
    let key = amendment.key();
    let intent = intent.ok_or_else(|| MapError::Unknown { key: key.clone() })?;
    if intent.fields().is_none() {
        // Deleting what is deleted is done already; anything else comes too late.
        let done = amendment.deletes();
        return if done { Ok(()) } else { Err(MapError::Deleted { key: key.clone() }) };
    }
    let Some(writes) = amendment.writes(&typed::shown(key.kind(), intent))? else {
        let (stamp, actor) = (author.stamp, author.actor);
        let label = label_of(key, intent);
        intent.delete(Tombstone { stamp, actor, label });
        return Ok(());
    };
    if let (Kind::VOLUME, Some(volume), Some(_)) =
        (key.kind(), VolumeSpec::id_of(key), writes.get(&BIRTH))
    {
        return Err(MapError::BirthFixed { volume });
    }
    let name = writes.get(&NAME).and_then(|bytes| postcard::from_bytes::<Name>(bytes).ok());
    if let Some(name) = name
        && let Some(by) = author.view.holder_of_name(key.kind(), &name).filter(|by| by != key)
    {
        return Err(MapError::NameTaken { name, by });
    }
    if let IntentState::Live(fields) = &mut intent.state {
        for (id, bytes) in writes {
            fields.entry(id).or_default().write(author.actor, author.stamp, bytes);
        }
    }
    Ok(())
}

fn settle(
    key: &RecordKey,
    field: FieldId,
    to: Option<(StoreId, Stamp)>,
    intent: Option<&mut Intent>,
    author: &Author<'_>,
) -> Result<(), MapError> {
    let unknown = || MapError::Unknown { key: key.clone() };
    let intent = intent.ok_or_else(unknown)?;
    let shown = typed::shown(key.kind(), intent).remove(&field).ok_or_else(unknown)?;
    let IntentState::Live(fields) = &mut intent.state else {
        return Err(MapError::Deleted { key: key.clone() });
    };
    let register: &mut Register = fields.entry(field).or_default();
    let value = match to {
        None => shown,
        Some(chosen) => register
            .siblings()
            .iter()
            .find(|sibling| (sibling.actor, sibling.stamp) == chosen)
            .map(|sibling| sibling.bytes.clone())
            .ok_or_else(|| MapError::NoSuchValue { key: key.clone() })?,
    };
    if register.siblings().len() > 1 {
        register.write(author.actor, author.stamp, value);
    }
    Ok(())
}

//! Edits of tokens and nodes that change one thing and leave the rest as it is at that moment:
//! what was decided a moment ago on an older view must not write back what changed since.

use std::collections::BTreeMap;

use flocker_base::WallTime;
use serde::Serialize;

use super::{Author, MapError, put};
use crate::map::key::RecordKey;
use crate::map::record::{FieldId, Intent, IntentState};
use crate::map::typed::members::{
    ENDED, FLAG, REMOVAL, USES_LEFT, field_of_label, labels_bytes, read_labels,
};
use crate::map::typed::{self, Typed};
use crate::model::{LabelKey, MAX_LABELS, NodeSpec, Removal};

/// A change of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenChange {
    /// It admits nobody any more. For ever: there is no change that takes this back.
    Revoke {
        /// When.
        at: WallTime,
    },
    /// So many uses are left, as its issuer says.
    UsesLeft {
        /// How many.
        left: u32,
        /// When that was so.
        at: WallTime,
    },
}

/// A change of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeChange {
    /// It is not of the cluster any more. For ever: there is no change that takes this back.
    Remove(Removal),
    /// These labels get these values, or go.
    Label(BTreeMap<LabelKey, Option<String>>),
}

pub(super) fn change_token(
    key: &RecordKey,
    change: &TokenChange,
    intent: Option<&mut Intent>,
    author: &Author<'_>,
) -> Result<(), MapError> {
    let intent = living(key, intent)?;
    match change {
        TokenChange::Revoke { at } => {
            if write(key, intent, author, FLAG, &true) {
                write(key, intent, author, ENDED, at);
            }
        }
        TokenChange::UsesLeft { left, at } => {
            if write(key, intent, author, USES_LEFT, left) && *left == 0 {
                write(key, intent, author, ENDED, at);
            }
        }
    }
    Ok(())
}

pub(super) fn change_node(
    key: &RecordKey,
    change: &NodeChange,
    intent: Option<&mut Intent>,
    author: &Author<'_>,
) -> Result<(), MapError> {
    let intent = living(key, intent)?;
    match change {
        NodeChange::Remove(removal) => {
            if write(key, intent, author, FLAG, &true) {
                write(key, intent, author, REMOVAL, removal);
            }
        }
        NodeChange::Label(labels) => {
            for (label, value) in labels {
                let field = field_of_label(label);
                let shown = typed::shown(key.kind(), intent);
                let mut beside =
                    shown.get(&field).map(|bytes| read_labels(bytes)).unwrap_or_default();
                match value {
                    Some(value) => drop(beside.insert(label.clone(), value.clone())),
                    None if !beside.contains_key(label) => continue,
                    None => drop(beside.remove(label)),
                }
                write_bytes(key, intent, author, field, labels_bytes(&beside));
            }
            let count = NodeSpec::id_of(key)
                .and_then(|id| NodeSpec::read(id, &typed::shown(key.kind(), intent)).ok())
                .map_or(0, |spec| spec.labels.len());
            if count > MAX_LABELS {
                return Err(MapError::TooManyLabels { key: key.clone(), count });
            }
        }
    }
    Ok(())
}

/// Records a node that was admitted. One that was removed stays removed, and the labels of one that
/// joins again stay.
pub(super) fn admit_node(
    spec: &NodeSpec,
    intent: &mut Option<Intent>,
    author: &Author<'_>,
) -> Result<(), MapError> {
    let key = NodeSpec::key_of(&spec.store);
    if let Some(present) = intent {
        let before = NodeSpec::read(spec.store, &typed::shown(key.kind(), present));
        if before.is_ok_and(|node| node.removed) {
            return Err(MapError::Deleted { key });
        }
    }
    put(spec, intent, author)
}

fn living<'a>(key: &RecordKey, intent: Option<&'a mut Intent>) -> Result<&'a mut Intent, MapError> {
    match intent {
        None => Err(MapError::Unknown { key: key.clone() }),
        Some(intent) if intent.fields().is_none() => Err(MapError::Deleted { key: key.clone() }),
        Some(intent) => Ok(intent),
    }
}

fn write<T: Serialize>(
    key: &RecordKey,
    intent: &mut Intent,
    author: &Author<'_>,
    field: FieldId,
    value: &T,
) -> bool {
    // Writing into memory fails only for types that the model does not use.
    postcard::to_allocvec(value).is_ok_and(|bytes| write_bytes(key, intent, author, field, bytes))
}

/// Writes a field unless it is shown so already. Says whether it wrote.
fn write_bytes(
    key: &RecordKey,
    intent: &mut Intent,
    author: &Author<'_>,
    field: FieldId,
    bytes: Vec<u8>,
) -> bool {
    if typed::shown(key.kind(), intent).get(&field) == Some(&bytes) {
        return false;
    }
    if let IntentState::Live(fields) = &mut intent.state {
        fields.entry(field).or_default().write(author.actor, author.stamp, bytes);
    }
    true
}

//! What people must look at: fields that two sides wrote, and store ids in use twice. It must
//! never show a secret.

use std::fmt;

use flocker_base::StoreId;
use serde::de::DeserializeOwned;

use super::key::{Kind, RecordKey};
use super::record::FieldId;
use super::register::Register;
use super::stamp::Stamp;
use crate::model::{Birth, EngineKind, Failover, VolumeMount};

/// A field with more than one value, none of which replaces the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The record.
    pub key: RecordKey,
    /// The field.
    pub field: FieldId,
    /// The values, the one that all nodes act on first.
    pub contenders: Vec<Contender>,
}

/// One of the values of a field in conflict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contender {
    /// The store that wrote it.
    pub by: StoreId,
    /// When, by that store's clock.
    pub at: Stamp,
    /// The value for people.
    pub text: String,
}

impl Conflict {
    pub(super) fn of(key: &RecordKey, field: FieldId, register: &Register) -> Option<Self> {
        let siblings = register.siblings();
        if siblings.windows(2).all(|pair| pair[0].bytes == pair[1].bytes) {
            return None;
        }
        let contender = |sibling: &super::register::Sibling| Contender {
            by: sibling.actor,
            at: sibling.stamp,
            text: describe(key.kind(), field, &sibling.bytes),
        };
        let contenders = siblings.iter().map(contender).collect();
        Some(Self { key: key.clone(), field, contenders })
    }

    /// What the field is called.
    #[must_use]
    pub fn field_name(&self) -> &'static str {
        field_name(self.key.kind(), self.field)
    }
}

/// One store id is in use from two stores: a copied or restored disk. Writes may be lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alarm {
    /// The record where it was found.
    pub key: RecordKey,
    /// The field, if it was found in one.
    pub field: Option<FieldId>,
    /// The id.
    pub actor: StoreId,
}

impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, actor, .. } = self;
        write!(
            f,
            "store {actor} wrote two different values of {key} as one: its disk was copied or \
             restored while the original went on; wipe one of the two"
        )
    }
}

pub(super) const fn field_name(kind: Kind, field: FieldId) -> &'static str {
    match (kind, field) {
        (Kind::VOLUME | Kind::SERVICE | Kind::NODE, 1) => "name",
        (Kind::VOLUME, 2) => "birth",
        (Kind::VOLUME, 3) => "local replicas",
        (Kind::VOLUME, 4) => "remote replicas",
        (Kind::VOLUME, 5) => "snapshot interval",
        (Kind::VOLUME, 6) => "lag limit",
        (Kind::VOLUME, 7) => "failover",
        (Kind::SERVICE, 2) => "command",
        (Kind::SERVICE, 3) => "environment",
        (Kind::SERVICE, 4) => "volume",
        (Kind::SERVICE, 5) => "health path",
        (Kind::SERVICE, 6) => "stop grace",
        (Kind::SERVICE, 7) => "engine",
        (Kind::ROUTE, 2) => "service",
        (Kind::TOKEN, 1) => "secret",
        (Kind::TOKEN, 2) => "expires",
        (Kind::TOKEN, 3) => "revoked",
        (Kind::TOKEN, 4) => "issuer",
        (Kind::TOKEN, 5) => "uses",
        (Kind::TOKEN, 6) => "uses left",
        (Kind::TOKEN, 10) => "end",
        (Kind::NODE, 2) => "region",
        (Kind::NODE, 3) => "removed",
        (Kind::NODE, 4) => "removal",
        (Kind::NODE, 5) => "origin",
        (Kind::NODE, super::typed::members::FIRST_LABEL..=super::typed::members::LAST_LABEL) => {
            "label"
        }
        _ => "unknown field",
    }
}

pub(super) fn describe(kind: Kind, field: FieldId, bytes: &[u8]) -> String {
    match (kind, field) {
        (Kind::VOLUME | Kind::SERVICE | Kind::NODE, 1) | (Kind::NODE, 2) => {
            text::<String>(bytes, Clone::clone)
        }
        (Kind::VOLUME, 2) => text::<Birth>(bytes, |birth| format!("born on {}", birth.master)),
        (Kind::VOLUME, 3 | 4) => text::<u8>(bytes, ToString::to_string),
        (Kind::VOLUME, 5 | 6) | (Kind::SERVICE, 6) => {
            text::<std::time::Duration>(bytes, |span| format!("{span:?}"))
        }
        (Kind::VOLUME, 7) => text::<Failover>(bytes, |way| format!("{way:?}").to_lowercase()),
        (Kind::SERVICE, 2) => text::<Vec<String>>(bytes, |words| words.join(" ")),
        (Kind::SERVICE, 4) => text::<VolumeMount>(bytes, |m| format!("{} at {}", m.volume, m.path)),
        (Kind::SERVICE, 5) => text::<Option<String>>(bytes, |path| format!("{path:?}")),
        (Kind::SERVICE, 7) => text::<EngineKind>(bytes, |kind| format!("{kind:?}").to_lowercase()),
        (Kind::ROUTE, 2) => text::<flocker_base::ServiceId>(bytes, ToString::to_string),
        (Kind::TOKEN, 2) => {
            text::<flocker_base::WallTime>(bytes, |at| format!("{} ms", at.as_millis()))
        }
        (Kind::TOKEN | Kind::NODE, 3) | (Kind::VOLUME, 8) => {
            text::<bool>(bytes, ToString::to_string)
        }
        // Secrets, environments that may hold some, and what this version does not know.
        _ => format!("{} bytes", bytes.len()),
    }
}

fn text<T: DeserializeOwned>(bytes: &[u8], show: impl Fn(&T) -> String) -> String {
    match postcard::from_bytes(bytes) {
        Ok(value) => show(&value),
        Err(_unreadable) => format!("{} bytes that this version cannot read", bytes.len()),
    }
}

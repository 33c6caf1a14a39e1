//! Which field of the model lies in which field of a record. Field numbers must never be reused
//! and a field's type never changed: a changed type takes a new number.
//!
//! Each independent item has a field of its own, so that edits of different items on two sides
//! of a partition both survive.

use std::collections::BTreeMap;
use std::time::Duration;

use flocker_base::{Name, ServiceId, VolumeId};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::key::{Kind, RecordKey};
use super::record::{FieldId, Intent, Placed};
use super::register::Sibling;
use super::stamp::Stamp;
use crate::model::{
    Failover, Placement, RouteKey, RouteSpec, ServiceSpec, VolumePolicy, VolumeSpec,
};

/// The field that holds a record's name, in every kind that has one.
pub const NAME: FieldId = 1;

/// The field that holds a volume's birth.
pub(super) const BIRTH: FieldId = 2;

/// Fields as bytes.
pub type Fields = BTreeMap<FieldId, Vec<u8>>;

/// Why a record's fields do not make a value of its kind. The record is kept and passed on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// A field that the kind needs is not there.
    #[error("field {0} is missing")]
    Missing(FieldId),
    /// A field holds what this version cannot read.
    #[error("field {0} holds what this version cannot read")]
    Field(FieldId),
    /// The key is not one of the kind.
    #[error("its key is not one of its kind")]
    Key,
}

/// A kind of intent with its fields.
pub trait Typed: Clone + PartialEq + Sized {
    /// Its kind.
    const KIND: Kind;
    /// What it is found by.
    type Id: Clone + Ord;

    /// Its id.
    fn id(&self) -> Self::Id;
    /// The record key of an id.
    fn key_of(id: &Self::Id) -> RecordKey;
    /// The id in a key of this kind.
    fn id_of(key: &RecordKey) -> Option<Self::Id>;
    /// Its fields.
    fn fields(&self) -> Fields;
    /// The value that these fields make.
    ///
    /// # Errors
    /// [`Unreadable`] names the field that does not fit.
    fn read(id: Self::Id, fields: &Fields) -> Result<Self, Unreadable>;
    /// Its name, in the kinds whose names must differ.
    fn name_mut(&mut self) -> Option<&mut Name> {
        None
    }
    /// Whether it takes up its name.
    fn claims_name(&self) -> bool {
        true
    }
}

/// The fields that all nodes act on: of concurrent values the winner; of a flag that takes
/// something away (`sticky`), true if any says so.
#[must_use]
pub fn shown(kind: Kind, intent: &Intent) -> Fields {
    let mut fields = Fields::new();
    for (id, register) in intent.fields().into_iter().flatten() {
        let siblings = register.siblings();
        let yes = |sibling: &&Sibling| sticky(kind, *id) && sibling.bytes == [1];
        if let Some(value) = siblings.iter().find(yes).or_else(|| siblings.first()) {
            fields.insert(*id, value.bytes.clone());
        }
    }
    fields
}

/// When the name was written that all nodes act on.
#[must_use]
pub fn named_at(intent: &Intent) -> Stamp {
    let name = intent.fields().and_then(|fields| fields.get(&NAME)?.winner());
    name.map_or(Stamp::ZERO, |winner| winner.stamp)
}

/// Revoked tokens and removed nodes: the careful side wins until a later write settles it.
const fn sticky(kind: Kind, field: FieldId) -> bool {
    matches!((kind, field), (Kind::TOKEN | Kind::NODE, 3))
}

fn put<T: Serialize>(fields: &mut Fields, id: FieldId, value: &T) {
    // Writing into memory fails only for types that the model does not use; the reader then
    // finds the field missing and says so.
    if let Ok(bytes) = postcard::to_allocvec(value) {
        fields.insert(id, bytes);
    }
}

fn get<T: DeserializeOwned>(fields: &Fields, id: FieldId) -> Result<T, Unreadable> {
    let bytes = fields.get(&id).ok_or(Unreadable::Missing(id))?;
    postcard::from_bytes(bytes).map_err(|_refused| Unreadable::Field(id))
}

fn get_or<T: DeserializeOwned>(fields: &Fields, id: FieldId, or: T) -> Result<T, Unreadable> {
    if fields.contains_key(&id) { get(fields, id) } else { Ok(or) }
}

macro_rules! key_by_uuid {
    ($id:ty) => {
        type Id = $id;

        fn key_of(id: &Self::Id) -> RecordKey {
            RecordKey::new(Self::KIND, id.as_bytes())
        }

        fn id_of(key: &RecordKey) -> Option<Self::Id> {
            key.id().try_into().ok().map(<$id>::from_bytes)
        }
    };
}

// After the macro that it uses.
pub(in crate::map) mod members;

impl Typed for VolumeSpec {
    const KIND: Kind = Kind::VOLUME;
    key_by_uuid!(VolumeId);

    fn id(&self) -> VolumeId {
        self.id
    }

    fn fields(&self) -> Fields {
        let mut fields = Fields::new();
        put(&mut fields, NAME, &self.name);
        put(&mut fields, 2, &self.birth);
        put(&mut fields, 3, &self.policy.local_replicas);
        put(&mut fields, 4, &self.policy.remote_replicas);
        put(&mut fields, 5, &self.policy.snapshot_interval);
        put(&mut fields, 6, &self.policy.lag_limit);
        // A version that knows no regions here fails over to any of them.
        let in_region = self.policy.failover == Failover::InRegion;
        put(&mut fields, 7, if in_region { &Failover::Auto } else { &self.policy.failover });
        put(&mut fields, 8, &in_region);
        fields
    }

    fn read(id: VolumeId, fields: &Fields) -> Result<Self, Unreadable> {
        let usual = VolumePolicy::default();
        let failover = match get_or(fields, 7, usual.failover)? {
            Failover::Auto if get_or(fields, 8, false)? => Failover::InRegion,
            failover => failover,
        };
        let policy = VolumePolicy {
            local_replicas: get_or(fields, 3, usual.local_replicas)?,
            remote_replicas: get_or(fields, 4, usual.remote_replicas)?,
            snapshot_interval: get_or(fields, 5, usual.snapshot_interval)?,
            lag_limit: get_or(fields, 6, usual.lag_limit)?,
            failover,
        };
        Ok(Self { id, name: get(fields, NAME)?, policy, birth: get(fields, 2)? })
    }

    fn name_mut(&mut self) -> Option<&mut Name> {
        Some(&mut self.name)
    }
}

impl Typed for ServiceSpec {
    const KIND: Kind = Kind::SERVICE;
    key_by_uuid!(ServiceId);

    fn id(&self) -> ServiceId {
        self.id
    }

    fn fields(&self) -> Fields {
        let mut fields = Fields::new();
        put(&mut fields, NAME, &self.name);
        put(&mut fields, 2, &self.command);
        put(&mut fields, 3, &self.environment);
        put(&mut fields, 4, &self.volume);
        put(&mut fields, 5, &self.health_path);
        put(&mut fields, 6, &self.stop_grace);
        put(&mut fields, 7, &self.engine);
        fields
    }

    fn read(id: ServiceId, fields: &Fields) -> Result<Self, Unreadable> {
        Ok(Self {
            id,
            name: get(fields, NAME)?,
            command: get(fields, 2)?,
            environment: get_or(fields, 3, BTreeMap::new())?,
            volume: get(fields, 4)?,
            health_path: get_or(fields, 5, None)?,
            stop_grace: get_or(fields, 6, Duration::from_secs(10))?,
            engine: get(fields, 7)?,
        })
    }

    fn name_mut(&mut self) -> Option<&mut Name> {
        Some(&mut self.name)
    }
}

impl Typed for RouteSpec {
    const KIND: Kind = Kind::ROUTE;
    type Id = RouteKey;

    fn id(&self) -> RouteKey {
        self.key.clone()
    }

    fn key_of(id: &RouteKey) -> RecordKey {
        match id {
            RouteKey::HttpHost(host) => {
                RecordKey::new(Self::KIND, &[b"h".as_slice(), host.as_bytes()].concat())
            }
        }
    }

    fn id_of(key: &RecordKey) -> Option<RouteKey> {
        let host = std::str::from_utf8(key.id().strip_prefix(b"h")?).ok()?;
        Some(RouteKey::HttpHost(host.to_owned()))
    }

    fn fields(&self) -> Fields {
        let mut fields = Fields::new();
        put(&mut fields, 2, &self.service);
        fields
    }

    fn read(key: RouteKey, fields: &Fields) -> Result<Self, Unreadable> {
        Ok(Self { key, service: get(fields, 2)? })
    }
}

/// The record key of a volume's placement.
#[must_use]
pub fn placement_key(volume: VolumeId) -> RecordKey {
    RecordKey::new(Kind::PLACEMENT, volume.as_bytes())
}

/// The record that says this.
#[must_use]
pub fn placed(placement: &Placement) -> Placed {
    let mut content = Fields::new();
    put(&mut content, 1, &placement.voters);
    put(&mut content, 2, &placement.replicas);
    put(&mut content, 3, &placement.head);
    put(&mut content, 4, &placement.state);
    let Placement { epoch, sequence, holder, .. } = *placement;
    Placed { epoch, sequence, holder, content }
}

/// What a placement record says.
///
/// # Errors
/// [`Unreadable`] names the field that does not fit.
pub fn placement(key: &RecordKey, placed: &Placed) -> Result<Placement, Unreadable> {
    let id = key.id().try_into().map_err(|_length| Unreadable::Key)?;
    Ok(Placement {
        volume: VolumeId::from_bytes(id),
        epoch: placed.epoch,
        sequence: placed.sequence,
        holder: placed.holder,
        voters: get(&placed.content, 1)?,
        replicas: get(&placed.content, 2)?,
        head: get(&placed.content, 3)?,
        state: get(&placed.content, 4)?,
    })
}

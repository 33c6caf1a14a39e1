//! The fields of tokens and nodes. What is not set has no field, so that records of older versions
//! and of nodes that know less are not contradicted by mere absence.
//!
//! A node's labels lie in fields 256 to 511: a label in the one that its name's hash picks, so that
//! edits of different labels on two sides both survive. Labels that meet in one field share its
//! fate; a conflict of it is shown like any other.

use std::collections::BTreeMap;

use flocker_base::{StoreId, TokenId};

use super::{Fields, NAME, Typed, Unreadable, get, get_or, put};
use crate::map::key::{Kind, RecordKey};
use crate::map::record::FieldId;
use crate::model::{LabelKey, NodeSpec, TokenSpec};

/// The first field of a node's labels.
pub(in crate::map) const FIRST_LABEL: FieldId = 256;
/// The last one.
pub(in crate::map) const LAST_LABEL: FieldId = 511;

/// Whether the token or node was revoked or removed.
pub(in crate::map) const FLAG: FieldId = 3;
/// How many uses of a token are left.
pub(in crate::map) const USES_LEFT: FieldId = 6;
/// When a token was revoked or used up.
pub(in crate::map) const ENDED: FieldId = 10;
/// Who removed a node and when.
pub(in crate::map) const REMOVAL: FieldId = 4;

/// The field that a label lies in.
#[must_use]
pub(in crate::map) fn field_of_label(key: &LabelKey) -> FieldId {
    FIRST_LABEL + FieldId::from(blake3::hash(key.as_str().as_bytes()).as_bytes()[0])
}

/// The labels in one field: few, or one.
#[must_use]
pub(in crate::map) fn read_labels(bytes: &[u8]) -> BTreeMap<LabelKey, String> {
    let pairs: Vec<(String, String)> = postcard::from_bytes(bytes).unwrap_or_default();
    let good = |(key, value): (String, String)| Some((LabelKey::new(key).ok()?, value));
    pairs.into_iter().filter_map(good).filter(|(key, value)| key.check(value).is_ok()).collect()
}

/// The bytes of one field of labels.
#[must_use]
pub(in crate::map) fn labels_bytes(labels: &BTreeMap<LabelKey, String>) -> Vec<u8> {
    let pairs: Vec<(&str, &str)> = labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    postcard::to_allocvec(&pairs).unwrap_or_default()
}

fn put_some<T: serde::Serialize>(fields: &mut Fields, id: FieldId, value: Option<&T>) {
    if let Some(value) = value {
        put(fields, id, value);
    }
}

fn get_some<T: serde::de::DeserializeOwned>(
    fields: &Fields,
    id: FieldId,
) -> Result<Option<T>, Unreadable> {
    if fields.contains_key(&id) { get(fields, id).map(Some) } else { Ok(None) }
}

impl Typed for TokenSpec {
    const KIND: Kind = Kind::TOKEN;
    key_by_uuid!(TokenId);

    fn id(&self) -> TokenId {
        self.id
    }

    fn fields(&self) -> Fields {
        let mut fields = Fields::new();
        put(&mut fields, 1, &self.secret);
        put(&mut fields, 2, &self.expires);
        put(&mut fields, FLAG, &self.revoked);
        put_some(&mut fields, 4, self.issuer.as_ref());
        put_some(&mut fields, 5, self.uses.as_ref());
        put_some(&mut fields, USES_LEFT, self.uses_left.as_ref());
        put_some(&mut fields, 7, self.region.as_ref());
        put_some(&mut fields, 8, self.name.as_ref());
        put_some(&mut fields, 9, self.note.as_ref());
        put_some(&mut fields, ENDED, self.ended.as_ref());
        fields
    }

    /// A limit that can't be read makes the whole token unreadable: it then admits nobody.
    fn read(id: TokenId, fields: &Fields) -> Result<Self, Unreadable> {
        Ok(Self {
            id,
            secret: get(fields, 1)?,
            expires: get(fields, 2)?,
            revoked: get(fields, FLAG)?,
            issuer: get_some(fields, 4)?,
            uses: get_some(fields, 5)?,
            uses_left: get_some(fields, USES_LEFT)?,
            region: get_some(fields, 7)?,
            name: get_some(fields, 8)?,
            note: get_some(fields, 9).unwrap_or_default(),
            ended: get_some(fields, ENDED).unwrap_or_default(),
        })
    }
}

impl Typed for NodeSpec {
    const KIND: Kind = Kind::NODE;
    key_by_uuid!(StoreId);

    fn id(&self) -> StoreId {
        self.store
    }

    fn fields(&self) -> Fields {
        let mut fields = Fields::new();
        put(&mut fields, NAME, &self.name);
        put(&mut fields, 2, &self.region);
        put(&mut fields, FLAG, &self.removed);
        put_some(&mut fields, REMOVAL, self.removal.as_ref());
        put_some(&mut fields, 5, self.origin.as_ref());
        let mut by_field: BTreeMap<FieldId, BTreeMap<LabelKey, String>> = BTreeMap::new();
        for (key, value) in &self.labels {
            by_field.entry(field_of_label(key)).or_default().insert(key.clone(), value.clone());
        }
        fields.extend(by_field.iter().map(|(id, labels)| (*id, labels_bytes(labels))));
        fields
    }

    /// What can't be read of the lesser fields is left out: the flag must be heeded all the same.
    fn read(store: StoreId, fields: &Fields) -> Result<Self, Unreadable> {
        let labels = fields.range(FIRST_LABEL..=LAST_LABEL);
        Ok(Self {
            store,
            name: get(fields, NAME)?,
            region: get(fields, 2)?,
            removed: get_or(fields, FLAG, false)?,
            removal: get_some(fields, REMOVAL).unwrap_or_default(),
            origin: get_some(fields, 5).unwrap_or_default(),
            labels: labels.flat_map(|(_, bytes)| read_labels(bytes)).collect(),
        })
    }

    fn name_mut(&mut self) -> Option<&mut flocker_base::Name> {
        Some(&mut self.name)
    }

    fn claims_name(&self) -> bool {
        !self.removed
    }
}

//! The map as the rest of the agent reads it: typed, indexed by id and name, cheap to clone. It
//! must never be written to but from records that are durable.

use std::ops::Deref;
use std::sync::Arc;

use flocker_base::{Name, ServiceId, StoreId, TokenId, VolumeId};
use rpds::RedBlackTreeMapSync;

use super::conflict::{Alarm, Conflict};
use super::key::{Kind, RecordKey};
use super::pending::Pending;
use super::quarantine::{MAX_QUARANTINED, Quarantined};
use super::record::{FieldId, Intent, IntentState, Record, Tombstone};
use super::stamp::Stamp;
use super::table::Table;
use super::tree::Hash;
use super::typed::{self, Typed, Unreadable};
use crate::model::{NodeSpec, Placement, RouteKey, RouteSpec, ServiceSpec, TokenSpec, VolumeSpec};

/// Most alarms kept; the log has them all.
const MAX_ALARMS: usize = 64;

/// A value of the map with what the map has to say about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed<T> {
    /// The value, under the name that it goes by.
    pub spec: T,
    /// The name that its owner gave it, if an earlier one has that name.
    pub renamed_from: Option<Name>,
    pub(super) named_at: Stamp,
}

impl<T> Deref for Listed<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.spec
    }
}

impl<T: Typed> Listed<T> {
    /// The value as its owner wrote it, with the name that it was given.
    #[must_use]
    pub fn written(&self) -> T {
        let mut spec = self.spec.clone();
        if let (Some(name), Some(original)) = (spec.name_mut(), &self.renamed_from) {
            name.clone_from(original);
        }
        spec
    }
}

/// One state of the map.
#[derive(Clone, Debug, Default)]
pub struct MapView {
    volumes: Table<VolumeSpec>,
    services: Table<ServiceSpec>,
    routes: Table<RouteSpec>,
    tokens: Table<TokenSpec>,
    nodes: Table<NodeSpec>,
    placements: RedBlackTreeMapSync<VolumeId, Arc<Placement>>,
    deleted: RedBlackTreeMapSync<RecordKey, Arc<Tombstone>>,
    unreadable: RedBlackTreeMapSync<RecordKey, Unreadable>,
    conflicts: RedBlackTreeMapSync<(RecordKey, FieldId), Arc<Conflict>>,
    quarantined: RedBlackTreeMapSync<RecordKey, Arc<Quarantined>>,
    pending: RedBlackTreeMapSync<u64, Arc<Pending>>,
    alarms: Vec<Arc<Alarm>>,
    root: Hash,
    records: u64,
}

macro_rules! listing {
    ($one:ident, $all:ident, $table:ident, $spec:ty, $id:ty) => {
        #[doc = concat!("The ", stringify!($one), " with this id, if it lives.")]
        #[must_use]
        pub fn $one(&self, id: &$id) -> Option<&Arc<Listed<$spec>>> {
            self.$table.get(id)
        }

        #[doc = concat!("All ", stringify!($all), " that live, by id.")]
        pub fn $all(&self) -> impl Iterator<Item = &Arc<Listed<$spec>>> {
            self.$table.iter()
        }
    };
}

impl MapView {
    listing!(volume, volumes, volumes, VolumeSpec, VolumeId);
    listing!(service, services, services, ServiceSpec, ServiceId);
    listing!(route, routes, routes, RouteSpec, RouteKey);
    listing!(token, tokens, tokens, TokenSpec, TokenId);
    listing!(node, nodes, nodes, NodeSpec, StoreId);

    /// The volume that goes by this name.
    #[must_use]
    pub fn volume_named(&self, name: &Name) -> Option<&Arc<Listed<VolumeSpec>>> {
        self.volumes.named(name)
    }

    /// The service that goes by this name.
    #[must_use]
    pub fn service_named(&self, name: &Name) -> Option<&Arc<Listed<ServiceSpec>>> {
        self.services.named(name)
    }

    /// The node that goes by this name.
    #[must_use]
    pub fn node_named(&self, name: &Name) -> Option<&Arc<Listed<NodeSpec>>> {
        self.nodes.named(name)
    }

    /// Where a volume is, as its master last said.
    #[must_use]
    pub fn placement(&self, volume: &VolumeId) -> Option<&Arc<Placement>> {
        self.placements.get(volume)
    }

    /// All placements, by volume.
    pub fn placements(&self) -> impl Iterator<Item = &Arc<Placement>> {
        self.placements.values()
    }

    /// What is left of the record, if it was deleted.
    #[must_use]
    pub fn deleted(&self, key: &RecordKey) -> Option<&Arc<Tombstone>> {
        self.deleted.get(key)
    }

    /// Whether this volume was deleted. False as well for one that was never heard of.
    #[must_use]
    pub fn is_volume_deleted(&self, volume: &VolumeId) -> bool {
        self.deleted.contains_key(&VolumeSpec::key_of(volume))
    }

    /// All deleted records.
    pub fn all_deleted(&self) -> impl Iterator<Item = (&RecordKey, &Arc<Tombstone>)> {
        self.deleted.iter()
    }

    /// Fields that were written on two sides and not settled since.
    pub fn conflicts(&self) -> impl Iterator<Item = &Arc<Conflict>> {
        self.conflicts.values()
    }

    /// Records of known kinds that this version cannot read. They are kept and passed on.
    pub fn unreadable(&self) -> impl Iterator<Item = (&RecordKey, &Unreadable)> {
        self.unreadable.iter()
    }

    /// Store ids found in use in two places since the start.
    #[must_use]
    pub fn alarms(&self) -> &[Arc<Alarm>] {
        &self.alarms
    }

    /// Records that are kept apart from the map until a person decides. They are not part of the
    /// map, and no peer is told of them.
    pub fn quarantined(&self) -> impl Iterator<Item = (&RecordKey, &Arc<Quarantined>)> {
        self.quarantined.iter()
    }

    /// The record in quarantine under this key.
    #[must_use]
    pub fn quarantined_record(&self, key: &RecordKey) -> Option<&Arc<Quarantined>> {
        self.quarantined.get(key)
    }

    /// Edits that wait on this node for a master, and those that one refused, by number.
    pub fn pending(&self) -> impl Iterator<Item = (u64, &Arc<Pending>)> {
        self.pending.iter().map(|(number, edit)| (*number, edit))
    }

    /// The waiting edit with this number.
    #[must_use]
    pub fn pending_edit(&self, number: u64) -> Option<&Arc<Pending>> {
        self.pending.get(&number)
    }

    /// Records that go by another name than their owners gave them, with that name.
    pub fn renamed(&self) -> impl Iterator<Item = (RecordKey, &Name, &Name)> {
        let volumes = self.volumes.renamed();
        volumes.chain(self.services.renamed()).chain(self.nodes.renamed())
    }

    /// The root of the hash tree: equal maps, equal roots.
    #[must_use]
    pub const fn root(&self) -> Hash {
        self.root
    }

    /// Records of all kinds, the deleted and the unknown included.
    #[must_use]
    pub const fn records(&self) -> u64 {
        self.records
    }

    pub(super) const fn set_root(&mut self, root: Hash, records: u64) {
        self.root = root;
        self.records = records;
    }

    pub(super) fn is_quarantine_full(&self) -> bool {
        self.quarantined.size() >= MAX_QUARANTINED
    }

    pub(super) fn quarantine(&mut self, key: &RecordKey, record: Quarantined) {
        self.quarantined.insert_mut(key.clone(), Arc::new(record));
    }

    pub(super) fn release(&mut self, key: &RecordKey) {
        self.quarantined.remove_mut(key);
    }

    pub(super) fn set_pending(&mut self, number: u64, edit: Option<Pending>) {
        match edit {
            Some(edit) => self.pending.insert_mut(number, Arc::new(edit)),
            None => drop(self.pending.remove_mut(&number)),
        }
    }

    pub(super) fn raise(&mut self, alarm: Alarm) {
        if self.alarms.len() < MAX_ALARMS && !self.alarms.iter().any(|known| **known == alarm) {
            self.alarms.push(Arc::new(alarm));
        }
    }

    /// Shows a record's new state.
    pub(super) fn show(&mut self, key: &RecordKey, record: &Record) {
        let readable = match (key.kind(), record) {
            (Kind::VOLUME, Record::Intent(it)) => show_in(&mut self.volumes, key, it),
            (Kind::SERVICE, Record::Intent(it)) => show_in(&mut self.services, key, it),
            (Kind::ROUTE, Record::Intent(it)) => show_in(&mut self.routes, key, it),
            (Kind::TOKEN, Record::Intent(it)) => show_in(&mut self.tokens, key, it),
            (Kind::NODE, Record::Intent(it)) => show_in(&mut self.nodes, key, it),
            (Kind::PLACEMENT, Record::Placed(placed)) => typed::placement(key, placed)
                .map(|said| self.placements.insert_mut(said.volume, Arc::new(said))),
            // A kind of a newer version.
            _ => Ok(()),
        };
        match readable {
            Ok(()) => drop(self.unreadable.remove_mut(key)),
            Err(why) => self.unreadable.insert_mut(key.clone(), why),
        }
        if let Record::Intent(intent) = record {
            self.show_disputes(key, intent);
        }
    }

    fn show_disputes(&mut self, key: &RecordKey, intent: &Intent) {
        let from = (key.clone(), FieldId::MIN);
        let to = (key.clone(), FieldId::MAX);
        let old: Vec<_> = self.conflicts.range(from..=to).map(|(at, _)| at.clone()).collect();
        for at in old {
            self.conflicts.remove_mut(&at);
        }
        match &intent.state {
            IntentState::Deleted(tombstone) => {
                self.deleted.insert_mut(key.clone(), Arc::new(tombstone.clone()));
            }
            IntentState::Live(fields) => {
                self.deleted.remove_mut(key);
                for (field, register) in fields {
                    if let Some(conflict) = Conflict::of(key, *field, register) {
                        self.conflicts.insert_mut((key.clone(), *field), Arc::new(conflict));
                    }
                }
            }
        }
    }

    /// The name that this record's owner gave it, if the map shows another.
    pub(super) fn renamed_from(&self, key: &RecordKey) -> Option<Name> {
        match key.kind() {
            Kind::VOLUME => self.volumes.by_key(key)?.renamed_from.clone(),
            Kind::SERVICE => self.services.by_key(key)?.renamed_from.clone(),
            Kind::NODE => self.nodes.by_key(key)?.renamed_from.clone(),
            _ => None,
        }
    }

    /// The name that this record goes by.
    #[must_use]
    pub fn shown_name(&self, key: &RecordKey) -> Option<Name> {
        match key.kind() {
            Kind::VOLUME => Some(self.volumes.by_key(key)?.name.clone()),
            Kind::SERVICE => Some(self.services.by_key(key)?.name.clone()),
            Kind::NODE => Some(self.nodes.by_key(key)?.name.clone()),
            _ => None,
        }
    }

    /// The record that an edit must not take the name from. Nodes are renamed instead: they are
    /// there already when their record is written.
    pub(super) fn holder_of_name(&self, kind: Kind, name: &Name) -> Option<RecordKey> {
        match kind {
            Kind::VOLUME => Some(VolumeSpec::key_of(&self.volumes.named(name)?.id)),
            Kind::SERVICE => Some(ServiceSpec::key_of(&self.services.named(name)?.id)),
            _ => None,
        }
    }
}

fn show_in<T: Typed>(
    table: &mut Table<T>,
    key: &RecordKey,
    intent: &Intent,
) -> Result<(), Unreadable> {
    let id = T::id_of(key).ok_or(Unreadable::Key)?;
    if intent.fields().is_none() {
        table.remove(&id);
        return Ok(());
    }
    let read = T::read(id.clone(), &typed::shown(key.kind(), intent));
    table.remove(&id);
    table.insert(read?, typed::named_at(intent));
    Ok(())
}

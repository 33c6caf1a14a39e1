//! What a node keeps durably about leases, and how each record is written. Authority: these
//! records are never merged, and never read as empty when they can't be decoded.

use std::collections::BTreeMap;
use std::time::Duration;

use flocker_base::{Epoch, Head, Incarnation, StoreId, VolumeId, WallTime};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::model::VoterConfig;

/// The first byte of every record.
pub const RECORD_VERSION: u8 = 1;

/// How fresh a copy is, and when its newest snapshot was taken by its master's clock.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Stamp {
    /// The newest snapshot's place in the history. It alone says which copy is fresher.
    pub head: Head,
    /// When it was taken. Only differences between stamps of one master mean anything.
    pub taken_at: WallTime,
}

/// One start of a store.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Start {
    /// Rises at each start.
    pub incarnation: Incarnation,
    /// Random at each start: tells two copies of one store apart.
    pub nonce: u64,
}

/// What a voter knows of one volume.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VoterRecord {
    /// The highest epoch granted.
    pub max_epoch: Epoch,
    /// To whom.
    pub grantee: Option<StoreId>,
    /// Whether the grantee's heartbeat confirmed it: only then is it protected by heartbeats.
    pub confirmed: bool,
    /// Whether the grantee gave it back, and to whom.
    pub released: Option<Released>,
    /// The newest configuration heard from a master.
    pub config: VoterConfig,
    /// The newest snapshot that the master said a replica holds.
    pub hint: Option<Stamp>,
}

/// A grant given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Released {
    /// Who is to have it first.
    pub successor: Option<StoreId>,
}

impl VoterRecord {
    /// A voter's knowledge of a volume that it never granted.
    #[must_use]
    pub const fn fresh(config: VoterConfig) -> Self {
        Self {
            max_epoch: Epoch::ZERO,
            grantee: None,
            confirmed: false,
            released: None,
            config,
            hint: None,
        }
    }

    /// Whether this voter's grantee took it out of the voters, under the epoch that it was granted.
    #[must_use]
    pub fn has_left(&self, me: StoreId) -> bool {
        self.config.version.epoch == self.max_epoch && !self.config.members().contains(&me)
    }
}

/// What a voter knows of one other store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SupportRecord {
    /// Raised whenever this voter withdraws its promise to that store: heartbeats under a lower
    /// one extend nothing.
    pub support: u64,
    /// Its newest start known. Earlier ones are refused.
    pub start: Option<Start>,
}

/// What this node holds or held.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HolderRecord {
    /// The newest epoch won.
    pub epoch: Epoch,
    /// The newest epoch given up. It and all before it are never used again.
    pub closed: Epoch,
    /// The configuration that the lease is counted under.
    pub config: VoterConfig,
    /// To whom the closed epoch was released.
    pub successor: Option<StoreId>,
    /// Whether every voter knows that it was released.
    pub settled: bool,
}

/// What concerns the whole node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NodeRecord {
    /// The longest lease ever promised: how long a restarted voter waits.
    pub longest_lease: Duration,
    /// Whether peers found this store to be a restored or copied one.
    pub condemned: bool,
}

/// One durable change.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Write {
    /// A voter's record of a volume.
    Voter(VolumeId, VoterRecord),
    /// A voter's record of a store.
    Support(StoreId, SupportRecord),
    /// A holder's record of a volume.
    Holder(VolumeId, HolderRecord),
    /// The node's record.
    Node(NodeRecord),
}

impl Write {
    /// What it is the record of: a later write of the same replaces it.
    #[must_use]
    pub const fn key(&self) -> WriteKey {
        match self {
            Self::Voter(volume, _) => WriteKey::Voter(*volume),
            Self::Support(store, _) => WriteKey::Support(*store),
            Self::Holder(volume, _) => WriteKey::Holder(*volume),
            Self::Node(_) => WriteKey::Node,
        }
    }
}

/// What a durable record is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WriteKey {
    /// A store promised to.
    Support(StoreId),
    /// A volume, as its voter.
    Voter(VolumeId),
    /// A volume, as its holder.
    Holder(VolumeId),
    /// This node.
    Node,
}

/// Everything durable about leases.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Durable {
    /// What this node, as a voter, knows of volumes.
    pub voters: BTreeMap<VolumeId, VoterRecord>,
    /// What it knows of other stores.
    pub supports: BTreeMap<StoreId, SupportRecord>,
    /// What it holds or held.
    pub holders: BTreeMap<VolumeId, HolderRecord>,
    /// What concerns the whole node.
    pub node: NodeRecord,
}

impl Durable {
    /// Makes one change.
    pub fn apply(&mut self, write: Write) {
        match write {
            Write::Voter(volume, record) => drop(self.voters.insert(volume, record)),
            Write::Support(store, record) => drop(self.supports.insert(store, record)),
            Write::Holder(volume, record) => drop(self.holders.insert(volume, record)),
            Write::Node(record) => self.node = record,
        }
    }
}

/// Why a record can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A newer binary wrote it.
    #[error("it has version {0}, and this binary reads {RECORD_VERSION}: upgrade flocker")]
    Version(u8),
    /// It is no record.
    #[error("it is malformed: {0}")]
    Malformed(String),
}

/// The bytes of a record.
///
/// # Errors
/// [`RecordError::Malformed`] if it has no encoding, which none of ours lacks.
pub fn encode<T: Serialize>(record: &T) -> Result<Vec<u8>, RecordError> {
    postcard::to_extend(record, vec![RECORD_VERSION])
        .map_err(|e| RecordError::Malformed(e.to_string()))
}

/// The record with these bytes.
///
/// # Errors
/// [`RecordError`]; bytes left over are an error too.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, RecordError> {
    let malformed = |reason: &str| RecordError::Malformed(reason.to_owned());
    let (version, body) = bytes.split_first().ok_or_else(|| malformed("it is empty"))?;
    if *version != RECORD_VERSION {
        return Err(RecordError::Version(*version));
    }
    let (record, rest) =
        postcard::take_from_bytes(body).map_err(|e| RecordError::Malformed(e.to_string()))?;
    if rest.is_empty() { Ok(record) } else { Err(malformed("bytes are left over")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_voters_record_has_these_bytes() {
        let store = StoreId::from_bytes([1; 16]);
        let record = VoterRecord {
            max_epoch: Epoch::new(0, 5),
            grantee: Some(store),
            confirmed: true,
            released: Some(Released { successor: None }),
            config: VoterConfig::birth(BTreeSet::from([store])),
            hint: Some(Stamp {
                head: Head::new(Epoch::new(0, 5), 9),
                taken_at: WallTime::from_millis(3),
            }),
        };
        let bytes = encode(&record).expect("encode");
        let mut golden = vec![1, 0, 5, 1, 16];
        golden.extend([1; 16]);
        golden.extend([1, 1, 0, 0, 0, 0, 1, 16]);
        golden.extend([1; 16]);
        golden.extend([0, 1, 0, 5, 9, 3]);
        assert_eq!(bytes, golden);
        assert_eq!(decode::<VoterRecord>(&bytes), Ok(record));
    }

    #[test]
    fn a_newer_version_and_every_cut_are_refused() {
        let record = SupportRecord { support: 300, start: Some(Start::default()) };
        let bytes = encode(&record).expect("encode");
        for length in 0..bytes.len() {
            assert!(decode::<SupportRecord>(&bytes[..length]).is_err(), "{length}");
        }
        let mut newer = bytes.clone();
        newer[0] = 2;
        assert_eq!(decode::<SupportRecord>(&newer), Err(RecordError::Version(2)));
        let mut longer = bytes;
        longer.push(0);
        assert!(decode::<SupportRecord>(&longer).is_err());
    }
}

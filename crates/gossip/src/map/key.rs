//! What a record is called: its kind and its id within the kind. Kinds and ids are opaque to
//! storage and synchronisation, so that records of a newer version's kinds are kept and passed
//! on. A kind's number must never be given to another kind.

use std::fmt;
use std::sync::Arc;

use data_encoding::HEXLOWER;

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind(pub u16);

impl Kind {
    /// A volume's intent: [`crate::model::VolumeSpec`].
    pub const VOLUME: Self = Self(1);
    /// [`crate::model::ServiceSpec`].
    pub const SERVICE: Self = Self(2);
    /// [`crate::model::RouteSpec`].
    pub const ROUTE: Self = Self(3);
    /// [`crate::model::TokenSpec`].
    pub const TOKEN: Self = Self(4);
    /// [`crate::model::NodeSpec`].
    pub const NODE: Self = Self(5);
    /// [`crate::model::Placement`].
    pub const PLACEMENT: Self = Self(6);

    const fn word(self) -> Option<&'static str> {
        match self {
            Self::VOLUME => Some("volume"),
            Self::SERVICE => Some("service"),
            Self::ROUTE => Some("route"),
            Self::TOKEN => Some("token"),
            Self::NODE => Some("node"),
            Self::PLACEMENT => Some("placement"),
            _ => None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.word() {
            Some(word) => f.write_str(word),
            None => write!(f, "kind {}", self.0),
        }
    }
}

/// A record's key: the kind in two big-endian bytes, then the id. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordKey(Arc<[u8]>);

impl RecordKey {
    /// Longest key, in bytes: a kind and the longest host name.
    pub const MAX_LEN: usize = 300;

    /// The key of this id in this kind.
    #[must_use]
    pub fn new(kind: Kind, id: &[u8]) -> Self {
        Self([kind.0.to_be_bytes().as_slice(), id].concat().into())
    }

    /// The key with these bytes; nothing if they are too few or too many for one.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        (3..=Self::MAX_LEN).contains(&bytes.len()).then(|| Self(bytes.into()))
    }

    /// Its bytes, as stored and sent.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        Kind(u16::from_be_bytes([self.0[0], self.0[1]]))
    }

    /// Its id within the kind.
    #[must_use]
    pub fn id(&self) -> &[u8] {
        &self.0[2..]
    }
}

impl fmt::Display for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind(), HEXLOWER.encode(self.id()))
    }
}

impl fmt::Debug for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

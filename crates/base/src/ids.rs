//! Identifiers: newtypes over UUIDs, and names as people type them.
//!
//! An id is never reused. Ids are made from time and randomness that the caller passes in.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::clock::WallTime;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// Makes a time-ordered id (UUID version 7, RFC 9562) from the time and randomness
            /// given.
            #[must_use]
            pub fn new(now: WallTime, random: [u8; 10]) -> Self {
                Self(uuid::Builder::from_unix_timestamp_millis(now.as_millis(), &random).into_uuid())
            }

            /// The id with these sixteen bytes.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }

            /// The sixteen bytes, big-endian.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

            /// The last eight hexadecimal digits: enough to tell ids apart on a screen. The first
            /// digits are the time and alike for ids made together.
            #[must_use]
            pub fn short(&self) -> String {
                let all = self.0.simple().to_string();
                all[all.len() - 8..].to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.simple().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.short())
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map(Self)
            }
        }
    };
}

uuid_id! {
    /// A cluster, made by the first `flocker up`.
    ClusterId
}
uuid_id! {
    /// A node's durable store. It is the node's identity everywhere: voter, lease holder, CRDT
    /// actor and certificate subject. A wiped disk is a new one.
    StoreId
}
uuid_id! {
    /// A volume.
    VolumeId
}
uuid_id! {
    /// A service.
    ServiceId
}
uuid_id! {
    /// A join token (its public half).
    TokenId
}

/// How often a store has been started. It rises durably at each start, so that peers notice a
/// restored or copied store.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Incarnation(pub u64);

/// A name as a user types it: `[a-z0-9][a-z0-9-]{0,62}`. Clones share the text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Arc<str>);

/// Why a string is not a [`Name`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a name: use 1 to 63 of a-z, 0-9 and '-', starting with a letter or a digit")]
pub struct NameError(String);

impl Name {
    /// Longest name, in bytes.
    pub const MAX_LEN: usize = 63;

    /// Checks the text and makes a name of it.
    ///
    /// # Errors
    /// [`NameError`] if the text has another form.
    pub fn new(text: impl Into<String>) -> Result<Self, NameError> {
        let text = text.into();
        let bytes = text.as_bytes();
        let good = !bytes.is_empty()
            && bytes.len() <= Self::MAX_LEN
            && bytes[0] != b'-'
            && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-');
        if good { Ok(Self(text.into())) } else { Err(NameError(text.chars().take(80).collect())) }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::new(text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        String::from(&*name.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_accept_what_users_type_and_refuse_paths() {
        for good in ["a", "pg", "0", "web-1", &"x".repeat(63)] {
            assert_eq!(Name::new(good).expect(good).as_str(), good);
        }
        for bad in ["", "-a", "A", "a/b", "..", "a.b", "a b", "é", &"x".repeat(64)] {
            assert!(Name::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_are_ordered_by_time_and_round_trip_as_text() {
        let early = VolumeId::new(WallTime::from_millis(1_000), [9; 10]);
        let late = VolumeId::new(WallTime::from_millis(2_000), [1; 10]);
        assert!(early < late);
        assert_eq!(early.to_string().parse::<VolumeId>().expect("parses"), early);
        assert_eq!(early.short().len(), 8);
    }
}

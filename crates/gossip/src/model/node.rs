//! A node as the cluster admitted it. Which nodes live is [`crate::membership`]'s affair.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use flocker_base::{Name, StoreId, TokenId, WallTime};
use serde::{Deserialize, Serialize};

/// The most labels on a node.
pub const MAX_LABELS: usize = 64;

/// The longest value of a label, in bytes.
pub const MAX_LABEL_VALUE: usize = 128;

/// A node as the cluster admitted it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSpec {
    /// Its store.
    pub store: StoreId,
    /// Its name.
    pub name: Name,
    /// Its region.
    pub region: Name,
    /// Whether it was removed: its certificate is then refused everywhere.
    pub removed: bool,
    /// Who removed it and when, if it was removed and that is known.
    pub removal: Option<Removal>,
    /// How it came in, if it was admitted by a version that notes it.
    pub origin: Option<Origin>,
    /// What people say of it. Each label is a field of its own in the record.
    pub labels: BTreeMap<LabelKey, String>,
}

impl NodeSpec {
    /// A node of this name and region, without labels.
    #[must_use]
    pub const fn new(store: StoreId, name: Name, region: Name) -> Self {
        Self {
            store,
            name,
            region,
            removed: false,
            removal: None,
            origin: None,
            labels: BTreeMap::new(),
        }
    }
}

/// Who removed a node and when. Its stored form is fixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removal {
    /// By the clock of the node where it was removed.
    pub at: WallTime,
    /// The store of that node.
    pub by: StoreId,
}

/// How a node came into the cluster. Its stored form is fixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The token that it came with.
    pub token: TokenId,
    /// The store of the node that admitted it.
    pub by: StoreId,
    /// When, by that node's clock.
    pub at: WallTime,
}

/// The name of a label: `[a-z0-9][a-z0-9-./]{0,62}`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabelKey(String);

/// Why a text is no label.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// The key has another form.
    #[error(
        "'{0}' is no name of a label: use 1 to 63 of a-z, 0-9, '-', '.' and '/', starting with a letter or a digit"
    )]
    Key(String),
    /// The value is too long or can't be shown.
    #[error(
        "the value of label '{0}' is refused: a value has at most {MAX_LABEL_VALUE} bytes and no control characters"
    )]
    Value(LabelKey),
}

impl LabelKey {
    /// Checks the text and makes a label's name of it.
    ///
    /// # Errors
    /// [`LabelError::Key`].
    pub fn new(text: impl Into<String>) -> Result<Self, LabelError> {
        let text = text.into();
        let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let good = (1..=63).contains(&text.len())
            && text.bytes().next().is_some_and(word)
            && text.bytes().all(|b| word(b) || b"-./".contains(&b));
        if good { Ok(Self(text)) } else { Err(LabelError::Key(text.chars().take(80).collect())) }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Checks a value for this label.
    ///
    /// # Errors
    /// [`LabelError::Value`].
    pub fn check(&self, value: &str) -> Result<(), LabelError> {
        let good = value.len() <= MAX_LABEL_VALUE && !value.chars().any(char::is_control);
        if good { Ok(()) } else { Err(LabelError::Value(self.clone())) }
    }
}

impl fmt::Display for LabelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for LabelKey {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

impl TryFrom<String> for LabelKey {
    type Error = LabelError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::new(text)
    }
}

impl From<LabelKey> for String {
    fn from(key: LabelKey) -> Self {
        key.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_checked() {
        for good in ["a", "0", "rack", "disk.kind", "example.com/owner", &"x".repeat(63)] {
            assert_eq!(LabelKey::new(good).expect(good).as_str(), good);
        }
        for bad in ["", "-a", ".a", "/a", "A", "a b", "a=b", "a_b", "é", &"x".repeat(64)] {
            assert!(LabelKey::new(bad).is_err(), "{bad}");
        }
        let key = LabelKey::new("rack").expect("good");
        key.check("").expect("an empty value is one");
        key.check("r 7, Süd").expect("any text");
        assert!(key.check(&"x".repeat(129)).is_err() && key.check("a\nb").is_err());
    }
}

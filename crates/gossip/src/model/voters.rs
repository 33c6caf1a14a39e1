//! A set of stores as small as its members: a large map holds two for each volume.

use std::collections::BTreeSet;
use std::ops::Deref;

use flocker_base::StoreId;
use serde::{Deserialize, Serialize};

/// The stores that vote on a volume, in order, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "BTreeSet<StoreId>")]
pub struct Voters(Box<[StoreId]>);

impl Deref for Voters {
    type Target = [StoreId];

    fn deref(&self) -> &[StoreId] {
        &self.0
    }
}

impl From<BTreeSet<StoreId>> for Voters {
    fn from(stores: BTreeSet<StoreId>) -> Self {
        Self(stores.into_iter().collect())
    }
}

impl<const N: usize> From<[StoreId; N]> for Voters {
    fn from(stores: [StoreId; N]) -> Self {
        stores.into_iter().collect()
    }
}

impl FromIterator<StoreId> for Voters {
    fn from_iter<I: IntoIterator<Item = StoreId>>(stores: I) -> Self {
        stores.into_iter().collect::<BTreeSet<_>>().into()
    }
}

impl<'a> IntoIterator for &'a Voters {
    type Item = &'a StoreId;
    type IntoIter = std::slice::Iter<'a, StoreId>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_set_and_is_written_as_one() {
        let [a, b, c] = [1, 2, 3].map(|n| StoreId::from_bytes([n; 16]));
        let voters: Voters = [c, a, b, a].into_iter().collect();
        assert_eq!(&voters[..], [a, b, c]);
        let set = BTreeSet::from([a, b, c]);
        let bytes = postcard::to_stdvec(&voters).expect("encodes");
        assert_eq!(bytes, postcard::to_stdvec(&set).expect("encodes"));
        let twice = postcard::to_stdvec(&[c, a, a, b][..]).expect("encodes");
        assert_eq!(postcard::from_bytes::<Voters>(&twice), Ok(voters));
    }
}

//! Who watches whom: the ring of members, in an order that every member computes alike. It knows
//! nothing of time.

use std::collections::BTreeSet;

use flocker_base::StoreId;

/// The neighbours of a store on the ring of these members: `reach` on each side. The store itself
/// need not be among the members.
pub(super) fn neighbours(
    of: StoreId,
    members: impl IntoIterator<Item = StoreId>,
    reach: usize,
) -> BTreeSet<StoreId> {
    let mut ring: Vec<(u64, StoreId)> =
        members.into_iter().filter(|m| *m != of).map(|m| (place(m), m)).collect();
    ring.sort_unstable();
    let len = ring.len();
    if len <= 2 * reach {
        return ring.into_iter().map(|(_, member)| member).collect();
    }
    let next = ring.partition_point(|entry| *entry < (place(of), of));
    let after = (0..reach).map(|i| (next + i) % len);
    let before = (1..=reach).map(|i| (next + len - i) % len);
    after.chain(before).filter_map(|at| ring.get(at)).map(|(_, member)| *member).collect()
}

/// The order is that of a hash, so that nodes added one after another are not neighbours.
fn place(store: StoreId) -> u64 {
    hash(store.as_bytes())
}

/// FNV-1a, stirred so that close inputs part.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    let mut hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    hash = (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^ (hash >> 29)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn store(id: u8) -> StoreId {
        StoreId::from_bytes([id; 16])
    }

    proptest! {
        #[test]
        fn watching_is_mutual_and_bounded(ids in prop::collection::btree_set(any::<u8>(), 0..40)) {
            let members: Vec<StoreId> = ids.into_iter().map(store).collect();
            for member in &members {
                let watched = neighbours(*member, members.iter().copied(), 2);
                prop_assert_eq!(watched.len(), members.len().saturating_sub(1).min(4));
                for other in watched {
                    prop_assert_ne!(other, *member);
                    let back = neighbours(other, members.iter().copied(), 2);
                    prop_assert!(back.contains(member));
                }
            }
        }
    }
}

//! What a change costs, by a count instead of a clock. The times are measured by
//! `scripts/measure-map`.

use super::*;

#[test]
fn a_change_writes_one_row_whatever_the_size_of_the_map() {
    for records in [10, 1_000] {
        let (map, _) = map(1);
        let edits: Vec<_> =
            (0..records).map(|n| Edit::PutVolume(volume(n, &format!("v{n}")))).collect();
        map.edit(edits).expect("edits");
        let before = map.inner.store.page(None, usize::MAX).expect("reads");
        let mut spec = volume(5, "v5");
        spec.policy.local_replicas = 9;
        map.edit([Edit::PutVolume(spec)]).expect("edits");
        let after = map.inner.store.page(None, usize::MAX).expect("reads");
        let changed: Vec<_> = before.iter().zip(&after).filter(|(old, new)| old != new).collect();
        assert_eq!((before.len(), changed.len()), (after.len(), 1));
    }
}

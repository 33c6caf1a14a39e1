//! Nodes that work as they should.

use super::*;

#[tokio::test]
async fn duties_bring_every_target_up_to_date_and_progress_tells() {
    let net = Arc::new(Net::default());
    let (a, b, c) = (dir_node(&net, 1), dir_node(&net, 2), dir_node(&net, 3));
    let live = a.lead(1);
    put(&live, "file", "first");
    a.duty(1, 10, &[&b, &c]);
    let stop = CancellationToken::new();
    let mut progress = a.replicator.progress();
    let all_hold = |seq: u64| {
        move |progress: &Arc<BTreeMap<VolumeId, VolumeProgress>>| {
            progress.get(&V).is_some_and(|volume| {
                volume.replicas.len() == 2
                    && volume
                        .replicas
                        .values()
                        .all(|r| r.acked.is_some_and(|head| head.seq.0 >= seq))
            })
        }
    };
    let watching = async {
        progress.wait_for(all_hold(1)).await.expect("first");
        put(&live, "file", "second");
        progress.wait_for(all_hold(2)).await.expect("second");
        stop.cancel();
    };
    tokio::join!(a.replicator.run(stop.clone()), watching);
    assert_eq!(a.guids(), b.guids());
    assert_eq!(a.guids(), c.guids());
    assert_eq!(b.replicator.head(V), a.replicator.head(V));
    let newest = a.replicator.progress().borrow()[&V].clone();
    let acked = &newest.replicas[&b.id];
    assert_eq!(acked.acked_taken_at, newest.newest.map(|info| info.taken_at));
    assert_eq!(get(&b.backend.promote(V).expect("promote"), "file"), "second");
}

#[tokio::test]
async fn an_up_to_date_peer_costs_no_content_and_a_stranger_gets_a_full_copy() {
    let net = Arc::new(Net::default());
    let (a, b) = (dir_node(&net, 1), dir_node(&net, 2));
    let live = a.lead(1);
    put(&live, "file", "content");
    let head = a.to(&b).await.expect("full copy");
    assert_eq!(a.to(&b).await.expect("nothing to do"), head);
    assert_eq!(b.guids().len(), 1);
    put(&live, "file", "more content");
    assert!(a.to(&b).await.expect("incremental") > head);
    assert_eq!(b.guids().len(), 2);
}

#[tokio::test]
async fn a_fetch_brings_the_peers_newest_and_never_an_older_one() {
    let net = Arc::new(Net::default());
    let (a, b) = (dir_node(&net, 1), dir_node(&net, 2));
    let live = a.lead(1);
    put(&live, "file", "fetched");
    let taken = a.replicator.snapshot_now(V).await.expect("snapshot").expect("changed");
    a.fence.lose();
    // Whoever holds a copy may give it, master or not.
    let within = Duration::from_secs(20);
    let head = b.replicator.fetch(V, a.id, within).await.expect("fetch");
    assert_eq!(head, taken.head);
    let live = b.lead(2);
    assert_eq!(get(&live, "file"), "fetched");
    let newer = b.replicator.snapshot_now(V).await.expect("snapshot").expect("a new epoch");
    let kept = b.replicator.fetch(V, a.id, within).await.expect("nothing newer there");
    assert_eq!(kept, newer.head);
    assert!(a.replicator.fetch(V, store(77), within).await.is_err(), "nobody is there");
}

#[tokio::test]
async fn a_returning_master_keeps_its_tail_as_a_branch() {
    let net = Arc::new(Net::default());
    let (a, b) = (dir_node(&net, 1), dir_node(&net, 2));
    let old = a.lead(1);
    put(&old, "file", "common");
    a.to(&b).await.expect("replicated");
    put(&old, "file", "lost snapshot");
    a.replicator.snapshot_now(V).await.expect("snapshot").expect("changed");
    put(&old, "file", "lost tail");
    a.fence.lose();
    let new = b.lead(2);
    put(&new, "file", "new line");
    // The old master's service is down, and it is told before it demotes itself.
    b.to(&a).await.expect("replicated back");
    let branch = a.backend.demote(V, &keep(50)).expect("demote").expect("a tail");
    assert_eq!(branch.snapshots.len(), 2, "the lost snapshot and the tail on top of it");
    assert_eq!(a.guids(), b.guids());
    let folder = tempfile::tempdir().expect("folder");
    for (at, content) in ["lost snapshot", "lost tail"].into_iter().enumerate() {
        let into = folder.path().join(at.to_string());
        a.backend.export(V, branch.snapshots[at].guid, &into).expect("export");
        assert_eq!(get(&into, "file"), content);
    }
    put(&new, "file", "goes on");
    b.to(&a).await.expect("it follows");
    assert_eq!(get(&a.backend.promote(V).expect("promote"), "file"), "goes on");
}

#[tokio::test]
async fn heads_are_read_at_the_start_and_follow() {
    let net = Arc::new(Net::default());
    let (a, b) = (dir_node(&net, 1), dir_node(&net, 2));
    let live = a.lead(1);
    put(&live, "file", "x");
    let mut heads = b.replicator.heads();
    assert!(b.replicator.local_heads().is_empty());
    let head = a.to(&b).await.expect("replicated");
    heads.wait_for(|heads| heads.contains_key(&V)).await.expect("told");
    assert_eq!(b.replicator.head(V).map(|(head, _)| head), Some(head));
    let again = node_on(&net, 4, b.backend.clone(), None);
    assert_eq!(again.replicator.local_heads(), b.replicator.local_heads());
    b.backend.destroy(V, &crate::Destroy::Everything).expect("destroy");
    assert_eq!(b.replicator.refresh(V).await.expect("refresh"), None);
    assert!(b.replicator.local_heads().is_empty());
}

#[tokio::test]
async fn the_schedule_prunes_and_replicas_follow() {
    let net = Arc::new(Net::default());
    let (a, b) = (dir_node(&net, 1), dir_node(&net, 2));
    let live = a.lead(1);
    a.duty(1, 1, &[&b]);
    let stop = CancellationToken::new();
    let mut progress = a.replicator.progress();
    let writing = async {
        for round in 1..=40_u64 {
            put(&live, "file", &round.to_string());
            progress
                .wait_for(|progress| {
                    progress.get(&V).and_then(|v| v.replicas.get(&b.id)).is_some_and(|replica| {
                        replica.acked.is_some_and(|head| head.seq.0 >= round)
                    })
                })
                .await
                .expect("acknowledged");
        }
        stop.cancel();
    };
    tokio::join!(a.replicator.run(stop.clone()), writing);
    assert!(a.guids().len() <= 40 && b.guids().len() <= 33, "both prune");
    // The schedule may have been stopped between a snapshot and its sending.
    a.to(&b).await.expect("pruning left a common base");
    assert_eq!(a.guids().last(), b.guids().last());
}

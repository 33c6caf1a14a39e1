//! Cut streams, fences that close, full disks, hostile peers.

use super::*;
use crate::model::StreamHeader;
use crate::session::Reason;
use crate::session::wire::{Link, Message, Purpose, VERSION};

#[expect(clippy::needless_pass_by_value, reason = "called on what a call returns")]
fn refused_for(result: Result<Head, ReplicateError>) -> Option<Reason> {
    match result {
        Err(ReplicateError::Session { source: SessionError::Refused { reason, .. }, .. }) => {
            Some(reason)
        }
        _ => None,
    }
}

#[tokio::test]
async fn a_stream_cut_at_any_byte_shows_nothing_and_goes_on() {
    let net = Arc::new(Net::default());
    let a = dir_node(&net, 1);
    let live = a.lead(1);
    put(&live, "file", &"some content ".repeat(40));
    fs::create_dir(live.join("folder")).expect("folder");
    put(&live.join("folder"), "other", "other content");
    a.replicator.snapshot_now(V).await.expect("snapshot").expect("changed");
    let (mut cut, mut number, mut broke) = (0, 2_u8, 0);
    loop {
        let b = dir_node(&net, number);
        net.cuts.lock().expect("lock").push(cut);
        match a.to(&b).await {
            Ok(_) => break,
            Err(_) => {
                broke += 1;
                // All was sent but the closing word: the snapshot may be there, but whole.
                if !b.guids().is_empty() {
                    assert_eq!(b.guids(), a.guids());
                }
            }
        }
        a.to(&b).await.expect("the second attempt goes on");
        assert_eq!(b.guids(), a.guids());
        let copy = b.backend.promote(V).expect("promote");
        assert_eq!(get(&copy, "file"), get(&live, "file"));
        assert_eq!(get(&copy, "folder/other"), "other content");
        net.nodes.lock().expect("lock").remove(&b.id);
        (cut, number) = (cut + 23, if number == 250 { 2 } else { number + 1 });
    }
    assert!(broke > 20, "it was cut at many bytes: {broke}");
}

#[tokio::test]
async fn a_resumed_stream_sends_only_the_rest() {
    let net = Arc::new(Net::default());
    let (a, b) = (dir_node(&net, 1), dir_node(&net, 2));
    let live = a.lead(1);
    let mut noise = vec![0; 400_000];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    fs::write(live.join("file"), noise).expect("write");
    net.cuts.lock().expect("lock").push(150_000);
    assert!(a.to(&b).await.is_err(), "it was cut");
    // The master goes on: the stream that was cut is still finished first.
    put(&live, "new", "newer");
    let partial = b.backend.partial(V).expect("partial").expect("kept");
    let kept = b.backend.received(&partial).expect("received");
    assert!(kept > 100_000 && kept < partial.length, "{kept} of {}", partial.length);
    a.to(&b).await.expect("resumed");
    assert_eq!(b.guids(), a.guids(), "both snapshots came");
    assert_eq!(b.guids().len(), 2);
}

#[tokio::test]
async fn a_lower_epoch_is_refused_and_changes_nothing() {
    let net = Arc::new(Net::default());
    let (a, b) = (dir_node(&net, 1), dir_node(&net, 2));
    let live = a.lead(3);
    put(&live, "file", "x");
    b.fence.see(4);
    assert_eq!(refused_for(a.to(&b).await), Some(Reason::LowerEpoch));
    assert!(!b.backend.exists(V).expect("exists"), "not even the volume was made");
    a.fence.hold(4);
    a.to(&b).await.expect("the same epoch is admitted");
}

#[tokio::test]
async fn a_sender_whose_lease_ends_meanwhile_never_completes_the_stream() {
    let net = Arc::new(Net::default());
    // Yes to the snapshot's two questions and the push's first two, no before the end mark.
    for yes in 0..5 {
        let (a, b) = (dir_node(&net, 1), dir_node(&net, 2));
        let live = a.lead(1);
        put(&live, "file", "x");
        a.fence.writes_left.store(yes, Ordering::SeqCst);
        assert!(a.to(&b).await.is_err(), "after {yes} answers");
        assert!(b.guids().is_empty(), "after {yes} answers");
        a.fence.writes_left.store(-1, Ordering::SeqCst);
        a.to(&b).await.expect("with a lease it works");
    }
}

#[tokio::test]
async fn a_receiver_that_saw_a_newer_epoch_meanwhile_does_not_commit() {
    let net = Arc::new(Net::default());
    for yes in 0..3 {
        let (a, b) = (dir_node(&net, 1), dir_node(&net, 2));
        let live = a.lead(1);
        put(&live, "file", "x");
        b.fence.admits_left.store(yes, Ordering::SeqCst);
        assert_eq!(refused_for(a.to(&b).await), Some(Reason::LowerEpoch), "after {yes}");
        assert!(b.guids().is_empty(), "after {yes} answers");
    }
}

#[tokio::test]
async fn a_newer_stream_takes_the_place_of_one_that_hangs() {
    let net = Arc::new(Net::default());
    let (a, b) = (dir_node(&net, 1), dir_node(&net, 2));
    let live = a.lead(1);
    put(&live, "file", "x");
    let info = a.replicator.snapshot_now(V).await.expect("snapshot").expect("changed");
    let header = a.backend.plan(V, None, info.guid).expect("plan");
    let mut bytes = Vec::new();
    a.backend.send(&header, 0, &mut bytes).expect("send");
    // Someone begins the same stream, and falls silent.
    let (near, far) = tokio::io::duplex(64 * 1024);
    let serving = b.replicator.clone();
    let hanging = async {
        serving.serve(store(8), Box::new(far)).await;
    };
    let pushing = async {
        let mut link = Link::new(near, SessionConfig::default());
        link.send(&hello(Purpose::Push, 1)).await.expect("hello");
        link.message(Duration::from_secs(5), "have").await.expect("have");
        link.send(&Message::Offer(Box::new(header))).await.expect("offer");
        link.message(Duration::from_secs(5), "want").await.expect("want");
        link.data(&bytes[..3]).await.expect("a little");
        a.to(&b).await.expect("the other goes through");
        let end = link.message(Duration::from_secs(5), "the end").await;
        assert!(
            matches!(&end, Err(SessionError::Refused { reason: Reason::Busy, .. })),
            "the silent one is told: {end:?}"
        );
    };
    tokio::join!(hanging, pushing);
    assert_eq!(a.guids(), b.guids());
}

fn hello(purpose: Purpose, counter: u64) -> Message {
    Message::Hello {
        version: VERSION,
        purpose,
        volume: V,
        epoch: epoch(counter),
        backend: "dir".into(),
    }
}

#[tokio::test]
async fn a_full_disk_is_reported_and_replication_goes_on_by_itself_afterwards() {
    let net = Arc::new(Net::default());
    let ((a, here), (b, there)) = (memory_node(&net, 1), memory_node(&net, 2));
    let live = a.lead(1);
    put(&live, "file", "x");
    here.fail(Operation::Snapshot, 2);
    here.fail(Operation::Send, 2);
    there.fail(Operation::Receive, 2);
    there.fail(Operation::Settle, 1);
    a.duty(1, 5, &[&b]);
    let stop = CancellationToken::new();
    let mut progress = a.replicator.progress();
    let watching = async {
        progress
            .wait_for(|all| all.get(&V).is_some_and(|volume| volume.snapshot_error.is_some()))
            .await
            .expect("the snapshot's failure shows");
        progress
            .wait_for(|all| {
                all.get(&V)
                    .and_then(|volume| volume.replicas.get(&b.id))
                    .is_some_and(|replica| replica.error.is_some())
            })
            .await
            .expect("the stream's failure shows");
        progress
            .wait_for(|all| {
                all.get(&V)
                    .and_then(|volume| volume.replicas.get(&b.id))
                    .is_some_and(|replica| replica.acked.is_some() && replica.error.is_none())
            })
            .await
            .expect("it goes on");
        stop.cancel();
    };
    tokio::join!(a.replicator.run(stop.clone()), watching);
    for operation in [Operation::Snapshot, Operation::Send] {
        assert_eq!(here.failures_left(operation), 0, "{operation:?} really failed");
    }
    assert_eq!(there.failures_left(Operation::Receive), 0);
    assert_eq!(there.failures_left(Operation::Settle), 0);
    assert_eq!(a.guids(), b.guids());
    assert_eq!(get(&b.backend.promote(V).expect("promote"), "file"), "x");
}

#[tokio::test]
async fn noise_and_lies_on_the_wire_change_nothing() {
    let net = Arc::new(Net::default());
    let (a, b) = (dir_node(&net, 1), dir_node(&net, 2));
    let live = a.lead(1);
    put(&live, "file", "x");
    a.to(&b).await.expect("replicated");
    let before = b.guids();
    put(&live, "file", "y");
    let info = a.replicator.snapshot_now(V).await.expect("snapshot").expect("changed");
    let good = a.backend.plan(V, Some(before[0]), info.guid).expect("plan");
    let noise: Vec<u8> =
        (0..5000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    let mut huge = u32::MAX.to_le_bytes().to_vec();
    huge.push(1);
    for bytes in [noise, huge, vec![0; 64], vec![]] {
        let (mut near, far) = tokio::io::duplex(64 * 1024);
        let serving = b.replicator.serve(store(8), Box::new(far));
        let lying = async {
            let _refused_early = near.write_all(&bytes).await;
            let _closed = near.shutdown().await;
            let mut answer = Vec::new();
            let _reset = near.read_to_end(&mut answer).await;
        };
        tokio::join!(serving, lying);
        assert_eq!(b.guids(), before);
    }
    type Lie = fn(&mut StreamHeader);
    let lies: [Lie; 6] = [
        |header| header.length = u64::MAX,
        |header| header.snapshot.volume = VolumeId::from_bytes([1; 16]),
        |header| header.snapshot.head.epoch = Epoch::new(7, 7),
        |header| header.lineage.clear(),
        |header| header.base = Some([77; 16]),
        |header| header.detail = vec![0; 5000],
    ];
    for lie in lies {
        let mut header = good.clone();
        lie(&mut header);
        let (near, far) = tokio::io::duplex(64 * 1024);
        let serving = b.replicator.serve(store(8), Box::new(far));
        let lying = async {
            let mut link = Link::new(near, SessionConfig::default());
            link.send(&hello(Purpose::Push, 1)).await.expect("hello");
            link.message(Duration::from_secs(5), "have").await.expect("have");
            link.send(&Message::Offer(Box::new(header))).await.expect("offer");
            let mut answer = link.message(Duration::from_secs(5), "an answer").await;
            if matches!(answer, Ok(Message::Want { .. })) {
                let _maybe_refused = link.data(&[7; 1000]).await;
                let _maybe_refused = link.send(&Message::End { checksum: [0; 32] }).await;
                answer = link.message(Duration::from_secs(5), "an answer").await;
            }
            assert!(matches!(answer, Err(SessionError::Refused { .. })), "{answer:?}");
        };
        tokio::join!(serving, lying);
        assert_eq!(b.guids(), before);
        assert!(!b.backend.exists(VolumeId::from_bytes([1; 16])).expect("exists"));
    }
    a.to(&b).await.expect("an honest stream still goes through");
}

#[tokio::test]
async fn another_version_or_backend_is_refused() {
    let net = Arc::new(Net::default());
    let a = dir_node(&net, 1);
    let (b, _memory) = memory_node(&net, 2);
    let live = a.lead(1);
    put(&live, "file", "x");
    assert_eq!(refused_for(a.to(&b).await), Some(Reason::Incompatible));
}

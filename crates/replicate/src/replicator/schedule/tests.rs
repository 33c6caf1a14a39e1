//! The scheduler's commands, event by event.

use flocker_base::{Head, WallTime};

use super::*;

const V: VolumeId = VolumeId::from_bytes([1; 16]);
const A: StoreId = StoreId::from_bytes([2; 16]);
const B: StoreId = StoreId::from_bytes([3; 16]);
/// A jitter that neither lengthens nor shortens.
const EVEN: u64 = 200;

fn at(millis: u64) -> BootTime {
    BootTime::from_millis(millis)
}

fn duty(counter: u64, targets: &[StoreId]) -> Event {
    Event::Duties(vec![DutySpec {
        volume: V,
        epoch: Epoch::new(0, counter),
        interval: Duration::from_secs(5),
        targets: targets.iter().copied().collect(),
    }])
}

fn snapshot(number: u8) -> SnapshotInfo {
    SnapshotInfo {
        volume: V,
        head: Head::new(Epoch::new(0, 1), u64::from(number)),
        guid: [number; 16],
        parent: None,
        taken_at: WallTime::from_millis(u64::from(number)),
        bytes: 0,
        files: 1,
    }
}

fn taken(number: u8) -> Event {
    Event::Snapshotted(V, Ok(Some(snapshot(number))))
}

fn sent(to: StoreId, number: u8) -> Event {
    Event::Sent(V, to, Ok(snapshot(number)))
}

fn schedule() -> Schedule {
    Schedule::new(ScheduleConfig::default())
}

#[test]
fn a_new_duty_snapshots_at_once_and_sends_to_all_targets_in_parallel() {
    let mut core = schedule();
    assert_eq!(core.step(at(0), EVEN, duty(1, &[A, B])), [Command::Snapshot(V)]);
    assert_eq!(core.next_deadline(), BootTime::NEVER, "it waits for the snapshot");
    let sends = core.step(at(10), EVEN, taken(1));
    assert_eq!(sends, [Command::Send(V, A), Command::Send(V, B)]);
    assert_eq!(core.next_deadline(), at(5000));
    assert!(core.step(at(20), EVEN, sent(A, 1)).is_empty());
    let progress = &core.progress()[&V];
    assert_eq!(progress.replicas[&A].acked, Some(snapshot(1).head));
    assert_eq!(progress.replicas[&A].acked_at, at(20));
    assert_eq!(progress.replicas[&B].acked, None);
}

#[test]
fn an_unchanged_volume_is_asked_each_interval_and_sends_nothing() {
    let mut core = schedule();
    core.step(at(0), EVEN, duty(1, &[A]));
    core.step(at(1), EVEN, taken(1));
    core.step(at(2), EVEN, sent(A, 1));
    for round in 1..20 {
        let now = at(round * 5000);
        assert_eq!(core.step(now, EVEN, Event::Tick), [Command::Snapshot(V)]);
        assert!(core.step(now, EVEN, taken(1)).is_empty());
    }
}

#[test]
fn a_failed_send_is_tried_again_later_and_later_and_the_other_target_is_not_held_up() {
    let mut core = schedule();
    core.step(at(0), EVEN, duty(1, &[A, B]));
    core.step(at(0), EVEN, taken(1));
    core.step(at(0), EVEN, sent(B, 1));
    let mut now = 0;
    for wait in [500, 1000, 2000] {
        assert!(core.step(at(now), EVEN, Event::Sent(V, A, Err("gone".into()))).is_empty());
        assert_eq!(core.progress()[&V].replicas[&A].error.as_deref(), Some("gone"));
        assert!(core.step(at(now + wait - 1), EVEN, Event::Tick).is_empty());
        now += wait;
        assert_eq!(core.step(at(now), EVEN, Event::Tick), [Command::Send(V, A)]);
    }
    core.step(at(now), EVEN, sent(A, 1));
    assert_eq!(core.progress()[&V].replicas[&A].error, None);
}

#[test]
fn what_changes_during_a_send_is_sent_right_after_it() {
    let mut core = schedule();
    core.step(at(0), EVEN, duty(1, &[A]));
    core.step(at(0), EVEN, taken(1));
    core.step(at(5000), EVEN, Event::Tick);
    assert!(core.step(at(5001), EVEN, taken(2)).is_empty(), "one stream at a time");
    assert_eq!(core.step(at(6000), EVEN, sent(A, 1)), [Command::Send(V, A)]);
}

#[test]
fn a_failing_snapshot_is_shown_and_retried() {
    let mut core = schedule();
    core.step(at(0), EVEN, duty(1, &[A]));
    core.step(at(0), EVEN, Event::Snapshotted(V, Err("disk full".into())));
    assert_eq!(core.progress()[&V].snapshot_error.as_deref(), Some("disk full"));
    assert_eq!(core.step(at(5000), EVEN, Event::Tick), [Command::Snapshot(V)]);
    core.step(at(5001), EVEN, taken(1));
    assert_eq!(core.progress()[&V].snapshot_error, None);
}

#[test]
fn a_new_epoch_starts_over_and_a_lost_duty_ends() {
    let mut core = schedule();
    core.step(at(0), EVEN, duty(1, &[A]));
    core.step(at(0), EVEN, taken(1));
    core.step(at(0), EVEN, sent(A, 1));
    assert_eq!(core.step(at(100), EVEN, duty(2, &[A])), [Command::Snapshot(V)]);
    assert_eq!(core.step(at(101), EVEN, taken(2)), [Command::Send(V, A)]);
    assert!(core.step(at(102), EVEN, Event::Duties(Vec::new())).is_empty());
    assert!(core.step(at(103), EVEN, sent(A, 2)).is_empty());
    assert_eq!(core.next_deadline(), BootTime::NEVER);
    assert!(core.progress().is_empty());
}

#[test]
fn pruning_pins_what_each_replica_still_needs() {
    let mut core = schedule();
    core.step(at(0), EVEN, duty(1, &[A, B]));
    core.step(at(0), EVEN, taken(1));
    core.step(at(0), EVEN, sent(A, 1));
    let mut pruned = Vec::new();
    for number in 2..40_u8 {
        let now = at(u64::from(number) * 5000);
        core.step(now, EVEN, Event::Tick);
        pruned.extend(core.step(now, EVEN, taken(number)).into_iter().filter_map(|command| {
            match command {
                Command::Prune(_, retention) => Some(retention),
                _ => None,
            }
        }));
    }
    assert_eq!(pruned.len(), 2);
    let retention = &pruned[1];
    assert_eq!(retention.newest, 16);
    assert!(retention.pinned[&A].contains(&[1; 16]), "A still holds only the first");
    assert!(retention.pinned[&B].is_empty(), "what B needs is not known");
}

#[test]
fn back_off_grows_to_its_bound_and_varies_by_a_fifth() {
    let config = ScheduleConfig::default();
    assert_eq!(config.back_off(1, 0), Duration::from_millis(400));
    assert_eq!(config.back_off(1, 400), Duration::from_millis(600));
    assert_eq!(config.back_off(1000, EVEN), Duration::from_secs(30));
}

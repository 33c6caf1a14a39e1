//! Each rule of the decision, and what a crash at each point leads to.

use std::time::Duration;

use flocker_base::{Head, Name, ServiceId, VolumeId, WallTime};
use flocker_gossip::model::{Birth, EngineKind, Failover, VolumeMount, VolumePolicy, VoterConfig};
use proptest::prelude::*;

use super::*;

const fn store(n: u8) -> StoreId {
    StoreId::from_bytes([n; 16])
}

fn volume() -> VolumeSpec {
    let replicas = vec![store(1), store(2), store(3)];
    VolumeSpec {
        id: VolumeId::new(WallTime::from_millis(1), [1; 10]),
        name: Name::new("data").expect("a name"),
        policy: VolumePolicy::default(),
        birth: Birth { master: store(1), voters: replicas.iter().copied().collect(), replicas },
    }
}

fn service(volume: &VolumeSpec) -> ServiceSpec {
    ServiceSpec {
        id: ServiceId::new(WallTime::from_millis(1), [2; 10]),
        name: Name::new("tally").expect("a name"),
        command: vec!["tally".into()],
        environment: Default::default(),
        volume: VolumeMount { volume: volume.id, path: "/data".into() },
        health_path: None,
        stop_grace: Duration::from_secs(1),
        engine: EngineKind::Process,
    }
}

fn placement(volume: &VolumeSpec, holder: StoreId, counter: u64) -> Placement {
    Placement {
        volume: volume.id,
        epoch: Epoch::new(0, counter),
        sequence: 1,
        holder,
        voters: VoterConfig::birth(volume.birth.voters.clone()),
        replicas: volume.birth.replicas.clone(),
        head: Head::NONE,
        state: PlacementState::Active,
    }
}

fn world<'a>(spec: &'a VolumeSpec, me: StoreId) -> VolumeWorld<'a> {
    VolumeWorld {
        me,
        now: BootTime::from_millis(1_000),
        spec,
        placement: None,
        service: None,
        lease: Lease::None,
        others_epoch: None,
        in_masters_region: true,
        master_silent: false,
        released: Released::No,
        voters: None,
        lone_voter_elsewhere: false,
        copy: LocalCopy { has_snapshot: true, promoted: None },
        instance: None,
        in_hand: false,
        tries: Tries::default(),
        others_can: true,
        rank: 0,
    }
}

#[test]
fn a_new_volume_goes_from_birth_to_running_one_step_at_a_time() {
    let spec = volume();
    let service = service(&spec);
    let epoch = Epoch::new(0, 1);
    let mut now = world(&spec, store(1));
    now.service = Some(&service);
    assert_eq!(next_step(&now), Step::Campaign { rank: 0, reason: CampaignReason::Birth });
    now.lease = Lease::Campaigning;
    assert_eq!(next_step(&now), Step::Rest);
    now.lease = Lease::Held { epoch };
    assert_eq!(next_step(&now), Step::Promote { epoch });
    now.copy.promoted = Some(epoch);
    assert_eq!(next_step(&now), Step::Start { epoch });
    now.instance = Some(RunningInstance { epoch, ready: false, current: true });
    assert_eq!(next_step(&now), Step::AwaitReady, "not announced before it answers");
    now.instance = Some(RunningInstance { epoch, ready: true, current: true });
    assert_eq!(next_step(&now), Step::Announce { epoch });
    let here = placement(&spec, store(1), 1);
    now.placement = Some(&here);
    assert_eq!(next_step(&now), Step::Rest);
}

#[test]
fn replicas_wait_for_silence_and_others_never_ask() {
    let spec = volume();
    let there = placement(&spec, store(1), 1);
    let mut now = world(&spec, store(2));
    now.placement = Some(&there);
    assert_eq!(next_step(&now), Step::Rest);
    now.master_silent = true;
    now.rank = 1;
    assert_eq!(next_step(&now), Step::Campaign { rank: 1, reason: CampaignReason::MasterSilent });
    now.lease = Lease::Campaigning;
    now.master_silent = false;
    assert_eq!(next_step(&now), Step::StandDown, "the master spoke again");
    let mut outsider = world(&spec, store(9));
    outsider.placement = Some(&there);
    outsider.master_silent = true;
    assert_eq!(next_step(&outsider), Step::Rest, "it holds no copy");
}

#[test]
fn a_manual_volume_waits_for_a_person() {
    let mut spec = volume();
    spec.policy.failover = Failover::Manual;
    let there = placement(&spec, store(1), 1);
    let mut now = world(&spec, store(2));
    now.placement = Some(&there);
    now.master_silent = true;
    assert_eq!(next_step(&now), Step::Rest);
    now.released = Released::ToMe;
    assert!(matches!(next_step(&now), Step::Campaign { .. }), "a planned move still works");
}

#[test]
fn a_volume_that_stays_in_its_region_is_taken_over_there_alone() {
    let mut spec = volume();
    spec.policy.failover = Failover::InRegion;
    let there = placement(&spec, store(1), 1);
    let mut now = world(&spec, store(2));
    now.placement = Some(&there);
    now.master_silent = true;
    assert_eq!(next_step(&now), Step::Campaign { rank: 0, reason: CampaignReason::MasterSilent });
    now.in_masters_region = false;
    assert_eq!(next_step(&now), Step::Rest);
    now.released = Released::ToMe;
    assert!(matches!(next_step(&now), Step::Campaign { .. }), "a planned move still works");
}

#[test]
fn what_a_master_lost_is_open_to_those_alone_who_would_take_over_by_themselves() {
    let mut spec = volume();
    let there = placement(&spec, store(1), 1);
    let cases = [
        (Failover::Auto, false, true),
        (Failover::InRegion, true, true),
        (Failover::InRegion, false, false),
        (Failover::Manual, true, false),
    ];
    for (failover, in_masters_region, asks) in cases {
        spec.policy.failover = failover;
        let open = |me| VolumeWorld {
            placement: Some(&there),
            released: Released::ToAnyone,
            in_masters_region,
            ..world(&spec, me)
        };
        let step = next_step(&open(store(2)));
        assert_eq!(matches!(step, Step::Campaign { .. }), asks, "{failover:?}: {step:?}");
        let step = next_step(&open(store(1)));
        assert!(matches!(step, Step::Campaign { .. }), "its last master: {failover:?}: {step:?}");
    }
}

#[test]
fn a_copy_that_the_newest_placement_does_not_name_is_discarded_and_no_other() {
    let spec = volume();
    let mut there = placement(&spec, store(1), 5);
    there.replicas = vec![store(1), store(3)];
    let left = VolumeWorld {
        placement: Some(&there),
        others_epoch: Some(Epoch::new(0, 5)),
        ..world(&spec, store(2))
    };
    let discarded = Step::Discard { master: store(1) };
    assert_eq!(next_step(&left), discarded);
    assert_eq!(next_step(&VolumeWorld { me: store(3), ..left.clone() }), Step::Rest);
    let newer = VolumeWorld { others_epoch: Some(Epoch::new(0, 6)), ..left.clone() };
    assert_eq!(next_step(&newer), Step::Rest, "the newest master has yet to say");
    let mut tail = left.clone();
    tail.copy.promoted = Some(Epoch::new(0, 4));
    assert_eq!(
        next_step(&tail),
        Step::KeepTail { epoch: Epoch::new(0, 4) },
        "its tail comes first"
    );
    let none = VolumeWorld { copy: LocalCopy::default(), ..left.clone() };
    assert_eq!(next_step(&none), Step::Rest);
    let kept = Tries { discard_at: BootTime::from_millis(2_000), ..Tries::default() };
    assert_eq!(next_step(&VolumeWorld { tries: kept, ..left.clone() }), Step::Rest);
    let failed = VolumeWorld {
        tries: Tries { retry_at: BootTime::from_millis(2_000), ..Tries::default() },
        ..left
    };
    assert_eq!(next_step(&failed), Step::Wait(BootTime::from_millis(2_000)));
}

#[test]
fn a_master_that_cannot_make_its_copy_writable_gives_up_if_another_may() {
    let spec = volume();
    let there = placement(&spec, store(1), 1);
    let epoch = Epoch::new(0, 2);
    let mut now = VolumeWorld {
        placement: Some(&there),
        lease: Lease::Held { epoch },
        ..world(&spec, store(2))
    };
    now.tries.failures = 2;
    assert_eq!(next_step(&now), Step::Promote { epoch });
    now.tries.failures = 3;
    assert_eq!(next_step(&now), Step::GiveUp { epoch });
    now.copy.promoted = Some(Epoch::new(0, 1));
    assert_eq!(next_step(&now), Step::GiveUp { epoch }, "nor when it fails to keep a tail");
    now.copy.promoted = Some(epoch);
    assert_ne!(next_step(&now), Step::GiveUp { epoch }, "it works: only its service does not");
    now.copy.promoted = None;
    now.others_can = false;
    assert_eq!(next_step(&now), Step::Promote { epoch }, "there is no other");
}

#[test]
fn a_node_that_is_in_no_state_to_lead_does_not_ask() {
    let spec = volume();
    let there = placement(&spec, store(1), 1);
    for me in [store(1), store(2)] {
        let mut now = world(&spec, me);
        now.placement = Some(&there);
        now.master_silent = true;
        assert!(matches!(next_step(&now), Step::Campaign { .. }));
        now.tries.unable = true;
        assert_eq!(next_step(&now), Step::Rest);
        now.lease = Lease::Campaigning;
        assert_eq!(next_step(&now), Step::StandDown);
    }
}

#[test]
fn a_deposed_master_kills_then_keeps_its_tail() {
    let spec = volume();
    let service = service(&spec);
    let elsewhere = placement(&spec, store(2), 5);
    let mut now = world(&spec, store(1));
    now.service = Some(&service);
    now.placement = Some(&elsewhere);
    now.others_epoch = Some(Epoch::new(0, 5));
    now.copy.promoted = Some(Epoch::new(0, 4));
    now.instance = Some(RunningInstance { epoch: Epoch::new(0, 4), ready: true, current: true });
    assert_eq!(next_step(&now), Step::Kill(KillReason::Superseded));
    now.instance = None;
    assert_eq!(next_step(&now), Step::KeepTail { epoch: Epoch::new(0, 4) });
    now.copy.promoted = None;
    assert_eq!(next_step(&now), Step::Rest, "a replica from now on");
}

#[test]
fn an_expired_but_unsuperseded_master_asks_again_and_keeps_its_copy() {
    let spec = volume();
    let mine = placement(&spec, store(1), 4);
    let mut now = world(&spec, store(1));
    now.placement = Some(&mine);
    now.copy.promoted = Some(Epoch::new(0, 4));
    assert_eq!(next_step(&now), Step::Campaign { rank: 0, reason: CampaignReason::Mine });
    now.lease = Lease::Held { epoch: Epoch::new(0, 6) };
    now.instance = Some(RunningInstance { epoch: Epoch::new(0, 4), ready: true, current: true });
    assert_eq!(next_step(&now), Step::Kill(KillReason::OldEpoch));
    now.instance = None;
    assert_eq!(next_step(&now), Step::Promote { epoch: Epoch::new(0, 6) });
}

#[test]
fn a_release_to_another_is_left_to_it() {
    let spec = volume();
    let there = placement(&spec, store(1), 4);
    let mut now = world(&spec, store(2));
    now.placement = Some(&there);
    now.master_silent = true;
    now.released = Released::ToAnother;
    assert_eq!(next_step(&now), Step::Rest);
    now.released = Released::ToAnyone;
    assert!(matches!(next_step(&now), Step::Campaign { .. }));
}

#[test]
fn a_failed_step_waits_its_turn_but_a_kill_never_does() {
    let spec = volume();
    let service = service(&spec);
    let epoch = Epoch::new(0, 1);
    let mut now = world(&spec, store(1));
    now.service = Some(&service);
    now.tries.retry_at = BootTime::from_millis(5_000);
    now.lease = Lease::Held { epoch };
    assert_eq!(next_step(&now), Step::Wait(BootTime::from_millis(5_000)));
    now.instance = Some(RunningInstance { epoch: Epoch::ZERO, ready: true, current: true });
    assert_eq!(next_step(&now), Step::Kill(KillReason::OldEpoch));
}

#[test]
fn the_masters_region_takes_over_first() {
    let all = [store(1), store(2), store(3), store(4)];
    let local = |s: StoreId| s == store(1) || s == store(4);
    let rank = |me| takeover_rank(me, store(1), &all, local, |_| true);
    assert_eq!((rank(store(4)), rank(store(2)), rank(store(3))), (0, 1, 2));
    let dead_local = |me| takeover_rank(me, store(1), &all, local, |s| s != store(4));
    assert_eq!(dead_local(store(2)), 0);
}

#[test]
fn a_replica_without_a_snapshot_never_takes_over() {
    let spec = volume();
    let there = placement(&spec, store(1), 1);
    let mut now = world(&spec, store(2));
    now.placement = Some(&there);
    now.master_silent = true;
    now.copy.has_snapshot = false;
    assert_eq!(next_step(&now), Step::Rest);
    now.released = Released::ToMe;
    assert_eq!(next_step(&now), Step::Rest, "not even when asked to");
}

#[test]
fn a_master_again_keeps_its_old_tail_first() {
    let spec = volume();
    let elsewhere = placement(&spec, store(2), 5);
    let mut now = world(&spec, store(1));
    now.placement = Some(&elsewhere);
    now.others_epoch = Some(Epoch::new(0, 5));
    now.copy.promoted = Some(Epoch::new(0, 4));
    now.lease = Lease::Held { epoch: Epoch::new(0, 6) };
    assert_eq!(next_step(&now), Step::KeepTail { epoch: Epoch::new(0, 4) });
    now.others_epoch = Some(Epoch::new(0, 3));
    assert_eq!(next_step(&now), Step::Promote { epoch: Epoch::new(0, 6) }, "nobody came between");
}

#[test]
fn a_changed_service_is_restarted_and_a_lone_vote_follows_the_master() {
    let spec = volume();
    let service = service(&spec);
    let epoch = Epoch::new(0, 2);
    let here = placement(&spec, store(1), 2);
    let mut now = world(&spec, store(1));
    now.service = Some(&service);
    now.placement = Some(&here);
    now.lease = Lease::Held { epoch };
    now.copy.promoted = Some(epoch);
    now.instance = Some(RunningInstance { epoch, ready: true, current: false });
    assert_eq!(next_step(&now), Step::Stop);
    now.instance = Some(RunningInstance { epoch, ready: true, current: true });
    assert_eq!(next_step(&now), Step::Rest);
    now.lone_voter_elsewhere = true;
    assert_eq!(next_step(&now), Step::TakeVote);
}

proptest! {
    /// Whatever is known, a node without a lease never promotes, announces or starts.
    #[test]
    fn nothing_is_started_without_a_lease(
        campaigning: bool, silent: bool, me in 1u8..5, promoted: Option<u8>, running: Option<u8>,
        others: Option<u8>, released in 0u8..4, placed: Option<u8>,
    ) {
        let spec = volume();
        let service = service(&spec);
        let there = placed.map(|c| placement(&spec, store(c % 4 + 1), u64::from(c)));
        let mut now = world(&spec, store(me));
        now.service = Some(&service);
        now.placement = there.as_ref();
        now.lease = if campaigning { Lease::Campaigning } else { Lease::None };
        now.master_silent = silent;
        now.copy.promoted = promoted.map(|c| Epoch::new(0, u64::from(c)));
        now.instance = running.map(|c| RunningInstance { epoch: Epoch::new(0, u64::from(c)), ready: true, current: true });
        now.others_epoch = others.map(|c| Epoch::new(0, u64::from(c)));
        now.released = [Released::No, Released::ToMe, Released::ToAnother, Released::ToAnyone][usize::from(released)];
        let starts = matches!(
            next_step(&now),
            Step::Promote { .. } | Step::Announce { .. } | Step::Start { .. } | Step::Stop
        );
        prop_assert!(!starts && next_step(&now) != Step::TakeVote);
    }
}

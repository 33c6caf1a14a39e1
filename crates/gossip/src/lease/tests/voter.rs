//! The voter's rules.

use super::super::event::{Alarm, CampaignFailure};
use super::super::message::{GrantReply, PreVote, Release, SetConfig};
use super::super::record::{Released, SupportRecord, VoterRecord};
use super::*;
use crate::model::ConfigVersion;

fn ask(bench: &mut Bench, millis: u64, from: u8, copy: Stamp) -> Verdict {
    let question = PreVote { volume: volume(), round: 1, config: config(), copy, lag_limit: LAG };
    let commands = bench.packet(millis, from, Message::PreVote(question));
    match messages(&commands).as_slice() {
        [Message::PreVoteReply(reply)] => reply.verdict.clone(),
        other => panic!("one answer, not {other:?}"),
    }
}

fn release(counter: u64, successor: Option<StoreId>) -> Message {
    let epoch = epoch(counter);
    Message::Release(Release { volume: volume(), epoch, successor })
}

#[test]
fn a_grant_is_said_only_once_it_is_durable() {
    let mut voter = Bench::new(3);
    let commands = voter.raw(0, packet(1, Message::Grant(grant(1))));
    let record = VoterRecord {
        max_epoch: epoch(1),
        grantee: Some(store(1)),
        ..VoterRecord::fresh(config())
    };
    let known = SupportRecord { support: 0, start: Some(start_of(1)) };
    let writes = vec![Write::Support(store(1), known), Write::Voter(volume(), record)];
    assert_eq!(commands, [Command::Persist(1, writes)]);
    let reply = GrantReply { volume: volume(), epoch: epoch(1), support: 0, verdict: Verdict::Yes };
    let commands = voter.raw(1, Event::Persisted(1));
    assert_eq!(commands, [Command::Send(store(1), vec![Message::GrantReply(reply)])]);
}

/// What is not durable is not said by another message either.
#[test]
fn a_question_between_grant_and_disk_is_answered_after_it() {
    let mut voter = Bench::new(3);
    voter.raw(0, packet(1, Message::Grant(grant(1))));
    let question = PreVote {
        volume: volume(),
        round: 1,
        config: config(),
        copy: Stamp::default(),
        lag_limit: LAG,
    };
    let commands = voter.raw(0, packet(2, Message::PreVote(question)));
    assert_eq!(messages(&commands), []);
    assert_eq!(messages(&voter.sync(1)).len(), 2);
}

#[test]
fn an_epoch_is_granted_to_one_store() {
    let mut voter = Bench::new(3);
    assert_eq!(voter.grant(0, 1, 5), Verdict::Yes);
    assert_eq!(voter.grant(5_000, 2, 5), Verdict::Stale(epoch(5)));
    assert_eq!(voter.grant(5_000, 2, 4), Verdict::Stale(epoch(5)));
    assert_eq!(voter.grant(5_000, 1, 5), Verdict::Yes, "the same again");
}

/// F1: a heartbeat confirms only the grant that this voter gave to its sender.
#[test]
fn only_ones_own_grant_is_confirmed() {
    let mut voter = Bench::new(3);
    voter.grant(0, 1, 5);
    assert_eq!(voter.beat(10, 2, 0, &[5]).refused, [(volume(), epoch(5), epoch(5))]);
    assert_eq!(voter.beat(10, 1, 0, &[4]).refused, [(volume(), epoch(4), epoch(5))]);
    assert_eq!(voter.beat(20, 1, 0, &[5]).confirmed, [(volume(), epoch(5))]);
}

/// F3: a grant that is not confirmed lapses, however lively its holder is.
#[test]
fn an_unconfirmed_grant_lapses_and_an_abandoned_one_at_once() {
    let mut voter = Bench::new(3);
    voter.grant(0, 1, 1);
    voter.beat(900, 1, 0, &[]);
    assert!(is_busy(&voter.grant(1_099, 2, 2)));
    assert_eq!(voter.grant(1_100, 2, 2), Verdict::Yes);
    voter.packet(1_200, 2, Message::Abandon(volume(), epoch(2)));
    assert_eq!(voter.grant(1_200, 1, 3), Verdict::Yes);
    assert_eq!(voter.disk.supports[&store(1)].support, 0, "nothing was withdrawn");
}

#[test]
fn a_confirmed_grant_is_kept_for_its_promise_and_then_withdrawn_for_the_whole_node() {
    let mut voter = Bench::new(3);
    voter.grant(0, 1, 1);
    let ack = voter.beat(100, 1, 0, &[1]);
    assert!(ack.extended);
    assert_eq!(voter.core.next_deadline(), Some(at(3_400)));
    let busy =
        Verdict::Busy { holder: store(1), epoch: epoch(1), remaining: Duration::from_millis(1) };
    assert_eq!(voter.grant(3_399, 2, 2), busy);
    let silent = LeaseEvent::HolderSilent { volume: volume(), holder: store(1), epoch: epoch(1) };
    assert_eq!(events(&voter.step(3_400, Event::Tick)), [silent]);
    assert_eq!(voter.grant(3_400, 2, 2), Verdict::Yes);
    assert_eq!(voter.disk.supports[&store(1)].support, 1);
    // The former holder must first learn of it.
    let late = voter.beat(3_500, 1, 0, &[1]);
    assert_eq!((late.extended, late.support), (false, 1));
    assert_eq!(late.refused, [(volume(), epoch(1), epoch(2))]);
    assert!(voter.beat(3_600, 1, 1, &[]).extended);
}

/// Found beside the models: a grant asked for twice must not lose its confirmation.
#[test]
fn a_repeated_grant_stays_confirmed() {
    let mut voter = Bench::new(3);
    voter.grant(0, 1, 1);
    voter.beat(10, 1, 0, &[1]);
    assert_eq!(voter.grant(20, 1, 1), Verdict::Yes);
    assert!(voter.disk.voters[&volume()].confirmed);
    assert!(is_busy(&voter.grant(2_000, 2, 2)), "its holder may count on it");
}

#[test]
fn the_holder_may_take_the_next_epoch_without_waiting() {
    let mut voter = Bench::new(3);
    voter.grant(0, 1, 1);
    voter.beat(10, 1, 0, &[1]);
    assert_eq!(voter.grant(20, 1, 2), Verdict::Yes);
    assert_eq!(voter.disk.supports[&store(1)].support, 0, "it keeps its other volumes");
    assert!(!voter.disk.voters[&volume()].confirmed);
}

/// F6: a restarted voter waits out the longest promise, for all but the one it promised to.
#[test]
fn a_restarted_voter_waits_and_still_serves_its_grantee() {
    let mut voter = Bench::new(3);
    voter.grant(0, 1, 1);
    voter.beat(10, 1, 0, &[1]);
    let mut voter = Bench::restarted(3, voter.disk, 20);
    assert!(is_busy(&voter.grant(3_319, 2, 2)));
    assert_eq!(voter.beat(3_319, 1, 0, &[1]).confirmed, [(volume(), epoch(1))]);
    assert!(is_busy(&voter.grant(3_320, 2, 2)), "promised again meanwhile");
    let mut quiet = Bench::restarted(3, voter.disk, 4_000);
    assert_eq!(quiet.grant(7_300, 2, 2), Verdict::Yes);
}

/// F18: the wait follows the longest lease ever promised, which is durable before it is said.
#[test]
fn a_longer_lease_is_remembered_before_it_is_promised() {
    let mut voter = Bench::new(3);
    let beat = Heartbeat { lease: Duration::from_secs(60), ..heartbeat(1, &[]) };
    voter.raw(0, packet(1, Message::Heartbeat(beat.clone())));
    let second = Heartbeat { seq: 2, ..beat };
    let commands = voter.raw(1, packet(1, Message::Heartbeat(second)));
    assert_eq!(messages(&commands), [], "nor by the next heartbeat");
    assert_eq!(messages(&voter.sync(2)).len(), 2);
    assert_eq!(voter.disk.node.longest_lease, Duration::from_secs(60));
    voter.grant(10, 1, 1);
    let mut voter = Bench::restarted(3, voter.disk, 1_000);
    assert!(is_busy(&voter.grant(66_999, 2, 2)));
    assert_eq!(voter.grant(67_000, 2, 2), Verdict::Yes);
}

#[test]
fn a_lease_that_is_too_long_is_refused() {
    let mut voter = Bench::new(3);
    let beat = Heartbeat { lease: Duration::from_secs(601), ..heartbeat(1, &[]) };
    let commands = voter.packet(0, 1, Message::Heartbeat(beat));
    assert_eq!(commands, [Command::Alarm(Alarm::LeaseTooLong(store(1), Duration::from_secs(601)))]);
}

#[test]
fn old_and_repeated_heartbeats_are_dropped() {
    let mut voter = Bench::new(3);
    let beat = |seq| Message::Heartbeat(heartbeat(seq, &[]));
    assert_eq!(messages(&voter.packet(0, 1, beat(2))).len(), 1);
    assert_eq!(voter.packet(1, 1, beat(2)), []);
    assert_eq!(voter.packet(2, 1, beat(1)), []);
}

#[test]
fn a_released_volume_is_kept_for_its_successor_then_free_for_all() {
    let mut voter = Bench::new(3);
    voter.grant(0, 1, 1);
    voter.beat(10, 1, 0, &[1]);
    let commands = voter.packet(20, 1, release(1, Some(store(2))));
    let released = LeaseEvent::HolderReleased { volume: volume(), successor: Some(store(2)) };
    assert_eq!(events(&commands), [released]);
    assert_eq!(messages(&commands), [Message::ReleaseAck(volume(), epoch(1))]);
    assert!(is_busy(&ask(&mut voter, 30, 4, Stamp::default())));
    assert_eq!(ask(&mut voter, 30, 2, Stamp::default()), Verdict::Yes);
    assert_eq!(ask(&mut voter, 30, 1, Stamp::default()), Verdict::Yes, "it may take it back");
    assert_eq!(voter.grant(30, 1, 1), Verdict::Stale(epoch(1)), "but not the same epoch");
    let open = LeaseEvent::HolderReleased { volume: volume(), successor: None };
    assert_eq!(events(&voter.step(30_020, Event::Tick)), [open]);
    assert_eq!(voter.grant(30_020, 4, 2), Verdict::Yes, "a candidate need not vote itself");
}

/// F9: a heartbeat that comes after the release confirms nothing.
#[test]
fn a_released_epoch_is_not_confirmed_again() {
    let mut voter = Bench::new(3);
    voter.grant(0, 1, 1);
    voter.beat(10, 1, 0, &[1]);
    voter.packet(20, 1, release(1, None));
    assert_eq!(voter.beat(30, 1, 0, &[1]).confirmed, []);
    let released = voter.disk.voters[&volume()].released;
    assert_eq!(released, Some(Released { successor: None }));
}

/// F10: configurations are ordered by epoch, then number; the newer one is told.
#[test]
fn nobody_releases_what_was_granted_to_another_or_under_another_epoch() {
    let mut voter = Bench::new(3);
    voter.grant(0, 1, 5);
    assert_eq!(voter.beat(10, 1, 0, &[5]).confirmed, [(volume(), epoch(5))]);
    for (from, counter) in [(2, 5), (2, 6), (1, 4), (1, 6)] {
        let commands = voter.packet(20, from, release(counter, None));
        assert_eq!(messages(&commands), [Message::ReleaseAck(volume(), epoch(counter))]);
        assert_eq!(events(&commands), [], "from {from}, of epoch {counter}");
    }
    let record = &voter.disk.voters[&volume()];
    assert_eq!((record.confirmed, record.released), (true, None));
    assert_eq!(voter.beat(500, 1, 0, &[5]).confirmed, [(volume(), epoch(5))]);
    assert!(matches!(ask(&mut voter, 600, 2, Stamp::default()), Verdict::Busy { .. }));
}

#[test]
fn a_claim_under_an_older_configuration_learns_the_newer() {
    let mut voter = Bench::new(3);
    voter.grant(0, 1, 2);
    let with = |counter, number, voters: [u8; 3]| VoterConfig {
        version: ConfigVersion { epoch: epoch(counter), number },
        voters: voters.into_iter().map(store).collect(),
        joint: Some(config().voters),
    };
    let set = |counter, config| {
        Message::SetConfig(SetConfig { volume: volume(), epoch: epoch(counter), config })
    };
    voter.packet(10, 1, set(2, with(2, 7, [1, 4, 5])));
    assert_eq!(voter.disk.voters[&volume()].config, with(2, 7, [1, 4, 5]));
    assert_eq!(ask(&mut voter, 20, 1, Stamp::default()), Verdict::Newer(with(2, 7, [1, 4, 5])));
    // Of a later epoch, though of a lower number: it counts.
    assert_eq!(voter.disk.voters[&volume()].max_epoch, epoch(2));
    voter.packet(3_000, 2, set(3, with(3, 1, [2, 3, 4])));
    assert_eq!(voter.disk.voters[&volume()].config, with(3, 1, [2, 3, 4]));
    // Of the former epoch, with a higher number: it does not.
    voter.packet(3_100, 1, set(2, with(2, 99, [1, 4, 5])));
    assert_eq!(voter.disk.voters[&volume()].config, with(3, 1, [2, 3, 4]));
}

/// A master may count on a voter that has yet to hear that it was taken out and in again.
#[test]
fn a_voter_that_is_taken_out_keeps_its_promise_tells_so_and_confirms_no_more() {
    let mut voter = Bench::new(3);
    voter.grant(0, 1, 2);
    assert_eq!(voter.beat(100, 1, 0, &[2]).confirmed, [(volume(), epoch(2))]);
    let without = VoterConfig {
        version: ConfigVersion { epoch: epoch(2), number: 2 },
        voters: [1, 2, 4].into_iter().map(store).collect(),
        joint: None,
    };
    let set = |config| Message::SetConfig(SetConfig { volume: volume(), epoch: epoch(2), config });
    let commands = voter.packet(200, 1, set(without));
    let [Message::SetConfigReply(reply)] = &messages(&commands)[..] else {
        panic!("one answer, not {commands:?}");
    };
    assert_eq!((reply.support, &reply.verdict), (1, &Verdict::Yes));
    // Its promise of 3.3 s was made at 100 ms, and what comes now adds nothing to it.
    let beat = voter.beat(300, 1, 1, &[2]);
    assert_eq!((beat.extended, beat.refused), (true, vec![(volume(), epoch(2), epoch(2))]));
    let by_it = |number| VoterConfig {
        version: ConfigVersion { epoch: epoch(2), number },
        voters: [1, 2, 3].into_iter().map(store).collect(),
        joint: None,
    };
    let ask_with = |voter: &mut Bench, millis| {
        let (copy, lag_limit) = (Stamp::default(), LAG);
        let config = by_it(9);
        let question = PreVote { volume: volume(), round: 1, config, copy, lag_limit };
        let commands = voter.packet(millis, 2, Message::PreVote(question));
        match messages(&commands).as_slice() {
            [Message::PreVoteReply(reply)] => reply.verdict.clone(),
            other => panic!("one answer, not {other:?}"),
        }
    };
    assert!(matches!(ask_with(&mut voter, 3_390), Verdict::Busy { .. }));
    assert_eq!(ask_with(&mut voter, 3_410), Verdict::Yes);
    // Taken in again, it stands by its grantee again.
    voter.packet(3_420, 1, set(by_it(4)));
    assert_eq!(voter.beat(3_430, 1, 1, &[2]).confirmed, [(volume(), epoch(2))]);
    assert!(matches!(ask_with(&mut voter, 3_500), Verdict::Busy { .. }));
}

/// F11: freshness is epoch, then sequence; never age, never length.
#[test]
fn a_deposed_masters_longer_branch_is_behind() {
    let mut voter = Bench::new(3);
    voter.observe();
    voter.step(0, Event::LocalCopy(volume(), Some(stamp(4, 850, 10))));
    let best = stamp(4, 850, 10);
    let behind = Verdict::Behind { best, here: true };
    assert_eq!(ask(&mut voter, 1, 1, stamp(3, 900, 99_999)), behind);
    assert_eq!(ask(&mut voter, 1, 1, stamp(4, 850, 10)), Verdict::Yes);
    voter.step(2, Event::LocalCopy(volume(), None));
    assert_eq!(ask(&mut voter, 3, 1, stamp(3, 900, 10)), Verdict::Yes, "no longer served here");
}

/// F12: a voter without data remembers how far the replicas were.
#[test]
fn an_ancient_copy_is_not_elected_silently() {
    let mut voter = Bench::new(3);
    voter.observe();
    voter.grant(0, 1, 1);
    voter.beat(10, 1, 0, &[1]);
    let hints = vec![(volume(), epoch(1), stamp(1, 9, 100_000))];
    let beat = Heartbeat { hints, ..heartbeat(2, &[]) };
    voter.packet(20, 1, Message::Heartbeat(beat));
    let mut voter = Bench::restarted(3, voter.disk, 30);
    voter.observe();
    let best = stamp(1, 9, 100_000);
    let behind = Verdict::Behind { best, here: false };
    assert_eq!(ask(&mut voter, 10_000, 2, stamp(1, 3, 39_999)), behind);
    assert_eq!(ask(&mut voter, 10_000, 2, stamp(1, 3, 40_000)), Verdict::Yes, "within the limit");
}

#[test]
fn a_start_that_does_not_rise_is_refused_and_told() {
    let mut voter = Bench::new(3);
    let start = |incarnation, nonce| Start { incarnation: Incarnation(incarnation), nonce };
    let from = |start, seq| Event::Packet {
        from: store(1),
        packet: Packet { start, messages: vec![Message::Heartbeat(heartbeat(seq, &[]))] },
    };
    assert_eq!(messages(&voter.step(0, from(start(5, 1), 1))).len(), 1);
    for old in [start(4, 1), start(5, 2)] {
        let told = Message::StaleStart { refused: old, newest: start(5, 1) };
        assert_eq!(voter.step(1, from(old, 2)), [Command::Send(store(1), vec![told])]);
    }
    assert_eq!(
        messages(&voter.step(2, from(start(6, 9), 1))).len(),
        1,
        "a later start counts anew"
    );
    let mut voter = Bench::restarted(3, voter.disk, 10);
    let commands = voter.step(11, from(start(5, 1), 9));
    assert!(matches!(messages(&commands).as_slice(), [Message::StaleStart { .. }]), "{commands:?}");
}

#[test]
fn a_restored_store_votes_and_leads_no_more() {
    let mut restored = Bench::new(3);
    restored.observe();
    let newest = Start { incarnation: Incarnation(9), nonce: 9 };
    let other = Message::StaleStart { refused: start_of(7), newest };
    assert_eq!(restored.packet(0, 1, other), [], "about an earlier start");
    let told = Message::StaleStart { refused: start_of(3), newest };
    let commands = restored.packet(0, 1, told);
    assert_eq!(commands, [Command::Alarm(Alarm::Condemned { own: start_of(3), newest })]);
    assert_eq!(restored.packet(1, 1, Message::Grant(grant(1))), []);
    let mut again = Bench::restarted(3, restored.disk, 10);
    again.observe();
    let reason = String::new();
    let commands = again.step(11, Event::Campaign { volume: volume(), rank: 0, reason });
    let why = CampaignFailure::Condemned;
    let failed = LeaseEvent::CampaignFailed { volume: volume(), why, ended: true };
    assert_eq!(commands, [Command::Emit(failed)]);
}

#[test]
fn an_epoch_out_of_proportion_is_not_taken_from_the_map() {
    let mut voter = Bench::new(3);
    voter.step(0, Event::Seen(volume(), epoch(1 << 20)));
    assert_eq!(voter.core.floor(volume()), epoch(1 << 20));
    let commands = voter.step(0, Event::Seen(volume(), epoch(1 << 40)));
    assert!(matches!(commands.as_slice(), [Command::Alarm(Alarm::EpochJump { .. })]));
    assert_eq!(voter.core.floor(volume()), epoch(1 << 20));
    assert_eq!(voter.grant(1, 1, 1), Verdict::Yes, "what is seen does not bind a vote");
}

/// A successor learns of the release even if its own record is of an older epoch.
#[test]
fn the_successor_is_told_once_whatever_it_granted() {
    let mut voter = Bench::new(2);
    let told = LeaseEvent::HolderReleased { volume: volume(), successor: Some(store(2)) };
    let commands = voter.packet(0, 1, release(9, Some(store(2))));
    assert_eq!(events(&commands), [told]);
    assert_eq!(messages(&commands), [Message::ReleaseAck(volume(), epoch(9))]);
    assert_eq!(events(&voter.packet(1, 1, release(9, Some(store(2))))), []);
}

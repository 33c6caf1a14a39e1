//! The candidate's and the holder's rules: store 1 campaigns, stores 2 and 3 answer.

use super::super::event::{Alarm, CampaignFailure, Election, LeaseError, Outcome, Request};
use super::super::message::{GrantReply, PreVoteReply, SetConfigReply};
use super::super::record::HolderRecord;
use super::*;
use crate::model::ConfigVersion;

fn campaign(rank: u32) -> Event {
    Event::Campaign { volume: volume(), rank, reason: "test".to_owned() }
}

fn answer(bench: &mut Bench, millis: u64, from: u8, round: u64, verdict: Verdict) -> Vec<Command> {
    let reply = PreVoteReply {
        volume: volume(),
        round,
        max_epoch: Epoch::ZERO,
        copy: None,
        support: 0,
        verdict,
    };
    bench.packet(millis, from, Message::PreVoteReply(reply))
}

fn granted(bench: &mut Bench, millis: u64, from: u8, counter: u64) -> Vec<Command> {
    let (epoch, verdict) = (epoch(counter), Verdict::Yes);
    let reply = GrantReply { volume: volume(), epoch, support: 0, verdict };
    bench.packet(millis, from, Message::GrantReply(reply))
}

fn ack(seq: u64, confirmed: &[u64]) -> HeartbeatAck {
    HeartbeatAck {
        start: start_of(1),
        seq,
        support: 0,
        extended: true,
        confirmed: confirmed.iter().map(|counter| (volume(), epoch(*counter))).collect(),
        refused: Vec::new(),
    }
}

fn beat_to(commands: &[Command], to: u8) -> Option<Heartbeat> {
    commands.iter().find_map(|command| match command {
        Command::Send(whom, messages) if *whom == store(to) => {
            messages.iter().rev().find_map(|message| match message {
                Message::Heartbeat(beat) => Some(beat.clone()),
                _ => None,
            })
        }
        _ => None,
    })
}

/// A bench that has won epoch 1 at time 0, confirmed by itself and store 2.
fn holder() -> Bench {
    let mut bench = Bench::new(1);
    bench.observe();
    let commands = bench.step(0, campaign(0));
    assert_eq!(messages(&commands).len(), 2, "asked both others: {commands:?}");
    answer(&mut bench, 0, 2, 1, Verdict::Yes);
    let commands = granted(&mut bench, 0, 2, 1);
    let beat = beat_to(&commands, 2).expect("a heartbeat at once");
    assert_eq!((beat.want, beat.confirm.as_slice()), (true, [(volume(), epoch(1))].as_slice()));
    let commands = bench.packet(0, 2, Message::HeartbeatAck(ack(beat.seq, &[1])));
    let at_once = Duration::ZERO;
    let election = Some(Election {
        asked: at_once,
        granted: at_once,
        confirmed: at_once,
        by: vec![store(1), store(2)],
        lost: 0,
    });
    let (epoch, config, until) = (epoch(1), config(), at(2_700));
    let won = LeaseEvent::Won { volume: volume(), epoch, config, until, election };
    assert_eq!(events(&commands), [won]);
    bench
}

fn held_until(bench: &Bench) -> Option<BootTime> {
    bench.core.view(volume())?.held.map(|held| held.until)
}

#[test]
fn nothing_is_asked_to_be_confirmed_before_the_holders_record_is_durable() {
    let mut bench = Bench::new(1);
    bench.observe();
    bench.step(0, campaign(0));
    answer(&mut bench, 0, 2, 1, Verdict::Yes);
    let (epoch, verdict) = (epoch(1), Verdict::Yes);
    let reply = GrantReply { volume: volume(), epoch, support: 0, verdict };
    let commands = bench.raw(0, packet(2, Message::GrantReply(reply)));
    let record = HolderRecord {
        epoch,
        closed: Epoch::ZERO,
        config: config(),
        successor: None,
        settled: false,
    };
    assert!(
        commands.contains(&Command::Persist(2, vec![Write::Holder(volume(), record)])),
        "{commands:?}"
    );
    assert!(beat_to(&commands, 2).is_none_or(|beat| beat.confirm.is_empty()), "{commands:?}");
    let commands = bench.sync(1);
    assert_eq!(beat_to(&commands, 2).expect("now").confirm, [(volume(), epoch)]);
}

/// F8: from when the heartbeat was sent, not from when its answer came.
#[test]
fn the_lease_runs_from_the_sending() {
    let mut bench = holder();
    let beat = beat_to(&bench.step(500, Event::Tick), 2).expect("due");
    let commands = bench.packet(1_900, 2, Message::HeartbeatAck(ack(beat.seq, &[])));
    let renewed = LeaseEvent::Renewed { volume: volume(), epoch: epoch(1), until: at(3_200) };
    assert_eq!(events(&commands), [renewed]);
    let again = bench.packet(1_950, 2, Message::HeartbeatAck(ack(beat.seq, &[])));
    assert_eq!(again, [], "an answer counts once");
}

/// F1: an acknowledgement of a voter that has not confirmed is worth nothing.
#[test]
fn voters_that_did_not_confirm_do_not_count() {
    let mut bench = holder();
    let commands = bench.step(500, Event::Tick);
    let beat = beat_to(&commands, 3).expect("due");
    assert_eq!(bench.packet(501, 3, Message::HeartbeatAck(ack(beat.seq, &[]))).len(), 1);
    assert_eq!(held_until(&bench), Some(at(2_700)));
}

#[test]
fn a_late_lease_is_frozen_thawed_by_the_same_epoch_and_in_the_end_given_up() {
    let mut bench = holder();
    assert_eq!(bench.core.next_deadline(), Some(at(500)));
    for millis in (500..2_200).step_by(500) {
        bench.step(millis, Event::Tick);
    }
    let freeze = LeaseEvent::Freeze { volume: volume(), epoch: epoch(1) };
    assert_eq!(events(&bench.step(2_200, Event::Tick)), [freeze]);
    bench.step(2_500, Event::Tick);
    let commands = bench.step(3_000, Event::Tick);
    let beat = beat_to(&commands, 2).expect("goes on asking");
    assert!(!beat.want, "F4: unheard for a lease, it asks for no promise");
    let probe = HeartbeatAck { extended: false, ..ack(beat.seq, &[]) };
    bench.packet(3_001, 2, Message::HeartbeatAck(probe));
    let beat = beat_to(&bench.step(3_500, Event::Tick), 2).expect("due");
    assert!(beat.want, "heard again");
    let commands = bench.packet(3_501, 2, Message::HeartbeatAck(ack(beat.seq, &[])));
    let renewed = LeaseEvent::Renewed { volume: volume(), epoch: epoch(1), until: at(6_200) };
    assert_eq!(events(&commands), [renewed]);
    assert!(!bench.core.view(volume()).expect("view").held.expect("held").frozen);
    bench.step(5_700, Event::Tick);
    let lost = LeaseEvent::Lost { volume: volume(), epoch: epoch(1), superseded_by: None };
    let commands = bench.step(65_700, Event::Tick);
    assert!(events(&commands).contains(&lost), "{commands:?}");
    assert_eq!(bench.disk.holders[&volume()].closed, epoch(1));
}

#[test]
fn a_frozen_epoch_that_a_voter_went_past_is_given_up_after_a_lease() {
    let mut bench = holder();
    let beat = beat_to(&bench.step(500, Event::Tick), 3).expect("due");
    let refused = vec![(volume(), epoch(1), epoch(2))];
    let answer = HeartbeatAck { refused, ..ack(beat.seq, &[]) };
    let commands = bench.raw(501, packet(3, Message::HeartbeatAck(answer)));
    assert_eq!(events(&commands), [], "the other two still stand by it");
    for millis in (1_000..5_200).step_by(100) {
        let told = events(&bench.step(millis, Event::Tick));
        assert!(!told.iter().any(|e| matches!(e, LeaseEvent::Lost { .. })), "{millis}: {told:?}");
    }
    assert_eq!(bench.core.next_deadline(), Some(at(5_200)), "frozen since 2,200");
    let lost = LeaseEvent::Lost { volume: volume(), epoch: epoch(1), superseded_by: None };
    assert!(events(&bench.step(5_200, Event::Tick)).contains(&lost));
}

#[test]
fn a_voter_that_moved_on_ends_the_lease_at_once() {
    let mut bench = holder();
    let beat = beat_to(&bench.step(500, Event::Tick), 2).expect("due");
    let refused = vec![(volume(), epoch(1), epoch(2))];
    let answer = HeartbeatAck { refused, ..ack(beat.seq, &[]) };
    let commands = bench.raw(501, packet(2, Message::HeartbeatAck(answer)));
    let superseded_by = Some(epoch(2));
    let lost = LeaseEvent::Lost { volume: volume(), epoch: epoch(1), superseded_by };
    assert_eq!(events(&commands), [lost]);
    assert_eq!(messages(&commands), [], "the release waits for the disk");
    let told = messages(&bench.sync(502));
    assert!(told.iter().any(|message| matches!(message, Message::Release(_))), "{told:?}");
}

#[test]
fn a_withdrawn_support_drops_all_confirmations_of_that_voter() {
    let mut bench = holder();
    let beat = beat_to(&bench.step(500, Event::Tick), 2).expect("due");
    let withdrawn = HeartbeatAck { support: 1, extended: false, ..ack(beat.seq, &[]) };
    let commands = bench.packet(501, 2, Message::HeartbeatAck(withdrawn));
    let again = beat_to(&commands, 2).expect("offered again at once");
    assert_eq!((again.support, again.confirm.as_slice()), (1, [(volume(), epoch(1))].as_slice()));
    let stale = bench.packet(502, 2, Message::HeartbeatAck(ack(beat.seq, &[1])));
    assert_eq!(stale, [], "already answered");
    let old = ack(again.seq, &[1]);
    let commands = bench.packet(503, 2, Message::HeartbeatAck(old));
    assert_eq!(commands, [Command::Alarm(Alarm::RolledBack(store(2)))]);
}

/// F9: closed durably, then released; a late answer revives nothing.
#[test]
fn a_release_is_told_only_once_it_is_durable_and_is_final() {
    let mut bench = holder();
    let beat = beat_to(&bench.step(500, Event::Tick), 2).expect("due");
    let request = Request(9);
    let release = Event::Release { volume: volume(), successor: Some(store(2)), request };
    let commands = bench.raw(600, release.clone());
    assert!(matches!(commands.as_slice(), [Command::Persist(..)]), "{commands:?}");
    assert_eq!(held_until(&bench), None, "over from this instant");
    let told = messages(&bench.sync(601));
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!(bench.disk.holders[&volume()].closed, epoch(1));
    let late = bench.packet(602, 2, Message::HeartbeatAck(ack(beat.seq, &[1])));
    assert_eq!((late.as_slice(), held_until(&bench)), ([].as_slice(), None));
    let commands = bench.packet(603, 2, Message::ReleaseAck(volume(), epoch(1)));
    assert_eq!(commands, [Command::Reply(request, Ok(Outcome::Released(epoch(1))))]);
    let refused = Command::Reply(request, Err(LeaseError::NotHolder(volume())));
    assert_eq!(bench.step(604, release), [refused]);
}

#[test]
fn a_release_cut_short_by_a_crash_goes_on_after_it() {
    let mut bench = holder();
    let request = Request(9);
    bench.raw(600, Event::Release { volume: volume(), successor: Some(store(2)), request });
    bench.sync(600);
    let mut bench = Bench::restarted(1, bench.disk, 700);
    let told = messages(&bench.step(700, Event::Tick));
    let to_two = told.iter().filter(|message| {
        matches!(message, Message::Release(release) if release.successor == Some(store(2)))
    });
    assert_eq!(to_two.count(), 2, "{told:?}");
    assert_eq!(held_until(&bench), None);
}

#[test]
fn a_restarted_holder_offers_its_epoch_again_and_keeps_it() {
    let bench = holder();
    let mut bench = Bench::restarted(1, bench.disk, 800);
    let probe = beat_to(&bench.step(800, Event::Tick), 2).expect("a probe");
    assert_eq!((probe.want, probe.confirm.as_slice()), (false, [(volume(), epoch(1))].as_slice()));
    assert_eq!(held_until(&bench), None, "not before it is confirmed");
    let refused = vec![(volume(), epoch(1), epoch(1))];
    let heard = HeartbeatAck { extended: false, refused, ..ack(probe.seq, &[]) };
    let commands = bench.packet(1_301, 2, Message::HeartbeatAck(heard));
    let beat = beat_to(&commands, 2).expect("asks at once");
    assert!(beat.want);
    let commands = bench.packet(1_302, 2, Message::HeartbeatAck(ack(beat.seq, &[1])));
    assert!(matches!(events(&commands).as_slice(), [LeaseEvent::Won { .. }]), "{commands:?}");
}

#[test]
fn rank_zero_asks_at_once_and_each_further_rank_a_step_later() {
    for (rank, least, most) in [(0, 0, 0), (1, 500, 750), (2, 1_000, 1_250)] {
        let mut bench = Bench::new(1);
        bench.observe();
        let commands = bench.step(0, campaign(rank));
        if rank == 0 {
            assert_eq!(messages(&commands).len(), 2);
        } else {
            let due = bench.core.next_deadline().expect("waits");
            assert!(due >= at(least) && due <= at(most), "rank {rank}: {due:?}");
        }
    }
}

#[test]
fn a_campaign_for_an_unknown_volume_fails_with_its_reason() {
    let mut bench = Bench::new(1);
    let why = CampaignFailure::UnknownVolume;
    let failed = LeaseEvent::CampaignFailed { volume: volume(), why, ended: true };
    assert_eq!(bench.step(0, campaign(0)), [Command::Emit(failed)]);
}

#[test]
fn a_lost_election_is_abandoned_and_its_epoch_not_claimed_again() {
    let mut bench = Bench::new(1);
    bench.observe();
    bench.step(0, campaign(0));
    answer(&mut bench, 0, 2, 1, Verdict::Yes);
    let busy =
        Verdict::Busy { holder: store(2), epoch: epoch(1), remaining: Duration::from_secs(1) };
    for from in [2, 3] {
        let verdict = busy.clone();
        let reply = GrantReply { volume: volume(), epoch: epoch(1), support: 0, verdict };
        let commands = bench.packet(1, from, Message::GrantReply(reply));
        let abandoned = messages(&commands);
        let abandoned = abandoned.iter().filter(|m| matches!(m, Message::Abandon(..))).count();
        assert_eq!(abandoned, if from == 3 { 2 } else { 0 });
    }
    let due = bench.core.next_deadline().expect("tries again");
    assert!(due >= at(501) && due <= at(1_501), "{due:?}");
    bench.step(1_600, Event::Tick);
    let commands = answer(&mut bench, 1_601, 2, 2, Verdict::Yes);
    let claims = messages(&commands);
    assert!(matches!(&claims[0], Message::Grant(grant) if grant.epoch == epoch(2)), "{claims:?}");
    assert_eq!(events(&granted(&mut bench, 1_602, 2, 1)), [], "an old grant wins nothing");
}

#[test]
fn a_candidate_that_is_behind_fetches_and_asks_again_at_once() {
    let mut bench = Bench::new(1);
    bench.observe();
    bench.step(0, campaign(0));
    let best = stamp(1, 5, 10);
    let behind = Verdict::Behind { best, here: true };
    answer(&mut bench, 1, 2, 1, behind.clone());
    let commands = answer(&mut bench, 1, 3, 1, behind);
    let told = LeaseEvent::Behind { volume: volume(), best: best.head, at: store(2) };
    assert_eq!(events(&commands), [told]);
    let commands = bench.step(50, Event::LocalCopy(volume(), Some(best)));
    assert_eq!(messages(&commands).len(), 2, "asks again: {commands:?}");
}

#[test]
fn copies_beyond_the_lag_limit_need_a_person() {
    let mut bench = Bench::new(1);
    bench.observe();
    bench.step(0, campaign(0));
    let best = stamp(1, 5, 100_000);
    let behind = Verdict::Behind { best, here: false };
    answer(&mut bench, 1, 2, 1, behind.clone());
    let commands = answer(&mut bench, 1, 3, 1, behind);
    let told = LeaseEvent::NeedsDecision { volume: volume(), candidates: vec![], newest: best };
    assert_eq!(events(&commands), [told]);
}

/// F5: a node whose disk hangs asks for no promises.
#[test]
fn a_hanging_disk_ends_the_wish_for_promises() {
    let mut bench = holder();
    let mut wants = Vec::new();
    // Nothing is written meanwhile but the probe of the disk, and that never ends.
    for millis in (500..=9_000).step_by(500) {
        let commands = bench.raw(millis, Event::Tick);
        if let Some(beat) = beat_to(&commands, 2) {
            wants.push(beat.want);
            let answer =
                Message::HeartbeatAck(HeartbeatAck { extended: beat.want, ..ack(beat.seq, &[]) });
            bench.raw(millis, packet(2, answer));
        }
    }
    assert_eq!(wants.first(), Some(&true));
    assert_eq!(wants.last(), Some(&false), "{wants:?}");
}

#[test]
fn voters_change_through_a_joint_configuration_that_is_durable_first() {
    let mut bench = holder();
    let request = Request(4);
    let voters = BTreeSet::from([store(1), store(2), store(4)]);
    let even = BTreeSet::from([store(1), store(2)]);
    let refused =
        bench.step(1, Event::ChangeVoters { volume: volume(), voters: even.into(), request });
    assert_eq!(refused, [Command::Reply(request, Err(LeaseError::BadVoters(2)))]);
    let change = Event::ChangeVoters { volume: volume(), voters: voters.clone().into(), request };
    let commands = bench.raw(1, change);
    assert_eq!(messages(&commands), [], "not proposed before it is durable here");
    bench.sync(2);
    let joint = bench.disk.holders[&volume()].config.clone();
    let version = ConfigVersion { epoch: epoch(1), number: 1 };
    assert_eq!(
        joint,
        VoterConfig { version, voters: voters.clone().into(), joint: Some(config().voters) }
    );
    let accept = |bench: &mut Bench, from, version| {
        let verdict = Verdict::Yes;
        let reply =
            SetConfigReply { volume: volume(), epoch: epoch(1), version, support: 0, verdict };
        bench.packet(10, from, Message::SetConfigReply(reply))
    };
    let commands = accept(&mut bench, 2, version);
    assert_eq!(events(&commands), [], "a majority of both sets is one step");
    let last = ConfigVersion { epoch: epoch(1), number: 2 };
    bench.step(510, Event::Tick);
    let commands = accept(&mut bench, 2, last);
    let config = VoterConfig { version: last, voters: voters.into(), joint: None };
    let changed = LeaseEvent::VotersChanged { volume: volume(), config: config.clone() };
    assert!(events(&commands).contains(&changed), "{commands:?}");
    assert!(commands.contains(&Command::Reply(request, Ok(Outcome::Voters(config)))));
}

/// 2.11: a holder that is its only voter has no deadline.
#[test]
fn a_lone_voter_wins_alone_and_without_end() {
    let mut bench = Bench::new(1);
    let config = VoterConfig::birth(BTreeSet::from([store(1)]));
    bench.step(0, Event::Observe(VolumeFacts { volume: volume(), config, lag_limit: LAG }));
    bench.step(0, campaign(0));
    assert_eq!(held_until(&bench), Some(BootTime::NEVER));
    let mut bench = Bench::restarted(1, bench.disk, 10);
    bench.step(10, Event::Tick);
    assert_eq!(held_until(&bench), Some(BootTime::NEVER), "and keeps it across a restart");
}

/// A successor that does not vote is told until it answers, so that a lost packet costs little.
#[test]
fn a_successor_that_does_not_vote_is_told_until_it_answers() {
    let mut bench = holder();
    let request = Request(9);
    let release = Event::Release { volume: volume(), successor: Some(store(7)), request };
    bench.step(600, release);
    let to_successor = |commands: &[Command]| {
        commands.iter().any(|command| matches!(command, Command::Send(to, _) if *to == store(7)))
    };
    for voter in [2, 3] {
        bench.packet(601, voter, Message::ReleaseAck(volume(), epoch(1)));
    }
    assert!(to_successor(&bench.step(1_100, Event::Tick)), "told again");
    bench.packet(1_101, 7, Message::ReleaseAck(volume(), epoch(1)));
    assert!(bench.disk.holders[&volume()].settled);
    assert!(!to_successor(&bench.step(60_000, Event::Tick)));
}

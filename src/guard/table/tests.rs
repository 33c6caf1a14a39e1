//! The exact commands, and the invariants under any sequence of events.

use flocker_base::Epoch;
use proptest::prelude::*;

use super::*;

const fn at(millis: u64) -> BootTime {
    BootTime::from_millis(millis)
}

fn group(service: u8, leader: u32) -> ProcessGroup {
    ProcessGroup { service: ServiceId::from_bytes([service; 16]), leader, start_ticks: 1 }
}

fn protected(service: u8, freeze: u64, deadline: u64) -> Protected {
    Protected {
        group: group(service, 100 + u32::from(service)),
        epoch: Epoch::new(0, 1),
        freeze_at: at(freeze),
        deadline: at(deadline),
    }
}

fn extension(service: u8, counter: u64, freeze: u64, deadline: u64) -> Extension {
    Extension {
        service: ServiceId::from_bytes([service; 16]),
        epoch: Epoch::new(0, counter),
        freeze_at: at(freeze),
        deadline: at(deadline),
        keep_frozen: false,
        resume: false,
    }
}

const fn freeze(protected: Protected, first: bool) -> Action {
    Action::Freeze { protected, first, overdue: false }
}

/// A table, driven, with the newest reply and actions.
#[derive(Default)]
struct Driven {
    table: Table,
    actions: Vec<Action>,
}

impl Driven {
    fn ask(&mut self, now: u64, request: &Request) -> Reply {
        self.ask_as(now, 1, request)
    }

    fn ask_as(&mut self, now: u64, incarnation: u64, request: &Request) -> Reply {
        self.actions.clear();
        let event = Event::Asked(Incarnation(incarnation), request);
        self.table.step(at(now), event, &mut self.actions)
    }

    fn tick(&mut self, now: u64) -> Vec<Action> {
        self.actions.clear();
        self.table.step(at(now), Event::Tick, &mut self.actions);
        self.actions.clone()
    }
}

#[test]
fn it_freezes_then_kills_and_repeats_until_gone() {
    let mut d = Driven::default();
    let p = protected(1, 1000, 1500);
    assert_eq!(d.ask(0, &Request::Protect(p)), Reply::Done);
    assert_eq!(d.table.next_deadline(), at(1000));
    assert_eq!(d.tick(999), []);
    assert_eq!(d.tick(1000), [freeze(p, true)]);
    assert_eq!(d.table.next_deadline(), at(1025));
    assert_eq!(d.tick(1024), []);
    assert_eq!(d.tick(1025), [freeze(p, false)]);
    assert_eq!(d.tick(1500), [Action::Kill { protected: p, first: true }]);
    assert_eq!(d.tick(1525), [Action::Kill { protected: p, first: false }]);
    d.table.step(at(1530), Event::Gone(p.group), &mut Vec::new());
    assert!(d.table.is_empty());
    assert_eq!(d.table.next_deadline(), BootTime::NEVER);
}

fn patient() -> Driven {
    let table = Table::default().with_frozen_limit(Duration::from_secs(60));
    Driven { table, ..Driven::default() }
}

#[test]
fn what_stands_still_past_its_deadline_is_looked_at_and_goes_on_if_its_lease_does() {
    let mut d = patient();
    let p = protected(1, 1000, 1490);
    let overdue = Action::Freeze { protected: p, first: false, overdue: true };
    d.ask(0, &Request::Protect(p));
    d.tick(1000);
    d.tick(1475);
    assert_eq!(d.table.next_deadline(), at(1490), "the deadline itself is a moment to look");
    assert_eq!(d.tick(1490), [overdue]);
    assert_eq!(d.table.next_deadline(), at(1515), "and then again and again");
    assert_eq!(d.tick(1515), [overdue]);
    let other = Request::Extend(vec![extension(1, 2, 9000, 9500)]);
    assert_eq!(d.ask(1516, &other), Reply::Extended(vec![p.group.service]), "another epoch");
    assert_eq!(d.actions, []);
    d.ask(30_000, &Request::Extend(vec![extension(1, 1, 32_000, 32_500)]));
    let on = Protected { freeze_at: at(32_000), deadline: at(32_500), ..p };
    assert_eq!(
        d.actions.last(),
        Some(&Action::Thaw { protected: on, keep_frozen: false, resume: false })
    );
    assert_eq!(d.tick(31_999), []);
    assert_eq!(d.tick(32_000), [freeze(on, true)]);
}

#[test]
fn what_moves_past_its_deadline_is_killed_at_once_and_what_stands_still_too_long() {
    for (seen_moving, killed_at) in [(true, 1500), (false, 61_000)] {
        let mut d = patient();
        let p = protected(1, 1000, 1500);
        d.ask(0, &Request::Protect(p));
        d.tick(1000);
        let mut actions = Vec::new();
        d.table.step(at(1400), Event::Moves(p.group), &mut actions);
        assert_eq!(actions, [freeze(p, false)], "before its deadline it is only told again");
        d.tick(1500);
        if seen_moving {
            d.table.step(at(1500), Event::Moves(p.group), &mut actions);
        } else {
            assert!(!d.tick(60_999).iter().any(|a| matches!(a, Action::Kill { .. })));
            actions = d.tick(killed_at);
        }
        assert_eq!(actions.last(), Some(&Action::Kill { protected: p, first: true }));
        d.table.step(at(killed_at + 1), Event::Moves(p.group), &mut actions);
        let late = Request::Extend(vec![extension(1, 1, 99_000, 99_500)]);
        assert_eq!(d.ask(killed_at + 2, &late), Reply::Extended(vec![p.group.service]));
    }
}

#[test]
fn what_was_not_frozen_in_time_is_killed_at_its_deadline() {
    let mut d = patient();
    let p = protected(1, 1000, 1500);
    d.ask(0, &Request::Protect(p));
    assert_eq!(d.tick(1500), [Action::Kill { protected: p, first: true }], "the machine slept");
}

#[test]
fn an_extension_thaws_the_same_epoch_alone() {
    let mut d = Driven::default();
    let p = protected(1, 1000, 1500);
    d.ask(0, &Request::Protect(p));
    d.tick(1100);
    for other in [0, 2] {
        let wrong = Request::Extend(vec![extension(1, other, 9000, 9500)]);
        assert_eq!(d.ask(1101, &wrong), Reply::Extended(vec![p.group.service]));
        assert_eq!(d.actions, []);
    }
    let right = Request::Extend(vec![extension(1, 1, 2000, 2500)]);
    assert_eq!(d.ask(1110, &right), Reply::Extended(vec![]));
    let later = Protected { freeze_at: at(2000), deadline: at(2500), ..p };
    assert_eq!(d.actions, [Action::Thaw { protected: later, keep_frozen: false, resume: false }]);
    assert_eq!(d.tick(1999), []);
    assert_eq!(d.tick(2000), [freeze(later, true)]);
    let held = Extension { keep_frozen: true, ..extension(1, 1, 3000, 3500) };
    d.ask(2010, &Request::Extend(vec![held]));
    let held = Protected { freeze_at: at(3000), deadline: at(3500), ..p };
    assert_eq!(d.actions, [Action::Thaw { protected: held, keep_frozen: true, resume: false }]);
    assert_eq!(d.table.next_deadline(), at(3000));
}

#[test]
fn what_was_found_stopped_is_resumed_in_time_alone() {
    let mut d = Driven::default();
    let p = protected(1, 1000, 1500);
    d.ask(0, &Request::Protect(p));
    let resume = |freeze, kill| Extension { resume: true, ..extension(1, 1, freeze, kill) };
    d.ask(500, &Request::Extend(vec![resume(2000, 2500)]));
    let later = Protected { freeze_at: at(2000), deadline: at(2500), ..p };
    assert_eq!(d.actions, [Action::Thaw { protected: later, keep_frozen: false, resume: true }]);
    d.tick(2000);
    d.ask(2100, &Request::Extend(vec![resume(2000, 2500)]));
    let thawed = d.actions.iter().any(|action| matches!(action, Action::Thaw { .. }));
    assert!(!thawed, "its time has come: {:?}", d.actions);
}

#[test]
fn what_a_guard_before_left_frozen_is_thawed_by_the_next_extension() {
    let p = protected(1, 1000, 1500);
    let mut table = Table::restored(Incarnation(4), vec![(p, Phase::Running)]);
    table.note_frozen(|group| *group == p.group);
    let mut actions = Vec::new();
    let extend = Request::Extend(vec![extension(1, 1, 2000, 2500)]);
    table.step(at(500), Event::Asked(Incarnation(4), &extend), &mut actions);
    assert!(matches!(actions.last(), Some(Action::Thaw { .. })), "{actions:?}");
}

#[test]
fn a_late_extension_cannot_save_a_service() {
    let mut d = Driven::default();
    let p = protected(1, 1000, 1500);
    d.ask(0, &Request::Protect(p));
    let late = Request::Extend(vec![extension(1, 1, 9000, 9500)]);
    assert_eq!(d.ask(1500, &late), Reply::Extended(vec![p.group.service]));
    assert_eq!(d.actions, [Action::Kill { protected: p, first: true }]);
    assert!(matches!(d.ask(1501, &Request::Protect(protected(1, 9000, 9500))), Reply::Refused(_)));
}

#[test]
fn a_deadline_in_the_past_kills_at_once() {
    let mut d = Driven::default();
    let p = protected(1, 1000, 1500);
    assert_eq!(d.ask(1600, &Request::Protect(p)), Reply::Done);
    assert_eq!(d.actions, [Action::Kill { protected: p, first: true }]);
}

#[test]
fn never_may_become_an_instant_by_protect_and_by_nothing_else() {
    let mut d = Driven::default();
    let never =
        Protected { freeze_at: BootTime::NEVER, deadline: BootTime::NEVER, ..protected(1, 0, 0) };
    d.ask(0, &Request::Protect(never));
    assert_eq!(d.table.next_deadline(), BootTime::NEVER);
    d.ask(1, &Request::Extend(vec![extension(1, 1, 10, 20)]));
    assert_eq!(d.table.next_deadline(), BootTime::NEVER);
    d.ask(2, &Request::Protect(protected(1, 1000, 1500)));
    assert_eq!(d.table.next_deadline(), at(1000));
    d.ask(3, &Request::Protect(protected(1, 500, 600)));
    assert_eq!(d.table.next_deadline(), at(1000), "and then only forward");
}

#[test]
fn an_older_agent_is_refused_whatever_it_asks() {
    let mut d = Driven::default();
    d.ask_as(0, 5, &Request::Hello(Incarnation(5)));
    let p = protected(1, 1000, 1500);
    d.ask_as(1, 5, &Request::Protect(p));
    let before = d.table.clone();
    for request in [
        Request::Hello(Incarnation(4)),
        Request::Extend(vec![extension(1, 1, 9000, 9500)]),
        Request::Release(p.group.service),
        Request::Protect(protected(2, 1, 2)),
    ] {
        assert!(matches!(d.ask_as(2, 4, &request), Reply::Refused(_)), "{request:?}");
        assert_eq!(d.table, before);
    }
    assert_eq!(d.ask_as(3, 6, &Request::Hello(Incarnation(6))), Reply::Done);
    assert!(matches!(d.ask_as(4, 5, &Request::Ping), Reply::Refused(_)));
}

#[test]
fn a_second_process_of_a_service_does_not_displace_the_first() {
    let mut d = Driven::default();
    let first = protected(1, 1000, 1500);
    let second = Protected { group: group(1, 999), ..first };
    d.ask(0, &Request::Protect(first));
    d.ask(0, &Request::Protect(second));
    assert_eq!(d.tick(1500).len(), 2);
}

#[test]
fn what_still_runs_is_not_released() {
    let mut d = Driven::default();
    let p = protected(1, 1000, 1500);
    d.ask(0, &Request::Protect(p));
    assert!(matches!(d.ask(1, &Request::Release(p.group.service)), Reply::Refused(_)));
    assert!(d.table.holds(&p.group));
    d.table.step(at(2), Event::Gone(p.group), &mut Vec::new());
    assert_eq!(d.ask(3, &Request::Release(p.group.service)), Reply::Done);
}

#[test]
fn the_table_is_bounded() {
    let held = (0..u32::try_from(MOST_PROTECTED).expect("fits"))
        .map(|n| (Protected { group: group(1, n), ..protected(1, 1, 2) }, Phase::Running));
    let mut d =
        Driven { table: Table::restored(Incarnation(1), held.collect()), ..Driven::default() };
    assert!(matches!(d.ask(0, &Request::Protect(protected(2, 1, 2))), Reply::Refused(_)));
}

#[derive(Clone, Debug)]
enum Step {
    Wait(u64),
    Ask(u64, Request),
}

fn any_step() -> impl Strategy<Value = Step> {
    let times = || (0_u64..3000, 0_u64..600);
    prop_oneof![
        (0_u64..300).prop_map(Step::Wait),
        (1_u8..3, times())
            .prop_map(|(s, (f, d))| { Step::Ask(1, Request::Protect(protected(s, f, f + d))) }),
        (0_u64..3, 1_u8..3, 0_u64..3, times()).prop_map(|(i, s, e, (f, d))| {
            Step::Ask(i, Request::Extend(vec![extension(s, e, f, f + d)]))
        }),
        (0_u64..3).prop_map(|i| Step::Ask(i, Request::Hello(Incarnation(i)))),
    ]
}

proptest! {
    #[test]
    fn no_deadline_falls_and_none_that_passed_is_spared(
        steps in prop::collection::vec(any_step(), 1..60)
    ) {
        let (mut table, mut now) = (Table::default(), 0);
        for step in steps {
            let before = table.clone();
            let mut actions = Vec::new();
            match &step {
                Step::Wait(span) => {
                    now += span;
                    table.step(at(now), Event::Tick, &mut actions);
                }
                Step::Ask(incarnation, request) => {
                    let event = Event::Asked(Incarnation(*incarnation), request);
                    table.step(at(now), event, &mut actions);
                }
            }
            prop_assert!(table.newest() >= before.newest());
            for (group, held) in &table.held {
                let overdue = held.protected.deadline <= at(now);
                prop_assert_eq!(overdue, held.phase == Phase::Killing);
                let frozen = held.protected.freeze_at <= at(now) && !overdue;
                prop_assert!(!frozen || held.phase == Phase::Frozen);
                if let Some(old) = before.held.get(group) {
                    prop_assert!(held.protected.deadline >= old.protected.deadline);
                    prop_assert!(held.protected.freeze_at >= old.protected.freeze_at);
                    prop_assert!(old.phase != Phase::Killing || held.phase == Phase::Killing);
                    if held.phase == Phase::Killing && old.phase != Phase::Killing {
                        let killed = Action::Kill { protected: held.protected, first: true };
                        prop_assert!(actions.contains(&killed));
                    }
                }
            }
        }
    }
}

//! The core's decisions, command by command, and its promises under any order of events.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const LIMITS: Limits =
    Limits { max_held: 3, max_held_bytes: 100, max_hold: Duration::from_secs(10) };

type Place = u8;

struct Rig {
    core: GateCore<Place>,
    now: BootTime,
}

impl Rig {
    fn new() -> Self {
        Self { core: GateCore::new(LIMITS), now: BootTime::from_millis(1_000) }
    }

    fn step(&mut self, event: Event<Place>) -> Vec<Command<Place>> {
        let mut out = Vec::new();
        self.core.step(self.now, event, &mut out);
        out
    }

    fn arrive(&mut self, ticket: u64) -> Vec<Command<Place>> {
        self.step(Event::Arrive { ticket: Ticket(ticket), bytes: 10 })
    }

    fn unsent(&mut self, ticket: u64, version: u64) -> Vec<Command<Place>> {
        let (ticket, version) = (Ticket(ticket), Version(version));
        self.step(Event::Unsent { ticket, bytes: 10, version, since: None })
    }
}

fn admit(ticket: u64, place: Place, version: u64, since: Option<BootTime>) -> Command<Place> {
    Command::Admit { ticket: Ticket(ticket), place, version: Version(version), since }
}

fn refuse(ticket: u64, why: Refusal) -> Command<Place> {
    Command::Refuse { ticket: Ticket(ticket), why }
}

#[test]
fn requests_wait_while_the_place_is_unknown_and_go_in_order_when_it_is_known() {
    let mut rig = Rig::new();
    let since = Some(rig.now);
    assert_eq!(rig.arrive(1), []);
    assert_eq!(rig.arrive(2), []);
    let admitted = rig.step(Event::Place(Some(7)));
    assert_eq!(admitted, [admit(1, 7, 1, since), admit(2, 7, 1, since)]);
    assert_eq!((rig.core.held(), rig.core.in_flight()), (0, 2));
    assert_eq!(rig.arrive(3), [admit(3, 7, 1, None)]);
}

#[test]
fn a_hold_outlasts_a_change_of_place() {
    let mut rig = Rig::new();
    rig.step(Event::Place(Some(7)));
    rig.step(Event::Hold);
    let since = Some(rig.now);
    assert_eq!(rig.arrive(1), []);
    assert_eq!(rig.step(Event::Place(Some(8))), []);
    assert_eq!(rig.step(Event::Release), [admit(1, 8, 2, since)]);
}

#[test]
fn the_same_place_again_is_no_change() {
    let mut rig = Rig::new();
    rig.step(Event::Place(Some(7)));
    assert_eq!(rig.step(Event::Place(Some(7))), []);
    assert_eq!(rig.arrive(1), [admit(1, 7, 1, None)]);
}

#[test]
fn the_bounds_refuse_what_is_too_much() {
    let mut rig = Rig::new();
    rig.step(Event::Hold);
    for ticket in 1..=3 {
        assert_eq!(rig.arrive(ticket), []);
    }
    assert_eq!(rig.arrive(4), [refuse(4, Refusal::TooMany)]);
    rig.step(Event::Abandon { ticket: Ticket(1) });
    let heavy = rig.step(Event::Arrive { ticket: Ticket(5), bytes: 81 });
    assert_eq!(heavy, [refuse(5, Refusal::TooManyBytes)]);
    assert_eq!(rig.step(Event::Arrive { ticket: Ticket(6), bytes: 80 }), []);
    assert_eq!(rig.core.held_bytes(), 100);
}

#[test]
fn a_request_is_refused_when_it_has_waited_long_enough() {
    let mut rig = Rig::new();
    rig.arrive(1);
    let first = rig.core.next_deadline().expect("one is held");
    rig.now = rig.now + Duration::from_secs(4);
    rig.arrive(2);
    rig.now = first;
    assert_eq!(rig.step(Event::Elapsed), [refuse(1, Refusal::TooLong)]);
    assert_eq!(rig.core.held(), 1);
    assert_eq!(rig.core.longest_hold(rig.now), Duration::from_secs(10));
}

#[test]
fn all_waits_of_a_request_count_together() {
    let mut rig = Rig::new();
    let began = rig.now;
    rig.arrive(1);
    rig.now = rig.now + Duration::from_secs(9);
    assert_eq!(rig.step(Event::Place(Some(7))), [admit(1, 7, 1, Some(began))]);
    let (ticket, version) = (Ticket(1), Version(1));
    rig.step(Event::Unsent { ticket, bytes: 10, version, since: Some(began) });
    assert_eq!(rig.core.next_deadline(), Some(began + Duration::from_secs(10)));
}

#[test]
fn an_unreachable_place_is_probed_once_and_all_wait_for_it() {
    let mut rig = Rig::new();
    rig.step(Event::Place(Some(7)));
    rig.arrive(1);
    rig.arrive(2);
    let probe = Command::Probe { place: 7, version: Version(1), attempt: 0 };
    assert_eq!(rig.unsent(1, 1), [probe]);
    assert_eq!(rig.unsent(2, 1), []);
    assert_eq!(rig.arrive(3), []);
    assert!(rig.core.wants_probe(Version(1), 0));
    let since = Some(rig.now);
    let revived = rig.step(Event::Revived { version: Version(1) });
    assert_eq!(revived, [admit(1, 7, 1, since), admit(2, 7, 1, since), admit(3, 7, 1, since)]);
    let probe = Command::Probe { place: 7, version: Version(1), attempt: 1 };
    assert_eq!(rig.unsent(1, 1), [probe], "the next probe knows that it is the second");
}

#[test]
fn a_request_that_found_an_old_place_unreachable_goes_to_the_new_one_at_once() {
    let mut rig = Rig::new();
    rig.step(Event::Place(Some(7)));
    rig.arrive(1);
    rig.step(Event::Place(Some(8)));
    assert_eq!(rig.unsent(1, 1), [admit(1, 8, 2, None)]);
    assert_eq!(rig.core.in_flight(), 1);
}

#[test]
fn when_nobody_waits_for_a_probe_the_next_request_tries_for_itself() {
    let mut rig = Rig::new();
    rig.step(Event::Place(Some(7)));
    rig.arrive(1);
    rig.unsent(1, 1);
    rig.step(Event::Abandon { ticket: Ticket(1) });
    assert!(!rig.core.wants_probe(Version(1), 0));
    assert_eq!(rig.arrive(2), [admit(2, 7, 1, None)]);
}

#[test]
fn draining_ends_with_the_last_request_in_flight() {
    let mut rig = Rig::new();
    let drained = [Command::Drained { waiter: Waiter(9) }];
    assert_eq!(rig.step(Event::Drain { waiter: Waiter(9) }), drained);
    rig.step(Event::Place(Some(7)));
    rig.arrive(1);
    rig.arrive(2);
    rig.step(Event::Hold);
    rig.arrive(3);
    assert_eq!(rig.step(Event::Drain { waiter: Waiter(9) }), []);
    assert_eq!(rig.step(Event::Finish), []);
    assert_eq!(rig.step(Event::Finish), drained);
    assert_eq!(rig.core.held(), 1);
}

#[test]
fn a_removed_service_refuses_all_until_it_comes_back() {
    let mut rig = Rig::new();
    rig.arrive(1);
    assert_eq!(rig.step(Event::Remove), [refuse(1, Refusal::Removed)]);
    assert_eq!(rig.arrive(2), [refuse(2, Refusal::Removed)]);
    rig.step(Event::Place(None));
    assert_eq!(rig.arrive(3), []);
}

/// One thing that may happen, chosen before it is known what it applies to.
#[derive(Clone, Copy, Debug)]
enum Act {
    Arrive(u64),
    Unsent(usize, u64, bool),
    Finish(usize),
    Abandon(usize),
    Hold,
    Release,
    Place(Option<Place>),
    Remove,
    Revive(bool),
    Pass(u64),
    Drain,
    GiveUp,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        6 => (0..60_u64).prop_map(Act::Arrive),
        3 => (0..8_usize, 0..60_u64, any::<bool>()).prop_map(|(a, b, c)| Act::Unsent(a, b, c)),
        3 => (0..8_usize).prop_map(Act::Finish),
        2 => (0..8_usize).prop_map(Act::Abandon),
        1 => Just(Act::Hold),
        2 => Just(Act::Release),
        2 => proptest::option::of(0..3_u8).prop_map(Act::Place),
        1 => Just(Act::Remove),
        2 => any::<bool>().prop_map(Act::Revive),
        2 => (0..6_000_u64).prop_map(Act::Pass),
        1 => Just(Act::Drain),
        1 => Just(Act::GiveUp),
    ];
    proptest::collection::vec(act, 0..120)
}

/// What an outsider knows: which requests wait, which are in flight, and what must become of them.
#[derive(Default)]
struct Model {
    on_hold: bool,
    removed: bool,
    place: Option<Place>,
    version: u64,
    waiting: BTreeMap<Ticket, (u64, BootTime)>,
    flying: BTreeMap<Ticket, (u64, Option<BootTime>)>,
    ended: BTreeSet<Ticket>,
    drains: BTreeSet<Waiter>,
    probed: Option<(u64, u32)>,
    next: u64,
}

impl Model {
    fn event(&mut self, rig: &mut Rig, act: Act) -> Option<Event<Place>> {
        let flying = |at: usize, model: &Self| {
            model.flying.keys().nth(at % model.flying.len().max(1)).copied()
        };
        Some(match act {
            Act::Arrive(bytes) => {
                self.next += 1;
                let ticket = Ticket(self.next);
                self.waiting.insert(ticket, (bytes, rig.now));
                Event::Arrive { ticket, bytes }
            }
            Act::Unsent(at, bytes, current) => {
                let ticket = flying(at, self)?;
                let (version, since) = self.flying.remove(&ticket)?;
                let version = if current { version } else { version.saturating_sub(1) };
                self.waiting.insert(ticket, (bytes, since.unwrap_or(rig.now)));
                Event::Unsent { ticket, bytes, version: Version(version), since }
            }
            Act::Finish(at) => {
                let ticket = flying(at, self)?;
                self.flying.remove(&ticket);
                self.ended.insert(ticket);
                Event::Finish
            }
            Act::Abandon(at) => {
                let ticket = *self.waiting.keys().nth(at % self.waiting.len().max(1))?;
                self.waiting.remove(&ticket);
                self.ended.insert(ticket);
                Event::Abandon { ticket }
            }
            Act::Hold => {
                self.on_hold = true;
                Event::Hold
            }
            Act::Release => {
                self.on_hold = false;
                Event::Release
            }
            Act::Place(place) => {
                self.removed = false;
                self.version += u64::from(self.place != place);
                self.place = place;
                Event::Place(place)
            }
            Act::Remove => {
                self.removed = true;
                self.version += u64::from(self.place.is_some());
                self.place = None;
                Event::Remove
            }
            Act::Revive(current) => {
                let version = if current { self.version } else { self.version.saturating_sub(1) };
                Event::Revived { version: Version(version) }
            }
            Act::Pass(millis) => {
                rig.now = rig.now + Duration::from_millis(millis);
                Event::Elapsed
            }
            Act::Drain => {
                self.next += 1;
                self.drains.insert(Waiter(self.next));
                Event::Drain { waiter: Waiter(self.next) }
            }
            Act::GiveUp => {
                let waiter = self.drains.pop_first()?;
                Event::DrainGivenUp { waiter }
            }
        })
    }

    fn command(&mut self, command: &Command<Place>) {
        match *command {
            Command::Admit { ticket, place, version, since } => {
                assert!(!self.on_hold && !self.removed, "admitted through a closed gate");
                assert_eq!((Some(place), version.0), (self.place, self.version));
                let (_, began) = self.waiting.remove(&ticket).expect("it waited");
                assert!(since.is_none_or(|since| since == began), "its waits count together");
                self.flying.insert(ticket, (version.0, since));
            }
            Command::Refuse { ticket, .. } => {
                self.waiting.remove(&ticket).expect("it waited");
                assert!(self.ended.insert(ticket), "one outcome each");
            }
            Command::Drained { waiter } => {
                assert!(self.drains.remove(&waiter), "each waiter is told once");
            }
            Command::Probe { place, version, attempt } => {
                assert_eq!((Some(place), version.0), (self.place, self.version));
                assert!(self.probed < Some((version.0, attempt)), "probes are told apart");
                self.probed = Some((version.0, attempt));
            }
        }
    }

    fn check(&self, rig: &Rig) {
        let core = &rig.core;
        assert_eq!(core.held(), self.waiting.len(), "held is what waits");
        assert_eq!(core.in_flight(), self.flying.len(), "in flight is what was admitted");
        let bytes: u64 = self.waiting.values().map(|(bytes, _)| bytes).sum();
        assert_eq!(core.held_bytes(), bytes);
        assert!(core.held() <= LIMITS.max_held && bytes <= LIMITS.max_held_bytes);
        assert!(self.flying.is_empty() <= self.drains.is_empty(), "a waiter was not told");
        let due = self.waiting.values().map(|(_, since)| *since + LIMITS.max_hold).min();
        assert_eq!(core.next_deadline(), due, "a deadline is missing");
        let probing = self
            .probed
            .is_some_and(|(version, attempt)| core.wants_probe(Version(version), attempt));
        let open = !self.on_hold && !self.removed && self.place.is_some();
        assert!(!open || self.waiting.is_empty() || probing, "a wake-up was lost");
        assert!(!probing || !self.waiting.is_empty(), "a probe for nobody");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_wake_up_is_lost_no_bound_exceeded_and_each_request_ends_once(acts in acts()) {
        let mut rig = Rig::new();
        let mut model = Model::default();
        for act in acts {
            let Some(event) = model.event(&mut rig, act) else { continue };
            let elapsed = matches!(event, Event::Elapsed);
            let revived = matches!(event, Event::Revived { version } if version.0 == model.version);
            for command in rig.step(event) {
                model.command(&command);
            }
            model.check(&rig);
            let open = !model.on_hold && !model.removed && model.place.is_some();
            prop_assert!(!(revived && open) || model.waiting.is_empty(), "it answers again");
            if elapsed {
                let late = model.waiting.values().any(|(_, s)| *s + LIMITS.max_hold <= rig.now);
                prop_assert!(!late, "held past its time");
            }
        }
        // Whatever happened: released, with a place that answers, nobody waits.
        for event in [Event::Release, Event::Place(Some(9)), Event::Elapsed] {
            if matches!(event, Event::Release) { model.on_hold = false; }
            if matches!(event, Event::Place(_)) {
                model.version += u64::from(model.place != Some(9));
                (model.place, model.removed) = (Some(9), false);
            }
            for command in rig.step(event) {
                model.command(&command);
            }
        }
        model.check(&rig);
        prop_assert!(model.waiting.is_empty());
    }
}

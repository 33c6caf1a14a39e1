//! Promotion by a person's word, on whole meshes of cores: what it overrides, what it never does.

use super::super::event::{CampaignFailure, LeaseError, LeaseView, Outcome, Request};
use super::*;
use crate::model::Voters;

/// Cores that talk at once, but for those that are cut off.
struct Mesh {
    nodes: BTreeMap<u8, Bench>,
    millis: u64,
    /// Who hears nobody and is heard by nobody.
    cut: BTreeSet<u8>,
    replies: Vec<Result<Outcome, LeaseError>>,
    events: Vec<(u8, LeaseEvent)>,
}

impl Mesh {
    fn new(count: u8, voters: &[u8]) -> Self {
        let config = VoterConfig::birth(voters.iter().map(|n| store(*n)).collect::<BTreeSet<_>>());
        let facts = VolumeFacts { volume: volume(), config, lag_limit: LAG };
        let nodes = (1..=count).map(|number| (number, Bench::new(number))).collect();
        let mut mesh = Self {
            nodes,
            millis: 0,
            cut: BTreeSet::new(),
            replies: Vec::new(),
            events: Vec::new(),
        };
        for number in 1..=count {
            mesh.say(number, Event::Observe(facts.clone()));
        }
        mesh
    }

    fn say(&mut self, number: u8, event: Event) {
        let mut queue = std::collections::VecDeque::from([(number, event)]);
        while let Some((number, event)) = queue.pop_front() {
            let millis = self.millis;
            let bench = self.nodes.get_mut(&number).expect("a node");
            for command in bench.step(millis, event) {
                match command {
                    Command::Send(to, messages) => {
                        let to = to.as_bytes()[0];
                        let cut =
                            to != number && (self.cut.contains(&to) || self.cut.contains(&number));
                        if !cut && self.nodes.contains_key(&to) {
                            let packet = Packet { start: start_of(number), messages };
                            let event = Event::Packet { from: store(number), packet };
                            queue.push_back((to, event));
                        }
                    }
                    Command::Emit(event) => self.events.push((number, event)),
                    Command::Reply(_, outcome) => self.replies.push(outcome),
                    Command::Alarm(alarm) => panic!("{number}: {alarm}"),
                    Command::Persist(..) => {}
                }
            }
        }
    }

    fn pass(&mut self, millis: u64) {
        let until = self.millis + millis;
        while self.millis < until {
            self.millis += 25;
            let all: Vec<u8> = self.nodes.keys().copied().collect();
            all.into_iter().for_each(|number| self.say(number, Event::Tick));
        }
    }

    fn campaign(&mut self, number: u8) {
        let reason = String::new();
        self.say(number, Event::Campaign { volume: volume(), rank: 0, reason });
        self.pass(200);
    }

    /// Promotes, and gives the outcome once there is one.
    fn promote(&mut self, number: u8, force: Option<&[u8]>) -> Result<Outcome, LeaseError> {
        let force = force.map(|voters| {
            Voters::from(voters.iter().map(|n| store(*n)).collect::<BTreeSet<StoreId>>())
        });
        self.say(number, Event::Promote { volume: volume(), force, request: Request(7) });
        for _ in 0..60_000 / 500 {
            if let Some(outcome) = self.replies.pop() {
                return outcome;
            }
            self.pass(500);
        }
        panic!("no answer");
    }

    fn view(&self, number: u8) -> LeaseView {
        self.nodes[&number].core.view(volume()).expect("known")
    }

    fn holds(&self, number: u8) -> Option<Epoch> {
        let held = self.view(number).held?;
        (at(self.millis) < held.until).then_some(held.epoch)
    }

    fn holders(&self) -> Vec<u8> {
        self.nodes.keys().copied().filter(|number| self.holds(*number).is_some()).collect()
    }

    /// What the map would bring to a node: the newest configuration and epoch.
    fn tell(&mut self, number: u8, of: u8) {
        let (view, epoch) = (self.view(of), self.holds(of).expect("holds"));
        let facts = VolumeFacts { volume: volume(), config: view.config, lag_limit: LAG };
        self.say(number, Event::Observe(facts));
        self.say(number, Event::Seen(volume(), epoch));
        self.pass(100);
    }
}

fn why(outcome: Result<Outcome, LeaseError>) -> CampaignFailure {
    match outcome {
        Err(LeaseError::NotPromoted { why, .. }) => why,
        other => panic!("{other:?}"),
    }
}

fn won(outcome: Result<Outcome, LeaseError>) -> Epoch {
    match outcome {
        Ok(Outcome::Won(epoch)) => epoch,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_copy_of_a_two_node_mesh_is_forced_and_the_old_master_ends_when_it_hears() {
    let mut mesh = Mesh::new(2, &[1]);
    mesh.campaign(1);
    assert_eq!(mesh.holds(1), Some(epoch(1)));
    let reached = mesh.promote(2, Some(&[2]));
    let held = CampaignFailure::Held { holder: store(1), epoch: epoch(1) };
    assert_eq!(why(reached), held, "the only voter answers and promises");
    mesh.cut.insert(1);
    assert_eq!(why(mesh.promote(2, None)), CampaignFailure::NoQuorum { missing: vec![store(1)] });
    let forced = won(mesh.promote(2, Some(&[2])));
    assert_eq!(forced, Epoch::new((1 << 16) | 0x0202, 1));
    assert_eq!((mesh.holds(1), mesh.holds(2)), (Some(epoch(1)), Some(forced)), "that is force");
    mesh.pass(60_000);
    mesh.cut.clear();
    mesh.tell(1, 2);
    assert_eq!(mesh.holders(), [2]);
    let lost = LeaseEvent::Lost { volume: volume(), epoch: epoch(1), superseded_by: Some(forced) };
    assert!(mesh.events.contains(&(1, lost)), "{:?}", mesh.events);
    mesh.campaign(1);
    mesh.pass(30_000);
    assert_eq!(mesh.holders(), [2], "the old voters have nothing to say any more");
    assert_eq!(mesh.holds(2), Some(forced));
}

#[test]
fn force_is_refused_while_any_voter_that_answers_still_promises() {
    let mut mesh = Mesh::new(3, &[1, 2, 3]);
    mesh.campaign(1);
    mesh.cut.insert(1);
    let early = mesh.promote(3, Some(&[3]));
    assert!(matches!(why(early), CampaignFailure::Held { holder, .. } if holder == store(1)));
    // Cut off from both nobody can tell it, but it promised itself.
    mesh.cut = BTreeSet::from([3]);
    mesh.pass(1_000);
    assert!(matches!(why(mesh.promote(3, Some(&[3]))), CampaignFailure::Held { .. }));
    mesh.pass(3_000);
    let forced = won(mesh.promote(3, Some(&[3])));
    assert_eq!(mesh.holders(), [1, 3], "that is force");
    mesh.cut.clear();
    mesh.pass(5_000);
    mesh.tell(1, 3);
    mesh.tell(2, 3);
    assert_eq!(mesh.holders(), [3]);
    for candidate in [1, 2] {
        mesh.campaign(candidate);
        mesh.pass(20_000);
        assert_eq!(mesh.holders(), [3], "{candidate} was two of three once");
    }
    assert_eq!(mesh.holds(3), Some(forced));
}

#[test]
fn those_who_know_the_epoch_but_not_the_new_voters_wait() {
    let mut mesh = Mesh::new(3, &[1, 2, 3]);
    mesh.campaign(1);
    mesh.cut.insert(3);
    mesh.pass(5_000);
    let forced = won(mesh.promote(3, Some(&[3])));
    // A stream showed the epoch; the map is yet to come. The old voters would be a majority.
    mesh.say(1, Event::Seen(volume(), forced));
    mesh.say(2, Event::Seen(volume(), forced));
    mesh.pass(10_000);
    mesh.campaign(2);
    mesh.pass(10_000);
    assert_eq!(mesh.holders(), [3]);
    let told = mesh.events.iter().any(|(number, event)| {
        let outdated = CampaignFailure::Outdated(forced);
        *number == 2 && matches!(event, LeaseEvent::CampaignFailed { why, .. } if *why == outdated)
    });
    assert!(told, "{:?}", mesh.events);
}

#[test]
fn a_forced_master_of_several_voters_makes_them_durable_and_goes_on_without_one() {
    let mut mesh = Mesh::new(5, &[1, 2, 3]);
    mesh.campaign(1);
    mesh.cut = BTreeSet::from([1, 2]);
    mesh.pass(5_000);
    let forced = won(mesh.promote(3, Some(&[3, 4, 5])));
    mesh.pass(2_000);
    for voter in [3, 4, 5] {
        let record = mesh.nodes[&voter].core.record(volume()).expect("it votes").clone();
        assert_eq!((record.grantee, record.max_epoch), (Some(store(3)), forced));
        assert_eq!(record.config.version.epoch, forced, "{voter} knows the voters");
        assert_eq!(record.config.voters, Voters::from([store(3), store(4), store(5)]));
    }
    mesh.cut.insert(3);
    mesh.pass(10_000);
    mesh.campaign(4);
    mesh.pass(2_000);
    assert_eq!(mesh.holders(), [4]);
    assert_eq!(mesh.holds(4), Some(forced.next()), "an ordinary election, in the generation");
}

#[test]
fn no_epoch_of_a_generation_is_granted_under_the_voters_of_another() {
    let mut voter = Bench::new(2);
    voter.observe();
    let forged = Grant { epoch: Epoch::new(1, 1), ..grant(1) };
    let commands = voter.packet(0, 1, Message::Grant(forged));
    let Some(Message::GrantReply(reply)) = messages(&commands).pop() else { panic!("no answer") };
    assert_eq!(reply.verdict, Verdict::NotVoter);
    assert_eq!(voter.grant(10, 1, 1), Verdict::Yes, "nothing was changed");
}

#[test]
fn a_copy_too_far_behind_leads_by_a_persons_word_alone() {
    let mut mesh = Mesh::new(3, &[1, 2, 3]);
    mesh.say(1, Event::LocalCopy(volume(), Some(stamp(1, 9, 900_000))));
    mesh.say(2, Event::LocalCopy(volume(), Some(stamp(1, 2, 1_000))));
    mesh.campaign(1);
    mesh.say(1, Event::Replicated(volume(), stamp(1, 9, 900_000)));
    mesh.pass(2_000);
    mesh.cut.insert(1);
    mesh.pass(5_000);
    mesh.campaign(2);
    mesh.pass(5_000);
    assert_eq!(mesh.holders(), [] as [u8; 0]);
    let undecided = |(_, event): &(u8, LeaseEvent)| matches!(event, LeaseEvent::NeedsDecision { newest, .. } if newest.head.seq.0 == 9);
    assert!(mesh.events.iter().any(undecided), "{:?}", mesh.events);
    assert_eq!(won(mesh.promote(2, None)), epoch(2));
    mesh.pass(1_000);
    assert_eq!(mesh.holders(), [2]);
}

#[test]
fn a_forced_promotion_that_waits_for_a_fresher_copy_is_given_up_in_time() {
    let mut mesh = Mesh::new(3, &[1, 2, 3]);
    mesh.say(2, Event::LocalCopy(volume(), Some(stamp(1, 9, 900_000))));
    mesh.say(3, Event::LocalCopy(volume(), Some(stamp(1, 2, 1_000))));
    mesh.cut.insert(1);
    assert_eq!(why(mesh.promote(3, Some(&[3]))), CampaignFailure::UnderWay, "2 has a fresher one");
    let asked = mesh.events.iter().any(|(_, event)| matches!(event, LeaseEvent::Behind { .. }));
    assert!(asked && (30_000..33_000).contains(&mesh.millis), "{} ms", mesh.millis);
    mesh.say(3, Event::LocalCopy(volume(), Some(stamp(1, 9, 900_000))));
    mesh.pass(60_000);
    assert_eq!(mesh.holders(), [] as [u8; 0], "and not done later");
}

#[test]
fn bad_promotions_are_refused_and_change_nothing() {
    let mut mesh = Mesh::new(3, &[1, 2, 3]);
    assert_eq!(why(mesh.promote(1, Some(&[2]))), CampaignFailure::BadVoters, "without itself");
    assert_eq!(why(mesh.promote(1, Some(&[1, 2]))), CampaignFailure::BadVoters, "an even number");
    mesh.campaign(1);
    assert_eq!(won(mesh.promote(1, Some(&[1]))), epoch(1), "who holds it need not force");
    mesh.say(2, Event::StandDown(volume()));
    assert_eq!(mesh.holders(), [1]);
    let mut strange = Bench::new(9);
    let request = Request(1);
    let asked = Event::Promote { volume: volume(), force: None, request };
    let refused = strange.step(0, asked).into_iter().any(|command| {
        let why = CampaignFailure::UnknownVolume;
        command == Command::Reply(request, Err(LeaseError::NotPromoted { volume: volume(), why }))
    });
    assert!(refused);
}

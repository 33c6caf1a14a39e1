//! Every decision of the synchronisation: what is pushed to whom and when, what is merged next,
//! whom to pull from, whose pulls are answered. Pure and synchronous. It must hold no more than
//! a bounded amount, whatever peers send and however fast the map changes.
//!
//! ```text
//!   Changed ─▶ waiting ─▶ Read ─▶ Push          Pushed ─▶ inbox ─▶ Merge ─▶ (new here) waiting
//!   Roots ─▶ choice ─▶ pull: Ask ─▶ Answered ─▶ Merge ─▶ Ask ...       Asked ─▶ Answer
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use flocker_base::{BootTime, Name, StoreId};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::choice::Choice;
use super::event::{Ask, Command, Content, Event, Outcome, Parcel, Reply};
use super::inbox::Inbox;
use super::links::Links;
use super::message::{self, Push, Request, Response, Sent};
use super::pull::Pull;
use super::waiting::{Waiting, Way};
use crate::map::key::RecordKey;
use crate::map::tree::HashTree;

/// Time from one look at the peers to the next.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Time after which one random link of each sort is drawn anew.
const REDRAW_EVERY: Duration = Duration::from_secs(600);
/// Shortest time from one push to the next: what changes meanwhile goes together.
const PUSH_PAUSE: Duration = Duration::from_millis(10);
/// Most bytes of pushes that leave this node in a second, all peers together.
const PUSH_RATE: u64 = 8 << 20;
/// Most records that are read for one push.
const MAX_READ: usize = 1_024;
/// Most bytes of pushes that are merged as one change.
const MAX_MERGE: usize = 1 << 20;
/// Pulls under way at once, each from another peer.
const MAX_PULLS: usize = 2;
/// Time that a peer has to answer what needs no reading of records.
const SUMMARIES_WITHIN: Duration = Duration::from_secs(4);
/// Time that a peer has to answer with records.
const RECORDS_WITHIN: Duration = Duration::from_secs(10);
/// Pulled records are passed on like pushed ones if they are so few: after a cut heals the first
/// who pulls tells the others. More would be a flood; the tree carries that.
const MAX_PASSED_ON: usize = 64;
/// Pulls of peers answered at once.
const MAX_ANSWERS: usize = 8;
/// Pulls of one peer answered at once.
const MAX_ANSWERS_OF_PEER: usize = 2;

/// The core. Its shell carries out what it commands, each command once, and tells it the outcome.
#[derive(Debug)]
pub(crate) struct SyncCore {
    random: StdRng,
    links: Links,
    waiting: Waiting,
    /// The records that are being read for a push.
    reading: Option<BTreeMap<RecordKey, Way>>,
    inbox: Inbox,
    merging: Option<Merging>,
    choice: Choice,
    /// The pulls under way, each with its last question.
    pulls: Vec<(Ask, Pull)>,
    /// What pulls brought and waits to be merged.
    pulled: Vec<(Ask, Parcel)>,
    asked: u64,
    answering: BTreeMap<StoreId, usize>,
    next_look: BootTime,
    next_push: BootTime,
    next_redraw: BootTime,
}

/// What is being merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Merging {
    Pushes,
    Pulled(Ask),
}

type Commands = Vec<Command>;

impl SyncCore {
    /// The core of this node. The seed decides which peers are chosen.
    pub(crate) fn new(me: StoreId, region: Name, seed: u64, now: BootTime) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
            links: Links::new(me, region),
            waiting: Waiting::default(),
            reading: None,
            inbox: Inbox::default(),
            merging: None,
            choice: Choice::default(),
            pulls: Vec::new(),
            pulled: Vec::new(),
            asked: 0,
            answering: BTreeMap::new(),
            next_look: now,
            next_push: now,
            next_redraw: now + REDRAW_EVERY,
        }
    }

    /// When it must be stepped next, if nothing happens before.
    pub(crate) fn next_deadline(&self) -> BootTime {
        let push = if self.wants_to_read() { self.next_push } else { BootTime::NEVER };
        self.next_look.min(push).min(self.next_redraw)
    }

    /// Takes in what happened, with the hash tree of what is on disk.
    pub(crate) fn step(&mut self, now: BootTime, ours: &HashTree, event: Event) -> Commands {
        let mut commands = Vec::new();
        self.choice.on_own_root(ours.root());
        self.take_in(now, ours, event, &mut commands);
        self.go_on(now, &mut commands);
        commands
    }

    fn take_in(&mut self, now: BootTime, ours: &HashTree, event: Event, out: &mut Commands) {
        match event {
            Event::Changed(keys) => {
                let way = Way { hops: 0, from: None, crosses: true };
                keys.into_iter().for_each(|key| self.waiting.add(key, way));
            }
            Event::Members(members) => self.links.on_members(&members, &mut self.random),
            Event::Roots(roots) => {
                self.choice.on_roots(roots, now);
                self.start_pull(now, ours, out);
            }
            Event::Pushed { from, bytes } => {
                if let Some(from) = self.inbox.add(from, bytes) {
                    let why = "it sends more than can be merged; the rest will be pulled";
                    out.push(Command::Warn {
                        from,
                        what: "a push".to_owned(),
                        why: why.to_owned(),
                    });
                }
            }
            Event::Read { records, left } => self.on_read(now, records, left, out),
            Event::Merged(outcome) => self.on_merged(now, ours, outcome, out),
            Event::Answered(ask, answer) => self.on_answered(now, ours, ask, answer, out),
            Event::Asked { from, reply, bytes } => self.on_asked(from, reply, &bytes, out),
            Event::Replied { to } => {
                if let Some(count) = self.answering.get_mut(&to) {
                    *count -= 1;
                }
                self.answering.retain(|_, count| *count > 0);
            }
            Event::Tick => {}
        }
    }

    /// Begins what may begin now.
    fn go_on(&mut self, now: BootTime, out: &mut Commands) {
        if now >= self.next_look {
            // Nodes that start together do not look together for long.
            self.next_look = now + LOOK_EVERY.mul_f64(self.random.random_range(0.9..1.1));
            out.push(Command::Look);
        }
        if now >= self.next_redraw {
            self.next_redraw = now + REDRAW_EVERY;
            self.links.redraw(&mut self.random);
        }
        if self.wants_to_read() && now >= self.next_push {
            let batch = self.waiting.take(MAX_READ);
            out.push(Command::Read(batch.keys().cloned().collect()));
            self.reading = Some(batch);
        }
        if self.merging.is_none() {
            // What was pulled goes first: there is little of it, and a peer waits.
            if let Some((ask, parcel)) = self.pulled.pop() {
                self.merging = Some(Merging::Pulled(ask));
                out.push(Command::Merge(vec![parcel]));
            } else if !self.inbox.is_empty() {
                self.merging = Some(Merging::Pushes);
                let pushes = self.inbox.take(MAX_MERGE).into_iter();
                let parcel = |(from, push)| Parcel { from, content: Content::Push(push) };
                out.push(Command::Merge(pushes.map(parcel).collect()));
            }
        }
    }

    fn wants_to_read(&self) -> bool {
        self.reading.is_none() && !self.waiting.is_empty() && self.links.peers() > 0
    }

    fn on_read(
        &mut self,
        now: BootTime,
        records: Vec<Sent>,
        left: Vec<RecordKey>,
        out: &mut Commands,
    ) {
        let mut ways = self.reading.take().unwrap_or_default();
        for key in left {
            if let Some(way) = ways.remove(&key) {
                self.waiting.add(key, way);
            }
        }
        let way_of =
            |(key, _): &Sent| RecordKey::from_bytes(key).and_then(|key| ways.get(&key)).copied();
        let found: Vec<Way> = records.iter().filter_map(way_of).collect();
        let crossing: Vec<Sent> = records
            .iter()
            .filter(|sent| way_of(sent).is_some_and(|way| way.crosses))
            .cloned()
            .collect();
        let mut cost = 0;
        let near = self.links.near(bringer(&found));
        cost += send(near, &found, records, out);
        let found: Vec<Way> = found.into_iter().filter(|way| way.crosses).collect();
        let far = self.links.far(bringer(&found));
        cost += send(far, &found, crossing, out);
        self.next_push = now + PUSH_PAUSE.max(pause_for(cost));
    }

    fn on_merged(&mut self, now: BootTime, ours: &HashTree, outcome: Outcome, out: &mut Commands) {
        let Outcome { changed, refused, hostile } = outcome;
        let warn = |(from, what, why)| Command::Warn { from, what, why };
        out.extend(refused.into_iter().map(warn));
        let merging = self.merging.take();
        let count = changed.len();
        if merging == Some(Merging::Pushes) || count <= MAX_PASSED_ON {
            for (key, from, hops) in changed {
                let hops = hops.saturating_add(1);
                let crosses = self.links.is_abroad(from);
                self.waiting.add(key, Way { hops, from: Some(from), crosses });
            }
        }
        if let Some(Merging::Pulled(ask)) = merging
            && let Some(at) = self.pulls.iter().position(|(of, _)| *of == ask)
        {
            let (_, mut pull) = self.pulls.swap_remove(at);
            pull.changed += count;
            if hostile {
                self.choice.failed(pull.peer, pull.difference, now);
            } else {
                self.ask_next(now, ours, pull, out);
            }
        }
    }

    /// Begins a pull, if there is someone worth it and room for one.
    fn start_pull(&mut self, now: BootTime, ours: &HashTree, out: &mut Commands) {
        if self.pulls.len() >= MAX_PULLS {
            return;
        }
        let busy = |peer: &StoreId| self.pulls.iter().any(|(_, pull)| pull.peer == *peer);
        let source = self.choice.source(ours.root(), busy, now, &mut self.random);
        if let Some((peer, difference)) = source {
            self.ask_next(now, ours, Pull::new(peer, difference, now), out);
        }
    }

    /// Asks a pull's next question, or ends it.
    fn ask_next(&mut self, now: BootTime, ours: &HashTree, mut pull: Pull, out: &mut Commands) {
        let request = pull.next(now);
        let encoded = request.as_ref().and_then(|request| message::encode(request).ok());
        if let (Some(request), Some(bytes)) = (request, encoded) {
            let within = match request {
                Request::Summaries(_) => SUMMARIES_WITHIN,
                Request::Records(_) | Request::Page(_) => RECORDS_WITHIN,
            };
            self.asked += 1;
            let (ask, peer) = (Ask(self.asked), pull.peer);
            out.push(Command::Ask { ask, peer, bytes, within });
            self.pulls.push((ask, pull));
        } else if pull.changed == 0 {
            self.choice.nothing_from(pull.peer, pull.difference, now);
        } else {
            self.choice.something_from(pull.peer);
            self.start_pull(now, ours, out);
        }
    }

    fn on_answered(
        &mut self,
        now: BootTime,
        ours: &HashTree,
        ask: Ask,
        answer: Result<Bytes, String>,
        out: &mut Commands,
    ) {
        // What answered it already may still be on its way to the disk.
        let is_answered = self.merging == Some(Merging::Pulled(ask))
            || self.pulled.iter().any(|(of, _)| *of == ask);
        let at = self.pulls.iter().position(|(of, _)| *of == ask);
        let Some(at) = at.filter(|_| !is_answered) else { return };
        let (_, mut pull) = self.pulls.swap_remove(at);
        let Ok(bytes) = answer else {
            self.choice.failed(pull.peer, pull.difference, now);
            return;
        };
        let response = message::decode::<Response>(&bytes);
        match response.and_then(|response| pull.on_answer(ours, response)) {
            Ok(records) if records.is_empty() => self.ask_next(now, ours, pull, out),
            Ok(records) => {
                let parcel = Parcel { from: pull.peer, content: Content::Pulled(records) };
                self.pulled.push((ask, parcel));
                self.pulls.push((ask, pull));
            }
            Err(why) => {
                let (from, what) = (pull.peer, "a pulled answer".to_owned());
                out.push(Command::Warn { from, what, why: why.to_string() });
                self.choice.failed(pull.peer, pull.difference, now);
            }
        }
    }

    fn on_asked(&mut self, from: StoreId, reply: Reply, bytes: &[u8], out: &mut Commands) {
        let request = match message::decode_request(bytes) {
            Ok(request) => request,
            Err(why) => {
                let why = why.to_string();
                let what = "a pull".to_owned();
                out.push(Command::Warn { from, what, why: why.clone() });
                out.push(Command::Refuse { reply, why });
                return;
            }
        };
        let of_peer = self.answering.get(&from).copied().unwrap_or(0);
        if of_peer >= MAX_ANSWERS_OF_PEER || self.answering.values().sum::<usize>() >= MAX_ANSWERS {
            let why = "this node answers enough pulls at once; ask another".to_owned();
            out.push(Command::Refuse { reply, why });
            return;
        }
        *self.answering.entry(from).or_default() += 1;
        out.push(Command::Answer { to: from, reply, request });
    }
}

/// The one peer that brought all of these, if one did.
fn bringer(ways: &[Way]) -> Option<StoreId> {
    let first = ways.first()?.from;
    first.filter(|_| ways.iter().all(|way| way.from == first))
}

/// Sends records to peers; gives the bytes that it takes.
fn send(to: Vec<StoreId>, ways: &[Way], records: Vec<Sent>, out: &mut Commands) -> usize {
    // A record is new to whoever passes it on, so it ends even if this were always the fewest.
    let Some(hops) = ways.iter().map(|way| way.hops).min() else { return 0 };
    let Ok(bytes) = message::encode(&Push { hops, records }) else { return 0 };
    if to.is_empty() {
        return 0;
    }
    let cost = bytes.len() * to.len();
    out.push(Command::Push { to, bytes });
    cost
}

/// How long this many bytes take at the rate of pushes.
fn pause_for(bytes: usize) -> Duration {
    let micros = u64::try_from(bytes).unwrap_or(u64::MAX).saturating_mul(1_000_000) / PUSH_RATE;
    Duration::from_micros(micros)
}

#[cfg(test)]
mod tests;

//! Membership's decisions in one place: readings and answers go in, commands come out. It reads no
//! clock, no chitchat and no wire; the shell does what it says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use flocker_base::{BootTime, Name, StoreId};

use super::bridge::{Bridge, RegionSight, Step};
use super::roll::{Changes, Reading, Roll, Sighting};
use super::roster::follow::{Ask, Offer, Rosters};
use super::roster::message::{
    self, Contact, Greeting, Notice, Reach, Request, Want, decode_digest, decode_notices,
    encode_digest, encode_notices,
};
use super::roster::{Part, RegionId};
use super::scout::{Scout, Way};
use super::{KEY_NOTICES, KEY_ROSTER, Liveness, LocalNode, Suspicions, View};
use crate::join::KnownNode;

/// How many requests of one peer are answered at once, and how often one more.
const BURST: u32 = 8;
const REFILL: Duration = Duration::from_millis(250);
/// The most peers that are counted.
const MAX_PEERS: usize = 4096;

/// Something for the shell to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Enter the pool between regions.
    Enter,
    /// Say so there, and leave it.
    Leave,
    /// Gossip with this node in the region's pool.
    Gossip(StoreId),
    /// Gossip with it in the pool between regions, if this node is there.
    GossipBetween(StoreId),
    /// Greet it. For a probe, the region that it is of.
    Greet(StoreId, Option<RegionId>),
    /// Pull these rosters from it.
    Pull(StoreId, Vec<Want>),
    /// Say this in the region's pool.
    Say(&'static str, String),
    /// Say this in the pool between regions.
    SayBetween(&'static str, String),
}

/// What a reading led to.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) changes: Changes,
    pub(super) commands: Vec<Command>,
}

/// What the pools hold at one moment.
#[derive(Debug)]
pub(super) struct Sights<'a> {
    pub(super) region: &'a [Sighting<'a>],
    /// Without: this node is not in the pool between regions.
    pub(super) between: Option<&'a [Sighting<'a>]>,
    pub(super) suspected: &'a Suspicions,
    /// The stores that are known of.
    pub(super) stores: &'a [StoreId],
}

/// The core.
#[derive(Debug)]
pub(super) struct Core {
    contact: Contact,
    view: Arc<View>,
    /// The live members of this node's region.
    mates: BTreeSet<StoreId>,
    pub(super) roll: Roll,
    bridge: Bridge,
    rosters: Rosters,
    scout: Scout,
    limits: BTreeMap<StoreId, (BootTime, u32)>,
    said: (String, String),
    /// The revision of the rosters that was last handed on.
    relayed: u64,
    first: bool,
}

impl Core {
    pub(super) fn new(
        now: BootTime,
        me: StoreId,
        local: &LocalNode,
        generation: u64,
        grace: Duration,
        view: View,
    ) -> Self {
        let region = local.facts.region.clone();
        let (control, data) = (local.facts.control, local.facts.data);
        Self {
            contact: Contact { store: me, region: region.clone(), control, data },
            view: Arc::new(view.clone()),
            mates: BTreeSet::from([me]),
            roll: Roll::new(me, generation, view),
            bridge: Bridge::new(me, now),
            rosters: Rosters::new(me, region.clone(), generation, grace),
            scout: Scout::new(me, region),
            limits: BTreeMap::new(),
            said: (String::new(), String::new()),
            relayed: 0,
            first: true,
        }
    }

    fn region(&self) -> &Name {
        &self.contact.region
    }

    /// Whether a run lives, as far as heartbeats and watches tell. One is over once a later start of
    /// its store is known.
    pub(super) fn lives(
        &self,
        run: &Sighting<'_>,
        vouched: &Suspicions,
        suspected: &Suspicions,
    ) -> bool {
        let id = (run.store, run.incarnation());
        let known = self.view.nodes.get(&run.store).map(|member| member.incarnation);
        let over = run.store != self.contact.store && known.is_some_and(|known| known > id.1);
        (run.live || vouched.contains(&id)) && !suspected.contains(&id) && !over
    }

    /// Takes a reading of all that the pools hold.
    pub(super) fn read(&mut self, now: BootTime, sights: &Sights<'_>) -> Outcome {
        let between = sights.between.unwrap_or_default();
        let offers = self.offers(sights.region, between, sights.suspected);
        let asks = self.rosters.step(now, sights.between.is_some(), &offers);
        let mut commands: Vec<_> = asks.into_iter().map(Command::from).collect();
        let reading = Reading {
            own: &self.contact.region,
            region: sights.region,
            between,
            rosters: self.rosters.others().collect(),
            revision: self.rosters.revision(),
            suspected: sights.suspected,
        };
        let changes = self.roll.update(now, &reading);
        let changed = changes.view.is_some();
        if let Some(view) = &changes.view {
            self.view = Arc::clone(view);
            let own = &self.contact.region;
            let nodes = self.view.nodes.iter();
            let mates =
                nodes.filter(|(_, m)| m.liveness == Liveness::Live && m.facts.region == *own);
            self.mates = mates.map(|(store, _)| *store).collect();
        }
        if std::mem::replace(&mut self.first, false) {
            commands.extend(self.reach(sights.stores));
        }
        self.step_bridge(now, sights, &mut commands);
        let revision = self.rosters.revision();
        if sights.between.is_some() && (changed || revision != self.relayed) {
            self.relayed = revision;
            self.rosters.set_seen(self.roll.silent());
        }
        if self.bridge.is_inside() && (changed || self.said.1.is_empty()) {
            let lines = self.roll.own_lines(&self.contact.region, sights.region);
            self.rosters.set_own(lines);
        }
        self.speak(&mut commands);
        Outcome { changes, commands }
    }

    /// Tries to reach those that are known of and not seen alive.
    pub(super) fn reach(&mut self, stores: &[StoreId]) -> Vec<Command> {
        // Without a live mate nobody else carries to the other regions.
        let carries = self.bridge.is_inside() || self.mates.len() <= 1;
        let ways = self.scout.next(stores, &self.view, carries);
        ways.into_iter().map(Command::from).collect()
    }

    /// Takes the answer to a greeting: where to go on, and whose addresses are told.
    pub(super) fn greeted(
        &mut self,
        now: BootTime,
        from: StoreId,
        probe: Option<RegionId>,
        answer: &[u8],
    ) -> (Vec<Command>, Vec<KnownNode>) {
        let Some(greeting) = message::decode_greeting(answer) else {
            return (Vec::new(), Vec::new());
        };
        if probe == Some(RegionId::of(&greeting.region)) {
            self.rosters.answered(now, RegionId::of(&greeting.region));
        }
        let ways = self.scout.greeted(now, from, &greeting, self.bridge.is_inside());
        let told = greeting.mates.iter().chain(&greeting.bridges);
        let unknown = told.filter(|c| !self.view.nodes.contains_key(&c.store));
        let known = unknown.map(|c| KnownNode {
            store: c.store,
            control: vec![c.control],
            data: vec![c.data],
        });
        (ways.into_iter().map(Command::from).collect(), known.collect())
    }

    /// Takes the answer to a pull, if there was one.
    pub(super) fn pulled(&mut self, now: BootTime, server: StoreId, answer: Option<&[u8]>) {
        let parts = answer.and_then(message::decode_parts);
        self.rosters.pulled(now, server, parts.as_deref());
    }

    /// Answers a peer's request.
    pub(super) fn answer(
        &mut self,
        now: BootTime,
        from: StoreId,
        request: &[u8],
    ) -> Result<Vec<u8>, String> {
        if !self.admits(now, from) {
            return Err("too many requests: ask again later".to_owned());
        }
        let unread = || "the request can't be read".to_owned();
        let encoded = match message::decode_request(request).ok_or_else(unread)? {
            Request::Greet(contact) if contact.store == from => {
                message::encode::<Greeting>(&self.scout.answer(now, &contact, &self.view))
            }
            Request::Greet(_) => return Err("it greets in another's name".to_owned()),
            Request::Pull(wants) => message::encode::<Vec<Part>>(&self.rosters.parts(&wants)),
        };
        encoded.ok_or_else(|| "the answer can't be written".to_owned())
    }

    /// Whether a mate is live, or another region was heard of late: a node alone carries nothing.
    /// What is told of other regions by mates that are gone does not count.
    pub(super) fn has_company(&self, now: BootTime) -> bool {
        self.mates.len() > 1 || self.scout.hears_abroad(now)
    }

    /// What this node greets with.
    pub(super) fn greeting(&self) -> Option<Vec<u8>> {
        message::encode(&Request::Greet(self.contact.clone()))
    }

    /// The pool between regions could not be entered, or ended by itself.
    pub(super) fn fell_out(&mut self) {
        self.bridge.fell_out();
        self.said.1.clear();
    }

    /// Whom to gossip with first on entering the pool between regions: who must be in it.
    pub(super) fn bridges_to_meet(&self) -> Vec<StoreId> {
        let mut by_region: BTreeMap<&Name, Vec<StoreId>> = BTreeMap::new();
        for (store, member) in &self.view.nodes {
            if member.liveness == Liveness::Live && *store != self.contact.store {
                by_region.entry(&member.facts.region).or_default().push(*store);
            }
        }
        by_region.into_values().flat_map(super::bridge::chosen).collect()
    }

    fn step_bridge(&mut self, now: BootTime, sights: &Sights<'_>, commands: &mut Vec<Command>) {
        let live = &self.mates;
        let between = sights.between.unwrap_or_default();
        let inside = between.iter().filter(|run| run.live && !run.has_stepped_down());
        let sight = RegionSight {
            inside: inside.map(|run| run.store).filter(|store| live.contains(store)).collect(),
            unsettled: self.bridge.is_settling(now)
                && self.scout.is_unsettled(sights.stores, &self.view),
            cut_off: !self.has_company(now),
            live,
        };
        match self.bridge.step(now, &sight) {
            Some(Step::Enter) => commands.push(Command::Enter),
            Some(Step::Leave) => {
                self.said.1.clear();
                commands.push(Command::Leave);
            }
            None => {}
        }
    }

    /// Says what has changed of the rosters, where it is for.
    fn speak(&mut self, commands: &mut Vec<Command>) {
        let inside = self.bridge.is_inside();
        let notices = if inside { encode_notices(&self.rosters.notices()) } else { String::new() };
        if notices != self.said.0 {
            self.said.0.clone_from(&notices);
            commands.push(Command::Say(KEY_NOTICES, notices));
        }
        let digest = encode_digest(self.rosters.own_digest());
        if inside && digest != self.said.1 {
            self.said.1.clone_from(&digest);
            commands.push(Command::SayBetween(KEY_ROSTER, digest));
        }
    }

    /// The rosters that live bridges have.
    fn offers(
        &self,
        region: &[Sighting<'_>],
        between: &[Sighting<'_>],
        suspected: &Suspicions,
    ) -> Vec<Offer> {
        let me = self.contact.store;
        let counts = |run: &&Sighting<'_>| {
            run.live && run.store != me && !suspected.contains(&(run.store, run.incarnation()))
        };
        let mut offers = Vec::new();
        for run in between.iter().filter(counts).filter(|run| !run.is_leaving()) {
            let member = self.view.nodes.get(&run.store);
            let of = member.map(|m| &m.facts.region).filter(|of| *of != self.region());
            let digest = run.value(KEY_ROSTER).and_then(decode_digest);
            if let (Some(of), Some(digest)) = (of, digest) {
                let notice = Notice { region: RegionId::of(of), digest, reach: Reach::Heard };
                offers.push(Offer { server: run.store, notice, direct: true });
            }
        }
        for run in region.iter().filter(counts).filter(|run| !run.is_leaving()) {
            let notices = run.value(KEY_NOTICES).map(decode_notices).unwrap_or_default();
            let offer = |notice| Offer { server: run.store, notice, direct: false };
            offers.extend(notices.into_iter().map(offer));
        }
        offers
    }

    /// Whether this peer may have an answer now.
    fn admits(&mut self, now: BootTime, from: StoreId) -> bool {
        if self.limits.len() >= MAX_PEERS && !self.limits.contains_key(&from) {
            let whole = REFILL * BURST;
            self.limits.retain(|_, (at, _)| now.saturating_since(*at) < whole);
            if self.limits.len() >= MAX_PEERS {
                return false;
            }
        }
        let (at, left) = self.limits.entry(from).or_insert((now, BURST));
        let periods = now.saturating_since(*at).as_millis() / REFILL.as_millis();
        let refill = u32::try_from(periods).unwrap_or(BURST).min(BURST);
        if refill > 0 {
            (*at, *left) = (now, (*left + refill).min(BURST));
        }
        let admitted = *left > 0;
        *left = left.saturating_sub(1);
        admitted
    }
}

impl From<Ask> for Command {
    fn from(ask: Ask) -> Self {
        match ask {
            Ask::Pull(server, wants) => Self::Pull(server, wants),
            Ask::Probe(store, region) => Self::Greet(store, Some(region)),
        }
    }
}

impl From<Way> for Command {
    fn from(way: Way) -> Self {
        match way {
            Way::Greet(store) => Self::Greet(store, None),
            Way::Gossip(store) => Self::Gossip(store),
            Way::GossipBetween(store) => Self::GossipBetween(store),
        }
    }
}

//! Which rosters this node holds, from whom it pulls what it lacks, and which regions can be
//! reached. Offers and parts go in, pulls and probes come out; it sends nothing itself.
//!
//! A region can be reached as long as one of its bridges is heard. When the last one falls silent,
//! the bridges here ask other members of it before they call it lost: all its bridges may have died
//! at once while it is well.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use flocker_base::{BootTime, Name, StoreId};

use super::message::{Notice, Reach, Want};
use super::{Digest, Ledger, Line, Lines, MAX_REGIONS, Part, RegionId, Version};
use crate::membership::Liveness;
use crate::membership::bridge::nearest;

#[cfg(test)]
mod tests;

/// Time between two pulls of one region's roster.
const PULL_INTERVAL: Duration = Duration::from_millis(300);
/// How long a server that failed is passed over.
const REST: Duration = Duration::from_secs(2);
/// How long a region counts as reached after it was last heard: by a bridge that heard it itself,
/// and by others.
const HOLD: Duration = Duration::from_secs(3);
const HEARSAY_HOLD: Duration = Duration::from_secs(10);
/// Time between two probes of a silent region, and how many of its members are asked each time.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
const PROBES: usize = 2;
/// The most bytes of one answer to a pull; the rest is pulled by the next.
const MAX_ANSWER: usize = 768 << 10;

/// A roster that a bridge has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::membership) struct Offer {
    pub(in crate::membership) server: StoreId,
    pub(in crate::membership) notice: Notice,
    /// Whether the server is of that region.
    pub(in crate::membership) direct: bool,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::membership) enum Ask {
    /// Pull these rosters from this server.
    Pull(StoreId, Vec<Want>),
    /// Ask this member of this region whether it is there.
    Probe(StoreId, RegionId),
}

/// The rosters that this node holds.
#[derive(Debug)]
pub(in crate::membership) struct Rosters {
    me: StoreId,
    region: Name,
    edition: u64,
    forget_after: Duration,
    inside: bool,
    own: Ledger,
    others: BTreeMap<RegionId, Other>,
    pulling: BTreeMap<StoreId, Vec<RegionId>>,
    revision: u64,
}

/// Another region.
#[derive(Debug)]
struct Other {
    name: Option<Name>,
    /// As it was pulled.
    ledger: Ledger,
    /// As it is handed on: with what this node, as a bridge, sees itself.
    relay: Ledger,
    from: Option<(StoreId, Version)>,
    heard: BootTime,
    /// When it last could be reached.
    kept: BootTime,
    /// Whether this node, since it is a bridge, has heard it itself.
    direct: bool,
    reach: Reach,
    next_pull: BootTime,
    next_probe: BootTime,
    probed: usize,
    resting: BTreeMap<StoreId, BootTime>,
}

impl Other {
    fn new(now: BootTime) -> Self {
        Self {
            name: None,
            ledger: Ledger::default(),
            relay: Ledger::default(),
            from: None,
            heard: now,
            kept: now,
            direct: false,
            reach: Reach::Hearsay,
            next_pull: now,
            next_probe: now,
            probed: 0,
            resting: BTreeMap::new(),
        }
    }

    fn judge(&mut self, now: BootTime, inside: bool, offers: &[Offer]) {
        let told = |reach: Reach| offers.iter().any(|o| !o.direct && o.notice.reach == reach);
        if inside && offers.iter().any(|offer| offer.direct) {
            (self.heard, self.direct) = (now, true);
        }
        if !inside {
            self.direct = false;
            if told(Reach::Heard) || told(Reach::Hearsay) {
                self.heard = now;
            }
        }
        let silent = now.saturating_since(self.heard);
        self.reach = match (inside, self.direct) {
            (true, true) if silent <= HOLD => Reach::Heard,
            // Only the word of a bridge that hears the region itself counts: two must not go on
            // for ever each on the other's word.
            (true, _) if told(Reach::Heard) => Reach::Hearsay,
            (true, false) if silent <= HEARSAY_HOLD => Reach::Hearsay,
            (true, _) => Reach::Lost,
            (false, _) if silent.is_zero() => Reach::Hearsay,
            (false, _) if silent > HEARSAY_HOLD || told(Reach::Lost) => Reach::Lost,
            (false, _) => Reach::Hearsay,
        };
        if self.reach != Reach::Lost {
            self.kept = now;
        }
    }

    /// Whom to pull the roster from, if it is another than the one held.
    fn server(&mut self, me: StoreId, now: BootTime, offers: &[Offer]) -> Option<StoreId> {
        self.resting.retain(|_, until| *until > now);
        let resting = &self.resting;
        let awake = || offers.iter().filter(|o| !resting.contains_key(&o.server));
        let direct = awake().any(|offer| offer.direct);
        let servers = awake().filter(|offer| offer.direct == direct).map(|offer| offer.server);
        let server = nearest(me, servers)?;
        let offer = awake().find(|o| o.server == server && o.direct == direct)?;
        let lacks = offer.notice.digest != self.ledger.digest();
        (lacks && now >= self.next_pull).then_some(server)
    }

    /// Members to ask whether they are there, those that seem alive first.
    fn probes(&mut self, now: BootTime) -> Vec<StoreId> {
        if now < self.next_probe || self.ledger.lines().is_empty() {
            return Vec::new();
        }
        self.next_probe = now + PROBE_INTERVAL;
        let lines = self.ledger.lines();
        let live = lines.iter().filter(|(_, line)| line.liveness() == Liveness::Live);
        let mut stores: Vec<_> = live.map(|(store, _)| *store).collect();
        if stores.is_empty() {
            stores = lines.keys().copied().collect();
        }
        let turns = (0..PROBES.min(stores.len())).map(|n| stores[(self.probed + n) % stores.len()]);
        let turns = turns.collect();
        self.probed = (self.probed + PROBES) % stores.len();
        turns
    }
}

impl Rosters {
    /// `edition` is the generation of this run; a region lost for `forget_after` is forgotten.
    pub(in crate::membership) fn new(
        me: StoreId,
        region: Name,
        edition: u64,
        forget_after: Duration,
    ) -> Self {
        Self {
            me,
            region,
            edition,
            forget_after,
            inside: false,
            own: Ledger::default(),
            others: BTreeMap::new(),
            pulling: BTreeMap::new(),
            revision: 0,
        }
    }

    /// Rises whenever [`Self::others`] changes.
    pub(in crate::membership) const fn revision(&self) -> u64 {
        self.revision
    }

    /// Takes the offers of the bridges that are heard: of the other regions' own if this node is
    /// inside the pool between regions, and of its region's.
    pub(in crate::membership) fn step(
        &mut self,
        now: BootTime,
        inside: bool,
        offers: &[Offer],
    ) -> Vec<Ask> {
        self.inside = inside;
        let mut of_region: BTreeMap<RegionId, Vec<Offer>> = BTreeMap::new();
        for offer in offers {
            of_region.entry(offer.notice.region).or_default().push(*offer);
        }
        of_region.remove(&RegionId::of(&self.region));
        for region in of_region.keys() {
            if !self.others.contains_key(region) && self.others.len() + 1 < MAX_REGIONS {
                self.others.insert(*region, Other::new(now));
            }
        }
        let mut wants: BTreeMap<StoreId, Vec<Want>> = BTreeMap::new();
        let mut asks = Vec::new();
        for (region, other) in &mut self.others {
            let offers = of_region.get(region).map_or(&[][..], Vec::as_slice);
            let before = other.reach == Reach::Lost;
            other.judge(now, inside, offers);
            self.revision += u64::from(before != (other.reach == Reach::Lost));
            if let Some(server) = other.server(self.me, now, offers)
                && !self.pulling.contains_key(&server)
                && !self.pulling.values().any(|regions| regions.contains(region))
            {
                let since = other.from.filter(|(from, _)| *from == server).map(|(_, v)| v);
                wants.entry(server).or_default().push(Want { region: *region, since });
            }
            if inside && !offers.iter().any(|offer| offer.direct) {
                asks.extend(other.probes(now).into_iter().map(|s| Ask::Probe(s, *region)));
            }
        }
        for (server, wants) in wants {
            self.pulling.insert(server, wants.iter().map(|want| want.region).collect());
            asks.push(Ask::Pull(server, wants));
        }
        let (forget, before) = (self.forget_after, self.others.len());
        self.others.retain(|_, other| now.saturating_since(other.kept) < forget);
        self.revision += u64::from(before != self.others.len());
        asks
    }

    /// Takes the answer to a pull, if there was one.
    pub(in crate::membership) fn pulled(
        &mut self,
        now: BootTime,
        server: StoreId,
        parts: Option<&[Part]>,
    ) {
        let mut lacking = self.pulling.remove(&server).unwrap_or_default();
        let parts = parts.unwrap_or_default();
        for part in parts {
            let region = RegionId::of(&part.region);
            let Some(other) = self.others.get_mut(&region) else { continue };
            if !lacking.contains(&region) {
                continue;
            }
            lacking.retain(|wanted| *wanted != region);
            other.next_pull = now + PULL_INTERVAL;
            other.name = Some(part.region.clone());
            if other.ledger.apply(part) {
                self.revision += 1;
                other.from = Some((server, part.version));
            } else {
                // The next pull asks for the whole; a whole one that is wrong is the server's.
                other.from = None;
                if part.since.is_none() {
                    other.resting.insert(server, now + REST);
                }
            }
        }
        for region in lacking {
            // What did not fit into the answer comes with the next; a server that gave nothing rests.
            if let Some(other) = self.others.get_mut(&region) {
                other.next_pull = now + PULL_INTERVAL;
                if parts.is_empty() {
                    other.resting.insert(server, now + REST);
                }
            }
        }
    }

    /// A member of this region has answered.
    pub(in crate::membership) fn answered(&mut self, now: BootTime, region: RegionId) {
        if let Some(other) = self.others.get_mut(&region) {
            (other.heard, other.kept) = (now, now);
            self.revision += u64::from(other.reach == Reach::Lost);
            if self.inside {
                (other.direct, other.reach) = (true, Reach::Heard);
            }
        }
    }

    /// Takes what this bridge sees itself of other regions' bridges that are not alive, for those
    /// that it hands rosters to: whoever is the last of its region tells no roster of its end.
    pub(in crate::membership) fn set_seen(&mut self, seen: &BTreeMap<StoreId, Liveness>) {
        for other in self.others.values_mut() {
            let mut lines = other.ledger.lines().clone();
            for (store, liveness) in seen {
                if let Some(line) = lines.get_mut(store) {
                    *line = Arc::new(Line::new(line.generation, *liveness, line.facts.clone()));
                }
            }
            other.relay.replace(lines);
        }
    }

    /// Takes the lines of this node's own region.
    pub(in crate::membership) fn set_own(&mut self, lines: Lines) {
        self.own.replace(lines);
    }

    pub(in crate::membership) fn own_digest(&self) -> Digest {
        self.own.digest()
    }

    /// What this node as a bridge tells its region of the others.
    pub(in crate::membership) fn notices(&self) -> Vec<Notice> {
        let notice = |(region, other): (&RegionId, &Other)| Notice {
            region: *region,
            digest: other.relay.digest(),
            reach: other.reach,
        };
        self.others.iter().map(notice).collect()
    }

    /// The other regions' rosters: name, whether it can be reached, lines.
    pub(in crate::membership) fn others(&self) -> impl Iterator<Item = (&Name, bool, &Lines)> {
        self.others.values().filter_map(|other| {
            Some((other.name.as_ref()?, other.reach != Reach::Lost, other.ledger.lines()))
        })
    }

    /// Answers a pull.
    pub(in crate::membership) fn parts(&self, wants: &[Want]) -> Vec<Part> {
        let own = RegionId::of(&self.region);
        let mut left = MAX_ANSWER;
        let mut parts = Vec::new();
        for want in wants {
            let (name, ledger) = match self.others.get(&want.region) {
                _ if want.region == own => (&self.region, &self.own),
                Some(Other { name: Some(name), relay, .. }) => (name, relay),
                _ => continue,
            };
            let part = ledger.part(name, self.edition, want.since);
            match left.checked_sub(part.weight()) {
                Some(rest) => left = rest,
                None if parts.is_empty() => left = 0,
                None => continue,
            }
            parts.push(part);
        }
        parts
    }
}

//! Finds the pools: whom to greet that is known of and not seen alive, what an answer tells of, and
//! what to answer. The address book does not say who is of which region; a greeting does. It sends
//! nothing itself.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use flocker_base::{BootTime, Name, StoreId};

use super::bridge::{chosen, nearest};
use super::roster::MAX_REGIONS;
use super::roster::message::{Contact, Greeting, MAX_BRIDGES, MAX_MATES};
use super::{Liveness, View};
use crate::addresses::MAX_STORES;

/// How many nodes are greeted at once by a node that has just started, and by one that sees nobody.
const FIRST_GREETINGS: usize = 8;
const LONELY_GREETINGS: usize = 3;

/// How many of the nodes of one region that greeted this node last are told to the next one, and
/// for how long.
const RECENT: usize = 8;
const RECENT_FOR: Duration = Duration::from_secs(60);

/// For how long one that was heard counts as there, unless its pool says more of it.
const HEARD_FOR: Duration = Duration::from_secs(5);

/// A way to someone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Greet it: its region is unknown, or it is of another and this node is a bridge.
    Greet(StoreId),
    /// Gossip with it in the region's pool.
    Gossip(StoreId),
    /// Gossip with it in the pool between regions.
    GossipBetween(StoreId),
}

/// The scout.
#[derive(Debug)]
pub(super) struct Scout {
    me: StoreId,
    region: Name,
    regions: BTreeMap<StoreId, Name>,
    last: Option<StoreId>,
    began: bool,
    /// When a node of another region, or one that knows such, was last heard.
    heard_abroad: Option<BootTime>,
    recent: BTreeMap<Name, VecDeque<(BootTime, Contact)>>,
}

impl Scout {
    pub(super) fn new(me: StoreId, region: Name) -> Self {
        Self {
            me,
            region,
            regions: BTreeMap::new(),
            last: Some(me),
            began: false,
            heard_abroad: None,
            recent: BTreeMap::new(),
        }
    }

    /// Whom to try next of these stores, which are known of. `carries`: who of other regions lives is
    /// this node's affair.
    pub(super) fn next(&mut self, stores: &[StoreId], view: &View, carries: bool) -> Vec<Way> {
        let is_live =
            |store: &StoreId| view.nodes.get(store).is_some_and(|m| m.liveness == Liveness::Live);
        let lonely = view.nodes.iter().all(|(s, m)| *s == self.me || m.liveness != Liveness::Live);
        let missing: Vec<_> = stores
            .iter()
            .copied()
            .filter(|store| *store != self.me && !is_live(store))
            .filter_map(|store| Some((store, self.way(store, view, carries)?)))
            .collect();
        let most = match (std::mem::replace(&mut self.began, true), lonely) {
            (false, _) => FIRST_GREETINGS,
            (true, true) => LONELY_GREETINGS,
            (true, false) => 1,
        };
        // In turn, each node from its own place on, so that not all try the same ones.
        let after = missing.partition_point(|(store, _)| self.last.is_some_and(|l| *store <= l));
        let (front, back) = missing.split_at(after);
        let ways: Vec<_> = back.iter().chain(front).take(most).copied().collect();
        self.last = ways.last().map(|(store, _)| *store).or(self.last);
        ways.into_iter().map(|(_, way)| way).collect()
    }

    fn way(&self, store: StoreId, view: &View, carries: bool) -> Option<Way> {
        match self.region_of(store, view) {
            Some(region) if *region == self.region => Some(Way::Gossip(store)),
            // Who of another region lives is the bridges' affair.
            Some(_) if !carries => None,
            Some(_) | None => Some(Way::Greet(store)),
        }
    }

    fn region_of<'a>(&'a self, store: StoreId, view: &'a View) -> Option<&'a Name> {
        let seen = view.nodes.get(&store).map(|member| &member.facts.region);
        seen.or_else(|| self.regions.get(&store))
    }

    /// Whether one of these stores, or one that it was told of, may be a member of this node's
    /// region that it does not see yet.
    pub(super) fn is_unsettled(&self, stores: &[StoreId], view: &View) -> bool {
        stores.iter().chain(self.regions.keys()).any(|store| {
            let live = view.nodes.get(store).is_some_and(|m| m.liveness == Liveness::Live);
            let mine = self.region_of(*store, view).is_none_or(|region| *region == self.region);
            *store != self.me && !live && mine
        })
    }

    /// Takes the answer of this node to a greeting: where to go on, and what addresses are new.
    pub(super) fn greeted(
        &mut self,
        now: BootTime,
        from: StoreId,
        greeting: &Greeting,
        inside: bool,
    ) -> Vec<Way> {
        self.note(from, &greeting.region);
        let mut regions =
            std::iter::once(&greeting.region).chain(greeting.bridges.iter().map(|b| &b.region));
        if regions.any(|region| *region != self.region) {
            self.heard_abroad = Some(now);
        }
        let mut ways = Vec::new();
        if greeting.region == self.region {
            ways.push(Way::Gossip(from));
        }
        for mate in &greeting.mates {
            if mate.region == self.region && mate.store != self.me {
                self.note(mate.store, &mate.region);
                ways.push(Way::Gossip(mate.store));
            }
        }
        for bridge in &greeting.bridges {
            self.note(bridge.store, &bridge.region);
        }
        if inside {
            ways.extend(self.between(greeting).into_iter().map(Way::GossipBetween));
        }
        ways
    }

    /// One bridge of each region, and all of the region of whoever answered.
    fn between(&self, greeting: &Greeting) -> BTreeSet<StoreId> {
        let mut by_region: BTreeMap<&Name, Vec<StoreId>> = BTreeMap::new();
        for bridge in greeting.bridges.iter().filter(|b| b.region != self.region) {
            by_region.entry(&bridge.region).or_default().push(bridge.store);
        }
        let one = |(region, stores): (&Name, Vec<StoreId>)| {
            if *region == greeting.region {
                stores
            } else {
                nearest(self.me, stores).into_iter().collect()
            }
        };
        by_region.into_iter().flat_map(one).collect()
    }

    fn note(&mut self, store: StoreId, region: &Name) {
        if self.regions.len() < MAX_STORES || self.regions.contains_key(&store) {
            self.regions.insert(store, region.clone());
        }
    }

    /// Whether a node of another region, or one that knows such, was heard of late.
    pub(super) fn hears_abroad(&self, now: BootTime) -> bool {
        self.heard_abroad.is_some_and(|last| now.saturating_since(last) < HEARD_FOR)
    }

    /// Answers a greeting.
    pub(super) fn answer(&mut self, now: BootTime, asker: &Contact, view: &View) -> Greeting {
        let asker_region = &asker.region;
        if *asker_region != self.region {
            self.heard_abroad = Some(now);
        }
        let live = view.nodes.iter().filter(|(_, m)| m.liveness == Liveness::Live);
        let mut by_region: BTreeMap<&Name, Vec<StoreId>> = BTreeMap::new();
        for (store, member) in live {
            by_region.entry(&member.facts.region).or_default().push(*store);
        }
        let contact = |store: StoreId| {
            let facts = &view.nodes.get(&store)?.facts;
            let (control, data) = (facts.control, facts.data);
            Some(Contact { store, region: facts.region.clone(), control, data })
        };
        let bridges = by_region.values().flat_map(|stores| chosen(stores.iter().copied()));
        let bridges = bridges.filter_map(contact).take(MAX_BRIDGES).collect();
        let mut mates = self.recent(now, asker);
        let known = by_region.get(asker_region).map_or(&[][..], Vec::as_slice);
        let after = known.partition_point(|store| *store <= asker.store);
        let (front, back) = known.split_at(after);
        for store in back.iter().chain(front).filter(|store| **store != asker.store) {
            if mates.len() >= MAX_MATES {
                break;
            }
            if !mates.iter().any(|mate| mate.store == *store) {
                mates.extend(contact(*store));
            }
        }
        Greeting { region: self.region.clone(), mates, bridges }
    }

    /// Those of its region that greeted before it, and remembers it.
    fn recent(&mut self, now: BootTime, asker: &Contact) -> Vec<Contact> {
        self.recent.retain(|_, contacts| {
            contacts.retain(|(at, _)| now.saturating_since(*at) < RECENT_FOR);
            !contacts.is_empty()
        });
        if !self.recent.contains_key(&asker.region) && self.recent.len() >= MAX_REGIONS {
            return Vec::new();
        }
        let contacts = self.recent.entry(asker.region.clone()).or_default();
        contacts.retain(|(_, contact)| contact.store != asker.store);
        let mates = contacts.iter().map(|(_, contact)| contact.clone()).collect();
        contacts.push_back((now, asker.clone()));
        if contacts.len() > RECENT {
            contacts.pop_front();
        }
        mates
    }
}

#[cfg(test)]
mod tests {
    use flocker_base::Incarnation;

    use super::*;
    use crate::model::NodeFacts;

    const START: BootTime = BootTime::from_millis(1000);

    fn store(byte: u8) -> StoreId {
        StoreId::from_bytes([byte; 16])
    }

    fn name(text: &str) -> Name {
        Name::new(text).expect("name")
    }

    fn contact(byte: u8, region: &str) -> Contact {
        let at = std::net::SocketAddr::from(([10, 0, 0, byte], 1));
        Contact { store: store(byte), region: name(region), control: at, data: at }
    }

    fn view(of: &[(u8, &str, Liveness)]) -> View {
        let member = |(byte, region, liveness): &(u8, &str, Liveness)| {
            let Contact { region, control, data, .. } = contact(*byte, region);
            let facts = NodeFacts {
                name: name("n"),
                region,
                control,
                data,
                http: None,
                version: String::new(),
                zone: None,
                public: None,
                capacity: None,
            };
            let member = crate::membership::Member {
                facts,
                liveness: *liveness,
                since: START,
                incarnation: Incarnation(1),
                map_root: None,
                load: None,
                values: BTreeMap::new(),
            };
            (store(*byte), std::sync::Arc::new(member))
        };
        View { nodes: of.iter().map(member).collect() }
    }

    #[test]
    fn unknown_nodes_are_greeted_mates_gossiped_with_and_others_left_to_bridges() {
        use Liveness::{Live, Suspected};
        let view =
            view(&[(1, "eu", Live), (2, "eu", Suspected), (3, "us", Suspected), (4, "eu", Live)]);
        let stores: Vec<_> = (1..6).map(store).collect();
        let mut scout = Scout::new(store(1), name("eu"));
        let first = scout.next(&stores, &view, false);
        assert_eq!(first, [Way::Gossip(store(2)), Way::Greet(store(5))]);
        assert_eq!(
            scout.next(&stores, &view, false),
            [Way::Gossip(store(2))],
            "then one at a time"
        );
        assert_eq!(scout.next(&stores, &view, true), [Way::Greet(store(3))], "a bridge greets it");
        assert_eq!(scout.next(&stores, &view, true), [Way::Greet(store(5))]);
        assert_eq!(scout.next(&stores, &view, true), [Way::Gossip(store(2))], "and round again");
    }

    #[test]
    fn a_node_is_unsettled_while_a_mate_may_be_missing() {
        let seen = view(&[(1, "eu", Liveness::Live), (4, "eu", Liveness::Live)]);
        let mut scout = Scout::new(store(1), name("eu"));
        assert!(!scout.is_unsettled(&[store(1)], &seen), "it knows of nobody");
        assert!(!scout.is_unsettled(&[store(1), store(4)], &seen), "all are there");
        assert!(scout.is_unsettled(&[store(3)], &seen), "who knows of which region that is");
        let greeting = Greeting { region: name("us"), mates: Vec::new(), bridges: Vec::new() };
        scout.greeted(START, store(3), &greeting, false);
        assert!(!scout.is_unsettled(&[store(3)], &seen), "it is of another");
    }

    #[test]
    fn an_answer_leads_to_the_pools() {
        let mut scout = Scout::new(store(1), name("eu"));
        let greeting = Greeting {
            region: name("us"),
            mates: vec![contact(1, "eu"), contact(2, "eu"), contact(9, "us")],
            bridges: vec![
                contact(5, "us"),
                contact(6, "us"),
                contact(7, "as"),
                contact(8, "as"),
                contact(3, "eu"),
            ],
        };
        assert_eq!(scout.greeted(START, store(5), &greeting, false), [Way::Gossip(store(2))]);
        let ways = scout.greeted(START, store(5), &greeting, true);
        assert_eq!(ways.len(), 4, "a mate, both bridges of its region, one of the other: {ways:?}");
        assert!(ways.contains(&Way::GossipBetween(store(5))));
        assert!(ways.contains(&Way::GossipBetween(store(6))));
    }

    #[test]
    fn who_greets_hears_of_its_region_even_from_another() {
        let seen = view(&[
            (1, "eu", Liveness::Live),
            (5, "us", Liveness::Live),
            (6, "us", Liveness::Suspected),
        ]);
        let mut scout = Scout::new(store(1), name("eu"));
        let first = scout.answer(START, &contact(7, "us"), &seen);
        assert_eq!(first.mates, [contact(5, "us")], "the live one");
        assert_eq!(first.bridges, [contact(1, "eu"), contact(5, "us")]);
        let second = scout.answer(START, &contact(8, "us"), &seen);
        assert_eq!(second.mates, [contact(7, "us"), contact(5, "us")], "and who asked before");
        let later = scout.answer(START + RECENT_FOR, &contact(7, "us"), &seen);
        assert_eq!(later.mates, [contact(5, "us")]);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut scout = Scout::new(store(1), name("eu"));
        for n in 0..200 {
            scout.answer(START, &contact(n, "us"), &View::default());
            scout.answer(START, &contact(n, &format!("r{n}")), &View::default());
        }
        assert_eq!(scout.recent.len(), MAX_REGIONS);
        assert_eq!(scout.recent[&name("us")].len(), RECENT);
        let all: Vec<_> = (0..200).map(|n| (n, "us", Liveness::Live)).collect();
        let answer = scout.answer(START, &contact(250, "us"), &view(&all));
        assert_eq!(answer.mates.len(), MAX_MATES);
        assert_eq!(answer.bridges.len(), 3);
    }
}

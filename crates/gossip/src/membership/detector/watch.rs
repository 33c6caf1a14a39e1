//! The watch's state and its timers: whom to ping when, and when silence becomes a conviction. It
//! reads no clock and sends nothing: see [`Command`].

mod belief;
mod hearing;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flocker_base::{BootTime, Incarnation, StoreId};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::health::Health;
use super::message::{Greeting, Item, Message, Notice};
use super::neighbour::Neighbour;
use super::news::News;
use super::{Command, Event, Report, Verdict, WatchConfig, Why, ring};

/// A timer this late means that this node did not run: nobody is to blame for what it missed.
const PAUSED: Duration = Duration::from_millis(250);

/// How many pings must go unanswered before silence can convict.
const LEAST_MISSES: u8 = 4;

/// Time between two words to a member that was convicted, in case it lives.
const REVIVE: Duration = Duration::from_secs(2);

/// How long this node's own probes are no evidence against a member that refuted them.
const DISTRUST: Duration = Duration::from_secs(60);

/// What one peer may send: messages at once, and more each second.
const ALLOWED_AT_ONCE: u32 = 512;
const ALLOWED_A_SECOND: u32 = 64;
const MAX_SENDERS: usize = 4096;

/// The failure detector of one node among the members of one pool.
#[derive(Debug)]
pub(in crate::membership) struct Watch {
    me: StoreId,
    incarnation: Incarnation,
    config: WatchConfig,
    random: StdRng,
    health: Health,
    news: News,
    /// This node's own round.
    round: u32,
    neighbours: BTreeMap<StoreId, Neighbour>,
    /// Members that this node does not hear and that nobody convicted.
    unheard: BTreeSet<StoreId>,
    /// Members whom this node may hear when it is cut off from all others.
    near: BTreeSet<StoreId>,
    /// When this node last heard anyone else.
    heard: BootTime,
    /// Whether it has not heard anyone else for so long that it must be cut off from them all.
    cut_off: bool,
    /// Convictions that this node has reason to doubt, until when their subject may refute them.
    doubted: BTreeMap<StoreId, (Item, BootTime)>,
    /// When a member's last refutation came.
    refutations: BTreeMap<StoreId, BootTime>,
    /// Until when this node's own probes of a member are no evidence.
    distrusted: BTreeMap<StoreId, BootTime>,
    /// When a member was last told that it is held for dead.
    told: BTreeMap<StoreId, BootTime>,
    allowances: BTreeMap<StoreId, (BootTime, u32)>,
    revive_at: BootTime,
    revived: Option<StoreId>,
    /// What the shell waits for.
    deadline: BootTime,
    commands: Vec<Command>,
}

impl Watch {
    /// A watch that knows no one yet.
    pub(in crate::membership) fn new(
        me: StoreId,
        incarnation: Incarnation,
        config: WatchConfig,
        seed: u64,
    ) -> Self {
        Self {
            me,
            incarnation,
            config,
            random: StdRng::seed_from_u64(seed),
            health: Health::default(),
            news: News::default(),
            round: 0,
            neighbours: BTreeMap::new(),
            unheard: BTreeSet::new(),
            near: BTreeSet::new(),
            heard: BootTime::ZERO,
            cut_off: false,
            doubted: BTreeMap::new(),
            refutations: BTreeMap::new(),
            distrusted: BTreeMap::new(),
            told: BTreeMap::new(),
            allowances: BTreeMap::new(),
            revive_at: BootTime::ZERO,
            revived: None,
            deadline: BootTime::NEVER,
            commands: Vec::new(),
        }
    }

    /// When it wants a [`Event::Tick`] at the latest.
    pub(in crate::membership) const fn next_deadline(&self) -> BootTime {
        self.deadline
    }

    /// What it holds of this run of a member.
    pub(in crate::membership) fn verdict(
        &self,
        store: StoreId,
        incarnation: Incarnation,
    ) -> Verdict {
        let cut = self.cut_off && !self.near.contains(&store);
        let unheard = cut || self.unheard.contains(&store);
        match self.news.verdict(store, incarnation) {
            Verdict::Alive | Verdict::Unknown if unheard && store != self.me => Verdict::Dead,
            other => other,
        }
    }

    /// Says whom this node may hear when it is cut off from all others.
    pub(in crate::membership) fn set_near(&mut self, near: BTreeSet<StoreId>) {
        self.near = near;
    }

    /// What it holds of every member.
    pub(in crate::membership) fn verdicts(
        &self,
    ) -> impl Iterator<Item = (StoreId, Incarnation, Verdict)> {
        let members = self.news.members().iter();
        members.map(|(store, run)| (*store, *run, self.verdict(*store, *run)))
    }

    /// Takes an event and says what is to be done.
    pub(in crate::membership) fn step(&mut self, now: BootTime, event: Event) -> Vec<Command> {
        self.notice_own_pause(now);
        match event {
            Event::Members(members) => self.take_members(now, members),
            Event::Message { from, message } => self.take_message(now, from, message),
            Event::Probed { store, refused } => {
                if let Some(waiting) =
                    self.neighbours.get_mut(&store).and_then(|n| n.waiting.as_mut())
                {
                    waiting.refused = refused;
                }
            }
            Event::Tick => {}
        }
        self.act(now);
        self.set_deadline();
        std::mem::take(&mut self.commands)
    }

    fn notice_own_pause(&mut self, now: BootTime) {
        let late = now.saturating_since(self.deadline);
        self.health.was_late(late);
        if late >= PAUSED {
            let answer = self.health.stretch(self.config.answer);
            for neighbour in self.neighbours.values_mut() {
                neighbour.forgive(now, late, answer);
            }
            for (_, until) in self.doubted.values_mut() {
                *until = *until + late;
            }
            self.heard = (self.heard + late).min(now);
        }
    }

    fn take_members(&mut self, now: BootTime, mut members: BTreeMap<StoreId, Incarnation>) {
        members.insert(self.me, self.incarnation);
        if *self.news.members() == members {
            return;
        }
        let due = self.news.set_members(now, members);
        self.believe_all(now, None, due);
        let own = self.own_item();
        self.news.put(now, &own);
        self.forget_strangers();
        self.reshape(now);
        self.commands.push(Command::Changed);
    }

    fn forget_strangers(&mut self) {
        let known = self.news.members();
        self.unheard.retain(|store| known.contains_key(store));
        self.doubted.retain(|store, (item, _)| known.get(store) == Some(&item.incarnation));
        self.refutations.retain(|store, _| known.contains_key(store));
        self.distrusted.retain(|store, _| known.contains_key(store));
        self.told.retain(|store, _| known.contains_key(store));
    }

    /// Takes up new neighbours and leaves those that are none any more. Those that are not heard
    /// stay, and as many more are looked at on each side: if the mesh has come apart, each side so
    /// finds out all that it has lost.
    fn reshape(&mut self, now: BootTime) {
        let news = &self.news;
        self.unheard.retain(|store| !news.is_dead(*store));
        let reach = self.config.reach + self.unheard.len();
        let heard = self.news.living().filter(|store| !self.unheard.contains(store));
        let wanted = ring::neighbours(self.me, heard, reach);
        let unheard = &self.unheard;
        self.neighbours.retain(|store, _| wanted.contains(store) || unheard.contains(store));
        for store in wanted {
            if !self.neighbours.contains_key(&store) {
                let first = self.random.random_range(Duration::ZERO..=self.config.least_period);
                self.neighbours.insert(store, Neighbour::new(now, now + first));
                // It tells the others that this node lives.
                let message = Message::News(vec![self.own_item()]);
                self.commands.push(Command::Send { to: store, message });
            }
        }
    }

    /// Does what is due.
    fn act(&mut self, now: BootTime) {
        let due: Vec<StoreId> =
            self.neighbours.iter().filter(|(_, n)| n.due() <= now).map(|(s, _)| *s).collect();
        for store in due {
            self.ping(now, store);
        }
        let silent: Vec<StoreId> =
            self.neighbours.iter().filter(|(_, n)| n.waiting.is_some()).map(|(s, _)| *s).collect();
        for store in silent {
            self.judge(now, store);
        }
        self.notice_cut(now);
        let believed: Vec<Item> =
            self.doubted.values().filter(|(_, until)| *until <= now).map(|(i, _)| *i).collect();
        for item in believed {
            self.doubted.remove(&item.store);
            self.apply(now, None, &[item]);
        }
        if self.revive_at <= now {
            self.revive_at = now + REVIVE;
            self.revive(now);
        }
    }

    fn ping(&mut self, now: BootTime, store: StoreId) {
        let greeting = Message::Ping(self.greeting());
        let Some(neighbour) = self.neighbours.get_mut(&store) else { return };
        self.commands.push(Command::Send { to: store, message: greeting });
        let Some(waiting) = &mut neighbour.waiting else {
            neighbour.pinged(now, self.health.stretch(self.config.answer));
            return;
        };
        waiting.misses = waiting.misses.saturating_add(1);
        let first = waiting.misses == 1;
        let retry = if self.unheard.contains(&store) {
            REVIVE
        } else {
            self.health.stretch(self.config.retry)
        };
        waiting.deadline = now + retry;
        let long = now.saturating_since(neighbour.heard) >= self.config.agreement;
        self.commands.push(Command::Probe { store });
        // If others owe an answer too, it may be this node that is slow.
        let missing = |n: &Neighbour| n.waiting.as_ref().is_some_and(|w| w.misses > 0);
        if first && self.neighbours.values().filter(|n| missing(n)).count() > 1 {
            self.health.missed();
        }
        let Some(incarnation) = self.news.incarnation(store) else { return };
        if first || long {
            let question = Message::Ask { subject: store, incarnation };
            for other in self.other_neighbours(store) {
                self.commands.push(Command::Send { to: other, message: question.clone() });
            }
        }
    }

    /// The other members that watch this one.
    fn other_neighbours(&self, of: StoreId) -> BTreeSet<StoreId> {
        let heard = self.news.living().filter(|store| !self.unheard.contains(store));
        let mut others = ring::neighbours(of, heard, self.config.reach);
        others.remove(&self.me);
        others
    }

    fn judge(&mut self, now: BootTime, store: StoreId) {
        let Some(neighbour) = self.neighbours.get(&store) else { return };
        let Some(waiting) = &neighbour.waiting else { return };
        if waiting.misses == 0 {
            return;
        }
        let silent = neighbour.waited(now);
        let distrusted = self.distrusted.get(&store).is_some_and(|until| now < *until);
        let agreed = silent >= self.health.stretch(self.config.silence)
            && waiting.misses >= LEAST_MISSES
            && !waiting.agreeing.is_empty();
        if waiting.refused && !distrusted {
            self.convict(now, store, Why::Refused);
        } else if agreed {
            self.convict(now, store, Why::Silent);
        } else if silent >= self.health.stretch(self.config.alone) && self.unheard.insert(store) {
            self.commands.push(Command::Report(Report::Unheard { store }));
            self.commands.push(Command::Changed);
            self.reshape(now);
        }
    }

    /// All others are as good as dead to a node that hears none of them.
    fn notice_cut(&mut self, now: BootTime) {
        let mut others = self.neighbours.iter().filter(|(store, _)| !self.near.contains(store));
        let misses = |n: &Neighbour| n.waiting.as_ref().is_some_and(|w| w.misses > 1);
        let all = others.next().is_some_and(|(_, n)| misses(n)) && others.all(|(_, n)| misses(n));
        let long = now.saturating_since(self.heard) >= self.config.cut_off;
        if all && long && !std::mem::replace(&mut self.cut_off, true) {
            self.commands.push(Command::Changed);
        }
    }

    fn convict(&mut self, now: BootTime, store: StoreId, why: Why) {
        let Some(incarnation) = self.news.incarnation(store) else { return };
        let round = self.news.standing(store).map_or(0, |standing| standing.round);
        let notice = Notice { by: self.me, reason: why.number(), age_ms: 0 };
        let item = Item { store, incarnation, round, death: Some(notice) };
        self.apply(now, None, &[item]);
        // In case it lives.
        self.tell(now, store);
    }

    /// Tells one of those held for dead that they are: a network that has healed is so noticed.
    fn revive(&mut self, now: BootTime) {
        let dead: BTreeSet<StoreId> = self.news.dead().collect();
        let after = self.revived.and_then(|last| dead.range(last..).find(|s| **s != last));
        self.revived = after.or_else(|| dead.first()).copied();
        if let Some(store) = self.revived {
            self.tell(now, store);
        }
    }

    fn tell(&mut self, now: BootTime, store: StoreId) {
        let due = self.told.get(&store).is_none_or(|last| now.saturating_since(*last) >= REVIVE);
        if due && let Some(item) = self.news.item(now, store) {
            self.told.insert(store, now);
            self.commands.push(Command::Send { to: store, message: Message::News(vec![item]) });
        }
    }

    fn greeting(&self) -> Greeting {
        Greeting { incarnation: self.incarnation, news: self.news.digest() }
    }

    fn own_item(&self) -> Item {
        Item { store: self.me, incarnation: self.incarnation, round: self.round, death: None }
    }

    /// The time to the next ping of a neighbour that was just heard.
    fn period(&mut self) -> Duration {
        let count = u32::try_from(self.neighbours.len()).unwrap_or(u32::MAX);
        let mean = self.config.period_share.saturating_mul(count).max(self.config.least_period);
        mean.mul_f64(self.random.random_range(0.85..1.15))
    }

    /// Whether this sender has not sent too much of late.
    fn allows(&mut self, now: BootTime, from: StoreId) -> bool {
        if self.allowances.len() >= MAX_SENDERS && !self.allowances.contains_key(&from) {
            self.allowances.clear();
        }
        let (since, left) = self.allowances.entry(from).or_insert((now, ALLOWED_AT_ONCE));
        let seconds = now.saturating_since(*since).as_secs();
        if seconds > 0 {
            let more = u32::try_from(seconds).unwrap_or(u32::MAX).saturating_mul(ALLOWED_A_SECOND);
            *left = left.saturating_add(more).min(ALLOWED_AT_ONCE);
            *since = now;
        }
        *left = match left.checked_sub(1) {
            Some(rest) => rest,
            None => return false,
        };
        true
    }

    fn set_deadline(&mut self) {
        let pings = self.neighbours.values().map(Neighbour::due);
        let doubts = self.doubted.values().map(|(_, until)| *until);
        let revive = self.news.dead().next().map(|_| self.revive_at);
        let first = pings.chain(doubts).chain(revive).min();
        self.deadline = first.unwrap_or(BootTime::NEVER);
    }
}

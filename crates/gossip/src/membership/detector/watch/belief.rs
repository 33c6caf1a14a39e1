//! Which news the watch believes, and how it passes them on. A conviction that this node has
//! reason to doubt is put to its subject first.

use std::time::Duration;

use flocker_base::{BootTime, Incarnation, StoreId};
use rand::seq::IndexedRandom;

use super::super::message::{Item, MAX_ITEMS, Message};
use super::super::news::{MAX_ROUND, Weight};
use super::super::{Command, Report};
use super::Watch;

/// Members that news are passed to besides this node's neighbours.
const FANOUT: usize = 2;

/// A conviction older than this is no news: its subject is asked first.
const STALE: Duration = Duration::from_secs(10);

/// How long after a refutation another conviction of the same member is put to it first.
const SUSPICIOUS: Duration = Duration::from_secs(10);

/// How long the subject of a doubted conviction has to refute it.
const REPLY: Duration = Duration::from_secs(3);

/// The most convictions that are doubted at once; past it they are believed.
const MAX_DOUBTED: usize = 256;

impl Watch {
    /// Takes items from a peer, or that had waited for their run to be known.
    pub(super) fn believe_all(&mut self, now: BootTime, from: Option<StoreId>, items: Vec<Item>) {
        let mut believed = Vec::new();
        for item in items {
            if item.store == self.me {
                self.take_word_of_me(now, from, &item);
                continue;
            }
            match self.news.weigh(&item) {
                Weight::New if self.doubts(now, &item) => self.doubt(now, item),
                Weight::New => believed.push(item),
                Weight::Ahead => self.news.keep_ahead(now, item),
                Weight::Old | Weight::Absurd => {}
            }
        }
        self.apply(now, from, &believed);
    }

    /// This sender lives in this run.
    pub(super) fn vouch(&mut self, now: BootTime, store: StoreId, incarnation: Incarnation) {
        let item = Item { store, incarnation, round: 0, death: None };
        match self.news.weigh(&item) {
            Weight::New => self.apply(now, Some(store), &[item]),
            Weight::Ahead => self.news.keep_ahead(now, item),
            Weight::Old | Weight::Absurd => {}
        }
    }

    fn take_word_of_me(&mut self, now: BootTime, from: Option<StoreId>, item: &Item) {
        let Some(notice) = item.death else { return };
        if item.incarnation != self.incarnation || item.round >= MAX_ROUND {
            return;
        }
        if item.round >= self.round {
            self.round = item.round + 1;
            let own = self.own_item();
            self.news.put(now, &own);
            self.flood(now, &[own], None);
            let report = Report::Refuted { by: notice.by, why: notice.why() };
            self.commands.push(Command::Report(report));
        }
        if let Some(from) = from {
            let message = Message::News(vec![self.own_item()]);
            self.commands.push(Command::Send { to: from, message });
        }
    }

    /// Whether there is reason to put this to its subject first: it is old and this node has held
    /// the member for alive, or this node has heard it since, or it has just refuted another.
    fn doubts(&self, now: BootTime, item: &Item) -> bool {
        let Some(notice) = item.death else { return false };
        if self.doubted.len() >= MAX_DOUBTED {
            return false;
        }
        let age = Duration::from_millis(notice.age_ms.into());
        let old = age > STALE && self.news.standing(item.store).is_some();
        let heard_since = self.neighbours.get(&item.store).is_some_and(|neighbour| {
            neighbour.waiting.is_none() && now.saturating_since(neighbour.heard) < age
        });
        let refuted = self
            .refutations
            .get(&item.store)
            .is_some_and(|last| now.saturating_since(*last) < SUSPICIOUS);
        old || heard_since || refuted
    }

    fn doubt(&mut self, now: BootTime, item: Item) {
        if let Some(neighbour) = self.neighbours.get_mut(&item.store)
            && neighbour.waiting.is_none()
        {
            neighbour.ping_at = now;
        }
        if !self.doubted.contains_key(&item.store) {
            self.commands
                .push(Command::Send { to: item.store, message: Message::News(vec![item]) });
            self.doubted.insert(item.store, (item, now + REPLY));
        }
    }

    /// Takes believed items, and passes them on.
    pub(super) fn apply(&mut self, now: BootTime, from: Option<StoreId>, items: &[Item]) {
        let mut fresh = Vec::new();
        let mut turned = false;
        for item in items {
            if self.news.weigh(item) != Weight::New {
                continue;
            }
            let was_dead = self.news.is_dead(item.store);
            if item.death.is_none() && was_dead {
                self.was_refuted(now, item.store);
            }
            self.news.put(now, item);
            self.doubted.remove(&item.store);
            fresh.push(*item);
            turned |= was_dead != item.death.is_some();
            match item.death {
                Some(notice) if !was_dead => {
                    let (by, why) = (notice.by, notice.why());
                    let report = Report::Convicted { store: item.store, by, why };
                    self.commands.push(Command::Report(report));
                }
                None if was_dead => {
                    self.commands.push(Command::Report(Report::Returned { store: item.store }));
                }
                _ => {}
            }
        }
        if fresh.is_empty() {
            return;
        }
        // Told along the ring as it was, so that the gap is no gap for the news.
        self.flood(now, &fresh, from);
        if turned {
            self.reshape(now);
        }
        self.commands.push(Command::Changed);
    }

    fn was_refuted(&mut self, now: BootTime, store: StoreId) {
        self.refutations.insert(store, now);
        let mine = self
            .news
            .standing(store)
            .and_then(|standing| standing.death)
            .is_some_and(|death| death.by == self.me);
        if mine {
            self.distrusted.insert(store, now + super::DISTRUST);
        }
    }

    /// Passes items to the neighbours and a few others.
    pub(super) fn flood(&mut self, now: BootTime, items: &[Item], except: Option<StoreId>) {
        let living: Vec<StoreId> = self.news.living().filter(|store| *store != self.me).collect();
        let mut to: Vec<StoreId> = living.sample(&mut self.random, FANOUT).copied().collect();
        to.extend(self.neighbours.keys().filter(|store| !self.news.is_dead(**store)));
        to.sort_unstable();
        to.dedup();
        to.retain(|store| Some(*store) != except);
        let items: Vec<Item> =
            items.iter().map(|item| self.news.item(now, item.store).unwrap_or(*item)).collect();
        for page in items.chunks(MAX_ITEMS) {
            for store in &to {
                let message = Message::News(page.to_vec());
                self.commands.push(Command::Send { to: *store, message });
            }
        }
    }
}

//! What is known of whose life: for each member, the newest item about its present run. It decides
//! which of two items counts, and never which to believe.

use std::collections::BTreeMap;
use std::time::Duration;

use flocker_base::{BootTime, Incarnation, StoreId};

use super::message::{Item, Notice};
use super::ring::hash;
use super::{Digest, Verdict, Why};

/// The highest round. No conviction may have it, so the subject of any can refute it.
pub(super) const MAX_ROUND: u32 = 1 << 20;

/// The most items kept of runs that chitchat does not know yet, and for how long.
const MAX_AHEAD: usize = 64;
const AHEAD: Duration = Duration::from_secs(30);

/// The newest of one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) round: u32,
    pub(super) death: Option<Death>,
}

/// A conviction, in this node's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Death {
    pub(super) by: StoreId,
    pub(super) why: Why,
    pub(super) at: BootTime,
}

/// What an item is to what is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weight {
    /// It counts, if it is believed.
    New,
    /// It is known, or older than what is.
    Old,
    /// It is about a run that is not known yet.
    Ahead,
    /// No honest node says so.
    Absurd,
}

/// The news of all members.
#[derive(Debug, Default)]
pub(super) struct News {
    members: BTreeMap<StoreId, Incarnation>,
    standings: BTreeMap<StoreId, Standing>,
    ahead: BTreeMap<StoreId, (Item, BootTime)>,
    /// The shares of all standings, one after another by exclusive or.
    sum: u64,
}

impl News {
    /// Takes the members and their runs. Gives the items that waited for them.
    pub(super) fn set_members(
        &mut self,
        now: BootTime,
        members: BTreeMap<StoreId, Incarnation>,
    ) -> Vec<Item> {
        let before = std::mem::replace(&mut self.members, members);
        self.standings.retain(|store, _| self.members.get(store) == before.get(store));
        self.sum = self.standings.iter().fold(0, |sum, (s, of)| sum ^ self.share(*s, of));
        self.ahead.retain(|_, (_, until)| *until > now);
        let come = |item: &Item| self.members.get(&item.store) == Some(&item.incarnation);
        let due: Vec<Item> = self.ahead.values().map(|(i, _)| *i).filter(come).collect();
        for item in &due {
            self.ahead.remove(&item.store);
        }
        due
    }

    pub(super) const fn members(&self) -> &BTreeMap<StoreId, Incarnation> {
        &self.members
    }

    pub(super) fn incarnation(&self, store: StoreId) -> Option<Incarnation> {
        self.members.get(&store).copied()
    }

    pub(super) fn standing(&self, store: StoreId) -> Option<&Standing> {
        self.standings.get(&store)
    }

    pub(super) fn is_dead(&self, store: StoreId) -> bool {
        self.standings.get(&store).is_some_and(|standing| standing.death.is_some())
    }

    /// The members that are not dead.
    pub(super) fn living(&self) -> impl Iterator<Item = StoreId> {
        self.members.keys().copied().filter(|store| !self.is_dead(*store))
    }

    pub(super) fn dead(&self) -> impl Iterator<Item = StoreId> {
        self.standings.iter().filter(|(_, s)| s.death.is_some()).map(|(store, _)| *store)
    }

    pub(super) fn verdict(&self, store: StoreId, incarnation: Incarnation) -> Verdict {
        if self.members.get(&store) != Some(&incarnation) {
            return Verdict::Unknown;
        }
        match self.standings.get(&store) {
            Some(Standing { death: Some(_), .. }) => Verdict::Dead,
            Some(Standing { death: None, .. }) => Verdict::Alive,
            None => Verdict::Unknown,
        }
    }

    pub(super) fn weigh(&self, item: &Item) -> Weight {
        if item.round > MAX_ROUND || (item.death.is_some() && item.round == MAX_ROUND) {
            return Weight::Absurd;
        }
        match self.members.get(&item.store) {
            Some(known) if item.incarnation < *known => return Weight::Old,
            Some(known) if item.incarnation == *known => {}
            Some(_) | None => return Weight::Ahead,
        }
        let Some(known) = self.standings.get(&item.store) else { return Weight::New };
        let rank = |round, dead| (round, dead);
        if rank(item.round, item.death.is_some()) > rank(known.round, known.death.is_some()) {
            Weight::New
        } else {
            Weight::Old
        }
    }

    /// Takes an item that weighs [`Weight::New`].
    pub(super) fn put(&mut self, now: BootTime, item: &Item) {
        let death = item.death.map(|notice| Death {
            by: notice.by,
            why: notice.why(),
            at: now.saturating_sub(Duration::from_millis(notice.age_ms.into())),
        });
        let standing = Standing { round: item.round, death };
        let before = self.standings.insert(item.store, standing);
        let gone = before.map_or(0, |before| self.share(item.store, &before));
        self.sum ^= gone ^ self.share(item.store, &standing);
    }

    /// Keeps an item that weighs [`Weight::Ahead`] until its run is known. With too many, it is
    /// not kept: news are exchanged again.
    pub(super) fn keep_ahead(&mut self, now: BootTime, item: Item) {
        self.ahead.retain(|_, (_, until)| *until > now);
        let worse = self.ahead.get(&item.store).is_some_and(|(kept, _)| {
            (kept.incarnation, kept.round, kept.death.is_some())
                >= (item.incarnation, item.round, item.death.is_some())
        });
        if !worse && (self.ahead.len() < MAX_AHEAD || self.ahead.contains_key(&item.store)) {
            self.ahead.insert(item.store, (item, now + AHEAD));
        }
    }

    /// What is known of one member, as an item.
    pub(super) fn item(&self, now: BootTime, store: StoreId) -> Option<Item> {
        let (standing, incarnation) = (self.standings.get(&store)?, self.incarnation(store)?);
        let death = standing.death.map(|death| Notice {
            by: death.by,
            reason: death.why.number(),
            age_ms: millis(now.saturating_since(death.at)),
        });
        Some(Item { store, incarnation, round: standing.round, death })
    }

    /// Everything.
    pub(super) fn items(&self, now: BootTime) -> Vec<Item> {
        self.standings.keys().filter_map(|store| self.item(now, *store)).collect()
    }

    /// Equal on nodes that hold the same.
    pub(super) const fn digest(&self) -> Digest {
        let [a, b, c, d, ..] = self.sum.to_le_bytes();
        [a, b, c, d]
    }

    /// What one standing adds to the sum of all, and takes away when added again.
    fn share(&self, store: StoreId, standing: &Standing) -> u64 {
        let incarnation = self.incarnation(store).unwrap_or_default();
        let mut bytes = [0; 29];
        let parts = store
            .as_bytes()
            .iter()
            .copied()
            .chain(incarnation.0.to_le_bytes())
            .chain(standing.round.to_le_bytes())
            .chain([standing.death.is_some().into()]);
        for (byte, part) in bytes.iter_mut().zip(parts) {
            *byte = part;
        }
        hash(&bytes)
    }
}

/// Milliseconds, as many as fit.
pub(super) fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

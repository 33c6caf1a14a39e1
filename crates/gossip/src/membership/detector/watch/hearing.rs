//! What the watch does with a message. It trusts a sender in nothing but that it lives.

use std::time::Duration;

use flocker_base::{BootTime, Incarnation, StoreId};

use super::super::Command;
use super::super::message::{Greeting, MAX_ITEMS, Message};
use super::super::news::millis;
use super::Watch;

/// How soon a neighbour is pinged again that another one has heard and this node has not.
const AGAIN: Duration = Duration::from_millis(250);

/// A neighbour that someone asks about is pinged unless it was heard this recently.
const FRESH: Duration = Duration::from_millis(200);

impl Watch {
    pub(super) fn take_message(&mut self, now: BootTime, from: StoreId, message: Message) {
        if from == self.me || !self.allows(now, from) {
            return;
        }
        self.hear(now, from);
        match message {
            Message::Ping(greeting) => {
                let answer = Message::Pong(self.greeting());
                self.commands.push(Command::Send { to: from, message: answer });
                self.take_greeting(now, from, &greeting);
            }
            Message::Pong(greeting) => self.take_greeting(now, from, &greeting),
            Message::Ask { subject, incarnation } => self.answer(now, from, subject, incarnation),
            Message::Tell { subject, incarnation, unheard_ms, misses } => {
                let unheard = Duration::from_millis(unheard_ms.into());
                if self.news.incarnation(subject) == Some(incarnation) {
                    self.take_word(now, from, subject, unheard, misses);
                }
            }
            Message::News(items) => self.believe_all(now, Some(from), items),
        }
    }

    /// The sender lives.
    fn hear(&mut self, now: BootTime, from: StoreId) {
        if !self.near.contains(&from) {
            self.heard = now;
            if std::mem::replace(&mut self.cut_off, false) {
                self.commands.push(Command::Changed);
            }
        }
        let next = now + self.period();
        if let Some(neighbour) = self.neighbours.get_mut(&from) {
            let owed = neighbour.waiting.is_some();
            if neighbour.was_heard(now, next) && owed {
                self.health.answered();
            }
        }
        if self.unheard.remove(&from) {
            self.commands.push(Command::Changed);
            self.reshape(now);
        }
        if self.news.is_dead(from) {
            self.tell(now, from);
        }
    }

    fn take_greeting(&mut self, now: BootTime, from: StoreId, greeting: &Greeting) {
        // A greeting is the sender's word that it lives in this run, as good as an item.
        let known = self.news.incarnation(from);
        if known.is_none_or(|known| known < greeting.incarnation)
            || (known == Some(greeting.incarnation) && self.news.standing(from).is_none())
        {
            self.vouch(now, from, greeting.incarnation);
        }
        let agrees = self.news.digest() == greeting.news;
        let Some(neighbour) = self.neighbours.get_mut(&from) else { return };
        if agrees {
            neighbour.agrees();
        } else if neighbour.may_exchange(now) {
            for page in self.news.items(now).chunks(MAX_ITEMS) {
                let message = Message::News(page.to_vec());
                self.commands.push(Command::Send { to: from, message });
            }
        }
    }

    /// Another neighbour of the subject asks.
    fn answer(&mut self, now: BootTime, from: StoreId, subject: StoreId, of: Incarnation) {
        if self.news.incarnation(subject) != Some(of) {
            return;
        }
        if self.news.is_dead(subject) {
            if let Some(item) = self.news.item(now, subject) {
                let message = Message::News(vec![item]);
                self.commands.push(Command::Send { to: from, message });
            }
            return;
        }
        let Some(neighbour) = self.neighbours.get_mut(&subject) else { return };
        let unheard = now.saturating_since(neighbour.heard);
        let misses = neighbour.waiting.as_ref().map_or(0, |waiting| waiting.misses);
        if neighbour.waiting.is_none() && unheard >= FRESH {
            neighbour.ping_at = now;
        }
        let message =
            Message::Tell { subject, incarnation: of, unheard_ms: millis(unheard), misses };
        self.commands.push(Command::Send { to: from, message });
    }

    /// Another neighbour of the subject says how long it has not heard it.
    fn take_word(
        &mut self,
        now: BootTime,
        from: StoreId,
        subject: StoreId,
        unheard: Duration,
        misses: u8,
    ) {
        if !self.other_neighbours(subject).contains(&from) {
            return;
        }
        let Some(neighbour) = self.neighbours.get_mut(&subject) else { return };
        let Some(waiting) = &mut neighbour.waiting else { return };
        let heard_there = now.saturating_sub(unheard);
        if misses == 0 && heard_there > waiting.since {
            neighbour.was_heard(now, now + AGAIN);
            if self.unheard.remove(&subject) {
                self.commands.push(Command::Changed);
                self.reshape(now);
            }
        } else if misses > 0 && unheard >= self.config.agreement {
            waiting.agreeing.insert(from);
        } else {
            waiting.agreeing.remove(&from);
        }
    }
}

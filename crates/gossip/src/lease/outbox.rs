//! Persist before announce: messages wait here for the writes that they tell of. No message may
//! leave by another way.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use flocker_base::{BootTime, StoreId, VolumeId};

use super::event::{Alarm, Command, LeaseError, LeaseEvent, Outcome, Request, Ticket};
use super::message::Message;
use super::record::{Write, WriteKey};

/// What a step produces, and what waits for the disk.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Outbox {
    me: StoreId,
    next: Ticket,
    done: Ticket,
    writes: BTreeMap<WriteKey, Write>,
    under_way: VecDeque<(Ticket, BootTime)>,
    waiting: VecDeque<(Ticket, StoreId, Message)>,
    ready: BTreeMap<StoreId, Vec<Message>>,
    local: VecDeque<Message>,
    events: Vec<LeaseEvent>,
    replies: Vec<(Request, Result<Outcome, LeaseError>)>,
    alarms: Vec<Alarm>,
    touched: BTreeSet<VolumeId>,
}

impl Outbox {
    /// Nothing written, nothing said.
    pub(crate) const fn new(me: StoreId) -> Self {
        Self {
            me,
            next: 1,
            done: 0,
            writes: BTreeMap::new(),
            under_way: VecDeque::new(),
            waiting: VecDeque::new(),
            ready: BTreeMap::new(),
            local: VecDeque::new(),
            events: Vec::new(),
            replies: Vec::new(),
            alarms: Vec::new(),
            touched: BTreeSet::new(),
        }
    }

    /// Adds a write to this step's batch. What tells of it is sent after the ticket returned.
    pub(crate) fn write(&mut self, write: Write) -> Ticket {
        self.writes.insert(write.key(), write);
        self.next
    }

    /// The ticket of this step's writes; durable already if there are none.
    pub(crate) fn current_ticket(&self) -> Ticket {
        if self.writes.is_empty() { self.done } else { self.next }
    }

    /// Sends once every write up to the ticket is durable.
    pub(crate) fn send(&mut self, to: StoreId, message: Message, after: Ticket) {
        if after > self.done {
            self.waiting.push_back((after, to, message));
        } else {
            self.release(to, message);
        }
    }

    fn release(&mut self, to: StoreId, message: Message) {
        if to == self.me {
            self.local.push_back(message);
        } else {
            self.ready.entry(to).or_default().push(message);
        }
    }

    /// The next message of this node to itself.
    pub(crate) fn next_local(&mut self) -> Option<Message> {
        self.local.pop_front()
    }

    /// Whether every write up to the ticket is durable.
    pub(crate) const fn is_durable(&self, ticket: Ticket) -> bool {
        ticket <= self.done
    }

    /// Every write up to the ticket is durable: releases what waited for it, in order.
    pub(crate) fn persisted(&mut self, ticket: Ticket) {
        self.done = self.done.max(ticket);
        self.under_way.retain(|(later, _)| *later > ticket);
        for (after, to, message) in std::mem::take(&mut self.waiting) {
            if after > self.done {
                self.waiting.push_back((after, to, message));
            } else {
                self.release(to, message);
            }
        }
    }

    /// For how long the oldest write has been under way.
    pub(crate) fn stalled_for(&self, now: BootTime) -> Duration {
        self.under_way.front().map_or(Duration::ZERO, |(_, since)| now.saturating_since(*since))
    }

    /// Whether any write is under way or about to be.
    pub(crate) fn is_writing(&self) -> bool {
        !self.under_way.is_empty() || !self.writes.is_empty()
    }

    /// Tells the agent.
    pub(crate) fn emit(&mut self, event: LeaseEvent) {
        self.touched.insert(event.volume());
        self.events.push(event);
    }

    /// Answers who waits.
    pub(crate) fn reply(&mut self, request: Request, outcome: Result<Outcome, LeaseError>) {
        self.replies.push((request, outcome));
    }

    /// Tells the operator.
    pub(crate) fn alarm(&mut self, alarm: Alarm) {
        self.alarms.push(alarm);
    }

    /// Notes that a volume's view changed.
    pub(crate) fn touch(&mut self, volume: VolumeId) {
        self.touched.insert(volume);
    }

    /// Volumes whose view changed since the last call.
    pub(crate) fn take_touched(&mut self) -> BTreeSet<VolumeId> {
        std::mem::take(&mut self.touched)
    }

    /// Ends the step.
    pub(crate) fn finish(&mut self, now: BootTime) -> Vec<Command> {
        let mut commands = Vec::new();
        if !self.writes.is_empty() {
            commands.push(Command::Persist(
                self.next,
                std::mem::take(&mut self.writes).into_values().collect(),
            ));
            self.under_way.push_back((self.next, now));
            self.next += 1;
        }
        let ready = std::mem::take(&mut self.ready);
        commands.extend(ready.into_iter().map(|(to, messages)| Command::Send(to, messages)));
        commands.extend(self.events.drain(..).map(Command::Emit));
        commands.extend(self.replies.drain(..).map(|(to, outcome)| Command::Reply(to, outcome)));
        commands.extend(self.alarms.drain(..).map(Command::Alarm));
        commands
    }
}

//! One pull from one peer: down its hash tree where it differs, or page by page if this node is
//! new. Pure. Every question is answered, merged and on disk before the next is asked, so that a
//! pull that ends early loses nothing.

use std::time::Duration;

use bytes::Bytes;
use flocker_base::{BootTime, StoreId};

use super::choice::Difference;
use super::descent::Descent;
use super::message::{Hostile, Request, Response, Sent};
use crate::map::key::RecordKey;
use crate::map::tree::{HashTree, Path, Summary};

/// Time that a pull may take, a newcomer's included; the next goes on where it stood.
const PULL_WITHIN: Duration = Duration::from_secs(120);

/// One pull.
#[derive(Debug)]
pub(super) struct Pull {
    pub(super) peer: StoreId,
    /// What made it worth trying.
    pub(super) difference: Difference,
    /// Records that it changed here.
    pub(super) changed: usize,
    until: BootTime,
    way: Way,
    asked: Option<Request>,
}

#[derive(Debug)]
enum Way {
    Down(Descent),
    Pages { after: Option<Bytes>, done: bool },
}

impl Pull {
    pub(super) fn new(peer: StoreId, difference: Difference, now: BootTime) -> Self {
        let way = Way::Down(Descent::new());
        Self { peer, difference, changed: 0, until: now + PULL_WITHIN, way, asked: None }
    }

    /// The next question; none when all is known or the time is over.
    pub(super) fn next(&mut self, now: BootTime) -> Option<Request> {
        let request = match &mut self.way {
            _ if now >= self.until => None,
            Way::Down(descent) => descent.next(),
            Way::Pages { done: true, .. } => None,
            Way::Pages { after, .. } => Some(Request::Page(after.clone())),
        };
        self.asked.clone_from(&request);
        request
    }

    /// Takes an answer; gives the records that it brought, to be merged before the next question.
    pub(super) fn on_answer(
        &mut self,
        ours: &HashTree,
        response: Response,
    ) -> Result<Vec<Sent>, Hostile> {
        match (self.asked.take(), response, &mut self.way) {
            (Some(Request::Summaries(asked)), Response::Summaries(theirs), Way::Down(descent)) => {
                let theirs = theirs.into_iter().map(Summary::try_from);
                let theirs = theirs.collect::<Result<Vec<_>, _>>()?;
                let root = theirs.first().filter(|_| asked == [Path::default()]);
                if root.is_some_and(|root| Descent::is_newcomer(ours.count(), root)) {
                    self.way = Way::Pages { after: None, done: false };
                } else {
                    descent.on_summaries(ours, &asked, theirs)?;
                }
                Ok(Vec::new())
            }
            (Some(Request::Records(asked)), Response::Records(sent), Way::Down(descent)) => {
                let got: Vec<RecordKey> =
                    sent.iter().filter_map(|(key, _)| RecordKey::from_bytes(key)).collect();
                descent.on_records(&asked, &got);
                Ok(sent)
            }
            (
                Some(Request::Page(_)),
                Response::Page { records, more },
                Way::Pages { after, done },
            ) => {
                let last = records.last().map(|(key, _)| key.clone());
                let rises = last.is_some() && after.as_ref() < last.as_ref();
                match last {
                    Some(last) if more && rises => *after = Some(last),
                    Some(_) if more => return Err(Hostile::Answer),
                    _ => *done = true,
                }
                Ok(records)
            }
            _ => Err(Hostile::Answer),
        }
    }
}

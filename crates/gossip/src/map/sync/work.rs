//! What the core commands and takes the disk: reading, merging, answering. Blocking; the same
//! code under the real shell and the simulated one. It decides nothing.

use std::collections::BTreeMap;

use bytes::Bytes;
use flocker_base::{BootTime, StoreId};

use super::core::SyncCore;
use super::event::{Command, Content, Event, Outcome, Parcel};
use super::message::WireSummary;
use super::message::{self, Hostile, MAX_PAGE, MAX_PUSH, Opened, Push, Request, Response, Sent};
use super::waiting::MAX_HOPS;
use crate::map::key::RecordKey;
use crate::map::tree::value_hash;
use crate::map::{Arrived, Map, MapError};

/// Steps the core with the map's tree as it is.
pub(crate) fn step(core: &mut SyncCore, map: &Map, now: BootTime, event: Event) -> Vec<Command> {
    core.step(now, &map.tree(), event)
}

/// The changes that this node made since the last time, if there are any.
#[cfg(test)]
pub(crate) fn changed(map: &Map) -> Option<Event> {
    map.inner.outbox.try_take().map(|(keys, _hops)| Event::Changed(keys))
}

/// Reads records for a push, until they fill one.
pub(crate) fn read(map: &Map, keys: Vec<RecordKey>) -> Result<Event, MapError> {
    let (mut records, mut size) = (Vec::new(), 0);
    let mut keys = keys.into_iter();
    // One record over the bound still fits the frame: it is at most a quarter of it.
    while size < MAX_PUSH {
        let Some(key) = keys.next() else { break };
        if let Some(bytes) = map.inner.store.get(&key)? {
            size += key.as_bytes().len() + bytes.len();
            records.push(sent(&key, bytes));
        }
    }
    Ok(Event::Read { records, left: keys.collect() })
}

/// Reads and merges what peers sent.
pub(crate) fn merge(map: &Map, parcels: Vec<Parcel>) -> Result<Event, MapError> {
    let mut outcome = Outcome::default();
    let mut arrived = Vec::new();
    let mut ways: BTreeMap<RecordKey, (StoreId, u8)> = BTreeMap::new();
    for Parcel { from, content } in parcels {
        let (what, opened) = match content {
            Content::Push(bytes) => ("a push", open_push(map, &bytes)),
            Content::Pulled(sent) => ("a pulled answer", open(map, sent).map(|opened| (0, opened))),
        };
        match opened {
            Ok((hops, Opened { records, newer })) => {
                for (key, why) in newer {
                    outcome.refused.push((from, key.to_string(), why.to_string()));
                }
                for (key, record) in records {
                    let way = ways.entry(key.clone()).or_insert((from, hops));
                    if hops < way.1 {
                        *way = (from, hops);
                    }
                    arrived.push(Arrived { from, key, record });
                }
            }
            Err(why) => {
                outcome.hostile = true;
                outcome.refused.push((from, what.to_owned(), why.to_string()));
            }
        }
    }
    if !arrived.is_empty() {
        // The core passes on what is new: it knows who brought it.
        let merged = map.take_in(arrived, MAX_HOPS)?;
        for key in merged.changed {
            if let Some((from, hops)) = ways.remove(&key) {
                outcome.changed.push((key, from, hops));
            }
        }
        let refused = merged.refused.into_iter();
        outcome.refused.extend(refused.map(|it| (it.from, it.key.to_string(), it.why)));
    }
    Ok(Event::Merged(outcome))
}

fn open_push(map: &Map, bytes: &[u8]) -> Result<(u8, Opened), Hostile> {
    let Push { hops, records } = message::decode(bytes)?;
    Ok((hops, open(map, records)?))
}

/// Reads the records of a message that are not here already, byte for byte: most pushes bring
/// what another peer brought before.
fn open(map: &Map, mut sent: Vec<Sent>) -> Result<Opened, Hostile> {
    sent.retain(|(key, bytes)| {
        let present = RecordKey::from_bytes(key).and_then(|key| map.tree().get(&key));
        present != Some(value_hash(bytes))
    });
    message::open(&sent)
}

/// Answers a peer's question, as bytes.
pub(crate) fn answer(map: &Map, request: Request) -> Result<Bytes, String> {
    let response = respond(map, request).map_err(|failure| {
        tracing::error!(%failure, "could not answer a pull of the map");
        failure.to_string()
    })?;
    message::encode(&response).map_err(|why| why.to_string())
}

pub(super) fn respond(map: &Map, request: Request) -> Result<Response, MapError> {
    Ok(match request {
        Request::Summaries(paths) => {
            let tree = map.tree();
            let summary = |path| WireSummary::from(tree.summary(path));
            Response::Summaries(paths.iter().map(summary).collect())
        }
        Request::Records(keys) => {
            let (mut records, mut size) = (Vec::new(), 0);
            for key in keys.iter().filter_map(|key| RecordKey::from_bytes(key)) {
                if size > MAX_PAGE {
                    break;
                }
                if let Some(bytes) = map.inner.store.get(&key)? {
                    size += key.as_bytes().len() + bytes.len();
                    records.push(sent(&key, bytes));
                }
            }
            Response::Records(records)
        }
        Request::Page(after) => {
            let after = after.and_then(|key| RecordKey::from_bytes(&key));
            let page = map.inner.store.page(after.as_ref(), MAX_PAGE)?;
            let more = !page.is_empty();
            let records = page.into_iter().map(|(key, bytes)| sent(&key, bytes)).collect();
            Response::Page { records, more }
        }
    })
}

pub(super) fn sent(key: &RecordKey, bytes: Vec<u8>) -> Sent {
    (Bytes::copy_from_slice(key.as_bytes()), Bytes::from(bytes))
}

//! What two maps say to each other, as bytes. Each message has a version byte and a largest
//! size. Bytes that no node writes must be refused whole, before anything is changed.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::map::encoding::{self, DecodeError};
use crate::map::key::RecordKey;
use crate::map::record::Record;
use crate::map::tree::{Hash, Path, Summary};

/// The version of the messages.
const VERSION: u8 = 1;
/// Most bytes of records in one push; the frame's limit is 1 MiB.
pub(super) const MAX_PUSH: usize = 512 * 1024;
/// Most bytes of records in one answer; the frame's limit is 4 MiB.
pub(super) const MAX_PAGE: usize = 2 * 1024 * 1024;
/// Most parts of the tree in one question.
pub(super) const MAX_PATHS: usize = 256;
/// Most records in one question.
pub(super) const MAX_KEYS: usize = 1_024;

/// A record as sent: key and canonical bytes.
pub(crate) type Sent = (Bytes, Bytes);

/// Changed records, at once, to a few peers.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Push {
    /// How many nodes they have come through.
    pub hops: u8,
    pub records: Vec<Sent>,
}

/// A question of a node that pulls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Request {
    /// What lies in these parts of the tree?
    Summaries(Vec<Path>),
    /// What do these records say?
    Records(Vec<Bytes>),
    /// Which records come after this key?
    Page(Option<Bytes>),
}

/// The answer.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Response {
    /// One for each part that was asked about.
    Summaries(Vec<WireSummary>),
    /// At least the first of the records that there are; the rest may be asked for again.
    Records(Vec<Sent>),
    /// Some records in order, and whether there are more.
    Page { records: Vec<Sent>, more: bool },
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum WireSummary {
    Leaf(Vec<(Bytes, Hash)>),
    Inner(u64, Box<[Hash; 16]>),
}

/// Why a message is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Hostile {
    #[error("the message has version {0}, this node knows version {VERSION}")]
    Version(u8),
    #[error("the message does not parse")]
    Parse,
    #[error("the message has too many parts")]
    TooMany,
    #[error("a key in it is none")]
    Key,
    #[error("{key} in it is no record: {why}")]
    Record { key: RecordKey, why: DecodeError },
    #[error("the answer does not fit the question")]
    Answer,
}

pub(super) fn encode<T: Serialize>(message: &T) -> Result<Bytes, Hostile> {
    let bytes = postcard::to_extend(message, vec![VERSION]);
    bytes.map(Bytes::from).map_err(|_refused| Hostile::Parse)
}

pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Hostile> {
    match bytes.split_first() {
        Some((&VERSION, body)) => match postcard::take_from_bytes(body) {
            Ok((message, [])) => Ok(message),
            Ok(_) | Err(_) => Err(Hostile::Parse),
        },
        Some((version, _)) => Err(Hostile::Version(*version)),
        None => Err(Hostile::Parse),
    }
}

pub(super) fn decode_request(bytes: &[u8]) -> Result<Request, Hostile> {
    let request: Request = decode(bytes)?;
    let (count, most) = match &request {
        Request::Summaries(paths) => (paths.len(), MAX_PATHS),
        Request::Records(keys) => (keys.len(), MAX_KEYS),
        Request::Page(_) => (0, 0),
    };
    match &request {
        _ if count > most => Err(Hostile::TooMany),
        Request::Summaries(paths) if !paths.iter().all(Path::is_sound) => Err(Hostile::Parse),
        _ => Ok(request),
    }
}

/// Records that were read, and the keys of those that only a newer version can read.
#[derive(Debug, Default)]
pub(super) struct Opened {
    pub records: Vec<(RecordKey, Record)>,
    pub newer: Vec<(RecordKey, DecodeError)>,
}

/// Reads all records of a message, or none.
pub(super) fn open(sent: &[Sent]) -> Result<Opened, Hostile> {
    let mut opened = Opened::default();
    for (key, bytes) in sent {
        let key = RecordKey::from_bytes(key).ok_or(Hostile::Key)?;
        match encoding::decode(bytes) {
            Ok(record) => opened.records.push((key, record)),
            Err(why @ DecodeError::Newer(_)) => opened.newer.push((key, why)),
            Err(why) => return Err(Hostile::Record { key, why }),
        }
    }
    Ok(opened)
}

impl From<Summary> for WireSummary {
    fn from(summary: Summary) -> Self {
        match summary {
            Summary::Inner { count, parts } => Self::Inner(count, parts),
            Summary::Leaf(entries) => Self::Leaf(
                entries
                    .into_iter()
                    .map(|(key, hash)| (Bytes::copy_from_slice(key.as_bytes()), hash))
                    .collect(),
            ),
        }
    }
}

impl TryFrom<WireSummary> for Summary {
    type Error = Hostile;

    fn try_from(wire: WireSummary) -> Result<Self, Hostile> {
        Ok(match wire {
            WireSummary::Inner(count, parts) => Self::Inner { count, parts },
            WireSummary::Leaf(entries) => {
                let entry = |(key, hash): (Bytes, Hash)| {
                    RecordKey::from_bytes(&key).map(|key| (key, hash)).ok_or(Hostile::Key)
                };
                Self::Leaf(entries.into_iter().map(entry).collect::<Result<_, _>>()?)
            }
        })
    }
}

//! Reads every gossip message whole before chitchat's decoder may: its form, its decompressed
//! size, and how much it would make this node remember. Only what honest nodes of this protocol
//! send passes. The guard never changes a message, and knows nothing of who is alive.
//!
//! Why: chitchat 0.11.2 decompresses without a bound, keeps any state of any node that any peer
//! tells it of, lets a peer write this node's own state, and asserts on versions that a peer
//! chose. The form read here is that of its `message.rs`, `digest.rs`, `delta.rs` and
//! `serialize.rs`; a test passes real chitchat messages through it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv6Addr, SocketAddr};

use flocker_base::StoreId;

use super::chat_id;

/// The most states (a node's run each) that are gossiped about. A digest entry has 54 bytes. With
/// more than 909, less than one compression block is left beside the digest in chitchat's 65,507
/// bytes, and 0.11.2 can then panic: its writer and its encoder cut blocks at different places.
pub const MAX_STATES: usize = 900;

/// The most bytes of a node's state: keys and values.
pub const MAX_STATE_BYTES: usize = 2048;

/// The most bytes of those that a node announces of itself. The rest is for what it says of rosters
/// as a bridge.
pub const MAX_ANNOUNCED_BYTES: usize = MAX_STATE_BYTES - 680;

/// The most keys that a node announces.
pub const MAX_KEYS: usize = 16;

/// Keys of membership's own beside those.
const OTHER_KEYS: usize = 4;

/// The longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 16;

/// The longest value, in bytes.
pub const MAX_VALUE_BYTES: usize = 1024;

/// What is remembered of one state. Twice what a node announces: while an update is under way,
/// the old and the new lengths of values mix.
const MAX_HELD_BYTES: usize = 2 * MAX_STATE_BYTES;
const MAX_HELD_KEYS: usize = 2 * (MAX_KEYS + OTHER_KEYS);

/// A compression block holds at most this many bytes (chitchat's `BLOCK_THRESHOLD`).
const BLOCK_BYTES: usize = 16_384;

/// The most a message's blocks hold in all: every state in full.
const MAX_DELTA_BYTES: usize = MAX_STATES * (MAX_STATE_BYTES + 256);
const MAX_BLOCKS: usize = MAX_DELTA_BYTES.div_ceil(BLOCK_BYTES);

#[cfg(test)]
pub(super) mod tests;

const MAGIC: [u8; 2] = 45_139_u16.to_le_bytes();
const VERSION: u8 = 0;
const IPV6: u8 = 6;

/// Why a message is not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Reject {
    #[error("it is cut short or has bytes too many")]
    Length,
    #[error("it is no gossip message of a version that this node speaks")]
    Form,
    #[error("it is of another pool or cluster")]
    Cluster,
    #[error("it names a node in a way that no node of ours does")]
    Name,
    #[error("a compressed block in it can't be read, or there are more than {MAX_BLOCKS}")]
    Blocks,
    #[error("versions in it are out of order")]
    Versions,
    #[error("a key or value in it is longer than allowed")]
    Value,
    #[error("it tells this node what this node itself says")]
    Own,
    #[error("it would make this node remember more than {MAX_STATES} states")]
    States,
    #[error("it would make this node remember too much of one state")]
    Held,
}

/// A node's run.
pub(super) type StateId = (StoreId, u64);

/// Whether this text may be a key.
pub(super) fn is_key(key: &str) -> bool {
    (1..=MAX_KEY_BYTES).contains(&key.len())
        && key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// The guard, with a ledger of what the messages it passed make chitchat remember.
#[derive(Debug)]
pub(super) struct Guard {
    me: StoreId,
    pool: String,
    generation: Option<u64>,
    ledger: BTreeMap<StateId, BTreeMap<String, usize>>,
}

impl Guard {
    pub(super) fn new(me: StoreId, pool: String) -> Self {
        Self { me, pool, generation: None, ledger: BTreeMap::new() }
    }

    /// Begins a run of this node with this generation: nothing is remembered.
    pub(super) fn begin(&mut self, generation: u64) {
        self.generation = Some(generation);
        self.ledger.clear();
    }

    /// Strikes from the ledger what chitchat no longer holds.
    pub(super) fn keep(&mut self, held: &[StateId]) {
        let held: BTreeSet<&StateId> = held.iter().collect();
        self.ledger.retain(|id, _| held.contains(id));
    }

    /// Whether this message may reach chitchat.
    pub(super) fn admit(&mut self, message: &[u8]) -> Result<(), Reject> {
        let contents = self.read(message)?;
        let new: BTreeSet<&StateId> =
            contents.states.iter().filter(|id| !self.ledger.contains_key(id)).collect();
        // This node's own state is one of them, whether or not a peer has told of it yet: peers
        // refuse a digest of more.
        let own = self.generation.map(|generation| (self.me, generation));
        let own = own.filter(|id| !self.ledger.contains_key(id) && !new.contains(id));
        if self.ledger.len() + new.len() + usize::from(own.is_some()) > MAX_STATES {
            return Err(Reject::States);
        }
        for id in &contents.states {
            self.ledger.entry(*id).or_default();
        }
        for (id, key, len) in contents.values {
            // Chitchat takes values only of states that it knows from a digest.
            let Some(keys) = self.ledger.get_mut(&id) else { continue };
            let others: usize = keys.iter().filter(|(k, _)| **k != key).map(|(_, l)| l).sum();
            let is_new = !keys.contains_key(&key);
            if others + len > MAX_HELD_BYTES || (is_new && keys.len() >= MAX_HELD_KEYS) {
                return Err(Reject::Held);
            }
            keys.insert(key, len);
        }
        Ok(())
    }

    /// How many states are remembered.
    #[cfg(test)]
    pub(super) fn states(&self) -> usize {
        self.ledger.len()
    }

    /// Panics unless the ledger is within its bounds.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn check_bounds(&self) {
        assert!(self.ledger.len() <= MAX_STATES, "{} states", self.ledger.len());
        for (id, keys) in &self.ledger {
            assert!(keys.len() <= MAX_HELD_KEYS, "{} keys of {id:?}", keys.len());
            let bytes = keys.values().sum::<usize>();
            assert!(bytes <= MAX_HELD_BYTES, "{bytes} bytes of {id:?}");
        }
    }

    fn read(&self, message: &[u8]) -> Result<Contents, Reject> {
        let mut reader = Reader(message);
        if reader.bytes(2)? != MAGIC || reader.u8()? != VERSION {
            return Err(Reject::Form);
        }
        let mut contents = Contents::default();
        match reader.u8()? {
            0 => {
                contents.read_digest(&mut reader)?;
                if reader.text(64)? != self.pool {
                    return Err(Reject::Cluster);
                }
            }
            1 => {
                contents.read_digest(&mut reader)?;
                contents.read_delta(&mut reader)?;
            }
            2 => contents.read_delta(&mut reader)?,
            3 => {}
            _ => return Err(Reject::Form),
        }
        if !reader.0.is_empty() {
            return Err(Reject::Length);
        }
        if self.generation.is_some_and(|g| contents.told.contains(&(self.me, g))) {
            return Err(Reject::Own);
        }
        Ok(contents)
    }
}

/// What a message mentions.
#[derive(Default)]
struct Contents {
    /// States in its digest.
    states: Vec<StateId>,
    /// States that its delta says something of. Chitchat remembers them only if it knows them
    /// from a digest.
    told: BTreeSet<StateId>,
    values: Vec<(StateId, String, usize)>,
}

impl Contents {
    fn read_digest(&mut self, reader: &mut Reader<'_>) -> Result<(), Reject> {
        let count = usize::from(reader.u16()?);
        if count > MAX_STATES {
            return Err(Reject::States);
        }
        for _ in 0..count {
            self.states.push(reader.state_id()?);
            let _heartbeat = reader.u64()?;
            // No key is ever deleted in this protocol, so none is ever collected.
            if reader.u64()? != 0 {
                return Err(Reject::Versions);
            }
            let _max_version = reader.u64()?;
        }
        Ok(())
    }

    fn read_delta(&mut self, reader: &mut Reader<'_>) -> Result<(), Reject> {
        let bytes = reader.blocks()?;
        let mut reader = Reader(&bytes);
        let mut current: Option<(StateId, Option<u64>, bool)> = None;
        while !reader.0.is_empty() {
            match (reader.u8()?, &mut current) {
                (0, current) => {
                    let id = reader.state_id()?;
                    if reader.u64()? != 0 {
                        return Err(Reject::Versions);
                    }
                    let _from_version = reader.u64()?;
                    if !self.told.insert(id) || self.told.len() > MAX_STATES {
                        return Err(Reject::States);
                    }
                    *current = Some((id, None, false));
                }
                (1, Some((id, newest, false))) => {
                    let key = reader.text(MAX_KEY_BYTES)?;
                    let value = reader.text(MAX_VALUE_BYTES)?;
                    let version = reader.u64()?;
                    if newest.is_some_and(|n| version <= n) || version == 0 || reader.u8()? != 0 {
                        return Err(Reject::Versions);
                    }
                    if !is_key(key) {
                        return Err(Reject::Value);
                    }
                    *newest = Some(version);
                    self.values.push((*id, key.to_owned(), key.len() + value.len()));
                }
                (2, Some((_, None, closed @ false))) => {
                    let _max_version = reader.u64()?;
                    *closed = true;
                }
                _ => return Err(Reject::Versions),
            }
        }
        Ok(())
    }
}

/// Reads from the front; what is too short is an error.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, len: usize) -> Result<&'a [u8], Reject> {
        let (front, rest) = self.0.split_at_checked(len).ok_or(Reject::Length)?;
        self.0 = rest;
        Ok(front)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Reject> {
        let (front, rest) = self.0.split_first_chunk().ok_or(Reject::Length)?;
        self.0 = rest;
        Ok(*front)
    }

    fn u8(&mut self) -> Result<u8, Reject> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, Reject> {
        self.array().map(u16::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Reject> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self, most: usize) -> Result<&'a str, Reject> {
        let len = usize::from(self.u16()?);
        if len > most {
            return Err(Reject::Value);
        }
        std::str::from_utf8(self.bytes(len)?).map_err(|_why| Reject::Form)
    }

    fn state_id(&mut self) -> Result<StateId, Reject> {
        let name = self.text(chat_id::NAME.len()).map_err(|_why| Reject::Name)?;
        let generation = self.u64()?;
        if name != chat_id::NAME || self.u8()? != IPV6 {
            return Err(Reject::Name);
        }
        let ip = Ipv6Addr::from(self.array::<16>()?);
        let address = SocketAddr::from((ip, self.u16()?));
        Ok((chat_id::store(address).ok_or(Reject::Name)?, generation))
    }

    /// The content of a stream of blocks, each stored or compressed, to its end mark.
    fn blocks(&mut self) -> Result<Vec<u8>, Reject> {
        let mut all = Vec::new();
        let mut block = vec![0; BLOCK_BYTES];
        let mut decompressor = zstd::bulk::Decompressor::new().map_err(|_why| Reject::Blocks)?;
        for _ in 0..=MAX_BLOCKS {
            match self.u8()? {
                0 => return Ok(all),
                1 => {
                    let len = usize::from(self.u16()?);
                    let packed = self.bytes(len)?;
                    let len = decompressor
                        .decompress_to_buffer(packed, &mut block[..])
                        .map_err(|_why| Reject::Blocks)?;
                    all.extend_from_slice(block.get(..len).ok_or(Reject::Blocks)?);
                }
                2 => {
                    let len = usize::from(self.u16()?);
                    if len > BLOCK_BYTES {
                        return Err(Reject::Blocks);
                    }
                    all.extend_from_slice(self.bytes(len)?);
                }
                _ => return Err(Reject::Form),
            }
        }
        Err(Reject::Blocks)
    }
}

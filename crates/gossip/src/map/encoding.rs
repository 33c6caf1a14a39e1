//! The canonical bytes of a record, as stored, hashed and sent: equal records have equal bytes
//! and nothing else decodes. Bytes that are not canonical must be refused, never repaired.
//!
//! ```text
//!   version u8 = 1, then postcard of `Wire`: vectors sorted, clocks by store, siblings by rank
//! ```

use std::collections::BTreeMap;

use crdts::VClock;
use flocker_base::{Epoch, StoreId};
use serde::{Deserialize, Serialize};

use super::record::{FieldId, Intent, IntentState, Placed, Record, Tombstone};
use super::register::{Register, Sibling};
use super::stamp::Stamp;

/// The version of the bytes that this binary writes.
pub const VERSION: u8 = 1;
/// Largest record, in bytes.
pub const MAX_RECORD: usize = 256 * 1024;
/// Most concurrent values of one field.
pub const MAX_SIBLINGS: usize = 256;

/// Why bytes are not a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A version that this binary does not know.
    #[error("it has version {0}, this node knows up to {VERSION}: upgrade this node")]
    Newer(u8),
    /// Over [`MAX_RECORD`].
    #[error("it has {0} bytes, the limit is {MAX_RECORD}")]
    TooLarge(usize),
    /// Not the bytes that any node writes.
    #[error("its bytes are malformed: {0}")]
    Malformed(&'static str),
}

#[derive(Serialize, Deserialize)]
enum Wire {
    Live { life: u32, fields: Vec<(FieldId, Vec<WireSibling>)> },
    Deleted { life: u32, stamp: Stamp, actor: StoreId, label: String },
    Placed { epoch: Epoch, sequence: u64, holder: StoreId, content: Vec<(FieldId, Vec<u8>)> },
}

/// The stamp is the writer's own entry in the clock and not repeated.
#[derive(Serialize, Deserialize)]
struct WireSibling {
    clock: Vec<(StoreId, u64)>,
    writer: u16,
    bytes: Vec<u8>,
}

/// The canonical bytes of a record.
///
/// # Errors
/// [`DecodeError::TooLarge`] if no node would take them.
pub fn encode(record: &Record) -> Result<Vec<u8>, DecodeError> {
    let wire = match record {
        Record::Placed(placed) => Wire::Placed {
            epoch: placed.epoch,
            sequence: placed.sequence,
            holder: placed.holder,
            content: placed.content.iter().map(|(id, bytes)| (*id, bytes.clone())).collect(),
        },
        Record::Intent(Intent { life, state: IntentState::Deleted(tombstone) }) => Wire::Deleted {
            life: *life,
            stamp: tombstone.stamp,
            actor: tombstone.actor,
            label: tombstone.label.clone(),
        },
        Record::Intent(Intent { life, state: IntentState::Live(fields) }) => Wire::Live {
            life: *life,
            fields: fields
                .iter()
                .map(|(id, register)| Ok((*id, wire_siblings(register)?)))
                .collect::<Result<_, _>>()?,
        },
    };
    let bytes = postcard::to_extend(&wire, vec![VERSION])
        .map_err(|_refused| DecodeError::Malformed("a value cannot be written"))?;
    if bytes.len() > MAX_RECORD { Err(DecodeError::TooLarge(bytes.len())) } else { Ok(bytes) }
}

fn wire_siblings(register: &Register) -> Result<Vec<WireSibling>, DecodeError> {
    let siblings = register.siblings();
    if siblings.len() > MAX_SIBLINGS {
        return Err(DecodeError::Malformed("too many concurrent values"));
    }
    let wire = |sibling: &Sibling| {
        let clock: Vec<(StoreId, u64)> =
            sibling.clock.dots.iter().map(|(actor, count)| (*actor, *count)).collect();
        let at = clock.iter().position(|(actor, _)| *actor == sibling.actor);
        let writer = at
            .and_then(|at| u16::try_from(at).ok())
            .ok_or(DecodeError::Malformed("a value whose writer is not in its clock"))?;
        Ok(WireSibling { clock, writer, bytes: sibling.bytes.clone() })
    };
    siblings.iter().map(wire).collect()
}

/// Reads canonical bytes.
///
/// # Errors
/// [`DecodeError`] on anything else.
pub fn decode(bytes: &[u8]) -> Result<Record, DecodeError> {
    let record = decode_own(bytes)?;
    if encode(&record)? != bytes {
        return Err(DecodeError::Malformed("it is not in canonical form"));
    }
    Ok(record)
}

/// Reads canonical bytes that this node wrote and whose checksum it has just compared.
pub(super) fn decode_own(bytes: &[u8]) -> Result<Record, DecodeError> {
    if bytes.len() > MAX_RECORD {
        return Err(DecodeError::TooLarge(bytes.len()));
    }
    match bytes.split_first() {
        None => Err(DecodeError::Malformed("it is empty")),
        Some((&VERSION, body)) => record_of(body),
        Some((version, _)) if *version > VERSION => Err(DecodeError::Newer(*version)),
        Some(_) => Err(DecodeError::Malformed("version 0")),
    }
}

fn record_of(body: &[u8]) -> Result<Record, DecodeError> {
    let wire: Wire = postcard::from_bytes(body)
        .map_err(|_refused| DecodeError::Malformed("it does not parse"))?;
    Ok(match wire {
        Wire::Placed { epoch, sequence, holder, content } => {
            let content = content.into_iter().collect::<BTreeMap<_, _>>();
            Record::Placed(Placed { epoch, sequence, holder, content })
        }
        Wire::Deleted { life, stamp, actor, label } => {
            if life % 2 == 0 {
                return Err(DecodeError::Malformed("a deleted record with an even life"));
            }
            let state = IntentState::Deleted(Tombstone { stamp, actor, label });
            Record::Intent(Intent { life, state })
        }
        Wire::Live { life, fields } => {
            if life % 2 != 0 {
                return Err(DecodeError::Malformed("a live record with an odd life"));
            }
            let mut registers = BTreeMap::new();
            for (id, siblings) in fields {
                registers.insert(id, register_of(siblings)?);
            }
            Record::Intent(Intent { life, state: IntentState::Live(registers) })
        }
    })
}

fn register_of(wire: Vec<WireSibling>) -> Result<Register, DecodeError> {
    if wire.is_empty() || wire.len() > MAX_SIBLINGS {
        return Err(DecodeError::Malformed("a field with no value or too many"));
    }
    let mut siblings: Vec<Sibling> = Vec::with_capacity(wire.len());
    for WireSibling { clock, writer, bytes } in wire {
        let Some(&(actor, stamp)) = clock.get(usize::from(writer)) else {
            return Err(DecodeError::Malformed("a value whose writer is not in its clock"));
        };
        if clock.iter().any(|(_, count)| *count == 0) {
            return Err(DecodeError::Malformed("a clock that counts from nothing"));
        }
        let clock = VClock { dots: clock.into_iter().collect() };
        let sibling = Sibling { clock, stamp: Stamp::from_u64(stamp), actor, bytes };
        if siblings.iter().any(|other| !other.concurrent(&sibling)) {
            return Err(DecodeError::Malformed("a value beside one that replaces it"));
        }
        siblings.push(sibling);
    }
    Ok(Register::of(siblings))
}

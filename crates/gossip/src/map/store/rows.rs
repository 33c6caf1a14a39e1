//! The bytes of a row: a checksum over table, key and bytes, then the bytes; and the totals that
//! the records must add up to. A row must never be read under another's key.

use crate::map::MapError;
use crate::map::key::RecordKey;
use crate::map::stamp::Stamp;

const TOTALS_VERSION: u8 = 1;
const TOTALS_LEN: usize = 1 + 8 + 8 + 16;
pub(super) const CHECKSUM_LEN: usize = 16;

pub(super) type Checksum = [u8; CHECKSUM_LEN];

/// What the records must add up to, so that a record that is gone is missed, and the mark of the
/// hybrid clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::map) struct Totals {
    pub(in crate::map) mark: Stamp,
    pub(in crate::map) records: u64,
    /// The sum of the records' checksums, which needs no order.
    pub(super) sum: u128,
}

impl Totals {
    pub(super) fn add(&mut self, sum: Checksum) {
        self.records += 1;
        self.sum = self.sum.wrapping_add(u128::from_le_bytes(sum));
    }

    pub(super) const fn take(&mut self, sum: Checksum) {
        self.records = self.records.saturating_sub(1);
        self.sum = self.sum.wrapping_sub(u128::from_le_bytes(sum));
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![TOTALS_VERSION];
        bytes.extend(self.mark.as_u64().to_le_bytes());
        bytes.extend(self.records.to_le_bytes());
        bytes.extend(self.sum.to_le_bytes());
        bytes.extend(&blake3::hash(&bytes).as_bytes()[..CHECKSUM_LEN]);
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, MapError> {
        let bad = |why| damaged("its totals", why);
        if bytes.first() != Some(&TOTALS_VERSION) || bytes.len() != TOTALS_LEN + CHECKSUM_LEN {
            return Err(bad("they are not of a version that this binary knows"));
        }
        let (body, sum) = bytes.split_at(TOTALS_LEN);
        if &blake3::hash(body).as_bytes()[..CHECKSUM_LEN] != sum {
            return Err(bad("the checksum does not match"));
        }
        let number = |at: usize| {
            let mut eight = [0; 8];
            eight.copy_from_slice(&body[at..at + 8]);
            u64::from_le_bytes(eight)
        };
        let sum = u128::from(number(17)) | u128::from(number(25)) << 64;
        Ok(Self { mark: Stamp::from_u64(number(1)), records: number(9), sum })
    }
}

pub(super) fn damaged(what: impl Into<String>, why: &'static str) -> MapError {
    MapError::Damaged { what: what.into(), why }
}

pub(super) fn checksum(domain: &[u8], key: &[u8], bytes: &[u8]) -> Checksum {
    let mut hasher = blake3::Hasher::new();
    hasher.update(domain);
    hasher.update(&[u8::try_from(key.len() % 251).unwrap_or(0)]);
    hasher.update(key);
    hasher.update(bytes);
    let mut sum = [0; CHECKSUM_LEN];
    sum.copy_from_slice(&hasher.finalize().as_bytes()[..CHECKSUM_LEN]);
    sum
}

/// The bytes in a row, if they are those that were put there under this key.
pub(super) fn open<'a>(
    domain: &[u8],
    key: &[u8],
    row: &'a [u8],
) -> Result<(Checksum, &'a [u8]), &'static str> {
    match row.split_first_chunk::<CHECKSUM_LEN>() {
        Some((sum, bytes)) if checksum(domain, key, bytes) == *sum => Ok((*sum, bytes)),
        Some(_) => Err("the checksum does not match"),
        None => Err("it is cut short"),
    }
}

pub(super) fn name_of(key: &[u8]) -> String {
    RecordKey::from_bytes(key).map_or_else(
        || format!("key {}", data_encoding::HEXLOWER.encode(key)),
        |key| key.to_string(),
    )
}

//! Edits that wait on this node for a volume's master: made while it could not be reached, kept on
//! disk, shown, then made by the master, or refused by it and kept until a person drops them. An
//! edit must never be lost, nor made twice with effect.

use flocker_base::WallTime;
use serde::{Deserialize, Serialize};

use super::amendment::Amendment;

/// Most edits that wait or were refused; more are refused at once.
pub const MAX_PENDING: usize = 1_024;
/// Name of the note that says which number was given last.
pub(super) const LAST_NUMBER: &str = "pending";
const VERSION: u8 = 1;

/// An edit that waits, or was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// What is to be done.
    pub amendment: Amendment,
    /// When it was asked for.
    pub made: WallTime,
    /// Why the master refused it, if it did.
    pub refused: Option<String>,
}

impl Pending {
    pub(super) fn encode(&self) -> Vec<u8> {
        // Writing into memory does not fail for these types; an empty row would be damaged.
        postcard::to_extend(self, vec![VERSION]).unwrap_or_default()
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (version, body) = bytes.split_first()?;
        (*version == VERSION).then(|| postcard::from_bytes(body).ok()).flatten()
    }
}

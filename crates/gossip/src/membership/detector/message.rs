//! The watch's messages and their bytes. Later versions may append fields to a message and add
//! messages: what follows the known fields is ignored, a message of an unknown number is dropped.

use flocker_base::{Incarnation, StoreId};
use serde::{Deserialize, Serialize};

use super::{Digest, Why};

/// The largest message, in bytes.
const MAX_MESSAGE: usize = 8 << 10;

/// The most items in one message. An item has at most 60 bytes.
pub(super) const MAX_ITEMS: usize = 128;

/// The first byte of every message.
const VERSION: u8 = 1;

/// A message of one watch to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::membership) enum Message {
    /// Answer, please.
    Ping(Greeting),
    /// The answer.
    Pong(Greeting),
    /// Do you hear this member?
    Ask { subject: StoreId, incarnation: Incarnation },
    /// So long this member was not heard here, and so many pings it left unanswered since.
    Tell { subject: StoreId, incarnation: Incarnation, unheard_ms: u32, misses: u8 },
    /// Who died and who lives.
    News(Vec<Item>),
}

/// What a sender says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::membership) struct Greeting {
    pub(super) incarnation: Incarnation,
    /// A hash of the news that it holds.
    pub(super) news: Digest,
}

/// Whether one run of a member lives. Of two about the same run the one of the higher round
/// counts, and of the same round the one that says it is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::membership) struct Item {
    pub(super) store: StoreId,
    pub(super) incarnation: Incarnation,
    /// Raised by the subject with each refutation.
    pub(super) round: u32,
    pub(super) death: Option<Notice>,
}

/// A conviction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::membership) struct Notice {
    /// Who convicted it.
    pub(super) by: StoreId,
    /// On what: see [`Notice::why`].
    pub(super) reason: u8,
    /// How long ago.
    pub(super) age_ms: u32,
}

impl Notice {
    pub(super) fn why(&self) -> Why {
        if self.reason == 1 { Why::Refused } else { Why::Silent }
    }
}

impl Why {
    pub(super) const fn number(self) -> u8 {
        match self {
            Self::Silent => 0,
            Self::Refused => 1,
        }
    }
}

impl Message {
    /// Its bytes, at most [`MAX_MESSAGE`] if it has at most [`MAX_ITEMS`].
    pub(in crate::membership) fn encode(&self) -> Vec<u8> {
        // Writing to memory can't fail, and every field can be written.
        postcard::to_extend(self, vec![VERSION]).unwrap_or_default()
    }

    /// Reads a message; `None` if it is none, or too large.
    pub(in crate::membership) fn decode(bytes: &[u8]) -> Option<Self> {
        let (version, body) = bytes.split_first()?;
        if *version != VERSION || bytes.len() > MAX_MESSAGE {
            return None;
        }
        let (message, _later_fields) = postcard::take_from_bytes(body).ok()?;
        match &message {
            Self::News(items) if items.len() > MAX_ITEMS => None,
            _ => Some(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn item(round: u32) -> Item {
        Item {
            store: StoreId::from_bytes([7; 16]),
            incarnation: Incarnation(u64::MAX),
            round,
            death: Some(Notice { by: StoreId::from_bytes([8; 16]), reason: 1, age_ms: u32::MAX }),
        }
    }

    #[test]
    fn the_form_is_fixed_and_small_and_later_fields_are_ignored() {
        let greeting = Greeting { incarnation: Incarnation(3), news: [2; 4] };
        let mut golden = vec![VERSION, 0, 3, 2, 2, 2, 2];
        assert_eq!(Message::Ping(greeting).encode(), golden);
        golden.extend([9, 9, 9]);
        assert_eq!(Message::decode(&golden), Some(Message::Ping(greeting)));
        golden[1] = 200;
        assert_eq!(Message::decode(&golden), None, "a message of a later version");
        golden[0] = 2;
        assert_eq!(Message::decode(&golden), None);
        let alive = Item { death: None, incarnation: Incarnation(2), ..item(1) };
        let mut golden = vec![VERSION, 4, 1, 16];
        golden.extend([7; 16]);
        golden.extend([2, 1, 0]);
        assert_eq!(Message::News(vec![alive]).encode(), golden);
    }

    #[test]
    fn the_largest_message_fits_and_more_items_are_refused() {
        let full = Message::News(vec![item(u32::MAX); MAX_ITEMS]);
        let bytes = full.encode();
        assert!(bytes.len() <= MAX_MESSAGE, "{}", bytes.len());
        assert_eq!(Message::decode(&bytes), Some(full));
        let more = Message::News(vec![Item { death: None, ..item(0) }; MAX_ITEMS + 1]);
        assert_eq!(Message::decode(&more.encode()), None);
        assert_eq!(Message::decode(&[VERSION; MAX_MESSAGE + 1]), None);
    }

    proptest! {
        #[test]
        fn hostile_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = Message::decode(&bytes);
            let mut bytes = bytes;
            bytes.insert(0, VERSION);
            let _ = Message::decode(&bytes);
        }
    }
}

//! The words of [`Kind::Roster`](crate::control::Kind::Roster) and of the rosters' announcements:
//! a greeting, by which nodes that know nothing of each other's regions find their pools, and the
//! pull of rosters. Everything read here comes from peers: it is bounded before it is used.

use std::net::SocketAddr;

use data_encoding::BASE64_NOPAD;
use flocker_base::{Name, StoreId};
use serde::{Deserialize, Serialize};

use super::{Digest, MAX_REGIONS, Part, RegionId, Version};

const VERSION: u8 = 1;

/// The longest request, in bytes.
pub(in crate::membership) const MAX_REQUEST: usize = 2048;

/// The most nodes that an answer to a greeting names.
pub(in crate::membership) const MAX_MATES: usize = 16;
pub(in crate::membership) const MAX_BRIDGES: usize = 3 * MAX_REGIONS;

/// What is asked. The order of the variants is the wire form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::membership) enum Request {
    /// This node says where it is, and asks whom it should know.
    Greet(Contact),
    /// It asks for rosters.
    Pull(Vec<Want>),
}

/// A roster that is wanted, or what changed in it since a version of the same server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::membership) struct Want {
    pub(in crate::membership) region: RegionId,
    pub(in crate::membership) since: Option<Version>,
}

/// A node and where it is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::membership) struct Contact {
    pub(in crate::membership) store: StoreId,
    pub(in crate::membership) region: Name,
    pub(in crate::membership) control: SocketAddr,
    pub(in crate::membership) data: SocketAddr,
}

/// The answer to a greeting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::membership) struct Greeting {
    /// The region of the node that answers.
    pub(in crate::membership) region: Name,
    /// Some nodes of the asking node's region that seem to be alive.
    pub(in crate::membership) mates: Vec<Contact>,
    /// The bridges of the other regions.
    pub(in crate::membership) bridges: Vec<Contact>,
}

pub(in crate::membership) fn encode<T: Serialize>(message: &T) -> Option<Vec<u8>> {
    postcard::to_extend(message, vec![VERSION]).ok()
}

/// What follows the known fields is of a later version, and ignored.
fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Option<T> {
    let (version, body) = bytes.split_first()?;
    if *version != VERSION {
        return None;
    }
    postcard::take_from_bytes(body).ok().map(|(message, _later_fields)| message)
}

pub(in crate::membership) fn decode_request(bytes: &[u8]) -> Option<Request> {
    if bytes.len() > MAX_REQUEST {
        return None;
    }
    decode(bytes).filter(|request| match request {
        Request::Greet(_) => true,
        Request::Pull(wants) => wants.len() <= MAX_REGIONS,
    })
}

pub(in crate::membership) fn decode_greeting(bytes: &[u8]) -> Option<Greeting> {
    decode(bytes)
        .filter(|g: &Greeting| g.mates.len() <= MAX_MATES && g.bridges.len() <= MAX_BRIDGES)
}

pub(in crate::membership) fn decode_parts(bytes: &[u8]) -> Option<Vec<Part>> {
    decode(bytes)
        .filter(|parts: &Vec<Part>| parts.len() <= MAX_REGIONS && parts.iter().all(Part::is_sound))
}

/// What a bridge announces of one region's roster to its own region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::membership) struct Notice {
    pub(in crate::membership) region: RegionId,
    pub(in crate::membership) digest: Digest,
    pub(in crate::membership) reach: Reach,
}

/// Whether a region can be reached, as a bridge says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::membership) enum Reach {
    /// It can't.
    Lost = 0,
    /// It hears from it itself.
    Heard = 1,
    /// It has it from other bridges.
    Hearsay = 2,
}

/// Fifteen bytes a notice, as text.
pub(in crate::membership) fn encode_notices(notices: &[Notice]) -> String {
    let mut bytes = Vec::with_capacity(notices.len() * 15);
    for notice in notices.iter().take(MAX_REGIONS) {
        bytes.extend(notice.region.0);
        bytes.extend(notice.digest);
        bytes.push(notice.reach as u8);
    }
    BASE64_NOPAD.encode(&bytes)
}

/// What can't be read is left out.
pub(in crate::membership) fn decode_notices(text: &str) -> Vec<Notice> {
    let bytes = BASE64_NOPAD.decode(text.as_bytes()).unwrap_or_default();
    let read = |chunk: &[u8]| {
        let (region, rest) = chunk.split_first_chunk()?;
        let (digest, rest) = rest.split_first_chunk()?;
        let reach = match rest {
            [0] => Reach::Lost,
            [1] => Reach::Heard,
            [2] => Reach::Hearsay,
            _ => return None,
        };
        Some(Notice { region: RegionId(*region), digest: *digest, reach })
    };
    bytes.chunks(15).take(MAX_REGIONS).filter_map(read).collect()
}

/// The digest of its own region's roster, as a bridge announces it to the others.
pub(in crate::membership) fn encode_digest(digest: Digest) -> String {
    BASE64_NOPAD.encode(&digest)
}

pub(in crate::membership) fn decode_digest(text: &str) -> Option<Digest> {
    BASE64_NOPAD.decode(text.as_bytes()).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Line, MAX_LINES};
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).expect("name")
    }

    fn contact(n: u8) -> Contact {
        let at = |port| SocketAddr::from(([10, 0, 0, n], port));
        let store = StoreId::from_bytes([n; 16]);
        Contact { store, region: name("eu"), control: at(4523), data: at(4524) }
    }

    fn part(lines: usize) -> Part {
        let line = Line { generation: 1 << 16, standing: 0, facts: "abc".to_owned() };
        let store = |n: usize| {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&n.to_le_bytes());
            StoreId::from_bytes(bytes)
        };
        Part {
            region: name("eu"),
            version: Version { edition: 5, number: 2 },
            digest: [1; 8],
            since: None,
            lines: (0..lines).map(|n| (store(n), line.clone())).collect(),
            gone: Vec::new(),
        }
    }

    #[test]
    fn the_forms_are_fixed() {
        let greet = encode(&Request::Greet(contact(1))).expect("encodes");
        let mut golden = vec![1, 0];
        golden.extend([16].iter().chain(&[1; 16]));
        golden.extend(b"\x02eu");
        golden.extend([0, 10, 0, 0, 1, 0xab, 0x23, 0, 10, 0, 0, 1, 0xac, 0x23]);
        assert_eq!(greet, golden);
        assert_eq!(decode_request(&greet), Some(Request::Greet(contact(1))));
        golden.extend(b"later");
        assert_eq!(decode_request(&golden), Some(Request::Greet(contact(1))));
        let since = Some(Version { edition: 3, number: 4 });
        let pull = Request::Pull(vec![Want { region: RegionId([2; 6]), since }]);
        let bytes = encode(&pull).expect("encodes");
        assert_eq!(bytes, [1, 1, 1, 2, 2, 2, 2, 2, 2, 1, 3, 4]);
        assert_eq!(decode_request(&bytes), Some(pull));
        let parts = encode(&vec![part(1)]).expect("encodes");
        let mut golden = b"\x01\x01\x02eu\x05\x02".to_vec();
        golden.extend([1; 8]);
        golden.extend([0, 1, 16]);
        golden.extend([0; 16]);
        golden.extend(b"\x80\x80\x04\x00\x03abc\x00");
        assert_eq!(parts, golden);
        assert_eq!(decode_parts(&parts), Some(vec![part(1)]));
    }

    #[test]
    fn notices_and_digests_are_read_back_and_fit_a_value() {
        let notice = |n: u8| Notice {
            region: RegionId([n; 6]),
            digest: [n; 8],
            reach: [Reach::Lost, Reach::Heard, Reach::Hearsay][usize::from(n % 3)],
        };
        let all: Vec<_> = (0..32).map(notice).collect();
        let text = encode_notices(&all);
        assert_eq!(text.len(), 640);
        assert_eq!(decode_notices(&text), all);
        assert_eq!(decode_digest(&encode_digest([7; 8])), Some([7; 8]));
        assert_eq!(decode_digest("?"), None);
    }

    #[test]
    fn what_is_over_the_bounds_is_refused() {
        assert!(decode_parts(&encode(&vec![part(MAX_LINES)]).expect("encodes")).is_some());
        assert!(decode_parts(&encode(&vec![part(MAX_LINES + 1)]).expect("encodes")).is_none());
        let many = vec![part(0); MAX_REGIONS + 1];
        assert!(decode_parts(&encode(&many).expect("encodes")).is_none());
        let mut long = part(1);
        long.lines[0].1.facts = "x".repeat(1025);
        assert!(decode_parts(&encode(&vec![long]).expect("encodes")).is_none());
        let want = Want { region: RegionId([0; 6]), since: None };
        let pull = Request::Pull(vec![want; MAX_REGIONS + 1]);
        assert!(decode_request(&encode(&pull).expect("encodes")).is_none());
        let mates = vec![contact(1); MAX_MATES + 1];
        let greeting = Greeting { region: name("eu"), mates, bridges: Vec::new() };
        assert!(decode_greeting(&encode(&greeting).expect("encodes")).is_none());
        assert!(decode_request(&[1; MAX_REQUEST + 1]).is_none());
        // Lengths that promise more than there is take no memory.
        assert!(
            decode_parts(&[
                1, 1, 2, b'e', b'u', 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f
            ])
            .is_none()
        );
    }

    proptest! {
        #[test]
        fn hostile_bytes_do_not_panic(bytes: Vec<u8>, text in ".{0,200}") {
            let with = |version: u8| [&[version][..], &bytes].concat();
            for bytes in [bytes.clone(), with(VERSION)] {
                let _ = decode_request(&bytes);
                let _ = decode_greeting(&bytes);
                let _ = decode_parts(&bytes);
            }
            prop_assert!(decode_notices(&text).len() <= MAX_REGIONS);
            let _ = decode_digest(&text);
        }

        #[test]
        fn a_flipped_bit_is_no_panic(position: usize, bit in 0_u8..8) {
            let mut bytes = encode(&vec![part(3)]).expect("encodes");
            let position = position % bytes.len();
            bytes[position] ^= 1 << bit;
            let _ = decode_parts(&bytes);
        }
    }
}

//! How a node's facts and its map's root are written as chitchat values, which are text. A later
//! version may append fields: what follows the known ones is ignored.

use data_encoding::{BASE64_NOPAD, HEXLOWER};

use super::{KEY_FACTS, MAX_VALUE_BYTES, ValueError};
use crate::model::NodeFacts;

const VERSION: u8 = 1;

/// The longest version string of a binary that is shown.
const MAX_BINARY_VERSION: usize = 64;

pub(super) fn encode(facts: &NodeFacts) -> Result<String, ValueError> {
    let too_long = |len| ValueError::Long { key: KEY_FACTS.to_owned(), len };
    let bytes = postcard::to_extend(facts, vec![VERSION]).map_err(|_why| too_long(usize::MAX))?;
    let text = BASE64_NOPAD.encode(&bytes);
    if text.len() > MAX_VALUE_BYTES || facts.version.len() > MAX_BINARY_VERSION {
        return Err(too_long(text.len()));
    }
    Ok(text)
}

pub(super) fn decode(text: &str) -> Option<NodeFacts> {
    let bytes = BASE64_NOPAD.decode(text.as_bytes()).ok()?;
    let (version, body) = bytes.split_first()?;
    if *version != VERSION {
        return None;
    }
    let (mut facts, _later_fields) = postcard::take_from_bytes::<NodeFacts>(body).ok()?;
    if facts.version.len() > MAX_BINARY_VERSION || facts.version.contains(char::is_control) {
        "?".clone_into(&mut facts.version);
    }
    Some(facts)
}

pub(super) fn encode_root(root: &[u8; 32]) -> String {
    HEXLOWER.encode(root)
}

pub(super) fn decode_root(text: &str) -> Option<[u8; 32]> {
    HEXLOWER.decode(text.as_bytes()).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use flocker_base::Name;
    use proptest::prelude::*;

    use super::*;

    fn facts() -> NodeFacts {
        NodeFacts {
            name: Name::new("a").expect("name"),
            region: Name::new("eu").expect("name"),
            control: "10.0.0.1:4523".parse().expect("address"),
            data: "10.0.0.1:4524".parse().expect("address"),
            http: None,
            version: "0.1.0".to_owned(),
        }
    }

    #[test]
    fn the_form_is_fixed_and_later_fields_are_ignored() {
        let mut golden = b"\x01\x01a\x02eu".to_vec();
        golden.extend([0, 10, 0, 0, 1, 0xab, 0x23, 0, 10, 0, 0, 1, 0xac, 0x23, 0]);
        golden.extend(b"\x050.1.0");
        assert_eq!(encode(&facts()), Ok(BASE64_NOPAD.encode(&golden)));
        golden.extend(b"from a later version");
        assert_eq!(decode(&BASE64_NOPAD.encode(&golden)), Some(facts()));
        golden[0] = 2;
        assert_eq!(decode(&BASE64_NOPAD.encode(&golden)), None);
    }

    #[test]
    fn the_largest_facts_fit_and_larger_ones_are_refused() {
        let mut facts = facts();
        facts.name = Name::new("x".repeat(63)).expect("name");
        facts.region = facts.name.clone();
        facts.control = "[ffff::ffff]:65535".parse().expect("address");
        facts.http = Some(facts.control);
        facts.version = "9".repeat(MAX_BINARY_VERSION);
        assert_eq!(decode(&encode(&facts).expect("fits")), Some(facts.clone()));
        facts.version.push('9');
        assert!(encode(&facts).is_err());
    }

    proptest! {
        #[test]
        fn hostile_texts_do_not_panic(text in ".{0,300}", bytes: Vec<u8>) {
            let _ = (decode(&text), decode_root(&text));
            let mut bytes = bytes;
            bytes.insert(0, VERSION);
            let _ = decode(&BASE64_NOPAD.encode(&bytes));
        }

        #[test]
        fn a_root_round_trips(root: [u8; 32]) {
            prop_assert_eq!(decode_root(&encode_root(&root)), Some(root));
        }
    }
}

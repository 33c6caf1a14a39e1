//! How a node's facts, its map's root and its load are written as chitchat values, which are text.
//! A later version may append fields: what follows the known ones is ignored, and what an earlier
//! one did not write is unknown.

use std::net::SocketAddr;

use data_encoding::{BASE64_NOPAD, HEXLOWER};
use flocker_base::{Name, StoreId};
use serde::{Deserialize, Serialize};

use super::{KEY_FACTS, MAX_VALUE_BYTES, ValueError};
use crate::join::KnownNode;
use crate::model::{Capacity, Load, NodeFacts, PublicAddresses};

const VERSION: u8 = 1;

/// The longest version string of a binary that is shown.
const MAX_BINARY_VERSION: usize = 64;

/// The first form. Its fields are never changed; later ones are appended in [`More`].
#[derive(Serialize, Deserialize)]
struct First {
    name: Name,
    region: Name,
    control: SocketAddr,
    data: SocketAddr,
    http: Option<SocketAddr>,
    version: String,
}

/// What was appended since.
#[derive(Default, Serialize, Deserialize)]
struct More {
    zone: Option<Name>,
    public: Option<PublicAddresses>,
    capacity: Option<Capacity>,
}

pub(super) fn encode(facts: &NodeFacts) -> Result<String, ValueError> {
    let too_long = |len| ValueError::Long { key: KEY_FACTS.to_owned(), len };
    let NodeFacts { name, region, control, data, http, version, zone, public, capacity } =
        facts.clone();
    let first = First { name, region, control, data, http, version };
    let more = More { zone, public, capacity };
    let bytes = postcard::to_extend(&first, vec![VERSION])
        .and_then(|bytes| postcard::to_extend(&more, bytes))
        .map_err(|_why| too_long(usize::MAX))?;
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
    let (first, rest) = postcard::take_from_bytes::<First>(body).ok()?;
    let First { name, region, control, data, http, mut version } = first;
    if version.len() > MAX_BINARY_VERSION || version.contains(char::is_control) {
        "?".clone_into(&mut version);
    }
    // An earlier version wrote nothing here.
    let more = postcard::take_from_bytes::<More>(rest).map(|(more, _later_fields)| more);
    let More { zone, public, capacity } = more.unwrap_or_default();
    Some(NodeFacts { name, region, control, data, http, version, zone, public, capacity })
}

impl Load {
    /// To the nearest step of ten, and no more than a hundred.
    pub(super) fn in_steps(self) -> Self {
        let step = |n: u8| n.min(100).saturating_add(5) / 10 * 10;
        Self { cpu: step(self.cpu), memory: step(self.memory), disk: step(self.disk) }
    }
}

pub(super) fn encode_load(load: Load) -> String {
    HEXLOWER.encode(&[load.cpu, load.memory, load.disk])
}

pub(super) fn decode_load(text: &str) -> Option<Load> {
    let bytes = HEXLOWER.decode(text.as_bytes()).ok()?;
    match bytes[..] {
        [cpu, memory, disk, ..] => Some(Load { cpu, memory, disk }),
        _ => None,
    }
}

pub(super) fn encode_root(root: &[u8; 32]) -> String {
    HEXLOWER.encode(root)
}

pub(super) fn decode_root(text: &str) -> Option<[u8; 32]> {
    HEXLOWER.decode(text.as_bytes()).ok()?.try_into().ok()
}

/// Where a node is reached, the best first: from its own region at its own address, from another at
/// its public one, if it has one.
pub(super) fn whereabouts(store: StoreId, facts: &NodeFacts, is_near: bool) -> KnownNode {
    let (mut control, mut data) = (vec![facts.control], vec![facts.data]);
    if let Some(public) = facts.public {
        let at = if is_near { 1 } else { 0 };
        control.insert(at, public.control);
        data.insert(at, public.data);
    }
    KnownNode { store, control, data }
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
            zone: None,
            public: None,
            capacity: None,
        }
    }

    /// As the first version wrote it.
    fn first_form() -> Vec<u8> {
        let mut golden = b"\x01\x01a\x02eu".to_vec();
        golden.extend([0, 10, 0, 0, 1, 0xab, 0x23, 0, 10, 0, 0, 1, 0xac, 0x23, 0]);
        golden.extend(b"\x050.1.0");
        golden
    }

    #[test]
    fn the_form_is_fixed_and_later_fields_are_ignored() {
        let mut golden = first_form();
        assert_eq!(decode(&BASE64_NOPAD.encode(&golden)), Some(facts()), "yesterday's form");
        golden.extend([0, 0, 0]);
        assert_eq!(encode(&facts()), Ok(BASE64_NOPAD.encode(&golden)));
        golden.extend(b"from a later version");
        assert_eq!(decode(&BASE64_NOPAD.encode(&golden)), Some(facts()));
        let mut all = facts();
        all.zone = Some(Name::new("z1").expect("name"));
        all.public = Some(PublicAddresses { control: all.control, data: all.data });
        all.capacity = Some(Capacity { cpus: 4, memory: 1 << 30, disk: 1 << 40 });
        let mut golden = first_form();
        golden.extend(b"\x01\x02z1");
        golden.extend([1, 0, 10, 0, 0, 1, 0xab, 0x23, 0, 10, 0, 0, 1, 0xac, 0x23]);
        golden.extend([1, 4, 0x80, 0x80, 0x80, 0x80, 4, 0x80, 0x80, 0x80, 0x80, 0x80, 0x20]);
        assert_eq!(encode(&all), Ok(BASE64_NOPAD.encode(&golden)));
        assert_eq!(decode(&BASE64_NOPAD.encode(&golden)), Some(all));
        golden[0] = 2;
        assert_eq!(decode(&BASE64_NOPAD.encode(&golden)), None);
    }

    #[test]
    fn the_largest_facts_fit_and_larger_ones_are_refused() {
        let mut facts = facts();
        facts.name = Name::new("x".repeat(63)).expect("name");
        facts.region = facts.name.clone();
        facts.zone = Some(facts.name.clone());
        facts.control = "[ffff::ffff]:65535".parse().expect("address");
        facts.http = Some(facts.control);
        facts.public = Some(PublicAddresses { control: facts.control, data: facts.control });
        facts.capacity = Some(Capacity { cpus: u16::MAX, memory: u64::MAX, disk: u64::MAX });
        facts.version = "9".repeat(MAX_BINARY_VERSION);
        let text = encode(&facts).expect("fits");
        assert_eq!(decode(&text), Some(facts.clone()));
        assert!(text.len() < 600, "leaves room for other values: {}", text.len());
        facts.version.push('9');
        assert!(encode(&facts).is_err());
    }

    #[test]
    fn load_is_told_in_steps() {
        let load = Load { cpu: 44, memory: 45, disk: 250 }.in_steps();
        assert_eq!(load, Load { cpu: 40, memory: 50, disk: 100 });
        assert_eq!(decode_load(&encode_load(load)), Some(load));
        assert_eq!(decode_load("2832640a"), Some(load), "a later version appends");
        assert_eq!(decode_load("28"), None);
    }

    proptest! {
        #[test]
        fn hostile_texts_do_not_panic(text in ".{0,300}", bytes: Vec<u8>) {
            let _ = (decode(&text), decode_root(&text), decode_load(&text));
            let mut bytes = bytes;
            bytes.insert(0, VERSION);
            let _ = decode(&BASE64_NOPAD.encode(&bytes));
        }

        #[test]
        fn a_root_round_trips(root: [u8; 32]) {
            prop_assert_eq!(decode_root(&encode_root(&root)), Some(root));
        }
    }

    #[test]
    fn a_public_address_is_for_those_of_other_regions_first() {
        let mut facts = facts();
        let own = whereabouts(StoreId::from_bytes([1; 16]), &facts, false);
        assert_eq!((own.control, own.data), (vec![facts.control], vec![facts.data]));
        let public = PublicAddresses {
            control: "203.0.113.5:14523".parse().expect("address"),
            data: "203.0.113.5:14524".parse().expect("address"),
        };
        facts.public = Some(public);
        let near = whereabouts(StoreId::from_bytes([1; 16]), &facts, true);
        assert_eq!(near.control, [facts.control, public.control]);
        assert_eq!(near.data, [facts.data, public.data]);
        let far = whereabouts(StoreId::from_bytes([1; 16]), &facts, false);
        assert_eq!(far.control, [public.control, facts.control]);
        assert_eq!(far.data, [public.data, facts.data]);
    }
}

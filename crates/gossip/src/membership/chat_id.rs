//! How a node is named inside chitchat, and back. A chitchat id holds a name, a generation and a
//! socket address, and replies go to the address. Here the address *is* the store's id: its
//! sixteen bytes as an IPv6 address. Nothing is ever sent to it as an address; the wire finds the
//! store. So two nodes can't share an address, no table is needed, and a digest entry is short.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use chitchat::ChitchatId;
use flocker_base::{Incarnation, StoreId};

/// The name of every node: the store is in the address.
pub(super) const NAME: &str = "n";

/// The port of every address.
pub(super) const PORT: u16 = 4523;

/// Bits of a generation that count the runs within one start.
const RUN_BITS: u32 = 16;

/// The generation of this run of this start; `None` if the incarnation is beyond 48 bits.
pub(super) fn generation(incarnation: Incarnation, run: u16) -> Option<u64> {
    let start = incarnation.0.checked_mul(1 << RUN_BITS)?;
    Some(start | u64::from(run))
}

/// The incarnation that a generation tells.
pub(super) const fn incarnation(generation: u64) -> Incarnation {
    Incarnation(generation >> RUN_BITS)
}

/// The address that stands for a store.
pub(super) fn address(store: StoreId) -> SocketAddr {
    SocketAddr::new(IpAddr::V6(Ipv6Addr::from(*store.as_bytes())), PORT)
}

/// The store that an address stands for.
pub(super) fn store(address: SocketAddr) -> Option<StoreId> {
    match address {
        SocketAddr::V6(v6) if v6.port() == PORT => Some(StoreId::from_bytes(v6.ip().octets())),
        SocketAddr::V6(_) | SocketAddr::V4(_) => None,
    }
}

/// The chitchat id of a store in this generation.
pub(super) fn of(store: StoreId, generation: u64) -> ChitchatId {
    ChitchatId::new(NAME, generation, address(store))
}

/// The store and generation of a chitchat id; `None` if it is not one of ours.
pub(super) fn parse(id: &ChitchatId) -> Option<(StoreId, u64)> {
    if &*id.node_id != NAME {
        return None;
    }
    Some((store(id.gossip_advertise_addr)?, id.generation_id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_its_address_and_back_even_as_text() {
        for bytes in [[0; 16], [255; 16], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 1, 2, 3, 4]] {
            let id = StoreId::from_bytes(bytes);
            assert_eq!(store(address(id)), Some(id));
            let text = address(id).to_string();
            assert_eq!(text.parse().ok().and_then(store), Some(id), "as a seed: {text}");
            assert_eq!(parse(&of(id, 7)), Some((id, 7)));
        }
    }

    #[test]
    fn generations_rise_with_starts_and_runs() {
        let g = |start, run| generation(Incarnation(start), run).expect("small");
        assert!(g(1, 0) < g(1, 1) && g(1, u16::MAX) < g(2, 0));
        assert_eq!(incarnation(g(5, 9)), Incarnation(5));
        assert_eq!(generation(Incarnation(1 << 48), 0), None);
    }
}

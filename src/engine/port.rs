//! Finds a free port for a service on its node's own address.
//!
//! The range lies below the one that the kernel takes outgoing connections' ports from, so that
//! no connection can slip into the port between this check and the service's own bind.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::ops::RangeInclusive;

use flocker_base::ServiceId;

/// Starts at a place that the service's id decides, so that services rarely contend.
pub(super) fn free(
    host: IpAddr,
    range: &RangeInclusive<u16>,
    taken: &BTreeSet<u16>,
    service: ServiceId,
) -> io::Result<SocketAddr> {
    let width = u32::from(*range.end()) - u32::from(*range.start()) + 1;
    let hash = blake3::hash(service.as_bytes());
    let first = hash.as_bytes()[..4].iter().fold(0_u32, |n, b| (n << 8) | u32::from(*b)) % width;
    for step in 0..width {
        let offset = u16::try_from((first + step) % width).unwrap_or_default();
        let address = SocketAddr::new(host, range.start().saturating_add(offset));
        if taken.contains(&address.port()) {
            continue;
        }
        match TcpListener::bind(address) {
            Ok(_) => return Ok(address),
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {}
            Err(e) => return Err(e),
        }
    }
    Err(io::Error::new(
        io::ErrorKind::AddrInUse,
        format!("every port from {} to {} of {host} is taken", range.start(), range.end()),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_or_promised_is_passed_over_until_none_is_left() {
        let host = "127.0.0.1".parse().expect("address");
        let service = ServiceId::from_bytes([3; 16]);
        let range = 29_990..=29_991;
        let first = free(host, &range, &BTreeSet::new(), service).expect("one is free");
        let held = TcpListener::bind(first).expect("binds");
        let second = free(host, &range, &BTreeSet::new(), service).expect("the other is free");
        assert_ne!(first, second);
        let taken = BTreeSet::from([second.port()]);
        let error = free(host, &range, &taken, service).expect_err("none left").to_string();
        assert!(error.contains("29990 to 29991"), "{error}");
        drop(held);
        let strange = "192.0.2.1".parse().expect("address");
        assert!(free(strange, &range, &BTreeSet::new(), service).is_err());
    }
}

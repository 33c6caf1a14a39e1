//! The demo's loopback network. While one demo has it, no other takes it, in this process or
//! another: agents take their ports some time after the demo has looked whether they are free.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use anyhow::{Result, bail};

/// The control port of every agent: they differ by address.
pub(super) const CONTROL_PORT: u16 = 4523;
pub(super) const DATA_PORT: u16 = 4524;
pub(super) const HTTP_PORT: u16 = 8080;
/// How many loopback networks are tried for free addresses.
const NETWORKS: u8 = 100;
/// Host and port of the listener whose owner has the network.
const CLAIM: (u8, u16) = (254, 4520);

/// Three addresses, held from other demos until this is dropped.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) addresses: [Ipv4Addr; 3],
    _claim: TcpListener,
}

impl Network {
    /// Takes the first network that no other demo has and whose addresses have all ports free.
    pub(super) fn claim() -> Result<Self> {
        for third in 0..NETWORKS {
            let (host, port) = CLAIM;
            let Ok(claim) = TcpListener::bind((address(third, host), port)) else { continue };
            let addresses = [1, 2, 3].map(|host| address(third, host));
            if addresses.iter().all(|a| ports_free(*a)) {
                return Ok(Self { addresses, _claim: claim });
            }
        }
        let (_, port) = CLAIM;
        bail!(
            "ports {CONTROL_PORT}/udp, {DATA_PORT}/udp, {HTTP_PORT}/tcp and {port}/tcp are in use \
             on all of {} to {}: stop what uses them",
            address(0, 0),
            address(NETWORKS - 1, 0)
        )
    }
}

const fn address(third: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 71, third, host)
}

fn ports_free(address: Ipv4Addr) -> bool {
    UdpSocket::bind((address, CONTROL_PORT)).is_ok()
        && UdpSocket::bind((address, DATA_PORT)).is_ok()
        && TcpListener::bind((address, HTTP_PORT)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_demos_at_once_have_different_addresses() {
        let (one, two) = (Network::claim().unwrap(), Network::claim().unwrap());
        assert!(one.addresses.iter().all(|a| !two.addresses.contains(a)));
    }
}

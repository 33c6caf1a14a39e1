//! Loopback addresses for one mesh. A network that is claimed is no other mesh's, in this process
//! or another, until the claim is dropped.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use anyhow::{Result, bail};

/// Every agent's control port: agents differ by address.
pub const CONTROL_PORT: u16 = 4523;
/// Every agent's data port.
pub const DATA_PORT: u16 = 4524;
/// Every agent's proxy port.
pub const HTTP_PORT: u16 = 8080;

/// The demo uses 127.71.
const SECOND: u8 = 72;
const NETWORKS: u8 = 250;
/// Whoever listens here has the network.
const CLAIM: (u8, u16) = (254, 4520);

/// A network of loopback addresses.
#[derive(Debug)]
pub struct Network {
    third: u8,
    _claim: TcpListener,
}

impl Network {
    /// Claims one whose first `count` addresses have all ports free.
    ///
    /// # Errors
    /// If there is none.
    pub fn claim(count: u8) -> Result<Self> {
        for third in 0..NETWORKS {
            let (host, port) = CLAIM;
            let Ok(claim) = TcpListener::bind((address(third, host), port)) else { continue };
            if (1..=count).all(|host| free(address(third, host))) {
                return Ok(Self { third, _claim: claim });
            }
        }
        bail!(
            "ports {CONTROL_PORT}/udp, {DATA_PORT}/udp and {HTTP_PORT}/tcp are in use on all of \
             127.{SECOND}.0.0 to 127.{SECOND}.{}.0: stop what uses them",
            NETWORKS - 1
        )
    }

    /// The address of the node with this number, from 1.
    #[must_use]
    pub const fn address(&self, host: u8) -> Ipv4Addr {
        address(self.third, host)
    }
}

const fn address(third: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, SECOND, third, host)
}

fn free(address: Ipv4Addr) -> bool {
    UdpSocket::bind((address, CONTROL_PORT)).is_ok()
        && UdpSocket::bind((address, DATA_PORT)).is_ok()
        && TcpListener::bind((address, HTTP_PORT)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_claims_are_two_networks_and_a_dropped_one_is_free_again() {
        let first = Network::claim(2).expect("a network");
        let second = Network::claim(2).expect("another");
        assert_ne!(first.address(1), second.address(1));
        let address = first.address(1);
        drop(first);
        let taken = UdpSocket::bind((address, CONTROL_PORT)).expect("free again");
        let third = Network::claim(2).expect("yet another");
        assert_ne!(third.address(1), address, "a port there is taken");
        drop(taken);
    }
}

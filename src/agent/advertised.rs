//! Where peers reach this node: told by the command line, or read from this machine's routes and
//! followed when they change. It sends no packet to find out, and never gives out an address that
//! leads nowhere.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::Result;
use flocker_base::StoreId;
use flocker_gossip::addresses::AddressBookStore;
use flocker_gossip::membership::Membership;
use flocker_gossip::model::{NodeFacts, PublicAddresses};
use tokio_util::sync::CancellationToken;

use crate::cli::options::{Advertise, UpOptions};

/// How often the machine's own address is read, where nobody fixed it.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Where peers reach this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Advertised {
    pub(super) control: SocketAddr,
    pub(super) data: SocketAddr,
    /// Where those of other regions reach it, if that is elsewhere.
    pub(super) public: Option<PublicAddresses>,
    /// What it was read from, if it may change while the node runs.
    pub(super) follows: Option<IpAddr>,
}

impl Advertised {
    /// What is told, or else what the machine's routes say.
    pub(super) fn of(options: &UpOptions) -> Self {
        let reached = |at: Advertise| PublicAddresses {
            control: SocketAddr::new(at.ip, at.control.unwrap_or(options.control_port)),
            data: SocketAddr::new(at.ip, at.data.unwrap_or(options.data_port)),
        };
        let public = options.public.map(reached);
        let Some(told) = options.advertise.map(reached) else {
            let follows = options.bind.is_unspecified().then_some(options.bind);
            let ip = own_address(options.bind).unwrap_or_else(|| {
                tracing::warn!(
                    "this machine has no route to other networks: peers elsewhere cannot reach it \
                     unless --bind or --advertise names its address"
                );
                loopback_of(options.bind)
            });
            let (control, data) = (options.control_port, options.data_port);
            return Self {
                control: SocketAddr::new(ip, control),
                data: SocketAddr::new(ip, data),
                public,
                follows,
            };
        };
        Self { control: told.control, data: told.data, public, follows: None }
    }

    /// All control addresses, those for its own region first.
    pub(super) fn controls(self) -> Vec<SocketAddr> {
        std::iter::once(self.control).chain(self.public.map(|at| at.control)).collect()
    }

    /// All data addresses likewise.
    pub(super) fn datas(self) -> Vec<SocketAddr> {
        std::iter::once(self.data).chain(self.public.map(|at| at.data)).collect()
    }

    fn at(self, ip: IpAddr) -> Self {
        Self {
            control: SocketAddr::new(ip, self.control.port()),
            data: SocketAddr::new(ip, self.data.port()),
            ..self
        }
    }
}

/// Decides when this node has moved: an address counts once it was read twice in a row, so that an
/// interface that comes up does not make it announce every step.
#[derive(Debug)]
struct Following {
    current: Advertised,
    candidate: Option<IpAddr>,
}

impl Following {
    /// Takes in what was read; `None` is a machine without a route, which changes nothing.
    fn step(&mut self, read: Option<IpAddr>) -> Option<Advertised> {
        let read = read.filter(|ip| *ip != self.current.control.ip());
        if read.is_some() && read == self.candidate {
            self.current = self.current.at(read?);
            self.candidate = None;
            return Some(self.current);
        }
        self.candidate = read;
        None
    }
}

/// Tells peers when this machine's address changes, until told to stop.
pub(super) async fn follow(
    advertised: Advertised,
    membership: Membership,
    book: AddressBookStore,
    stop: CancellationToken,
) -> Result<()> {
    let Some(bind) = advertised.follows else {
        stop.cancelled().await;
        return Ok(());
    };
    let mut following = Following { current: advertised, candidate: None };
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let Some(moved) = following.step(own_address(bind)) else { continue };
        let Some((me, said)) = own(&membership) else { continue };
        tracing::info!(control = %moved.control, "this node's address has changed: telling peers");
        let noted = book.clone();
        let learn = move || noted.learn(me, &moved.controls(), &moved.datas());
        tokio::task::spawn_blocking(learn).await??;
        membership.set_facts(&NodeFacts { control: moved.control, data: moved.data, ..said })?;
    }
}

/// What this node says of itself at present.
fn own(membership: &Membership) -> Option<(StoreId, NodeFacts)> {
    let (me, view) = (membership.local(), membership.view());
    let facts = view.borrow().nodes.get(&me)?.facts.clone();
    Some((me, facts))
}

/// The address that peers reach this node at: the bound one, or if that is every address, the one
/// that this machine would send from. On a socket of both families, IPv4 goes first where there is
/// a route: every such node can be reached by it. `None` without a route.
fn own_address(bind: IpAddr) -> Option<IpAddr> {
    if !bind.is_unspecified() {
        return Some(bind);
    }
    let v4 = || route_from(Ipv4Addr::UNSPECIFIED.into());
    match bind {
        IpAddr::V4(_) => v4(),
        IpAddr::V6(_) => v4().or_else(|| route_from(bind)),
    }
}

fn route_from(any: IpAddr) -> Option<IpAddr> {
    // Addresses kept for documentation (RFC 5737, RFC 3849): routed like any foreign one.
    let foreign: IpAddr = match any {
        IpAddr::V4(_) => Ipv4Addr::new(192, 0, 2, 1).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((foreign, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_unspecified())
}

fn loopback_of(bind: IpAddr) -> IpAddr {
    match bind {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    }
}

/// Where services listen: this machine alone reaches them, through its proxy. A node on a loopback
/// address of its own keeps to it, so that several nodes fit on one machine.
pub(super) fn service_address(bind: IpAddr) -> IpAddr {
    if bind.is_loopback() { bind } else { Ipv4Addr::LOCALHOST.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn a_node_never_advertises_every_address() {
        let bound = ip("127.71.0.1");
        assert_eq!(own_address(bound), Some(bound));
        for any in ["0.0.0.0", "::"] {
            assert!(own_address(ip(any)).is_none_or(|own| !own.is_unspecified()));
            assert!(!loopback_of(ip(any)).is_unspecified());
        }
    }

    #[test]
    fn an_address_counts_once_it_was_read_twice() {
        let current = Advertised {
            control: (ip("10.0.0.1"), 4523).into(),
            data: (ip("10.0.0.1"), 4524).into(),
            public: None,
            follows: Some(ip("0.0.0.0")),
        };
        let mut following = Following { current, candidate: None };
        let (two, three) = (Some(ip("10.0.0.2")), Some(ip("10.0.0.3")));
        for read in [Some(ip("10.0.0.1")), None, two, three, None, three, two] {
            assert_eq!(following.step(read), None, "{read:?}");
        }
        let moved = following.step(two).expect("moved");
        assert_eq!(moved.control, "10.0.0.2:4523".parse().expect("an address"));
        assert_eq!(moved.data, "10.0.0.2:4524".parse().expect("an address"));
        assert_eq!(following.step(two), None, "once");
    }

    #[test]
    fn services_are_reached_from_their_own_machine_alone() {
        for bind in ["0.0.0.0", "10.0.0.1", "::", "127.71.0.1"] {
            assert!(service_address(ip(bind)).is_loopback(), "{bind}");
        }
    }
}

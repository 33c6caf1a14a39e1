//! What the long-running commands are told, typed and complete: every default is filled in.
//!
//! Nothing here reads a file, the environment or the command line.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use flocker_base::Name;

use super::style::Style;

/// What `flocker up` is to run. An agent that has joined before keeps its identity: `join`,
/// `name` and `region` then have to agree with it or be absent.
#[derive(Clone, Debug)]
pub struct UpOptions {
    /// `TOKEN@host1,host2:port`: join that cluster. Without it and without an identity in the
    /// state folder, a new cluster is made.
    pub join: Option<String>,
    /// The node's name, if given on the command line.
    pub name: Option<Name>,
    /// What to call a new node that was given no name: the machine's host name.
    pub default_name: Name,
    /// The node's region, if given on the command line. A new node without one is in `default`.
    pub region: Option<Name>,
    /// The node's zone, if it was told one; peers are told it anew with each start.
    pub zone: Option<Name>,
    /// Where all state is kept.
    pub state_dir: PathBuf,
    /// The API's unix socket.
    pub socket: PathBuf,
    /// Where the control and data ports are bound.
    pub bind: IpAddr,
    /// The control port (UDP).
    pub control_port: u16,
    /// The data port (UDP).
    pub data_port: u16,
    /// Where the proxy takes HTTP; `None` for nowhere.
    pub http: Option<SocketAddr>,
    /// The address that peers reach this node at, if not the bound one.
    pub advertise: Option<Advertise>,
    /// The address that nodes of other regions reach this node at, if that is another.
    pub public: Option<Advertise>,
    /// How long a lease of this node's is.
    pub lease: Duration,
    /// How long a node may be away before its copies are made again elsewhere.
    pub replace_after: Duration,
    /// The watchdog device that the guard feeds, if it is to.
    pub watchdog: Option<PathBuf>,
    /// The absence after which what a node brings is put in quarantine.
    pub quarantine_after: Duration,
    /// Addresses of other nodes, `host` or `host:port`, from the command line and from files.
    pub seeds: Vec<String>,
    /// The certificate that an authority outside the cluster issued, if one did.
    pub outside: Option<OutsideFiles>,
    /// End when the process that started this one ends.
    pub exit_with_parent: bool,
    /// How to colour what is printed.
    pub style: Style,
}

/// Where a certificate of an authority outside the cluster is kept, as PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutsideFiles {
    /// The authority's certificate.
    pub ca_cert: PathBuf,
    /// The node's certificate, then those between it and the authority's.
    pub cert: PathBuf,
    /// The node's private key.
    pub key: PathBuf,
}

/// An address that peers are told: `IP`, `IP:CONTROL` or `IP:CONTROL/DATA`. A port that is not
/// said is the one that is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advertise {
    /// The address.
    pub ip: IpAddr,
    /// The control port as it is reached from outside.
    pub control: Option<u16>,
    /// The data port likewise.
    pub data: Option<u16>,
}

/// Why a text is no address to advertise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoAdvertise;

impl std::error::Error for NoAdvertise {}

impl fmt::Display for NoAdvertise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "write an address that peers reach, with the outer ports where they differ: IP, \
             IP:CONTROL or IP:CONTROL/DATA, as in 203.0.113.5:14523/14524 or \
             [2001:db8::5]:14523/14524",
        )
    }
}

impl FromStr for Advertise {
    type Err = NoAdvertise;

    fn from_str(text: &str) -> Result<Self, NoAdvertise> {
        let port = |text: &str| text.parse().ok().filter(|port| *port != 0).ok_or(NoAdvertise);
        let (at, data) = match text.split_once('/') {
            Some((at, data)) => (at, Some(port(data)?)),
            None => (text, None),
        };
        let (ip, control) = match at.parse::<SocketAddr>() {
            Ok(at) if at.port() != 0 => (at.ip(), Some(at.port())),
            Ok(_) => return Err(NoAdvertise),
            Err(_) if data.is_some() => return Err(NoAdvertise),
            Err(_) => (at.parse::<IpAddr>().map_err(|_why| NoAdvertise)?, None),
        };
        let reachable = !ip.is_unspecified() && !ip.is_multicast();
        let same = control.is_some() && control == data;
        if reachable && !same { Ok(Self { ip, control, data }) } else { Err(NoAdvertise) }
    }
}

/// What `flocker demo` is to do.
#[derive(Clone, Debug)]
pub struct DemoOptions {
    /// Exit after the show instead of going on until Ctrl-C.
    pub once: bool,
    /// The folder for everything; a new temporary one if not given.
    pub dir: Option<PathBuf>,
    /// Seed of the load and of all that is random in it; from the system if not given.
    pub seed: Option<u64>,
    /// Print the report as JSON on stdout.
    pub json: bool,
    /// How to colour what is printed.
    pub style: Style,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_advertised_with_outer_ports_where_they_differ() {
        let good =
            |text: &str| text.parse::<Advertise>().map(|a| (a.ip.to_string(), a.control, a.data));
        let (v4, v6) = ("203.0.113.5".to_owned(), "2001:db8::5".to_owned());
        assert_eq!(good("203.0.113.5"), Ok((v4.clone(), None, None)));
        assert_eq!(good("203.0.113.5:7"), Ok((v4.clone(), Some(7), None)));
        assert_eq!(good("203.0.113.5:7/8"), Ok((v4, Some(7), Some(8))));
        assert_eq!(good("2001:db8::5"), Ok((v6.clone(), None, None)));
        assert_eq!(good("[2001:db8::5]:7/8"), Ok((v6, Some(7), Some(8))));
        for bad in [
            "",
            "host",
            "0.0.0.0",
            "[::]:1",
            "224.0.0.1",
            "1.2.3.4:0",
            "1.2.3.4:7/7",
            "1.2.3.4/8",
            "1.2.3.4:7/0",
            "1.2.3.4:7/70000",
            "1.2.3.4:7/8/9",
        ] {
            assert_eq!(bad.parse::<Advertise>(), Err(NoAdvertise), "{bad}");
        }
    }
}

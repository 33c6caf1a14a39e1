//! What the long-running commands are told, typed and complete: every default is filled in.
//!
//! Nothing here reads a file, the environment or the command line.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

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
    pub advertise: Option<IpAddr>,
    /// Addresses of other nodes, `host` or `host:port`, from the command line and from files.
    pub seeds: Vec<String>,
    /// End when the process that started this one ends.
    pub exit_with_parent: bool,
    /// How to colour what is printed.
    pub style: Style,
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

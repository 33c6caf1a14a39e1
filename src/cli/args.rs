//! The arguments, as clap reads them. What they mean is in [`super::commands`] and [`super::up`].

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use flocker_base::Name;

use super::help;
use super::options::Advertise;
use super::style::ColourChoice;

mod members;

pub(super) use members::{Node, NodeLabel, NodeRm, Token, TokenCreate, TokenRevoke};

/// A masterless mesh of identical servers. Services run with their volumes, and the volumes
/// follow them.
#[derive(Debug, Parser)]
#[command(
    name = "flocker",
    version,
    max_term_width = 100,
    propagate_version = false,
    arg_required_else_help = true,
    subcommand_required = true,
    long_about = help::ABOUT,
    after_long_help = help::top()
)]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// What every command takes.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(super) struct Global {
    /// The agent's unix socket.
    #[arg(
        long,
        global = true,
        env = "FLOCKER_SOCKET",
        hide_env_values = true,
        value_name = "PATH"
    )]
    pub(super) socket: Option<PathBuf>,
    /// How to print data: table, wide (with ids and addresses) or json.
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "FORMAT",
        hide_possible_values = true
    )]
    pub(super) output: Format,
    /// The same as `--output json`.
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// Print names only, and no progress.
    #[arg(short, long, global = true)]
    pub(super) quiet: bool,
    /// How long to wait for the agent, such as `30s`. What changes something goes on beyond it.
    #[arg(long, global = true, value_parser = humantime::parse_duration, value_name = "TIME")]
    pub(super) timeout: Option<Duration>,
    /// When to colour: auto, always or never.
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "WHEN",
        hide_possible_values = true
    )]
    pub(super) color: ColourChoice,
    /// Use ASCII symbols only.
    #[arg(long, global = true, env = "FLOCKER_ASCII", hide_env_values = true, value_parser = clap::builder::FalseyValueParser::new())]
    pub(super) ascii: bool,
}

impl Global {
    /// The format, whichever flag asked for it.
    pub(super) const fn format(&self) -> Format {
        if self.json { Format::Json } else { self.output }
    }
}

/// How data is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people.
    #[default]
    Table,
    /// For people, with ids and addresses.
    Wide,
    /// For programs: one document with its schema's name.
    Json,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run this machine's agent: make a cluster, join one, or come back to it.
    #[command(long_about = help::UP, after_long_help = help::up())]
    Up(Box<Up>),
    /// Show the mesh as this node sees it.
    #[command(long_about = help::STATUS, after_long_help = help::status())]
    Status(Status),
    /// Make services, volumes and routes what a file says.
    #[command(long_about = help::deploy_about(), after_long_help = help::deploy())]
    Deploy(Deploy),
    /// List and remove services.
    #[command(subcommand, arg_required_else_help = true)]
    Service(Service),
    /// List volumes.
    #[command(subcommand, arg_required_else_help = true)]
    Volume(Volume),
    /// Move a service with its volume to another node, without failing a request.
    #[command(long_about = help::MOVE, after_long_help = help::relocate())]
    Move(Move),
    /// Show what happened in the mesh, as this node saw it.
    #[command(long_about = help::EVENTS, after_long_help = help::events())]
    Events(Events),
    /// Ask an authority outside the cluster for this node's certificate.
    #[command(subcommand, arg_required_else_help = true)]
    Identity(Identity),
    /// Let new nodes join: make, list and revoke join tokens.
    #[command(subcommand, arg_required_else_help = true)]
    Token(Token),
    /// List, label and remove nodes.
    #[command(subcommand, arg_required_else_help = true)]
    Node(Node),
    /// List and settle what two sides wrote into the placement map.
    #[command(subcommand, arg_required_else_help = true)]
    Conflict(super::care::Conflict),
    /// Decide on what a node brought after a long absence.
    #[command(subcommand, arg_required_else_help = true)]
    Quarantine(super::care::Quarantine),
    /// List and drop edits that wait for a volume's master.
    #[command(subcommand, arg_required_else_help = true)]
    Pending(super::care::Pending),
    /// Repair what a stopped node's disk damaged.
    #[command(subcommand, arg_required_else_help = true)]
    Repair(super::care::Repair),
    /// See it work: three agents on this machine, a move and a failover under load.
    #[command(long_about = help::DEMO, after_long_help = help::demo())]
    Demo(Demo),
    /// Show the version of this program and of the agent.
    #[command(after_long_help = help::version())]
    Version,
    /// The demo's service: counts the lines posted to it. Runs inside the mesh.
    #[command(hide = true)]
    Tally,
}

#[derive(Debug, Args)]
pub(super) struct Up {
    /// Join the cluster of this token, as `flocker token create` printed it. Other users of this
    /// machine can see it here; `--join-file` hides it.
    #[arg(
        long,
        env = "FLOCKER_JOIN",
        hide_env_values = true,
        value_name = "TOKEN@HOSTS",
        conflicts_with = "join_file"
    )]
    pub(super) join: Option<String>,
    /// Read the same from a file; `-` is the standard input.
    #[arg(long, value_name = "FILE")]
    pub(super) join_file: Option<PathBuf>,
    /// The token alone; `--join HOSTS` or `--seeds` then says where. Better given as FLOCKER_TOKEN.
    #[arg(
        long,
        env = "FLOCKER_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN",
        conflicts_with = "token_file"
    )]
    pub(super) token: Option<String>,
    /// Read the token alone from a file; `-` is the standard input.
    #[arg(long, value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
    /// The node's name [default: the host name].
    #[arg(long, value_name = "NAME")]
    pub(super) name: Option<Name>,
    /// The node's region [default: 'default'].
    #[arg(long, value_name = "NAME")]
    pub(super) region: Option<Name>,
    /// The node's zone within its region: nodes of one zone may fail together.
    #[arg(long, value_name = "NAME")]
    pub(super) zone: Option<Name>,
    /// How long this node's leases are, from `1s` to `10m`. Shorter: its services come back sooner
    /// elsewhere when it dies, and stop sooner when its network stalls.
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = members::lease)]
    pub(super) lease: Duration,
    /// How long a node may be away before copies of the volumes that this one leads are made again
    /// elsewhere, from `10s` to `30d`; a tenth of it before its votes are given to others.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = members::replacement)]
    pub(super) replace_after: Duration,
    /// A watchdog device, such as /dev/watchdog, that the guard feeds: if the guard itself hangs, or
    /// can't end a service in time, the machine resets.
    #[arg(long, value_name = "DEVICE")]
    pub(super) watchdog: Option<PathBuf>,
    /// How long a node may have been away before what only it still knows is put in quarantine, for
    /// a person to decide: from `1d` to `3650d`.
    #[arg(long, value_name = "TIME", default_value = "7d", value_parser = members::absence)]
    pub(super) quarantine_after: Duration,
    /// Where all state is kept [default: /var/lib/flocker, or ~/.local/state/flocker].
    #[arg(long, env = "FLOCKER_STATE_DIR", hide_env_values = true, value_name = "FOLDER")]
    pub(super) state_dir: Option<PathBuf>,
    /// The address that the control and data ports are bound on.
    #[arg(long, value_name = "IP", default_value = "0.0.0.0")]
    pub(super) bind: IpAddr,
    /// The control port, UDP.
    #[arg(long, value_name = "PORT", default_value_t = 4523)]
    pub(super) control_port: u16,
    /// The data port, UDP.
    #[arg(long, value_name = "PORT", default_value_t = 4524)]
    pub(super) data_port: u16,
    /// Where the proxy takes HTTP, or 'none' [default: [::]:80 for root, else 127.0.0.1:8080].
    #[arg(long, value_name = "IP:PORT|none", value_parser = http)]
    pub(super) http: Option<Http>,
    /// The address that peers reach this node at, if it is behind address translation; with the
    /// outer ports where they differ from the bound ones.
    #[arg(long, value_name = "IP[:CONTROL[/DATA]]")]
    pub(super) advertise: Option<Advertise>,
    /// A second address, at which nodes of other regions reach this one: they try it first, nodes
    /// of its own region after the other. Ports as for `--advertise`.
    #[arg(long, value_name = "IP[:CONTROL[/DATA]]")]
    pub(super) public_address: Option<Advertise>,
    /// Addresses of other nodes, separated by commas: tried at each start, and while nodes are
    /// missing. A name may stand for several.
    #[arg(
        long,
        env = "FLOCKER_SEEDS",
        hide_env_values = true,
        value_name = "HOST[:PORT]",
        value_delimiter = ','
    )]
    pub(super) seeds: Vec<String>,
    /// A file of addresses of other nodes, one a line; can be given several times.
    #[arg(long, value_name = "FILE")]
    pub(super) seed_file: Vec<PathBuf>,
    /// The certificate of an authority outside the cluster that all nodes trust, as PEM. Then no
    /// node can issue certificates: see `flocker identity csr`.
    #[arg(long, value_name = "FILE", requires_all = ["cert", "key"])]
    pub(super) ca_cert: Option<PathBuf>,
    /// This node's certificate from that authority, then those between the two. The files are read
    /// again when they change.
    #[arg(long, value_name = "FILE", requires_all = ["ca_cert", "key"])]
    pub(super) cert: Option<PathBuf>,
    /// This node's private key, as PKCS #8.
    #[arg(long, value_name = "FILE", requires_all = ["ca_cert", "cert"])]
    pub(super) key: Option<PathBuf>,
    /// What to log: a level, or a filter such as `info,flocker_gossip=debug`.
    #[arg(
        long,
        env = "FLOCKER_LOG",
        hide_env_values = true,
        value_name = "FILTER",
        default_value = "info"
    )]
    pub(super) log: String,
    /// How to log.
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub(super) log_format: LogFormat,
    /// End when the process that started this one ends.
    #[arg(long, hide = true)]
    pub(super) exit_with_parent: bool,
}

/// Where HTTP is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Http {
    Nowhere,
    At(SocketAddr),
}

fn http(text: &str) -> Result<Http, String> {
    if text == "none" {
        return Ok(Http::Nowhere);
    }
    text.parse().map(Http::At).map_err(|_unparsed| {
        "give an IP address with its port, such as 127.0.0.1:8080 or [::]:80, or 'none'".to_owned()
    })
}

/// How the agent logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// A JSON object a line.
    Json,
}

#[derive(Debug, Args)]
pub(super) struct Status {
    /// Exit with 3 if something needs a person.
    #[arg(long)]
    pub(super) check: bool,
}

#[derive(Debug, Args)]
pub(super) struct Events {
    /// Go on and print each event as it happens, until Ctrl-C.
    #[arg(short, long)]
    pub(super) follow: bool,
}

#[derive(Debug, Args)]
pub(super) struct Deploy {
    /// The deployment file; `-` is the standard input.
    #[arg(value_name = "FILE")]
    pub(super) file: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(super) enum Service {
    /// List the services.
    #[command(visible_alias = "list", long_about = help::SERVICE_LS, after_long_help = help::service_ls())]
    Ls,
    /// Stop a service and forget it with its routes. Its volume stays.
    #[command(visible_alias = "remove", long_about = help::SERVICE_RM, after_long_help = help::service_rm())]
    Rm(ServiceRm),
}

#[derive(Debug, Args)]
pub(super) struct ServiceRm {
    /// The service.
    #[arg(value_name = "SERVICE")]
    pub(super) service: Name,
    /// Do not ask.
    #[arg(short, long)]
    pub(super) yes: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Volume {
    /// List the volumes with their copies.
    #[command(visible_alias = "list", long_about = help::VOLUME_LS, after_long_help = help::volume_ls())]
    Ls,
    /// Write a volume's newest snapshot, or a branch, into a new folder.
    #[command(long_about = help::VOLUME_EXPORT, after_long_help = help::volume_export())]
    Export(VolumeExport),
    /// Make a copy of a volume its master, when no election can.
    #[command(long_about = help::VOLUME_PROMOTE, after_long_help = help::volume_promote())]
    Promote(VolumePromote),
}

#[derive(Clone, Debug, Args)]
pub(super) struct VolumePromote {
    /// The volume.
    #[arg(value_name = "VOLUME")]
    pub(super) volume: Name,
    /// The node whose copy is to lead [default: the node that this command asks].
    #[arg(long, value_name = "NODE")]
    pub(super) node: Option<Name>,
    /// Though too few voters answer. Until the former master hears of it there may be two.
    #[arg(long, requires = "gone")]
    pub(super) force: bool,
    /// The former master, by which you say that it is off for good or will not come back by itself.
    #[arg(long, value_name = "NODE", requires = "force")]
    pub(super) gone: Option<Name>,
    /// Do not ask.
    #[arg(long, short)]
    pub(super) yes: bool,
}

#[derive(Debug, Args)]
pub(super) struct VolumeExport {
    /// The volume.
    #[arg(value_name = "VOLUME")]
    pub(super) volume: Name,
    /// The branch; without it, the newest snapshot.
    #[arg(long, value_name = "BRANCH")]
    pub(super) branch: Option<String>,
    /// The folder to make.
    #[arg(long, value_name = "FOLDER")]
    pub(super) to: PathBuf,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("destination").required(true).args(["to", "region"])))]
pub(super) struct Move {
    /// The service.
    #[arg(value_name = "SERVICE")]
    pub(super) service: Name,
    /// The node that it is to go to.
    #[arg(long, value_name = "NODE")]
    pub(super) to: Option<Name>,
    /// The region that it is to go to: the best node there is taken.
    #[arg(long, value_name = "REGION")]
    pub(super) region: Option<Name>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Identity {
    /// Write a request for this node's certificate, for an authority outside the cluster to sign.
    #[command(long_about = help::IDENTITY_CSR, after_long_help = help::identity_csr())]
    Csr(IdentityCsr),
}

#[derive(Debug, Args)]
pub(super) struct IdentityCsr {
    /// Where the node's state is kept [default: as for `flocker up`].
    #[arg(long, env = "FLOCKER_STATE_DIR", hide_env_values = true, value_name = "FOLDER")]
    pub(super) state_dir: Option<PathBuf>,
    /// The private key: made if there is none [default: node.key in the state folder].
    #[arg(long, value_name = "FILE")]
    pub(super) key: Option<PathBuf>,
    /// Where to write the request [default: the standard output].
    #[arg(long, value_name = "FILE")]
    pub(super) out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Demo {
    /// Exit after the show instead of going on until Ctrl-C; not 0 if something did not hold.
    #[arg(long)]
    pub(super) once: bool,
    /// The folder for everything; has to be empty [default: a temporary one, removed at the end].
    #[arg(long, value_name = "FOLDER")]
    pub(super) dir: Option<PathBuf>,
    /// Seed of all that is random in the demo.
    #[arg(long, value_name = "NUMBER")]
    pub(super) seed: Option<u64>,
}

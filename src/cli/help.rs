//! The texts that teach: what a command does, when to use it, examples, exit codes.

use std::fmt::Write as _;

use crate::api::ErrorCode;

use ErrorCode::{
    AddressInUse, AlreadyRunning, BadManifest, Busy, CannotPlace, Degraded, Fenced, FileMissing,
    NoAgent, NotFound, TimedOut,
};

mod members;

pub(super) use members::*;

/// A deployment file that shows what there is.
pub(super) const SAMPLE: &str = "\
services:
  tally:
    command: [flocker, tally]           # a list, or a string split as a shell does
    environment: {GREETING: 'hello ${WHO:-world}'}
    volumes: ['tally-data:/data']       # exactly one; the service finds it in $FLOCKER_VOLUME
    stop_grace_period: 10s
    x-flocker:
      engine: process                   # the service listens on $HOST:$PORT
      health: /healthz                  # answers 2xx once it is ready
      routes: ['http://tally.example.com']
volumes:
  tally-data:
    x-flocker:
      replicas: 1                       # copies beside the master, in its region
      remote-replicas: 1                # copies in other regions
      snapshot-every: 5s
      lag-limit: 60s                    # an older copy does not take over by itself
      failover: auto                    # or in-region, or manual
";

pub(super) const ABOUT: &str = "\
A masterless mesh of identical servers. Services run with their volumes, and the volumes follow \
them: moved on demand without failing a request, taken over by themselves when a node dies.

Every node runs one agent ('flocker up'). Any node answers any command; there is no head node to \
log in to and none to lose.";

pub(super) const UP: &str = "\
Runs this machine's agent in the foreground, until it is told to stop (Ctrl-C, SIGTERM).

The first node makes the cluster. Every other node joins with the line that 'flocker token create' \
prints on any node. A node that has joined before needs nothing: run 'flocker up' again and it \
comes back as itself, with the state in its state folder.

A second agent on one machine needs its own --state-dir, --socket, --control-port, --data-port and \
--http.";

pub(super) const STATUS: &str = "\
Shows the mesh as this node sees it: what needs a person and the command that settles it, the \
nodes by region, the volumes with their copies, the services, the routes, what is under way.

It asks the live nodes for what only they know and waits 150 ms for them, so it answers even when \
nothing else does, and says so. What is not known is shown as '?', never as 0. Lag is measured from the newest snapshot that a copy has acknowledged as durable.";

pub(super) const EVENTS: &str = "\
Shows the newest thousand things that happened, the oldest first: nodes that joined, left because \
they were asked to stop, started again, fell silent, came back or were removed, and the story of each \
volume's leases: who asked for it and why, who granted it, how long each step took, what was late or \
lost. They are what this node saw since its agent started, by its clock; another node may have seen \
them a moment earlier or later, and each tells its own part of an election.

With --follow it goes on until Ctrl-C. With --json it prints a document, and one for each batch \
while it follows.";

pub(super) const MOVE: &str = "\
Moves a service with its volume: copies what is missing while the service runs, holds its \
requests, stops it, sends the last snapshot, hands the lease over, starts it there, and lets the \
requests go. Requests wait, none fails. If a step fails, the service stays where it was.

Use it before maintenance of a node, or to bring a service close to its users. Ctrl-C ends the \
watching, not the move.";

pub(super) const SERVICE_LS: &str = "\
Lists the services: where each is, what it is doing, on which epoch. With -q it prints their \
names, one a line, for scripts.";

pub(super) const SERVICE_RM: &str = "\
Stops a service and forgets it with its routes. Its volume stays with all its data; deploy the \
service again and it goes on from there. Asks first, unless --yes is given.";

pub(super) const VOLUME_LS: &str = "\
Lists the volumes: master, epoch, copies with their lag, and whether the loss of the master would \
be survived without a person. With -q it prints their names, one a line.";

pub(super) const VOLUME_EXPORT: &str = "\
Writes a volume's newest snapshot into a folder that it makes, or with --branch the writes that a \
deposed master had not replicated and that were kept. It reads what is on this node: run it where \
'flocker status' shows the branch. Nothing in the mesh changes.";

pub(super) const IDENTITY_CSR: &str = "\
Makes this node's key, unless there is one, and writes a request (PKCS #10, PEM) for a certificate \
of it. Have your authority sign it with the name as it is (a DNS name of the form \
STORE.node.flocker, alone) and with the extended key usages serverAuth and clientAuth. The key \
never leaves the machine.

Then start the node with 'flocker up --ca-cert CA --cert CERT --key KEY', with --join as well on every \
node but the first. To renew, write the new certificate over the old file: the agent takes it within \
a minute, without a restart.";

pub(super) const DEMO: &str = "\
Runs three agents on this machine as separate processes, in two regions, deploys a small stateful \
service, drives load through all of them, moves the service under that load, kills its node, and \
says what was measured. Needs no root and no Docker, and leaves nothing behind.";

pub(super) fn deploy_about() -> String {
    format!(
        "\
Makes services, volumes and routes what a file says, and tells what was created, changed or left. \
What the file does not name is left alone, and the same file twice changes nothing.

The file is a subset of the Compose format, with 'x-flocker' for what Compose lacks. A key that is \
not understood is refused, never ignored. Variables are filled in from the environment.

{SAMPLE}"
    )
}

pub(super) fn top() -> String {
    let mut codes = "  0    done\n".to_owned();
    for code in ErrorCode::ALL {
        let _ = writeln!(codes, "  {:<4} {}", code.exit_code(), code.meaning());
    }
    format!(
        "\
Examples:
  See it work on this machine:
    flocker demo
  Make a cluster, and let a second machine join:
    flocker up                                  (first machine)
    flocker token create                        (first machine, prints the next line)
    flocker up --join flk1-...@10.0.0.1         (second machine)

Exit codes:
{codes}
Files and variables:
  State is in /var/lib/flocker, the socket in /run/flocker/flocker.sock; for other users than root
  in ~/.local/state/flocker and $XDG_RUNTIME_DIR. Whoever can use the socket is as good as root of
  the cluster. FLOCKER_SOCKET, FLOCKER_STATE_DIR, FLOCKER_JOIN, FLOCKER_TOKEN, FLOCKER_SEEDS,
  FLOCKER_LOG and FLOCKER_ASCII stand for the flags of those names. NO_COLOR and CLICOLOR_FORCE are heeded."
    )
}

pub(super) fn up() -> String {
    page(
        &[
            ("The first node, in region 'eu':", "flocker up --region eu"),
            ("A node that joins:", "flocker up --region us --join flk1-...@10.0.0.1,10.0.0.2"),
            (
                "The same without a secret that other users see:",
                "FLOCKER_TOKEN=$(cat token) flocker up --join 10.0.0.1,10.0.0.2",
            ),
        ],
        &[FileMissing, AddressInUse, AlreadyRunning],
    )
}

pub(super) fn status() -> String {
    page(
        &[
            ("Look at the mesh:", "flocker status"),
            ("In a check that alarms:", "flocker status --check --quiet || page-someone"),
        ],
        &[Degraded, NoAgent],
    )
}

pub(super) fn events() -> String {
    page(
        &[
            ("What happened?", "flocker events"),
            ("Watch, as a program:", "flocker events --follow --json"),
        ],
        &[NoAgent],
    )
}

pub(super) fn deploy() -> String {
    page(
        &[
            ("Deploy a file:", "flocker deploy shop.yaml"),
            ("With a variable filled in:", "VERSION=7 flocker deploy shop.yaml"),
        ],
        &[NoAgent, TimedOut, CannotPlace, BadManifest, FileMissing],
    )
}

pub(super) fn relocate() -> String {
    page(
        &[
            ("To a node:", "flocker move tally --to eu-2"),
            (
                "To the best node of a region, waiting at most a minute:",
                "flocker move tally --region us --timeout 1m",
            ),
        ],
        &[NoAgent, NotFound, Fenced, TimedOut, CannotPlace, Busy],
    )
}

pub(super) fn service_ls() -> String {
    page(
        &[
            ("Where is everything?", "flocker service ls"),
            ("With ids and addresses:", "flocker service ls -o wide"),
        ],
        &[NoAgent],
    )
}

pub(super) fn service_rm() -> String {
    page(
        &[
            ("Remove a service, asking first:", "flocker service rm tally"),
            ("In a script:", "flocker service rm tally --yes"),
        ],
        &[NoAgent, NotFound, TimedOut, Busy],
    )
}

pub(super) fn volume_ls() -> String {
    page(
        &[
            ("Which copies are behind?", "flocker volume ls"),
            ("For a program:", "flocker volume ls --json"),
        ],
        &[NoAgent],
    )
}

pub(super) const VOLUME_PROMOTE: &str = "\
Makes a node's copy of a volume its master. Flocker elects a master by itself where the volume's \
failover policy says so, a majority of its voters answers, and a copy within its lag limit is there; \
this is for when one of these is not so, and 'flocker status' says which.

Without --force a majority of the voters must still answer; the copy may lie behind, and what was \
replicated elsewhere and is fresher is fetched first. With --force no majority is needed: name the \
former master with --gone, once you are sure that it is off. It is refused while any voter that \
answers still promises the volume to somebody. When the former master comes back it ends its service, \
and what only it had is kept there as a branch.";

pub(super) fn volume_promote() -> String {
    page(
        &[
            ("The copy that status calls too old is what there is:", "flocker volume promote data"),
            ("The copy of another node:", "flocker volume promote data --node eu-2"),
            (
                "The one other node of two burnt down:",
                "flocker volume promote data --force --gone eu-1",
            ),
        ],
        &[NoAgent, NotFound, Fenced, CannotPlace],
    )
}

pub(super) fn volume_export() -> String {
    page(
        &[
            (
                "What did the dead node keep to itself?",
                "flocker volume export data --branch tail-eu-2-3 --to ./lost",
            ),
            ("The newest snapshot here:", "flocker volume export data --to ./data"),
        ],
        &[NoAgent, NotFound],
    )
}

pub(super) fn identity_csr() -> String {
    page(
        &[
            ("For a node that is to be:", "flocker identity csr --out node.csr"),
            (
                "With a key that is kept elsewhere:",
                "flocker identity csr --key /etc/flocker/node.key --out node.csr",
            ),
        ],
        &[AlreadyRunning],
    )
}

pub(super) fn demo() -> String {
    page(
        &[
            ("Watch it, then explore by hand:", "flocker demo"),
            ("As a test:", "flocker demo --once"),
        ],
        &[AddressInUse],
    )
}

pub(super) fn version() -> String {
    page(&[("For people:", "flocker version"), ("For programs:", "flocker version --json")], &[])
}

/// Examples, then the exit codes that matter beside 0, 1, 2 and 130.
pub(super) fn page(examples: &[(&str, &str)], codes: &[ErrorCode]) -> String {
    let mut text = "Examples:\n".to_owned();
    for (what, line) in examples {
        let _ = writeln!(text, "  {what}\n    {line}");
    }
    text.push_str("\nExit codes:\n  0    done\n");
    let mut all = vec![ErrorCode::Internal, ErrorCode::Usage];
    all.extend(codes);
    all.push(ErrorCode::Interrupted);
    for code in all {
        let _ = writeln!(text, "  {:<4} {}", code.exit_code(), code.meaning());
    }
    text.truncate(text.trim_end().len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_can_be_deployed() {
        let read = crate::manifest::parse("sample", SAMPLE.as_bytes(), &|_| None);
        let deployment = read.expect("the help must not lie");
        assert_eq!(deployment.services.len(), 1);
        assert_eq!(deployment.routes.len(), 1);
    }

    #[test]
    fn exit_codes_are_distinct_and_stable() {
        let codes: Vec<u8> = ErrorCode::ALL.iter().map(|code| code.exit_code()).collect();
        assert_eq!(codes, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 130]);
    }
}

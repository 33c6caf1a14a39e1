//! What `flocker token` and `flocker node` teach.

use super::page;
use crate::api::ErrorCode::{NoAgent, NotFound, NotPermitted};

pub(in crate::cli) const TOKEN_CREATE: &str = "\
Makes a join token and prints the command to run on a new node. The token pins this cluster's \
certificate authority and carries a secret: whoever has it can join until it expires, and a node \
of the mesh is as good as root on all of them.

A token is good for any number of nodes and at any node, until it expires or is revoked. With --uses \
it is for so many nodes, and then only the node that made it admits with it: nobody can count across \
a network that is split. While that node is down, such a token waits.

With --region or --name, whoever joins takes these, and is refused if it asks for others.";

pub(in crate::cli) const TOKEN_LS: &str = "\
Lists the join tokens that still admit, the newest first; with --all those as well that expired, were \
used up or revoked within the last day. Their secrets are never shown. A token that is blocked was \
given too many wrong proofs at the node that you ask; other nodes still take it.

With -q it prints their ids, one a line.";

pub(in crate::cli) const TOKEN_REVOKE: &str = "\
Revokes join tokens, all that are named or none. Each node refuses them as soon as it hears of it, \
which takes a second or so; a node that is cut off hears of it later. A revoked token can't be made \
good again.

A node that has joined with a token stays: 'flocker node show NODE' says which token a node came \
with, and 'flocker node rm' removes it.";

pub(in crate::cli) const NODE_LS: &str = "\
Lists the nodes by region: whether each lives, for how long, which version it runs. With -o wide its \
addresses, its count of starts, its labels and its id; with --all the removed ones as well. With -q \
it prints their names, one a line.";

pub(in crate::cli) const NODE_SHOW: &str = "\
Shows what is known of one node, how it came in, the volumes that it is master of, holds a copy of or \
votes for, and what its removal would mean.";

pub(in crate::cli) const NODE_RM: &str = "\
Removes a node from the cluster, for ever. Every node that hears of it drops its connections to the \
removed one and refuses new ones; the tokens that it made are void; its name is free. The removed \
node stops its services and says why, but destroys nothing. It can't come back under its old state: \
to use the machine again, move its state folder away and join it as a new node.

Use it for a node that is gone for good, or that was stolen. For one that is only down there is \
nothing to do: it comes back by itself. Stop the agent of a live one first, which hands its services \
over. --force removes one that lives all the same, or that is the master of a volume, or without \
whose vote a volume has no master.

A node has held the authority's key, so one that was broken into may admit itself anew: see \
docs/SECURITY.md.

It asks for the node's name first, unless --yes is given.";

pub(in crate::cli) const NODE_LABEL: &str = "\
Sets labels of a node, or takes them away. Labels are for people and for their programs: flocker \
itself does not act on them. Edits of different labels at the same time on different nodes all count.

A label's name has 1 to 63 of a-z, 0-9, '-', '.' and '/'; its value at most 128 bytes. A node has at \
most 64.";

pub(in crate::cli) fn token_create() -> String {
    page(
        &[
            ("Let a machine join within the hour:", "flocker token create"),
            ("Only what '--join' takes, good for a day:", "flocker token create --expires 1d -q"),
            (
                "For exactly three machines of a new region:",
                "flocker token create --uses 3 --region us --note 'rack 7'",
            ),
        ],
        &[NoAgent],
    )
}

pub(in crate::cli) fn token_ls() -> String {
    page(
        &[
            ("Which tokens are out?", "flocker token ls"),
            ("With those that ended lately:", "flocker token ls --all"),
        ],
        &[NoAgent],
    )
}

pub(in crate::cli) fn token_revoke() -> String {
    page(
        &[
            ("Revoke one by the end of its id:", "flocker token revoke 5be1a3f9"),
            ("Revoke all:", "flocker token revoke $(flocker token ls -q)"),
        ],
        &[NoAgent, NotFound],
    )
}

pub(in crate::cli) fn node_ls() -> String {
    page(
        &[
            ("Who is there?", "flocker node ls"),
            ("With addresses, starts and labels:", "flocker node ls -o wide"),
        ],
        &[NoAgent],
    )
}

pub(in crate::cli) fn node_show() -> String {
    page(
        &[
            ("What is on a node?", "flocker node show eu-2"),
            ("For a program:", "flocker node show eu-2 --json"),
        ],
        &[NoAgent, NotFound],
    )
}

pub(in crate::cli) fn node_rm() -> String {
    page(
        &[
            ("What would it mean?", "flocker node rm eu-2 --dry-run"),
            ("Remove a node that is gone for good:", "flocker node rm eu-2"),
            ("Remove one that was stolen, in a script:", "flocker node rm eu-2 --force --yes"),
        ],
        &[NoAgent, NotFound, NotPermitted],
    )
}

pub(in crate::cli) fn node_label() -> String {
    page(
        &[
            ("Set two labels:", "flocker node label eu-2 rack=r7 disk=ssd"),
            ("Take one away:", "flocker node label eu-2 rack-"),
        ],
        &[NoAgent, NotFound],
    )
}

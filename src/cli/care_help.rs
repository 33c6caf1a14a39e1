//! The texts that teach `conflict`, `quarantine`, `pending` and `repair`.

use super::help::page;
use crate::api::ErrorCode::{AlreadyRunning, Busy, FileMissing, NoAgent, NotFound};

pub(super) const CONFLICT_LS: &str = "\
Lists what needs settling in the placement map: fields that were written on two sides of a \
partition, with every value (all nodes use the first); volumes, services and nodes that go by \
another name because theirs was taken first; records that this version cannot read; and stores \
whose id is in use twice.";

pub(super) const CONFLICT_SETTLE: &str = "\
Settles a field on one of the values that 'flocker conflict ls' lists, on every node: the value in \
use, or with --to any other. The other values are gone then.";

pub(super) const CONFLICT_RENAME: &str = "\
Gives a volume or a service another name. It is how a name that was taken on two sides is settled: \
the one that was named later goes by a made-up name until then. The volume's master makes the \
change; if it can't be reached, the change waits.";

pub(super) const QUARANTINE_LS: &str = "\
Lists the records that this node keeps out of the map: made long ago on a node that was away for \
more than a week ('flocker up --quarantine-after'), and known to nobody who was here. They do nothing \
until someone decides.";

pub(super) const QUARANTINE_ADMIT: &str = "\
Takes a record into the map, here and by itself on every other node. A volume brings its placement \
along. Services that it belongs to have records of their own.";

pub(super) const QUARANTINE_DROP: &str = "\
Deletes a record everywhere: a node that still has it deletes it as well, and stops what runs by \
it. Asks first, unless --yes is given.";

pub(super) const PENDING_LS: &str = "\
Lists the edits that wait on this node. A volume, and a service with a volume, is edited through \
the volume's master; while that can't be reached the edit waits here, and is made as soon as it \
can be. If someone changed the same fields meanwhile, the master refuses it, and it stays in the \
list with the reason until it is dropped.";

pub(super) const PENDING_DROP: &str = "\
Forgets an edit that waits or was refused. Nothing else changes.";

pub(super) const REPAIR_MAP: &str = "\
Takes what is damaged out of the placement map of a node whose agent does not start because of it. \
It keeps what can be read and names what it drops; the next 'flocker up' pulls that from the peers. \
What no peer has is lost, so the damaged file is kept if records had to be copied out of it.

Votes and epochs lie in another file, state.redb. They are never repaired: a node whose state.redb \
is damaged joins as a new node.";

pub(super) fn conflict_ls() -> String {
    page(
        &[
            ("What needs settling?", "flocker conflict ls"),
            ("For a program:", "flocker conflict ls --json"),
        ],
        &[NoAgent],
    )
}

pub(super) fn conflict_settle() -> String {
    page(
        &[
            ("Keep the value in use:", "flocker conflict settle volume/pg lag-limit"),
            ("Take the other one:", "flocker conflict settle volume/pg lag-limit --to 2"),
        ],
        &[NoAgent, NotFound, Busy],
    )
}

pub(super) fn conflict_rename() -> String {
    page(
        &[("Give it a name of its own:", "flocker conflict rename volume/pg-7c1f0a32 pg-us")],
        &[NoAgent, NotFound, Busy],
    )
}

pub(super) fn quarantine_ls() -> String {
    page(&[("What did the returning node bring?", "flocker quarantine ls")], &[NoAgent])
}

pub(super) fn quarantine_admit() -> String {
    page(
        &[(
            "It is wanted after all:",
            "flocker quarantine admit volume/019344f2c1d07a3b8c1d2e3f40516273",
        )],
        &[NoAgent, NotFound],
    )
}

pub(super) fn quarantine_drop() -> String {
    page(
        &[(
            "It is a leftover:",
            "flocker quarantine drop volume/019344f2c1d07a3b8c1d2e3f40516273 --yes",
        )],
        &[NoAgent, NotFound],
    )
}

pub(super) fn pending_ls() -> String {
    page(&[("What waits, and for whom?", "flocker pending ls")], &[NoAgent])
}

pub(super) fn pending_drop() -> String {
    page(&[("It is not wanted any more:", "flocker pending drop 3")], &[NoAgent, NotFound])
}

pub(super) fn repair_map() -> String {
    page(
        &[
            ("After the agent said that map.redb is damaged:", "flocker repair map"),
            ("Of another state folder, in a script:", "flocker repair map --state-dir ./n1 --yes"),
        ],
        &[FileMissing, AlreadyRunning],
    )
}

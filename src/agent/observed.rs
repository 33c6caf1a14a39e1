//! Says in the log, at debug level, at what instant this node saw another come or go, or had
//! another state of the map on its disk: for measurements from outside and for debugging. It
//! changes nothing and costs nothing while its level is off.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::Context as _;
use flocker_base::{Name, StoreId};
use flocker_gossip::map::MapView;
use flocker_gossip::membership::{Liveness, View};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::parts::Parts;
use crate::supervisor::Supervisor;

/// Starts to tell, if anyone wants to know.
pub(super) fn spawn(supervisor: &Supervisor, parts: &Parts) {
    if !tracing::enabled!(tracing::Level::DEBUG) {
        return;
    }
    let (members, map) = (parts.members.clone(), parts.map.watch());
    supervisor.spawn("observer", move |stop| run(members.clone(), map.clone(), stop));
}

async fn run(
    mut members: watch::Receiver<Arc<View>>,
    mut map: watch::Receiver<Arc<MapView>>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut seen = BTreeSet::new();
    let mut root = None;
    loop {
        let now = alive(&members.borrow_and_update());
        for (_, name) in now.difference(&seen) {
            tracing::debug!(%name, live = now.len(), "a node is seen alive");
        }
        for (_, name) in seen.difference(&now) {
            tracing::debug!(%name, live = now.len(), "a node is no longer seen alive");
        }
        seen = now;
        let (held, records) = {
            let view = map.borrow_and_update();
            (view.root(), view.records())
        };
        if root != Some(held) {
            root = Some(held);
            tracing::debug!(records, root = short(&held), "the map has changed");
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = members.changed() => changed.context("membership is gone")?,
            changed = map.changed() => changed.context("the map is gone")?,
        }
    }
}

fn alive(view: &View) -> BTreeSet<(StoreId, Name)> {
    let live = view.nodes.iter().filter(|(_, member)| member.liveness == Liveness::Live);
    live.map(|(store, member)| (*store, member.facts.name.clone())).collect()
}

/// Enough of a root to tell it from every other of one mesh.
fn short(root: &[u8]) -> String {
    root.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_told_in_sixteen_digits() {
        assert_eq!(short(&[0xab; 32]), "ab".repeat(8));
    }
}

//! Notes, now and then, that this node's map is the same as a live peer's: only a node that was in
//! touch for long judges what comes late. It must never wait for the disk on the control thread.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use flocker_gossip::map::Map;
use flocker_gossip::membership::{Liveness, View};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Time from one look for a peer with the same map to the next.
const NOTE_CONTACT_EVERY: Duration = Duration::from_secs(60);

/// Runs until the shutdown.
pub(super) async fn note_contacts(
    map: Map,
    members: watch::Receiver<Arc<View>>,
    stop: CancellationToken,
) -> Result<()> {
    let mut looks = tokio::time::interval(NOTE_CONTACT_EVERY);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = looks.tick() => {}
        }
        let (me, root) = (map.actor(), map.root());
        let is_same = members.borrow().nodes.iter().any(|(store, member)| {
            *store != me && member.liveness == Liveness::Live && member.map_root == Some(root)
        });
        if is_same {
            let map = map.clone();
            tokio::task::spawn_blocking(move || map.note_contact_now()).await??;
        }
    }
}

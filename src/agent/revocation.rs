//! What follows from the mark that removes a node. On the others: its connections are dropped at
//! once, on both ports, its addresses forgotten, and no list of members names it. On the removed
//! node itself, which hears of it from its own map or from peers that refuse it: it stops its
//! services, gives its leases back and takes nothing over any more. It destroys no data, and goes on
//! answering its own people, so that they see why.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flocker_base::{BootTime, StoreId};
use flocker_gossip::addresses::AddressBookStore;
use flocker_gossip::map::{Edit, Map, MapView, NodeChange};
use flocker_gossip::membership::View;
use flocker_gossip::model::Removal;
use flocker_quic::Peers;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::leaving;
use super::parts::{Parts, locked};
use crate::api::{ApiError, Attention, ErrorCode, Liveness, Severity, Status};

/// The longest time between two looks: gossip may bring a removed node's addresses back.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// For how long every peer that is connected must have refused this node, and one at least, before
/// it takes that for its removal: one peer that errs must not stop a node that others work with.
const SURE_AFTER: Duration = Duration::from_secs(5);
/// Time for a lease to be given back. Its voters refuse this node, so none may answer.
const GIVE_BACK: Duration = Duration::from_secs(2);

/// The peers that refused this node as removed. A clone is the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Refused {
    by: Arc<Mutex<BTreeSet<StoreId>>>,
    heard: Arc<Notify>,
}

impl Refused {
    /// A peer has refused this node.
    pub(super) fn hear(&self, by: StoreId) {
        if locked(&self.by).insert(by) {
            tracing::error!(
                peer = %by,
                "a peer refuses this node: it was removed from the cluster; move its state folder \
                 away and join as a new node"
            );
            self.heard.notify_one();
        }
    }

    fn all(&self) -> BTreeSet<StoreId> {
        locked(&self.by).clone()
    }
}

/// Decides when refusals are this node's removal. Pure.
#[derive(Debug, Default)]
struct Sentence {
    since: Option<BootTime>,
}

impl Sentence {
    /// One of the peers that refuse this node, once no other is connected for long enough.
    fn look(
        &mut self,
        now: BootTime,
        refused_by: &BTreeSet<StoreId>,
        connected: &[StoreId],
    ) -> Option<StoreId> {
        let alone = !connected.iter().any(|peer| !refused_by.contains(peer));
        let Some(by) = refused_by.first().filter(|_| alone) else {
            self.since = None;
            return None;
        };
        let since = *self.since.get_or_insert(now);
        (now.saturating_since(since) >= SURE_AFTER).then_some(*by)
    }
}

/// What the task works on.
pub(super) struct Revocation {
    pub(super) parts: Arc<Parts>,
    pub(super) data_peers: Peers,
    pub(super) book: AddressBookStore,
    pub(super) refused: Refused,
}

/// Heeds removals until told to stop.
pub(super) async fn run(this: Arc<Revocation>, stop: CancellationToken) -> anyhow::Result<()> {
    let parts = &this.parts;
    let mut map = parts.map.watch();
    let mut sentence = Sentence::default();
    let mut wound_down = false;
    let mut told = removed(&map.borrow());
    loop {
        let view = Arc::clone(&map.borrow_and_update());
        tell(parts, &view, &mut told);
        this.drop_removed(&view)?;
        if is_removed(&view, parts.me) {
            if !wound_down {
                wound_down = true;
                wind_down(parts).await;
            }
        } else if let Some(by) =
            sentence.look(parts.now(), &this.refused.all(), &parts.control_peers.connected())
        {
            // Its own map never heard of it. Written down, it holds after a restart too.
            let removal = Removal { at: parts.clock.wall(), by };
            parts.map.edit([Edit::ChangeNode(parts.me, NodeChange::Remove(removal))])?;
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = map.changed() => changed?,
            () = this.refused.heard.notified() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

impl Revocation {
    /// Closes what connects this node to removed ones, and forgets where they are.
    fn drop_removed(&self, view: &MapView) -> anyhow::Result<()> {
        let gone = |store: &StoreId| *store != self.parts.me && is_removed(view, *store);
        for (port, peers) in [("control", &self.parts.control_peers), ("data", &self.data_peers)] {
            for store in peers.connected().into_iter().filter(gone) {
                tracing::warn!(%store, port, "dropped the connections to a removed node");
                peers.drop_peer(store);
            }
        }
        for store in self.book.stores().into_iter().filter(gone) {
            self.book.forget(store)?;
        }
        Ok(())
    }
}

fn removed(view: &MapView) -> BTreeSet<StoreId> {
    view.nodes().filter(|node| node.spec.removed).map(|node| node.spec.store).collect()
}

/// Notes the removals that were not told yet.
fn tell(parts: &Parts, view: &MapView, told: &mut BTreeSet<StoreId>) {
    for store in removed(view) {
        let Some(node) = view.node(&store).filter(|_| told.insert(store)) else { continue };
        let (name, region) = (&node.spec.name, &node.spec.region);
        let text = format!("{name} ({region}) was removed from the cluster");
        parts.events.add(parts.clock.wall(), "node.removed", name.as_str(), text);
    }
}

fn is_removed(view: &MapView, store: StoreId) -> bool {
    view.node(&store).is_some_and(|n| n.spec.removed)
}

/// This node was removed: it stops its services and gives its leases back. The reconcile loop takes
/// nothing up any more from when the flag is set.
async fn wind_down(parts: &Arc<Parts>) {
    parts.removed.set();
    tracing::error!(
        name = %parts.name, store = %parts.me,
        "THIS NODE WAS REMOVED FROM THE CLUSTER: it stops its services and keeps its data; to use \
         this machine again, move its state folder away and join as a new node"
    );
    leaving::leave(parts, false).await;
    for lease in parts.leases.all() {
        parts.leases.stand_down(lease.volume);
        if lease.held.is_some() {
            let given = parts.leases.release(lease.volume, None);
            match tokio::time::timeout(GIVE_BACK, given).await {
                Ok(Ok(epoch)) => {
                    tracing::info!(volume = %lease.volume, %epoch, "gave a lease back");
                }
                Ok(Err(error)) => {
                    tracing::info!(volume = %lease.volume, %error, "a lease is over");
                }
                Err(_elapsed) => tracing::info!(volume = %lease.volume, "a lease runs out"),
            }
        }
    }
    parts.wake.notify_one();
}

/// Whether this node was removed.
#[derive(Debug, Default)]
pub(super) struct RemovedFlag(AtomicBool);

impl RemovedFlag {
    fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Refuses what only a member may do.
pub(super) fn member(parts: &Parts) -> Result<(), ApiError> {
    if !is_removed(&parts.map_view(), parts.me) {
        return Ok(());
    }
    let text = format!("{} was removed from the cluster and changes nothing in it", parts.name);
    Err(ApiError::new(ErrorCode::NotPermitted, text)
        .hint("run this on another node; to use this machine again, move its state folder away and join as a new node"))
}

/// Leaves removed nodes out of the status, and says of this one that it was removed before all else.
pub(super) fn attend(parts: &Parts, status: &mut Status) {
    status.nodes.retain(|n| n.liveness != Liveness::Removed || n.is_self);
    if is_removed(&parts.map_view(), parts.me) {
        let text = format!(
            "this node ({}) was removed from the cluster: its services are stopped and its data is \
             kept; to use the machine again, move its state folder away and join as a new node",
            parts.name
        );
        status.attention.insert(0, Attention { severity: Severity::Critical, text, command: None });
    }
}

/// The members without those that were removed, as both change.
pub(super) fn without_removed(
    me: StoreId,
    members: watch::Receiver<Arc<View>>,
    map: &Map,
) -> (watch::Receiver<Arc<View>>, impl Future<Output = anyhow::Result<()>> + use<>) {
    let mut removals = map.watch();
    let mut members = members;
    let first = filtered(me, &members.borrow_and_update(), &removals.borrow_and_update());
    let (shown, seen) = watch::channel(first);
    let follow = async move {
        loop {
            tokio::select! {
                // Membership or the map has ended, and with it the control plane.
                changed = members.changed() => if changed.is_err() { return Ok(()) },
                changed = removals.changed() => if changed.is_err() { return Ok(()) },
            }
            let next = filtered(me, &members.borrow_and_update(), &removals.borrow_and_update());
            shown.send_if_modified(|present| {
                let differs = **present != *next;
                *present = next;
                differs
            });
        }
    };
    (seen, follow)
}

fn filtered(me: StoreId, members: &Arc<View>, map: &MapView) -> Arc<View> {
    let gone = |store: &StoreId| *store != me && is_removed(map, *store);
    if !members.nodes.keys().any(gone) {
        return Arc::clone(members);
    }
    let mut view = View::clone(members);
    view.nodes.retain(|store, _| !gone(store));
    Arc::new(view)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(id: u8) -> StoreId {
        StoreId::from_bytes([id; 16])
    }

    #[test]
    fn refusals_count_once_no_other_peer_is_connected_for_a_while() {
        let mut sentence = Sentence::default();
        let at = |secs: u64| BootTime::from_millis(secs * 1000);
        let none = BTreeSet::new();
        assert_eq!(sentence.look(at(0), &none, &[]), None, "alone is not removed");
        assert_eq!(sentence.look(at(9), &none, &[]), None);
        let one = BTreeSet::from([store(2)]);
        assert_eq!(sentence.look(at(10), &one, &[store(3)]), None, "another works with it");
        assert_eq!(sentence.look(at(99), &one, &[store(3)]), None, "for as long as it does");
        assert_eq!(sentence.look(at(100), &one, &[]), None);
        assert_eq!(sentence.look(at(104), &one, &[store(3)]), None, "it came back");
        assert_eq!(sentence.look(at(110), &one, &[]), None);
        assert_eq!(sentence.look(at(114), &one, &[store(2)]), None, "who refuses does not count");
        assert_eq!(sentence.look(at(115), &one, &[]), Some(store(2)));
    }

    #[test]
    fn a_peer_is_heard_once() {
        let refused = Refused::default();
        refused.hear(store(2));
        refused.hear(store(2));
        assert_eq!(refused.all().len(), 1);
    }
}

//! What the replication may do, answered from the leases: the fence of invariant I5. It refuses
//! when in doubt.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use flocker_base::{Clock, Epoch, StoreId, VolumeId};
use flocker_gossip::lease::Leases;
use flocker_gossip::map::Map;
use flocker_replicate::{Fence, FenceRefusal};
use tokio::sync::Notify;

use super::control_plane::ControlPlane;
use super::masters::Masters;
use super::parts::locked;
use super::promoted::Promoted;

/// The fence. It is handed to the replication before the other parts exist.
#[derive(Debug)]
pub(super) struct LeaseFence {
    leases: Leases,
    map: Map,
    promoted: Arc<Promoted>,
    masters: Arc<Masters>,
    clock: Arc<dyn Clock>,
    wake: Arc<Notify>,
    /// Who was admitted under each epoch: one epoch has one master.
    admitted: Mutex<HashMap<VolumeId, (Epoch, StoreId)>>,
}

impl LeaseFence {
    pub(super) fn new(
        plane: &ControlPlane,
        promoted: &Arc<Promoted>,
        masters: &Arc<Masters>,
        clock: &Arc<dyn Clock>,
        wake: &Arc<Notify>,
    ) -> Self {
        Self {
            leases: plane.leases.clone(),
            map: plane.map.clone(),
            promoted: Arc::clone(promoted),
            masters: Arc::clone(masters),
            clock: Arc::clone(clock),
            wake: Arc::clone(wake),
            admitted: Mutex::default(),
        }
    }
}

impl Fence for LeaseFence {
    fn may_write(&self, volume: VolumeId) -> Option<Epoch> {
        let epoch = self.leases.view(volume)?.held?.epoch;
        self.leases.holds(volume, epoch, self.clock.boot())?;
        (self.promoted.epoch(volume) == Some(epoch)).then_some(epoch)
    }

    fn admit(&self, volume: VolumeId, from: StoreId, epoch: Epoch) -> Result<(), FenceRefusal> {
        if self.map.view().volume(&volume).is_none() {
            return Err(FenceRefusal::UnknownVolume(volume));
        }
        let floor = self.leases.floor(volume);
        if epoch < floor {
            return Err(FenceRefusal::LowerEpoch { volume, offered: epoch, highest: floor });
        }
        {
            let mut admitted = locked(&self.admitted);
            match admitted.get(&volume) {
                Some((known, master)) if *known == epoch && *master != from => {
                    return Err(FenceRefusal::OtherMaster { volume, epoch, master: *master });
                }
                Some((known, _)) if *known > epoch => {
                    return Err(FenceRefusal::LowerEpoch {
                        volume,
                        offered: epoch,
                        highest: *known,
                    });
                }
                _ => admitted.insert(volume, (epoch, from)),
            };
        }
        self.leases.raise_seen(volume, epoch);
        if self.masters.learn(volume, epoch, from) {
            self.wake.notify_one();
        }
        if self.promoted.epoch(volume).is_some() {
            // The tail has to be kept first; the sender comes again.
            return Err(FenceRefusal::NotYet(volume));
        }
        Ok(())
    }
}

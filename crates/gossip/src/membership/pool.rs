//! One chitchat pool, as membership uses it: started, read, spoken in, left. It decides nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chitchat::{ChitchatConfig, ChitchatHandle, FailureDetectorConfig, spawn_chitchat};
use flocker_base::{ClusterId, Name, StoreId};
use tokio::time::timeout;

use super::roll::Sighting;
use super::transport::{Inlet, Outlet};
use super::{KEY_LEFT, MembershipConfig, MembershipError, chat_id};
use crate::control::Wire;

/// How long chitchat may take to end when asked to.
const ENDING: Duration = Duration::from_secs(2);

/// How many peers a node that leaves tells so itself, and how long it gives them to ask.
const FAREWELLS: usize = 8;
const FAREWELL: Duration = Duration::from_millis(300);

/// How many peers are told at once of something new.
const NUDGES: usize = 2;

/// The id of a region's pool, or of the pool between regions: a message of one is refused in
/// another. Short, since every round's first message carries it.
pub(super) fn id_of(cluster: ClusterId, region: Option<&Name>) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"flocker pool").update(cluster.as_bytes());
    if let Some(region) = region {
        hasher.update(&[1]).update(region.as_str().as_bytes());
    }
    data_encoding::BASE64_NOPAD.encode(&hasher.finalize().as_bytes()[..12])
}

/// A pool that this node is in.
pub(super) struct Pool {
    me: StoreId,
    chat: ChitchatHandle,
    inlet: Arc<Inlet>,
}

impl Pool {
    /// Enters a pool, as this generation, with these values.
    pub(super) async fn enter(
        config: &MembershipConfig,
        wire: &Arc<dyn Wire>,
        inlet: &Arc<Inlet>,
        generation: u64,
        values: BTreeMap<String, String>,
    ) -> Result<Self, MembershipError> {
        let me = wire.local();
        let id = chat_id::of(me, generation);
        let config = ChitchatConfig {
            listen_addr: id.gossip_advertise_addr,
            chitchat_id: id,
            cluster_id: inlet.pool().to_owned(),
            gossip_interval: config.gossip_interval,
            // Whom to begin with is the scout's affair: it knows who is of which pool.
            seed_nodes: Vec::new(),
            failure_detector_config: FailureDetectorConfig::new(
                config.phi_threshold,
                200,
                Duration::from_secs(10),
                config.initial_interval,
                config.dead_node_grace,
            ),
            marked_for_deletion_grace_period: Duration::from_secs(20 * 60),
            catchup_callback: None,
            extra_liveness_predicate: None,
        };
        let outlet = Outlet::new(Arc::clone(wire), inlet.kind(), inlet.open(generation));
        let chat = spawn_chitchat(config, values.into_iter().collect(), &outlet)
            .await
            .map_err(|error| MembershipError::Start(format!("{error:#}")))?;
        Ok(Self { me, chat, inlet: Arc::clone(inlet) })
    }

    /// Why the pool ended, once it has. It does so by itself only if something is wrong. Cancel
    /// safe, and may be awaited again.
    pub(super) fn ended(&self) -> impl Future<Output = String> + use<> {
        let ended = self.chat.termination_watcher();
        async move { ended.await.map_or_else(|e| format!("{e:#}"), |()| "without a word".into()) }
    }

    /// What the pool holds, as long as the lock is.
    pub(super) async fn lock(&self) -> tokio::sync::OwnedMutexGuard<chitchat::Chitchat> {
        self.chat.chitchat().lock_owned().await
    }

    pub(super) fn inlet(&self) -> &Inlet {
        &self.inlet
    }

    /// Says these values, and tells a few peers at once if any is new.
    pub(super) async fn say(&self, values: impl IntoIterator<Item = (String, String)>) {
        let mut chitchat = self.lock().await;
        let before = chitchat.self_node_state().max_version();
        for (key, value) in values {
            chitchat.self_node_state().set(key, value);
        }
        if chitchat.self_node_state().max_version() != before {
            let peers = self.live(&chitchat);
            drop(chitchat);
            for peer in peers.into_iter().take(NUDGES) {
                self.gossip(peer);
            }
        }
    }

    /// Exchanges news with this node. Gossip that has ended does nothing; that is noticed elsewhere.
    pub(super) fn gossip(&self, with: StoreId) {
        let _ = self.chat.gossip(chat_id::address(with));
    }

    /// Says that this node leaves the pool, and how, to a few peers at once; the others learn it
    /// from them.
    pub(super) async fn bid_farewell(&self, how: &str) {
        let peers = {
            let mut chitchat = self.lock().await;
            chitchat.self_node_state().set(KEY_LEFT, how);
            self.live(&chitchat)
        };
        if peers.is_empty() {
            return;
        }
        for peer in peers.into_iter().take(FAREWELLS) {
            self.gossip(peer);
        }
        tokio::time::sleep(FAREWELL).await;
    }

    /// Ends the gossip.
    pub(super) async fn close(self) {
        self.inlet.close();
        match timeout(ENDING, self.chat.shutdown()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "membership gossip did not end well"),
            Err(_) => tracing::warn!("membership gossip did not end in time"),
        }
    }

    /// Peers that seem alive. A set's order: not the same ones each time.
    fn live(&self, chitchat: &chitchat::Chitchat) -> Vec<StoreId> {
        let ids = chitchat.live_nodes().filter_map(chat_id::parse).map(|(store, _)| store);
        ids.filter(|store| *store != self.me).collect()
    }
}

/// The states that a pool holds.
pub(super) fn sightings(chitchat: &chitchat::Chitchat) -> Vec<Sighting<'_>> {
    let live: std::collections::HashSet<_> = chitchat.live_nodes().collect();
    let states = chitchat.node_states().iter().filter_map(|(id, state)| {
        let (store, generation) = chat_id::parse(id)?;
        Some(Sighting {
            store,
            generation,
            live: live.contains(id),
            version: state.max_version(),
            values: state.key_values().collect(),
        })
    });
    states.collect()
}

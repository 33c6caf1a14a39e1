//! One chitchat pool, as membership uses it: started, read, spoken in, left. It decides nothing.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chitchat::{ChitchatConfig, ChitchatHandle, FailureDetectorConfig, spawn_chitchat};
use flocker_base::{BootTime, ClusterId, Name, StoreId};
use tokio::time::timeout;

use super::pace::Pace;
use super::roll::Sighting;
use super::transport::{Inlet, Outlet};
use super::{KEY_LEFT, KEY_LOAD, KEY_ROOT, MembershipConfig, MembershipError, Suspicions, chat_id};
use crate::control::Wire;

/// How long chitchat may take to end when asked to.
const ENDING: Duration = Duration::from_secs(2);

/// How many peers a node that leaves tells so itself, and how long it gives them to ask.
const FAREWELLS: usize = 8;
const FAREWELL: Duration = Duration::from_millis(300);

/// How many peers are told at once of something new.
const NUDGES: usize = 2;

/// How many mean intervals between heartbeats make a node dead, and how many of those intervals
/// chitchat takes to be `initial_interval`, beside the one that it remembers here.
const PHI: f64 = 10.0;
const PRIORS: f64 = 5.0;

/// Chitchat's own judgement of who lives. It remembers one interval beside five that it assumes, so
/// that many heartbeats in a moment do not make it expect the next in a moment too.
fn heartbeats(config: &MembershipConfig) -> FailureDetectorConfig {
    let assumed = config.heartbeat_lasts.mul_f64((PRIORS + 1.0) / (PHI * PRIORS));
    FailureDetectorConfig::new(PHI, 1, config.heartbeat_lasts, assumed, config.dead_node_grace)
}

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
    pace: Arc<Mutex<Pace>>,
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
        let pace = Arc::new(Mutex::new(Pace::new(inlet.clock().boot(), config, generation)));
        let config = ChitchatConfig {
            listen_addr: id.gossip_advertise_addr,
            chitchat_id: id,
            cluster_id: inlet.pool().to_owned(),
            gossip_interval: config.gossip_interval,
            // Whom to begin with is the scout's affair: it knows who is of which pool.
            seed_nodes: Vec::new(),
            failure_detector_config: heartbeats(config),
            marked_for_deletion_grace_period: Duration::from_secs(20 * 60),
            catchup_callback: None,
            extra_liveness_predicate: None,
        };
        let outlet =
            Outlet::new(Arc::clone(wire), inlet, inlet.open(generation), Arc::clone(&pace));
        let chat = spawn_chitchat(config, values.into_iter().collect(), &outlet)
            .await
            .map_err(|error| MembershipError::Start(format!("{error:#}")))?;
        Ok(Self { me, chat, inlet: Arc::clone(inlet), pace })
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
        let mut urgent = false;
        for (key, value) in values {
            let before = chitchat.self_node_state().max_version();
            let can_wait = [KEY_ROOT, KEY_LOAD].contains(&key.as_str());
            chitchat.self_node_state().set(key, value);
            urgent |= !can_wait && chitchat.self_node_state().max_version() != before;
        }
        if urgent {
            drop(chitchat);
            self.pace().heat(self.inlet.clock().boot());
            let peers = self.pace().some_living(NUDGES);
            for peer in peers {
                self.gossip(peer);
            }
        }
    }

    /// Takes a look at what the pool holds, for how often it is to gossip.
    pub(super) fn note(
        &self,
        now: BootTime,
        states: &[Sighting<'_>],
        vouched: &Suspicions,
        suspected: &Suspicions,
    ) {
        self.pace().note(now, states, vouched, suspected);
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Exchanges news with this node. Gossip that has ended does nothing; that is noticed elsewhere.
    pub(super) fn gossip(&self, with: StoreId) {
        self.pace().want(with);
        let _ = self.chat.gossip(chat_id::address(with));
    }

    /// Says that this node leaves the pool, and how, to a few peers at once; the others learn it
    /// from them.
    pub(super) async fn bid_farewell(&self, how: &str) {
        self.lock().await.self_node_state().set(KEY_LEFT, how);
        let peers = self.pace().some_living(FAREWELLS);
        if peers.is_empty() {
            return;
        }
        for peer in peers {
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

    /// Takes which of the pool's states are alive, all told.
    pub(super) fn keep_peers(&self, states: &[Sighting<'_>], suspected: &Suspicions) {
        self.pace().keep_peers(self.me, states, suspected);
    }
}

/// The states that a pool holds.
pub(super) fn sightings(chitchat: &chitchat::Chitchat) -> Vec<Sighting<'_>> {
    let live: HashSet<_> = chitchat.live_nodes().collect();
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

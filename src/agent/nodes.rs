//! The cluster's nodes: listing, labelling and removing them. A removal is a mark in the map that
//! every node heeds by itself; what follows from it on each is [`super::revocation`]'s affair.

use std::collections::BTreeMap;

use async_trait::async_trait;
use flocker_base::{Name, StoreId};
use flocker_gossip::map::{Edit, MapError, MapView, NodeChange};
use flocker_gossip::membership::Liveness;
use flocker_gossip::model::{LabelKey, NodeSpec, Placement, Removal, VolumeSpec, Voters};

use super::lookup::by_id;
use super::moving::millis;
use super::operations::AgentOperations;
use super::parts::Parts;
use super::revocation::member;
use crate::api::{
    ApiError, ErrorCode, NodeDetails, NodeInfo, NodeJoined, NodeLabel, NodeLabelled, NodeList,
    NodeOperations, NodeRemove, NodeRemoved, NodeState, NodeVolume,
};

#[async_trait]
impl NodeOperations for AgentOperations {
    async fn nodes(&self) -> Result<NodeList, ApiError> {
        let parts = &self.parts;
        let mut nodes: Vec<NodeInfo> =
            parts.map_view().nodes().map(|n| info(parts, &n.spec)).collect();
        nodes.sort_by(|a, b| (&a.region, &a.name, a.store).cmp(&(&b.region, &b.name, b.store)));
        Ok(NodeList { viewed_from: parts.name.clone(), nodes })
    }

    async fn node(&self, node: String) -> Result<NodeDetails, ApiError> {
        let parts = &self.parts;
        let view = parts.map_view();
        let spec = find(&view, &node)?;
        let volumes = volumes_of(&view, spec.store);
        let outcome = removal(parts, &view, &spec);
        Ok(NodeDetails {
            node: info(parts, &spec),
            volumes,
            removal_needs_force: outcome.needs_force,
            removal_means: outcome.means,
        })
    }

    async fn remove_node(&self, request: NodeRemove) -> Result<NodeRemoved, ApiError> {
        let parts = &self.parts;
        member(parts)?;
        let view = parts.map_view();
        let spec = find(&view, &request.node)?;
        let NodeSpec { store, name, removed, .. } = spec.clone();
        if removed {
            return Ok(NodeRemoved { node: name, store, means: Vec::new() });
        }
        if store == parts.me {
            let text = format!("{name} is this node, and its peers would not hear of it from here");
            return Err(ApiError::new(ErrorCode::Usage, text).hint("run this on another node"));
        }
        let outcome = removal(parts, &view, &spec);
        if !outcome.needs_force.is_empty() && !request.force {
            let text = format!("{name} was not removed: {}", outcome.needs_force.join("; "));
            return Err(ApiError::new(ErrorCode::NotPermitted, text)
                .hint("settle that first, or add --force"));
        }
        let mark = Removal { at: parts.clock.wall(), by: parts.me };
        edit(parts, vec![Edit::ChangeNode(store, NodeChange::Remove(mark))])?;
        tracing::warn!(%store, %name, force = request.force, "a node was removed from the cluster");
        Ok(NodeRemoved { node: name, store, means: outcome.means })
    }

    async fn label_node(&self, request: NodeLabel) -> Result<NodeLabelled, ApiError> {
        let parts = &self.parts;
        member(parts)?;
        let usage = |text: String| ApiError::new(ErrorCode::Usage, text);
        let mut labels = BTreeMap::new();
        for (key, value) in request.labels {
            let key = LabelKey::new(key).map_err(|e| usage(e.to_string()))?;
            if let Some(value) = &value {
                key.check(value).map_err(|e| usage(e.to_string()))?;
            }
            labels.insert(key, value);
        }
        let spec = find(&parts.map_view(), &request.node)?;
        if spec.removed {
            return Err(usage(format!("{} was removed from the cluster", spec.name)));
        }
        edit(parts, vec![Edit::ChangeNode(spec.store, NodeChange::Label(labels))])?;
        let after = parts.map_view();
        let labels = after.node(&spec.store).map(|n| shown_labels(&n.spec)).unwrap_or_default();
        Ok(NodeLabelled { node: spec.name, labels })
    }
}

fn edit(parts: &Parts, edits: Vec<Edit>) -> Result<(), ApiError> {
    parts.map.edit(edits).map_err(|e| match e {
        MapError::TooManyLabels { .. } | MapError::TooLarge { .. } => {
            ApiError::new(ErrorCode::Usage, e.to_string()).hint("take some away: 'NAME-'")
        }
        other => ApiError::internal(other.to_string()),
    })
}

/// The node of this name, else the one whose store's id the text names.
fn find(view: &MapView, text: &str) -> Result<NodeSpec, ApiError> {
    if let Ok(name) = Name::new(text)
        && let Some(node) = view.node_named(&name)
    {
        return Ok(node.spec.clone());
    }
    let all = view.nodes().map(|n| (n.spec.store.to_string(), n.spec.clone()));
    by_id("node", "flocker node ls --all", text, all)
}

fn shown_labels(spec: &NodeSpec) -> BTreeMap<String, String> {
    spec.labels.iter().map(|(k, v)| (k.to_string(), v.clone())).collect()
}

fn info(parts: &Parts, spec: &NodeSpec) -> NodeInfo {
    let members = parts.members.borrow();
    let member = members.nodes.get(&spec.store).filter(|_| !spec.removed);
    let is_self = spec.store == parts.me;
    let now = parts.clock.wall();
    let state = match member.map(|m| m.liveness) {
        _ if spec.removed => NodeState::Removed,
        _ if is_self => NodeState::Live,
        Some(Liveness::Live) => NodeState::Live,
        Some(Liveness::Suspected) => NodeState::Suspected,
        Some(Liveness::Left) => NodeState::Left,
        None => NodeState::Unknown,
    };
    let since_removal = spec.removal.map(|r| millis(now.saturating_since(r.at)));
    let since = member.map(|m| millis(parts.now().saturating_since(m.since)));
    NodeInfo {
        store: spec.store,
        name: spec.name.clone(),
        region: spec.region.clone(),
        state,
        state_for_ms: if spec.removed { since_removal } else { since },
        version: member.map(|m| m.facts.version.clone()),
        incarnation: member.map(|m| m.incarnation.0),
        control: member.map(|m| m.facts.control),
        data: member.map(|m| m.facts.data),
        http: member.and_then(|m| m.facts.http),
        is_self,
        rtt_ms: parts.control_rtt(spec.store).filter(|_| !spec.removed).map(millis),
        labels: shown_labels(spec),
        joined: spec.origin.map(|origin| NodeJoined {
            ms_ago: millis(now.saturating_since(origin.at)),
            by: parts.name_of(origin.by),
            token: origin.token,
        }),
        removed_by: spec.removal.map(|r| parts.name_of(r.by)),
    }
}

/// What a volume rests on, by its placement or, before there is one, by its birth.
struct Rests<'a> {
    master: StoreId,
    copies: &'a [StoreId],
    voters: &'a Voters,
}

fn rests<'a>(spec: &'a VolumeSpec, placement: Option<&'a Placement>) -> Rests<'a> {
    match placement {
        Some(p) => Rests { master: p.holder, copies: &p.replicas, voters: &p.voters.voters },
        None => Rests {
            master: spec.birth.master,
            copies: &spec.birth.replicas,
            voters: &spec.birth.voters,
        },
    }
}

fn volumes_of(view: &MapView, store: StoreId) -> Vec<NodeVolume> {
    let mut volumes: Vec<NodeVolume> = view
        .volumes()
        .map(|volume| {
            let rests = rests(&volume.spec, view.placement(&volume.spec.id).map(|p| &**p));
            NodeVolume {
                volume: volume.spec.name.clone(),
                master: rests.master == store,
                copy: rests.copies.contains(&store),
                votes: rests.voters.contains(&store),
            }
        })
        .filter(|v| v.master || v.copy || v.votes)
        .collect();
    volumes.sort_by(|a, b| a.volume.cmp(&b.volume));
    volumes
}

/// What the removal of a node would bring about.
#[derive(Debug, Default)]
struct Outcome {
    needs_force: Vec<String>,
    means: Vec<String>,
}

fn removal(parts: &Parts, view: &MapView, spec: &NodeSpec) -> Outcome {
    if spec.removed {
        return Outcome::default();
    }
    let lives = |store: StoreId| {
        store != spec.store
            && parts.lives(store)
            && !view.node(&store).is_some_and(|n| n.spec.removed)
    };
    let volumes = view.volumes().map(|v| (&v.spec, view.placement(&v.spec.id).map(|p| &**p)));
    outcome(spec, parts.lives(spec.store), volumes, lives)
}

fn outcome<'a>(
    spec: &NodeSpec,
    is_live: bool,
    volumes: impl Iterator<Item = (&'a VolumeSpec, Option<&'a Placement>)>,
    lives: impl Fn(StoreId) -> bool,
) -> Outcome {
    let (store, name) = (spec.store, &spec.name);
    let mut found = Outcome::default();
    if is_live {
        found.needs_force.push(format!(
            "{name} lives (stop its agent first, which hands its services over, unless it is stolen \
             or out of control)"
        ));
    }
    for (volume, placement) in volumes {
        let rests = rests(volume, placement);
        let volume = &volume.name;
        if rests.master == store {
            found.needs_force.push(format!("it is the master of volume {volume}"));
        }
        if rests.voters.contains(&store) {
            let left = rests.voters.iter().filter(|voter| lives(**voter)).count();
            if left * 2 <= rests.voters.len() {
                found.needs_force.push(format!(
                    "volume {volume} would have {left} live voter(s) of {}, too few to have a master",
                    rests.voters.len()
                ));
            }
            found.means.push(format!("volume {volume} loses a voter, which is not replaced"));
        }
        if rests.copies.contains(&store) {
            let left = rests.copies.iter().filter(|copy| lives(**copy)).count();
            found.means.push(format!(
                "volume {volume} loses a copy, which is not remade: {left} live one(s) remain"
            ));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use flocker_base::{Epoch, Head, VolumeId};
    use flocker_gossip::model::{Birth, PlacementState, VolumePolicy, VoterConfig};

    fn store(id: u8) -> StoreId {
        StoreId::from_bytes([id; 16])
    }

    fn name(text: &str) -> Name {
        Name::new(text).expect("a name")
    }

    fn volume(master: u8, copies: &[u8], voters: &[u8]) -> VolumeSpec {
        VolumeSpec {
            id: VolumeId::from_bytes([1; 16]),
            name: name("data"),
            policy: VolumePolicy::default(),
            birth: Birth {
                master: store(master),
                replicas: copies.iter().map(|id| store(*id)).collect(),
                voters: voters.iter().map(|id| store(*id)).collect(),
            },
        }
    }

    fn of(spec: &VolumeSpec, placed: Option<&Placement>, node: u8, live: &[u8]) -> Outcome {
        let node = NodeSpec::new(store(node), name("n"), name("eu"));
        let is_live = live.iter().any(|id| store(*id) == node.store);
        let lives = |s: StoreId| s != node.store && live.iter().any(|id| store(*id) == s);
        outcome(&node, is_live, [(spec, placed)].into_iter(), lives)
    }

    #[test]
    fn a_dead_node_without_part_in_anything_just_goes() {
        let found = of(&volume(1, &[1, 2], &[1, 2, 3]), None, 9, &[1, 2, 3]);
        assert!(found.needs_force.is_empty() && found.means.is_empty());
    }

    #[test]
    fn a_dead_replica_goes_with_a_word_on_what_is_lost() {
        let found = of(&volume(1, &[1, 2, 3], &[1, 2, 3]), None, 3, &[1, 2]);
        assert!(found.needs_force.is_empty(), "{found:?}");
        assert_eq!(found.means.len(), 2);
        assert!(found.means[1].contains("2 live one(s) remain"), "{found:?}");
    }

    #[test]
    fn a_live_node_a_master_and_a_needed_vote_need_force() {
        let spec = volume(1, &[1, 2], &[1, 2, 3]);
        let live = of(&spec, None, 3, &[1, 2, 3]);
        assert!(live.needs_force.len() == 1 && live.needs_force[0].contains("lives"), "{live:?}");
        let master = of(&spec, None, 1, &[2, 3]);
        assert!(master.needs_force[0].contains("master of volume data"), "{master:?}");
        let vote = of(&spec, None, 3, &[1]);
        assert!(vote.needs_force[0].contains("1 live voter(s) of 3"), "{vote:?}");
        let lone = of(&volume(1, &[1, 2], &[1]), None, 1, &[2]);
        assert_eq!(lone.needs_force.len(), 2, "master and only voter: {lone:?}");
    }

    #[test]
    fn the_placement_counts_once_there_is_one() {
        let spec = volume(1, &[1, 2], &[1, 2, 3]);
        let moved = Placement {
            volume: spec.id,
            epoch: Epoch::new(0, 2),
            sequence: 1,
            holder: store(2),
            voters: VoterConfig::birth(spec.birth.voters.clone()),
            replicas: vec![store(2), store(1)],
            head: Head::NONE,
            state: PlacementState::Active,
        };
        assert!(of(&spec, Some(&moved), 1, &[2, 3]).needs_force.is_empty());
        assert_eq!(of(&spec, Some(&moved), 2, &[1, 3]).needs_force.len(), 1);
    }
}

//! A killed agent restarts as the node that it was: identity, incarnation and map are intact.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use flocker::api::Status;
use flocker_base::{ClusterId, Incarnation, StoreId};

use crate::remains::Remains;

/// What was deployed, by name and id: everything that a status names and no fault may change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deployed {
    volumes: BTreeSet<String>,
    services: BTreeSet<String>,
    routes: BTreeSet<String>,
    nodes: BTreeSet<String>,
}

impl Deployed {
    /// As a status shows it.
    #[must_use]
    pub fn of(status: &Status) -> Self {
        let volume = |v: &flocker::api::VolumeStatus| format!("{} {}", v.name, v.id);
        let service =
            |s: &flocker::api::ServiceStatus| format!("{} {} on {}", s.name, s.id, s.volume);
        Self {
            volumes: status.volumes.iter().map(volume).collect(),
            services: status.services.iter().map(service).collect(),
            routes: status.routes.iter().map(|r| format!("{} to {}", r.route, r.service)).collect(),
            nodes: status.nodes.iter().map(|n| format!("{} {}", n.name, n.store)).collect(),
        }
    }

    /// As a node's disk has it.
    #[must_use]
    pub fn on_disk(remains: &Remains) -> Self {
        use flocker_gossip::model::RouteKey;
        let map = &remains.map;
        let volume_name = |id| map.volume(id).map_or_else(String::new, |v| v.name.to_string());
        let service_name = |id| map.service(id).map_or_else(String::new, |s| s.name.to_string());
        Self {
            volumes: map.volumes().map(|v| format!("{} {}", v.name, v.id)).collect(),
            services: map
                .services()
                .map(|s| format!("{} {} on {}", s.name, s.id, volume_name(&s.volume.volume)))
                .collect(),
            routes: map
                .routes()
                .map(|r| {
                    let RouteKey::HttpHost(host) = &r.key;
                    format!("http://{host} to {}", service_name(&r.service))
                })
                .collect(),
            nodes: map.nodes().map(|n| format!("{} {}", n.name, n.store)).collect(),
        }
    }
}

/// Who a node was when it was last looked at.
#[derive(Clone, Debug)]
struct Known {
    store: StoreId,
    cluster: ClusterId,
    certificate: Vec<u8>,
    settings: serde_json::Value,
    incarnation: Incarnation,
    starts_since: u64,
    answered_since: u64,
}

/// The checker, with who each node was.
#[derive(Debug)]
pub struct Intact {
    deployed: Deployed,
    known: BTreeMap<String, Known>,
}

impl Intact {
    /// Everything deployed is to stay as this status shows it.
    #[must_use]
    pub fn new(status: &Status) -> Self {
        Self { deployed: Deployed::of(status), known: BTreeMap::new() }
    }

    /// Judges what the agent of this name left when it was killed.
    ///
    /// # Errors
    /// What is not as it was.
    pub fn judge_remains(&mut self, name: &str, remains: &Remains) -> Result<()> {
        let on_disk = Deployed::on_disk(remains);
        if on_disk != self.deployed {
            bail!("the map on {name}'s disk is {on_disk:?} instead of {:?}", self.deployed);
        }
        if let Some(unread) = remains.map.unreadable().next() {
            bail!("the map on {name}'s disk has an unreadable record: {unread:?}");
        }
        let now = Known {
            store: remains.store,
            cluster: remains.cluster,
            certificate: remains.certificate.clone(),
            settings: remains.settings.clone(),
            incarnation: remains.incarnation,
            starts_since: 0,
            answered_since: 0,
        };
        if let Some(before) = self.known.insert(name.to_owned(), now.clone()) {
            same_node(name, &before, &now)?;
            let risen = now.incarnation.0.saturating_sub(before.incarnation.0);
            if now.incarnation < before.incarnation
                || risen < before.answered_since
                || risen > before.starts_since
            {
                bail!(
                    "{name}'s incarnation was {} and is {} after {} starts, {} of which answered",
                    before.incarnation.0,
                    now.incarnation.0,
                    before.starts_since,
                    before.answered_since
                );
            }
        }
        Ok(())
    }

    /// The agent of this name is started.
    pub fn started(&mut self, name: &str) {
        if let Some(known) = self.known.get_mut(name) {
            known.starts_since += 1;
        }
    }

    /// Judges the first status of an agent that was killed and started again.
    ///
    /// # Errors
    /// What is not as it was.
    pub fn judge_return(&mut self, name: &str, status: &Status) -> Result<()> {
        let known = self.known.get_mut(name).context("a node that was never dead")?;
        known.answered_since += 1;
        if status.cluster.id != known.cluster {
            bail!("{name} is back in cluster {} instead of {}", status.cluster.id, known.cluster);
        }
        let own = status.nodes.iter().find(|n| n.is_self).context("it does not know itself")?;
        if own.store != known.store || own.name.as_str() != name {
            bail!("{name} is back as {} with store {}", own.name, own.store);
        }
        if status.viewed_from.as_str() != name {
            bail!("{name} is back and calls itself {}", status.viewed_from);
        }
        self.judge_map(status)
    }

    /// Judges whether a status shows all that was deployed and nothing else.
    ///
    /// # Errors
    /// What is not as it was.
    pub fn judge_map(&self, status: &Status) -> Result<()> {
        let shown = Deployed::of(status);
        if shown != self.deployed {
            bail!("{}'s map is {shown:?} instead of {:?}", status.viewed_from, self.deployed);
        }
        Ok(())
    }
}

fn same_node(name: &str, before: &Known, now: &Known) -> Result<()> {
    if before.store != now.store || before.cluster != now.cluster {
        bail!("{name} was store {} and is {}", before.store, now.store);
    }
    if before.certificate != now.certificate {
        bail!("{name}'s certificate is another one");
    }
    if before.settings != now.settings {
        bail!("{name}'s settings were {} and are {}", before.settings, now.settings);
    }
    Ok(())
}

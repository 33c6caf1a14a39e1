//! From a deployment to the records that have to change: a pure plan. Everything is checked
//! before anything is written, so that a refused deployment changes nothing.

use std::collections::BTreeMap;

use flocker_base::{Name, ServiceId, VolumeId, WallTime};
use flocker_gossip::model::{RouteKey, RouteSpec, ServiceSpec, VolumeMount, VolumeSpec};

use super::allocate::{Candidate, allocate};
use crate::api::{ApiError, Change, ChangeKind, ChangedRecord, ErrorCode};
use crate::manifest::{Deployment, ServiceDraft, VolumeDraft};

/// What there is already, by name.
#[derive(Clone, Debug, Default)]
pub struct Existing {
    /// The volumes.
    pub volumes: BTreeMap<Name, VolumeSpec>,
    /// The services.
    pub services: BTreeMap<Name, ServiceSpec>,
    /// The routes.
    pub routes: BTreeMap<RouteKey, RouteSpec>,
}

/// The records to write, in this order, and what to tell the user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// New or changed volumes.
    pub volumes: Vec<VolumeSpec>,
    /// New or changed services.
    pub services: Vec<ServiceSpec>,
    /// New or changed routes.
    pub routes: Vec<RouteSpec>,
    /// A line a record.
    pub changes: Vec<Change>,
    /// What the mesh is too small for, a sentence each.
    pub shortfalls: Vec<String>,
}

/// Plans a deployment on these nodes. `random` gives the random part of new ids.
///
/// # Errors
/// [`ErrorCode::CannotPlace`] without a live node, [`ErrorCode::BadManifest`] for a change that
/// cannot be made to what exists.
pub fn plan(
    deployment: &Deployment,
    existing: &Existing,
    candidates: &[Candidate],
    now: WallTime,
    mut random: impl FnMut() -> [u8; 10],
) -> Result<Plan, ApiError> {
    let mut plan = Plan::default();
    let mut volume_ids: BTreeMap<&Name, VolumeId> =
        existing.volumes.iter().map(|(name, v)| (name, v.id)).collect();
    let mut candidates = candidates.to_vec();
    for draft in &deployment.volumes {
        let change = match existing.volumes.get(&draft.name) {
            Some(old) => change_volume(&mut plan, draft, old)?,
            None => {
                let id = VolumeId::new(now, random());
                volume_ids.insert(&draft.name, id);
                create_volume(&mut plan, draft, id, &mut candidates)?;
                ChangeKind::Created
            }
        };
        plan.note(ChangedRecord::Volume, draft.name.to_string(), change);
    }
    let mut service_ids: BTreeMap<&Name, ServiceId> =
        existing.services.iter().map(|(name, s)| (name, s.id)).collect();
    for draft in &deployment.services {
        let volume = volume_ids.get(&draft.volume).copied().ok_or_else(|| {
            bad(format!("service {} mounts volume {}, which is nowhere", draft.name, draft.volume))
        })?;
        let old = existing.services.get(&draft.name);
        check_volume_free(existing, draft, volume, old)?;
        let id = old.map_or_else(|| ServiceId::new(now, random()), |s| s.id);
        service_ids.insert(&draft.name, id);
        let new = service_spec(draft, id, volume);
        let change = plan.put(old, new, |p| &mut p.services);
        plan.note(ChangedRecord::Service, draft.name.to_string(), change);
    }
    for draft in &deployment.routes {
        let service = service_ids.get(&draft.service).copied().ok_or_else(|| {
            bad(format!("{draft} leads to service {}, which is nowhere", draft.service))
        })?;
        let new = RouteSpec { key: draft.key(), service };
        let change = plan.put(existing.routes.get(&new.key), new, |p| &mut p.routes);
        plan.note(ChangedRecord::Route, draft.to_string(), change);
    }
    Ok(plan)
}

impl Plan {
    fn note(&mut self, record: ChangedRecord, name: String, change: ChangeKind) {
        self.changes.push(Change { record, name, change });
    }

    fn put<T: PartialEq>(
        &mut self,
        old: Option<&T>,
        new: T,
        list: impl FnOnce(&mut Self) -> &mut Vec<T>,
    ) -> ChangeKind {
        let change = match old {
            Some(old) if *old == new => return ChangeKind::Unchanged,
            Some(_) => ChangeKind::Changed,
            None => ChangeKind::Created,
        };
        list(self).push(new);
        change
    }
}

fn create_volume(
    plan: &mut Plan,
    draft: &VolumeDraft,
    id: VolumeId,
    candidates: &mut [Candidate],
) -> Result<(), ApiError> {
    let policy = draft.policy();
    let place = allocate(&policy, candidates).ok_or_else(|| {
        ApiError::new(
            ErrorCode::CannotPlace,
            format!("no live node can take volume {}", draft.name),
        )
        .hint("see which nodes live: flocker status")
    })?;
    for (missing, what) in
        [(place.missing_local, "in its region"), (place.missing_remote, "in other regions")]
    {
        if missing > 0 {
            plan.shortfalls.push(format!(
                "volume {} has {missing} fewer replicas {what} than it asks for: no node is there \
                 to hold them; they are made once there is",
                draft.name
            ));
        }
    }
    for candidate in candidates.iter_mut().filter(|c| c.store == place.birth.master) {
        candidate.load += 1;
    }
    let birth = place.birth;
    plan.volumes.push(VolumeSpec { id, name: draft.name.clone(), policy, birth });
    Ok(())
}

fn change_volume(
    plan: &mut Plan,
    draft: &VolumeDraft,
    old: &VolumeSpec,
) -> Result<ChangeKind, ApiError> {
    let policy = draft.policy();
    Ok(plan.put(Some(old), VolumeSpec { policy, ..old.clone() }, |p| &mut p.volumes))
}

fn check_volume_free(
    existing: &Existing,
    draft: &ServiceDraft,
    volume: VolumeId,
    old: Option<&ServiceSpec>,
) -> Result<(), ApiError> {
    if old.is_some_and(|s| s.volume.volume != volume) {
        return Err(bad(format!(
            "service {} runs with another volume, and cannot change it",
            draft.name
        ))
        .hint(format!("remove it first: flocker service rm {}", draft.name)));
    }
    match existing.services.values().find(|s| s.volume.volume == volume && s.name != draft.name) {
        Some(other) => Err(bad(format!(
            "volume {} belongs to service {}, and a volume is mounted in one place at a time",
            draft.volume, other.name
        ))
        .hint("give each service a volume of its own")),
        None => Ok(()),
    }
}

fn service_spec(draft: &ServiceDraft, id: ServiceId, volume: VolumeId) -> ServiceSpec {
    ServiceSpec {
        id,
        name: draft.name.clone(),
        command: draft.command.clone(),
        environment: draft.environment.clone(),
        volume: VolumeMount { volume, path: draft.volume_path.clone() },
        health_path: draft.health_path.clone(),
        stop_grace: draft.stop_grace(),
        engine: draft.engine,
    }
}

fn bad(message: String) -> ApiError {
    ApiError::new(ErrorCode::BadManifest, message)
}

#[cfg(test)]
mod tests {
    use flocker_base::StoreId;
    use flocker_gossip::model::EngineKind;

    use super::*;
    use crate::manifest::RouteDraft;

    fn name(text: &str) -> Name {
        Name::new(text).expect("a name")
    }

    fn deployment() -> Deployment {
        Deployment {
            volumes: vec![VolumeDraft::with_defaults(name("data"))],
            services: vec![ServiceDraft {
                name: name("tally"),
                command: vec!["flocker".into(), "tally".into()],
                environment: BTreeMap::new(),
                volume: name("data"),
                volume_path: "/data".into(),
                health_path: Some("/healthz".into()),
                stop_grace_ms: 5_000,
                engine: EngineKind::Process,
            }],
            routes: vec![RouteDraft { host: "tally.demo".into(), service: name("tally") }],
        }
    }

    fn nodes() -> Vec<Candidate> {
        let node = |n: u8, region| Candidate {
            store: StoreId::from_bytes([n; 16]),
            region: name(region),
            zone: None,
            load: 0,
        };
        vec![node(1, "eu"), node(2, "eu"), node(3, "us")]
    }

    fn run(deployment: &Deployment, existing: &Existing) -> Result<Plan, ApiError> {
        let mut n = 0u8;
        plan(deployment, existing, &nodes(), WallTime::from_millis(5), || {
            n += 1;
            [n; 10]
        })
    }

    fn after(plan: &Plan) -> Existing {
        Existing {
            volumes: plan.volumes.iter().map(|v| (v.name.clone(), v.clone())).collect(),
            services: plan.services.iter().map(|s| (s.name.clone(), s.clone())).collect(),
            routes: plan.routes.iter().map(|r| (r.key.clone(), r.clone())).collect(),
        }
    }

    #[test]
    fn a_deployment_creates_once_and_then_changes_nothing() {
        let first = run(&deployment(), &Existing::default()).expect("plans");
        assert!(first.changes.iter().all(|c| c.change == ChangeKind::Created));
        assert_eq!(first.volumes[0].birth.replicas.len(), 3);
        let second = run(&deployment(), &after(&first)).expect("plans");
        assert!(second.changes.iter().all(|c| c.change == ChangeKind::Unchanged));
        assert!(
            second.volumes.is_empty() && second.services.is_empty() && second.routes.is_empty()
        );
    }

    #[test]
    fn a_changed_file_changes_what_changed() {
        let existing = after(&run(&deployment(), &Existing::default()).expect("plans"));
        let mut changed = deployment();
        changed.services[0].environment.insert("A".into(), "b".into());
        let plan = run(&changed, &existing).expect("plans");
        assert_eq!((plan.volumes.len(), plan.services.len(), plan.routes.len()), (0, 1, 0));
        assert_eq!(plan.services[0].id, existing.services[&name("tally")].id);
    }

    #[test]
    fn the_number_of_copies_may_change_and_the_volume_stays_where_it_was_born() {
        let existing = after(&run(&deployment(), &Existing::default()).expect("plans"));
        let mut fewer = deployment();
        fewer.volumes[0].replicas = 0;
        let plan = run(&fewer, &existing).expect("plans");
        let before = existing.volumes.values().next().expect("it is there");
        assert_eq!(plan.volumes[0].policy.local_replicas, 0);
        assert_eq!(plan.volumes[0].birth, before.birth);
    }

    #[test]
    fn what_cannot_be_done_is_refused_with_a_way_out() {
        let existing = after(&run(&deployment(), &Existing::default()).expect("plans"));
        let mut second = deployment();
        second.services[0].name = name("other");
        second.routes.clear();
        let error = run(&second, &existing).expect_err("refused");
        assert!(error.message.contains("belongs to service tally"), "{error}");
        let nowhere =
            plan(&deployment(), &Existing::default(), &[], WallTime::from_millis(5), || [0; 10]);
        assert_eq!(nowhere.expect_err("refused").code, ErrorCode::CannotPlace);
    }
}

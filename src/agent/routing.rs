//! The route table, as a pure function of the map, the masters known and what runs here.

use std::collections::HashMap;
use std::net::SocketAddr;

use flocker_base::{Epoch, ServiceId, StoreId, VolumeId};
use flocker_gossip::model::{RouteKey, RouteSpec, ServiceSpec};
use flocker_proxy::{Place, RouteTable};

/// A ready instance on this node, under a lease that holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Serving {
    /// Where it listens.
    pub(super) address: SocketAddr,
    /// Its epoch.
    pub(super) epoch: Epoch,
}

/// Makes the table. A service is local where it serves, else with the newest master known; while
/// that is this node and nothing serves, its requests are held.
pub(super) fn route_table<'a>(
    me: StoreId,
    routes: impl Iterator<Item = &'a RouteSpec>,
    services: impl Iterator<Item = &'a ServiceSpec>,
    serving: &HashMap<ServiceId, Serving>,
    master: impl Fn(VolumeId) -> Option<(Epoch, StoreId)>,
) -> RouteTable {
    let mut table = RouteTable::default();
    for RouteSpec { key: RouteKey::HttpHost(host), service } in routes {
        table.hosts.insert(host.clone(), *service);
    }
    for service in services {
        let known = master(service.volume.volume);
        let here = serving
            .get(&service.id)
            .filter(|s| known.is_none_or(|(epoch, store)| store == me || epoch <= s.epoch));
        let place = match (here, known) {
            (Some(s), _) => Place::Local { address: s.address, epoch: s.epoch },
            (None, Some((_, store))) if store != me => Place::Remote { node: store },
            _ => Place::Unknown,
        };
        table.services.insert(service.id, place);
        table.names.insert(service.id, service.name.to_string());
    }
    table
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use flocker_base::{Name, WallTime};
    use flocker_gossip::model::{EngineKind, VolumeMount};

    use super::*;

    const fn store(n: u8) -> StoreId {
        StoreId::from_bytes([n; 16])
    }

    fn service() -> ServiceSpec {
        ServiceSpec {
            id: ServiceId::new(WallTime::from_millis(1), [2; 10]),
            name: Name::new("tally").expect("a name"),
            command: vec!["tally".into()],
            environment: Default::default(),
            volume: VolumeMount {
                volume: VolumeId::new(WallTime::from_millis(1), [1; 10]),
                path: "/data".into(),
            },
            health_path: None,
            stop_grace: Duration::from_secs(1),
            engine: EngineKind::Process,
        }
    }

    fn place(serving: Option<u64>, master: Option<(u64, u8)>) -> Place {
        let service = service();
        let address = "127.0.0.1:9".parse().expect("an address");
        let serving = serving
            .map(|c| (service.id, Serving { address, epoch: Epoch::new(0, c) }))
            .into_iter()
            .collect();
        let table =
            route_table(store(1), std::iter::empty(), std::iter::once(&service), &serving, |_| {
                master.map(|(c, s)| (Epoch::new(0, c), store(s)))
            });
        table.services[&service.id]
    }

    #[test]
    fn requests_go_where_the_newest_epoch_serves() {
        let address = "127.0.0.1:9".parse().expect("an address");
        let local = |c| Place::Local { address, epoch: Epoch::new(0, c) };
        assert_eq!(place(Some(3), Some((3, 1))), local(3));
        assert_eq!(place(Some(3), None), local(3), "not announced yet");
        assert_eq!(place(Some(4), Some((3, 2))), local(4), "the old master's word is past");
        assert_eq!(place(Some(3), Some((4, 2))), Place::Remote { node: store(2) });
        assert_eq!(place(None, Some((4, 2))), Place::Remote { node: store(2) });
        assert_eq!(place(None, Some((4, 1))), Place::Unknown, "starting here");
        assert_eq!(place(None, None), Place::Unknown);
    }
}

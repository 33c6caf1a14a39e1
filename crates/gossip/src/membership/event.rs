//! What happens to nodes, as values. It tells each thing once, and never decides who is alive.

use flocker_base::{Incarnation, Name, StoreId};

use super::{Liveness, Member};

/// Something that happened to a node, as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The node.
    pub store: StoreId,
    /// Its name.
    pub name: Name,
    /// Its region.
    pub region: Name,
    /// The count of its store's starts.
    pub incarnation: Incarnation,
}

/// What happened to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It is alive, and was not known before.
    Joined,
    /// It said that it stops.
    Left,
    /// It is alive with a higher incarnation than before.
    Restarted,
    /// It is silent, or the watch suspects it.
    Suspected,
    /// It is alive after all, or again, with the same incarnation.
    Returned,
}

impl Event {
    /// Says it to the operator.
    pub(super) fn log(&self) {
        let Self { kind, store, name, incarnation, .. } = self;
        let incarnation = incarnation.0;
        match kind {
            EventKind::Suspected => tracing::warn!(%store, %name, "a node is suspected"),
            EventKind::Left => tracing::info!(%store, %name, "a node stops as it was asked to"),
            EventKind::Joined => tracing::info!(%store, %name, incarnation, "a node has joined"),
            EventKind::Restarted => {
                tracing::info!(%store, %name, incarnation, "a node has started again");
            }
            EventKind::Returned => tracing::info!(%store, %name, "a node is alive again"),
        }
    }
}

/// What was last told of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Told(Option<(Incarnation, Liveness)>);

impl Told {
    /// What is new of this node since it was last asked about.
    pub(super) fn next(&mut self, store: StoreId, member: &Member) -> Option<Event> {
        use Liveness::{Left, Live, Suspected};
        let now = (member.incarnation, member.liveness);
        let kind = match (self.0, now.1) {
            // A node that never seemed alive may be long gone.
            (None, Suspected | Left) => return None,
            (None, Live) => EventKind::Joined,
            (Some((before, _)), Live) if now.0 > before => EventKind::Restarted,
            (Some((_, Suspected | Left)), Live) => EventKind::Returned,
            (Some((_, Live)), Suspected) => EventKind::Suspected,
            (Some((_, Live | Suspected)), Left) => EventKind::Left,
            (Some(_), Live | Suspected | Left) => return None,
        };
        // A new run that does not yet seem alive is told of once it does.
        let incarnation = match (self.0, kind) {
            (Some((before, _)), EventKind::Suspected) => before,
            _ => now.0,
        };
        self.0 = Some((incarnation, now.1));
        Some(Event {
            kind,
            store,
            name: member.facts.name.clone(),
            region: member.facts.region.clone(),
            incarnation: now.0,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use flocker_base::BootTime;

    use super::*;
    use crate::model::NodeFacts;

    fn member(incarnation: u64, liveness: Liveness) -> Member {
        let at = std::net::SocketAddr::from(([10, 0, 0, 1], 1));
        let name = Name::new("a").expect("name");
        Member {
            facts: NodeFacts {
                name: name.clone(),
                region: name,
                control: at,
                data: at,
                http: None,
                version: String::new(),
                zone: None,
                public: None,
                capacity: None,
            },
            liveness,
            since: BootTime::from_millis(0),
            incarnation: Incarnation(incarnation),
            map_root: None,
            load: None,
            values: BTreeMap::new(),
        }
    }

    #[test]
    fn each_change_is_told_once_and_by_its_name() {
        use EventKind::{Joined, Left, Restarted, Returned, Suspected};
        let told = |steps: &[(u64, Liveness)]| {
            let mut told = Told::default();
            let store = StoreId::from_bytes([1; 16]);
            let kinds = steps.iter().map(|(i, l)| told.next(store, &member(*i, *l)));
            kinds.map(|e| e.map(|e| e.kind)).collect::<Vec<_>>()
        };
        let (live, gone, left) = (Liveness::Live, Liveness::Suspected, Liveness::Left);
        assert_eq!(
            told(&[(1, gone), (1, live), (1, live), (1, gone), (1, gone), (1, live)]),
            [None, Some(Joined), None, Some(Suspected), None, Some(Returned)]
        );
        assert_eq!(
            told(&[(1, live), (1, left), (1, left), (2, gone), (2, live)]),
            [Some(Joined), Some(Left), None, None, Some(Restarted)]
        );
        assert_eq!(
            told(&[(1, live), (2, live), (2, gone), (3, gone), (3, live)]),
            [Some(Joined), Some(Restarted), Some(Suspected), None, Some(Restarted)]
        );
        assert_eq!(
            told(&[(1, live), (2, gone), (2, live)]),
            [Some(Joined), Some(Suspected), Some(Restarted)],
            "a new run first heard of through others"
        );
        assert_eq!(told(&[(1, left), (1, gone)]), [None, None], "never seen alive");
    }
}

//! The map and the address book as admission and joining see them: who is a member, which tokens
//! there are, who is recorded. It decides nothing about a newcomer; the door does.

use std::net::SocketAddr;
use std::sync::Arc;

use flocker_base::{Clock, Name, StoreId, TokenId};
use flocker_gossip::addresses::AddressBookStore;
use flocker_gossip::control::Admission;
use flocker_gossip::identity::NodeIdentity;
use flocker_gossip::join::{
    Admitted, BlockedTokens, KnownNode, RedeemError, Redemptions, Roster, TokenSource,
};
use flocker_gossip::map::{Edit, Map, TokenChange};
use flocker_gossip::model::TokenSpec;
use flocker_gossip::store::StateDb;

use super::advertised::Advertised;
use super::control_plane::{Setup, Standing};
use super::revocation::Refused;

/// The map and the address book as admission and joining see them.
pub(super) struct MeshRecords {
    me: StoreId,
    /// Whether the authority is outside the cluster.
    outside: bool,
    advertised: Advertised,
    map: Map,
    book: AddressBookStore,
    redemptions: Redemptions,
    clock: Arc<dyn Clock>,
    refused: Refused,
}

impl MeshRecords {
    pub(super) fn of(
        setup: &Setup,
        db: &StateDb,
        node: &NodeIdentity,
        map: &Map,
        book: &AddressBookStore,
    ) -> Self {
        Self {
            me: db.store_id(),
            outside: node.authority().is_outside(),
            advertised: setup.advertised,
            map: map.clone(),
            book: book.clone(),
            redemptions: Redemptions::new(db.database()),
            clock: Arc::clone(&setup.clock),
            refused: Refused::default(),
        }
    }

    pub(super) fn standing(self: &Arc<Self>, blocked: BlockedTokens) -> Standing {
        Standing {
            redemptions: self.redemptions.clone(),
            blocked,
            admission: Arc::<Self>::clone(self),
            refused: self.refused.clone(),
        }
    }
}

impl Admission for MeshRecords {
    fn is_removed(&self, store: StoreId) -> bool {
        self.map.view().node(&store).is_some_and(|n| n.spec.removed)
    }

    fn refused_by(&self, peer: StoreId) {
        self.refused.hear(peer);
    }

    /// A node that knows nobody yet believes those that it was told of when it joined.
    fn is_stranger(&self, store: StoreId) -> bool {
        if !self.outside {
            return false;
        }
        let view = self.map.view();
        let knows_others = view.nodes().any(|node| node.spec.store != self.me);
        let told = || !self.book.control().addresses(store).is_empty();
        view.node(&store).is_none() && (knows_others || !told())
    }
}

impl TokenSource for MeshRecords {
    fn find(&self, id: TokenId) -> Option<TokenSpec> {
        self.map.view().token(&id).map(|t| t.spec.clone())
    }

    fn redeem(&self, token: TokenId, key: [u8; 32]) -> Result<u32, RedeemError> {
        let left = self.redemptions.redeem(token, key)?;
        // The count here decides; what the map says of it is for people.
        let told = TokenChange::UsesLeft { left, at: self.clock.wall() };
        if let Err(error) = self.map.edit([Edit::ChangeToken(token, told)]) {
            tracing::warn!(%token, %error, "could not tell the cluster how many uses are left");
        }
        Ok(left)
    }
}

impl Roster for MeshRecords {
    fn name_holder(&self, name: &Name) -> Option<StoreId> {
        let view = self.map.view();
        view.node_named(name).filter(|n| !n.spec.removed).map(|n| n.spec.store)
    }

    fn is_removed(&self, store: StoreId) -> bool {
        Admission::is_removed(self, store)
    }

    fn name_of(&self, store: StoreId) -> Option<Name> {
        self.map.view().node(&store).map(|n| n.spec.name.clone())
    }

    fn whereabouts(&self, store: StoreId) -> Vec<SocketAddr> {
        self.book.control().addresses(store)
    }

    fn known(&self) -> Vec<KnownNode> {
        let me = KnownNode {
            store: self.me,
            control: self.advertised.controls(),
            data: self.advertised.datas(),
        };
        let others = self.book.known().into_iter().filter(|n| n.store != self.me);
        std::iter::once(me).chain(others).collect()
    }

    fn admit(&self, admitted: &Admitted) -> Result<(), String> {
        let edit = Edit::AdmitNode(admitted.node.clone());
        self.map.edit(vec![edit]).map_err(|e| e.to_string())?;
        self.book
            .learn(admitted.node.store, &[admitted.control], &[admitted.data])
            .map(drop)
            .map_err(|e| e.to_string())
    }
}

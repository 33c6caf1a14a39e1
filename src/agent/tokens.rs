//! Join tokens: making, listing, revoking and clearing them away. A token for a limited number of
//! nodes is counted here before anyone can hold it; whether one admits is the doorkeeper's affair.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use flocker_base::{StoreId, TokenId, WallTime};
use flocker_gossip::join::Token;
use flocker_gossip::map::{Edit, MapView, TokenChange};
use flocker_gossip::membership::Liveness;
use flocker_gossip::model::{MAX_NOTE_BYTES, MAX_USES, TokenSpec};
use tokio_util::sync::CancellationToken;

use super::lookup::by_id;
use super::moving::millis;
use super::operations::AgentOperations;
use super::parts::Parts;
use super::revocation::member;
use crate::api::{
    ApiError, ErrorCode, TokenCreate, TokenCreated, TokenList, TokenOperations, TokenRevoke,
    TokenState, TokenStatus, TokensRevoked,
};

/// Longest life of a token.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);
/// Most other nodes named in a join line.
const OTHER_SEEDS: usize = 2;
/// Most tokens revoked by one request.
const MOST_REVOKED: usize = 1000;
/// Time between two looks for tokens that ended long ago.
const CLEAR_EVERY: Duration = Duration::from_secs(3600);

#[async_trait]
impl TokenOperations for AgentOperations {
    async fn create_token(&self, request: TokenCreate) -> Result<TokenCreated, ApiError> {
        let parts = &self.parts;
        member(parts)?;
        let uses = checked(&request)?;
        let now = parts.clock.wall();
        let spec = TokenSpec {
            issuer: Some(parts.me),
            uses,
            uses_left: uses,
            region: request.region,
            name: request.name,
            note: request.note,
            ..TokenSpec::new(
                TokenId::new(now, parts.random10()),
                parts.random32(),
                now + Duration::from_millis(request.valid_for_ms),
            )
        };
        if let Some(uses) = uses {
            // Counted durably before the token is anywhere: what is not counted admits nobody.
            parts
                .redemptions
                .issue(spec.id, uses)
                .map_err(|e| ApiError::internal(e.to_string()))?;
        }
        let (ca, needs_certificate) = self.authority;
        let token = Token { id: spec.id, secret: spec.secret, ca };
        let id = spec.id;
        edit(parts, vec![Edit::PutToken(spec)])?;
        let join = format!("{token}@{}", seeds(parts, uses.is_some()).join(","));
        let valid_for_ms = request.valid_for_ms;
        Ok(TokenCreated { join, valid_for_ms, id: Some(id), uses, needs_certificate })
    }

    async fn tokens(&self) -> Result<TokenList, ApiError> {
        let parts = &self.parts;
        let (view, now) = (parts.map_view(), parts.clock.wall());
        let mut tokens: Vec<TokenStatus> =
            view.tokens().map(|t| status(parts, &view, &t.spec, now)).collect();
        // Ids are ordered by their time.
        tokens.sort_by_key(|token| std::cmp::Reverse(token.id));
        Ok(TokenList { viewed_from: parts.name.clone(), tokens })
    }

    async fn revoke_tokens(&self, request: TokenRevoke) -> Result<TokensRevoked, ApiError> {
        let parts = &self.parts;
        member(parts)?;
        if request.tokens.len() > MOST_REVOKED {
            let text = format!("at most {MOST_REVOKED} tokens are revoked at once");
            return Err(ApiError::new(ErrorCode::Usage, text));
        }
        let view = parts.map_view();
        let mut found = BTreeSet::new();
        for text in &request.tokens {
            let all = view.tokens().map(|t| (t.spec.id.to_string(), t.spec.id));
            found.insert(by_id("token", "flocker token ls", text, all)?);
        }
        let is_revoked = |id: &TokenId| view.token(id).is_some_and(|t| t.spec.revoked);
        let (already, revoked): (Vec<_>, Vec<_>) = found.into_iter().partition(is_revoked);
        let at = parts.clock.wall();
        let edits: Vec<Edit> =
            revoked.iter().map(|id| Edit::ChangeToken(*id, TokenChange::Revoke { at })).collect();
        if !edits.is_empty() {
            edit(parts, edits)?;
            tracing::info!(?revoked, "join tokens were revoked");
        }
        Ok(TokensRevoked { revoked, already })
    }
}

/// What is asked for, within its limits; answers the number of uses.
fn checked(request: &TokenCreate) -> Result<Option<u32>, ApiError> {
    let usage = |text: String| ApiError::new(ErrorCode::Usage, text);
    let life = Duration::from_millis(request.valid_for_ms);
    if life.is_zero() || life > LONGEST {
        return Err(usage(
            "a token lives for a millisecond at least and 30 days at most".to_owned(),
        ));
    }
    if request.uses.is_some_and(|uses| !(1..=MAX_USES).contains(&uses)) {
        return Err(usage(format!("a token is for 1 to {MAX_USES} nodes, or for any number")));
    }
    if let Some(note) = &request.note
        && (note.len() > MAX_NOTE_BYTES || note.chars().any(char::is_control))
    {
        return Err(usage(format!(
            "a note has at most {MAX_NOTE_BYTES} bytes and no control characters"
        )));
    }
    match (&request.name, request.uses) {
        // A name can be taken once.
        (Some(_), None) => Ok(Some(1)),
        (Some(_), Some(uses)) if uses > 1 => Err(usage(
            "a token that gives its node a name is for one node, since no other can have the name"
                .to_owned(),
        )),
        (_, uses) => Ok(uses),
    }
}

/// The addresses of a join line: this node first. With a limited token nobody else admits; with
/// another, some more help when this node is down.
fn seeds(parts: &Parts, only_here: bool) -> Vec<String> {
    let mut seeds = parts.seeds.clone();
    if !only_here {
        let members = parts.members.borrow();
        let others = members
            .nodes
            .iter()
            .filter(|(store, m)| **store != parts.me && m.liveness == Liveness::Live)
            .map(|(_, m)| m.facts.control.to_string())
            .filter(|at| !parts.seeds.contains(at));
        seeds.extend(others.take(OTHER_SEEDS));
    }
    seeds
}

fn status(parts: &Parts, view: &MapView, spec: &TokenSpec, now: WallTime) -> TokenStatus {
    let removed = |store: StoreId| view.node(&store).is_some_and(|n| n.spec.removed);
    let state = if spec.revoked {
        TokenState::Revoked
    } else if spec.uses.is_some() && spec.uses_left == Some(0) {
        TokenState::UsedUp
    } else if spec.expires <= now {
        TokenState::Expired
    } else if spec.issuer.is_some_and(removed) {
        TokenState::Void
    } else if parts.blocked.contains(spec.id) {
        TokenState::BlockedHere
    } else {
        TokenState::Live
    };
    TokenStatus {
        id: spec.id,
        state,
        made_ms_ago: millis(now.saturating_since(spec.made_at())),
        made_by: spec.issuer.map(|store| parts.name_of(store)),
        expires_in_ms: (spec.expires > now).then(|| millis(spec.expires.saturating_since(now))),
        ended_ms_ago: spec.over_since(now).map(|since| millis(now.saturating_since(since))),
        uses: spec.uses,
        uses_left: spec.uses_left,
        region: spec.region.clone(),
        name: spec.name.clone(),
        note: spec.note.clone(),
    }
}

fn edit(parts: &Parts, edits: Vec<Edit>) -> Result<(), ApiError> {
    parts.map.edit(edits).map_err(|e| ApiError::internal(e.to_string()))
}

/// Clears tokens away a day after their end, until told to stop.
pub(super) async fn clear(parts: Arc<Parts>, stop: CancellationToken) -> anyhow::Result<()> {
    loop {
        let live: BTreeSet<StoreId> = {
            let members = parts.members.borrow();
            let live = members.nodes.iter().filter(|(_, m)| m.liveness == Liveness::Live);
            live.map(|(store, _)| *store).chain([parts.me]).collect()
        };
        let stale = stale(&parts.map_view(), parts.me, &live, parts.clock.wall());
        if !stale.is_empty() {
            parts.map.edit(stale.iter().copied().map(Edit::DeleteToken).collect::<Vec<_>>())?;
            for token in stale {
                if let Err(error) = parts.redemptions.forget(token) {
                    tracing::warn!(%token, %error, "the count of a token that is gone stays");
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(CLEAR_EVERY) => {}
        }
    }
}

/// The tokens that this node is to clear away: its own, and, if it is the first of the live nodes,
/// those whose maker does not live.
fn stale(view: &MapView, me: StoreId, live: &BTreeSet<StoreId>, now: WallTime) -> Vec<TokenId> {
    let mine = |spec: &TokenSpec| match spec.issuer {
        Some(issuer) if live.contains(&issuer) => issuer == me,
        _ => live.first() == Some(&me),
    };
    view.tokens().filter(|t| t.spec.is_stale(now) && mine(&t.spec)).map(|t| t.spec.id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use flocker_base::{BootTime, ManualClock};
    use flocker_gossip::map::Map;
    use flocker_gossip::store::StateDb;

    fn store(id: u8) -> StoreId {
        StoreId::from_bytes([id; 16])
    }

    #[test]
    fn what_ended_long_ago_is_cleared_by_its_maker_or_the_first_that_lives() {
        let made = WallTime::from_millis(1_700_000_000_000);
        let folder = tempfile::tempdir().expect("folder");
        let db = StateDb::open(&folder.path().join("state"), made, [1; 10]).expect("opens");
        let clock = Arc::new(ManualClock::new(BootTime::ZERO, made));
        let map = Map::open(db.database(), store(1), clock).expect("opens");
        let hour = Duration::from_secs(3600);
        let token = |id: u8, issuer: Option<u8>, life: Duration| TokenSpec {
            issuer: issuer.map(store),
            ..TokenSpec::new(TokenId::new(made, [id; 10]), [0; 32], made + life)
        };
        let (mine, theirs) = (token(1, Some(1), hour), token(2, Some(2), hour));
        let (gone, old, long) =
            (token(3, Some(9), hour), token(4, None, hour), token(5, Some(1), 99 * hour));
        let all = [&mine, &theirs, &gone, &old, &long];
        map.edit(all.map(|t| Edit::PutToken(t.clone()))).expect("edits");
        let live = BTreeSet::from([store(1), store(2)]);
        let view = map.view();
        assert_eq!(stale(&view, store(1), &live, made + 24 * hour), []);
        let later = made + 25 * hour;
        assert_eq!(stale(&view, store(1), &live, later), [mine.id, gone.id, old.id]);
        assert_eq!(stale(&view, store(2), &live, later), [theirs.id]);
        let at = made + hour;
        map.edit([Edit::ChangeToken(long.id, TokenChange::Revoke { at })]).expect("edits");
        assert!(stale(&map.view(), store(1), &live, later).contains(&long.id), "a day after it");
    }

    #[test]
    fn requests_are_checked() {
        let good = TokenCreate::lasting(60_000);
        assert_eq!(checked(&good), Ok(None));
        assert_eq!(checked(&TokenCreate { uses: Some(3), ..good.clone() }), Ok(Some(3)));
        let name = flocker_base::Name::new("db-1").ok();
        let named = TokenCreate { name, ..good.clone() };
        assert_eq!(checked(&named), Ok(Some(1)), "a name is for one node");
        for bad in [
            TokenCreate { valid_for_ms: 0, ..good.clone() },
            TokenCreate { valid_for_ms: u64::MAX, ..good.clone() },
            TokenCreate { uses: Some(0), ..good.clone() },
            TokenCreate { uses: Some(MAX_USES + 1), ..good.clone() },
            TokenCreate { uses: Some(2), ..named },
            TokenCreate { note: Some("x".repeat(201)), ..good.clone() },
            TokenCreate { note: Some("a\nb".to_owned()), ..good },
        ] {
            assert_eq!(checked(&bad).expect_err("refused").code, ErrorCode::Usage, "{bad:?}");
        }
    }
}

//! A join token as the map keeps it. It says what a token allows; whether a use of a limited one
//! is left is known to its issuer alone, see [`crate::join::Redemptions`].

use std::time::Duration;

use flocker_base::{Name, StoreId, TokenId, WallTime};

/// The most uses that a token can be limited to.
pub const MAX_USES: u32 = 1000;

/// The longest note on a token, in bytes.
pub const MAX_NOTE_BYTES: usize = 200;

/// How long a token that has ended is still listed; then its record becomes a deleted one.
pub const KEPT_AFTER_END: Duration = Duration::from_secs(24 * 3600);

/// A join token, as every node stores it in order to admit with it.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenSpec {
    /// Its public half.
    pub id: TokenId,
    /// Its secret half: the key of the joiner's proof.
    pub secret: [u8; 32],
    /// When it ends.
    pub expires: WallTime,
    /// Whether it was revoked.
    pub revoked: bool,
    /// The store that made it. Tokens of older versions do not say.
    pub issuer: Option<StoreId>,
    /// How many nodes may join with it, if that is limited. Then only its issuer admits with it.
    pub uses: Option<u32>,
    /// How many of them are left, as the issuer last said: for people, never to decide.
    pub uses_left: Option<u32>,
    /// The region that whoever joins with it takes.
    pub region: Option<Name>,
    /// The name that whoever joins with it takes.
    pub name: Option<Name>,
    /// What it is for, in its maker's words.
    pub note: Option<String>,
    /// When it was revoked or its last use was spent.
    pub ended: Option<WallTime>,
}

impl TokenSpec {
    /// A token for any number of nodes until it expires.
    #[must_use]
    pub const fn new(id: TokenId, secret: [u8; 32], expires: WallTime) -> Self {
        Self {
            id,
            secret,
            expires,
            revoked: false,
            issuer: None,
            uses: None,
            uses_left: None,
            region: None,
            name: None,
            note: None,
            ended: None,
        }
    }

    /// When it was made, by its maker's clock: its id says so.
    #[must_use]
    pub fn made_at(&self) -> WallTime {
        let mut millis = [0; 8];
        millis[2..].copy_from_slice(&self.id.as_bytes()[..6]);
        WallTime::from_millis(u64::from_be_bytes(millis))
    }

    /// Since when it admits nobody any more, if it does not.
    #[must_use]
    pub fn over_since(&self, now: WallTime) -> Option<WallTime> {
        let expired = (self.expires <= now).then_some(self.expires);
        let used_up = self.uses.is_some() && self.uses_left == Some(0);
        let ended = (self.revoked || used_up).then(|| self.ended.unwrap_or(self.expires));
        expired.into_iter().chain(ended).min()
    }

    /// Whether it ended so long ago that its record is to be deleted.
    #[must_use]
    pub fn is_stale(&self, now: WallTime) -> bool {
        self.over_since(now).is_some_and(|since| now.saturating_since(since) >= KEPT_AFTER_END)
    }
}

impl std::fmt::Debug for TokenSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenSpec")
            .field("id", &self.id)
            .field("expires", &self.expires)
            .field("revoked", &self.revoked)
            .field("issuer", &self.issuer)
            .field("uses", &self.uses)
            .field("uses_left", &self.uses_left)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_over_from_whatever_ended_it_first() {
        let at = WallTime::from_millis;
        let made = at(1_700_000_000_000);
        let hour = Duration::from_secs(3600);
        let live = TokenSpec::new(TokenId::new(made, [1; 10]), [2; 32], made + hour);
        assert_eq!(live.made_at(), made);
        assert_eq!(live.over_since(made), None);
        assert_eq!(live.over_since(made + hour), Some(made + hour));
        let revoked = TokenSpec { revoked: true, ended: Some(made + hour / 2), ..live.clone() };
        assert_eq!(revoked.over_since(made + 2 * hour), Some(made + hour / 2));
        let used = TokenSpec { uses: Some(1), uses_left: Some(0), ..revoked.clone() };
        assert!(TokenSpec { revoked: false, ..used }.over_since(made).is_some());
        assert!(!revoked.is_stale(made + 24 * hour));
        assert!(revoked.is_stale(made + 25 * hour));
        assert!(!live.is_stale(made + 24 * hour) && live.is_stale(made + 25 * hour));
    }
}

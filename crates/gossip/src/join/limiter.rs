//! How often an address may try to join, in bounded memory. It knows nothing of tokens.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use flocker_base::BootTime;

/// Tries that one address has in a window.
pub(super) const TRIES: u32 = 5;

/// The window.
pub(super) const WINDOW: Duration = Duration::from_secs(60);

/// Addresses remembered at once. When they are all in use, the one that has tried longest ago is
/// forgotten: whoever commands this many networks is held off by the blocking of tokens.
pub(super) const MAX_ADDRESSES: usize = 4096;

/// A sliding window of tries an address.
#[derive(Debug, Default)]
pub(super) struct Limiter {
    tries: BTreeMap<IpAddr, VecDeque<BootTime>>,
    /// The time of each address's last try, for forgetting the oldest.
    last: BTreeMap<(BootTime, IpAddr), ()>,
}

impl Limiter {
    /// Counts a try. `Err` says how long to wait; a refused try is not counted, so that waiting
    /// always helps.
    pub(super) fn admit(&mut self, from: IpAddr, now: BootTime) -> Result<(), Duration> {
        let from = network(from);
        self.forget_expired(now);
        let tries = self.tries.entry(from).or_default();
        while tries.front().is_some_and(|t| now.saturating_since(*t) >= WINDOW) {
            tries.pop_front();
        }
        if let Some(first) = tries.front()
            && tries.len() >= TRIES as usize
        {
            return Err(WINDOW.saturating_sub(now.saturating_since(*first)));
        }
        if let Some(before) = tries.back() {
            self.last.remove(&(*before, from));
        }
        tries.push_back(now);
        self.last.insert((now, from), ());
        while self.tries.len() > MAX_ADDRESSES {
            let Some(((_, oldest), ())) = self.last.pop_first() else { break };
            self.tries.remove(&oldest);
        }
        Ok(())
    }

    fn forget_expired(&mut self, now: BootTime) {
        while let Some(entry) = self.last.first_entry() {
            let (time, from) = *entry.key();
            if now.saturating_since(time) < WINDOW {
                break;
            }
            entry.remove();
            self.tries.remove(&from);
        }
    }

    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.tries.len().max(self.last.len())
    }
}

/// What counts as one address: a host in IPv4, a /64 in IPv6, where a host has as many addresses
/// as it likes.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let prefix = u128::from(v6) >> 64 << 64;
            IpAddr::V6(Ipv6Addr::from(prefix))
        }
        v4 => v4,
    }
}

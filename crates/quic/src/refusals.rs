//! Log lines about refused clients, so few that a flood of them can't fill a disk. It decides
//! nothing about the clients themselves.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use flocker_base::BootTime;

/// At most one line an address and kind in this time.
const QUIET: Duration = Duration::from_secs(1);
/// Addresses and kinds remembered. Past it, lines come at most once in [`QUIET`] for all others,
/// and the counts of those forgotten are lost.
const REMEMBERED: usize = 1024;

/// Which check a client failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Refusal {
    /// TLS refused it: no certificate, another cluster's, an expired one.
    Handshake,
    /// It did not finish its handshake.
    Unfinished,
    /// It asked for the mesh without a certificate.
    NoCertificate,
    /// Its certificate names no node.
    NoIdentity,
    /// It shows this node's own identity.
    Myself,
}

/// Counts what was not said.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    /// By address, and for those beyond [`REMEMBERED`] all together.
    said: HashMap<(Option<IpAddr>, Refusal), Said>,
    cleared: BootTime,
}

#[derive(Debug)]
struct Said {
    last: BootTime,
    unsaid: u64,
}

impl Refusals {
    /// Logs the refusal, or counts it for the next line.
    pub(crate) fn log(&self, now: BootTime, remote: SocketAddr, kind: Refusal, reason: &str) {
        if let Some(unsaid) = self.due(now, remote.ip(), kind) {
            tracing::warn!(%remote, ?kind, unsaid, "refused a connection: {reason}");
        }
    }

    /// How many lines were left out since the last, if one is due now.
    fn due(&self, now: BootTime, ip: IpAddr, kind: Refusal) -> Option<u64> {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        if memory.said.len() >= REMEMBERED && now.saturating_since(memory.cleared) >= QUIET {
            memory.said.retain(|_, s| now.saturating_since(s.last) < QUIET);
            memory.cleared = now;
        }
        let said = &mut memory.said;
        let known = said.contains_key(&(Some(ip), kind));
        let key = if known || said.len() < REMEMBERED { Some(ip) } else { None };
        match said.get_mut(&(key, kind)) {
            None => {
                said.insert((key, kind), Said { last: now, unsaid: 0 });
                Some(0)
            }
            Some(s) if now.saturating_since(s.last) >= QUIET => {
                s.last = now;
                Some(std::mem::take(&mut s.unsaid))
            }
            Some(s) => {
                s.unsaid += 1;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_flood_gives_one_line_a_second_and_the_count_of_the_rest() {
        let refusals = Refusals::default();
        let ip = IpAddr::from(Ipv4Addr::LOCALHOST);
        let at = BootTime::from_millis;
        assert_eq!(refusals.due(at(0), ip, Refusal::Handshake), Some(0));
        for _ in 0..9 {
            assert_eq!(refusals.due(at(999), ip, Refusal::Handshake), None);
        }
        assert_eq!(refusals.due(at(999), ip, Refusal::Unfinished), Some(0), "another kind");
        assert_eq!(refusals.due(at(1000), ip, Refusal::Handshake), Some(9));
    }

    #[test]
    fn a_flood_from_many_addresses_keeps_memory_flat() {
        let refusals = Refusals::default();
        let lines = (0..100_000_u32)
            .filter(|n| {
                let ip = IpAddr::from(Ipv4Addr::from_bits(*n));
                refusals.due(BootTime::ZERO, ip, Refusal::Handshake).is_some()
            })
            .count();
        assert!(lines <= REMEMBERED + 1, "{lines}");
        let remembered = refusals.memory.lock().expect("lock").said.len();
        assert!(remembered <= REMEMBERED + 5, "{remembered}");
    }
}

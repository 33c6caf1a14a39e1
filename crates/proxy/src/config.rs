//! The proxy's limits and deadlines. Nothing here reads a file or the environment.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How the proxy treats clients, backends and peers. Every limit is per node unless said otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProxyConfig {
    /// Most public connections open at once; one more is answered 503 and closed.
    pub max_connections: usize,
    /// Most public connections of one client address at once; 0: no limit of its own.
    pub max_connections_per_client: usize,
    /// Longest request head in bytes (at least 8 KiB); above it: 431.
    pub max_header_bytes: usize,
    /// Longest request body in bytes; above it: 413. `None`: unlimited.
    pub max_body_bytes: Option<u64>,
    /// Time for a whole request head to come, from its first byte (or the connection's start).
    pub header_timeout: Duration,
    /// Time that a connection may stay open without a request.
    pub idle_timeout: Duration,
    /// Time that a client may send nothing of a body that is awaited; after it: 408.
    pub body_stall: Duration,
    /// Time that a client may take nothing of a response; after it the connection is cut.
    pub write_stall: Duration,
    /// Time for a backend to begin its response; after it: 504.
    pub response_timeout: Duration,
    /// Time that a backend may send nothing in the middle of a response.
    pub response_idle: Duration,
    /// Time for a connection to a backend to be made.
    pub connect_timeout: Duration,
    /// Time for a stream to a peer to be opened.
    pub dial_timeout: Duration,
    /// Most requests of one service held at once.
    pub max_held: usize,
    /// Most bytes that the held requests of one service may occupy.
    pub max_held_bytes: u64,
    /// Longest that a request is held.
    pub max_hold: Duration,
    /// Bodies up to this size are remembered while they are forwarded, so that a peer that acted
    /// on nothing of the request can hand it back.
    pub replay_bytes: usize,
    /// Most times that a request is forwarded from node to node.
    pub max_hops: usize,
    /// Time that an unused connection to a backend is kept. Shorter than what backends keep, so
    /// that they seldom close one just as it is used.
    pub backend_idle: Duration,
    /// Time that an unused stream to a peer is kept.
    pub peer_idle: Duration,
    /// Most unused connections kept to one backend or peer.
    pub max_idle: usize,
    /// Most connections to one backend or peer; one more request is answered 503.
    pub max_upstream: usize,
    /// Most connections to one backend or peer being made at once.
    pub max_connecting: usize,
    /// First pause before an unreachable place is tried again; doubled each time.
    pub probe_first: Duration,
    /// Longest such pause.
    pub probe_longest: Duration,
    /// Time that a tunnel (WebSocket) may carry nothing in either direction.
    pub tunnel_idle: Duration,
    /// Time for requests in flight to finish when the proxy shuts down.
    pub shutdown_grace: Duration,
    /// What becomes of the forwarding headers that clients send.
    pub forwarded: ForwardedPolicy,
}

/// What becomes of `X-Forwarded-For` and the like in a request from outside the mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForwardedPolicy {
    /// They are dropped and written anew from the client's address: nothing can be spoofed.
    #[default]
    Replace,
    /// The client's address is appended to what clients within these networks (proxies in front
    /// of the mesh) sent; what any other client sent is dropped.
    AppendFrom(Vec<TrustedNet>),
}

/// A network in CIDR notation, such as `10.0.0.0/8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustedNet {
    address: IpAddr,
    prefix: u8,
}

/// Why a configuration can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A value that must not be zero is.
    #[error("proxy configuration: {0} must be greater than zero")]
    Zero(&'static str),
    /// One value must be no greater than another.
    #[error("proxy configuration: {lesser} must be no greater than {greater}")]
    Order {
        /// The value that is too great.
        lesser: &'static str,
        /// The value that it must not exceed.
        greater: &'static str,
    },
    /// `max_header_bytes` is too small to parse anything with.
    #[error("proxy configuration: max_header_bytes must be 8192 to 262144, it is {0}")]
    HeaderBytes(usize),
    /// The text is no network.
    #[error("'{0}' is not a network: write it as 10.0.0.0/8 or fd00::/8")]
    Net(String),
}

impl Default for ProxyConfig {
    fn default() -> Self {
        Self {
            max_connections: 20_000,
            max_connections_per_client: 0,
            max_header_bytes: 32 * 1024,
            max_body_bytes: None,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            body_stall: Duration::from_secs(30),
            write_stall: Duration::from_secs(30),
            response_timeout: Duration::from_secs(60),
            response_idle: Duration::from_secs(300),
            connect_timeout: Duration::from_secs(2),
            dial_timeout: Duration::from_secs(5),
            max_held: 4_096,
            max_held_bytes: 64 * 1024 * 1024,
            max_hold: Duration::from_secs(30),
            replay_bytes: 64 * 1024,
            max_hops: 3,
            backend_idle: Duration::from_secs(4),
            peer_idle: Duration::from_secs(60),
            max_idle: 256,
            max_upstream: 8_192,
            max_connecting: 64,
            probe_first: Duration::from_millis(10),
            probe_longest: Duration::from_millis(500),
            tunnel_idle: Duration::from_secs(3600),
            shutdown_grace: Duration::from_secs(10),
            forwarded: ForwardedPolicy::Replace,
        }
    }
}

impl ProxyConfig {
    /// Checks the values and the relations between them.
    ///
    /// # Errors
    /// [`ConfigError`] names the first value that can't be used.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if !(8_192..=262_144).contains(&self.max_header_bytes) {
            return Err(ConfigError::HeaderBytes(self.max_header_bytes));
        }
        let counts = [
            ("max_connections", self.max_connections),
            ("max_held", self.max_held),
            ("max_hops", self.max_hops),
            ("max_idle", self.max_idle),
            ("max_upstream", self.max_upstream),
            ("max_connecting", self.max_connecting),
        ];
        let spans = [
            ("header_timeout", self.header_timeout),
            ("idle_timeout", self.idle_timeout),
            ("body_stall", self.body_stall),
            ("write_stall", self.write_stall),
            ("response_timeout", self.response_timeout),
            ("response_idle", self.response_idle),
            ("connect_timeout", self.connect_timeout),
            ("dial_timeout", self.dial_timeout),
            ("max_hold", self.max_hold),
            ("backend_idle", self.backend_idle),
            ("peer_idle", self.peer_idle),
            ("probe_first", self.probe_first),
            ("tunnel_idle", self.tunnel_idle),
        ];
        if let Some((name, _)) = counts.iter().find(|(_, count)| *count == 0) {
            return Err(ConfigError::Zero(name));
        }
        if let Some((name, _)) = spans.iter().find(|(_, span)| span.is_zero()) {
            return Err(ConfigError::Zero(name));
        }
        if self.probe_first > self.probe_longest {
            return Err(ConfigError::Order { lesser: "probe_first", greater: "probe_longest" });
        }
        if self.connect_timeout > self.max_hold {
            return Err(ConfigError::Order { lesser: "connect_timeout", greater: "max_hold" });
        }
        if self.dial_timeout > self.max_hold {
            return Err(ConfigError::Order { lesser: "dial_timeout", greater: "max_hold" });
        }
        Ok(())
    }

    /// How long a peer may take to begin its response: it may hold the request itself.
    pub(crate) fn forwarded_response_timeout(&self) -> Duration {
        self.max_hold + self.dial_timeout + self.response_timeout
    }
}

impl TrustedNet {
    /// Whether the address lies within the network.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(it)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                (net.to_bits() ^ it.to_bits()) & mask == 0
            }
            (IpAddr::V6(net), IpAddr::V6(it)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                (net.to_bits() ^ it.to_bits()) & mask == 0
            }
            _ => false,
        }
    }
}

impl FromStr for TrustedNet {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (address, prefix) = text.split_once('/')?;
            let address: IpAddr = address.parse().ok()?;
            let prefix: u8 = prefix.parse().ok()?;
            let most = if address.is_ipv4() { 32 } else { 128 };
            (prefix <= most).then_some(Self { address, prefix })
        };
        parse().ok_or_else(|| ConfigError::Net(text.chars().take(80).collect()))
    }
}

impl TryFrom<String> for TrustedNet {
    type Error = ConfigError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<TrustedNet> for String {
    fn from(net: TrustedNet) -> Self {
        net.to_string()
    }
}

impl fmt::Display for TrustedNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_hold_together() {
        assert_eq!(ProxyConfig::default().validate(), Ok(()));
    }

    #[test]
    fn senseless_values_are_named() {
        let bad = ProxyConfig { max_held: 0, ..ProxyConfig::default() };
        assert_eq!(bad.validate(), Err(ConfigError::Zero("max_held")));
        let bad = ProxyConfig { max_header_bytes: 100, ..ProxyConfig::default() };
        assert!(bad.validate().is_err());
        let bad = ProxyConfig { max_hold: Duration::from_secs(1), ..ProxyConfig::default() };
        assert!(bad.validate().expect_err("relation").to_string().contains("max_hold"));
    }

    #[test]
    fn networks_hold_their_own_addresses_only() {
        let net: TrustedNet = "10.1.0.0/16".parse().expect("parses");
        assert!(net.contains("10.1.2.3".parse().expect("address")));
        assert!(net.contains("::ffff:10.1.2.3".parse().expect("address")));
        assert!(!net.contains("10.2.2.3".parse().expect("address")));
        let all: TrustedNet = "::/0".parse().expect("parses");
        assert!(all.contains("fe80::1".parse().expect("address")));
        assert!(!all.contains("10.2.2.3".parse().expect("address")));
        for bad in ["10.0.0.0", "10.0.0.0/33", "x/8", "fd00::/129", ""] {
            assert!(bad.parse::<TrustedNet>().is_err(), "{bad}");
        }
    }
}

//! An endpoint's settings: what it serves, how fast it notices a dead peer, and how much others
//! may make it hold.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::{IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

use crate::error::QuicError;

/// The default UDP port of the control endpoint.
pub const CONTROL_PORT: u16 = 4523;
/// The default UDP port of the data endpoint.
pub const DATA_PORT: u16 = 4524;

/// Smallest datagram that every QUIC path carries (RFC 9000, section 14).
const SMALLEST_MTU: u16 = 1200;
/// A batch of ten datagrams must stay below the kernel's 64 KiB, or sends fail silently.
const LARGEST_MTU: u16 = 6500;
/// What a client may send before it is known to be a peer: enough for a request to join.
pub(crate) const STRANGER_WINDOW: u32 = 64 * 1024;

/// What an endpoint is for. The two never share a socket, so that data can't delay control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Leases, gossip, the map, calls between agents, joining.
    Control,
    /// Snapshot streams and forwarded connections.
    Data,
}

impl Purpose {
    /// The protocol name that peers of this endpoint speak (ALPN, RFC 7301).
    #[must_use]
    pub const fn alpn(self) -> &'static [u8] {
        match self {
            Self::Control => b"flocker-control/1",
            Self::Data => b"flocker-data/1",
        }
    }
}

/// Settings of one endpoint. [`EndpointConfig::control`] and [`EndpointConfig::data`] give those
/// for either purpose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointConfig {
    /// The UDP address to listen on.
    pub bind: SocketAddr,
    /// What it is for.
    pub purpose: Purpose,
    /// Whether clients without a certificate may ask to join. Control only.
    pub admit_joiners: bool,
    /// A connection on which nothing was sent nor heard for so long ends.
    pub idle_timeout: Duration,
    /// A connection whose peer answers nothing of what it was sent for so long is dead; at most
    /// `idle_timeout`.
    pub silence: Duration,
    /// How often a quiet connection is kept alive; at most a third of `idle_timeout`. Without, it
    /// costs nothing while nobody speaks, and a dead peer is noticed when it is spoken to.
    pub keep_alive: Option<Duration>,
    /// How long a handshake may take, either way.
    pub handshake_timeout: Duration,
    /// Most handshakes that clients may have unfinished at once. Past it the oldest of the
    /// address with the most is dropped.
    pub max_handshakes: usize,
    /// From how many unfinished handshakes on a client must first prove its address.
    pub prove_address_above: usize,
    /// Most streams that a peer may have open at once, of each direction.
    pub max_streams: u32,
    /// Most bytes of one stream in flight to this node. At least rate times round trip.
    pub stream_window: u32,
    /// Most bytes of one connection in flight to this node.
    pub receive_window: u32,
    /// Most unacknowledged bytes of one connection in flight from this node.
    pub send_window: u32,
    /// The socket's receive and send buffers, in bytes.
    pub socket_buffer: usize,
    /// Datagram size to begin with, in bytes of UDP payload.
    pub initial_mtu: u16,
    /// Largest datagram size that path discovery tries, in bytes of UDP payload.
    pub max_mtu: u16,
}

impl EndpointConfig {
    /// A control endpoint: a peer that is dead is noticed within 3 s of being spoken to. Admits no
    /// joiners.
    #[must_use]
    pub const fn control(bind: SocketAddr) -> Self {
        Self {
            bind,
            purpose: Purpose::Control,
            admit_joiners: false,
            idle_timeout: Duration::from_secs(300),
            silence: Duration::from_secs(3),
            keep_alive: None,
            handshake_timeout: Duration::from_secs(3),
            max_handshakes: 256,
            prove_address_above: 32,
            max_streams: 256,
            stream_window: 4 << 20,
            receive_window: 32 << 20,
            send_window: 32 << 20,
            socket_buffer: 4 << 20,
            initial_mtu: SMALLEST_MTU,
            max_mtu: LARGEST_MTU,
        }
    }

    /// A data endpoint: windows for 1 Gbit/s over 250 ms on one stream.
    #[must_use]
    pub const fn data(bind: SocketAddr) -> Self {
        Self {
            purpose: Purpose::Data,
            idle_timeout: Duration::from_secs(10),
            silence: Duration::from_secs(6),
            keep_alive: Some(Duration::from_secs(2)),
            max_streams: 1024,
            stream_window: 32 << 20,
            receive_window: 128 << 20,
            send_window: 64 << 20,
            ..Self::control(bind)
        }
    }

    /// Checks each setting and the relations between them.
    ///
    /// # Errors
    /// [`QuicError::Config`] that names what is wrong.
    pub fn validate(&self) -> Result<(), QuicError> {
        let rules: [(bool, &str); 12] = [
            (
                self.purpose == Purpose::Control || !self.admit_joiners,
                "only a control endpoint admits joiners (admit_joiners)",
            ),
            (
                self.keep_alive.is_none_or(|every| {
                    every >= Duration::from_millis(10)
                        && every.saturating_mul(3) <= self.idle_timeout
                }),
                "keep_alive must be 10 ms or more, and at most a third of idle_timeout",
            ),
            (
                self.silence >= Duration::from_millis(100) && self.silence <= self.idle_timeout,
                "silence must be 100 ms or more, and at most idle_timeout",
            ),
            (self.idle_timeout <= Duration::from_secs(300), "idle_timeout is at most 5 minutes"),
            (
                self.handshake_timeout >= Duration::from_millis(100)
                    && self.handshake_timeout <= Duration::from_secs(60),
                "handshake_timeout must lie between 100 ms and 60 s",
            ),
            (
                (1..=65_536).contains(&self.max_handshakes),
                "max_handshakes must lie between 1 and 65536",
            ),
            (
                self.prove_address_above < self.max_handshakes,
                "prove_address_above must be below max_handshakes",
            ),
            ((8..=65_536).contains(&self.max_streams), "max_streams must lie between 8 and 65536"),
            (
                self.stream_window >= STRANGER_WINDOW && self.send_window >= STRANGER_WINDOW,
                "stream_window and send_window must be 64 KiB or more",
            ),
            (
                self.receive_window >= self.stream_window,
                "receive_window must be no less than stream_window",
            ),
            (
                (64 << 10..=256 << 20).contains(&self.socket_buffer),
                "socket_buffer must lie between 64 KiB and 256 MiB",
            ),
            (
                SMALLEST_MTU <= self.initial_mtu
                    && self.initial_mtu <= self.max_mtu
                    && self.max_mtu <= LARGEST_MTU,
                "initial_mtu and max_mtu must rise from 1200 to 6500 at most",
            ),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, rule)) => Err(QuicError::Config((*rule).to_owned())),
            None => Ok(()),
        }
    }

    /// How quinn shall treat a connection whose peer is not known yet (`stranger`), or one that
    /// this node dials.
    pub(crate) fn transport(&self, stranger: bool) -> Result<Arc<TransportConfig>, QuicError> {
        let idle = IdleTimeout::try_from(self.idle_timeout)
            .map_err(|e| QuicError::Config(format!("idle_timeout: {e}")))?;
        let mut mtu = MtuDiscoveryConfig::default();
        mtu.upper_bound(self.max_mtu);
        let mut congestion = CubicConfig::default();
        // Ten of the largest datagrams, as RFC 9002 has it (section 7.2) for the path's size: with
        // quinn's ten of 1200 bytes, one large probe under way leaves no room even for a close.
        congestion.initial_window(10 * u64::from(self.max_mtu));
        let streams = VarInt::from_u32(self.max_streams);
        let mut transport = TransportConfig::default();
        transport
            .max_idle_timeout(Some(idle))
            .keep_alive_interval(self.keep_alive)
            .max_concurrent_bidi_streams(if stranger { VarInt::from_u32(1) } else { streams })
            .max_concurrent_uni_streams(if stranger { VarInt::from_u32(0) } else { streams })
            .stream_receive_window(VarInt::from_u32(self.stream_window))
            .receive_window(VarInt::from_u32(if stranger {
                STRANGER_WINDOW
            } else {
                self.receive_window
            }))
            .send_window(self.send_window.into())
            .initial_rtt(Duration::from_millis(100))
            .congestion_controller_factory(Arc::new(congestion))
            .initial_mtu(self.initial_mtu)
            .mtu_discovery_config(Some(mtu))
            .datagram_receive_buffer_size(None)
            .enable_segmentation_offload(true);
        Ok(Arc::new(transport))
    }
}

impl Default for EndpointConfig {
    fn default() -> Self {
        Self::control((Ipv4Addr::UNSPECIFIED, CONTROL_PORT).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_each_rule_bites() {
        let good = EndpointConfig::default();
        good.validate().expect("control");
        EndpointConfig::data(good.bind).validate().expect("data");
        let bad = [
            EndpointConfig { admit_joiners: true, ..EndpointConfig::data(good.bind) },
            EndpointConfig { keep_alive: Some(Duration::from_secs(101)), ..good.clone() },
            EndpointConfig { keep_alive: Some(Duration::ZERO), ..good.clone() },
            EndpointConfig { silence: Duration::from_secs(301), ..good.clone() },
            EndpointConfig { silence: Duration::ZERO, ..good.clone() },
            EndpointConfig { idle_timeout: Duration::from_secs(301), ..good.clone() },
            EndpointConfig { handshake_timeout: Duration::ZERO, ..good.clone() },
            EndpointConfig { max_handshakes: 0, ..good.clone() },
            EndpointConfig { prove_address_above: 256, ..good.clone() },
            EndpointConfig { max_streams: 1, ..good.clone() },
            EndpointConfig { stream_window: 1, ..good.clone() },
            EndpointConfig { receive_window: 1 << 20, ..good.clone() },
            EndpointConfig { socket_buffer: 1, ..good.clone() },
            EndpointConfig { max_mtu: 8952, ..good },
        ];
        for config in bad {
            assert!(matches!(config.validate(), Err(QuicError::Config(_))), "{config:?}");
        }
    }
}

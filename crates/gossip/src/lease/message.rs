//! What nodes say to each other about leases, and how a packet of it is written. A packet names
//! the sender's start; who the sender is comes from its certificate, never from here.

use std::time::Duration;

use bytes::Bytes;
use flocker_base::{Epoch, StoreId, VolumeId};
use serde::{Deserialize, Serialize};

use super::record::{Stamp, Start};
use crate::model::{ConfigVersion, VoterConfig};

/// The first byte of every packet.
pub const PACKET_VERSION: u8 = 1;
/// A packet is closed once it is this long; one message more may exceed it.
const PACKET_TARGET: usize = 256 * 1024;

/// As a lag limit: the copy may be as old as it is, for a person said so.
pub const ANY_LAG: Duration = Duration::MAX;

/// Messages that travel together.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Packet {
    /// The sender's start.
    pub start: Start,
    /// What it says.
    pub messages: Vec<Message>,
}

/// One thing said.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Message {
    /// A holder lives.
    Heartbeat(Heartbeat),
    /// A voter heard it.
    HeartbeatAck(HeartbeatAck),
    /// Would you grant? Changes nothing.
    PreVote(PreVote),
    /// The answer.
    PreVoteReply(PreVoteReply),
    /// Grant me this epoch.
    Grant(Grant),
    /// The answer.
    GrantReply(GrantReply),
    /// I did not win this epoch.
    Abandon(VolumeId, Epoch),
    /// I hold this epoch no more.
    Release(Release),
    /// A voter recorded it, or had gone past it.
    ReleaseAck(VolumeId, Epoch),
    /// The voters are to be these.
    SetConfig(SetConfig),
    /// The answer.
    SetConfigReply(SetConfigReply),
    /// Your start is not the newest that I know of your store.
    StaleStart {
        /// The start refused.
        refused: Start,
        /// The newest known.
        newest: Start,
    },
}

/// A holder lives, and offers what it holds for confirmation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Rises with each heartbeat of a start.
    pub seq: u64,
    /// Whether it asks for a promise. Not while it hears no answers.
    pub want: bool,
    /// The voter's support number, as far as known.
    pub support: u64,
    /// The lease asked for.
    pub lease: Duration,
    /// Grants to be confirmed.
    pub confirm: Vec<(VolumeId, Epoch)>,
    /// The newest snapshots that a replica holds.
    pub hints: Vec<(VolumeId, Epoch, Stamp)>,
}

/// A voter heard a heartbeat.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HeartbeatAck {
    /// The start of the sender of the heartbeat.
    pub start: Start,
    /// The heartbeat.
    pub seq: u64,
    /// The voter's support number for that store.
    pub support: u64,
    /// Whether the promise was extended.
    pub extended: bool,
    /// Grants that stand confirmed.
    pub confirmed: Vec<(VolumeId, Epoch)>,
    /// Grants that do not stand: the epoch offered, and the highest granted.
    pub refused: Vec<(VolumeId, Epoch, Epoch)>,
}

/// Would you grant?
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PreVote {
    /// The volume.
    pub volume: VolumeId,
    /// Which question of this candidate it is.
    pub round: u64,
    /// The voters, as the candidate knows them.
    pub config: VoterConfig,
    /// How fresh the candidate's copy is.
    pub copy: Stamp,
    /// How far behind the newest replicated snapshot it may be.
    pub lag_limit: Duration,
}

/// The answer to a [`PreVote`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PreVoteReply {
    /// The volume.
    pub volume: VolumeId,
    /// Which question it answers.
    pub round: u64,
    /// The highest epoch granted.
    pub max_epoch: Epoch,
    /// The voter's own copy.
    pub copy: Option<Stamp>,
    /// The voter's support number for the candidate.
    pub support: u64,
    /// The answer.
    pub verdict: Verdict,
}

/// What a voter says to a candidate.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Verdict {
    /// Yes.
    Yes,
    /// There is a newer configuration.
    Newer(VoterConfig),
    /// The configuration offered does not name this voter.
    NotVoter,
    /// Somebody else is protected.
    Busy {
        /// Who.
        holder: StoreId,
        /// The epoch granted.
        epoch: Epoch,
        /// For how much longer, if no more heartbeats come.
        remaining: Duration,
    },
    /// The candidate's copy is too old.
    Behind {
        /// A fresher one.
        best: Stamp,
        /// Whether this voter itself can serve it.
        here: bool,
    },
    /// This epoch is not above the highest granted.
    Stale(Epoch),
}

/// Grant me this epoch.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Grant {
    /// The volume.
    pub volume: VolumeId,
    /// The epoch claimed.
    pub epoch: Epoch,
    /// The voters, as the candidate knows them.
    pub config: VoterConfig,
    /// How fresh the candidate's copy is.
    pub copy: Stamp,
    /// How far behind the newest replicated snapshot it may be.
    pub lag_limit: Duration,
}

/// The answer to a [`Grant`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GrantReply {
    /// The volume.
    pub volume: VolumeId,
    /// The epoch claimed.
    pub epoch: Epoch,
    /// The voter's support number for the candidate.
    pub support: u64,
    /// The answer.
    pub verdict: Verdict,
}

/// I hold this epoch no more.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Release {
    /// The volume.
    pub volume: VolumeId,
    /// The epoch.
    pub epoch: Epoch,
    /// Who is to have it first.
    pub successor: Option<StoreId>,
}

/// The voters are to be these.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SetConfig {
    /// The volume.
    pub volume: VolumeId,
    /// The epoch of the master that says so.
    pub epoch: Epoch,
    /// The new configuration.
    pub config: VoterConfig,
}

/// The answer to a [`SetConfig`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SetConfigReply {
    /// The volume.
    pub volume: VolumeId,
    /// The epoch of the master.
    pub epoch: Epoch,
    /// The version of the configuration asked for.
    pub version: ConfigVersion,
    /// The voter's support number for the master.
    pub support: u64,
    /// The answer.
    pub verdict: Verdict,
}

/// Why a packet can't be read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// A newer binary wrote it.
    #[error("the lease packet has version {0}, and this binary reads {PACKET_VERSION}")]
    Version(u8),
    /// It is no packet.
    #[error("the lease packet is malformed: {0}")]
    Malformed(String),
}

/// The messages as packets, in order, each of moderate length.
///
/// # Errors
/// [`PacketError::Malformed`] if a message has no encoding, which none of ours lacks.
pub fn encode(start: Start, messages: &[Message]) -> Result<Vec<Bytes>, PacketError> {
    let malformed = |e: postcard::Error| PacketError::Malformed(e.to_string());
    let mut packets = Vec::new();
    let mut rest = messages;
    while !rest.is_empty() {
        let mut size = 0;
        let mut count = 0;
        while count < rest.len() && size < PACKET_TARGET {
            size += postcard::experimental::serialized_size(&rest[count]).map_err(malformed)?;
            count += 1;
        }
        let (now, later) = rest.split_at(count);
        let bytes = postcard::to_extend(&(start, now), vec![PACKET_VERSION]).map_err(malformed)?;
        packets.push(Bytes::from(bytes));
        rest = later;
    }
    Ok(packets)
}

/// The packet with these bytes.
///
/// # Errors
/// [`PacketError`]; bytes left over are an error too.
pub fn decode(bytes: &[u8]) -> Result<Packet, PacketError> {
    let malformed = |reason: &str| PacketError::Malformed(reason.to_owned());
    let (version, body) = bytes.split_first().ok_or_else(|| malformed("it is empty"))?;
    if *version != PACKET_VERSION {
        return Err(PacketError::Version(*version));
    }
    let (packet, rest) =
        postcard::take_from_bytes(body).map_err(|e| PacketError::Malformed(e.to_string()))?;
    if rest.is_empty() { Ok(packet) } else { Err(malformed("bytes are left over")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flocker_base::Incarnation;
    use proptest::prelude::*;

    #[test]
    fn a_heartbeat_has_these_bytes() {
        let start = Start { incarnation: Incarnation(3), nonce: 4 };
        let beat = Heartbeat {
            seq: 1,
            want: true,
            support: 2,
            lease: Duration::from_secs(3),
            confirm: vec![(VolumeId::from_bytes([9; 16]), Epoch::new(0, 6))],
            hints: vec![],
        };
        let packets = encode(start, &[Message::Heartbeat(beat.clone())]).expect("encode");
        let mut golden = vec![1, 3, 4, 1, 0, 1, 1, 2, 3, 0, 1, 16];
        golden.extend([9; 16]);
        golden.extend([0, 6, 0]);
        assert_eq!(packets, [Bytes::from(golden)]);
        let packet = Packet { start, messages: vec![Message::Heartbeat(beat)] };
        assert_eq!(decode(&packets[0]), Ok(packet));
    }

    #[test]
    fn many_messages_travel_in_several_packets_in_order() {
        let messages: Vec<_> = (0..40_000)
            .map(|n| Message::Abandon(VolumeId::from_bytes([7; 16]), Epoch::new(0, n)))
            .collect();
        let packets = encode(Start::default(), &messages).expect("encode");
        assert!(packets.len() > 1);
        assert!(packets.iter().all(|packet| packet.len() < 2 * PACKET_TARGET));
        let read: Vec<_> =
            packets.iter().flat_map(|packet| decode(packet).expect("decode").messages).collect();
        assert_eq!(read, messages);
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_refused_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut framed = vec![PACKET_VERSION];
            framed.extend(&bytes);
            let _ = decode(&framed);
            let _ = decode(&bytes);
        }
    }
}

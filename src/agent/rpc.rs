//! What agents ask of one another over the control port: reports for the status, moves, and
//! edits that belong to a volume's master. Only messages; what they do is elsewhere.
//!
//! The content is JSON: these messages are few, carry the API's own documents, and agents of two
//! versions must understand each other's.

use bytes::Bytes;
use flocker_base::{Epoch, Head, ServiceId, StoreId, VolumeId};
use flocker_gossip::map::Amendment;
use flocker_gossip::model::{ServiceSpec, VolumeSpec};
use flocker_replicate::Guid;
use serde::{Deserialize, Serialize};

use crate::api::{ApiError, MoveReport, MoveRequest, Progress, PromoteRequest, Promoted};

/// The first byte of every message.
const VERSION: u8 = 1;

/// A question of one agent to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// What do you hold and run?
    Report,
    /// Move a service of which you are the master.
    StartMove(MoveRequest),
    /// How does that move fare? Answers with the progress from this index on.
    WatchMove {
        /// The operation.
        operation: u64,
        /// How many lines of progress the asker has.
        from: u32,
    },
    /// Start these services as soon as their volume is yours; answered once they are ready.
    TakeOver {
        /// The volume being released to you.
        volume: VolumeId,
    },
    /// Record this service, whose volume is yours.
    PutService(ServiceSpec),
    /// Record this volume, which is yours.
    PutVolume(VolumeSpec),
    /// Forget this service, whose volume is yours.
    DeleteService(ServiceId),
    /// Make this change of a volume that is yours, or of a service with such a volume.
    Amend(Amendment),
    /// Make your copy of a volume its master: a person said so.
    Promote(PromoteRequest),
    /// Which snapshots of a volume that you lead do you hold?
    Snapshots {
        /// The volume.
        volume: VolumeId,
    },
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// To [`Request::Report`].
    Report(Report),
    /// To [`Request::StartMove`]: the operation to watch.
    Started {
        /// Its number on the answering node.
        operation: u64,
    },
    /// To [`Request::WatchMove`].
    Progress {
        /// New lines.
        lines: Vec<Progress>,
        /// The end, once it has come.
        outcome: Option<Result<MoveReport, ApiError>>,
    },
    /// To [`Request::TakeOver`]: the service answers under this epoch.
    Serving {
        /// The epoch.
        epoch: Epoch,
    },
    /// Done.
    Done,
    /// To [`Request::Amend`]: it is not made and never will be, for this reason.
    Outdated {
        /// Why.
        why: String,
    },
    /// Not done, and why.
    Refused(ApiError),
    /// To [`Request::Promote`].
    Promoted(Promoted),
    /// To [`Request::Snapshots`]: the newest ones' identities.
    Snapshots(Vec<Guid>),
}

/// What one node holds and runs, as only it can know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Its copies.
    pub copies: Vec<CopyReport>,
    /// Its services.
    pub instances: Vec<InstanceReport>,
    /// Whether its disk is full: it leads nothing new then.
    #[serde(default)]
    pub disk_full: bool,
}

/// A copy of a volume on the reporting node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyReport {
    /// The volume.
    pub volume: VolumeId,
    /// Its newest snapshot there.
    pub head: Option<Head>,
    /// Milliseconds left of the lease, and its epoch, if the node holds it.
    pub lease: Option<(Epoch, u64)>,
    /// Whether the lease is late and what writes is frozen.
    pub frozen: bool,
    /// What the master knows of its replicas.
    pub replicas: Vec<ReplicaReport>,
    /// Branches kept on the reporting node: name and head.
    pub branches: Vec<(String, Head)>,
    /// Why nobody can be elected without a person, if so.
    pub needs_decision: Option<String>,
}

/// A replica as the master knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaReport {
    /// The replica's node.
    pub store: StoreId,
    /// The newest snapshot that it acknowledged as durable.
    pub acked: Option<Head>,
    /// How far behind the master it is.
    pub lag_ms: Option<u64>,
    /// Why replication to it fails, if it does.
    pub error: Option<String>,
}

/// A service on the reporting node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceReport {
    /// The service.
    pub service: ServiceId,
    /// Its process.
    pub pid: u32,
    /// Where it listens.
    pub address: std::net::SocketAddr,
    /// Its epoch.
    pub epoch: Epoch,
    /// Whether it answers.
    pub ready: bool,
    /// Whether it is frozen.
    pub frozen: bool,
    /// Whether its requests are held.
    pub held: bool,
}

/// Why a message of another agent was not understood.
#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    /// It was made by a newer or a broken agent.
    #[error("a message of version {0}, and this agent speaks version {VERSION}: upgrade flocker")]
    Version(u8),
    /// It has no content.
    #[error("an empty message")]
    Empty,
    /// Its content is no message.
    #[error("a message that cannot be read: {0}")]
    Malformed(#[from] serde_json::Error),
}

/// The bytes of a message.
///
/// # Errors
/// [`RpcError::Malformed`] if it cannot be encoded.
pub fn encode<T: Serialize>(message: &T) -> Result<Bytes, RpcError> {
    let mut bytes = vec![VERSION];
    serde_json::to_writer(&mut bytes, message)?;
    Ok(bytes.into())
}

/// The message in the bytes. Trailing bytes are an error.
///
/// # Errors
/// [`RpcError`] if it is not one.
pub fn decode<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Result<T, RpcError> {
    match bytes.split_first() {
        None => Err(RpcError::Empty),
        Some((&VERSION, body)) => Ok(serde_json::from_slice(body)?),
        Some((&other, _)) => Err(RpcError::Version(other)),
    }
}

#[cfg(test)]
mod tests {
    use flocker_base::Name;
    use proptest::prelude::*;

    use super::*;
    use crate::api::Destination;

    #[test]
    fn messages_round_trip() {
        let request = Request::StartMove(MoveRequest {
            service: Name::new("tally").expect("a name"),
            to: Destination::Region(Name::new("us").expect("a name")),
        });
        let bytes = encode(&request).expect("encodes");
        assert_eq!(decode::<Request>(&bytes).expect("decodes"), request);
        let reply = Reply::Refused(ApiError::not_found("no such service").hint("look"));
        let bytes = encode(&reply).expect("encodes");
        assert_eq!(decode::<Reply>(&bytes).expect("decodes"), reply);
        let plain = Reply::Refused(ApiError::not_found("no such service"));
        let bytes = encode(&plain).expect("encodes");
        assert_eq!(decode::<Reply>(&bytes).expect("decodes"), plain);
    }

    #[test]
    fn the_wire_form_stands() {
        let bytes = encode(&Request::WatchMove { operation: 300, from: 2 }).expect("encodes");
        assert_eq!(&bytes[..], b"\x01{\"WatchMove\":{\"operation\":300,\"from\":2}}");
    }

    #[test]
    fn other_versions_and_trailing_bytes_are_refused() {
        assert!(matches!(decode::<Request>(&[]), Err(RpcError::Empty)));
        assert!(matches!(decode::<Request>(&[9, 0]), Err(RpcError::Version(9))));
        assert!(matches!(decode::<Request>(b"\x01\"Report\"x"), Err(RpcError::Malformed(_))));
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(request) = decode::<Request>(&bytes) {
                let again = encode(&request).expect("encodes");
                prop_assert_eq!(decode::<Request>(&again).expect("decodes"), request);
            }
        }
    }
}

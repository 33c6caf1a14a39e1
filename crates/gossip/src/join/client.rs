//! The newcomer's side of a join: tries every seed and every address behind it until one member
//! admits it. It believes nothing from a server whose chain does not end in the authority that
//! the token pins, and never sends the token's secret.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use flocker_base::{Name, StoreId};
use flocker_quic::JoinerConnection;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::exchange::{Admission, Answer, Reply, Request, Takes};
use super::reach::{Found, MAX_ADDRESSES, Reach};
use super::token::{JoinString, Seed, Token};
use super::{KnownNode, MAX_REQUEST_BYTES};
use crate::identity::{Authority, IdentityError, KeyRequest, NodeIdentity, Outside};

/// How long a member may take to answer. It writes to its disk meanwhile.
const ANSWER: Duration = Duration::from_secs(10);

/// The node that wants to join.
#[derive(Clone, Debug)]
pub struct Newcomer {
    /// Its store.
    pub store: StoreId,
    /// Its name.
    pub name: Name,
    /// Its region.
    pub region: Name,
    /// Where its control port is reached. With an unspecified IP (`0.0.0.0`), the member puts in
    /// the address that it sees the newcomer come from.
    pub control: SocketAddr,
    /// Where its data port is reached, likewise.
    pub data: SocketAddr,
    /// Which of its facts give way to the token's presets.
    pub takes: Takes,
}

/// A join that succeeded.
#[derive(Debug)]
pub struct Joined {
    /// The new member's identity, not yet stored.
    pub identity: NodeIdentity,
    /// Nodes to begin with; the first one is the node that admitted this one, at the address
    /// where it was reached.
    pub known: Vec<KnownNode>,
    /// The name that it was recorded under.
    pub name: Name,
    /// The region likewise.
    pub region: Name,
}

/// One failed try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The seed.
    pub seed: Seed,
    /// The address behind it, if it was resolved.
    pub address: Option<SocketAddr>,
    /// Whether a member of the cluster answered and refused.
    pub refused: bool,
    /// What went wrong.
    pub reason: String,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) if address.to_string() != self.seed.to_string() => {
                write!(f, "{} ({address}): {}", self.seed, self.reason)
            }
            Some(_) | None => write!(f, "{}: {}", self.seed, self.reason),
        }
    }
}

/// Why a node could not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// No member admitted it.
    #[error("could not join the cluster{}\n{}", Attempts(.0), advice(.0))]
    NoneAdmitted(Vec<Attempt>),
    /// The newcomer could not make its key.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

struct Attempts<'a>(&'a [Attempt]);

impl fmt::Display for Attempts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|attempt| write!(f, "\n  {attempt}"))
    }
}

fn advice(attempts: &[Attempt]) -> &'static str {
    if attempts.iter().any(|attempt| attempt.refused) {
        "A member answered and refused: do what its line says, then run the same command again."
    } else {
        "No member answered: check that `flocker up` runs on at least one of these hosts, that its \
         control port (4523/udp by default) is reached from here, and that the join line is of \
         this cluster; then run the same command again."
    }
}

/// Joins the cluster of this join string: tries the seeds, and each address behind them, in order,
/// one shortly after the other, and asks the first that answers.
///
/// Not cancel safe in one respect: a join given up while a member answers may have been recorded
/// there. Joining again with the same store and name then succeeds.
///
/// # Errors
/// [`JoinError::NoneAdmitted`] with each attempt; [`JoinError::Identity`].
pub async fn join(to: &JoinString, newcomer: &Newcomer) -> Result<Joined, JoinError> {
    join_as(to, newcomer, None).await
}

/// [`join`] with a certificate that an authority outside the cluster issued, which is then the
/// cluster's own. No member gives one, and none is asked to.
///
/// # Errors
/// As [`join`].
pub async fn join_as(
    to: &JoinString,
    newcomer: &Newcomer,
    outside: Option<&Outside>,
) -> Result<Joined, JoinError> {
    let request = match outside {
        // The proof covers it, as it covers a request to sign.
        Some(outside) => KeyRequest { key_der: outside.key.clone(), csr_der: outside.cert.clone() },
        None => KeyRequest::generate(newcomer.store)?,
    };
    let mut attempts: Vec<Attempt> = Vec::new();
    let mut reach = Reach::new(to.token.ca);
    to.seeds.iter().cloned().for_each(|seed| reach.add(seed));
    // Members may name others, once: one that is asked twice is asked no further.
    let mut named: BTreeSet<Seed> = to.seeds.iter().cloned().collect();
    while let Some(found) = reach.next().await {
        let (seed, address, failed) = match found {
            Found::NoAddress(seed, reason) => (seed, None, Failed::unanswered(reason)),
            Found::Silent(seed, address, reason) => {
                (seed, Some(address), Failed::unanswered(reason))
            }
            Found::Member(seed, address, connection) => {
                match ask(&to.token, newcomer, &request, outside, address, connection).await {
                    Ok(joined) => return Ok(joined),
                    Err(failed) => (seed, Some(address), failed),
                }
            }
        };
        let Failed { refused, reason, try_at } = failed;
        tracing::warn!(%seed, reason, "could not join here");
        attempts.push(Attempt { seed, address, refused, reason });
        for other in try_at.into_iter().map(Seed::from) {
            if named.len() < to.seeds.len() + MAX_ADDRESSES && named.insert(other.clone()) {
                reach.add(other);
            }
        }
    }
    Err(JoinError::NoneAdmitted(attempts))
}

struct Failed {
    refused: bool,
    reason: String,
    /// Where the member says that it may be tried instead.
    try_at: Vec<SocketAddr>,
}

impl Failed {
    fn unanswered(reason: impl fmt::Display) -> Self {
        Self { refused: false, reason: reason.to_string(), try_at: Vec::new() }
    }
}

async fn ask(
    token: &Token,
    newcomer: &Newcomer,
    key: &KeyRequest,
    outside: Option<&Outside>,
    at: SocketAddr,
    connection: JoinerConnection,
) -> Result<Joined, Failed> {
    let exporter =
        connection.exporter(flocker_quic::JOIN_EXPORTER_LABEL).map_err(Failed::unanswered)?;
    let request = Request {
        token: token.id,
        store: newcomer.store,
        name: newcomer.name.to_string(),
        region: newcomer.region.to_string(),
        control: newcomer.control,
        data: newcomer.data,
        csr: key.csr_der.clone(),
        takes: newcomer.takes,
    };
    let message = request
        .encode(&token.secret, &exporter)
        .filter(|message| message.len() <= MAX_REQUEST_BYTES)
        .ok_or_else(|| Failed::unanswered("the join request could not be encoded"))?;
    let answer = connection.exchange(&message, ANSWER).await.map_err(Failed::unanswered)?;
    let Answer { reply, recorded, try_at } = Answer::decode(&answer)
        .map_err(|e| Failed::unanswered(format!("the member's reply can't be read: {e}")))?;
    match reply {
        Reply::Admitted(admission) => {
            let asked = || (newcomer.name.clone(), newcomer.region.clone());
            let recorded = recorded.unwrap_or_else(asked);
            take(admission, token, newcomer.store, (key, outside), at, recorded)
        }
        Reply::Refused(reason) => Err(Failed {
            refused: true,
            reason: format!("refused: {}", printable(&reason)),
            try_at,
        }),
    }
}

/// Checks what was given against what was asked for.
fn take(
    mut admission: Admission,
    token: &Token,
    store: StoreId,
    (key, outside): (&KeyRequest, Option<&Outside>),
    at: SocketAddr,
    (name, region): (Name, Name),
) -> Result<Joined, Failed> {
    let wrong = |reason: &str| Failed::unanswered(format!("the member's reply is wrong: {reason}"));
    if <[u8; 32]>::from(Sha256::digest(&admission.authority_cert)) != token.ca {
        return Err(wrong("its authority is not the one that the token names"));
    }
    let identity = identity(&mut admission, store, key, outside).map_err(|e| wrong(&e))?;
    let mut known = std::mem::take(&mut admission.known);
    let by = admission.by;
    let told = known.iter().position(|node| node.store == by);
    let mut first = told.map_or_else(
        || KnownNode { store: by, control: Vec::new(), data: Vec::new() },
        |index| known.remove(index),
    );
    first.control.retain(|address| *address != at);
    first.control.insert(0, at);
    known.insert(0, first);
    Ok(Joined { identity, known, name, region })
}

/// The identity that comes of what was given, or of what this node brought.
fn identity(
    admission: &mut Admission,
    store: StoreId,
    key: &KeyRequest,
    outside: Option<&Outside>,
) -> Result<NodeIdentity, String> {
    let authority_key = Zeroizing::new(std::mem::take(&mut admission.authority_key));
    match outside {
        Some(outside)
            if authority_key.is_empty() && admission.authority_cert == outside.authority_cert =>
        {
            Ok(NodeIdentity::outside(admission.cluster, store, outside.clone()))
        }
        Some(_) => Err("its cluster has another authority than --ca-cert".to_owned()),
        None => {
            let cert = std::mem::take(&mut admission.authority_cert);
            let authority =
                Authority::from_parts(cert, authority_key).map_err(|e| e.to_string())?;
            let cert = std::mem::take(&mut admission.cert);
            NodeIdentity::from_parts(admission.cluster, store, authority, cert, key.key_der.clone())
                .map_err(|e| e.to_string())
        }
    }
}

/// A peer's text as a terminal may show it.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(600).collect()
}

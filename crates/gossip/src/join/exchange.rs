//! The two messages of a join and the proof between them. Encoding only: nothing is judged here.
//!
//! Request: a version byte, the 32 bytes of the proof, the body (postcard). The proof covers every
//! byte of the body, so no part of it can be exchanged. Reply: a version byte and the body.
//!
//! Version 1 is a body of fixed fields. Version 2 is the same fields and a list of numbered extras:
//! who does not know a number leaves it aside, so that both sides may be extended apart. A newcomer
//! sends version 1 unless it has an extra to say, and is answered in the version that it sent. A
//! number must never get another meaning.

use std::net::SocketAddr;

use flocker_base::{ClusterId, Name, StoreId, TokenId};
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::KnownNode;

/// The largest join request, in bytes.
pub const MAX_REQUEST_BYTES: usize = 4096;

/// The largest reply to a join, in bytes.
pub const MAX_REPLY_BYTES: usize = 64 * 1024;

const VERSION: u8 = 1;
const VERSION_EXTRAS: u8 = 2;
const PROOF_LEN: usize = 32;

/// The most extras in a message.
const MAX_EXTRAS: usize = 64;

/// The numbers of a request's extras.
mod asks {
    /// Bit 0: the name is a default, so the token's goes before it. Bit 1: the region likewise.
    pub(super) const TAKES: u16 = 1;
}

/// The numbers of a reply's extras.
mod answers {
    /// The name that the newcomer was recorded under.
    pub(super) const NAME: u16 = 1;
    /// The region likewise.
    pub(super) const REGION: u16 = 2;
    /// With a refusal: where to try instead.
    pub(super) const TRY_AT: u16 = 3;
}

/// The most addresses of another member in a reply.
pub(super) const MAX_TRY_AT: usize = 8;

/// A number and what is said under it.
type Extra = (u16, Vec<u8>);

/// What a newcomer asks for. Names are checked by whoever judges it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Request {
    pub(super) token: TokenId,
    pub(super) store: StoreId,
    pub(super) name: String,
    pub(super) region: String,
    pub(super) control: SocketAddr,
    pub(super) data: SocketAddr,
    pub(super) csr: Vec<u8>,
    /// Extra: which of these nobody chose, so that the token's presets go before them.
    #[serde(skip)]
    pub(super) takes: Takes,
}

/// Which of its facts a newcomer takes from the token, if the token has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Takes {
    /// Its name was not chosen by anyone.
    pub name: bool,
    /// Its region was not chosen by anyone.
    pub region: bool,
}

/// What a member answers.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Reply {
    Admitted(Admission),
    Refused(String),
}

/// A reply with its extras, which a newcomer of version 1 does not see.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) reply: Reply,
    /// The name and region that the newcomer was recorded under.
    pub(super) recorded: Option<(Name, Name)>,
    /// Where to try instead.
    pub(super) try_at: Vec<SocketAddr>,
}

/// What a newcomer is given.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Admission {
    pub(super) cluster: ClusterId,
    /// The member that admits.
    pub(super) by: StoreId,
    pub(super) cert: Vec<u8>,
    pub(super) authority_cert: Vec<u8>,
    pub(super) authority_key: Vec<u8>,
    pub(super) known: Vec<KnownNode>,
}

impl Drop for Admission {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.authority_key);
    }
}

/// Why a message of the exchange can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ExchangeError {
    #[error(
        "it has version {0}, and this node speaks versions 1 and 2: run the same version of flocker on both nodes"
    )]
    Version(u8),
    #[error("it is malformed")]
    Malformed,
}

/// A request with its proof, not yet believed.
pub(super) struct Claim<'a> {
    pub(super) request: Request,
    /// The version that it came in.
    pub(super) version: u8,
    proof: [u8; PROOF_LEN],
    body: &'a [u8],
}

impl Request {
    /// The message, proven with this secret for this TLS session.
    pub(super) fn encode(&self, secret: &[u8; 32], exporter: &[u8; 32]) -> Option<Vec<u8>> {
        self.encode_in(VERSION_EXTRAS, secret, exporter)
    }

    /// The message in a version, of which the first has no extras.
    pub(super) fn encode_in(
        &self,
        version: u8,
        secret: &[u8; 32],
        exporter: &[u8; 32],
    ) -> Option<Vec<u8>> {
        let takes = u8::from(self.takes.name) | u8::from(self.takes.region) << 1;
        let extras: Vec<Extra> =
            if takes == 0 { Vec::new() } else { vec![(asks::TAKES, vec![takes])] };
        let body = if version == VERSION_EXTRAS {
            postcard::to_stdvec(&(self, extras)).ok()?
        } else {
            postcard::to_stdvec(self).ok()?
        };
        let mut message = Vec::with_capacity(1 + PROOF_LEN + body.len());
        message.push(version);
        message.extend_from_slice(&mac(version, secret, exporter, &body).finalize().into_bytes());
        message.extend_from_slice(&body);
        Some(message)
    }
}

impl<'a> Claim<'a> {
    pub(super) fn decode(message: &'a [u8]) -> Result<Self, ExchangeError> {
        let (version, rest) = message.split_first().ok_or(ExchangeError::Malformed)?;
        let version = known(*version)?;
        let (proof, body) = rest.split_first_chunk().ok_or(ExchangeError::Malformed)?;
        let (mut request, extras): (Request, Vec<Extra>) = read(version, body)?;
        let takes = extra(&extras, asks::TAKES).and_then(|bytes| bytes.first()).copied();
        let takes = takes.unwrap_or_default();
        request.takes = Takes { name: takes & 1 != 0, region: takes & 2 != 0 };
        Ok(Self { request, version, proof: *proof, body })
    }

    /// Whether the proof was made with this secret for this TLS session, in constant time.
    pub(super) fn is_proven(&self, secret: &[u8; 32], exporter: &[u8; 32]) -> bool {
        mac(self.version, secret, exporter, self.body).verify_slice(&self.proof).is_ok()
    }
}

impl Answer {
    /// A refusal without more.
    pub(super) const fn refused(text: String) -> Self {
        Self { reply: Reply::Refused(text), recorded: None, try_at: Vec::new() }
    }

    /// The answer to a request of this version.
    pub(super) fn encode(&self, version: u8) -> Option<Vec<u8>> {
        if version != VERSION_EXTRAS {
            return postcard::to_extend(&self.reply, vec![VERSION]).ok();
        }
        let mut extras: Vec<Extra> = Vec::new();
        if let Some((name, region)) = &self.recorded {
            extras.push((answers::NAME, postcard::to_stdvec(name).ok()?));
            extras.push((answers::REGION, postcard::to_stdvec(region).ok()?));
        }
        if !self.try_at.is_empty() {
            extras.push((answers::TRY_AT, postcard::to_stdvec(&self.try_at).ok()?));
        }
        postcard::to_extend(&(&self.reply, extras), vec![VERSION_EXTRAS]).ok()
    }

    pub(super) fn decode(message: &[u8]) -> Result<Self, ExchangeError> {
        let (version, body) = message.split_first().ok_or(ExchangeError::Malformed)?;
        let (reply, extras): (Reply, Vec<Extra>) = read(known(*version)?, body)?;
        let named = |number| -> Option<Name> { postcard::from_bytes(extra(&extras, number)?).ok() };
        let recorded = named(answers::NAME).zip(named(answers::REGION));
        let mut try_at: Vec<SocketAddr> = extra(&extras, answers::TRY_AT)
            .and_then(|bytes| postcard::from_bytes(bytes).ok())
            .unwrap_or_default();
        try_at.truncate(MAX_TRY_AT);
        Ok(Self { reply, recorded, try_at })
    }
}

fn known(version: u8) -> Result<u8, ExchangeError> {
    match version {
        VERSION | VERSION_EXTRAS => Ok(version),
        other => Err(ExchangeError::Version(other)),
    }
}

/// The fields, and the extras where the version has them.
fn read<T: serde::de::DeserializeOwned>(
    version: u8,
    body: &[u8],
) -> Result<(T, Vec<Extra>), ExchangeError> {
    let read = match version {
        VERSION_EXTRAS => postcard::take_from_bytes(body),
        _ => postcard::take_from_bytes(body).map(|(fields, rest)| ((fields, Vec::new()), rest)),
    };
    match read {
        Ok((read, [])) if read.1.len() <= MAX_EXTRAS => Ok(read),
        Ok(_) | Err(_) => Err(ExchangeError::Malformed),
    }
}

fn extra(extras: &[Extra], number: u16) -> Option<&[u8]> {
    extras.iter().find(|(other, _)| *other == number).map(|(_, bytes)| bytes.as_slice())
}

fn mac(version: u8, secret: &[u8; 32], exporter: &[u8; 32], body: &[u8]) -> Hmac<Sha256> {
    // A key shorter than the hash's block is padded with zeros (RFC 2104, 2).
    let mut key = zeroize::Zeroizing::new([0; 64]);
    key[..32].copy_from_slice(secret);
    let mut mac = Hmac::<Sha256>::new((&*key).into());
    // A proof of one version says nothing in another.
    let domain: &[u8] =
        if version == VERSION_EXTRAS { b"flocker join v2" } else { b"flocker join v1" };
    mac.update(domain);
    mac.update(exporter);
    mac.update(body);
    mac
}

//! The two messages of a join and the proof between them. Encoding only: nothing is judged here.
//!
//! Request: a version byte, the 32 bytes of the proof, the body (postcard). The proof covers every
//! byte of the body, so no part of it can be exchanged. Reply: a version byte and the body.

use std::net::SocketAddr;

use flocker_base::{ClusterId, StoreId, TokenId};
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::KnownNode;

/// The largest join request, in bytes.
pub const MAX_REQUEST_BYTES: usize = 4096;

/// The largest reply to a join, in bytes.
pub const MAX_REPLY_BYTES: usize = 64 * 1024;

const VERSION: u8 = 1;
const PROOF_LEN: usize = 32;
const PROOF_DOMAIN: &[u8] = b"flocker join v1";

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
}

/// What a member answers.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Reply {
    Admitted(Admission),
    Refused(String),
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
        "it has version {0}, and this node speaks version 1: run the same version of flocker on both nodes"
    )]
    Version(u8),
    #[error("it is malformed")]
    Malformed,
}

/// A request with its proof, not yet believed.
pub(super) struct Claim<'a> {
    pub(super) request: Request,
    proof: [u8; PROOF_LEN],
    body: &'a [u8],
}

impl Request {
    /// The message, proven with this secret for this TLS session.
    pub(super) fn encode(&self, secret: &[u8; 32], exporter: &[u8; 32]) -> Option<Vec<u8>> {
        let body = postcard::to_stdvec(self).ok()?;
        let mut message = Vec::with_capacity(1 + PROOF_LEN + body.len());
        message.push(VERSION);
        message.extend_from_slice(&mac(secret, exporter, &body).finalize().into_bytes());
        message.extend_from_slice(&body);
        Some(message)
    }
}

impl<'a> Claim<'a> {
    pub(super) fn decode(message: &'a [u8]) -> Result<Self, ExchangeError> {
        let (version, rest) = message.split_first().ok_or(ExchangeError::Malformed)?;
        if *version != VERSION {
            return Err(ExchangeError::Version(*version));
        }
        let (proof, body) = rest.split_first_chunk().ok_or(ExchangeError::Malformed)?;
        match postcard::take_from_bytes(body) {
            Ok((request, [])) => Ok(Self { request, proof: *proof, body }),
            Ok(_) | Err(_) => Err(ExchangeError::Malformed),
        }
    }

    /// Whether the proof was made with this secret for this TLS session, in constant time.
    pub(super) fn is_proven(&self, secret: &[u8; 32], exporter: &[u8; 32]) -> bool {
        mac(secret, exporter, self.body).verify_slice(&self.proof).is_ok()
    }
}

impl Reply {
    pub(super) fn encode(&self) -> Option<Vec<u8>> {
        postcard::to_extend(self, vec![VERSION]).ok()
    }

    pub(super) fn decode(message: &[u8]) -> Result<Self, ExchangeError> {
        let (version, body) = message.split_first().ok_or(ExchangeError::Malformed)?;
        if *version != VERSION {
            return Err(ExchangeError::Version(*version));
        }
        match postcard::take_from_bytes(body) {
            Ok((reply, [])) => Ok(reply),
            Ok(_) | Err(_) => Err(ExchangeError::Malformed),
        }
    }
}

fn mac(secret: &[u8; 32], exporter: &[u8; 32], body: &[u8]) -> Hmac<Sha256> {
    // A key shorter than the hash's block is padded with zeros (RFC 2104, 2).
    let mut key = zeroize::Zeroizing::new([0; 64]);
    key[..32].copy_from_slice(secret);
    let mut mac = Hmac::<Sha256>::new((&*key).into());
    mac.update(PROOF_DOMAIN);
    mac.update(exporter);
    mac.update(body);
    mac
}

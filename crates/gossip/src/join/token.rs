//! The join token and the line that carries it: `TOKEN@host1,host2:port`. Text in, values out:
//! no name is resolved and no socket opened here, and no error repeats the secret.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use data_encoding::BASE32_NOPAD;
use flocker_base::TokenId;
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

use crate::identity::Authority;
use crate::model::TokenSpec;

/// The control port, where none is named.
pub const DEFAULT_PORT: u16 = 4523;

/// The most seeds in a join string.
const MAX_SEEDS: usize = 32;

/// The longest join string that is looked at, in bytes.
const MAX_JOIN_STRING: usize = 16 * 1024;

const PREFIX: &str = "flk1-";
const FAMILY: &str = "flk";
const BODY_LEN: usize = 16 + 32 + 32;
const CHECK_LEN: usize = 4;
/// Base-32 characters of body and checksum.
const TEXT_LEN: usize = (BODY_LEN + CHECK_LEN) * 8 / 5 + 1;

/// A join token: it names a secret that the cluster knows, and pins the cluster's authority.
///
/// As text it is `flk1-` and, in lower-case base 32 without padding, id, secret, fingerprint and
/// four bytes of a checksum, so that a typo is told apart from a token that no one knows.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Its public half.
    pub id: TokenId,
    /// Its secret half: the key of the proof.
    pub secret: [u8; 32],
    /// SHA-256 of the authority's certificate (DER).
    pub ca: [u8; 32],
}

impl Token {
    /// The token with this record, of the cluster with this authority.
    #[must_use]
    pub fn new(spec: &TokenSpec, authority: &Authority) -> Self {
        Self { id: spec.id, secret: spec.secret, ca: authority.fingerprint() }
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Why a text is no join token. None of these repeats the text: it may be a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It does not begin as a token does.
    #[error(
        "this is no join token: one begins with 'flk1-'; copy the whole line that `flocker token create` printed"
    )]
    NotAToken,
    /// It begins as a token of another version does.
    #[error(
        "this join token has a form that this binary does not know: run the same version of flocker on both nodes"
    )]
    Version,
    /// Characters are missing or too many.
    #[error(
        "this join token has {found} characters after 'flk1-' and should have {TEXT_LEN}: it was not copied whole"
    )]
    Length {
        /// How many characters there are.
        found: usize,
    },
    /// A character is wrong.
    #[error("this join token has a typo (its checksum does not match): copy it again")]
    Typo,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(BODY_LEN + CHECK_LEN);
        bytes.extend_from_slice(self.id.as_bytes());
        bytes.extend_from_slice(&self.secret);
        bytes.extend_from_slice(&self.ca);
        let check = checksum(&bytes);
        bytes.extend_from_slice(&check);
        let text = BASE32_NOPAD.encode(&bytes).to_ascii_lowercase();
        bytes.zeroize();
        write!(f, "{PREFIX}{text}")
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = Zeroizing::new(text.trim().to_ascii_lowercase());
        let Some(body) = text.strip_prefix(PREFIX) else {
            let other_version = text
                .strip_prefix(FAMILY)
                .and_then(|rest| rest.split_once('-'))
                .is_some_and(|(n, _)| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
            return Err(if other_version { TokenError::Version } else { TokenError::NotAToken });
        };
        let found = body.chars().count();
        if found != TEXT_LEN {
            return Err(TokenError::Length { found });
        }
        let bytes = BASE32_NOPAD
            .decode(body.to_ascii_uppercase().as_bytes())
            .map(Zeroizing::new)
            .map_err(|_why| TokenError::Typo)?;
        let (body, check) = bytes.split_at_checked(BODY_LEN).ok_or(TokenError::Typo)?;
        if check != checksum(body) {
            return Err(TokenError::Typo);
        }
        let id = body[..16].try_into().map_err(|_why| TokenError::Typo)?;
        let secret = body[16..48].try_into().map_err(|_why| TokenError::Typo)?;
        let ca = body[48..].try_into().map_err(|_why| TokenError::Typo)?;
        Ok(Self { id: TokenId::from_bytes(id), secret, ca })
    }
}

fn checksum(body: &[u8]) -> [u8; CHECK_LEN] {
    let hash = Sha256::new().chain_update(b"flocker token v1").chain_update(body).finalize();
    [hash[0], hash[1], hash[2], hash[3]]
}

/// An address to try first: a name or an address, and a port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seed {
    /// A DNS name or an IP address, without brackets.
    pub host: String,
    /// The control port.
    pub port: u16,
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.parse::<Ipv6Addr>() {
            Ok(_) => write!(f, "[{}]:{}", self.host, self.port),
            Err(_) => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// What `flocker up --join` takes: a token and the addresses to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinString {
    /// The token.
    pub token: Token,
    /// Where to try, in order. Any member of the cluster will do.
    pub seeds: Vec<Seed>,
}

/// Why a text is no join string.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinStringError {
    /// There is no `@`, or more than one.
    #[error(
        "a join string is TOKEN@HOST[:PORT][,HOST...]: copy the whole line that `flocker token create` printed"
    )]
    Form,
    /// The part before the `@` is no token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// There are too many hosts.
    #[error(
        "a join string names at most {MAX_SEEDS} hosts, and any one member of the cluster is enough: name fewer"
    )]
    TooMany,
    /// A host can't be read.
    #[error("'{text}' in the join string is no host: {reason}")]
    Host {
        /// The host as it was given.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl fmt::Display for JoinString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@", self.token)?;
        for (index, seed) in self.seeds.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{seed}")?;
        }
        Ok(())
    }
}

impl FromStr for JoinString {
    type Err = JoinStringError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_JOIN_STRING {
            return Err(JoinStringError::Form);
        }
        let (token, hosts) = text.trim().split_once('@').ok_or(JoinStringError::Form)?;
        let token = token.parse()?;
        let seeds: Vec<Seed> = hosts
            .split(',')
            .map(str::trim)
            .filter(|host| !host.is_empty())
            .take(MAX_SEEDS + 1)
            .map(Seed::from_str)
            .collect::<Result<_, _>>()?;
        match seeds.len() {
            0 => Err(JoinStringError::Form),
            n if n > MAX_SEEDS => Err(JoinStringError::TooMany),
            _ => Ok(Self { token, seeds }),
        }
    }
}

impl FromStr for Seed {
    type Err = JoinStringError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = |reason| JoinStringError::Host { text: text.chars().take(80).collect(), reason };
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, after) = rest.split_once(']').ok_or(bad("'[' without ']'"))?;
            host.parse::<Ipv6Addr>().map_err(|_why| bad("no IPv6 address in the brackets"))?;
            match after.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if after.is_empty() => (host, None),
                None => return Err(bad("something other than ':PORT' after the ']'")),
            }
        } else {
            match text.matches(':').count() {
                0 => (text, None),
                1 => text.split_once(':').map(|(h, p)| (h, Some(p))).ok_or(bad("no port"))?,
                _ => {
                    return Err(bad("write an IPv6 address in brackets, as in [2001:db8::1]:4523"));
                }
            }
        };
        let port = match port {
            None => DEFAULT_PORT,
            Some(port) => match port.parse() {
                Ok(0) | Err(_) => return Err(bad("a port is a number from 1 to 65535")),
                Ok(port) => port,
            },
        };
        let named = host.parse::<IpAddr>().is_ok() || is_dns_name(host);
        if named { Ok(Self { host: host.to_owned(), port }) } else { Err(bad("no DNS name")) }
    }
}

impl From<SocketAddr> for Seed {
    fn from(address: SocketAddr) -> Self {
        Self { host: address.ip().to_string(), port: address.port() }
    }
}

/// RFC 1123, with underscores, which some resolvers' names have.
fn is_dns_name(host: &str) -> bool {
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && !l.starts_with('-')
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    (1..=253).contains(&host.len()) && host.trim_end_matches('.').split('.').all(label)
}

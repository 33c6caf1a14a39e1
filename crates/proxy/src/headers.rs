//! What headers lose and gain on the way: what concerns one connection only is taken out, the
//! client's address is put in, and the mesh's own headers never come from or reach the outside.

use std::fmt::Write;
use std::net::IpAddr;

use flocker_base::StoreId;
use hyper::HeaderMap;
use hyper::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, FORWARDED, HOST, HeaderName, HeaderValue,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};

use crate::config::ForwardedPolicy;

/// The service that a peer forwards a request for.
pub(crate) const SERVICE: HeaderName = HeaderName::from_static("flocker-service");
/// The nodes that a forwarded request went through, the sender excepted: its certificate says it.
pub(crate) const HOPS: HeaderName = HeaderName::from_static("flocker-hops");
/// On a response: nothing of the request was acted on.
pub(crate) const REFUSED: HeaderName = HeaderName::from_static("flocker-refused");

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// Who sent a request.
#[derive(Debug)]
pub(crate) enum Origin {
    /// A client from outside.
    Client(ClientAddress),
    /// A peer, known by its certificate.
    Peer(StoreId),
}

/// A client's address, as backends are told it.
#[derive(Debug)]
pub(crate) struct ClientAddress {
    ip: IpAddr,
    plain: HeaderValue,
    element: HeaderValue,
    /// What it says of earlier proxies is believed.
    trusted: bool,
}

/// What a request wants beyond an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wants {
    Answer,
    /// To go on in another protocol on the same connection.
    Upgrade,
}

impl Origin {
    pub(crate) fn client(ip: IpAddr, policy: &ForwardedPolicy) -> Self {
        let ip = ip.to_canonical();
        let element = match ip {
            IpAddr::V4(ip) => format!("for={ip};proto=http"),
            IpAddr::V6(ip) => format!("for=\"[{ip}]\";proto=http"),
        };
        let trusted = match policy {
            ForwardedPolicy::Replace => false,
            ForwardedPolicy::AppendFrom(nets) => nets.iter().any(|net| net.contains(ip)),
        };
        Self::Client(ClientAddress {
            ip,
            plain: value(&ip.to_string()),
            element: value(&element),
            trusted,
        })
    }

    pub(crate) const fn is_peer(&self) -> bool {
        matches!(self, Self::Peer(_))
    }

    /// For messages.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Client(client) => client.ip.to_string(),
            Self::Peer(node) => format!("node {node}"),
        }
    }
}

/// Takes out what concerned the client's connection only, and puts in the client's address.
pub(crate) fn prepare_request(headers: &mut HeaderMap, origin: &Origin, wants: Wants) {
    let upgrade = match wants {
        Wants::Upgrade => headers.remove(UPGRADE),
        Wants::Answer => None,
    };
    strip_hop_by_hop(headers);
    headers.remove(EXPECT);
    headers.remove(PROXY_AUTHORIZATION);
    if let Some(upgrade) = upgrade {
        headers.insert(UPGRADE, upgrade);
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
    headers.remove(SERVICE);
    headers.remove(HOPS);
    if let Origin::Client(client) = origin {
        append_client(headers, client);
    }
}

/// Takes out what concerned the upstream's connection only.
pub(crate) fn prepare_response(headers: &mut HeaderMap, switched: bool) {
    let upgrade = if switched { headers.remove(UPGRADE) } else { None };
    if headers.contains_key(TRANSFER_ENCODING) {
        // The coding is what counts; a length beside it must not reach a client that believes it.
        headers.remove(CONTENT_LENGTH);
    }
    strip_hop_by_hop(headers);
    headers.remove(PROXY_AUTHENTICATE);
    headers.remove(REFUSED);
    if let Some(upgrade) = upgrade {
        headers.insert(UPGRADE, upgrade);
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
}

/// Whether the request asks for another protocol that a tunnel can carry. HTTP/2 in the clear is
/// none: through it a client could reach past the routes.
pub(crate) fn wants(headers: &HeaderMap) -> Wants {
    let Some(upgrade) = headers.get(UPGRADE) else { return Wants::Answer };
    let asked = headers.get_all(CONNECTION).iter().any(|value| has_token(value, "upgrade"));
    let is_h2 = upgrade.as_bytes().to_ascii_lowercase().windows(3).any(|at| at == b"h2c");
    if asked && !is_h2 { Wants::Upgrade } else { Wants::Answer }
}

/// How long the backend says that it keeps an unused connection.
pub(crate) fn keep_alive_seconds(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(KEEP_ALIVE)?.to_str().ok()?;
    let timeout = text.split(',').find_map(|part| part.trim().strip_prefix("timeout="))?;
    timeout.trim().parse().ok()
}

/// Roughly the memory that a held request occupies.
pub(crate) fn weight(headers: &HeaderMap, target: usize) -> u64 {
    const FIXED: usize = 2_048;
    let listed: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    (FIXED + target + 2 * listed) as u64
}

/// The nodes that a peer says the request went through before it.
pub(crate) fn parse_hops(headers: &HeaderMap, most: usize) -> Option<Vec<StoreId>> {
    let Some(value) = headers.get(HOPS) else { return Some(Vec::new()) };
    let mut hops = Vec::new();
    for hop in value.to_str().ok()?.split(',') {
        if hops.len() >= most {
            return None;
        }
        hops.push(hop.parse().ok()?);
    }
    Some(hops)
}

/// The same as a header's value.
pub(crate) fn hops_value(hops: &[StoreId]) -> HeaderValue {
    let mut text = String::with_capacity(hops.len() * 33);
    for (index, hop) in hops.iter().enumerate() {
        // Writing to a string never fails.
        let _ = write!(text, "{}{hop}", if index == 0 { "" } else { "," });
    }
    value(&text)
}

fn append_client(headers: &mut HeaderMap, client: &ClientAddress) {
    if client.trusted {
        let plain = joined(headers, &X_FORWARDED_FOR, &client.plain);
        let element = joined(headers, &FORWARDED, &client.element);
        headers.insert(X_FORWARDED_FOR, plain);
        headers.insert(FORWARDED, element);
        headers.entry(X_FORWARDED_PROTO).or_insert(HeaderValue::from_static("http"));
        return;
    }
    headers.remove(X_FORWARDED_HOST);
    headers.remove(X_FORWARDED_PORT);
    headers.remove(X_REAL_IP);
    headers.insert(X_FORWARDED_FOR, client.plain.clone());
    headers.insert(FORWARDED, client.element.clone());
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
}

fn joined(headers: &HeaderMap, name: &HeaderName, last: &HeaderValue) -> HeaderValue {
    let mut all = Vec::new();
    for value in headers.get_all(name) {
        all.extend_from_slice(value.as_bytes());
        all.extend_from_slice(b", ");
    }
    all.extend_from_slice(last.as_bytes());
    HeaderValue::from_bytes(&all).unwrap_or_else(|_| last.clone())
}

fn strip_hop_by_hop(headers: &mut HeaderMap) {
    // Usually empty: `keep-alive` and `close` name no header that could be there.
    let mut named = Vec::new();
    for value in headers.get_all(CONNECTION) {
        for token in value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            let is_plain = token.eq_ignore_ascii_case(b"keep-alive")
                || token.eq_ignore_ascii_case(b"close")
                || token.eq_ignore_ascii_case(b"upgrade");
            match HeaderName::from_bytes(token) {
                // A client must not have these taken out of its request by naming them.
                Ok(name) if !is_plain && name != HOST && name != CONTENT_LENGTH => named.push(name),
                _ => {}
            }
        }
    }
    for name in named {
        headers.remove(name);
    }
    for name in [CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, TE, UPGRADE, TRANSFER_ENCODING] {
        headers.remove(name);
    }
}

fn has_token(value: &HeaderValue, token: &str) -> bool {
    let mut parts = value.as_bytes().split(|byte| *byte == b',');
    parts.any(|part| part.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

/// The text is made of digits, letters and punctuation, all of which a header may carry.
fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
}

#[cfg(test)]
mod tests;

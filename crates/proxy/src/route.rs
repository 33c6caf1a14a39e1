//! Which host name belongs to which service, and where each service is. Never decides: it is what
//! the agent says.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::SocketAddr;

use flocker_base::{Epoch, ServiceId, StoreId};

/// Where a service is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// On this node, at this address. The epoch tells one instance from the next at the same
    /// address.
    Local {
        /// Where the instance listens.
        address: SocketAddr,
        /// The epoch that the instance runs under.
        epoch: Epoch,
    },
    /// On another node, whose proxy takes the request.
    Remote {
        /// That node.
        node: StoreId,
    },
    /// Not known: its requests are held.
    Unknown,
}

/// All routes, given whole.
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    /// Host names (any case, a port is ignored) and the services they belong to.
    pub hosts: HashMap<String, ServiceId>,
    /// Where each service is. A service that only `hosts` names counts as [`Place::Unknown`].
    pub services: HashMap<ServiceId, Place>,
    /// The services' names, for messages to people.
    pub names: HashMap<ServiceId, String>,
}

/// The form of a host name under which it is looked up: without port and final dot, in lower case.
/// `None` if the text is no host.
pub(crate) fn host_key(text: &str) -> Option<Cow<'_, str>> {
    let (host, port) = if text.starts_with('[') {
        let end = text.find(']')?;
        let address = &text[1..end];
        if address.is_empty() || !address.bytes().all(is_ipv6_byte) {
            return None;
        }
        text.split_at(end + 1)
    } else {
        let at = text.find(':').unwrap_or(text.len());
        let host = &text[..at];
        if !host.bytes().all(is_name_byte) {
            return None;
        }
        text.split_at(at)
    };
    if !port.is_empty() && !port[1..].bytes().all(|b| b.is_ascii_digit())
        || !port.is_empty() && !port.starts_with(':')
        || port.len() > 6
    {
        return None;
    }
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.is_empty() || host.len() > 255 {
        return None;
    }
    if host.bytes().any(|b| b.is_ascii_uppercase()) {
        Some(Cow::Owned(host.to_ascii_lowercase()))
    } else {
        Some(Cow::Borrowed(host))
    }
}

const fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_')
}

const fn is_ipv6_byte(byte: u8) -> bool {
    byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_compared_without_case_port_and_final_dot() {
        for (text, key) in [
            ("Example.COM:8080", "example.com"),
            ("example.com.", "example.com"),
            ("example.com", "example.com"),
            ("a_b-c.d:", "a_b-c.d"),
            ("[FE80::1]:80", "[fe80::1]"),
            ("127.0.0.1:1", "127.0.0.1"),
        ] {
            assert_eq!(host_key(text).as_deref(), Some(key), "{text}");
        }
    }

    #[test]
    fn what_is_no_host_is_refused() {
        let long = "x".repeat(300);
        for text in [
            "",
            ".",
            ":80",
            "a b",
            "a/b",
            "a@b",
            "a:b",
            "a:80:80",
            "[::1",
            "[]",
            "[x]",
            "[::1]x",
            "a:123456",
            "é",
            "a\u{0}",
            long.as_str(),
        ] {
            assert_eq!(host_key(text), None, "{text}");
        }
    }
}

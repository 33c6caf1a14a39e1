//! Who a node is on the wire: its certificate, and how a store's id is read from one. The private
//! key is never shown by any `Debug` or log line.

use std::fmt;

use flocker_base::{ClusterId, StoreId};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use zeroize::Zeroizing;

const DOMAIN: &str = ".node.flocker";

/// What a node needs to prove who it is to its peers, and to check them.
#[derive(Clone)]
pub struct Identity {
    /// The cluster, for messages only: the CA is what separates clusters.
    pub cluster: ClusterId,
    /// This node's store. It must be the one named in `cert_der`.
    pub store: StoreId,
    /// The cluster's CA certificate, DER.
    pub ca_der: Vec<u8>,
    /// This node's certificate, signed by the CA or by the first of `intermediates`, DER.
    pub cert_der: Vec<u8>,
    /// Certificates between this node's and the CA's, each signed by the next, DER.
    pub intermediates: Vec<Vec<u8>>,
    /// The private key of `cert_der`, PKCS#8 DER.
    pub key_der: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("cluster", &self.cluster)
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

/// The DNS name that a node's certificate must carry, alone, as its subject alternative name:
/// the store's id as 32 hexadecimal digits and `.node.flocker`.
#[must_use]
pub fn server_name(store: StoreId) -> String {
    format!("{store}{DOMAIN}")
}

/// The store that a certificate names; `None` if it names none, several, or in another spelling.
/// It checks no signature.
#[must_use]
pub fn store_of_certificate(der: &[u8]) -> Option<StoreId> {
    let (rest, certificate) = X509Certificate::from_der(der).ok()?;
    if !rest.is_empty() {
        return None;
    }
    let names = certificate.subject_alternative_name().ok()??;
    let [GeneralName::DNSName(name)] = names.value.general_names.as_slice() else {
        return None;
    };
    let store: StoreId = name.strip_suffix(DOMAIN)?.parse().ok()?;
    (server_name(store) == *name).then_some(store)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn a_certificate_names_its_store_and_nothing_else() {
        let ca = testing::cluster();
        let store = testing::store(7);
        let identity = ca.identity(store);
        assert_eq!(store_of_certificate(&identity.cert_der), Some(store));
        assert_eq!(store_of_certificate(&identity.ca_der), None, "a CA is no node");
        assert_eq!(store_of_certificate(b"not a certificate"), None);
        let mut longer = identity.cert_der;
        longer.push(0);
        assert_eq!(store_of_certificate(&longer), None, "trailing bytes");
    }

    #[test]
    fn other_spellings_and_several_names_are_no_identity() {
        let ca = testing::cluster();
        let store = testing::store(9);
        let name = server_name(store);
        assert_eq!(name.len(), 32 + DOMAIN.len());
        for names in [
            vec![name.to_uppercase()],
            vec![name.clone(), server_name(testing::store(8))],
            vec![format!("x.{name}")],
            vec!["localhost".to_owned()],
            vec![],
        ] {
            let certificate = ca.identity_for_names(&names).cert_der;
            assert_eq!(store_of_certificate(&certificate), None, "{names:?}");
        }
    }

    #[test]
    fn debug_shows_no_key() {
        let identity = testing::cluster().identity(testing::store(1));
        assert!(!format!("{identity:?}").contains("key"));
    }
}

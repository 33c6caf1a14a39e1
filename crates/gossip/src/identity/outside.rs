//! An authority outside the cluster: the operator's own issues every node's certificate, and no
//! node holds its key. What may count as such a certificate is said here; who is a member is said
//! by the map and by tokens ([`crate::join`]), never by a certificate alone.

use std::path::Path;
use std::sync::Arc;

use flocker_base::{StoreId, WallTime};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use zeroize::Zeroizing;

use super::{Duration, IdentityError, parse};

/// The largest file that is read, in bytes.
pub const MAX_PEM_BYTES: usize = 64 * 1024;

/// The most certificates between a node's and the authority's.
const MAX_INTERMEDIATES: usize = 3;

/// Why a certificate of an outside authority can't be used, with what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutsideError {
    /// The file of the authority holds no certificate, or several.
    #[error(
        "{0} certificates are in the authority's file, and there must be one: the one that all nodes trust; those between it and the nodes' go into the file of the node's certificate, after that one"
    )]
    Authority(usize),
    /// It is no authority's.
    #[error("what is in the authority's file is no authority's certificate (basic constraints)")]
    NoAuthority,
    /// The file of the node's certificate holds none, or too many.
    #[error(
        "{0} certificates are in the node's file: there must be the node's own, then at most {MAX_INTERMEDIATES} between it and the authority's, each signed by the next"
    )]
    Chain(usize),
    /// The key is missing or of another form.
    #[error(
        "there is no usable private key in the key's file: it must be PKCS #8 in PEM ('BEGIN PRIVATE KEY'), not encrypted; `openssl pkcs8 -topk8 -nocrypt` makes one of another"
    )]
    Key,
    /// A certificate is not X.509.
    #[error("a certificate can't be read")]
    Unreadable,
    /// It names something else.
    #[error(
        "the certificate names {found}, and must name {} and nothing else, as a DNS subject alternative name: issue it from what `flocker identity csr` writes",
        flocker_quic::server_name(*expected)
    )]
    Name {
        /// The node's store.
        expected: StoreId,
        /// What it names.
        found: String,
    },
    /// It is not for both sides of a connection.
    #[error(
        "the certificate lacks the extended key usage {0}: a node needs both serverAuth and clientAuth"
    )]
    Usage(&'static str),
    /// It does not lead to the authority, or its dates are wrong.
    #[error("the certificate does not hold against the cluster's authority: {0}")]
    Untrusted(String),
}

/// A node's certificate from an outside authority, checked.
#[derive(Clone)]
pub struct Outside {
    /// The authority's certificate (DER).
    pub authority_cert: Vec<u8>,
    /// The node's certificate (DER).
    pub cert: Vec<u8>,
    /// Those between the two (DER), each signed by the next.
    pub intermediates: Vec<Vec<u8>>,
    /// The node's private key (PKCS #8 DER).
    pub key: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for Outside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outside").finish_non_exhaustive()
    }
}

impl Outside {
    /// Reads the three files' contents (PEM) and checks that they hold for this store now. Whether
    /// the key is the certificate's is checked by who uses it.
    ///
    /// # Errors
    /// [`OutsideError`], which says what is wrong with which.
    pub fn read(
        authority: &[u8],
        chain: &[u8],
        key: &[u8],
        store: StoreId,
        now: WallTime,
    ) -> Result<Self, OutsideError> {
        let mut authorities = certificates(authority)?;
        let authority_cert = match (authorities.pop(), authorities.len()) {
            (Some(one), 0) => one,
            (last, others) => {
                return Err(OutsideError::Authority(others + usize::from(last.is_some())));
            }
        };
        if !parse(&authority_cert).map_err(|_why| OutsideError::Unreadable)?.is_ca() {
            return Err(OutsideError::NoAuthority);
        }
        let mut intermediates = certificates(chain)?;
        // Many write the authority's own certificate at the end, where it is of no use.
        intermediates.retain(|cert| *cert != authority_cert);
        if intermediates.is_empty() || intermediates.len() > 1 + MAX_INTERMEDIATES {
            return Err(OutsideError::Chain(intermediates.len()));
        }
        let cert = intermediates.remove(0);
        let key = PrivatePkcs8KeyDer::from_pem_slice(key).map_err(|_why| OutsideError::Key)?;
        let key = Zeroizing::new(key.secret_pkcs8_der().to_vec());
        let read = Self { authority_cert, cert, intermediates, key };
        check(&read.authority_cert, &read.intermediates, &read.cert, store, now)?;
        Ok(read)
    }
}

/// Whether this certificate makes its holder this store, as far as certificates go: the name, both
/// usages, the dates, and a chain that leads to the authority.
///
/// # Errors
/// [`OutsideError`].
pub fn check(
    authority_cert: &[u8],
    intermediates: &[Vec<u8>],
    cert: &[u8],
    store: StoreId,
    now: WallTime,
) -> Result<(), OutsideError> {
    let parsed = parse(cert).map_err(|_why| OutsideError::Unreadable)?;
    if flocker_quic::store_of_certificate(cert) != Some(store) {
        let names = parsed.subject_alternative_name().ok().flatten();
        let found = names.map_or_else(
            || "nothing".to_owned(),
            |names| {
                let names = names.value.general_names.iter().map(ToString::to_string);
                names.collect::<Vec<_>>().join(", ").chars().take(200).collect()
            },
        );
        return Err(OutsideError::Name { expected: store, found });
    }
    let usages = parsed.extended_key_usage().ok().flatten().map(|usages| usages.value);
    if !usages.is_some_and(|u| u.server_auth) {
        return Err(OutsideError::Usage("serverAuth"));
    }
    if !usages.is_some_and(|u| u.client_auth) {
        return Err(OutsideError::Usage("clientAuth"));
    }
    let untrusted = |error: &dyn std::fmt::Display| OutsideError::Untrusted(error.to_string());
    let mut roots = RootCertStore::empty();
    roots.add(authority_cert.to_vec().into()).map_err(|e| untrusted(&e))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|e| untrusted(&e))?;
    let between: Vec<CertificateDer<'_>> =
        intermediates.iter().map(|der| der.as_slice().into()).collect();
    let now = UnixTime::since_unix_epoch(Duration::from_millis(now.as_millis()));
    verifier.verify_client_cert(&cert.into(), &between, now).map_err(|e| untrusted(&e))?;
    Ok(())
}

/// A key and a request for its certificate, as PEM.
pub struct Request {
    /// The private key (PKCS #8).
    pub key_pem: Zeroizing<String>,
    /// The request (PKCS #10).
    pub csr_pem: String,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request").field("csr_pem", &self.csr_pem).finish_non_exhaustive()
    }
}

/// A request that names this store, for this key (PKCS #8, PEM) or for a new one.
///
/// # Errors
/// [`OutsideError::Key`] if the key is of another form, [`IdentityError::Make`] if the system gives
/// no randomness.
pub fn request(store: StoreId, key_pem: Option<&str>) -> Result<Request, IdentityError> {
    let make = |source| IdentityError::Make { action: "make a certificate request", source };
    let key = match key_pem {
        Some(pem) => KeyPair::from_pem(pem).map_err(|_why| OutsideError::Key)?,
        None => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make)?,
    };
    let mut params =
        CertificateParams::new(vec![flocker_quic::server_name(store)]).map_err(make)?;
    params.distinguished_name.push(DnType::CommonName, format!("flocker node {store}"));
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let csr = params.serialize_request(&key).map_err(make)?;
    let csr_pem = csr.pem().map_err(make)?;
    Ok(Request { key_pem: Zeroizing::new(key.serialize_pem()), csr_pem })
}

/// Makes the folder if there is none, and closes it to everyone but its owner.
///
/// # Errors
/// [`IdentityError::Folder`].
pub fn private_folder(folder: &Path) -> Result<(), IdentityError> {
    super::file::make_private(folder)
}

fn certificates(pem: &[u8]) -> Result<Vec<Vec<u8>>, OutsideError> {
    CertificateDer::pem_slice_iter(pem)
        .map(|cert| cert.map(|der| der.to_vec()).map_err(|_why| OutsideError::Unreadable))
        .collect()
}

#[cfg(test)]
mod tests;

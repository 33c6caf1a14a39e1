//! Who a node is: the cluster's certificate authority and this node's certificate and key.
//!
//! Every node stores the authority's key, so that every node can admit another; root on one node
//! is therefore root on the mesh. A certificate names a store and nothing else. Private keys never
//! appear in a log line, an error or a `Debug` output, and never leave a file of mode 0600 except
//! inside the reply to a proven join ([`crate::join`]).

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use flocker_base::durable::DurableError;
use flocker_base::{ClusterId, StoreId, WallTime};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKeyData,
};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

mod file;
pub mod outside;
pub mod renewal;

#[cfg(test)]
mod tests;

pub use file::OutsideCluster;
pub use outside::{Outside, OutsideError};
pub use renewal::Validity;

/// How long an authority's certificate is valid.
pub const AUTHORITY_VALIDITY: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// How long a node's certificate is valid. Each node makes its own anew ([`renewal`]), also one
/// that comes back after longer, so that this bounds only for how long a stolen certificate is of
/// use and how wrong a clock may be. A node is removed by revoking it in the map, not by this.
pub const NODE_VALIDITY: Duration = Duration::from_secs(365 * 24 * 3600);

/// Certificates count as valid from this long before they were made, so that a peer whose clock is
/// behind (up to the two years that a dead clock battery costs) accepts them.
const BACKDATED: Duration = Duration::from_secs(2 * 365 * 24 * 3600);

/// The latest time that a certificate may name: the year 2200. A wilder clock reading is cut off.
const LATEST_SECS: u64 = 7_258_118_400;

/// The largest certificate signing request that is looked at, in bytes. Ours have about 250.
const MAX_CSR_BYTES: usize = 2048;

/// The identity's file in the state folder.
const FILE: &str = "identity";
const FILE_VERSION: u8 = 1;
const FILE_MAX_BYTES: usize = 16 * 1024;

/// Why an identity could not be made, stored or read.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A key or certificate could not be made.
    #[error("cannot {action}: {source}")]
    Make {
        /// What was attempted.
        action: &'static str,
        /// What the certificate library said.
        source: rcgen::Error,
    },
    /// A request for a certificate that is refused.
    #[error(
        "the certificate request is refused: {0}; start the join anew with the same version of flocker on both nodes"
    )]
    Request(&'static str),
    /// Parts of an identity that do not belong together.
    #[error(
        "the identity does not hold together: {0}; restore the state folder from a backup, or move it away and join as a new node"
    )]
    Inconsistent(&'static str),
    /// The state folder could not be made private.
    #[error("cannot {action} {}: {source}; check the folder's owner and the disk", path.display())]
    Folder {
        /// What was attempted, as a verb.
        action: &'static str,
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The identity's file could not be written or read.
    #[error(transparent)]
    File(#[from] DurableError),
    /// A certificate of an outside authority that can't be used.
    #[error(transparent)]
    Outside(#[from] OutsideError),
    /// The authority is outside, so no node signs.
    #[error(
        "this cluster's certificates come from an authority outside: run `flocker identity csr` on the new node, have that authority sign what it writes, and start with --ca-cert, --cert and --key"
    )]
    NoKey,
    /// The identity's file has another form than its version says.
    #[error("{} is not an identity that this binary can read: restore it from a backup, or move the state folder away and join as a new node", .0.display())]
    Malformed(PathBuf),
}

/// The cluster's certificate authority: its certificate and its private key.
#[derive(Clone, PartialEq, Eq)]
pub struct Authority {
    cert_der: Vec<u8>,
    key_der: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes a new authority for a new cluster.
    ///
    /// # Errors
    /// [`IdentityError::Make`] if the system gives no randomness.
    pub fn generate(cluster: ClusterId, now: WallTime) -> Result<Self, IdentityError> {
        let make = |source| IdentityError::Make { action: "make the cluster's authority", source };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make)?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("flocker cluster {cluster}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        set_validity(&mut params, now, AUTHORITY_VALIDITY);
        let cert = params.self_signed(&key).map_err(make)?;
        Ok(Self { cert_der: cert.der().to_vec(), key_der: Zeroizing::new(key.serialize_der()) })
    }

    /// The authority with this certificate (DER) and private key (PKCS #8 DER).
    ///
    /// # Errors
    /// [`IdentityError::Inconsistent`] if the certificate is no authority's, or the key is not its
    /// key.
    pub fn from_parts(
        cert_der: Vec<u8>,
        key_der: Zeroizing<Vec<u8>>,
    ) -> Result<Self, IdentityError> {
        let authority = Self { cert_der, key_der };
        let key = authority.key()?;
        let cert = parse(&authority.cert_der)?;
        if !cert.is_ca() {
            return Err(IdentityError::Inconsistent(
                "the authority's certificate is no authority's",
            ));
        }
        if public_key(&cert) != key.der_bytes() {
            return Err(IdentityError::Inconsistent(
                "the authority's key is not the key of its certificate",
            ));
        }
        Ok(authority)
    }

    /// An authority whose key no node has.
    #[must_use]
    pub fn outside(cert_der: Vec<u8>) -> Self {
        Self { cert_der, key_der: Zeroizing::default() }
    }

    /// Whether its key is elsewhere, so that no node can sign.
    #[must_use]
    pub fn is_outside(&self) -> bool {
        self.key_der.is_empty()
    }

    /// The certificate (DER).
    #[must_use]
    pub fn cert_der(&self) -> &[u8] {
        &self.cert_der
    }

    /// The private key (PKCS #8 DER); empty if it is elsewhere.
    #[must_use]
    pub const fn key_der(&self) -> &Zeroizing<Vec<u8>> {
        &self.key_der
    }

    /// From when to when the authority's certificate is valid.
    ///
    /// # Errors
    /// [`IdentityError::Inconsistent`] if the certificate can't be read.
    pub fn validity(&self) -> Result<Validity, IdentityError> {
        Validity::of(&self.cert_der)
    }

    /// SHA-256 of the certificate: what a join token pins.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        Sha256::digest(&self.cert_der).into()
    }

    /// Signs a certificate for the key of this request (a PKCS #10 DER), naming this store. Of the
    /// request, only the key is taken: names and extensions in it are ignored.
    ///
    /// # Errors
    /// [`IdentityError::Request`] if the request is too large, malformed, not signed by its own
    /// key, or its key is not ECDSA on P-256.
    pub fn issue(
        &self,
        csr_der: &[u8],
        store: StoreId,
        now: WallTime,
        valid: Duration,
    ) -> Result<Vec<u8>, IdentityError> {
        if self.is_outside() {
            return Err(IdentityError::NoKey);
        }
        if csr_der.len() > MAX_CSR_BYTES {
            return Err(IdentityError::Request("it is larger than any of ours"));
        }
        let request =
            CertificateSigningRequestParams::from_der(&csr_der.into()).map_err(|_why| {
                IdentityError::Request("it is malformed or not signed by its own key")
            })?;
        if request.public_key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(IdentityError::Request("its key is not ECDSA on P-256"));
        }
        self.sign(&request.public_key, store, now, valid)
    }

    fn sign(
        &self,
        key: &impl PublicKeyData,
        store: StoreId,
        now: WallTime,
        valid: Duration,
    ) -> Result<Vec<u8>, IdentityError> {
        let make = |source| IdentityError::Make { action: "sign a node's certificate", source };
        let mut params =
            CertificateParams::new(vec![flocker_quic::server_name(store)]).map_err(make)?;
        params.distinguished_name.push(DnType::CommonName, format!("flocker node {store}"));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        // What outlasted the authority would be worth nothing after its end.
        let valid = valid.min(self.validity()?.left(now));
        set_validity(&mut params, now, valid);
        let issuer = Issuer::from_ca_cert_der(&self.cert_der.as_slice().into(), self.key()?)
            .map_err(make)?;
        Ok(params.signed_by(key, &issuer).map_err(make)?.der().to_vec())
    }

    fn key(&self) -> Result<KeyPair, IdentityError> {
        KeyPair::try_from(self.key_der.as_slice()).map_err(|_why| {
            IdentityError::Inconsistent("the authority's private key can't be read")
        })
    }
}

/// A key that has no certificate yet, and the request for one.
pub struct KeyRequest {
    /// The private key (PKCS #8 DER).
    pub key_der: Zeroizing<Vec<u8>>,
    /// The request (PKCS #10 DER), signed by that key.
    pub csr_der: Vec<u8>,
}

impl fmt::Debug for KeyRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRequest").finish_non_exhaustive()
    }
}

impl KeyRequest {
    /// Makes a key and a request that names this store.
    ///
    /// # Errors
    /// [`IdentityError::Make`] if the system gives no randomness.
    pub fn generate(store: StoreId) -> Result<Self, IdentityError> {
        let make = |source| IdentityError::Make { action: "make this node's key", source };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make)?;
        let params =
            CertificateParams::new(vec![flocker_quic::server_name(store)]).map_err(make)?;
        let csr = params.serialize_request(&key).map_err(make)?;
        Ok(Self { key_der: Zeroizing::new(key.serialize_der()), csr_der: csr.der().to_vec() })
    }
}

/// What a node is to its cluster: certificate, key, and the authority that signed it.
#[derive(Clone, PartialEq, Eq)]
pub struct NodeIdentity {
    cluster: ClusterId,
    store: StoreId,
    authority: Authority,
    cert_der: Vec<u8>,
    /// Between the certificate and the authority's: only of an outside one.
    intermediates: Vec<Vec<u8>>,
    key_der: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for NodeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeIdentity")
            .field("cluster", &self.cluster)
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

impl NodeIdentity {
    /// The first node's identity: a new key, signed by the authority that this node just made.
    ///
    /// # Errors
    /// Any [`IdentityError`] of making or signing a key.
    pub fn found(
        cluster: ClusterId,
        store: StoreId,
        authority: Authority,
        now: WallTime,
    ) -> Result<Self, IdentityError> {
        let request = KeyRequest::generate(store)?;
        let cert = authority.issue(&request.csr_der, store, now, NODE_VALIDITY)?;
        Self::from_parts(cluster, store, authority, cert, request.key_der)
    }

    /// An identity of these parts (DER; the key is PKCS #8).
    ///
    /// # Errors
    /// [`IdentityError::Inconsistent`] unless the certificate names the store, is signed by the
    /// authority, and belongs to the key.
    pub fn from_parts(
        cluster: ClusterId,
        store: StoreId,
        authority: Authority,
        cert_der: Vec<u8>,
        key_der: Zeroizing<Vec<u8>>,
    ) -> Result<Self, IdentityError> {
        let key = KeyPair::try_from(key_der.as_slice())
            .map_err(|_why| IdentityError::Inconsistent("the node's private key can't be read"))?;
        let cert = parse(&cert_der)?;
        let signer = parse(authority.cert_der())?;
        if flocker_quic::store_of_certificate(&cert_der) != Some(store) {
            return Err(IdentityError::Inconsistent("the certificate names another store"));
        }
        if public_key(&cert) != key.der_bytes() {
            return Err(IdentityError::Inconsistent("the key is not the certificate's"));
        }
        if cert.verify_signature(Some(signer.public_key())).is_err() {
            return Err(IdentityError::Inconsistent(
                "the certificate is not signed by the cluster's authority",
            ));
        }
        Ok(Self { cluster, store, authority, cert_der, intermediates: Vec::new(), key_der })
    }

    /// An identity whose certificate an outside authority issued; [`Outside::read`] has checked it.
    #[must_use]
    pub fn outside(cluster: ClusterId, store: StoreId, given: Outside) -> Self {
        let Outside { authority_cert, cert, intermediates, key } = given;
        let authority = Authority::outside(authority_cert);
        Self { cluster, store, authority, cert_der: cert, intermediates, key_der: key }
    }

    /// What a newcomer with this request is given: a certificate, or nothing where it brought its
    /// own from an outside authority, which is then checked.
    ///
    /// # Errors
    /// As [`Authority::issue`] and [`Self::check_newcomer`].
    pub fn certificate_for(
        &self,
        request: &[u8],
        store: StoreId,
        now: WallTime,
    ) -> Result<Vec<u8>, IdentityError> {
        if self.authority.is_outside() {
            return self.check_newcomer(request, store, now).map(|()| Vec::new());
        }
        self.authority.issue(request, store, now, NODE_VALIDITY)
    }

    /// Whether a newcomer's certificate (DER) is of this cluster's outside authority and names this
    /// store. It must come under the same certificates as this node's.
    ///
    /// # Errors
    /// [`IdentityError::NoKey`] if it is no certificate, else [`IdentityError::Outside`].
    pub fn check_newcomer(
        &self,
        cert_der: &[u8],
        store: StoreId,
        now: WallTime,
    ) -> Result<(), IdentityError> {
        // A request to sign begins otherwise: it comes from who has no certificate yet.
        if parse(cert_der).is_err() {
            return Err(IdentityError::NoKey);
        }
        let trusted = self.authority.cert_der();
        Ok(outside::check(trusted, &self.intermediates, cert_der, store, now)?)
    }

    /// The cluster.
    #[must_use]
    pub const fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The store that this identity names.
    #[must_use]
    pub const fn store(&self) -> StoreId {
        self.store
    }

    /// The cluster's authority.
    #[must_use]
    pub const fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The node's certificate (DER).
    #[must_use]
    pub fn cert_der(&self) -> &[u8] {
        &self.cert_der
    }

    /// This identity as the QUIC endpoints take it.
    #[must_use]
    pub fn to_quic(&self) -> flocker_quic::Identity {
        flocker_quic::Identity {
            cluster: self.cluster,
            store: self.store,
            ca_der: self.authority.cert_der.clone(),
            cert_der: self.cert_der.clone(),
            intermediates: self.intermediates.clone(),
            key_der: self.key_der.clone(),
        }
    }

    /// From when to when the node's certificate is valid, and those between it and the authority's.
    ///
    /// # Errors
    /// [`IdentityError::Inconsistent`] if a certificate can't be read.
    pub fn validity(&self) -> Result<Validity, IdentityError> {
        self.intermediates.iter().try_fold(Validity::of(&self.cert_der)?, |all, between| {
            let between = Validity::of(between)?;
            Ok(Validity { from: all.from.max(between.from), until: all.until.min(between.until) })
        })
    }

    /// Whether the certificate is to be made anew.
    ///
    /// # Errors
    /// [`IdentityError::Inconsistent`] if a certificate can't be read.
    pub fn needs_renewal(&self, now: WallTime) -> Result<bool, IdentityError> {
        // An outside authority is asked by the operator, not by the node.
        Ok(!self.authority.is_outside()
            && renewal::is_due(&self.validity()?, &self.authority.validity()?, now))
    }

    /// The same identity with a new key and certificate, signed by the authority that this node
    /// stores. A clock that is behind the present certificate's making does not shorten it.
    ///
    /// # Errors
    /// Any [`IdentityError`] of making or signing a key.
    pub fn renewed(&self, now: WallTime) -> Result<Self, IdentityError> {
        let now = now.max(self.validity()?.made());
        Self::found(self.cluster, self.store, self.authority.clone(), now)
    }
}

fn set_validity(params: &mut CertificateParams, now: WallTime, valid: Duration) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = Duration::from_millis(now.as_millis());
    let cut = |time: Duration| Duration::from_secs(time.as_secs().min(LATEST_SECS));
    params.not_before = epoch + cut(now.saturating_sub(BACKDATED));
    params.not_after = epoch + cut(now.saturating_add(valid));
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, IdentityError> {
    match X509Certificate::from_der(der) {
        Ok(([], cert)) => Ok(cert),
        Ok(_) | Err(_) => Err(IdentityError::Inconsistent("a certificate can't be read")),
    }
}

fn public_key<'a>(cert: &'a X509Certificate<'_>) -> &'a [u8] {
    &cert.public_key().subject_public_key.data
}

//! TLS 1.3 with ring, passed explicitly: who may speak to whom. Sessions are never resumed, so a
//! certificate is checked on every connection; no process-wide default provider is set.

use std::sync::Arc;
use std::time::Duration;

use flocker_base::Clock;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, ring as provider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::time_provider::TimeProvider;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig,
    SignatureScheme,
};

use crate::config::Purpose;
use crate::error::QuicError;
use crate::identity::{Identity, store_of_certificate};

/// The protocol name of a client that asks to join (ALPN).
pub(crate) const JOIN_ALPN: &[u8] = b"flocker-join/1";

/// SHA-256 of a certificate.
pub(crate) fn fingerprint(der: &[u8]) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, der);
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.as_ref());
    bytes
}

/// What peers and joiners meet. With `joiners`, a client may come without a certificate: whoever
/// accepts must then look at its ALPN.
pub(crate) fn server(
    identity: &Identity,
    purpose: Purpose,
    joiners: bool,
    clock: &Arc<dyn Clock>,
) -> Result<Arc<QuicServerConfig>, QuicError> {
    let builder =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots(identity)?), ring_provider());
    let builder = if joiners { builder.allow_unauthenticated() } else { builder };
    let verifier = builder.build().map_err(unusable)?;
    let mut config = ServerConfig::builder_with_details(ring_provider(), wall_time(clock))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain(identity), key(identity))
        .map_err(unusable)?;
    config.alpn_protocols = vec![purpose.alpn().to_vec()];
    if joiners {
        config.alpn_protocols.push(JOIN_ALPN.to_vec());
    }
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(QuicServerConfig::try_from(config).map_err(unusable)?))
}

/// What a node shows and asks when it dials a peer.
pub(crate) fn client(
    identity: &Identity,
    purpose: Purpose,
    clock: &Arc<dyn Clock>,
) -> Result<Arc<QuicClientConfig>, QuicError> {
    let mut config = ClientConfig::builder_with_details(ring_provider(), wall_time(clock))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .with_root_certificates(roots(identity)?)
        .with_client_auth_cert(chain(identity), key(identity))
        .map_err(unusable)?;
    config.alpn_protocols = vec![purpose.alpn().to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(QuicClientConfig::try_from(config).map_err(unusable)?))
}

/// What a node shows and asks when it dials an address without knowing who is there.
pub(crate) fn seeker(
    identity: &Identity,
    purpose: Purpose,
    clock: &Arc<dyn Clock>,
) -> Result<Arc<QuicClientConfig>, QuicError> {
    let verifier = AnyNode { roots: roots(identity)?, provider: ring_provider() };
    let mut config = ClientConfig::builder_with_details(ring_provider(), wall_time(clock))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(chain(identity), key(identity))
        .map_err(unusable)?;
    config.alpn_protocols = vec![purpose.alpn().to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(QuicClientConfig::try_from(config).map_err(unusable)?))
}

/// What a newcomer asks: a chain that ends in the authority with this fingerprint.
pub(crate) fn joiner(ca_fingerprint: [u8; 32]) -> Result<Arc<QuicClientConfig>, QuicError> {
    let verifier = PinnedAuthority { ca_fingerprint, provider: ring_provider() };
    let mut config = ClientConfig::builder_with_provider(ring_provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![JOIN_ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(QuicClientConfig::try_from(config).map_err(unusable)?))
}

/// Trusts the one authority whose certificate hashes to the pin, and what it signed. The name in
/// the leaf must be some node's: which one answers does not matter to a newcomer.
#[derive(Debug)]
struct PinnedAuthority {
    ca_fingerprint: [u8; 32],
    provider: Arc<CryptoProvider>,
}

/// Trusts what this cluster's authority signed, whichever node it names.
#[derive(Debug)]
struct AnyNode {
    roots: RootCertStore,
    provider: Arc<CryptoProvider>,
}

/// Whether the chain ends in one of these roots and its leaf names a node.
fn is_some_node(
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &RootCertStore,
    provider: &CryptoProvider,
    now: UnixTime,
) -> Result<ServerCertVerified, rustls::Error> {
    verify_server_cert_signed_by_trust_anchor(
        &ParsedCertificate::try_from(end_entity)?,
        roots,
        intermediates,
        now,
        provider.signature_verification_algorithms.all,
    )?;
    match store_of_certificate(end_entity) {
        Some(_) => Ok(ServerCertVerified::assertion()),
        None => Err(CertificateError::NotValidForName.into()),
    }
}

impl ServerCertVerifier for AnyNode {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        is_some_node(end_entity, intermediates, &self.roots, &self.provider, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(tls12_is_not_spoken())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(ca) = intermediates.iter().find(|c| fingerprint(c) == self.ca_fingerprint) else {
            return Err(rustls::Error::General(
                "its cluster is another one than the token's (the CA's fingerprint differs)"
                    .to_owned(),
            ));
        };
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone())?;
        is_some_node(end_entity, intermediates, &roots, &self.provider, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(tls12_is_not_spoken())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn tls12_is_not_spoken() -> rustls::Error {
    rustls::Error::General("TLS 1.2 is not spoken here".to_owned())
}

/// The clock that certificates are judged by.
#[derive(Debug)]
struct WallClock(Arc<dyn Clock>);

impl TimeProvider for WallClock {
    fn current_time(&self) -> Option<UnixTime> {
        let since_epoch = Duration::from_millis(self.0.wall().as_millis());
        Some(UnixTime::since_unix_epoch(since_epoch))
    }
}

fn wall_time(clock: &Arc<dyn Clock>) -> Arc<dyn TimeProvider> {
    Arc::new(WallClock(Arc::clone(clock)))
}

/// AES-128 first: measured, it is the cheapest on machines with AES instructions.
fn ring_provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            provider::cipher_suite::TLS13_AES_128_GCM_SHA256,
            provider::cipher_suite::TLS13_AES_256_GCM_SHA384,
            provider::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..provider::default_provider()
    })
}

fn roots(identity: &Identity) -> Result<RootCertStore, QuicError> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(identity.ca_der.clone())).map_err(unusable)?;
    Ok(roots)
}

fn chain(identity: &Identity) -> Vec<CertificateDer<'static>> {
    let between = identity.intermediates.iter().cloned();
    std::iter::once(identity.cert_der.clone())
        .chain(between)
        .chain(std::iter::once(identity.ca_der.clone()))
        .map(Into::into)
        .collect()
}

fn key(identity: &Identity) -> PrivateKeyDer<'static> {
    PrivatePkcs8KeyDer::from(identity.key_der.to_vec()).into()
}

fn unusable(error: impl std::fmt::Display) -> QuicError {
    QuicError::Identity(error.to_string())
}

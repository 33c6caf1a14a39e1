//! A QUIC client that trusts anyone and shows whatever certificate it is given, or none.

use std::net::SocketAddr;
use std::sync::Arc;

use quinn::ClientConfig;
use quinn::crypto::rustls::QuicClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};

use crate::identity::Identity;
use crate::testing::loopback;

/// Who knocks.
pub(super) struct Stranger {
    pub(super) endpoint: quinn::Endpoint,
    pub(super) config: ClientConfig,
}

impl Stranger {
    pub(super) fn new(alpn: &[u8], identity: Option<&Identity>) -> Self {
        let endpoint = quinn::Endpoint::client(loopback()).expect("endpoint");
        Self { endpoint, config: config(alpn, identity) }
    }

    pub(super) async fn connect(
        &self,
        at: SocketAddr,
    ) -> Result<quinn::Connection, quinn::ConnectionError> {
        let config = self.config.clone();
        self.endpoint.connect_with(config, at, "x.node.flocker").expect("a dial").await
    }

    /// How its connection ends, in the handshake or later.
    pub(super) async fn connect_and_wait(&self, at: SocketAddr) -> quinn::ConnectionError {
        match self.connect(at).await {
            Ok(connection) => connection.closed().await,
            Err(error) => error,
        }
    }
}

pub(super) fn config(alpn: &[u8], identity: Option<&Identity>) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TrustsAnyone));
    let mut tls = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => builder
            .with_client_auth_cert(
                vec![identity.cert_der.clone().into(), identity.ca_der.clone().into()],
                PrivatePkcs8KeyDer::from(identity.key_der.to_vec()).into(),
            )
            .expect("certificate"),
    };
    tls.alpn_protocols = vec![alpn.to_vec()];
    ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).expect("QUIC")))
}

#[derive(Debug)]
struct TrustsAnyone;

impl ServerCertVerifier for TrustsAnyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

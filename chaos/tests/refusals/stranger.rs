//! A QUIC client that trusts anyone and shows whatever certificate it is given, or none. It stands
//! for whoever is not of the cluster.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use flocker_quic::Identity;
use quinn::ClientConfig;
use quinn::crypto::rustls::QuicClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};

/// How long a stranger may be let be before the test calls it let in.
const TURNED_AWAY: Duration = Duration::from_secs(10);

/// Knocks at `at` from the address `from`, and tries to speak. Answers how it was turned away.
pub(crate) async fn knock(
    from: IpAddr,
    at: SocketAddr,
    alpn: &[u8],
    identity: Option<&Identity>,
) -> Result<String> {
    let endpoint = quinn::Endpoint::client((from, 0).into()).context("cannot open a socket")?;
    let connecting = endpoint
        .connect_with(config(alpn, identity)?, at, "stranger.node.flocker")
        .context("cannot dial")?;
    let speak = async {
        let connection = match connecting.await {
            Ok(connection) => connection,
            Err(error) => return Ok(error.to_string()),
        };
        // In TLS 1.3 a client may speak before its certificate has been judged.
        if let Ok((mut send, mut recv)) = connection.open_bi().await {
            let _written = send.write_all(&[1, 4, 0, 0, 0, 1, 2, 3, 4]).await;
            let _finished = send.finish();
            if let Ok(answer) = recv.read_to_end(1024).await {
                bail!("it was answered: {answer:?}");
            }
        }
        Ok(connection.closed().await.to_string())
    };
    let ended = tokio::time::timeout(TURNED_AWAY, speak).await;
    ended.context("it was not turned away")?
}

pub(crate) fn config(alpn: &[u8], identity: Option<&Identity>) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TrustsAnyone));
    let mut tls = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => builder.with_client_auth_cert(
            vec![identity.cert_der.clone().into(), identity.ca_der.clone().into()],
            PrivatePkcs8KeyDer::from(identity.key_der.to_vec()).into(),
        )?,
    };
    tls.alpn_protocols = vec![alpn.to_vec()];
    Ok(ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?)))
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

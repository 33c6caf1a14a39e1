//! Certificates of a throw-away cluster and captured logs, for tests. Never compiled into a
//! release: it is behind the feature `testing`.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flocker_base::{ClusterId, StoreId, WallTime};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use zeroize::Zeroizing;

use crate::config::EndpointConfig;
use crate::identity::{Identity, server_name};

/// A throw-away cluster's certificate authority.
pub struct TestCa {
    cluster: ClusterId,
    ca_der: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

/// Makes a new authority, with a key of its own.
#[must_use]
pub fn cluster() -> TestCa {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let ca_der = params.self_signed(&key).expect("a certificate").der().to_vec();
    TestCa { cluster: ClusterId::from_bytes([1; 16]), ca_der, issuer: Issuer::new(params, key) }
}

/// A store whose id ends in this number.
#[must_use]
pub fn store(number: u8) -> StoreId {
    let mut bytes = [0; 16];
    bytes[15] = number;
    StoreId::from_bytes(bytes)
}

/// A port of the system's choice on 127.0.0.1.
#[must_use]
pub fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

/// Settings of a control endpoint on loopback that admits joiners.
#[must_use]
pub fn control() -> EndpointConfig {
    EndpointConfig { admit_joiners: true, ..EndpointConfig::control(loopback()) }
}

impl TestCa {
    /// The identity of a store of this cluster, valid now.
    #[must_use]
    pub fn identity(&self, store: StoreId) -> Identity {
        self.issue(store, &[server_name(store)], 2020, 4000)
    }

    /// The identity of a store, valid from 2020 until then, to the second.
    #[must_use]
    pub fn identity_until(&self, store: StoreId, until: WallTime) -> Identity {
        let until = Duration::from_secs(until.as_millis() / 1000);
        self.issue_until(store, &[server_name(store)], 2020, until)
    }

    /// The identity of a store whose certificate ran out in 2001.
    #[must_use]
    pub fn expired_identity(&self, store: StoreId) -> Identity {
        self.issue(store, &[server_name(store)], 2000, 2001)
    }

    /// An identity of store 0 whose certificate carries any names.
    #[must_use]
    pub fn identity_for_names(&self, names: &[String]) -> Identity {
        self.issue(store(0), names, 2020, 4000)
    }

    /// The authority's certificate, DER.
    #[must_use]
    pub fn ca_der(&self) -> &[u8] {
        &self.ca_der
    }

    /// SHA-256 of the authority's certificate: what a join token pins.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        crate::tls::fingerprint(&self.ca_der)
    }

    fn issue(&self, store: StoreId, names: &[String], from: i32, until: u64) -> Identity {
        // The mean year's length will do.
        let until = Duration::from_secs((until - 1970) * 31_556_952);
        self.issue_until(store, names, from, until)
    }

    fn issue_until(
        &self,
        store: StoreId,
        names: &[String],
        from: i32,
        until: Duration,
    ) -> Identity {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(names).expect("good names");
        params.not_before = rcgen::date_time_ymd(from, 1, 1);
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + until;
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Identity {
            cluster: self.cluster,
            store,
            ca_der: self.ca_der.clone(),
            cert_der: certificate.der().to_vec(),
            intermediates: Vec::new(),
            key_der: Zeroizing::new(key.serialize_der()),
        }
    }
}

/// What this thread logs from now on, until dropped. With a runtime on this one thread, that is
/// everything.
pub struct Log {
    text: Arc<Mutex<Vec<u8>>>,
    _guard: tracing::subscriber::DefaultGuard,
}

/// Begins to capture what this thread logs, from `INFO` up.
#[must_use]
pub fn capture_log() -> Log {
    let text = Arc::new(Mutex::new(Vec::new()));
    let writer = Arc::clone(&text);
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_max_level(tracing::Level::INFO)
        .with_writer(move || Lines(Arc::clone(&writer)))
        .finish();
    Log { text, _guard: tracing::subscriber::set_default(subscriber) }
}

impl Log {
    /// The lines so far that contain all of these.
    #[must_use]
    pub fn lines_with(&self, parts: &[&str]) -> Vec<String> {
        let text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&text)
            .lines()
            .filter(|line| parts.iter().all(|part| line.contains(part)))
            .map(str::to_owned)
            .collect()
    }

    /// Everything so far.
    #[must_use]
    pub fn text(&self) -> String {
        self.lines_with(&[]).join("\n")
    }
}

struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

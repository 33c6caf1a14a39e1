//! One UDP socket that speaks QUIC with this cluster's nodes. It hands out a connection only once
//! the other side's certificate has been checked, and never says yes to anyone else.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use flocker_base::{Clock, StoreId, SystemClock};
use quinn::crypto::rustls::{HandshakeData, QuicClientConfig};
use quinn::{ClientConfig, Incoming, ServerConfig, VarInt};
use quinn_proto::HashedConnectionIdGenerator;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Handle;
use tokio::sync::Mutex;

use crate::config::{EndpointConfig, Purpose};
use crate::connection::{CloseCode, Connection, canonical, leaf};
use crate::error::{DialFailure, QuicError};
use crate::handshakes::Handshakes;
use crate::identity::{Identity, server_name, store_of_certificate};
use crate::join::JoinerConnection;
use crate::refusals::{Refusal, Refusals};
use crate::{probe, socket, tls};

/// What the accepting side sends first, so that the dialling side knows that it was accepted: in
/// TLS 1.3 a client's handshake ends before its certificate is checked.
const WELCOME: u8 = 1;

/// A QUIC endpoint of this node. Clones are the same endpoint.
#[derive(Clone)]
pub struct Endpoint {
    inner: Arc<Inner>,
}

struct Inner {
    quic: quinn::Endpoint,
    local_addr: SocketAddr,
    store: StoreId,
    config: EndpointConfig,
    /// Checks certificates against the wall.
    clock: Arc<dyn Clock>,
    /// What the next dial shows: changed when the certificate is.
    client: RwLock<ClientConfig>,
    /// The same for dials to whoever is there.
    seeker: RwLock<ClientConfig>,
    runtime: Handle,
    admission: Arc<Door>,
    handshakes: Mutex<Handshakes<Accepted>>,
}

/// Who came in.
#[derive(Debug)]
pub enum Accepted {
    /// A node of this cluster.
    Peer(Connection),
    /// A client without a certificate that asks to join.
    Joiner(JoinerConnection),
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint")
            .field("store", &self.inner.store)
            .field("local_addr", &self.inner.local_addr)
            .field("purpose", &self.inner.config.purpose)
            .finish_non_exhaustive()
    }
}

impl Endpoint {
    /// Listens. Must be called inside a tokio runtime, which then carries the endpoint's tasks.
    ///
    /// # Errors
    /// [`QuicError::Config`], [`QuicError::Identity`], [`QuicError::PortTaken`] or
    /// [`QuicError::Socket`].
    pub fn bind(config: &EndpointConfig, identity: &Identity) -> Result<Self, QuicError> {
        Self::bind_with_clock(config, identity, Arc::new(SystemClock))
    }

    /// [`Self::bind`], with certificates' dates judged by this clock's wall time.
    ///
    /// # Errors
    /// As [`Self::bind`].
    pub fn bind_with_clock(
        config: &EndpointConfig,
        identity: &Identity,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, QuicError> {
        config.validate()?;
        names_its_store(identity)?;
        let runtime = Handle::try_current().map_err(|_none| QuicError::NoRuntime)?;
        let failed = |action| {
            let at = config.bind;
            move |source| QuicError::Socket { action, at, source: Arc::new(source) }
        };
        let server = server_side(config, identity, &clock)?;
        let socket = socket::bind(config.bind, config.socket_buffer)?;
        let quic = quinn::Endpoint::new(
            protocol(config, identity)?,
            Some(server),
            socket,
            Arc::new(quinn::TokioRuntime),
        )
        .map_err(failed("run a QUIC endpoint on"))?;
        let local_addr = quic.local_addr().map_err(failed("read the address of"))?;
        let client = client_side(config, tls::client(identity, config.purpose, &clock)?)?;
        let seeker = client_side(config, tls::seeker(identity, config.purpose, &clock)?)?;
        let admission = Arc::new(Door {
            store: identity.store,
            config: config.clone(),
            refusals: Refusals::default(),
        });
        Ok(Self {
            inner: Arc::new(Inner {
                quic,
                local_addr,
                store: identity.store,
                config: config.clone(),
                clock,
                client: RwLock::new(client),
                seeker: RwLock::new(seeker),
                runtime,
                admission,
                handshakes: Mutex::new(Handshakes::new()),
            }),
        })
    }

    /// Where it listens, with the port that the system chose if 0 was asked for.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.inner.local_addr
    }

    /// The store whose identity it shows.
    #[must_use]
    pub fn store(&self) -> StoreId {
        self.inner.store
    }

    /// Shows this identity from now on: to whoever begins a handshake, and when dialling. The
    /// connections that there are go on. It must be of the same store; what is trusted may change
    /// with it.
    ///
    /// # Errors
    /// [`QuicError::Identity`]; the identity shown before is then still shown.
    pub fn show(&self, identity: &Identity) -> Result<(), QuicError> {
        let inner = &*self.inner;
        if identity.store != inner.store {
            return Err(QuicError::Identity(format!(
                "it is of store {} and this node is store {}",
                identity.store, inner.store
            )));
        }
        names_its_store(identity)?;
        let server = server_side(&inner.config, identity, &inner.clock)?;
        let (config, clock) = (&inner.config, &inner.clock);
        let client = client_side(config, tls::client(identity, config.purpose, clock)?)?;
        let seeker = client_side(config, tls::seeker(identity, config.purpose, clock)?)?;
        inner.quic.set_server_config(Some(server));
        *inner.client.write().unwrap_or_else(PoisonError::into_inner) = client;
        *inner.seeker.write().unwrap_or_else(PoisonError::into_inner) = seeker;
        Ok(())
    }

    pub(crate) fn config(&self) -> &EndpointConfig {
        &self.inner.config
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.inner.runtime
    }

    /// Connects to the node with this store id at this address. When it returns, the peer has
    /// accepted this node. A closed port on a live host is an error at once. Cancel safe: dropped,
    /// the attempt is given up.
    ///
    /// # Errors
    /// [`QuicError::Itself`], or [`QuicError::Dial`] with the reason.
    pub async fn connect(
        &self,
        to: StoreId,
        at: SocketAddr,
        deadline: Duration,
    ) -> Result<Connection, QuicError> {
        if to == self.inner.store {
            return Err(QuicError::Itself { to });
        }
        let failed = |reason| QuicError::Dial { to, at, reason };
        let client = self.inner.client.read().unwrap_or_else(PoisonError::into_inner).clone();
        let connecting = self
            .inner
            .quic
            .connect_with(client, at, &server_name(to))
            .map_err(|e| failed(DialFailure::Local(e.to_string())))?;
        let work = async {
            let quic = connecting.await?;
            await_welcome(&quic).await?;
            Ok(quic)
        };
        tokio::select! {
            done = tokio::time::timeout(deadline, work) => match done {
                Ok(Ok(quic)) => Ok(Connection::new(quic, to, true)),
                Ok(Err(e)) => Err(failed(DialFailure::from_handshake(&e, deadline))),
                Err(_elapsed) => Err(failed(DialFailure::Silent(deadline))),
            },
            () = probe::nothing_listens(self.inner.local_addr.ip(), at) => {
                Err(failed(DialFailure::NothingListens))
            }
        }
    }

    /// Connects to whichever node of this cluster is at this address: who it is comes from its
    /// certificate. For addresses that others named (seeds); where the node is known, use
    /// [`Self::connect`]. Cancel safe.
    ///
    /// # Errors
    /// [`QuicError::Seek`] with the reason, one of which is that this node itself is there.
    pub async fn find(&self, at: SocketAddr, deadline: Duration) -> Result<Connection, QuicError> {
        let failed = |reason| QuicError::Seek { at, reason };
        let seeker = self.inner.seeker.read().unwrap_or_else(PoisonError::into_inner).clone();
        // The name is for TLS's form only: any node of this cluster may answer.
        let connecting = self
            .inner
            .quic
            .connect_with(seeker, at, "any.node.flocker")
            .map_err(|e| failed(DialFailure::Local(e.to_string())))?;
        let work = async {
            let quic = connecting.await?;
            if leaf(&quic).and_then(|leaf| store_of_certificate(&leaf)) != Some(self.inner.store) {
                await_welcome(&quic).await?;
            }
            Ok(quic)
        };
        let quic = tokio::select! {
            done = tokio::time::timeout(deadline, work) => match done {
                Ok(Ok(quic)) => quic,
                Ok(Err(e)) => return Err(failed(DialFailure::from_handshake(&e, deadline))),
                Err(_elapsed) => return Err(failed(DialFailure::Silent(deadline))),
            },
            () = probe::nothing_listens(self.inner.local_addr.ip(), at) => {
                return Err(failed(DialFailure::NothingListens));
            }
        };
        match leaf(&quic).and_then(|leaf| store_of_certificate(&leaf)) {
            Some(peer) if peer == self.inner.store => {
                quic.close(CloseCode::Done.into(), b"this is the node itself");
                Err(failed(DialFailure::Itself))
            }
            Some(peer) => Ok(Connection::new(quic, peer, true)),
            None => Err(failed(DialFailure::Broken("its certificate names no node".to_owned()))),
        }
    }

    /// The next peer or joiner; `None` once the endpoint is closed. Handshakes run beside each
    /// other and bounded; who fails one is logged and never seen here. Must be called again and
    /// again, or no one gets in. Cancel safe.
    pub async fn accept(&self) -> Option<Accepted> {
        let mut handshakes = self.inner.handshakes.lock().await;
        loop {
            tokio::select! {
                biased;
                Some(accepted) = handshakes.next(), if !handshakes.is_empty() => {
                    return Some(accepted);
                }
                incoming = self.inner.quic.accept() => self.begin(&mut handshakes, incoming?),
            }
        }
    }

    fn begin(&self, handshakes: &mut Handshakes<Accepted>, incoming: Incoming) {
        let config = &self.inner.config;
        if handshakes.len() >= config.prove_address_above
            && !incoming.remote_address_validated()
            && incoming.may_retry()
        {
            // Stateless: it costs this node nothing until the client answers from there.
            if let Err(e) = incoming.retry() {
                e.into_incoming().refuse();
            }
            return;
        }
        let remote = canonical(incoming.remote_address());
        let door = Arc::clone(&self.inner.admission);
        let handshake = async move { door.admit(incoming).await };
        let gave_way =
            handshakes.start(&self.inner.runtime, remote.ip(), handshake, config.max_handshakes);
        if let Some(ip) = gave_way {
            self.inner.admission.refuse(
                SocketAddr::new(ip, 0),
                Refusal::Unfinished,
                "too many unfinished handshakes from there, its oldest was dropped",
            );
        }
    }

    /// Stops accepting and ends every connection. Peers are told.
    pub fn close(&self) {
        self.inner.quic.close(CloseCode::Shutdown.into(), b"the node shuts down");
    }

    /// Waits until peers have been told of every closed connection, or `most` has passed.
    pub async fn wait_idle(&self, most: Duration) {
        let _told_or_not = tokio::time::timeout(most, self.inner.quic.wait_idle()).await;
    }
}

/// Checks whoever knocks.
struct Door {
    store: StoreId,
    config: EndpointConfig,
    refusals: Refusals,
}

impl Door {
    async fn admit(&self, incoming: Incoming) -> Option<Accepted> {
        let remote = canonical(incoming.remote_address());
        let handshake = async { incoming.accept()?.await };
        let quic = match tokio::time::timeout(self.config.handshake_timeout, handshake).await {
            Ok(Ok(quic)) => quic,
            Ok(Err(e)) => {
                let kind = match e {
                    quinn::ConnectionError::TransportError(_) => Refusal::Handshake,
                    _ => Refusal::Unfinished,
                };
                self.refuse(remote, kind, &format!("the handshake failed: {e}"));
                return None;
            }
            Err(_elapsed) => {
                self.refuse(remote, Refusal::Unfinished, "the handshake was not finished in time");
                return None;
            }
        };
        let alpn = quic
            .handshake_data()
            .and_then(|data| data.downcast::<HandshakeData>().ok())
            .and_then(|data| data.protocol);
        if self.config.admit_joiners && alpn.as_deref() == Some(tls::JOIN_ALPN) {
            return Some(Accepted::Joiner(JoinerConnection::accepted(quic)));
        }
        match self.identify(&quic) {
            Ok(peer) => self.welcome(quic, peer, remote).await,
            Err((kind, reason)) => {
                quic.close(CloseCode::NotAMember.into(), reason.as_bytes());
                self.refuse(remote, kind, reason);
                None
            }
        }
    }

    /// Whose certificate it is. TLS has checked its signature and dates already.
    fn identify(&self, quic: &quinn::Connection) -> Result<StoreId, (Refusal, &'static str)> {
        let Some(leaf) = leaf(quic) else {
            return Err((Refusal::NoCertificate, "it has no certificate of this cluster"));
        };
        match store_of_certificate(&leaf) {
            None => Err((Refusal::NoIdentity, "its certificate names no node")),
            Some(store) if store == self.store => Err((
                Refusal::Myself,
                "it shows this node's own identity: is its disk a copy of this one's?",
            )),
            Some(store) => Ok(store),
        }
    }

    /// Opens the bounds that hold for strangers, and says so to the peer.
    async fn welcome(
        &self,
        quic: quinn::Connection,
        peer: StoreId,
        remote: SocketAddr,
    ) -> Option<Accepted> {
        quic.set_receive_window(VarInt::from_u32(self.config.receive_window));
        quic.set_max_concurrent_bi_streams(VarInt::from_u32(self.config.max_streams));
        quic.set_max_concurrent_uni_streams(VarInt::from_u32(self.config.max_streams));
        let welcome = async {
            let mut stream = quic.open_uni().await.ok()?;
            stream.write_all(&[WELCOME]).await.ok()?;
            stream.shutdown().await.ok()
        };
        match tokio::time::timeout(self.config.handshake_timeout, welcome).await {
            Ok(Some(())) => Some(Accepted::Peer(Connection::new(quic, peer, false))),
            Ok(None) | Err(_) => {
                self.refuse(remote, Refusal::Unfinished, "it left before it was let in");
                None
            }
        }
    }

    fn refuse(&self, remote: SocketAddr, kind: Refusal, reason: &str) {
        self.refusals.log(SystemClock.boot(), remote, kind, reason);
    }
}

fn names_its_store(identity: &Identity) -> Result<(), QuicError> {
    let named = store_of_certificate(&identity.cert_der);
    if named == Some(identity.store) {
        return Ok(());
    }
    Err(QuicError::Identity(format!(
        "its certificate names {} and not store {}",
        named.map_or_else(|| "no store".to_owned(), |s| format!("store {s}")),
        identity.store
    )))
}

/// How strangers are met.
fn server_side(
    config: &EndpointConfig,
    identity: &Identity,
    clock: &Arc<dyn Clock>,
) -> Result<ServerConfig, QuicError> {
    let crypto = tls::server(identity, config.purpose, config.admit_joiners, clock)?;
    let mut server = ServerConfig::with_crypto(crypto);
    server
        .transport_config(config.transport(true)?)
        .max_incoming(config.max_handshakes.saturating_mul(4))
        .incoming_buffer_size(32 << 10)
        .incoming_buffer_size_total(16 << 20);
    Ok(server)
}

/// How peers are dialled.
fn client_side(
    config: &EndpointConfig,
    crypto: Arc<QuicClientConfig>,
) -> Result<ClientConfig, QuicError> {
    let mut client = ClientConfig::new(crypto);
    client.transport_config(config.transport(false)?);
    Ok(client)
}

/// Waits for the accepting side's word. Anything but the connection's end is a peer of another
/// version, and its connection is closed.
async fn await_welcome(quic: &quinn::Connection) -> Result<(), quinn::ConnectionError> {
    let mut stream = quic.accept_uni().await?;
    if let Ok(WELCOME) = stream.read_u8().await {
        return Ok(());
    }
    quic.close(CloseCode::Protocol.into(), b"the welcome is of an unknown version");
    Err(quic.closed().await)
}

/// Keys that outlive the process, drawn from the node's private key: after a restart at the same
/// address, peers that still send to the old connection are told at once that it is gone
/// (RFC 9000, section 10.3).
fn protocol(
    config: &EndpointConfig,
    identity: &Identity,
) -> Result<quinn::EndpointConfig, QuicError> {
    let draw = |what: &str| {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &identity.key_der);
        let purpose = match config.purpose {
            Purpose::Control => "control",
            Purpose::Data => "data",
        };
        ring::hmac::sign(&key, format!("flocker quic v1 {what} {purpose}").as_bytes())
    };
    let reset = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, draw("reset").as_ref());
    let mut ids = [0; 8];
    ids.copy_from_slice(&draw("connection ids").as_ref()[..8]);
    let ids = u64::from_le_bytes(ids);
    let mut protocol = quinn::EndpointConfig::new(Arc::new(reset));
    protocol
        .cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids)))
        .max_udp_payload_size(config.max_mtu.max(1472))
        .map_err(|e| QuicError::Config(format!("max_mtu: {e}")))?;
    Ok(protocol)
}

#[cfg(test)]
mod tests;

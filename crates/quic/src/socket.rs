//! The UDP socket below an endpoint: its address and its buffers. It knows nothing of QUIC.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

use rustix::net::sockopt;
use socket2::{Domain, Protocol, Socket, Type};

use crate::error::QuicError;

/// Below this, bulk transfers were measured to lose datagrams even on loopback.
const ENOUGH: usize = 2 << 20;

/// Binds a socket with buffers of `buffer` bytes, or as near as the system allows.
pub(crate) fn bind(at: SocketAddr, buffer: usize) -> Result<UdpSocket, QuicError> {
    let failed = |action| {
        move |source: io::Error| QuicError::Socket { action, at, source: Arc::new(source) }
    };
    let socket = Socket::new(Domain::for_address(at), Type::DGRAM, Some(Protocol::UDP))
        .map_err(failed("open a UDP socket for"))?;
    if at.is_ipv6() {
        // One socket for both families where the address is the unspecified one.
        socket.set_only_v6(!at.ip().is_unspecified()).map_err(failed("set the family of"))?;
    }
    enlarge(&socket, buffer, at).map_err(failed("set the buffers of"))?;
    socket.set_nonblocking(true).map_err(failed("make non-blocking"))?;
    socket.bind(&at.into()).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => QuicError::PortTaken { at },
        _ => failed("listen on")(source),
    })?;
    Ok(socket.into())
}

/// Past the system's limit where this process may (CAP_NET_ADMIN), else up to it.
fn enlarge(socket: &Socket, buffer: usize, at: SocketAddr) -> io::Result<()> {
    if sockopt::set_socket_recv_buffer_size_force(socket, buffer).is_err() {
        socket.set_recv_buffer_size(buffer)?;
    }
    if sockopt::set_socket_send_buffer_size_force(socket, buffer).is_err() {
        socket.set_send_buffer_size(buffer)?;
    }
    // Linux reports twice what may be used.
    let got = socket.recv_buffer_size()? / 2;
    if got < ENOUGH.min(buffer) {
        tracing::info!(
            %at, got, wanted = buffer,
            "the system limits UDP buffers, bulk transfers may be slower: \
             raise net.core.rmem_max and net.core.wmem_max"
        );
    }
    Ok(())
}

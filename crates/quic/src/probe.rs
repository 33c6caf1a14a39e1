//! Asks a host whether anything listens on a UDP port. A connected socket gets the kernel's
//! "port unreachable" at once; QUIC's own socket, which is not connected, never does. A yes means
//! little (packets may be lost or filtered); only a no is evidence.

use std::io;
use std::net::{IpAddr, SocketAddr};

use tokio::net::UdpSocket;

/// Too short to be QUIC: a listener drops it unanswered.
const PROBE: [u8; 1] = [0];

/// Returns when the host says that nothing listens there; never returns otherwise. Cancel safe.
pub(crate) async fn nothing_listens(from: IpAddr, at: SocketAddr) {
    match refusal(from, at).await {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {}
        // Any answer or other error says nothing about the port.
        _ => std::future::pending().await,
    }
}

async fn refusal(from: IpAddr, at: SocketAddr) -> io::Result<()> {
    let from = match (from, at.ip()) {
        (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)) => from,
        (_, IpAddr::V4(_)) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        (_, IpAddr::V6(_)) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((from, 0)).await?;
    socket.connect(at).await?;
    socket.send(&PROBE).await?;
    let mut answer = [0; 16];
    socket.recv(&mut answer).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_closed_port_is_told_from_an_open_one() {
        let from = IpAddr::from(Ipv4Addr::LOCALHOST);
        let open = UdpSocket::bind((from, 0)).await.expect("bound");
        let at = open.local_addr().expect("address");
        let wait = tokio::time::timeout(Duration::from_millis(100), nothing_listens(from, at));
        assert!(wait.await.is_err(), "it is open");
        drop(open);
        let wait = tokio::time::timeout(Duration::from_secs(5), nothing_listens(from, at));
        wait.await.expect("it is closed");
    }
}

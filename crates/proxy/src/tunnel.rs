//! A connection that has switched protocols: bytes go both ways until one side ends, nothing comes
//! for too long, or it is cut. What the bytes mean is nobody's business here.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use crate::session::Tunnel;

const BUFFER_BYTES: usize = 16 * 1024;

/// Carries bytes between the client and the tunnel's far side. `early` came from the client behind
/// its request.
pub(crate) async fn run<S>(
    client: S,
    early: Bytes,
    tunnel: Tunnel,
    idle: Duration,
    shutdown: &CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Tunnel { mut io, early: from_far, slot } = tunnel;
    let mut client = client;
    let carry = async {
        io.write_all(&early).await?;
        client.write_all(&from_far).await?;
        client.flush().await?;
        both_ways(&mut client, &mut io, idle).await
    };
    let ended = tokio::select! {
        ended = carry => ended,
        () = slot.cut.cancelled() => {
            tracing::info!("a tunnel was cut: its service is drained");
            return;
        }
        () = shutdown.cancelled() => return,
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a tunnel ended");
    }
}

/// Carries bytes until both directions have ended, or nothing came for `idle`.
async fn both_ways<A, B>(a: &mut A, b: &mut B, idle: Duration) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut a_read, mut a_write) = tokio::io::split(a);
    let (mut b_read, mut b_write) = tokio::io::split(b);
    let active = AtomicBool::new(false);
    let there = one_way(&mut a_read, &mut b_write, &active);
    let back = one_way(&mut b_read, &mut a_write, &active);
    let quiet = async {
        while active.swap(false, Relaxed) {
            tokio::time::sleep(idle).await;
        }
        io::Error::new(io::ErrorKind::TimedOut, format!("nothing came for {idle:?}"))
    };
    active.store(true, Relaxed);
    tokio::select! {
        ended = async { tokio::try_join!(there, back) } => ended.map(|_| ()),
        error = quiet => Err(error),
    }
}

async fn one_way<R, W>(from: &mut R, to: &mut W, active: &AtomicBool) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        active.store(true, Relaxed);
        to.write_all(&buffer[..read]).await?;
        to.flush().await?;
    }
}

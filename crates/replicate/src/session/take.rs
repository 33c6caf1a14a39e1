//! The taking side: tells what it has, takes in what is offered, and acknowledges it when it is
//! durable. The live folder follows after the acknowledgement.

use std::sync::Arc;

use flocker_base::{Epoch, StoreId, VolumeId};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use super::pipe::{self, Piece};
use super::wire::{Frame, HAVE_MAX, Link, Message, Purpose, VERSION, unexpected};
use super::{SessionConfig, SessionError, blocking};
use crate::backend::{Backend, BackendError};
use crate::fence::Fence;
use crate::model::{Ancestor, SnapshotInfo, StreamHeader};

/// Most snapshots taken in one session.
const ROUNDS: usize = 64;

/// Whether what comes may still be taken: asked before anything is touched and before a snapshot
/// counts.
pub(crate) enum Admit<'a> {
    /// A push: the fence decides by its epoch.
    Push(&'a dyn Fence, StoreId, Epoch),
    /// This side asked for it.
    Pull,
}

impl Admit<'_> {
    pub(crate) fn check(&self, volume: VolumeId) -> Result<(), SessionError> {
        let Self::Push(fence, from, epoch) = self else { return Ok(()) };
        fence.admit(volume, *from, *epoch).map_err(|refusal| SessionError::Refused {
            reason: refusal.reason(),
            text: refusal.to_string(),
        })
    }

    /// A pushed snapshot may not carry an epoch beyond its session's.
    fn covers(&self, header: &StreamHeader) -> Result<(), SessionError> {
        match self {
            Self::Push(_, _, epoch) if header.snapshot.head.epoch > *epoch => {
                Err(SessionError::Protocol(format!(
                    "a snapshot of epoch {} came in a session of epoch {epoch}",
                    header.snapshot.head.epoch
                )))
            }
            _ => Ok(()),
        }
    }
}

/// Told of each snapshot that has become durable, before the giver is.
pub(crate) type Taken<'a> = &'a (dyn Fn(&SnapshotInfo) + Sync);

/// Opens a pull: fetches the newest snapshot that the peer holds.
pub(crate) async fn pull<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    config: SessionConfig,
    backend: &Arc<dyn Backend>,
    volume: VolumeId,
    taken: Taken<'_>,
    cancel: &CancellationToken,
) -> Result<Option<SnapshotInfo>, SessionError> {
    let mut link = Link::new(stream, config);
    let hello = Message::Hello {
        version: VERSION,
        purpose: Purpose::Pull,
        volume,
        epoch: Epoch::ZERO,
        backend: backend.name().to_owned(),
    };
    link.send(&hello).await?;
    take(&mut link, backend, volume, &Admit::Pull, taken, cancel).await
}

/// Takes until the giver is done. Answers the last snapshot taken.
pub(crate) async fn take<S: AsyncRead + AsyncWrite + Unpin>(
    link: &mut Link<S>,
    backend: &Arc<dyn Backend>,
    volume: VolumeId,
    admit: &Admit<'_>,
    taken: Taken<'_>,
    cancel: &CancellationToken,
) -> Result<Option<SnapshotInfo>, SessionError> {
    let result = rounds(link, backend, volume, admit, taken, cancel).await;
    match &result {
        Ok(_) => link.close().await,
        // The giver said why, or is gone.
        Err(SessionError::Broken { .. }) => {}
        Err(error) => link.refuse(error).await,
    }
    result
}

async fn rounds<S: AsyncRead + AsyncWrite + Unpin>(
    link: &mut Link<S>,
    backend: &Arc<dyn Backend>,
    volume: VolumeId,
    admit: &Admit<'_>,
    taken: Taken<'_>,
    cancel: &CancellationToken,
) -> Result<Option<SnapshotInfo>, SessionError> {
    admit.check(volume)?;
    let (held, partial) = blocking(backend, move |backend| have(backend, volume)).await?;
    let theirs: Option<flocker_base::Head> = held.iter().map(|known| known.head).max();
    tracing::debug!(%volume, ?theirs, "telling the peer what is held here");
    link.send(&Message::Have { held, partial }).await?;
    let mut last = None;
    for _round in 0..ROUNDS {
        let doing = "waiting for an offer";
        // Planning a stream may take the giver as long as committing takes the taker.
        let next = link.message(link.config().commit, doing);
        let message = tokio::select! {
            message = next => message?,
            () = cancel.cancelled() => return Err(SessionError::Replaced(volume)),
        };
        let header = match message {
            Message::Offer(header) if header.snapshot.volume == volume => *header,
            Message::Done => return Ok(last),
            other => return Err(unexpected(&other, doing)),
        };
        admit.covers(&header)?;
        let info = take_one(link, backend, header, admit, cancel).await?;
        taken(&info);
        link.send(&Message::Ack { guid: info.guid, head: info.head }).await?;
        if let Err(error) = blocking(backend, move |backend| backend.settle(volume)).await {
            tracing::warn!(%volume, %error, "the live folder cannot follow; the snapshot is safe");
        }
        last = Some(info);
    }
    Err(SessionError::Protocol("too many snapshots in one session".to_owned()))
}

type Have = (Vec<Ancestor>, Option<(Option<crate::model::Guid>, crate::model::Guid)>);

fn have(backend: &dyn Backend, volume: VolumeId) -> crate::backend::Result<Have> {
    let held: Vec<Ancestor> = match backend.list(volume) {
        Ok(line) => line.iter().rev().take(HAVE_MAX).map(SnapshotInfo::ancestor).collect(),
        Err(BackendError::NoVolume(_)) => return Ok((Vec::new(), None)),
        Err(error) => return Err(error),
    };
    let partial = backend.partial(volume)?.map(|header| (header.base, header.snapshot.guid));
    Ok((held, partial))
}

async fn take_one<S: AsyncRead + AsyncWrite + Unpin>(
    link: &mut Link<S>,
    backend: &Arc<dyn Backend>,
    header: StreamHeader,
    admit: &Admit<'_>,
    cancel: &CancellationToken,
) -> Result<SnapshotInfo, SessionError> {
    let header = Arc::new(header);
    let asked = header.clone();
    let offset = blocking(backend, move |backend| backend.received(&asked)).await?;
    link.send(&Message::Want { offset }).await?;
    let (sender, mut reader) = pipe::to_backend();
    let task = {
        let (backend, header) = (backend.clone(), header.clone());
        tokio::task::spawn_blocking(move || backend.receive(&header, offset, &mut reader))
    };
    let volume = header.snapshot.volume;
    let fed = tokio::select! {
        fed = feed(link, &sender, header.length - offset.min(header.length)) => fed,
        () = cancel.cancelled() => Err(SessionError::Replaced(volume)),
        // The backend gave up: its own word is the better one.
        () = sender.closed() => Ok(false),
    };
    let fed = match fed {
        // The epoch may have been overtaken while the content came.
        Ok(true) => match admit.check(volume) {
            Ok(()) => {
                let _told = sender.send(Piece::End).await;
                Ok(())
            }
            Err(error) => Err(error),
        },
        Ok(false) => Ok(()),
        Err(error) => Err(error),
    };
    drop(sender);
    let received = task
        .await
        .map_err(|_ended| SessionError::Protocol("the backend's thread ended early".to_owned()))?;
    fed?;
    Ok(received?)
}

/// Leads content to the backend until its end mark. `false` if the backend gave up.
async fn feed<S: AsyncRead + AsyncWrite + Unpin>(
    link: &mut Link<S>,
    sender: &tokio::sync::mpsc::Sender<Piece>,
    mut left: u64,
) -> Result<bool, SessionError> {
    let mut hasher = blake3::Hasher::new();
    let doing = "taking content in";
    loop {
        match link.next(link.config().idle, doing).await? {
            Frame::Data(data) => {
                left = left.checked_sub(data.len() as u64).ok_or_else(|| {
                    SessionError::Protocol("more content came than was offered".to_owned())
                })?;
                hasher.update(&data);
                if sender.send(Piece::Data(data)).await.is_err() {
                    return Ok(false);
                }
            }
            Frame::Message(Message::End { checksum }) => {
                if left > 0 || hasher.finalize().as_bytes() != &checksum {
                    return Err(SessionError::Protocol(
                        "the content does not match its checksum".to_owned(),
                    ));
                }
                return Ok(true);
            }
            Frame::Message(Message::Refused { reason, text }) => {
                return Err(SessionError::Refused { reason, text });
            }
            Frame::Message(other) => return Err(unexpected(&other, doing)),
        }
    }
}

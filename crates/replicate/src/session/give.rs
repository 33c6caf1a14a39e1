//! The giving side: offers the newest snapshot on top of the newest common base, sends what the
//! taker lacks, and counts only what the taker acknowledges as durable.

use std::sync::Arc;

use flocker_base::{Epoch, VolumeId};
use tokio::io::{AsyncRead, AsyncWrite};

use super::pipe;
use super::wire::{Link, Message, Purpose, VERSION, unexpected};
use super::{SessionConfig, SessionError, blocking};
use crate::backend::Backend;
use crate::fence::Fence;
use crate::model::{Ancestor, Guid, SnapshotInfo, StreamHeader};

/// Most snapshots sent in one session: a resumed one, and the newest, and some that came since.
const ROUNDS: usize = 8;

/// Under which right a side gives.
pub(crate) enum Right<'a> {
    /// As the master at this epoch; asked again before every end mark.
    Master(&'a dyn Fence, Epoch),
    /// As anyone who holds a copy and was asked for it.
    Holder,
}

impl Right<'_> {
    fn check(&self, volume: VolumeId) -> Result<(), SessionError> {
        match self {
            Self::Master(fence, epoch) if fence.may_write(volume) != Some(*epoch) => {
                Err(SessionError::Fenced { volume, epoch: *epoch })
            }
            _ => Ok(()),
        }
    }
}

/// Opens a push: brings the peer up to the newest snapshot, and answers which that is.
pub(crate) async fn push<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    config: SessionConfig,
    backend: &Arc<dyn Backend>,
    fence: &dyn Fence,
    volume: VolumeId,
) -> Result<SnapshotInfo, SessionError> {
    let Some(epoch) = fence.may_write(volume) else {
        return Err(SessionError::Fenced { volume, epoch: Epoch::ZERO });
    };
    let mut link = Link::new(stream, config);
    let backend_name = backend.name().to_owned();
    let hello = Message::Hello {
        version: VERSION,
        purpose: Purpose::Push,
        volume,
        epoch,
        backend: backend_name,
    };
    link.send(&hello).await?;
    let result = give(&mut link, backend, volume, &Right::Master(fence, epoch)).await;
    if let Err(error) = &result
        && !matches!(error, SessionError::Refused { .. })
    {
        link.refuse(error).await;
    }
    result
}

/// Gives until the taker holds the newest snapshot.
pub(crate) async fn give<S: AsyncRead + AsyncWrite + Unpin>(
    link: &mut Link<S>,
    backend: &Arc<dyn Backend>,
    volume: VolumeId,
    right: &Right<'_>,
) -> Result<SnapshotInfo, SessionError> {
    let doing = "waiting for what the peer has";
    let (mut held, mut partial) = match link.message(link.config().idle, doing).await? {
        Message::Have { held, partial } => (held, partial),
        other => return Err(unexpected(&other, doing)),
    };
    for _round in 0..ROUNDS {
        right.check(volume)?;
        let line = blocking(backend, move |backend| backend.list(volume)).await?;
        let newest = line.last().cloned().ok_or(SessionError::Nothing(volume))?;
        let theirs = held.iter().map(|known| known.head).max().unwrap_or_default();
        // One who only asked is told that there is nothing newer here; a master must know.
        let nothing_newer = matches!(right, Right::Holder) && theirs >= newest.head;
        if nothing_newer || held.iter().any(|known| known.guid == newest.guid) {
            link.send(&Message::Done).await?;
            link.close().await;
            return Ok(newest);
        }
        if theirs >= newest.head {
            return Err(SessionError::Ahead { volume, theirs, ours: newest.head });
        }
        let (base, to) = choose(&line, &held, partial.take());
        let header = blocking(backend, move |backend| backend.plan(volume, base, to)).await?;
        send_one(link, backend, &header, right).await?;
        held.push(header.snapshot.ancestor());
    }
    Err(SessionError::Protocol("the volume changes faster than it can be sent".to_owned()))
}

/// The stream to send: the one that was cut, if it can be gone on with, else from the newest
/// common snapshot to the newest.
fn choose(
    line: &[SnapshotInfo],
    held: &[Ancestor],
    partial: Option<(Option<Guid>, Guid)>,
) -> (Option<Guid>, Guid) {
    let find = |guid: Guid| line.iter().find(|info| info.guid == guid);
    let holds = |guid: Guid| held.iter().any(|known| known.guid == guid);
    if let Some((base, to)) = partial {
        let theirs = held.iter().map(|known| known.head).max();
        let newer = find(to).is_some_and(|to| theirs.is_none_or(|theirs| theirs < to.head));
        if newer && base.is_none_or(|base| find(base).is_some() && holds(base)) {
            return (base, to);
        }
    }
    let base = line.iter().rev().find(|info| holds(info.guid)).map(|info| info.guid);
    (base, line.last().map_or([0; 16], |info| info.guid))
}

async fn send_one<S: AsyncRead + AsyncWrite + Unpin>(
    link: &mut Link<S>,
    backend: &Arc<dyn Backend>,
    header: &StreamHeader,
    right: &Right<'_>,
) -> Result<(), SessionError> {
    let volume = header.snapshot.volume;
    link.send(&Message::Offer(Box::new(header.clone()))).await?;
    let doing = "waiting for where to begin";
    let offset = match link.message(link.config().commit, doing).await? {
        Message::Want { offset } if offset <= header.length => offset,
        other => return Err(unexpected(&other, doing)),
    };
    let (mut writer, mut pieces) = pipe::from_backend();
    let task = {
        let (backend, header) = (backend.clone(), header.clone());
        tokio::task::spawn_blocking(move || backend.send(&header, offset, &mut writer))
    };
    let mut hasher = blake3::Hasher::new();
    let mut broken = None;
    while let Some(piece) = pieces.recv().await {
        hasher.update(&piece);
        if let Err(error) = link.data(&piece).await {
            broken = Some(error);
            break;
        }
    }
    drop(pieces);
    let sent = task
        .await
        .map_err(|_ended| SessionError::Protocol("the backend's thread ended early".to_owned()))?;
    if let Some(error) = broken {
        return Err(link.reason_for(error).await);
    }
    sent?;
    right.check(volume)?;
    if let Err(error) = link.send(&Message::End { checksum: *hasher.finalize().as_bytes() }).await {
        return Err(link.reason_for(error).await);
    }
    let doing = "waiting for the acknowledgement";
    match link.message(link.config().commit, doing).await? {
        Message::Ack { guid, .. } if guid == header.snapshot.guid => Ok(()),
        other => Err(unexpected(&other, doing)),
    }
}

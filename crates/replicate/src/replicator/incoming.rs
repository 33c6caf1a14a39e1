//! Streams that peers open: a push is admitted by its epoch and takes the place of an older one
//! for the same volume; a pull is given what is held.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flocker_base::{Epoch, StoreId, VolumeId};
use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;

use super::Inner;
use crate::model::{Retention, SnapshotInfo};
use crate::session::wire::{Link, Message, Purpose, VERSION, unexpected};
use crate::session::{self, Admit, Reason, SessionError, blocking};
use crate::transport::Stream;

/// One stream a volume comes in at a time; the newest has the right of way.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    slots: Mutex<BTreeMap<VolumeId, Slot>>,
}

#[derive(Debug, Default)]
struct Slot {
    turn: Arc<tokio::sync::Mutex<()>>,
    /// The epoch of the stream that is coming in (`None`: one fetched), and how to end it.
    current: Option<(Option<Epoch>, CancellationToken)>,
}

/// The right to take a stream in.
pub(super) struct Entered {
    _turn: OwnedMutexGuard<()>,
    cancel: CancellationToken,
}

impl Entered {
    /// Tells when another stream takes this one's place.
    pub(super) const fn cancelled(&self) -> &CancellationToken {
        &self.cancel
    }
}

impl Incoming {
    fn slots(&self) -> MutexGuard<'_, BTreeMap<VolumeId, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the volume's turn; ends the stream that has it, unless that one is of a higher
    /// epoch or this one is a mere fetch.
    pub(super) async fn enter(&self, volume: VolumeId, epoch: Option<Epoch>) -> Entered {
        let cancel = CancellationToken::new();
        let turn = {
            let mut slots = self.slots();
            // Slots that nobody uses are forgotten, so that there are never many.
            if slots.len() > 1024 {
                slots.retain(|_, slot| Arc::strong_count(&slot.turn) > 1);
            }
            let slot = slots.entry(volume).or_default();
            if let Some((current, ending)) = slot.current.as_ref().filter(|_| epoch.is_some())
                && *current <= epoch
            {
                ending.cancel();
            }
            slot.turn.clone()
        };
        let turn = turn.lock_owned().await;
        let mut slots = self.slots();
        slots.entry(volume).or_default().current = Some((epoch, cancel.clone()));
        Entered { _turn: turn, cancel }
    }
}

pub(super) async fn serve(inner: &Inner, from: StoreId, stream: Box<dyn Stream>) {
    let mut link = Link::new(stream, inner.config.session.clone());
    let Ok(_permit) = inner.served.try_acquire() else {
        tracing::warn!(%from, "a stream is refused: too many are being served");
        let busy = "this node serves as many streams as it may: try again later";
        link.refuse(&SessionError::Refused { reason: Reason::Busy, text: busy.to_owned() }).await;
        return;
    };
    let serving = serve_link(inner, from, &mut link);
    let result = tokio::time::timeout(inner.config.limits.session, serving).await;
    match result {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%from, %error, "a stream was not served"),
        Err(_elapsed) => tracing::warn!(%from, "a stream took longer than any may"),
    }
}

async fn serve_link(
    inner: &Inner,
    from: StoreId,
    link: &mut Link<Box<dyn Stream>>,
) -> Result<(), SessionError> {
    let doing = "waiting for a hello";
    let hello = link.message(link.config().idle, doing).await?;
    let Message::Hello { version, purpose, volume, epoch, backend } = hello else {
        let error = unexpected(&hello, doing);
        link.refuse(&error).await;
        return Err(error);
    };
    let ours = inner.backend.name();
    if version != VERSION || backend != ours {
        let text = format!(
            "this node speaks version {VERSION} and stores volumes in {ours}, not version \
             {version} and {}",
            backend.chars().take(32).collect::<String>()
        );
        let error = SessionError::Refused { reason: Reason::Incompatible, text };
        link.refuse(&error).await;
        return Err(error);
    }
    match purpose {
        Purpose::Push => serve_push(inner, from, link, volume, epoch).await,
        Purpose::Pull => {
            let given = session::give(link, &inner.backend, volume, &session::Right::Holder).await;
            if let Err(error) = &given {
                link.refuse(error).await;
            }
            given.map(|_info| ())
        }
    }
}

async fn serve_push(
    inner: &Inner,
    from: StoreId,
    link: &mut Link<Box<dyn Stream>>,
    volume: VolumeId,
    epoch: Epoch,
) -> Result<(), SessionError> {
    let admit = Admit::Push(&*inner.fence, from, epoch);
    if let Err(error) = admit.check(volume) {
        link.refuse(&error).await;
        return Err(error);
    }
    let slot = inner.incoming.enter(volume, Some(epoch)).await;
    let note = |info: &SnapshotInfo| inner.note(volume, Some(info));
    let taken = session::take(link, &inner.backend, volume, &admit, &note, slot.cancelled()).await;
    if let Err(error) = inner.refresh(volume).await {
        tracing::warn!(%volume, %error, "a volume's head cannot be read");
    }
    drop(slot);
    if taken?.is_some() {
        tidy(inner, volume).await;
    }
    Ok(())
}

/// Prunes a replica now and then: its newest snapshot is the base that any master needs.
async fn tidy(inner: &Inner, volume: VolumeId) {
    let newest = inner.config.schedule.keep_newest;
    let many = newest + inner.config.schedule.prune_every as usize;
    let held = blocking(&inner.backend, move |backend| backend.list(volume)).await;
    if held.is_ok_and(|line| line.len() > many) {
        inner.prune(volume, Retention { newest, pinned: BTreeMap::new() }).await;
    }
}

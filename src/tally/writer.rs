//! The one writer of the journal. Posts that wait together share a write and an fsync.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::journal::{AppendError, Journal, JournalError, Totals};

/// Posts that wait for the disk, at most; further ones wait for a place.
const QUEUED: usize = 1024;

/// A line, and where its number goes once it is on the disk.
struct Post {
    line: Bytes,
    reply: oneshot::Sender<Result<u64, String>>,
}

/// What the routes use.
#[derive(Clone, Debug)]
pub(super) struct Handle {
    posts: mpsc::Sender<Post>,
    totals: watch::Receiver<Totals>,
    pub(super) path: Arc<PathBuf>,
}

impl Handle {
    /// Appends the line; its number once it is on the disk. Dropped, it may or may not be there.
    pub(super) async fn append(&self, line: Bytes) -> Result<u64, String> {
        let (reply, number) = oneshot::channel();
        let ended = || "the service is stopping".to_owned();
        self.posts.send(Post { line, reply }).await.map_err(|_closed| ended())?;
        number.await.unwrap_or_else(|_| Err(ended()))
    }

    pub(super) fn totals(&self) -> Totals {
        *self.totals.borrow()
    }
}

/// Ends when the last handle is dropped, or with the error that makes the disk's state unknown.
pub(super) fn start(journal: Journal) -> (JoinHandle<Result<(), JournalError>>, Handle) {
    let (posts, queue) = mpsc::channel(QUEUED);
    let (shown, totals) = watch::channel(journal.totals);
    let path = Arc::new(journal.path.clone());
    let writer = tokio::task::spawn_blocking(move || write(journal, queue, &shown));
    (writer, Handle { posts, totals, path })
}

fn write(
    mut journal: Journal,
    mut queue: mpsc::Receiver<Post>,
    shown: &watch::Sender<Totals>,
) -> Result<(), JournalError> {
    let mut batch = Vec::with_capacity(QUEUED);
    while let Some(first) = queue.blocking_recv() {
        batch.push(first);
        while batch.len() < QUEUED
            && let Ok(post) = queue.try_recv()
        {
            batch.push(post);
        }
        let lines: Vec<&Bytes> = batch.iter().map(|post| &post.line).collect();
        let before = journal.totals.count;
        match journal.append(&lines) {
            Ok(totals) => {
                shown.send_replace(totals);
                for (post, number) in batch.drain(..).zip(before + 1..) {
                    post.reply.send(Ok(number)).ok();
                }
            }
            Err(AppendError::Refused(e)) => {
                tracing::warn!("refused {} lines: {e}", batch.len());
                for post in batch.drain(..) {
                    post.reply.send(Err(e.to_string())).ok();
                }
            }
            Err(AppendError::Fatal(e)) => return Err(e),
        }
    }
    Ok(())
}

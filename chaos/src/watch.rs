//! Looks at `/proc` again and again from a thread of its own, so that no load on the test delays
//! it, and has each look judged at once.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::invariants::one_instance::OneInstance;
use crate::processes::Finder;

/// Time between two looks.
const EVERY: Duration = Duration::from_millis(25);

/// A running watch.
#[derive(Debug)]
pub struct Watch {
    stop: SyncSender<()>,
    thread: Option<JoinHandle<Result<u64>>>,
    failed: Arc<AtomicBool>,
}

impl Watch {
    /// Starts to watch the services of the mesh in this folder.
    ///
    /// # Errors
    /// If there can be no thread.
    pub fn start(folder: &Path) -> Result<Self> {
        let (stop, stopped) = sync_channel(1);
        let finder = Finder::new(folder);
        let failed = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&failed);
        let thread = std::thread::Builder::new()
            .name("watch".to_owned())
            .spawn(move || {
                let outcome = look(finder, &stopped);
                told.store(outcome.is_err(), Ordering::Release);
                outcome
            })
            .context("cannot start the watch")?;
        Ok(Self { stop, thread: Some(thread), failed })
    }

    /// Fails if something forbidden was seen so far.
    ///
    /// # Errors
    /// What was seen.
    pub fn check(&mut self) -> Result<()> {
        if self.failed.load(Ordering::Acquire) {
            self.end()?;
            bail!("the watch has ended");
        }
        Ok(())
    }

    /// Ends the watch; answers how often it looked.
    ///
    /// # Errors
    /// What it saw, if it was forbidden.
    pub fn end(&mut self) -> Result<u64> {
        // It may have ended by itself.
        let _sent = self.stop.try_send(());
        let thread = self.thread.take().context("the watch has ended before")?;
        thread.join().unwrap_or_else(|_panic| bail!("the watch panicked"))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _sent = self.stop.try_send(());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn look(mut finder: Finder, stopped: &Receiver<()>) -> Result<u64> {
    let mut judge = OneInstance::default();
    let mut looks = 0;
    loop {
        judge.judge(&finder.instances()?, Finder::still_runs)?;
        looks += 1;
        match stopped.recv_timeout(EVERY) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return Ok(looks),
        }
    }
}

//! Keeps the whole machine busy for a while: a spinning thread for each core, and one that writes
//! and syncs to the disk that the agents use. It ends when it is dropped.

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};

/// Bytes of one write.
const BLOCK: usize = 1024 * 1024;
/// Blocks of the file that is written over and over.
const BLOCKS: u64 = 64;

/// A load on the machine.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    written: Arc<AtomicU64>,
}

impl Load {
    /// Starts it.
    ///
    /// # Errors
    /// If there can be no thread or file.
    pub fn start(folder: &Path, cores: usize) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let written = Arc::new(AtomicU64::new(0));
        let path = folder.join("load");
        let file = File::options().create(true).truncate(true).write(true).open(&path);
        let file = file.with_context(|| format!("cannot make {}", path.display()))?;
        let mut load = Self { stop, threads: Vec::new(), written };
        for _core in 0..cores {
            let stop = Arc::clone(&load.stop);
            load.spawn("spin", move || {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })?;
        }
        let (stop, written) = (Arc::clone(&load.stop), Arc::clone(&load.written));
        load.spawn("write", move || write(file, &stop, &written))?;
        Ok(load)
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
        self.threads.push(thread.context("cannot start a thread")?);
        Ok(())
    }

    /// MiB written so far.
    #[must_use]
    pub fn written_mib(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

fn write(mut file: File, stop: &AtomicBool, written: &AtomicU64) {
    let block = vec![0x5a; BLOCK];
    while !stop.load(Ordering::Relaxed) {
        if written.load(Ordering::Relaxed).is_multiple_of(BLOCKS)
            && file.seek(SeekFrom::Start(0)).is_err()
        {
            return;
        }
        if file.write_all(&block).and_then(|()| file.sync_data()).is_err() {
            return;
        }
        written.fetch_add(1, Ordering::Relaxed);
    }
}

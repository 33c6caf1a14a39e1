//! The guard's second thread: it writes the table and the log, so that the first never waits for
//! a disk. It decides nothing. The newest table wins; lines beyond a bound are dropped.

use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::store;

const MOST_LINES: usize = 256;

#[derive(Debug, Default)]
struct Pending {
    table: Option<Vec<u8>>,
    lines: Vec<String>,
    ending: bool,
}

/// Hands things to write to the thread.
#[derive(Debug)]
pub(super) struct Notes {
    shared: Arc<(Mutex<Pending>, Condvar)>,
    thread: JoinHandle<()>,
}

impl Notes {
    pub(super) fn start(folder: PathBuf) -> std::io::Result<Self> {
        let shared = Arc::<(Mutex<Pending>, Condvar)>::default();
        let theirs = Arc::clone(&shared);
        let builder = std::thread::Builder::new().name("notes".to_owned()).stack_size(128 << 10);
        let thread = builder.spawn(move || write(&folder, &theirs))?;
        Ok(Self { shared, thread })
    }

    pub(super) fn table(&self, encoded: Vec<u8>) {
        self.change(|pending| pending.table = Some(encoded));
    }

    pub(super) fn say(&self, line: String) {
        self.change(|pending| {
            if pending.lines.len() < MOST_LINES {
                pending.lines.push(line);
            }
        });
    }

    /// Waits for what is pending: the guard has nothing else to do any more.
    pub(super) fn end(self) {
        self.change(|pending| pending.ending = true);
        self.thread.join().ok();
    }

    fn change(&self, with: impl FnOnce(&mut Pending)) {
        with(&mut self.shared.0.lock().unwrap_or_else(PoisonError::into_inner));
        self.shared.1.notify_one();
    }
}

fn write(folder: &std::path::Path, shared: &(Mutex<Pending>, Condvar)) {
    let mut failing = false;
    loop {
        let pending = {
            let idle = |p: &mut Pending| p.table.is_none() && p.lines.is_empty() && !p.ending;
            let guard = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
            let waited = shared.1.wait_while(guard, idle);
            let mut guard = waited.unwrap_or_else(PoisonError::into_inner);
            let ending = guard.ending;
            std::mem::replace(&mut *guard, Pending { ending, ..Pending::default() })
        };
        for line in &pending.lines {
            writeln!(std::io::stderr(), "flocker guard: {line}").ok();
        }
        if let Some(encoded) = pending.table {
            let saved = store::save(folder, &encoded);
            if let (Err(e), false) = (&saved, failing) {
                writeln!(std::io::stderr(), "flocker guard: cannot save the table: {e}").ok();
            }
            failing = saved.is_err();
        }
        if pending.ending {
            return;
        }
    }
}

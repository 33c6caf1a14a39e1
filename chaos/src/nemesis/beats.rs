//! The service under test, which says a few hundred times a second, by the host's clock, that it is
//! about to write; and the check that no two of its instances could write by turns.
//!
//! All hosts share one clock here. A beat is on record before the write that it tells of, so what a
//! freeze or a kill cuts short leaves no trace of a write that was not there.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flocker_base::{Clock as _, Epoch, SystemClock};

use crate::invariants::one_instance::parse;

/// Names the folder for the beats, outside every volume.
pub const FOLDER: &str = "BEATS";
/// Time between two beats.
const EVERY: Duration = Duration::from_millis(5);

/// A running heart.
#[derive(Debug)]
pub struct Heart {
    stop: SyncSender<()>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Heart {
    /// Starts to beat for this process, whose epoch and volume the engine has set.
    ///
    /// # Errors
    /// If the environment names no folders, or they cannot be written to.
    pub fn start() -> Result<Self> {
        let variable = |name: &str| {
            std::env::var(name).with_context(|| format!("{name} is not set: this is a service"))
        };
        let (epoch, volume, folder) =
            (variable("FLOCKER_EPOCH")?, variable("FLOCKER_VOLUME")?, variable(FOLDER)?);
        parse(&epoch)?;
        let open = |path: &Path| {
            let opened = OpenOptions::new().create(true).append(true).open(path);
            opened.with_context(|| format!("cannot open {}", path.display()))
        };
        let name = format!("{epoch}-{}", std::process::id());
        let mut told = open(&Path::new(&folder).join(name))?;
        let mut written = open(&Path::new(&volume).join("beats"))?;
        let (stop, stopped) = sync_channel(1);
        let beat = move || -> Result<()> {
            loop {
                let line = format!("{}\n", SystemClock.boot().since_boot().as_nanos());
                told.write_all(line.as_bytes()).context("cannot tell of a beat")?;
                // What a real service would do: a write into its volume.
                written.write_all(b".").context("cannot write into the volume")?;
                match stopped.recv_timeout(EVERY) {
                    Err(RecvTimeoutError::Timeout) => {}
                    Ok(()) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
                }
            }
        };
        let thread = std::thread::Builder::new().name("beats".to_owned()).spawn(beat);
        Ok(Self { stop, thread: Some(thread.context("cannot start a thread")?) })
    }
}

impl Drop for Heart {
    fn drop(&mut self) {
        let _sent = self.stop.try_send(());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// One instance's beats: its epoch, its process, and when, in nanoseconds, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beats {
    epoch: Epoch,
    process: String,
    at: Vec<u64>,
}

/// Reads all beats in the folder.
///
/// # Errors
/// If one cannot be read.
pub fn read(folder: &Path) -> Result<Vec<Beats>> {
    let mut all = Vec::new();
    for file in fs::read_dir(folder).context("no folder of beats")? {
        let path = file.context("no folder of beats")?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (epoch, _) = name.split_once('-').context("a strange file among the beats")?;
        let text = fs::read_to_string(&path).context("cannot read beats")?;
        // The last line may be under way.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let at: Vec<u64> = whole.lines().filter_map(|line| line.parse().ok()).collect();
        if !at.is_empty() {
            all.push(Beats { epoch: parse(epoch)?, process: name, at });
        }
    }
    Ok(all)
}

/// At no instant could two instances write: each beats last before the next beats first, and epochs
/// never fall. Answers how many beats there were.
///
/// # Errors
/// Which two instances overlap, or which one started under a lower epoch.
pub fn judge(mut beats: Vec<Beats>) -> Result<usize> {
    beats.sort_by_key(|instance| instance.at.first().copied());
    for pair in beats.windows(2) {
        let [former, next] = pair else { continue };
        let (last, first) = (former.at.last().copied(), next.at.first().copied());
        ensure!(
            last < first,
            "two writers: {} wrote {} us after {} had begun",
            former.process,
            last.unwrap_or(0).saturating_sub(first.unwrap_or(0)) / 1_000,
            next.process
        );
        ensure!(
            former.epoch <= next.epoch,
            "{} wrote after {}: its epoch is lower",
            next.process,
            former.process
        );
    }
    Ok(beats.iter().map(|instance| instance.at.len()).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beats(counter: u64, process: u32, at: &[u64]) -> Beats {
        let epoch = Epoch::new(0, counter);
        Beats { epoch, process: format!("{counter}-{process}"), at: at.to_vec() }
    }

    #[test]
    fn writers_one_after_the_other_are_good_and_by_turns_are_not() {
        let good = vec![beats(2, 8, &[30, 40]), beats(1, 7, &[10, 20]), beats(2, 9, &[50])];
        assert_eq!(judge(good).expect("one after the other"), 5);
        let overlap = judge(vec![beats(1, 7, &[10, 35]), beats(2, 8, &[30, 40])]);
        assert!(overlap.expect_err("two").to_string().contains("two writers"));
        let within = judge(vec![beats(1, 7, &[10, 50]), beats(2, 8, &[20, 30])]);
        within.expect_err("the one was frozen while the other wrote, and wrote again");
        let back = judge(vec![beats(2, 7, &[10]), beats(1, 8, &[20])]);
        assert!(back.expect_err("lower").to_string().contains("epoch is lower"));
    }

    #[test]
    fn what_is_under_way_is_not_read() {
        let folder = tempfile::tempdir().expect("a folder");
        flocker_base::durable::write(&folder.path().join("x"), 1, b"").expect("writes");
        read(folder.path()).expect_err("strange");
        fs::remove_file(folder.path().join("x")).expect("goes");
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(folder.path().join("3.4-77"))
            .expect("opens");
        file.write_all(b"100\n200\n30").expect("writes");
        let read = read(folder.path()).expect("reads");
        assert_eq!(
            read,
            [Beats { epoch: Epoch::new(3, 4), process: "3.4-77".into(), at: vec![100, 200] }]
        );
    }
}

//! The tally's file: lines, appended and synced, with a running count and checksum.
//!
//! A last line without its newline was never acknowledged and is cut off at the start.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use flocker_base::durable;

/// The longest line, in bytes, without its newline.
pub(super) const MOST_LINE_BYTES: usize = 4096;
const FILE: &str = "log";

/// A digest of lines that does not depend on their order: the sum, modulo 2^64, of the first
/// eight bytes (little-endian) of each line's BLAKE3 hash, the newline left out. Unlike an
/// exclusive or, it tells two equal lines from none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checksum(u64);

impl Checksum {
    /// Adds one line, without its newline.
    pub fn add(&mut self, line: &[u8]) {
        let mut first = [0; 8];
        first.copy_from_slice(&blake3::hash(line).as_bytes()[..8]);
        self.0 = self.0.wrapping_add(u64::from_le_bytes(first));
    }
}

impl<'a> FromIterator<&'a [u8]> for Checksum {
    fn from_iter<I: IntoIterator<Item = &'a [u8]>>(lines: I) -> Self {
        let mut sum = Self::default();
        lines.into_iter().for_each(|line| sum.add(line));
        sum
    }
}

impl std::fmt::Display for Checksum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Why the journal could not be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was attempted, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process has it.
    #[error("{} is in use by another process: one service at a time may write a volume", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file's folder could not be synced.
    #[error(transparent)]
    Folder(#[from] durable::DurableError),
}

/// What is on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) count: u64,
    pub(super) checksum: Checksum,
    /// The file's length; what lies beyond is not acknowledged.
    pub(super) bytes: u64,
}

#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    pub(super) path: PathBuf,
    pub(super) totals: Totals,
}

impl Journal {
    /// Opens or makes the file and reads it through. Blocks.
    pub(super) fn open(folder: &Path) -> Result<Self, JournalError> {
        let path = folder.join(FILE);
        let failed = |action, source| JournalError::Io { action, path: path.clone(), source };
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(|e| failed("open", e))?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(
            |e| match e {
                rustix::io::Errno::WOULDBLOCK => JournalError::InUse { path: path.clone() },
                other => failed("lock", other.into()),
            },
        )?;
        let totals = read_through(&file).map_err(|e| failed("read", e))?;
        let length = file.metadata().map_err(|e| failed("read", e))?.len();
        if length > totals.bytes {
            let torn = length - totals.bytes;
            tracing::warn!(file = %path.display(), torn, "cut off a last line that was written in part and never acknowledged");
            file.set_len(totals.bytes).map_err(|e| failed("cut", e))?;
        }
        file.sync_all().map_err(|e| failed("sync", e))?;
        durable::sync_parent(&path)?;
        Ok(Self { file, path, totals })
    }

    /// Appends these lines with one write and one fsync. On an error of the write the file is cut
    /// back and nothing has changed; an error of the fsync or of that cut is fatal, for what the
    /// disk holds is then unknown.
    pub(super) fn append(&mut self, lines: &[impl AsRef<[u8]>]) -> Result<Totals, AppendError> {
        let mut batch = Vec::with_capacity(lines.iter().map(|l| l.as_ref().len() + 1).sum());
        let mut totals = self.totals;
        for line in lines {
            batch.extend_from_slice(line.as_ref());
            batch.push(b'\n');
            totals.count += 1;
            totals.checksum.add(line.as_ref());
        }
        totals.bytes += batch.len() as u64;
        if let Err(e) = self.file.write_all_at(&batch, self.totals.bytes) {
            let cut = self.file.set_len(self.totals.bytes).and_then(|()| self.file.sync_all());
            cut.map_err(|e| AppendError::Fatal(self.failed("cut", e)))?;
            return Err(AppendError::Refused(self.failed("append to", e)));
        }
        self.file.sync_data().map_err(|e| AppendError::Fatal(self.failed("sync", e)))?;
        self.totals = totals;
        Ok(totals)
    }

    fn failed(&self, action: &'static str, source: io::Error) -> JournalError {
        JournalError::Io { action, path: self.path.clone(), source }
    }
}

#[derive(Debug)]
pub(super) enum AppendError {
    /// Nothing changed; the next may do.
    Refused(JournalError),
    /// The process must end.
    Fatal(JournalError),
}

/// Counts whole lines. A line longer than any that was accepted is taken as it is.
fn read_through(file: &File) -> io::Result<Totals> {
    let mut totals = Totals::default();
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let mut line = Vec::new();
    loop {
        line.clear();
        let most = 1 << 24;
        let read = (&mut reader).take(most).read_until(b'\n', &mut line)? as u64;
        if read == most && !line.ends_with(b"\n") {
            let text = "a line is longer than 16 MiB: this is not a log of ours";
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        match line.strip_suffix(b"\n") {
            Some(whole) => {
                totals.count += 1;
                totals.bytes += read;
                totals.checksum.add(whole);
            }
            None => return Ok(totals),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(folder: &Path) -> Vec<u8> {
        std::fs::read(folder.join(FILE)).expect("reads")
    }

    #[test]
    fn the_checksum_keeps_its_value() {
        let lines: [&[u8]; 3] = [b"a", b"b", b"a"];
        let sum: Checksum = lines.into_iter().collect();
        let backwards: Checksum = lines.into_iter().rev().collect();
        assert_eq!(sum, backwards);
        assert_ne!(sum, [&b"b"[..]].into_iter().collect());
        assert_eq!(Checksum::default().to_string(), "0000000000000000");
        assert_eq!(sum.to_string(), "46985deff82ed13e");
    }

    #[test]
    fn a_second_process_is_kept_out() {
        let folder = tempfile::tempdir().expect("folder");
        let first = Journal::open(folder.path()).expect("opens");
        assert!(matches!(Journal::open(folder.path()), Err(JournalError::InUse { .. })));
        drop(first);
        Journal::open(folder.path()).expect("free again");
    }

    #[test]
    fn a_file_cut_at_any_byte_opens_with_the_whole_lines_before_it() {
        let folder = tempfile::tempdir().expect("folder");
        let lines = ["one", "two", "three"];
        Journal::open(folder.path()).expect("opens").append(&lines).expect("appends");
        let whole = written(folder.path());
        assert_eq!(whole, b"one\ntwo\nthree\n");
        for cut in 0..=whole.len() {
            let path = folder.path().join(FILE);
            durable::write_plain(&path, &whole[..cut], 0o600).expect("writes");
            let journal = Journal::open(folder.path()).expect("opens");
            let kept = whole[..cut].iter().filter(|b| **b == b'\n').count();
            let expected: Checksum = lines[..kept].iter().map(|l| l.as_bytes()).collect();
            assert_eq!(journal.totals.count, kept as u64);
            assert_eq!(journal.totals.checksum, expected);
            assert_eq!(written(folder.path()).len() as u64, journal.totals.bytes);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn totals_after_any_batches_equal_those_read_again(
            batches in prop::collection::vec(prop::collection::vec("[^\n]{1,20}", 1..5), 0..5)
        ) {
            let folder = tempfile::tempdir().expect("folder");
            let mut journal = Journal::open(folder.path()).expect("opens");
            for batch in &batches {
                journal.append(batch).expect("appends");
            }
            let kept = journal.totals;
            drop(journal);
            prop_assert_eq!(Journal::open(folder.path()).expect("opens").totals, kept);
            let lines: usize = batches.iter().map(Vec::len).sum();
            prop_assert_eq!(kept.count, lines as u64);
        }
    }
}

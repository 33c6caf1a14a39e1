//! A service's output, in a file of bounded size.
//!
//! The service holds the file itself, so that it can go on writing when the agent dies. A file
//! that has grown too large is therefore copied aside and cut, never renamed; a line written
//! between the two may be lost.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Opens the log to append to.
pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// Keeps the newest content beside the log and empties the log, if it has outgrown the limit.
pub(super) fn rotate(path: &Path, limit_bytes: u64) -> io::Result<bool> {
    let length = match std::fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e),
    };
    if length <= limit_bytes {
        return Ok(false);
    }
    copy_tail(path, &previous(path), length.saturating_sub(limit_bytes))?;
    OpenOptions::new().write(true).open(path)?.set_len(0)?;
    Ok(true)
}

fn copy_tail(from: &Path, to: &Path, skip: u64) -> io::Result<()> {
    use std::io::Seek;
    let mut source = File::open(from)?;
    source.seek(io::SeekFrom::Start(skip))?;
    let mut options = OpenOptions::new();
    let mut target = options.write(true).create(true).truncate(true).mode(0o600).open(to)?;
    io::copy(&mut source, &mut target).map(|_| ())
}

fn previous(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".1");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_writer_goes_on_in_the_emptied_file_and_the_newest_is_kept() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("log");
        assert!(!rotate(&path, 10).expect("no file yet"));
        let mut writer = open(&path).expect("opens");
        writer.write_all(b"0123456789").expect("writes");
        assert!(!rotate(&path, 10).expect("at the limit"));
        writer.write_all(b"ab").expect("writes");
        assert!(rotate(&path, 10).expect("over the limit"));
        writer.write_all(b"new").expect("writes");
        assert_eq!(std::fs::read(&path).expect("reads"), b"new");
        assert_eq!(std::fs::read(previous(&path)).expect("reads"), b"23456789ab");
    }
}

//! State files that are either the old content or the new, never half of one.
//!
//! A file is written beside its final name, synced, renamed over it, and its folder synced. It
//! opens with a magic word, the version of its content and a BLAKE3 checksum; a file that fails
//! the check is refused by name and never read as empty.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 4] = b"FLKR";
const HEADER_LEN: usize = 4 + 1 + 32;

/// Why a state file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum DurableError {
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
    /// The content does not match its checksum, or is no state file at all.
    #[error(
        "{} is damaged ({reason}): restore it from a backup, or move it away to start as a new node",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The content is of a version that this binary does not know.
    #[error(
        "{} has version {found}, and this binary reads up to {known}: upgrade flocker",
        path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// The version found.
        found: u8,
        /// The newest version that the caller reads.
        known: u8,
    },
    /// The content is larger than the caller allows.
    #[error("{} is larger than {limit} bytes: it is not a file of ours", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The largest content allowed, in bytes.
        limit: usize,
    },
}

/// Replaces the file's content, durably, readable by its owner alone (mode 0600).
///
/// # Errors
/// [`DurableError::Io`]; the old content then still stands.
pub fn write(path: &Path, version: u8, content: &[u8]) -> Result<(), DurableError> {
    let mut framed = Vec::with_capacity(HEADER_LEN + content.len());
    framed.extend_from_slice(MAGIC);
    framed.push(version);
    framed.extend_from_slice(checksum(version, content).as_bytes());
    framed.extend_from_slice(content);
    write_plain(path, &framed, 0o600)
}

/// Replaces the file's content, durably, with no header: for files that other programs read.
///
/// # Errors
/// [`DurableError::Io`]; the old content then still stands.
pub fn write_plain(path: &Path, content: &[u8], mode: u32) -> Result<(), DurableError> {
    let io = |action, source| DurableError::Io { action, path: path.to_owned(), source };
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temporary = path.with_file_name(name);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary)
        .map_err(|e| io("create", e))?;
    file.write_all(content).map_err(|e| io("write", e))?;
    file.sync_all().map_err(|e| io("sync", e))?;
    fs::rename(&temporary, path).map_err(|e| io("replace", e))?;
    sync_parent(path)
}

/// Reads a file that [`write()`] wrote: its version and content. `None` if there is none.
///
/// # Errors
/// Any [`DurableError`]; damage is never read as an empty file.
pub fn read(
    path: &Path,
    newest_version: u8,
    limit: usize,
) -> Result<Option<(u8, Vec<u8>)>, DurableError> {
    let io = |action, source| DurableError::Io { action, path: path.to_owned(), source };
    let damaged = |reason| DurableError::Damaged { path: path.to_owned(), reason };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io("open", e)),
    };
    let mut framed = Vec::new();
    let most = (HEADER_LEN + limit) as u64;
    file.take(most + 1).read_to_end(&mut framed).map_err(|e| io("read", e))?;
    if framed.len() as u64 > most {
        return Err(DurableError::TooLarge { path: path.to_owned(), limit });
    }
    if framed.len() < HEADER_LEN || &framed[..4] != MAGIC {
        return Err(damaged("it does not begin as a state file does"));
    }
    let version = framed[4];
    let content = framed.split_off(HEADER_LEN);
    if checksum(version, &content).as_bytes() != &framed[5..HEADER_LEN] {
        return Err(damaged("its checksum does not match"));
    }
    if version > newest_version {
        return Err(DurableError::Version {
            path: path.to_owned(),
            found: version,
            known: newest_version,
        });
    }
    Ok(Some((version, content)))
}

/// Syncs the folder that holds this path, so that a rename, creation or removal in it lasts.
///
/// # Errors
/// [`DurableError::Io`].
pub fn sync_parent(path: &Path) -> Result<(), DurableError> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder).and_then(|f| f.sync_all()).map_err(|source| DurableError::Io {
        action: "sync",
        path: folder.to_owned(),
        source,
    })
}

fn checksum(version: u8, content: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[version]);
    hasher.update(content);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_replaced_whole() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("state");
        assert!(read(&path, 1, 100).expect("no file").is_none());
        write(&path, 1, b"first").expect("write");
        write(&path, 2, b"second").expect("write");
        assert_eq!(read(&path, 2, 100).expect("read"), Some((2, b"second".to_vec())));
        assert_eq!(fs::read_dir(folder.path()).expect("list").count(), 1, "no file left beside it");
    }

    #[test]
    fn every_flipped_bit_is_refused_by_name() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("state");
        write(&path, 1, b"content").expect("write");
        let good = fs::read(&path).expect("read");
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            write_plain(&path, &bad, 0o600).expect("write");
            let error = read(&path, 9, 100).expect_err("refused").to_string();
            assert!(error.contains("state"), "{error}");
        }
    }

    #[test]
    fn a_newer_version_a_short_file_and_a_huge_one_are_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("state");
        write(&path, 3, b"x").expect("write");
        assert!(matches!(read(&path, 2, 10), Err(DurableError::Version { found: 3, .. })));
        write_plain(&path, b"FL", 0o600).expect("write");
        assert!(matches!(read(&path, 2, 10), Err(DurableError::Damaged { .. })));
        write(&path, 1, &[0; 11]).expect("write");
        assert!(matches!(read(&path, 2, 10), Err(DurableError::TooLarge { .. })));
    }
}

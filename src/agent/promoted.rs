//! Under which epoch each volume was made writable here: a durable note a volume, written before
//! the volume is. It is what tells a returning master that it has a tail to keep.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use flocker_base::durable::{self, DurableError};
use flocker_base::{Epoch, VolumeId};

const VERSION: u8 = 1;
const MAX_NOTE: usize = 64;

/// Why the notes cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum PromotedError {
    /// The files cannot be read or written.
    #[error(transparent)]
    File(#[from] DurableError),
    /// The folder cannot be used.
    #[error("cannot {action} {}: {source}", path.display())]
    Folder {
        /// What was attempted.
        action: &'static str,
        /// The folder or file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is none of ours.
    #[error("{} is no note of a promoted volume: move it away", .0.display())]
    Foreign(PathBuf),
}

/// The notes.
#[derive(Debug)]
pub(super) struct Promoted {
    folder: PathBuf,
    notes: Mutex<HashMap<VolumeId, Epoch>>,
}

impl Promoted {
    /// Reads the notes in the folder, which is made if it is not there.
    pub(super) fn open(folder: &Path) -> Result<Self, PromotedError> {
        let io = |action, source| PromotedError::Folder { action, path: folder.to_owned(), source };
        std::fs::create_dir_all(folder).map_err(|e| io("make", e))?;
        let mut notes = HashMap::new();
        for entry in std::fs::read_dir(folder).map_err(|e| io("list", e))? {
            let path = entry.map_err(|e| io("list", e))?.path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            if name.ends_with(".new") {
                // Left by a crash before it was renamed into place: it never counted.
                continue;
            }
            let volume: VolumeId =
                name.parse().map_err(|_not_an_id| PromotedError::Foreign(path.clone()))?;
            if let Some((_, bytes)) = durable::read(&path, VERSION, MAX_NOTE)? {
                let epoch = postcard::from_bytes(&bytes)
                    .map_err(|_not_an_epoch| PromotedError::Foreign(path.clone()))?;
                notes.insert(volume, epoch);
            }
        }
        Ok(Self { folder: folder.to_owned(), notes: Mutex::new(notes) })
    }

    pub(super) fn epoch(&self, volume: VolumeId) -> Option<Epoch> {
        self.lock().get(&volume).copied()
    }

    /// Notes, durably, that the volume is about to be writable under this epoch.
    pub(super) fn note(&self, volume: VolumeId, epoch: Epoch) -> Result<(), PromotedError> {
        let path = self.folder.join(volume.to_string());
        let bytes = postcard::to_stdvec(&epoch)
            .map_err(|_unwritable| PromotedError::Foreign(path.clone()))?;
        durable::write(&path, VERSION, &bytes)?;
        self.lock().insert(volume, epoch);
        Ok(())
    }

    /// Forgets, durably, that the volume was writable: its tail is kept.
    pub(super) fn clear(&self, volume: VolumeId) -> Result<(), PromotedError> {
        let path = self.folder.join(volume.to_string());
        match std::fs::remove_file(&path) {
            Ok(()) => durable::sync_parent(&path)?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(PromotedError::Folder { action: "remove", path, source }),
        }
        self.lock().remove(&volume);
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<VolumeId, Epoch>> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use flocker_base::WallTime;

    use super::*;

    #[test]
    fn notes_outlive_the_agent_and_a_damaged_one_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let volume = VolumeId::new(WallTime::from_millis(1), [1; 10]);
        let epoch = Epoch::new(1, 7);
        Promoted::open(folder.path()).expect("opens").note(volume, epoch).expect("notes");
        let notes = Promoted::open(folder.path()).expect("opens");
        assert_eq!(notes.epoch(volume), Some(epoch));
        notes.clear(volume).expect("clears");
        assert_eq!(Promoted::open(folder.path()).expect("opens").epoch(volume), None);
        notes.note(volume, epoch).expect("notes");
        let file = folder.path().join(volume.to_string());
        let mut bytes = std::fs::read(&file).expect("reads");
        bytes[6] ^= 1;
        durable::write_plain(&file, &bytes, 0o600).expect("writes");
        assert!(Promoted::open(folder.path()).is_err(), "never read as 'not promoted'");
    }
}

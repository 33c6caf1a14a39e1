//! The guard's table as a file, so that a guard that follows another knows what to kill.
//!
//! The file is replaced whole but never synced: it need not outlive the machine's boot, only the
//! process. A damaged one is never read as empty.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use flocker_base::Incarnation;

use super::table::{MOST_PROTECTED, Table};
use super::wire::{MOST_REPLY_BYTES, Phase, Reader, WireError, put_protected};

const MAGIC: &[u8; 4] = b"FLKG";
const VERSION: u8 = 1;
const CHECKSUM_BYTES: usize = 32;
const FILE: &str = "guard.table";

/// What a new guard finds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The table of this boot.
    Table(Table),
    /// None, or one of an earlier boot, whose processes are gone with it.
    Nothing,
    /// One that cannot be read, and why.
    Lost(String),
}

pub(super) fn encode(table: &Table, boot: &str) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.push(VERSION);
    out.push(u8::try_from(boot.len()).unwrap_or(u8::MAX));
    out.extend(boot.bytes().take(usize::from(u8::MAX)));
    out.extend(table.newest().0.to_le_bytes());
    let held: Vec<_> = table.held().collect();
    out.extend(u32::try_from(held.len()).unwrap_or(u32::MAX).to_le_bytes());
    for (protected, phase) in held {
        put_protected(&mut out, &protected);
        out.push(phase as u8);
    }
    let checksum = blake3::hash(&out);
    out.extend(checksum.as_bytes());
    out
}

fn decode(bytes: &[u8], boot: &str) -> Result<Option<Table>, WireError> {
    let at = bytes.len().checked_sub(CHECKSUM_BYTES).ok_or(WireError::Malformed)?;
    let (content, checksum) = bytes.split_at(at);
    if blake3::hash(content).as_bytes() != checksum || !content.starts_with(MAGIC) {
        return Err(WireError::Malformed);
    }
    let mut reader = Reader(&content[MAGIC.len()..]);
    let [version, boot_len] = reader.take()?;
    if version != VERSION {
        return Err(WireError::Version(version));
    }
    let its_boot = reader.0.split_off(..usize::from(boot_len)).ok_or(WireError::Malformed)?;
    if its_boot != boot.as_bytes() {
        return Ok(None);
    }
    let newest = Incarnation(reader.u64()?);
    let held = reader.many(MOST_PROTECTED, |r| {
        let protected = r.protected()?;
        let phase = match r.take()? {
            [0] => Phase::Running,
            [1] => Phase::Frozen,
            [2] => Phase::Killing,
            _ => return Err(WireError::Malformed),
        };
        Ok((protected, phase))
    })?;
    reader.end(Some(Table::restored(newest, held)))
}

pub(super) fn load(folder: &Path, boot: &str) -> Found {
    let path = folder.join(FILE);
    let mut bytes = Vec::new();
    let most = 2 * MOST_REPLY_BYTES as u64;
    let read = fs::File::open(&path).and_then(|f| f.take(most).read_to_end(&mut bytes));
    match read {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Found::Nothing,
        Err(e) => Found::Lost(format!("cannot read {}: {e}", path.display())),
        Ok(_) => match decode(&bytes, boot) {
            Ok(Some(table)) => Found::Table(table),
            Ok(None) => Found::Nothing,
            Err(e) => Found::Lost(format!("{} is damaged: {e}", path.display())),
        },
    }
}

/// Whole or not at all, for any reader and any death of this process.
pub(super) fn save(folder: &Path, encoded: &[u8]) -> io::Result<()> {
    let new = folder.join("guard.table.new");
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(encoded)?;
    fs::rename(new, folder.join(FILE))
}

pub(super) fn remove(folder: &Path) {
    fs::remove_file(folder.join(FILE)).ok();
}

#[cfg(test)]
mod tests {
    use flocker_base::{BootTime, Epoch, ServiceId};

    use super::super::wire::Protected;
    use super::*;
    use crate::engine::ProcessGroup;

    fn table() -> Table {
        let group =
            ProcessGroup { service: ServiceId::from_bytes([1; 16]), leader: 2, start_ticks: 3 };
        let (freeze_at, deadline) = (BootTime::from_millis(1), BootTime::NEVER);
        let protected = Protected { group, epoch: Epoch::new(4, 5), freeze_at, deadline };
        Table::restored(Incarnation(9), vec![(protected, Phase::Frozen)])
    }

    #[test]
    fn the_file_keeps_its_bytes() {
        let encoded = encode(&table(), "boot");
        let golden = concat!(
            "464c4b470104626f6f7409000000000000000100000001010101010101010101010101010101",
            "0200000003000000000000000400000005000000000000004042",
            "0f0000000000ffffffffffffffff01",
        );
        let content = &encoded[..encoded.len() - CHECKSUM_BYTES];
        assert_eq!(data_encoding::HEXLOWER.encode(content), golden);
    }

    #[test]
    fn it_is_found_again_in_its_own_boot_alone() {
        let folder = tempfile::tempdir().expect("folder");
        assert_eq!(load(folder.path(), "boot"), Found::Nothing);
        save(folder.path(), &encode(&table(), "boot")).expect("saves");
        assert_eq!(load(folder.path(), "boot"), Found::Table(table()));
        assert_eq!(load(folder.path(), "next"), Found::Nothing);
        remove(folder.path());
        assert_eq!(load(folder.path(), "boot"), Found::Nothing);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_a_lost_table() {
        let folder = tempfile::tempdir().expect("folder");
        let good = encode(&table(), "boot");
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            save(folder.path(), &bad).expect("saves");
            assert!(matches!(load(folder.path(), "boot"), Found::Lost(_)), "bit {bit}");
        }
        for cut in 0..good.len() {
            save(folder.path(), &good[..cut]).expect("saves");
            assert!(matches!(load(folder.path(), "boot"), Found::Lost(_)), "cut at {cut}");
        }
    }
}

//! A watchdog device that the guard feeds: if the guard itself hangs, or cannot end what must not
//! run, nobody feeds it and the machine resets (Linux, `Documentation/watchdog/watchdog-api.rst`).

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flocker_base::BootTime;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::ioctl::{Updater, opcode};

/// Time between two feedings. The shortest time that a watchdog can be set to is a second.
pub(super) const FEED_EVERY: Duration = Duration::from_millis(200);
/// Time for what was killed to be gone. What is left then can be ended only by a reset.
pub(super) const KILL_PATIENCE: Duration = Duration::from_secs(1);
/// What the device is to be set to: seconds without food until the reset. The shorter, the sooner it
/// is certain that nothing runs here while another node takes over.
const RESET_AFTER: i32 = 1;
/// `WDIOC_SETTIMEOUT`.
const SET_TIMEOUT: rustix::ioctl::Opcode = opcode::read_write::<i32>(b'W', 6);

/// An open device. Dropped without a farewell, it resets the machine.
#[derive(Debug)]
pub(super) struct Watchdog {
    path: PathBuf,
    device: File,
    fed: BootTime,
    /// It was left unfed on purpose, and this was told.
    starved: bool,
}

impl Watchdog {
    /// Opens the device, which starts it, and sets it as short as it can be. Answers what to note.
    pub(super) fn open(path: &Path, now: BootTime) -> io::Result<(Self, String)> {
        let mut options = OpenOptions::new();
        let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
        let device = options.write(true).custom_flags(flags).open(path)?;
        let said = match set_timeout(&device) {
            Ok(seconds) => format!("the machine resets {seconds} s after the guard stops"),
            Err(error) => format!("how soon it resets the machine cannot be set ({error})"),
        };
        let note = format!("feeds the watchdog {}: {said}", path.display());
        Ok((Self { path: path.to_owned(), device, fed: now, starved: false }, note))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Feeds it, if it is time to; not if something has been killed in vain since this instant. Tells
    /// what to note.
    pub(super) fn feed(
        &mut self,
        now: BootTime,
        killing_since: Option<BootTime>,
    ) -> Option<String> {
        if killing_since.is_some_and(|since| now >= since + KILL_PATIENCE) {
            let told = std::mem::replace(&mut self.starved, true);
            return (!told).then(|| {
                "what was killed is still there: the watchdog is not fed, the machine is to reset"
                    .to_owned()
            });
        }
        if now < self.fed + FEED_EVERY && now >= self.fed {
            return None;
        }
        self.fed = now;
        self.starved = false;
        self.device
            .write_all(b"\0")
            .err()
            .map(|error| format!("cannot feed the watchdog {}: {error}", self.path.display()))
    }

    /// Stops the device: there is nothing left to watch over.
    pub(super) fn close(mut self) -> io::Result<()> {
        self.device.write_all(b"V")
    }
}

/// Sets the time to the reset; answers what the device took.
#[expect(unsafe_code, reason = "there is no safe way to set a watchdog's time")]
fn set_timeout(device: &File) -> Result<i32, Errno> {
    let mut seconds = RESET_AFTER;
    // SAFETY: the request reads and writes one int, as its number says.
    unsafe { rustix::ioctl::ioctl(device, Updater::<SET_TIMEOUT, i32>::new(&mut seconds)) }?;
    Ok(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_fed_in_time_and_left_hungry_while_a_killed_service_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("watchdog");
        OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .open(&path)
            .expect("a file in its place");
        let at = BootTime::from_millis;
        let (mut dog, note) = Watchdog::open(&path, at(0)).expect("opens");
        assert!(note.contains("cannot be set"), "{note}");
        let fed = || std::fs::read(&path).expect("reads").len();
        assert_eq!((dog.feed(at(199), None), fed()), (None, 0));
        assert_eq!((dog.feed(at(200), None), fed()), (None, 1));
        assert_eq!((dog.feed(at(300), None), fed()), (None, 1));
        assert_eq!((dog.feed(at(1_199), Some(at(200))), fed()), (None, 2), "it may yet go");
        assert!(dog.feed(at(1_200), Some(at(200))).is_some(), "told");
        assert_eq!((dog.feed(at(2_000), Some(at(200))), fed()), (None, 2), "and not fed");
        assert_eq!((dog.feed(at(2_001), None), fed()), (None, 3), "it has gone after all");
        dog.close().expect("stops");
        assert_eq!(std::fs::read(&path).expect("reads").last(), Some(&b'V'));
        assert!(Watchdog::open(&folder.path().join("none"), at(0)).is_err());
    }
}

//! What the process engine wrote down about each service it started, so that the next agent
//! knows its own. A record names a process by pid, start time and boot; it proves nothing alone.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use flocker_base::{BootTime, ServiceId, durable};
use serde::{Deserialize, Serialize};

use super::{Launch, ProcessGroup};

const VERSION: u8 = 1;
const MOST_BYTES: usize = 1 << 20;
const EXTENSION: &str = "instance";

/// One started service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    /// The boot that the pid and the start time belong to.
    pub boot: String,
    pub pid: u32,
    pub start_ticks: u64,
    pub address: SocketAddr,
    pub started: BootTime,
    pub launch: Launch,
}

impl Record {
    pub(super) const fn group(&self) -> ProcessGroup {
        ProcessGroup {
            service: self.launch.service,
            leader: self.pid,
            start_ticks: self.start_ticks,
        }
    }

    /// Durable when it returns.
    pub(super) fn save(&self, folder: &Path) -> io::Result<()> {
        let content = serde_json::to_vec(self)?;
        durable::write(&path(folder, self.launch.service), VERSION, &content)
            .map_err(io::Error::other)
    }

    pub(super) fn remove(folder: &Path, service: ServiceId) -> io::Result<()> {
        match std::fs::remove_file(path(folder, service)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Every record in the folder. A damaged one stops with its name, for what it stood for may
    /// still run.
    pub(super) fn load_all(folder: &Path) -> Result<Vec<Self>, String> {
        let listing = |e: io::Error| format!("cannot list {}: {e}", folder.display());
        let mut records = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(listing)? {
            let path = entry.map_err(listing)?.path();
            if path.extension().is_none_or(|e| e != EXTENSION) {
                continue;
            }
            let read = durable::read(&path, VERSION, MOST_BYTES).map_err(|e| e.to_string())?;
            if let Some((_, content)) = read {
                let record = serde_json::from_slice(&content)
                    .map_err(|e| format!("{} is no record of ours: {e}", path.display()))?;
                records.push(record);
            }
        }
        Ok(records)
    }
}

fn path(folder: &Path, service: ServiceId) -> PathBuf {
    folder.join(format!("{service}.{EXTENSION}"))
}

/// This boot's id, as the kernel tells it.
pub(crate) fn boot_id() -> io::Result<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use flocker_base::{Epoch, Name, VolumeId};

    use super::*;

    fn record() -> Record {
        Record {
            boot: "b".to_owned(),
            pid: 42,
            start_ticks: 99,
            address: "127.0.0.1:20000".parse().expect("address"),
            started: BootTime::from_millis(1500),
            launch: Launch {
                service: ServiceId::from_bytes([1; 16]),
                name: Name::new("tally").expect("name"),
                volume: VolumeId::from_bytes([2; 16]),
                epoch: Epoch::new(0, 3),
                command: vec!["x".to_owned()],
                environment: [("A".to_owned(), "1".to_owned())].into(),
                folder: "/v".into(),
                host: "127.0.0.1".parse().expect("address"),
                health_path: None,
                stop_grace: Duration::from_secs(2),
            },
        }
    }

    #[test]
    fn what_is_stored_keeps_its_form() {
        let golden = concat!(
            r#"{"boot":"b","pid":42,"start_ticks":99,"address":"127.0.0.1:20000","#,
            r#""started":{"secs":1,"nanos":500000000},"launch":{"#,
            r#""service":"01010101-0101-0101-0101-010101010101","name":"tally","#,
            r#""volume":"02020202-0202-0202-0202-020202020202","#,
            r#""epoch":{"generation":0,"counter":3},"command":["x"],"environment":{"A":"1"},"#,
            r#""folder":"/v","host":"127.0.0.1","health_path":null,"#,
            r#""stop_grace":{"secs":2,"nanos":0}}}"#,
        );
        assert_eq!(serde_json::to_string(&record()).expect("encodes"), golden);
        assert_eq!(serde_json::from_str::<Record>(golden).expect("decodes"), record());
    }

    #[test]
    fn a_record_is_found_again_removed_once_and_a_damaged_one_is_named() {
        let folder = tempfile::tempdir().expect("folder");
        record().save(folder.path()).expect("saves");
        assert_eq!(Record::load_all(folder.path()).expect("loads"), [record()]);
        let service = record().launch.service;
        let file = path(folder.path(), service);
        let whole = std::fs::read(&file).expect("reads");
        durable::write_plain(&file, &whole[..whole.len() - 1], 0o600).expect("writes");
        let error = Record::load_all(folder.path()).expect_err("refused");
        assert!(error.contains("damaged") && error.contains(&service.to_string()), "{error}");
        Record::remove(folder.path(), service).expect("removes");
        Record::remove(folder.path(), service).expect("is gone already");
        assert_eq!(Record::load_all(folder.path()).expect("loads"), []);
    }
}

//! Where things are unless the command line says otherwise.

use std::path::PathBuf;

use flocker_base::{Name, NameError};

/// The state folder.
pub(super) fn state_dir() -> PathBuf {
    if is_root() {
        return PathBuf::from("/var/lib/flocker");
    }
    folder("XDG_STATE_HOME")
        .or_else(|| folder("HOME").map(|home| home.join(".local/state")))
        .unwrap_or_else(std::env::temp_dir)
        .join("flocker")
}

/// The API's socket.
pub(super) fn socket() -> PathBuf {
    if is_root() {
        return PathBuf::from("/run/flocker/flocker.sock");
    }
    folder("XDG_RUNTIME_DIR")
        .map_or_else(state_dir, |runtime| runtime.join("flocker"))
        .join("flocker.sock")
}

/// What to call this machine: its host name, as far as that is a name, else `node`.
pub(super) fn node_name() -> Result<Name, NameError> {
    let uname = rustix::system::uname();
    name_from_host(&uname.nodename().to_string_lossy()).map_or_else(|| Name::new("node"), Ok)
}

/// Whether this process may do anything.
pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn folder(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from).filter(|folder| folder.is_absolute())
}

fn name_from_host(host: &str) -> Option<Name> {
    let first = host.split('.').next().unwrap_or_default();
    let tame: String = first
        .chars()
        .map(|c| c.to_ascii_lowercase())
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' })
        .take(Name::MAX_LEN)
        .collect();
    Name::new(tame.trim_matches('-')).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_become_names() {
        for (host, name) in [
            ("web1.example.com", Some("web1")),
            ("My_Laptop", Some("my-laptop")),
            ("-x-", Some("x")),
            ("", None),
            ("___", None),
        ] {
            assert_eq!(name_from_host(host).as_ref().map(Name::as_str), name, "{host}");
        }
        assert_eq!(name_from_host(&"x".repeat(80)).expect("a name").as_str().len(), 63);
    }
}

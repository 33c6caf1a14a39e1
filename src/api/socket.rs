//! The unix socket that the API is served on.
//!
//! It must never take the socket of an agent that lives: a lock file tells agents apart that
//! start together, and a socket file is replaced only if nobody answers on it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::{UnixListener, UnixStream};

use super::error::{ApiError, ErrorCode};

/// How long the owner of a socket file is given to accept.
const PROBE: Duration = Duration::from_secs(1);
/// Connections that the kernel queues.
const BACKLOG: i32 = 128;
/// Owner and group may connect. Whoever can is as good as root of the cluster.
const MODE: u32 = 0o660;

/// A listening API socket. Dropping it removes its file.
#[derive(Debug)]
pub struct ApiSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the socket file, so that only our own is removed.
    identity: (u64, u64),
    /// Held for as long as the socket is.
    _lock: File,
}

impl ApiSocket {
    /// Makes the socket, and its folder (0700) if there is none. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`ErrorCode::AlreadyRunning`] if an agent answers there; otherwise why it can't be made.
    pub async fn bind(path: &Path) -> Result<Self, ApiError> {
        let address = SocketAddrUnix::new(path).map_err(|error| {
            failed(path, "use", &error.into()).hint("choose a shorter path with --socket")
        })?;
        make_folder(path)?;
        let lock = take_lock(path)?;
        clear_stale(path).await?;
        let (listener, identity) =
            listen(path, &address).map_err(|error| failed(path, "make", &error))?;
        Ok(Self { listener, path: path.to_owned(), identity, _lock: lock })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next connection. Cancel safe.
    ///
    /// # Errors
    /// Those of `accept`, such as too many open files.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

impl Drop for ApiSocket {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == self.identity);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(socket = %self.path.display(), %error, "left the API socket behind");
        }
    }
}

/// The mode is set before the socket listens, so that nobody connects under another one.
fn listen(path: &Path, address: &SocketAddrUnix) -> io::Result<(UnixListener, (u64, u64))> {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    rustix::net::bind(&socket, address)?;
    fs::set_permissions(path, fs::Permissions::from_mode(MODE))?;
    let made = fs::symlink_metadata(path)?;
    rustix::net::listen(&socket, BACKLOG)?;
    let listener = UnixListener::from_std(std::os::unix::net::UnixListener::from(socket))?;
    Ok((listener, (made.dev(), made.ino())))
}

fn make_folder(path: &Path) -> Result<(), ApiError> {
    let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) else {
        return Ok(());
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|error| failed(path, "make the folder of", &error))
}

fn take_lock(path: &Path) -> Result<File, ApiError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        // A lock file that is a link was not made by an agent.
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(&name)
        .map_err(|error| failed(path, "lock", &error))?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(already_running(path)),
        Err(error) => Err(failed(path, "lock", &error.into())),
    }
}

/// Removes a socket file that nobody answers on.
async fn clear_stale(path: &Path) -> Result<(), ApiError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(path, "look at", &error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(ApiError::new(
                ErrorCode::AddressInUse,
                format!("{} exists and is not a socket", path.display()),
            )
            .hint("move it away or choose another place with --socket"));
        }
        Ok(_) => {}
    }
    match tokio::time::timeout(PROBE, UnixStream::connect(path)).await {
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!(socket = %path.display(), "replacing the socket of an agent that ended");
            fs::remove_file(path).map_err(|error| failed(path, "replace", &error))
        }
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(failed(path, "connect to", &error))
        }
        // It accepts, or its queue is full, or it hangs: someone has it.
        Ok(_) | Err(_) => Err(already_running(path)),
    }
}

fn already_running(path: &Path) -> ApiError {
    ApiError::new(
        ErrorCode::AlreadyRunning,
        format!("an agent already runs here: it answers on {}", path.display()),
    )
    .hint("look at it with 'flocker status', or run a second one with its own --socket, --state-dir and ports")
}

fn failed(path: &Path, attempt: &str, error: &io::Error) -> ApiError {
    let code = match error.kind() {
        io::ErrorKind::PermissionDenied => ErrorCode::NotPermitted,
        io::ErrorKind::AddrInUse => ErrorCode::AddressInUse,
        _ => ErrorCode::Internal,
    };
    ApiError::new(code, format!("can't {attempt} the API socket {}: {error}", path.display()))
        .hint("choose another place with --socket, or make this one writable")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_live_socket_is_refused_and_a_stale_one_replaced() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("made").join("flocker.sock");
        let first = ApiSocket::bind(&path).await.expect("binds");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o660);
        assert_eq!(mode(path.parent().expect("folder")), 0o700);
        let second = ApiSocket::bind(&path).await.expect_err("refused");
        assert_eq!(second.code, ErrorCode::AlreadyRunning);
        drop(first);
        assert!(!path.exists(), "an agent that ends removes its socket");

        drop(std::os::unix::net::UnixListener::bind(&path).expect("leaves a stale file"));
        assert!(path.exists());
        drop(ApiSocket::bind(&path).await.expect("replaces it"));
    }

    #[tokio::test]
    async fn a_socket_that_someone_else_answers_on_is_left_alone() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("flocker.sock");
        let other = std::os::unix::net::UnixListener::bind(&path).expect("binds");
        let error = ApiSocket::bind(&path).await.expect_err("refused");
        assert_eq!(error.code, ErrorCode::AlreadyRunning);
        assert!(path.exists());
        drop(other);
    }

    #[tokio::test]
    async fn files_and_endless_paths_are_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("notes.txt");
        OpenOptions::new().write(true).create_new(true).open(&path).expect("file");
        let error = ApiSocket::bind(&path).await.expect_err("refused");
        assert!(error.message.contains("not a socket"), "{error}");
        assert!(path.exists());
        let long = folder.path().join("x".repeat(200));
        let error = ApiSocket::bind(&long).await.expect_err("refused");
        assert!(error.hint.contains("shorter"), "{error:?}");
    }
}

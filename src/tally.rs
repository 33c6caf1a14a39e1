//! `flocker tally`: a small stateful HTTP service, for the demo and for tests.
//!
//! ```text
//!   POST /        append the body as one line, answer {"count": n} once it is on the disk
//!   GET  /        {"count": n, "checksum": "16 hex digits"}
//!   GET  /entries the lines themselves
//!   GET  /healthz "ok"
//! ```
//!
//! Its state is the file `log` in its volume and nothing else. A line is acknowledged only after
//! an fsync that covers it; posts that arrive together share one. It must never acknowledge what
//! a power cut could take back. A line whose answer was lost on the way may be there all the same.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

mod journal;
mod routes;
mod writer;

pub use journal::{Checksum, JournalError};

/// How the service is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TallyOptions {
    /// The volume.
    pub folder: PathBuf,
    /// The address to listen on.
    pub host: IpAddr,
    /// The port; 0 takes any.
    pub port: u16,
    /// After SIGTERM, how long requests in flight may take.
    pub grace: Duration,
}

impl TallyOptions {
    /// What the engine passes in the environment: `FLOCKER_VOLUME`, `HOST` and `PORT`.
    ///
    /// # Errors
    /// Which variable is missing or wrong.
    pub fn from_environment() -> anyhow::Result<Self> {
        let wanted =
            "'flocker tally' is a service: deploy it, or set FLOCKER_VOLUME, HOST and PORT";
        let folder = std::env::var_os("FLOCKER_VOLUME");
        let folder = folder.with_context(|| format!("FLOCKER_VOLUME is not set: {wanted}"))?;
        let host = std::env::var("HOST").with_context(|| format!("HOST is not set: {wanted}"))?;
        let port = std::env::var("PORT").with_context(|| format!("PORT is not set: {wanted}"))?;
        Ok(Self {
            folder: folder.into(),
            host: host.parse().with_context(|| format!("HOST '{host}' is not an address"))?,
            port: port.parse().with_context(|| format!("PORT '{port}' is not a port"))?,
            grace: Duration::from_secs(5),
        })
    }
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// When the volume or the port cannot be had, and when the disk fails: what it holds is then
/// unknown, and the next start finds out.
pub async fn run(options: TallyOptions) -> anyhow::Result<()> {
    let mut term = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut int = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let stop = CancellationToken::new();
    let address = SocketAddr::new(options.host, options.port);
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}: is the port taken?"))?;
    let serving = serve(options, listener, stop.clone());
    tokio::pin!(serving);
    tokio::select! {
        outcome = &mut serving => return outcome,
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    stop.cancel();
    serving.await
}

/// Serves on this listener until told to stop; then finishes what is in flight, within the grace.
///
/// # Errors
/// As [`run`].
pub async fn serve(
    options: TallyOptions,
    listener: TcpListener,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let (folder, grace) = (options.folder, options.grace);
    let opened = tokio::task::spawn_blocking(move || journal::Journal::open(&folder)).await?;
    let (mut writer, handle) = writer::start(opened?);
    let app = routes::routes(handle);
    let http = axum::serve(listener, app)
        .with_graceful_shutdown(stop.clone().cancelled_owned())
        .into_future();
    let bounded = async {
        tokio::pin!(http);
        tokio::select! {
            outcome = &mut http => return outcome,
            () = stop.cancelled() => {}
        }
        tokio::time::timeout(grace, http).await.unwrap_or_else(|_| {
            tracing::warn!("requests were cut off when the grace of {grace:?} was over");
            Ok(())
        })
    };
    tokio::select! {
        outcome = bounded => outcome.context("cannot serve")?,
        failure = &mut writer => {
            failure.context("the writer died")??;
            bail!("the writer ended by itself");
        }
    }
    match tokio::time::timeout(grace, writer).await {
        Ok(ended) => Ok(ended.context("the writer died")??),
        Err(_) => bail!("the disk did not answer within {grace:?}"),
    }
}

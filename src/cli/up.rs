//! `flocker up`: from arguments to the agent's options. Says no before anything is made.

use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use tracing_subscriber::EnvFilter;

use super::args::{self, Http, LogFormat};
use super::commands::Context;
use super::options::{OutsideFiles, UpOptions};
use super::{failure, joining, place};
use crate::api::{ApiError, ErrorCode};

/// Largest seed or join file.
const MAX_FILE: u64 = 1024 * 1024;
/// Most seeds.
const MAX_SEEDS: usize = 1024;

/// The options, with every default filled in.
pub(super) fn options(context: &Context, args: args::Up) -> Result<UpOptions, ApiError> {
    if args.control_port == args.data_port && args.control_port != 0 {
        let what = format!("the control and the data port are both {}", args.data_port);
        return Err(ApiError::new(ErrorCode::Usage, what)
            .hint("give --control-port and --data-port different numbers"));
    }
    let join = match &args.join_file {
        Some(path) => Some(read(path, "the join file")?.trim().to_owned()),
        None => args.join,
    };
    let token = match &args.token_file {
        Some(path) => Some(read(path, "the token file")?.trim().to_owned()),
        None => args.token,
    };
    // An empty variable is no seed, and a list may end with a comma.
    let mut seeds: Vec<String> = args.seeds.iter().map(|seed| seed.trim().to_owned()).collect();
    seeds.retain(|seed| !seed.is_empty());
    for path in &args.seed_file {
        let text = read(path, "the seed file")?;
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
        seeds.extend(lines.filter(|line| !line.is_empty()).map(str::to_owned));
    }
    check_seeds(&seeds)?;
    let state_dir = args.state_dir.unwrap_or_else(place::state_dir);
    let has_joined = ["identity", "outside"].iter().any(|file| state_dir.join(file).exists());
    let join = joining::line(join, token, &seeds, has_joined)?;
    let outside = match (args.ca_cert, args.cert, args.key) {
        (Some(ca_cert), Some(cert), Some(key)) => Some(OutsideFiles { ca_cert, cert, key }),
        // The arguments require each other.
        _ => None,
    };
    let default_name = place::node_name()
        .map_err(|error| ApiError::new(ErrorCode::Usage, error.to_string()).hint("give --name"))?;
    Ok(UpOptions {
        join,
        name: args.name,
        default_name,
        region: args.region,
        zone: args.zone,
        state_dir,
        socket: context.socket(),
        bind: args.bind,
        control_port: args.control_port,
        data_port: args.data_port,
        http: http(args.http),
        advertise: args.advertise,
        public: args.public_address,
        lease: args.lease,
        replace_after: args.replace_after,
        watchdog: args.watchdog,
        quarantine_after: args.quarantine_after,
        seeds,
        outside,
        exit_with_parent: args.exit_with_parent,
        style: context.style(),
    })
}

fn http(given: Option<Http>) -> Option<SocketAddr> {
    match given {
        Some(Http::Nowhere) => None,
        Some(Http::At(address)) => Some(address),
        None if place::is_root() => Some((IpAddr::V6(Ipv6Addr::UNSPECIFIED), 80).into()),
        None => Some((IpAddr::V4(Ipv4Addr::LOCALHOST), 8080).into()),
    }
}

fn check_seeds(seeds: &[String]) -> Result<(), ApiError> {
    if seeds.len() > MAX_SEEDS {
        let what = format!("{} seeds are too many", seeds.len());
        return Err(ApiError::new(ErrorCode::Usage, what)
            .hint(format!("a few are enough, {MAX_SEEDS} the most")));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-_:[]%".contains(c);
    match seeds.iter().find(|seed| seed.is_empty() || !seed.chars().all(plain)) {
        None => Ok(()),
        Some(seed) => {
            let shown: String = seed.chars().take(80).collect();
            Err(ApiError::new(ErrorCode::Usage, format!("the seed '{shown}' is no address"))
                .hint("write it as HOST, HOST:PORT or [IPV6]:PORT"))
        }
    }
}

fn read(path: &Path, what: &str) -> Result<String, ApiError> {
    let mut text = String::new();
    let outcome = if path == Path::new("-") {
        io::stdin().lock().take(MAX_FILE).read_to_string(&mut text)
    } else {
        File::open(path).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text))
    };
    outcome.map(|_| text).map_err(|error| {
        failure::of_io(format!("can't read {what} {}: {error}", path.display()), &error)
    })
}

/// Logs to the standard error.
pub(super) fn log(filter: &str, format: LogFormat, colour: bool) -> Result<(), ApiError> {
    let filter = EnvFilter::builder().parse(filter).map_err(|error| {
        ApiError::new(ErrorCode::Usage, format!("the log filter is not understood: {error}"))
            .hint("give a level such as 'info', or 'info,flocker_gossip=debug'")
    })?;
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colour).with_writer(io::stderr);
    let outcome = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    outcome.map_err(|error| ApiError::internal(format!("can't log: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_checked_by_their_form() {
        check_seeds(&["a:1".to_owned(), "[::1]:4523".to_owned()]).expect("good");
        assert!(check_seeds(&[String::new()]).is_err());
        assert!(check_seeds(&["a b".to_owned()]).is_err());
        assert!(check_seeds(&vec!["a".to_owned(); MAX_SEEDS + 1]).is_err());
    }

    #[test]
    fn http_has_a_place_unless_told_otherwise() {
        assert_eq!(http(Some(Http::Nowhere)), None);
        assert!(http(None).is_some());
    }
}

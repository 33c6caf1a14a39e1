//! The tree of a deployment file as a [`Deployment`]: every key known, every value checked.
//!
//! A key of Compose that we do not support is refused by name with what to do instead; it is
//! never ignored, because a service that runs without it would not be what was asked for.

use std::collections::BTreeMap;

use flocker_base::Name;
use flocker_gossip::model::{EngineKind, Failover};

use super::error::Problem;
use super::read::{self, Fields, Known};
use super::yaml::{Entry, Node, Value};
use super::{Deployment, RouteDraft, ServiceDraft, VolumeDraft};

/// Most services and most volumes of one file.
const MAX_RECORDS: usize = 1_000;
/// Longest stop grace: an hour.
const MAX_GRACE_MS: u64 = 3_600_000;
/// Compose's own default.
const DEFAULT_GRACE_MS: u64 = 10_000;
/// Most copies of one kind.
const MAX_REPLICAS: u8 = 7;

const TOP: Known = Known {
    keys: &["services", "volumes", "name", "version"],
    unsupported: &[
        ("networks", "services reach each other through routes"),
        ("secrets", "pass what the service needs in 'environment'"),
        ("configs", "put the file into the service's volume"),
        ("include", "write one file"),
    ],
    extensions: true,
};

const SERVICE: Known = Known {
    keys: &["command", "environment", "volumes", "stop_grace_period", "x-flocker"],
    unsupported: &[
        ("image", "this version runs plain processes; give 'command' alone"),
        ("build", "this version runs plain processes; give 'command' alone"),
        ("ports", "give a public name in 'x-flocker.routes'; the service listens on $HOST:$PORT"),
        ("expose", "the service listens on $HOST:$PORT"),
        ("healthcheck", "give a path in 'x-flocker.health'"),
        ("entrypoint", "write it at the head of 'command'"),
        ("env_file", "write the variables in 'environment'"),
        ("deploy", "give replicas in the volume's 'x-flocker'"),
        ("restart", "a service is always restarted; leave it out"),
        ("depends_on", "services start on their own; leave it out"),
        ("networks", "services reach each other through routes"),
        ("links", "services reach each other through routes"),
        ("secrets", "pass what the service needs in 'environment'"),
        ("scale", "a service with a volume runs in one place"),
        ("container_name", "services have the name of their key"),
        ("user", "processes run as the agent's user"),
        ("working_dir", "start the command with 'env -C FOLDER'"),
    ],
    extensions: false,
};

const SERVICE_FLOCKER: Known = Known::plain(&["engine", "health", "routes"]);

const VOLUME: Known = Known {
    keys: &["x-flocker", "name"],
    unsupported: &[
        ("driver", "every volume here is kept by flocker; leave it out"),
        ("driver_opts", "give options in 'x-flocker'"),
        ("external", "name the volume; one that exists is taken as it is"),
        ("labels", "leave it out"),
    ],
    extensions: false,
};

const VOLUME_FLOCKER: Known =
    Known::plain(&["replicas", "remote-replicas", "snapshot-every", "lag-limit", "failover"]);

const MOUNT: Known = Known {
    keys: &["type", "source", "target"],
    unsupported: &[
        ("read_only", "a service owns its volume; leave it out"),
        ("volume", "leave it out"),
        ("bind", "only volumes can be mounted"),
        ("tmpfs", "only volumes can be mounted"),
        ("consistency", "leave it out"),
    ],
    extensions: false,
};

/// Reads the whole file's tree.
pub(super) fn deployment(root: Node) -> Result<Deployment, Problem> {
    let mut top = Fields::open(root, "", &TOP)?;
    let _ = (top.take("name"), top.take("version"));
    let volumes = match top.take("volumes") {
        Some(entry) => named(entry, "volumes", volume)?,
        None => BTreeMap::new(),
    };
    let Some(services) = top.take("services") else {
        return Err(Problem::new(0, "services", "the file describes no services")
            .hint("add 'services:' with at least one"));
    };
    let at = services.line;
    let services = named(services, "services", service)?;
    if services.is_empty() {
        return Err(Problem::new(at, "services", "no service is described")
            .hint("add at least one, such as 'web:' with its 'command'"));
    }
    combine(volumes, services)
}

/// A service as its own section has it, and where it said what must fit the other sections.
struct Service {
    draft: ServiceDraft,
    mount_line: usize,
    mount_path: String,
    routes: Vec<(String, usize, String)>,
}

/// Checks what concerns more than one section.
fn combine(
    volumes: BTreeMap<Name, VolumeDraft>,
    services: BTreeMap<Name, Service>,
) -> Result<Deployment, Problem> {
    let mut used: BTreeMap<Name, Name> = BTreeMap::new();
    let mut hosts: BTreeMap<String, Name> = BTreeMap::new();
    let mut drafts = Vec::new();
    for (name, service) in services {
        let volume = &service.draft.volume;
        if !volumes.contains_key(volume) {
            let names = volumes.keys().map(Name::as_str);
            return Err(Problem::new(
                service.mount_line,
                &service.mount_path,
                format!("there is no volume '{volume}' in 'volumes'"),
            )
            .hint(
                read::did_you_mean(volume.as_str(), names)
                    .unwrap_or_else(|| format!("add it there: 'volumes: {{{volume}: {{}}}}'")),
            ));
        }
        if let Some(other) = used.insert(volume.clone(), name.clone()) {
            return Err(Problem::new(
                service.mount_line,
                &service.mount_path,
                format!("the volume '{volume}' is used by '{other}' as well"),
            )
            .hint("give each service a volume of its own"));
        }
        for (host, line, path) in service.routes {
            if let Some(other) = hosts.insert(host.clone(), name.clone()) {
                let what = format!("the route http://{host} is given to '{other}' as well");
                return Err(Problem::new(line, &path, what).hint("give each route once"));
            }
        }
        drafts.push(service.draft);
    }
    Ok(Deployment {
        volumes: volumes.into_values().collect(),
        services: drafts,
        routes: hosts.into_iter().map(|(host, service)| RouteDraft { host, service }).collect(),
    })
}

/// A section of records by name.
fn named<T>(
    section: Entry,
    path: &str,
    read_one: impl Fn(Name, Entry, &str) -> Result<T, Problem>,
) -> Result<BTreeMap<Name, T>, Problem> {
    let line = section.line;
    let entries = match section.value.value {
        Value::Null => Vec::new(),
        Value::Map(entries) => entries,
        other => {
            let what = format!("a mapping of names is needed, not {}", other.kind());
            return Err(Problem::new(line, path, what));
        }
    };
    if entries.len() > MAX_RECORDS {
        let what = format!("{} are too many for one file", entries.len());
        return Err(
            Problem::new(line, path, what).hint(format!("deploy at most {MAX_RECORDS} at a time"))
        );
    }
    entries
        .into_iter()
        .map(|entry| {
            let path = format!("{path}.{}", read::shown(&entry.key));
            let name = Name::new(entry.key.as_str())
                .map_err(|error| Problem::new(entry.line, &path, error.to_string()))?;
            Ok((name.clone(), read_one(name, entry, &path)?))
        })
        .collect()
}

fn volume(name: Name, entry: Entry, path: &str) -> Result<VolumeDraft, Problem> {
    let mut draft = VolumeDraft::with_defaults(name);
    let mut fields = Fields::open(entry.value, path, &VOLUME)?;
    if let Some(given) = fields.take("name") {
        let text = read::text(&given.value, &format!("{path}.name"))?;
        draft.name = Name::new(text).map_err(|error| {
            Problem::new(given.line, &format!("{path}.name"), error.to_string())
        })?;
        if draft.name.as_str() != entry.key {
            let what = "a volume has the name of its key";
            return Err(Problem::new(given.line, &format!("{path}.name"), what)
                .hint(format!("rename the key to '{}' and leave 'name' out", draft.name)));
        }
    }
    let Some(flocker) = fields.take("x-flocker") else {
        return Ok(draft);
    };
    let path = format!("{path}.x-flocker");
    let mut fields = Fields::open(flocker.value, &path, &VOLUME_FLOCKER)?;
    if let Some(entry) = fields.take("replicas") {
        draft.replicas = read::count(&entry.value, &format!("{path}.replicas"), MAX_REPLICAS)?;
    }
    if let Some(entry) = fields.take("remote-replicas") {
        let path = format!("{path}.remote-replicas");
        draft.remote_replicas = read::count(&entry.value, &path, MAX_REPLICAS)?;
    }
    if let Some(entry) = fields.take("snapshot-every") {
        let path = format!("{path}.snapshot-every");
        draft.snapshot_every_ms = read::span(&entry.value, &path, 100, 86_400_000)?;
    }
    if let Some(entry) = fields.take("lag-limit") {
        let path = format!("{path}.lag-limit");
        draft.lag_limit_ms = read::span(&entry.value, &path, 100, 31_536_000_000)?;
        if draft.lag_limit_ms < draft.snapshot_every_ms {
            let what = "smaller than 'snapshot-every': no replica could ever take over by itself";
            return Err(Problem::new(entry.line, &path, what)
                .hint("make it at least twice 'snapshot-every'"));
        }
    }
    if let Some(entry) = fields.take("failover") {
        let choices = [
            ("auto", Failover::Auto),
            ("in-region", Failover::InRegion),
            ("manual", Failover::Manual),
        ];
        draft.failover = read::choice(&entry.value, &format!("{path}.failover"), &choices)?;
    }
    Ok(draft)
}

fn service(name: Name, entry: Entry, path: &str) -> Result<Service, Problem> {
    let line = entry.line;
    let mut fields = Fields::open(entry.value, path, &SERVICE)?;
    let Some(command) = fields.take("command") else {
        return Err(Problem::new(line, path, "the service has no 'command'")
            .hint("add one, such as: command: [flocker, tally]"));
    };
    let command = words(command, &format!("{path}.command"))?;
    let environment = match fields.take("environment") {
        Some(entry) => variables(entry, &format!("{path}.environment"))?,
        None => BTreeMap::new(),
    };
    let volumes_path = format!("{path}.volumes");
    let Some(volumes) = fields.take("volumes") else {
        return Err(Problem::new(line, &volumes_path, "the service has no volume")
            .hint("give it one, such as: volumes: [data:/data]"));
    };
    let (mount_line, mount_path, volume, volume_path) = mount(volumes, &volumes_path)?;
    let stop_grace_ms = match fields.take("stop_grace_period") {
        Some(entry) => {
            read::span(&entry.value, &format!("{path}.stop_grace_period"), 0, MAX_GRACE_MS)?
        }
        None => DEFAULT_GRACE_MS,
    };
    let (engine, health_path, routes) = match fields.take("x-flocker") {
        Some(entry) => service_extension(entry, &format!("{path}.x-flocker"))?,
        None => (EngineKind::Process, None, Vec::new()),
    };
    let draft = ServiceDraft {
        name,
        command,
        environment,
        volume,
        volume_path,
        health_path,
        stop_grace_ms,
        engine,
    };
    Ok(Service { draft, mount_line, mount_path, routes })
}

type Extension = (EngineKind, Option<String>, Vec<(String, usize, String)>);

fn service_extension(entry: Entry, path: &str) -> Result<Extension, Problem> {
    let mut fields = Fields::open(entry.value, path, &SERVICE_FLOCKER)?;
    let engine = match fields.take("engine") {
        Some(entry) => {
            let choices = [("process", EngineKind::Process)];
            read::choice(&entry.value, &format!("{path}.engine"), &choices)?
        }
        None => EngineKind::Process,
    };
    let health = match fields.take("health") {
        Some(entry) => Some(health_path(&entry, &format!("{path}.health"))?),
        None => None,
    };
    let mut routes = Vec::new();
    if let Some(entry) = fields.take("routes") {
        let path = format!("{path}.routes");
        for (index, item) in read::list(entry.value, &path)?.into_iter().enumerate() {
            let path = format!("{path}[{index}]");
            let host = host(&item, &path)?;
            routes.push((host, item.line, path));
        }
    }
    Ok((engine, health, routes))
}

fn health_path(entry: &Entry, path: &str) -> Result<String, Problem> {
    let text = read::text(&entry.value, path)?;
    let good = text.starts_with('/')
        && text.len() <= 1024
        && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    if good {
        Ok(text.to_owned())
    } else {
        let what = format!("'{}' is not the path of a URL", read::shown(text));
        Err(Problem::new(entry.line, path, what).hint("write one such as '/healthz'"))
    }
}

/// The host of a route such as `http://shop.example.com`.
fn host(item: &Node, path: &str) -> Result<String, Problem> {
    let text = read::text(item, path)?;
    let wrong = |why: &str| {
        Problem::new(item.line, path, format!("'{}' is not a route: {why}", read::shown(text)))
            .hint("write one such as 'http://shop.example.com'")
    };
    let Some(rest) = text.strip_prefix("http://") else {
        return Err(wrong("it has to begin with 'http://'"));
    };
    let host = rest.strip_suffix('/').unwrap_or(rest).to_ascii_lowercase();
    if host.contains('/') {
        return Err(wrong("a path can't be routed, only a whole host"));
    }
    if host.contains(':') {
        return Err(wrong("the port is the proxy's own, leave it out"));
    }
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if host.len() <= 253 && host.split('.').all(label) {
        Ok(host)
    } else {
        Err(wrong("the host is not a DNS name"))
    }
}

/// A command: a list of words, or a string split as a shell would.
fn words(entry: Entry, path: &str) -> Result<Vec<String>, Problem> {
    let line = entry.line;
    let words = match entry.value.value {
        Value::Scalar(text) => super::words::split(&text).map_err(|what| {
            Problem::new(line, path, what).hint("close it, or write the command as a list")
        })?,
        value => {
            let items = read::list(Node { line, value }, path)?;
            items
                .iter()
                .enumerate()
                .map(|(index, item)| {
                    read::text_or_empty(item, &format!("{path}[{index}]")).map(str::to_owned)
                })
                .collect::<Result<_, _>>()?
        }
    };
    if words.first().is_none_or(String::is_empty) {
        return Err(Problem::new(line, path, "the command names no program")
            .hint("begin it with a program, such as: command: [flocker, tally]"));
    }
    Ok(words)
}

/// `environment` as a mapping or as a list of `NAME=value`.
fn variables(entry: Entry, path: &str) -> Result<BTreeMap<String, String>, Problem> {
    let line = entry.line;
    let mut found = BTreeMap::new();
    let pairs: Vec<(usize, String, String)> = match entry.value.value {
        Value::Null => Vec::new(),
        Value::Map(entries) => entries
            .iter()
            .map(|entry| {
                let below = format!("{path}.{}", read::shown(&entry.key));
                let value = read::text_or_empty(&entry.value, &below)?;
                Ok((entry.line, entry.key.clone(), value.to_owned()))
            })
            .collect::<Result<_, _>>()?,
        value => read::list(Node { line, value }, path)?
            .iter()
            .enumerate()
            .map(|(index, item)| {
                let below = format!("{path}[{index}]");
                let text = read::text(item, &below)?;
                let Some((name, value)) = text.split_once('=') else {
                    let what = format!("'{}' has no '='", read::shown(text));
                    return Err(Problem::new(item.line, &below, what)
                        .hint(format!("write '{text}=value' or '{text}=${{{text}}}'")));
                };
                Ok((item.line, name.to_owned(), value.to_owned()))
            })
            .collect::<Result<_, _>>()?,
    };
    for (line, name, value) in pairs {
        let good = !name.is_empty()
            && !name.starts_with(|first: char| first.is_ascii_digit())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if !good {
            let what = format!("'{}' is not the name of a variable", read::shown(&name));
            return Err(Problem::new(line, path, what).hint("use letters, digits and '_'"));
        }
        if RESERVED.contains(&name.as_str()) {
            let what = format!("{name} is given by flocker itself");
            return Err(Problem::new(line, path, what).hint("leave it out"));
        }
        if found.insert(name.clone(), value).is_some() {
            return Err(Problem::new(line, path, format!("{name} is given twice")));
        }
    }
    Ok(found)
}

/// What the engine sets for every service.
const RESERVED: [&str; 3] = ["HOST", "PORT", "FLOCKER_VOLUME"];

/// The one volume of a service: its line, the path to it, its name, where it is mounted.
fn mount(entry: Entry, path: &str) -> Result<(usize, String, Name, String), Problem> {
    let line = entry.line;
    let mut items = read::list(entry.value, path)?;
    let (1, Some(item)) = (items.len(), items.pop()) else {
        let what = "a service has exactly one volume";
        return Err(Problem::new(line, path, what).hint("write it as: volumes: [data:/data]"));
    };
    let path = format!("{path}[0]");
    let line = item.line;
    let (source, target) = match item.value {
        Value::Scalar(text) => short_mount(&text, line, &path)?,
        value => long_mount(Node { line, value }, &path)?,
    };
    if source.starts_with(['/', '.', '~']) {
        let what = format!("'{}' is a folder of one machine", read::shown(&source));
        return Err(Problem::new(line, &path, what)
            .hint("name a volume of the section 'volumes' instead: it follows its service"));
    }
    let name = Name::new(source).map_err(|error| Problem::new(line, &path, error.to_string()))?;
    let plain = target.starts_with('/')
        && target.len() <= 1024
        && !target.split('/').any(|part| part == "..")
        && !target.chars().any(char::is_control);
    if !plain {
        let what = format!("'{}' is not an absolute path", read::shown(&target));
        return Err(Problem::new(line, &path, what).hint("write it as: volumes: [data:/data]"));
    }
    Ok((line, path, name, target))
}

fn short_mount(text: &str, line: usize, path: &str) -> Result<(String, String), Problem> {
    let parts: Vec<&str> = text.split(':').collect();
    match parts[..] {
        [source, target] | [source, target, "rw"] => Ok((source.to_owned(), target.to_owned())),
        [_, _, mode] => {
            let what = format!("the mode '{}' is not supported", read::shown(mode));
            Err(Problem::new(line, path, what).hint("leave it out"))
        }
        _ => {
            let what = format!("'{}' does not name a volume and a path", read::shown(text));
            Err(Problem::new(line, path, what).hint("write it as: volumes: [data:/data]"))
        }
    }
}

fn long_mount(node: Node, path: &str) -> Result<(String, String), Problem> {
    let line = node.line;
    let mut fields = Fields::open(node, path, &MOUNT)?;
    if let Some(entry) = fields.take("type") {
        read::choice(&entry.value, &format!("{path}.type"), &[("volume", ())])?;
    }
    let mut part = |key: &str| {
        let Some(entry) = fields.take(key) else {
            let what = format!("the mount has no '{key}'");
            return Err(Problem::new(line, path, what)
                .hint("write it as: {type: volume, source: data, target: /data}"));
        };
        read::text(&entry.value, &format!("{path}.{key}")).map(str::to_owned)
    };
    Ok((part("source")?, part("target")?))
}

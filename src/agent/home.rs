//! A node's own folder: its store, its identity, its name. Opening it makes a new cluster, joins
//! one, or finds what was there; it never replaces an identity.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use flocker_base::{Clock, ClusterId, Name, durable};
use flocker_gossip::identity::{Authority, NodeIdentity, Outside};
use flocker_gossip::join::{JoinString, KnownNode, Newcomer, Seed, Takes, join_as};
use flocker_gossip::store::{StateDb, StoreError};
use rand::Rng as _;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};

use super::advertised::Advertised;
use super::{outside, seeds};
use crate::api::{ApiError, ErrorCode};
use crate::cli::options::UpOptions;

const SETTINGS_VERSION: u8 = 1;
const MAX_SETTINGS: usize = 4096;
const DEFAULT_REGION: &str = "default";

/// A node's folder, opened.
#[derive(Debug)]
pub(super) struct Home {
    pub(super) folder: PathBuf,
    pub(super) db: StateDb,
    pub(super) identity: NodeIdentity,
    pub(super) name: Name,
    pub(super) region: Name,
    /// Nodes that the join told of.
    pub(super) known: Vec<KnownNode>,
    /// Where others are sought that are at no address in the book.
    pub(super) seeds: Vec<Seed>,
    /// Whether this start made the cluster.
    pub(super) founded: bool,
}

/// What a node keeps of its command line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Settings {
    name: Name,
    region: Name,
}

impl Home {
    /// Opens the folder; makes or joins a cluster if it has none.
    pub(super) async fn open(
        options: &UpOptions,
        clock: &dyn Clock,
        random: &mut StdRng,
    ) -> Result<Self> {
        let folder = options.state_dir.clone();
        make_private(&folder)?;
        let mut bytes = [0; 10];
        random.fill_bytes(&mut bytes);
        let db = StateDb::open(&folder.join("state.redb"), clock.wall(), bytes).map_err(
            |e| match e {
                StoreError::InUse { .. } => {
                    let error = ApiError::new(ErrorCode::AlreadyRunning, e.to_string());
                    anyhow::Error::from(error.hint("one agent a state folder"))
                }
                e => e.into(),
            },
        )?;
        let kept = read_settings(&folder)?;
        let mut settings = settle(options, kept.as_ref())?;
        let read = |files| outside::read(files, db.store_id(), clock.wall());
        let given = options.outside.as_ref().map(read).transpose()?;
        let found = outside::find(&folder, given.as_ref(), db.store_id())?;
        let fresh = found.is_none();
        if let (Some(identity), Some(text)) = (&found, &options.join) {
            let to: JoinString = text.parse()?;
            if to.token.ca != identity.authority().fingerprint() {
                bail!(
                    "this node belongs to cluster {}, and the token is of another: leave --join \
                     out, or use another --state-dir for a new node",
                    identity.cluster().short()
                );
            }
        }
        let (identity, known) = match found {
            Some(identity) => (identity, Vec::new()),
            None => Self::admit(options, &db, &mut settings, given, clock, random).await?,
        };
        if identity.store() != db.store_id() {
            bail!(
                "the identity in {} belongs to store {}, and the state there to store {}: they come \
                 from different nodes. Put the files that belong together back, or move both away to \
                 start as a new node",
                folder.display(),
                identity.store().short(),
                db.store_id().short()
            );
        }
        if fresh {
            // The settings first: an identity without them would be a node without a name.
            write_settings(&folder, &settings)?;
            identity.save(&folder)?;
        }
        // Also one that ended while the node was off: it is made here, with the key of the authority
        // that this folder holds, and no peer is asked.
        let identity = if identity.needs_renewal(clock.wall())? {
            let renewed = identity.renewed(clock.wall())?;
            renewed.save(&folder)?;
            renewed
        } else {
            identity
        };
        let founded = fresh && options.join.is_none();
        let seeds = seeds::of(&folder, options)?;
        Ok(Self {
            folder,
            db,
            identity,
            name: settings.name,
            region: settings.region,
            known,
            seeds,
            founded,
        })
    }

    async fn admit(
        options: &UpOptions,
        db: &StateDb,
        settings: &mut Settings,
        given: Option<Outside>,
        clock: &dyn Clock,
        random: &mut StdRng,
    ) -> Result<(NodeIdentity, Vec<KnownNode>)> {
        let Some(text) = &options.join else {
            let mut bytes = [0; 10];
            random.fill_bytes(&mut bytes);
            let cluster = ClusterId::new(clock.wall(), bytes);
            if let Some(given) = given {
                return Ok((NodeIdentity::outside(cluster, db.store_id(), given), Vec::new()));
            }
            let authority = Authority::generate(cluster, clock.wall())?;
            let identity = NodeIdentity::found(cluster, db.store_id(), authority, clock.wall())?;
            return Ok((identity, Vec::new()));
        };
        let mut to: JoinString = text.parse()?;
        for seed in &options.seeds {
            to.seeds.push(seed.parse()?);
        }
        let advertised = Advertised::of(options);
        let newcomer = Newcomer {
            store: db.store_id(),
            name: settings.name.clone(),
            region: settings.region.clone(),
            control: advertised.control,
            data: advertised.data,
            takes: Takes { name: options.name.is_none(), region: options.region.is_none() },
        };
        let joined = join_as(&to, &newcomer, given.as_ref()).await?;
        // The token's presets count where nobody chose.
        *settings = Settings { name: joined.name, region: joined.region };
        Ok((joined.identity, joined.known))
    }
}

fn settle(options: &UpOptions, kept: Option<&Settings>) -> Result<Settings> {
    let Some(kept) = kept else {
        let region = match &options.region {
            Some(region) => region.clone(),
            None => Name::new(DEFAULT_REGION)?,
        };
        let name = options.name.clone().unwrap_or_else(|| options.default_name.clone());
        return Ok(Settings { name, region });
    };
    for (what, given, kept) in [
        ("name", options.name.as_ref(), &kept.name),
        ("region", options.region.as_ref(), &kept.region),
    ] {
        if let Some(given) = given.filter(|g| *g != kept) {
            bail!(
                "this node's {what} is {kept}, not {given}: leave --{what} out, or use another \
                 --state-dir for another node"
            );
        }
    }
    Ok(kept.clone())
}

fn settings_file(folder: &Path) -> PathBuf {
    folder.join("node")
}

fn read_settings(folder: &Path) -> Result<Option<Settings>> {
    let path = settings_file(folder);
    let Some((_, bytes)) = durable::read(&path, SETTINGS_VERSION, MAX_SETTINGS)? else {
        return Ok(None);
    };
    let settings = serde_json::from_slice(&bytes)
        .with_context(|| format!("{} is no node's settings: move it away", path.display()))?;
    Ok(Some(settings))
}

fn write_settings(folder: &Path, settings: &Settings) -> Result<()> {
    let bytes = serde_json::to_vec(settings).context("cannot write the node's settings")?;
    Ok(durable::write(&settings_file(folder), SETTINGS_VERSION, &bytes)?)
}

fn make_private(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot make the state folder {}", folder.display()))?;
    let mode = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(folder, mode)
        .with_context(|| format!("cannot make {} private", folder.display()))
}

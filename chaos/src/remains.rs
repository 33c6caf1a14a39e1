//! What a dead agent left on its disk: identity, grants, epochs, map. It reads a copy, with the
//! product's own code, so that the agent finds its files exactly as it left them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use flocker_base::{Clock as _, ClusterId, Incarnation, StoreId, SystemClock, VolumeId, durable};
use flocker_gossip::identity::NodeIdentity;
use flocker_gossip::lease::record::{HolderRecord, SupportRecord, VoterRecord, decode};
use flocker_gossip::map::{Map, MapView};
use flocker_gossip::store::{MAP_FILE, StateDb};
use redb::{ReadableDatabase as _, ReadableTable as _, TableDefinition};

/// As the lease driver names its table and keys.
const LEASES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("leases");
const VOTER: u8 = b'v';
const SUPPORT: u8 = b's';
const HOLDER: u8 = b'h';
const SETTINGS_VERSION: u8 = 1;
const MAX_SETTINGS: usize = 4096;

/// Everything durable of one node, at the instant of its death.
#[derive(Debug)]
pub struct Remains {
    /// The store's id.
    pub store: StoreId,
    /// The cluster of its certificate.
    pub cluster: ClusterId,
    /// Its certificate.
    pub certificate: Vec<u8>,
    /// The node's name and region, as kept.
    pub settings: serde_json::Value,
    /// Of its last start.
    pub incarnation: Incarnation,
    /// What it granted, as a voter.
    pub voters: BTreeMap<VolumeId, VoterRecord>,
    /// What it knows of other stores, as a voter.
    pub supports: BTreeMap<StoreId, SupportRecord>,
    /// What it held.
    pub holders: BTreeMap<VolumeId, HolderRecord>,
    /// The placement map.
    pub map: Arc<MapView>,
}

impl Remains {
    /// Reads the state folder of an agent that is dead. The copy goes into `scratch`.
    ///
    /// # Errors
    /// If anything is missing or damaged: a SIGKILL must leave neither.
    pub fn read(state_dir: &Path, scratch: &Path) -> Result<Self> {
        Self::read_copy(state_dir, scratch)
            .with_context(|| format!("after a SIGKILL, {} is not sound", state_dir.display()))
    }

    fn read_copy(state_dir: &Path, scratch: &Path) -> Result<Self> {
        let copy = Copy::of(state_dir, scratch)?;
        let identity = NodeIdentity::load(state_dir)?.context("it has no identity")?;
        let settings = durable::read(&state_dir.join("node"), SETTINGS_VERSION, MAX_SETTINGS)?;
        let (_, settings) = settings.context("it has no settings")?;
        let settings = serde_json::from_slice(&settings).context("its settings are malformed")?;
        let clock = Arc::new(SystemClock);
        let db = StateDb::open(&copy.path, clock.wall(), [0; 10])?;
        let mut remains = Self {
            store: db.store_id(),
            cluster: identity.cluster(),
            certificate: identity.cert_der().to_vec(),
            settings,
            // Opening the copy was one more.
            incarnation: Incarnation(db.incarnation().0 - 1),
            voters: BTreeMap::new(),
            supports: BTreeMap::new(),
            holders: BTreeMap::new(),
            map: Map::open(db.open_map()?, db.store_id(), clock)?.view(),
        };
        if identity.store() != remains.store {
            bail!("its identity is of store {}, its state of {}", identity.store(), remains.store);
        }
        remains.read_leases(&db)?;
        Ok(remains)
    }

    fn read_leases(&mut self, db: &StateDb) -> Result<()> {
        let database = db.database();
        let read = database.begin_read().context("cannot read the store")?;
        let table = match read.open_table(LEASES) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(()),
            Err(error) => return Err(error).context("cannot read the leases"),
        };
        for entry in table.iter().context("cannot read the leases")? {
            let (key, value) = entry.context("cannot read a lease record")?;
            let (key, value) = (key.value(), value.value());
            let Some((kind, id)) = key.split_first() else { bail!("a lease record has no key") };
            let id = <[u8; 16]>::try_from(id);
            let damaged = || format!("the lease record {} is damaged", hex(key));
            match (*kind, id) {
                (VOTER, Ok(id)) => {
                    let record = decode(value).with_context(damaged)?;
                    self.voters.insert(VolumeId::from_bytes(id), record);
                }
                (SUPPORT, Ok(id)) => {
                    let record = decode(value).with_context(damaged)?;
                    self.supports.insert(StoreId::from_bytes(id), record);
                }
                (HOLDER, Ok(id)) => {
                    let record = decode(value).with_context(damaged)?;
                    self.holders.insert(VolumeId::from_bytes(id), record);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The root of its map, for people to compare.
    #[must_use]
    pub fn root(&self) -> String {
        hex(&self.map.root())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _written = write!(text, "{byte:02x}");
        text
    })
}

/// A copy of the databases, in a folder that goes when it is dropped.
struct Copy {
    folder: PathBuf,
    path: PathBuf,
}

impl Copy {
    fn of(state_dir: &Path, scratch: &Path) -> Result<Self> {
        let folder = scratch.join("remains");
        std::fs::create_dir_all(&folder).context("cannot make a folder for the copy")?;
        let path = folder.join("state.redb");
        for name in ["state.redb", MAP_FILE] {
            let file = state_dir.join(name);
            // An agent that died at its first start has no map yet; the store says if it had one.
            if name == MAP_FILE && !file.exists() {
                continue;
            }
            std::fs::copy(&file, folder.join(name))
                .with_context(|| format!("cannot copy {}", file.display()))?;
        }
        Ok(Self { folder, path })
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        // A copy left behind lies in the mesh's own folder and goes with it.
        drop(std::fs::remove_dir_all(&self.folder));
    }
}

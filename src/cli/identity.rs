//! `flocker identity csr`: this node's key and a request for its certificate, for an authority outside
//! the cluster. It asks no agent, prints no key, and never writes over one.

use std::fs;
use std::path::Path;

use flocker_base::{Clock as _, StoreId, SystemClock, durable};
use flocker_gossip::identity::{OutsideCluster, outside};
use flocker_gossip::store::{StateDb, StoreError};
use rand::rngs::{StdRng, SysRng};
use rand::{Rng as _, SeedableRng as _};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::args::IdentityCsr;
use super::commands::Context;
use super::output::{self, Ended};
use super::{failure, place};
use crate::api::{ApiError, ErrorCode, Schema};

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Csr {
    /// This node's store.
    store: StoreId,
    /// The name that the certificate must carry, alone.
    name: String,
    /// Where the private key is.
    key_file: String,
    /// The request, as PEM.
    csr: String,
}

impl Schema for Csr {
    const SCHEMA: &'static str = "flocker.csr/1";
}

pub(super) fn csr(context: &Context, args: &IdentityCsr) -> Result<(), Ended> {
    let folder = args.state_dir.clone().unwrap_or_else(place::state_dir);
    let store = store_of(&folder)?;
    let key_file = args.key.clone().unwrap_or_else(|| folder.join("node.key"));
    let key = match fs::read_to_string(&key_file) {
        Ok(pem) => Some(Zeroizing::new(pem)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => {
            let what = format!("can't read the key {}: {error}", key_file.display());
            return Err(failure::of_io(what, &error).into());
        }
    };
    let made = outside::request(store, key.as_ref().map(|pem| pem.as_str()))
        .map_err(|error| ApiError::internal(format!("{}: {error}", key_file.display())))?;
    if key.is_none() {
        write(&key_file, made.key_pem.as_bytes())?;
        output::note(&format!("made the key {}", key_file.display()));
    }
    if let Some(out) = &args.out {
        write(out, made.csr_pem.as_bytes())?;
    }
    let csr = Csr {
        store,
        name: flocker_quic::server_name(store),
        key_file: key_file.display().to_string(),
        csr: made.csr_pem,
    };
    match (&args.out, context.json()) {
        (_, true) => output::document(csr),
        (None, false) => output::result(&csr.csr),
        (Some(out), false) => {
            output::note(&format!("wrote the request for {} to {}", csr.name, out.display()));
            Ok(())
        }
    }
}

/// The store in this folder; it is born here if there is none.
fn store_of(folder: &Path) -> Result<StoreId, ApiError> {
    let internal = |error: &dyn std::fmt::Display| ApiError::internal(error.to_string());
    // A node that runs has its database open: what it keeps of its cluster names the store, too.
    if let Some(kept) = OutsideCluster::load(folder).map_err(|e| internal(&e))? {
        return Ok(kept.store);
    }
    outside::private_folder(folder).map_err(|e| internal(&e))?;
    let mut random = [0; 10];
    StdRng::try_from_rng(&mut SysRng).map_err(|e| internal(&e))?.fill_bytes(&mut random);
    match StateDb::open(&folder.join("state.redb"), SystemClock.wall(), random) {
        Ok(db) => Ok(db.store_id()),
        Err(error @ StoreError::InUse { .. }) => {
            Err(ApiError::new(ErrorCode::AlreadyRunning, error.to_string())
                .hint("this node's cluster has an authority of its own, and needs no request"))
        }
        Err(error) => Err(internal(&error)),
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), ApiError> {
    durable::write_plain(path, bytes, 0o600).map_err(|error| ApiError::internal(error.to_string()))
}

//! A certificate from an authority outside the cluster, in files that the operator keeps. They are
//! read, never written; no key of theirs is copied anywhere.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use flocker_base::{StoreId, WallTime};
use flocker_gossip::identity::outside::MAX_PEM_BYTES;
use flocker_gossip::identity::{NodeIdentity, Outside, OutsideCluster};
use zeroize::Zeroizing;

use crate::cli::options::OutsideFiles;

/// Reads and checks the files.
pub(super) fn read(files: &OutsideFiles, store: StoreId, now: WallTime) -> Result<Outside> {
    let authority = content(&files.ca_cert)?;
    let chain = content(&files.cert)?;
    let key = content(&files.key)?;
    let mode = std::fs::metadata(&files.key).map(|m| m.mode()).unwrap_or_default();
    if mode & 0o077 != 0 {
        tracing::warn!(
            file = %files.key.display(),
            "other users may read this node's private key: close it with chmod 600"
        );
    }
    Outside::read(&authority, &chain, &key, store, now).with_context(|| {
        format!(
            "cannot use the certificate in {} with the authority in {}",
            files.cert.display(),
            files.ca_cert.display()
        )
    })
}

/// The identity that the folder has, if it has one: with the certificate that is given, where the
/// authority is outside.
pub(super) fn find(
    folder: &Path,
    given: Option<&Outside>,
    store: StoreId,
) -> Result<Option<NodeIdentity>> {
    let own = NodeIdentity::load(folder)?;
    let kept = OutsideCluster::load(folder)?;
    let (given, kept) = match (given, kept) {
        (None, None) => return Ok(own),
        (Some(_), None) if own.is_none() => return Ok(None),
        (Some(_), None) => bail!(
            "this node's cluster has a certificate authority of its own, and renews by itself: \
             leave --ca-cert, --cert and --key out, or use another --state-dir for a new node"
        ),
        (None, Some(_)) => bail!(
            "this node's certificate comes from an authority outside the cluster: give --ca-cert, \
             --cert and --key again"
        ),
        (Some(given), Some(kept)) => (given, kept),
    };
    if given.authority_cert != kept.authority_cert {
        bail!(
            "the authority in --ca-cert is not the one of this node's cluster {}: give the one that \
             it joined under; flocker can't exchange a cluster's authority yet",
            kept.cluster.short()
        );
    }
    if kept.store != store {
        bail!(
            "{} belongs to store {}, and the state beside it to store {}: they come from different \
             nodes; put the files that belong together back",
            folder.join("outside").display(),
            kept.store.short(),
            store.short()
        );
    }
    Ok(Some(NodeIdentity::outside(kept.cluster, store, given.clone())))
}

fn content(path: &Path) -> Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::new());
    let most = u64::try_from(MAX_PEM_BYTES).unwrap_or(u64::MAX);
    File::open(path)
        .and_then(|file| file.take(most + 1).read_to_end(&mut bytes))
        .with_context(|| format!("cannot read {}", path.display()))?;
    if bytes.len() > MAX_PEM_BYTES {
        bail!("{} is larger than {MAX_PEM_BYTES} bytes: it holds no certificate", path.display());
    }
    Ok(bytes)
}

//! The identity's file in the state folder: keys and certificates where this node has the
//! authority's key; only what the cluster is where the authority is outside. It never writes a key
//! that came from the operator's files.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use flocker_base::{ClusterId, StoreId, durable};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{Authority, FILE, FILE_MAX_BYTES, FILE_VERSION, IdentityError, NodeIdentity};

/// The file of a node whose authority is outside.
const OUTSIDE_FILE: &str = "outside";

/// [`NodeIdentity`] as its file holds it. The order of the fields is the file's form.
#[derive(Serialize, Deserialize)]
pub(super) struct StoredIdentity {
    pub(super) cluster: ClusterId,
    pub(super) store: StoreId,
    pub(super) authority_cert: Vec<u8>,
    pub(super) authority_key: Vec<u8>,
    pub(super) cert: Vec<u8>,
    pub(super) key: Vec<u8>,
}

impl Drop for StoredIdentity {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.authority_key);
        zeroize::Zeroize::zeroize(&mut self.key);
    }
}

/// What a node keeps of a cluster whose authority is outside. The order of the fields is the file's
/// form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutsideCluster {
    /// The cluster.
    pub cluster: ClusterId,
    /// This node's store.
    pub store: StoreId,
    /// The authority's certificate (DER).
    pub authority_cert: Vec<u8>,
}

impl OutsideCluster {
    /// Stores it in this folder, durably.
    ///
    /// # Errors
    /// [`IdentityError::Folder`] or [`IdentityError::File`]; what stood there before still stands.
    pub fn save(&self, folder: &Path) -> Result<(), IdentityError> {
        make_private(folder)?;
        let path = folder.join(OUTSIDE_FILE);
        let bytes =
            postcard::to_stdvec(self).map_err(|_why| IdentityError::Malformed(path.clone()))?;
        Ok(durable::write(&path, FILE_VERSION, &bytes)?)
    }

    /// Reads it from this folder; `None` if none was ever saved there.
    ///
    /// # Errors
    /// [`IdentityError::File`] or [`IdentityError::Malformed`] if the file is damaged.
    pub fn load(folder: &Path) -> Result<Option<Self>, IdentityError> {
        let path = folder.join(OUTSIDE_FILE);
        let Some((_, bytes)) = durable::read(&path, FILE_VERSION, FILE_MAX_BYTES)? else {
            return Ok(None);
        };
        match postcard::take_from_bytes(&bytes) {
            Ok((stored, [])) => Ok(Some(stored)),
            Ok(_) | Err(_) => Err(IdentityError::Malformed(path)),
        }
    }
}

impl NodeIdentity {
    /// Stores the identity in this folder, durably: the file with mode 0600, the folder with 0700.
    ///
    /// # Errors
    /// [`IdentityError::Folder`] or [`IdentityError::File`]; what stood there before still stands.
    pub fn save(&self, folder: &Path) -> Result<(), IdentityError> {
        if self.authority.is_outside() {
            let (cluster, store) = (self.cluster, self.store);
            let authority_cert = self.authority.cert_der.clone();
            return OutsideCluster { cluster, store, authority_cert }.save(folder);
        }
        make_private(folder)?;
        let stored = StoredIdentity {
            cluster: self.cluster,
            store: self.store,
            authority_cert: self.authority.cert_der.clone(),
            authority_key: self.authority.key_der.to_vec(),
            cert: self.cert_der.clone(),
            key: self.key_der.to_vec(),
        };
        let path = folder.join(FILE);
        let bytes = postcard::to_stdvec(&stored)
            .map(Zeroizing::new)
            .map_err(|_why| IdentityError::Malformed(path.clone()))?;
        durable::write(&path, FILE_VERSION, &bytes)?;
        Ok(())
    }

    /// Reads the identity from this folder; `None` if none was ever saved there.
    ///
    /// # Errors
    /// [`IdentityError::File`] or [`IdentityError::Malformed`] if the file is damaged,
    /// [`IdentityError::Inconsistent`] if its parts don't belong together.
    pub fn load(folder: &Path) -> Result<Option<Self>, IdentityError> {
        let path = folder.join(FILE);
        let Some((_, bytes)) = durable::read(&path, FILE_VERSION, FILE_MAX_BYTES)? else {
            return Ok(None);
        };
        let bytes = Zeroizing::new(bytes);
        make_private(folder)?;
        let mut stored: StoredIdentity = match postcard::take_from_bytes(&bytes) {
            Ok((stored, [])) => stored,
            Ok(_) | Err(_) => return Err(IdentityError::Malformed(path)),
        };
        let authority = Authority::from_parts(
            std::mem::take(&mut stored.authority_cert),
            Zeroizing::new(std::mem::take(&mut stored.authority_key)),
        )?;
        Self::from_parts(
            stored.cluster,
            stored.store,
            authority,
            std::mem::take(&mut stored.cert),
            Zeroizing::new(std::mem::take(&mut stored.key)),
        )
        .map(Some)
    }
}

/// Makes the folder if there is none, and closes it to everyone but its owner.
pub(super) fn make_private(folder: &Path) -> Result<(), IdentityError> {
    let fail = |action, source| IdentityError::Folder { action, path: folder.to_owned(), source };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|e| fail("create", e))?;
    let mode = fs::metadata(folder).map_err(|e| fail("look at", e))?.permissions().mode();
    if mode & 0o077 != 0 {
        tracing::warn!(
            folder = %folder.display(),
            mode = format_args!("{:03o}", mode & 0o777),
            "the state folder holds the cluster's keys and was open to other users: closing it"
        );
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
            .map_err(|e| fail("close to other users", e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_of_a_cluster_with_an_outside_authority_has_a_fixed_form() {
        let kept = OutsideCluster {
            cluster: ClusterId::from_bytes([1; 16]),
            store: StoreId::from_bytes([2; 16]),
            authority_cert: vec![3, 4],
        };
        let mut golden = vec![16];
        golden.extend([1; 16]);
        golden.push(16);
        golden.extend([2; 16]);
        golden.extend([2, 3, 4]);
        assert_eq!(postcard::to_stdvec(&kept).expect("encodes"), golden);
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(OutsideCluster::load(folder.path()).expect("nothing"), None);
        kept.save(folder.path()).expect("saved");
        assert_eq!(OutsideCluster::load(folder.path()).expect("loads"), Some(kept));
        durable::write(&folder.path().join(OUTSIDE_FILE), FILE_VERSION, b"else").expect("written");
        assert!(OutsideCluster::load(folder.path()).is_err());
    }
}

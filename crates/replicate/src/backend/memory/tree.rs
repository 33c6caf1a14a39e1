//! The trees of the in-memory backend, read from and written to real folders.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use flocker_base::VolumeId;
use serde::{Deserialize, Serialize};

use crate::backend::{BackendError, Result};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Node {
    Folder,
    File { content: Vec<u8>, mode: u32 },
    Symlink(Vec<u8>),
}

pub(super) type Tree = BTreeMap<Vec<u8>, Node>;

/// Size of all files.
pub(super) fn size(tree: &Tree) -> u64 {
    let size = |node: &Node| match node {
        Node::File { content, .. } => content.len() as u64,
        _ => 0,
    };
    tree.values().map(size).sum()
}

pub(super) fn encoded(volume: VolumeId, tree: &Tree) -> Result<Vec<u8>> {
    postcard::to_stdvec(tree)
        .map_err(|error| BackendError::BadStream { volume, why: error.to_string() })
}

pub(super) fn read_tree(root: &Path, at: &Path, tree: &mut Tree) -> Result<()> {
    let io = |e| BackendError::io("read", at, e);
    for entry in fs::read_dir(at).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let io = |e| BackendError::io("read", &path, e);
        let found = fs::symlink_metadata(&path).map_err(io)?;
        let key = path.strip_prefix(root).unwrap_or(&path).as_os_str().as_bytes().to_vec();
        if found.is_dir() {
            tree.insert(key, Node::Folder);
            read_tree(root, &path, tree)?;
        } else if found.is_symlink() {
            let target = fs::read_link(&path).map_err(io)?;
            tree.insert(key, Node::Symlink(target.as_os_str().as_bytes().to_vec()));
        } else {
            let content = fs::read(&path).map_err(io)?;
            tree.insert(key, Node::File { content, mode: found.permissions().mode() & 0o7777 });
        }
    }
    Ok(())
}

pub(super) fn write_tree(root: &Path, tree: &Tree) -> Result<()> {
    let io = |e| BackendError::io("write", root, e);
    fs::remove_dir_all(root).map_err(io)?;
    fs::create_dir_all(root).map_err(io)?;
    for (path, node) in tree {
        let path = root.join(std::ffi::OsStr::from_bytes(path));
        match node {
            Node::Folder => fs::create_dir_all(&path).map_err(io)?,
            Node::Symlink(target) => {
                std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(target), &path)
                    .map_err(io)?;
            }
            Node::File { content, mode } => {
                let mut file = fs::OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .open(&path)
                    .map_err(io)?;
                file.write_all(content).map_err(io)?;
                file.set_permissions(fs::Permissions::from_mode(*mode)).map_err(io)?;
            }
        }
    }
    Ok(())
}

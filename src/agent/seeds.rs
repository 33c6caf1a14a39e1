//! Where this node seeks others: what its command line says, and where it once joined. The file
//! holds no secret.

use std::path::Path;

use anyhow::{Context as _, Result};
use flocker_base::durable;
use flocker_gossip::join::{JoinString, Seed};

use crate::cli::options::UpOptions;

const FILE: &str = "seeds";
const VERSION: u8 = 1;
const MAX_BYTES: usize = 64 * 1024;

/// The seeds of this start. Those of a join line are kept, and count at each later start.
pub(super) fn of(folder: &Path, options: &UpOptions) -> Result<Vec<Seed>> {
    gather(folder, options.join.as_deref(), &options.seeds)
}

fn gather(folder: &Path, join: Option<&str>, told: &[String]) -> Result<Vec<Seed>> {
    let file = folder.join(FILE);
    let mut joined: Vec<String> = match durable::read(&file, VERSION, MAX_BYTES)? {
        Some((_, bytes)) => serde_json::from_slice(&bytes)
            .with_context(|| format!("{} is no list of seeds: move it away", file.display()))?,
        None => Vec::new(),
    };
    if let Some(text) = join {
        let line: JoinString = text.parse()?;
        let named: Vec<String> = line.seeds.iter().map(ToString::to_string).collect();
        if named != joined {
            let bytes = serde_json::to_vec(&named).context("cannot write the seeds")?;
            durable::write(&file, VERSION, &bytes)?;
            joined = named;
        }
    }
    let mut seeds = Vec::new();
    for text in told.iter().chain(&joined) {
        let seed: Seed = text.parse()?;
        if !seeds.contains(&seed) {
            seeds.push(seed);
        }
    }
    Ok(seeds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_form_is_fixed_and_what_is_told_goes_first() {
        let folder = tempfile::tempdir().expect("a folder");
        let stored = br#"["a:4523","[::1]:7"]"#;
        durable::write(&folder.path().join(FILE), VERSION, stored).expect("written");
        let text = |told: &[String]| -> Vec<String> {
            let seeds = gather(folder.path(), None, told).expect("read");
            seeds.iter().map(ToString::to_string).collect()
        };
        assert_eq!(text(&[]), ["a:4523", "[::1]:7"]);
        let told = ["b".to_owned(), "a:4523".to_owned()];
        assert_eq!(text(&told), ["b:4523", "a:4523", "[::1]:7"], "each once");
    }

    #[test]
    fn where_a_node_joined_is_kept_without_the_token() {
        let folder = tempfile::tempdir().expect("a folder");
        let token = flocker_gossip::join::Token {
            id: flocker_base::TokenId::from_bytes([1; 16]),
            secret: [2; 32],
            ca: [3; 32],
        };
        let line = format!("{token}@mesh.example,10.0.0.1:7");
        gather(folder.path(), Some(&line), &[]).expect("kept");
        let seeds = gather(folder.path(), None, &[]).expect("read");
        assert_eq!(seeds.len(), 2);
        let file = std::fs::read(folder.path().join(FILE)).expect("there");
        assert!(!String::from_utf8_lossy(&file).contains("flk1"), "no secret");
    }
}

//! Finds the flocker binary to test. It never builds one: what is tested is what was built.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// `FLOCKER_BIN`, or the binary in the target folder that this test program lies in.
///
/// # Errors
/// If there is none; the error names the command that builds it.
pub fn flocker() -> Result<PathBuf> {
    if let Some(given) = std::env::var_os("FLOCKER_BIN") {
        let path = PathBuf::from(given);
        return path
            .canonicalize()
            .with_context(|| format!("FLOCKER_BIN names {}, which is not there", path.display()));
    }
    let here = std::env::current_exe().context("cannot tell where this test program is")?;
    // target/<profile>/deps/<test> beside target/<profile>/flocker
    let profile = here.parent().and_then(|deps| deps.parent());
    let profile = profile.context("this test program lies in no target folder")?;
    let path = profile.join("flocker");
    if !path.is_file() {
        let release = profile.file_name().is_some_and(|name| name == "release");
        let flag = if release { " --release" } else { "" };
        bail!(
            "there is no {}: build it with `cargo build{flag}`, or name another in FLOCKER_BIN",
            path.display()
        );
    }
    Ok(path)
}

//! The programs that a harness needs besides ours.

use std::path::PathBuf;

use anyhow::{Result, ensure};

/// Where ordinary users do not look, and some programs are.
const MORE: [&str; 2] = ["/usr/sbin", "/sbin"];

/// Says that a program is not there, and how to get it.
///
/// # Errors
/// If it is not.
pub fn need(program: &str, package: &str) -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(MORE.map(PathBuf::from));
    let there = folders.map(|folder| folder.join(program)).any(|file| file.is_file());
    ensure!(there, "there is no `{program}` here: install the package {package}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_its_package() {
        need("sh", "dash").expect("it is everywhere");
        let said = need("no-such-program", "the-package").expect_err("it is nowhere").to_string();
        assert!(said.contains("no-such-program") && said.contains("the-package"), "{said}");
    }
}

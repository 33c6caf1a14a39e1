//! An agent's log file. Tests read what was added since a mark; nobody cuts it.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use flocker_base::{Clock, SystemClock};

/// A log that a process appends to.
#[derive(Clone, Debug)]
pub struct Log {
    path: PathBuf,
}

/// A place in a log: what is there comes before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(u64);

impl Mark {
    /// Before all lines.
    pub const START: Self = Self(0);
}

impl Log {
    /// The log in this file, which need not be there yet.
    #[must_use]
    pub const fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens it to append to.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn open(&self) -> Result<File> {
        let opened = File::options().create(true).append(true).open(&self.path);
        opened.with_context(|| format!("cannot open {}", self.path.display()))
    }

    /// Its end, now.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark(std::fs::metadata(&self.path).map_or(0, |found| found.len()))
    }

    /// What was added since.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn since(&self, mark: Mark) -> Result<String> {
        let read = || -> std::io::Result<Vec<u8>> {
            let mut file = File::open(&self.path)?;
            file.seek(SeekFrom::Start(mark.0))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = read().with_context(|| format!("cannot read {}", self.path.display()))?;
        Ok(plain(&String::from_utf8_lossy(&bytes)))
    }

    /// Waits for a line since the mark that contains all of these, and returns it.
    ///
    /// # Errors
    /// With the log since the mark, if there is none in time.
    pub async fn wait_for(&self, mark: Mark, parts: &[&str], within: Duration) -> Result<String> {
        let deadline = SystemClock.boot() + within;
        loop {
            let text = self.since(mark)?;
            let found = text.lines().find(|line| parts.iter().all(|part| line.contains(part)));
            if let Some(line) = found {
                return Ok(line.to_owned());
            }
            if SystemClock.boot() > deadline {
                bail!(
                    "no line with {parts:?} in {} within {} ms; it says:\n{text}",
                    self.path.display(),
                    within.as_millis()
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Its last lines, indented.
    #[must_use]
    pub fn end(&self) -> String {
        let text = std::fs::read(&self.path).unwrap_or_default();
        let text = plain(&String::from_utf8_lossy(&text));
        let lines: Vec<&str> = text.lines().rev().take(15).collect();
        lines.into_iter().rev().map(|line| format!("    {line}\n")).collect()
    }
}

/// Without colours.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' {
            // CSI: up to its final letter.
            for c in chars.by_ref() {
                if c.is_ascii_alphabetic() {
                    break;
                }
            }
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[tokio::test]
    async fn only_what_comes_after_the_mark_counts_and_colours_do_not() {
        let folder = tempfile::tempdir().expect("folder");
        let log = Log::new(folder.path().join("log"));
        let mut file = log.open().expect("opens");
        writeln!(file, "refused before").expect("writes");
        let mark = log.mark();
        let soon = Duration::from_millis(1);
        log.wait_for(mark, &["refused"], soon).await.expect_err("before the mark");
        writeln!(file, "\u{1b}[33mWARN\u{1b}[0m refused after").expect("writes");
        let line = log.wait_for(mark, &["WARN refused", "after"], soon).await.expect("there");
        assert_eq!(line, "WARN refused after");
        assert!(log.end().contains("refused before"));
    }
}

//! What is wrong with a deployment file: where, at which key, and what to write instead.

use std::fmt;
use std::path::PathBuf;

/// Why a deployment file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// There is no such file.
    #[error("there is no file {}", .0.display())]
    Missing(PathBuf),
    /// It can't be read.
    #[error("can't read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It does not say something that can be deployed.
    #[error("{0}")]
    Wrong(Fault),
}

/// One thing that is wrong, as `file:line: path: what`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The file, as it was named.
    pub file: String,
    /// The line, from 1; 0 if it is not at any one line.
    pub line: usize,
    /// The full path of the key, such as `services.web.volumes[0]`; empty for the whole file.
    pub path: String,
    /// What is wrong.
    pub what: String,
    /// What to do about it; may be empty.
    pub hint: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        f.write_str(": ")?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.what)
    }
}

/// A fault while the name of the file is not at hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) line: usize,
    pub(super) path: String,
    pub(super) what: String,
    pub(super) hint: String,
}

impl Problem {
    pub(super) fn new(line: usize, path: &str, what: impl Into<String>) -> Self {
        Self { line, path: path.to_owned(), what: what.into(), hint: String::new() }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    pub(super) fn in_file(self, file: &str) -> Fault {
        Fault {
            file: file.to_owned(),
            line: self.line,
            path: self.path,
            what: self.what,
            hint: self.hint,
        }
    }
}

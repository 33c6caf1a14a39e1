//! A wall clock that is wrong, for one agent: a small library, built with the C compiler that the
//! build needs anyway and loaded before libc, shifts what `CLOCK_REALTIME` says. Nothing of it is
//! in the binary under test, and no other clock is touched.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The variable that says by how many seconds the clock is wrong.
pub const OFFSET: &str = "FLOCKER_CHAOS_CLOCK_OFFSET";

const SOURCE: &str = r#"#define _GNU_SOURCE
#include <stdlib.h>
#include <time.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>
static long offset(void) {
    const char *said = getenv("FLOCKER_CHAOS_CLOCK_OFFSET");
    return said ? atol(said) : 0;
}
int clock_gettime(clockid_t id, struct timespec *now) {
    int failed = (int)syscall(SYS_clock_gettime, id, now);
    if (!failed && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) now->tv_sec += offset();
    return failed;
}
"#;

/// Builds the library in this folder.
///
/// # Errors
/// If there is no C compiler, or it fails.
pub fn library(folder: &Path) -> Result<PathBuf> {
    let (source, library) = (folder.join("clock.c"), folder.join("clock.so"));
    let file = std::fs::File::options().create(true).write(true).truncate(true).open(&source);
    std::io::Write::write_all(&mut file.context("cannot write the source")?, SOURCE.as_bytes())?;
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source);
    let built = compiler.output().context("cannot run the C compiler, cc")?;
    ensure!(built.status.success(), "cc: {}", String::from_utf8_lossy(&built.stderr));
    Ok(library)
}

//! The `flocker` binary. Everything is in the library; this must stay one call.

use std::process::ExitCode;

fn main() -> ExitCode {
    flocker::cli::main()
}

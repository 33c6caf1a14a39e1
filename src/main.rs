//! The `flocker` binary. Everything is in the library.
fn main() {}

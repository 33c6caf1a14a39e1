//! The fuzzer: libFuzzer's main, and the target that `FLOCKER_FUZZ_TARGET` names. What a target
//! does and asserts is in the crate that it is of; nothing is decided here.
//!
//! With `FLOCKER_FUZZ_SEEDS` it names the targets instead, a line each, and writes what each
//! begins with, made from real messages, into the folder of that name, if it is not empty.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use flocker_quic::fuzzing::Target;
use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("FLOCKER_FUZZ_TARGET").unwrap_or_default();
    let target = targets().find(|target| target.name == name);
    target.unwrap_or_else(|| panic!("FLOCKER_FUZZ_TARGET='{name}' is no target"))
});

fuzz_target!(init: begin(), |bytes: &[u8]| (TARGET.run)(bytes));

/// Every target, each name once.
fn targets() -> impl Iterator<Item = Target> {
    let all = [
        flocker_quic::fuzzing::TARGETS,
        flocker_gossip::fuzzing::TARGETS,
        flocker::fuzzing::TARGETS,
    ];
    all.into_iter().flatten().copied()
}

fn begin() {
    let Ok(folder) = std::env::var("FLOCKER_FUZZ_SEEDS") else {
        LazyLock::force(&TARGET);
        return;
    };
    for target in targets() {
        println!("{}", target.name);
        if !folder.is_empty() {
            write_seeds(&Path::new(&folder).join(target.name), target);
        }
    }
    std::process::exit(0);
}

fn write_seeds(folder: &Path, target: Target) {
    std::fs::create_dir_all(folder).expect("a folder for seeds");
    for (number, seed) in (target.seeds)().into_iter().enumerate() {
        std::fs::write(folder.join(format!("seed-{number:02}")), seed).expect("a seed is written");
    }
}

//! The targets hold over good input, over input that once broke them, and over mutations of both.

use std::path::Path;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::*;

/// Mutations of each input. The fuzzer itself makes millions.
const MUTATIONS: u32 = 200;

/// The inputs that once broke a target, kept in the repository.
fn regressions(target: &Target) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/regressions");
    assert!(folder.is_dir(), "{} is missing", folder.display());
    let Ok(files) = std::fs::read_dir(folder.join(target.name)) else { return Vec::new() };
    let read = |file: std::io::Result<std::fs::DirEntry>| {
        std::fs::read(file.expect("an entry").path()).expect("it can be read")
    };
    files.map(read).collect()
}

/// A few bytes changed, cut out, put in twice or made up.
fn mutate(input: &mut Vec<u8>, random: &mut StdRng) {
    for _ in 0..random.random_range(1..4) {
        let at = random.random_range(0..=input.len());
        match random.random_range(0..5) {
            0 if at < input.len() => input[at] = random.random(),
            1 if at < input.len() => input[at] ^= 1 << random.random_range(0..8),
            2 => drop(input.drain(at..input.len().min(at + random.random_range(0..16)))),
            3 => {
                let part = input[at..input.len().min(at + random.random_range(0..64))].to_vec();
                input.splice(at..at, part);
            }
            _ => {
                let most = [0, 1, 127, 128, 255];
                input.insert(at, *most.choose(random).expect("some"));
            }
        }
    }
}

#[test]
fn every_target_holds_over_its_seeds_what_broke_it_once_and_mutations_of_both() {
    for target in TARGETS {
        let seeds = (target.seeds)();
        assert!(!seeds.is_empty(), "{} begins with nothing", target.name);
        let mut random = StdRng::seed_from_u64(7);
        for input in seeds.into_iter().chain(regressions(target)) {
            (target.run)(&input);
            for _ in 0..MUTATIONS {
                let mut mutated = input.clone();
                mutate(&mut mutated, &mut random);
                (target.run)(&mutated);
            }
        }
    }
}

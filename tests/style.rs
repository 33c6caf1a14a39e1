//! The style rules that a compiler does not check, as an ordinary test. The lists of exceptions
//! may only shrink.

use std::fs;
use std::path::{Path, PathBuf};

const MAX_PRODUCTION_LINES: usize = 500;
const FORBIDDEN_NAMES: [&str; 6] =
    ["mod.rs", "util.rs", "utils.rs", "helpers.rs", "misc.rs", "common.rs"];
const FOLDERS: [&str; 5] = ["src", "crates", "chaos", "tests", "examples"];

#[test]
fn every_source_file_keeps_the_rules() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in FOLDERS {
        collect(&root.join(folder), &mut files);
    }
    assert!(files.len() > 20, "only {} source files found: wrong folder?", files.len());
    let mut faults = Vec::new();
    for file in &files {
        let text = fs::read_to_string(file).expect("source files are UTF-8");
        let shown = file.strip_prefix(root).expect("inside the root").display().to_string();
        check(&shown, &text, &mut faults);
    }
    assert!(faults.is_empty(), "style:\n{}", faults.join("\n"));
}

fn check(shown: &str, text: &str, faults: &mut Vec<String>) {
    let name = shown.rsplit('/').next().unwrap_or(shown);
    if FORBIDDEN_NAMES.contains(&name) {
        faults.push(format!("{shown}: name the file for its one concept"));
    }
    if !text.starts_with("//!") {
        faults.push(format!("{shown}: open with //! and say what it is and must never do"));
    }
    let is_test = shown.contains("/tests/") || name == "tests.rs" || shown.starts_with("tests/");
    let production = text.lines().take_while(|l| l.trim() != "#[cfg(test)]").count();
    if !is_test && production > MAX_PRODUCTION_LINES {
        faults.push(format!(
            "{shown}: {production} production lines, at most {MAX_PRODUCTION_LINES}"
        ));
    }
    // Spelt in two parts so that this file does not find itself.
    for mark in [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("#[ig", "nore")] {
        // What other tests start as a process, and measurements, are no tests.
        let excused = concat!("#[ig", "nore = \"run by ");
        if let Some(line) = text.lines().position(|l| l.contains(mark) && !l.contains(excused)) {
            faults.push(format!("{shown}:{}: {mark} is unfinished or switched off", line + 1));
        }
    }
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.expect("a readable entry").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
}

#[test]
fn the_checks_can_fail() {
    let mut faults = Vec::new();
    let long = format!("//! x\n{}", "let x = 1;\n".repeat(MAX_PRODUCTION_LINES));
    check("src/util.rs", "no header", &mut faults);
    check("src/long.rs", &long, &mut faults);
    check("src/open.rs", concat!("//! x\n// TO", "DO"), &mut faults);
    assert_eq!(faults.len(), 4, "{faults:?}");
    check("src/long/tests.rs", &long, &mut faults);
    assert_eq!(faults.len(), 4, "tests may be long");
}

//! The tree, its limits, and hostile files.

use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;

fn at<'a>(node: &'a Node, key: &str) -> &'a Node {
    let Value::Map(entries) = &node.value else { panic!("{key}: no mapping") };
    &entries.iter().find(|entry| entry.key == key).expect(key).value
}

fn scalar(text: &str) -> Value {
    Value::Scalar(text.to_owned())
}

#[test]
fn scalars_keep_their_text_and_nodes_their_lines() {
    let tree = parse("a: 1.10\nb: yes\nc: ~\nd: '~'\ne:\n  - 0x10\n").expect("parses");
    assert_eq!(at(&tree, "a").value, scalar("1.10"));
    assert_eq!(at(&tree, "b").value, scalar("yes"));
    assert_eq!(at(&tree, "c").value, Value::Null);
    assert_eq!(at(&tree, "d").value, scalar("~"));
    let Value::List(items) = &at(&tree, "e").value else { panic!("no list") };
    assert_eq!((items[0].line, &items[0].value), (6, &scalar("0x10")));
}

#[test]
fn anchors_and_merges_work_as_in_compose() {
    let text = "base: &b {x: 1, y: 2}\nother: &o {y: 7, z: 8}\nuse:\n  y: 3\n  <<: [*b, *o]\n";
    let tree = parse(text).expect("parses");
    let merged = at(&tree, "use");
    assert_eq!(at(merged, "y").value, scalar("3"));
    assert_eq!(at(merged, "x").value, scalar("1"));
    assert_eq!(at(merged, "z").value, scalar("8"));
}

#[test]
fn bombs_and_nonsense_are_refused_with_a_line() {
    let mut laughs = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
    for level in 1..20 {
        let before = format!("*a{},", level - 1).repeat(9);
        let _ = writeln!(laughs, "a{level}: &a{level} [{}]", before.trim_end_matches(','));
    }
    let long = format!("a: &a '{}'\nb: [{}]", "x".repeat(100_000), "*a,".repeat(100));
    for (text, says) in [
        (laughs.as_str(), "says too much"),
        (&long, "says too much"),
        (&"[".repeat(5000), "not YAML"),
        (&"{a: ".repeat(5000), "not YAML"),
        (&"- ".repeat(5000), "not YAML"),
        ("a: 1\nb: 2\na: 3", "given twice, first on line 1"),
        ("a: *nope", "not YAML"),
        ("a: &a [*a]", "inside what it stands for"),
        ("a: !secret x", "tag !secret"),
        ("a: 1\n---\nb: 2", "second document"),
        ("? [a, b]\n: c", "a key has to be a word"),
        ("a: [1", "not YAML"),
        ("<<: 3", "only mappings"),
        ("", "says nothing"),
    ] {
        let problem = parse(text).expect_err(says);
        assert!(problem.what.contains(says), "{says}: {problem:?}");
        assert!(problem.line > 0 || text.is_empty(), "{problem:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_text_is_a_tree_or_an_error(text in "[-a-c:{}\\[\\]&*!|>'\"#? \n,~<]{0,120}|\\PC{0,200}") {
        if let Err(problem) = parse(&text) {
            prop_assert!(!problem.what.is_empty());
        }
    }
}

//! `$VAR`, `${VAR}`, `${VAR:-default}`, `${VAR-default}`, `${VAR:?text}`, `${VAR?text}`,
//! `${VAR:+text}`, `${VAR+text}` and `$$` as Compose has them. Values only, never keys.
//!
//! A variable that is not set and has no default is an error here, where Compose warns and takes
//! nothing: a service that starts with half its settings is worse than one that does not start.

use super::error::Problem;
use super::yaml::{Node, Value};

/// Longest text after interpolation.
const MAX_RESULT: usize = 1024 * 1024;
/// Deepest nesting of defaults in defaults.
const MAX_DEPTH: usize = 8;

/// Where variables come from.
pub(super) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Interpolates every scalar of the tree.
pub(super) fn tree(node: &mut Node, path: &str, lookup: Lookup<'_>) -> Result<(), Problem> {
    match &mut node.value {
        Value::Null => Ok(()),
        Value::Scalar(value) => {
            if value.contains('$') {
                *value = text(value, lookup)
                    .map_err(|(what, hint)| Problem::new(node.line, path, what).hint(hint))?;
            }
            Ok(())
        }
        Value::List(items) => items
            .iter_mut()
            .enumerate()
            .try_for_each(|(index, item)| tree(item, &format!("{path}[{index}]"), lookup)),
        Value::Map(entries) => entries.iter_mut().try_for_each(|entry| {
            let below =
                if path.is_empty() { entry.key.clone() } else { format!("{path}.{}", entry.key) };
            tree(&mut entry.value, &below, lookup)
        }),
    }
}

type Wrong = (String, String);

fn text(value: &str, lookup: Lookup<'_>) -> Result<String, Wrong> {
    expand(value, lookup, 0)
}

fn expand(value: &str, lookup: Lookup<'_>, depth: usize) -> Result<String, Wrong> {
    if depth > MAX_DEPTH {
        return Err(("defaults are nested too deep".to_owned(), "flatten them".to_owned()));
    }
    let mut out = String::with_capacity(value.len());
    let mut rest = value;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(after) = rest.strip_prefix('{') {
            let end = closing(after).ok_or_else(|| {
                (
                    "'${' has no '}'".to_owned(),
                    "close it, or write '$$' for a dollar sign".to_owned(),
                )
            })?;
            out.push_str(&braced(&after[..end], lookup, depth)?);
            rest = &after[end + 1..];
        } else {
            let length = name_length(rest);
            if length == 0 {
                return Err((
                    "a '$' stands alone".to_owned(),
                    "write '$$' for a dollar sign, '${NAME}' for a variable".to_owned(),
                ));
            }
            let (name, after) = rest.split_at(length);
            out.push_str(&lookup(name).ok_or_else(|| unset(name))?);
            rest = after;
        }
        if out.len() > MAX_RESULT {
            return Err(("too long with its variables filled in".to_owned(), String::new()));
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// What stands between the braces.
fn braced(inside: &str, lookup: Lookup<'_>, depth: usize) -> Result<String, Wrong> {
    let (name, operation) = inside.split_at(name_length(inside));
    if name.is_empty() {
        let hint = "a variable's name has letters, digits and '_' and starts with no digit";
        return Err((format!("'${{{inside}}}' names no variable"), hint.to_owned()));
    }
    let value = lookup(name);
    let (empty_is_unset, operation) =
        operation.strip_prefix(':').map_or((false, operation), |after| (true, after));
    let present = value.filter(|value| !(empty_is_unset && value.is_empty()));
    let mut characters = operation.chars();
    match (characters.next(), characters.as_str()) {
        (None, _) if !empty_is_unset => present.ok_or_else(|| unset(name)),
        (Some('-'), default) => present.map_or_else(|| expand(default, lookup, depth + 1), Ok),
        (Some('+'), other) => {
            present.map_or_else(|| Ok(String::new()), |_| expand(other, lookup, depth + 1))
        }
        (Some('?'), text) => present.ok_or_else(|| {
            let (what, hint) = unset(name);
            if text.is_empty() { (what, hint) } else { (format!("{what}: {text}"), hint) }
        }),
        _ => Err((
            format!("'${{{inside}}}' is not understood"),
            "use '${NAME}', '${NAME:-default}', '${NAME:?message}' or '${NAME:+other}'".to_owned(),
        )),
    }
}

fn unset(name: &str) -> Wrong {
    (
        format!("the environment variable {name} is not set"),
        format!("set it, or give a default: '${{{name}:-default}}'"),
    )
}

fn name_length(text: &str) -> usize {
    if text.starts_with(|first: char| first.is_ascii_digit()) {
        return 0;
    }
    text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(text.len())
}

/// Where the brace that is already open closes.
fn closing(text: &str) -> Option<usize> {
    let mut open = 0_usize;
    let mut before = '\0';
    for (at, character) in text.char_indices() {
        match character {
            '{' if before == '$' => open += 1,
            '}' if open == 0 => return Some(at),
            '}' => open -= 1,
            _ => {}
        }
        before = character;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn with(value: &str) -> Result<String, Wrong> {
        text(value, &|name| match name {
            "HOST" => Some("eu-1".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        })
    }

    #[test]
    fn the_forms_of_compose() {
        for (written, read) in [
            ("plain", "plain"),
            ("$$HOST", "$HOST"),
            ("a-$HOST-b", "a-eu-1-b"),
            ("${HOST}:80", "eu-1:80"),
            ("${NOPE:-x}", "x"),
            ("${EMPTY:-x}", "x"),
            ("${EMPTY-x}", ""),
            ("${NOPE-x}", "x"),
            ("${NOPE:-${HOST}!}", "eu-1!"),
            ("${HOST:+set}${NOPE+set}", "set"),
            ("${EMPTY}", ""),
            ("${NOPE:-}", ""),
        ] {
            assert_eq!(with(written).expect(written), read);
        }
    }

    #[test]
    fn what_can_not_be_filled_in_says_so() {
        for (written, says) in [
            ("$NOPE", "NOPE is not set"),
            ("${NOPE}", "NOPE is not set"),
            ("${EMPTY:?give a host}", "EMPTY is not set: give a host"),
            ("${HOST", "no '}'"),
            ("$", "stands alone"),
            ("${}", "names no variable"),
            ("${HOST:}", "not understood"),
            ("${HOST/a/b}", "not understood"),
        ] {
            let (what, _) = with(written).expect_err(written);
            assert!(what.contains(says), "{written}: {what}");
        }
        let deep = "${N:-".repeat(2000) + &"}".repeat(2000);
        assert!(with(&deep).expect_err("deep").0.contains("too deep"));
    }

    proptest! {
        #[test]
        fn any_text_is_filled_in_or_refused(value in "[${}:?+a-zN_-]{0,60}|\\PC{0,60}") {
            if let Err((what, _)) = with(&value) {
                prop_assert!(!what.is_empty());
            }
        }
    }
}

//! Reading single values out of the tree, and the keys of mappings.

use std::time::Duration;

use super::error::Problem;
use super::yaml::{Entry, Node, Value};

/// The keys of one kind of mapping.
pub(super) struct Known {
    /// What may be there.
    pub(super) keys: &'static [&'static str],
    /// What Compose knows and we do not support, with what to do instead.
    pub(super) unsupported: &'static [(&'static str, &'static str)],
    /// Whether keys that begin with `x-` are left to whoever uses them, as Compose has it.
    pub(super) extensions: bool,
}

impl Known {
    /// These keys and no others.
    pub(super) const fn plain(keys: &'static [&'static str]) -> Self {
        Self { keys, unsupported: &[], extensions: false }
    }
}

/// The entries of a mapping all of whose keys are known.
pub(super) struct Fields {
    entries: Vec<Entry>,
}

impl Fields {
    /// Refuses a key that is not known, by name.
    pub(super) fn open(node: Node, path: &str, known: &Known) -> Result<Self, Problem> {
        let entries = match node.value {
            Value::Null => Vec::new(),
            Value::Map(entries) => entries,
            other => {
                let what = format!("a mapping is needed, not {}", other.kind());
                return Err(Problem::new(node.line, path, what)
                    .hint(format!("its keys are: {}", known.keys.join(", "))));
            }
        };
        for entry in &entries {
            let key = entry.key.as_str();
            let extension = known.extensions && key.starts_with("x-");
            if extension || known.keys.contains(&key) {
                continue;
            }
            let full = below(path, &shown(key));
            if let Some((_, instead)) = known.unsupported.iter().find(|(name, _)| *name == key) {
                let what = format!("the key '{key}' is not supported");
                return Err(Problem::new(entry.line, &full, what).hint(*instead));
            }
            let what = format!("unknown key '{}'", shown(key));
            let suggestion = did_you_mean(key, known.keys.iter().copied());
            return Err(Problem::new(entry.line, &full, what).hint(
                suggestion
                    .unwrap_or_else(|| format!("the keys here are: {}", known.keys.join(", "))),
            ));
        }
        Ok(Self { entries })
    }

    /// Takes the entry of this key out.
    pub(super) fn take(&mut self, key: &str) -> Option<Entry> {
        let at = self.entries.iter().position(|entry| entry.key == key)?;
        Some(self.entries.swap_remove(at))
    }
}

/// `did you mean 'X'?` for the most similar word, if one is similar.
pub(super) fn did_you_mean<'a>(word: &str, among: impl Iterator<Item = &'a str>) -> Option<String> {
    let folded: String = word
        .chars()
        .take(64)
        .map(|c| if c == '_' { '-' } else { c.to_ascii_lowercase() })
        .collect();
    among
        .map(|known| (strsim::jaro_winkler(&folded, &known.replace('_', "-")), known))
        .filter(|(score, _)| *score > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| format!("did you mean '{known}'?"))
}

/// The path of a key below another.
pub(super) fn below(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// Text of a user's file as it may stand in a message: short and without control characters.
pub(super) fn shown(text: &str) -> String {
    let mut out: String =
        text.chars().take(60).map(|c| if c.is_control() { '?' } else { c }).collect();
    if text.chars().nth(60).is_some() {
        out.push('…');
    }
    out
}

/// A single value that is there.
pub(super) fn text<'a>(node: &'a Node, path: &str) -> Result<&'a str, Problem> {
    match &node.value {
        Value::Scalar(text) if !text.contains('\0') => Ok(text),
        Value::Scalar(_) => Err(Problem::new(node.line, path, "the text has a zero byte in it")),
        other => {
            Err(Problem::new(node.line, path, format!("a value is needed, not {}", other.kind())))
        }
    }
}

/// A single value; nothing is empty text.
pub(super) fn text_or_empty<'a>(node: &'a Node, path: &str) -> Result<&'a str, Problem> {
    if node.value == Value::Null { Ok("") } else { text(node, path) }
}

/// A list; nothing is an empty one.
pub(super) fn list(node: Node, path: &str) -> Result<Vec<Node>, Problem> {
    match node.value {
        Value::Null => Ok(Vec::new()),
        Value::List(items) => Ok(items),
        other => {
            Err(Problem::new(node.line, path, format!("a list is needed, not {}", other.kind()))
                .hint("write it as '[a, b]'"))
        }
    }
}

/// A small number.
pub(super) fn count(node: &Node, path: &str, most: u8) -> Result<u8, Problem> {
    let text = text(node, path)?;
    match text.parse::<u8>() {
        Ok(count) if count <= most => Ok(count),
        _ => Err(Problem::new(node.line, path, format!("'{}' is not a number here", shown(text)))
            .hint(format!("use a whole number from 0 to {most}"))),
    }
}

/// A span such as `5s` or `1m30s`, in milliseconds.
pub(super) fn span(node: &Node, path: &str, least: u64, most: u64) -> Result<u64, Problem> {
    let text = text(node, path)?;
    let wrong = |what: String| {
        let (least, most) = (Duration::from_millis(least), Duration::from_millis(most));
        Problem::new(node.line, path, what).hint(format!(
            "use a time with its unit, from {} to {}",
            humantime::format_duration(least),
            humantime::format_duration(most)
        ))
    };
    let parsed = humantime::parse_duration(text)
        .map_err(|_unparsed| wrong(format!("'{}' is not a time", shown(text))))?;
    let millis = super::millis(parsed);
    if (least..=most).contains(&millis) {
        Ok(millis)
    } else {
        Err(wrong(format!("{} is out of range", shown(text))))
    }
}

/// One of a few words.
pub(super) fn choice<T: Copy>(
    node: &Node,
    path: &str,
    choices: &[(&str, T)],
) -> Result<T, Problem> {
    let text = text(node, path)?;
    if let Some((_, value)) = choices.iter().find(|(word, _)| *word == text) {
        return Ok(*value);
    }
    let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
    Err(Problem::new(node.line, path, format!("'{}' is not a choice here", shown(text))).hint(
        did_you_mean(text, words.iter().copied())
            .unwrap_or_else(|| format!("choose one of: {}", words.join(", "))),
    ))
}

//! YAML text as a tree that knows its lines. Scalars keep the text that was written.
//!
//! Bounded whatever the input: nesting, nodes and bytes count after aliases are expanded, so that
//! a small file can't become a large tree.

use std::collections::HashMap;

use granit_parser::{Event, Parser, ScalarStyle, ScanError, Span, Tag};

use super::error::Problem;

/// Deepest nesting.
const MAX_DEPTH: usize = 32;
/// Most nodes, aliases expanded.
const MAX_NODES: usize = 100_000;
/// Most bytes of text in scalars, aliases expanded.
const MAX_TEXT: usize = 4 * 1024 * 1024;

/// A node of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    /// The line where it starts, from 1.
    pub(super) line: usize,
    /// What it is.
    pub(super) value: Value,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// Nothing was written, or `null` or `~`.
    Null,
    /// Text as it was written. A plain `yes` or `1.10` is still that text.
    Scalar(String),
    /// A list.
    List(Vec<Node>),
    /// A mapping, in the order of the file, each key once.
    Map(Vec<Entry>),
}

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The key.
    pub(super) key: String,
    /// The line of the key.
    pub(super) line: usize,
    /// The value.
    pub(super) value: Node,
}

impl Value {
    /// What to call it in a message.
    pub(super) const fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Scalar(_) => "a single value",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }
}

/// The tree of a file with one YAML document.
pub(super) fn parse(text: &str) -> Result<Node, Problem> {
    let options = granit_parser::options! {
        emit_comments: false,
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH,
    };
    let mut builder = Builder {
        events: Parser::new_from_str_with_options(text, options),
        anchors: HashMap::new(),
        nodes: 0,
        text: 0,
    };
    let mut root = None;
    while let Some((event, span)) = builder.next()? {
        match event {
            Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd => {}
            Event::StreamEnd => break,
            _ if root.is_some() => {
                let line = span.start.line();
                return Err(Problem::new(line, "", "a second document starts here")
                    .hint("put each deployment in a file of its own"));
            }
            event => root = Some(builder.node(event, &span, 0)?),
        }
    }
    root.ok_or_else(|| {
        Problem::new(0, "", "the file says nothing").hint("describe at least one of 'services'")
    })
}

struct Builder<'text> {
    events: Parser<'text, granit_parser::StrInput<'text>>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    text: usize,
}

impl<'text> Builder<'text> {
    fn next(&mut self) -> Result<Option<(Event<'text>, Span)>, Problem> {
        self.events.next_event().transpose().map_err(|error| not_yaml(&error))
    }

    fn following(&mut self, line: usize) -> Result<(Event<'text>, Span), Problem> {
        self.next()?.ok_or_else(|| Problem::new(line, "", "the file ends in the middle of this"))
    }

    fn node(&mut self, event: Event<'text>, span: &Span, depth: usize) -> Result<Node, Problem> {
        let line = span.start.line();
        if depth > MAX_DEPTH {
            return Err(Problem::new(line, "", format!("nested deeper than {MAX_DEPTH} levels")));
        }
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                check_tag(tag.as_deref(), line)?;
                self.count(1, text.len(), line)?;
                let plain = style == ScalarStyle::Plain;
                let null = plain && matches!(&*text, "" | "~" | "null" | "Null" | "NULL");
                let value = if null { Value::Null } else { Value::Scalar(text.into_owned()) };
                (value, anchor)
            }
            Event::SequenceStart(_, anchor, tag) => {
                check_tag(tag.as_deref(), line)?;
                self.count(1, 0, line)?;
                (self.list(line, depth)?, anchor)
            }
            Event::MappingStart(_, anchor, tag) => {
                check_tag(tag.as_deref(), line)?;
                self.count(1, 0, line)?;
                (self.map(line, depth)?, anchor)
            }
            Event::Alias(anchor) => return self.alias(anchor, line, depth),
            _ => return Err(Problem::new(line, "", "this is not a value")),
        };
        let node = Node { line, value };
        if anchor != 0 {
            // An anchored node is kept twice: once in its place and once for its aliases.
            let (nodes, text, _) = size(&node);
            self.count(nodes, text, line)?;
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn list(&mut self, line: usize, depth: usize) -> Result<Value, Problem> {
        let mut items = Vec::new();
        loop {
            match self.following(line)? {
                (Event::SequenceEnd, _) => return Ok(Value::List(items)),
                (event, span) => items.push(self.node(event, &span, depth + 1)?),
            }
        }
    }

    fn map(&mut self, line: usize, depth: usize) -> Result<Value, Problem> {
        let mut own: Vec<Entry> = Vec::new();
        let mut known: HashMap<String, usize> = HashMap::new();
        let mut merged = Vec::new();
        loop {
            let (event, span) = self.following(line)?;
            if event == Event::MappingEnd {
                break;
            }
            let plain = matches!(&event, Event::Scalar(_, ScalarStyle::Plain, ..));
            let key = self.node(event, &span, depth + 1)?;
            let at = key.line;
            let Value::Scalar(text) = key.value else {
                let what = format!("a key has to be a word, not {}", key.value.kind());
                return Err(Problem::new(at, "", what));
            };
            let (event, span) = self.following(at)?;
            let value = self.node(event, &span, depth + 1)?;
            if plain && text == "<<" {
                merged.extend(sources(value)?);
                continue;
            }
            if let Some(first) = known.insert(text.clone(), at) {
                let what = format!("'{text}' is given twice, first on line {first}");
                return Err(Problem::new(at, "", what).hint("keep one of the two"));
            }
            own.push(Entry { key: text, line: at, value });
        }
        // What a mapping says itself comes before what it merges, and earlier sources first.
        for entry in merged {
            if !known.contains_key(&entry.key) {
                known.insert(entry.key.clone(), entry.line);
                own.push(entry);
            }
        }
        Ok(Value::Map(own))
    }

    fn alias(&mut self, anchor: usize, line: usize, depth: usize) -> Result<Node, Problem> {
        let Some(target) = self.anchors.get(&anchor) else {
            return Err(Problem::new(line, "", "this alias stands inside what it stands for"));
        };
        let (nodes, text, height) = size(target);
        if depth + height > MAX_DEPTH {
            return Err(Problem::new(line, "", format!("nested deeper than {MAX_DEPTH} levels")));
        }
        let node = Node { line, value: target.value.clone() };
        self.count(nodes, text, line)?;
        Ok(node)
    }

    fn count(&mut self, nodes: usize, text: usize, line: usize) -> Result<(), Problem> {
        self.nodes = self.nodes.saturating_add(nodes);
        self.text = self.text.saturating_add(text);
        if self.nodes > MAX_NODES || self.text > MAX_TEXT {
            let what = format!(
                "the file says too much: more than {MAX_NODES} values or {MAX_TEXT} bytes with its aliases expanded"
            );
            return Err(Problem::new(line, "", what).hint("split it"));
        }
        Ok(())
    }
}

/// The entries that a `<<` brings in.
fn sources(value: Node) -> Result<Vec<Entry>, Problem> {
    match value.value {
        Value::Map(entries) => Ok(entries),
        Value::List(items) => {
            let mut all = Vec::new();
            for item in items {
                let Value::Map(entries) = item.value else {
                    return Err(Problem::new(item.line, "<<", "only mappings can be merged"));
                };
                all.extend(entries);
            }
            Ok(all)
        }
        _ => Err(Problem::new(value.line, "<<", "only mappings can be merged")),
    }
}

/// Nodes, bytes of text and height of a tree. Its depth is bounded, so this may recurse.
fn size(node: &Node) -> (usize, usize, usize) {
    let sum = |(nodes, text, height): (usize, usize, usize), child: &Node, key: usize| {
        let (n, t, h) = size(child);
        (nodes + n + usize::from(key > 0), text + t + key, height.max(h + 1))
    };
    match &node.value {
        Value::Null => (1, 0, 0),
        Value::Scalar(text) => (1, text.len(), 0),
        Value::List(items) => items.iter().fold((1, 0, 0), |total, item| sum(total, item, 0)),
        Value::Map(entries) => {
            entries.iter().fold((1, 0, 0), |total, e| sum(total, &e.value, e.key.len().max(1)))
        }
    }
}

/// Tags other than YAML's own mean something that we do not know.
fn check_tag(tag: Option<&Tag>, line: usize) -> Result<(), Problem> {
    match tag {
        Some(tag) if !tag.is_yaml_core_schema() => {
            Err(Problem::new(line, "", format!("the tag {} is not supported", tag.original())))
        }
        _ => Ok(()),
    }
}

fn not_yaml(error: &ScanError) -> Problem {
    let (line, column) = (error.marker().line(), error.marker().col() + 1);
    Problem::new(line, "", format!("not YAML: {} (column {column})", error.info()))
        .hint("check the indentation and the quotes round this line")
}

#[cfg(test)]
mod tests;

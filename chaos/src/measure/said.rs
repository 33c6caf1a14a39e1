//! What an agent's log line says, if it says something that is measured. It must never take one
//! mesh's words for the other's.

/// What an agent said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// It is up.
    Up,
    /// It sees the node of this name alive.
    Lives(String),
    /// It holds the node of this name for dead.
    Fails(String),
    /// It has what this mark stands for: of ours a root of the map, of serf's an event.
    Has(String),
}

/// The part of the log that [`ours`] reads.
pub const OUR_LOG: &str = "info,flocker::agent::observed=debug";

/// Reads a line of one of our agents.
#[must_use]
pub fn ours(line: &str) -> Option<Said> {
    if line.contains("the agent is up") {
        return Some(Said::Up);
    }
    let (_, said) = line.split_once("flocker::agent::observed: ")?;
    if said.starts_with("a node is seen alive") {
        return field(said, "name=").map(Said::Lives);
    }
    if said.starts_with("a node is no longer seen alive") {
        return field(said, "name=").map(Said::Fails);
    }
    said.starts_with("the map has changed").then(|| field(said, "root=").map(Said::Has))?
}

/// Reads a line of a serf agent.
#[must_use]
pub fn serf(line: &str) -> Option<Said> {
    let after = |mark: &str| {
        let (_, rest) = line.split_once(mark)?;
        rest.split_ascii_whitespace().next().map(str::to_owned)
    };
    if line.contains("Serf agent running!") {
        return Some(Said::Up);
    }
    after("EventMemberJoin: ")
        .map(Said::Lives)
        .or_else(|| after("EventMemberFailed: ").map(Said::Fails))
        .or_else(|| after("Received event: user-event: ").map(Said::Has))
}

fn field(line: &str, name: &str) -> Option<String> {
    line.split_ascii_whitespace().find_map(|word| word.strip_prefix(name)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_both_are_understood() {
        let line = "2026-11-25T22:51:17.123456Z DEBUG flocker::agent::observed: ";
        let said = |what: &str| ours(&format!("{line}{what}"));
        assert_eq!(said("a node is seen alive name=n3 live=4"), Some(Said::Lives("n3".into())));
        let gone = said("a node is no longer seen alive name=n3 live=3");
        assert_eq!(gone, Some(Said::Fails("n3".into())));
        let root = said("the map has changed records=12 root=00ff");
        assert_eq!(root, Some(Said::Has("00ff".into())));
        assert_eq!(ours("WARN roll: a node is suspected name=n3"), None, "another module's line");

        let said = |what: &str| serf(&format!("    2026/11/25 22:51:18 [INFO] {what}"));
        assert_eq!(said("serf: EventMemberJoin: b 127.72.9.2"), Some(Said::Lives("b".into())));
        assert_eq!(said("serf: EventMemberFailed: b 127.72.9.2"), Some(Said::Fails("b".into())));
        assert_eq!(said("agent: Received event: user-event: m-1"), Some(Said::Has("m-1".into())));
        assert_eq!(said("agent: Received event: member-join"), None);
    }
}

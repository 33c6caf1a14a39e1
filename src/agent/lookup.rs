//! Finding one thing by what people type: a whole id, or a beginning or an end of one that no other
//! has. Ids begin with their time, alike for what was made together, so the last digits, which
//! lists show, are what people copy.

use crate::api::{ApiError, ErrorCode};

/// Fewest digits that are taken for a part of an id.
const FEWEST: usize = 2;
/// Most candidates named in an error.
const NAMED: usize = 8;

/// The one item whose id (in hexadecimal digits) the text names. `what` is the kind of item, and
/// `list` the command that lists them.
pub(super) fn by_id<T>(
    what: &str,
    list: &str,
    text: &str,
    items: impl Iterator<Item = (String, T)>,
) -> Result<T, ApiError> {
    let wanted = text.trim().to_ascii_lowercase().replace('-', "");
    let hint = format!("list them: {list}");
    let shown: String = text.chars().take(80).filter(|c| !c.is_control()).collect();
    let none = || ApiError::not_found(format!("there is no {what} '{shown}'")).hint(hint.clone());
    if wanted.len() < FEWEST || !wanted.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(none());
    }
    let matches = |id: &str| {
        let last = &id[id.len().saturating_sub(8)..];
        id.starts_with(&wanted) || id.ends_with(&wanted) || last.starts_with(&wanted)
    };
    let mut found: Vec<(String, T)> = items.filter(|(id, _)| matches(id)).collect();
    if found.len() > 1 {
        let ids: Vec<&str> = found.iter().take(NAMED).map(|(id, _)| id.as_str()).collect();
        let text = format!("'{shown}' names {} {what}s: {}", found.len(), ids.join(", "));
        return Err(ApiError::new(ErrorCode::Usage, text).hint("give more digits"));
    }
    found.pop().map(|(_, item)| item).ok_or_else(none)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(text: &str) -> Result<u8, ApiError> {
        let ids = ["0190aaaa00007000800011112222a3f9", "0190aaaa0000700080003333444455aa"];
        by_id("token", "flocker token ls", text, ids.iter().map(|i| (*i).to_owned()).zip(1..))
    }

    #[test]
    fn a_part_that_no_other_has_is_enough() {
        assert_eq!(find("2222A3F9"), Ok(1));
        assert_eq!(find("a3f9"), Ok(1));
        assert_eq!(find("4444"), Ok(2), "the first digits of what lists show");
        assert_eq!(find("0190aaaa0000700080003333444455aa"), Ok(2));
        assert_eq!(find("0190aaaa-0000-7000-8000-3333444455aa"), Ok(2));
    }

    #[test]
    fn what_names_none_or_several_says_so() {
        assert_eq!(find("0190").expect_err("two").code, ErrorCode::Usage);
        for text in ["", "a", "ffff", "xyz", "aa\u{1b}"] {
            let error = find(text).expect_err(text);
            assert_eq!(error.code, ErrorCode::NotFound, "{text}");
            assert!(error.hint.contains("flocker token ls") && !error.message.contains('\u{1b}'));
        }
    }
}

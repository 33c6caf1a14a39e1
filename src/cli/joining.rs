//! From what the command line, files and the environment say of joining to one join string. The
//! form alone is looked at; what the token says is the agent's affair. No token is ever shown.

use crate::api::{ApiError, ErrorCode};

/// The join string `TOKEN@HOSTS`, if this node is to join. `join` is that whole, or the hosts alone
/// if the token is given apart; `has_joined` says that the node needs neither any more.
pub(super) fn line(
    join: Option<String>,
    token: Option<String>,
    seeds: &[String],
    has_joined: bool,
) -> Result<Option<String>, ApiError> {
    let line = match (join, token) {
        (None, None) => return Ok(None),
        (Some(join), None) => join,
        // What names both goes before a token that was left in the environment.
        (Some(join), Some(_)) if join.contains('@') => join,
        (None, Some(token)) if token.contains('@') => token,
        (Some(hosts), Some(token)) => format!("{token}@{hosts}"),
        (None, Some(token)) if !seeds.is_empty() => format!("{token}@{}", seeds.join(",")),
        (None, Some(_)) if has_joined => return Ok(None),
        (None, Some(_)) => {
            let text = "there is a token to join with, and no host to join at";
            return Err(ApiError::new(ErrorCode::Usage, text)
                .hint("name a node with --join HOST or --seeds HOST, or take the token away"));
        }
    };
    check(&line).map(|()| Some(line))
}

fn check(join: &str) -> Result<(), ApiError> {
    let good = join.split_once('@').is_some_and(|(token, hosts)| {
        !token.is_empty() && !hosts.is_empty() && !join.contains(char::is_whitespace)
    });
    if good {
        return Ok(());
    }
    Err(ApiError::new(ErrorCode::Usage, "the join string has not the form TOKEN@HOST[:PORT],...")
        .hint("copy the whole line that 'flocker token create' printed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn a_line_is_put_together_from_whatever_was_given() {
        let seeds = ["a".to_owned(), "b:1".to_owned()];
        for (join, token, seeds, wanted) in [
            (None, None, &seeds[..], None),
            (text("t@a"), None, &[], text("t@a")),
            (text("t@a"), text("other"), &[], text("t@a")),
            (text("a,b"), text("t"), &[], text("t@a,b")),
            (None, text("t@a"), &[], text("t@a")),
            (None, text("t"), &seeds, text("t@a,b:1")),
        ] {
            assert_eq!(line(join, token, seeds, false), Ok(wanted));
        }
        assert_eq!(line(None, text("t"), &[], true), Ok(None), "it has joined before");
    }

    #[test]
    fn what_is_not_whole_is_refused_and_never_shown() {
        assert!(line(text("flk1-abc@10.0.0.1,[::1]:4523"), None, &[], false).is_ok());
        for bad in ["flk1-abc", "@host", "flk1-abc@", "flk1-abc@a b"] {
            let error = line(text(bad), None, &[], false).expect_err(bad);
            assert!(!error.to_string().contains("abc"), "a token is never shown");
        }
        let error = line(None, text("flk1-abc"), &[], false).expect_err("no host");
        assert!(!format!("{error:?}").contains("abc") && error.hint.contains("--join HOST"));
    }
}

//! Splitting a command line into words as a POSIX shell does, without any expansion.

/// The words, or what is not closed.
pub(super) fn split(line: &str) -> Result<Vec<String>, &'static str> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            ' ' | '\t' | '\n' | '\r' => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match characters.next() {
                        Some('\'') => break,
                        Some(inside) => word.push(inside),
                        None => return Err("a ' is not closed"),
                    }
                }
            }
            '"' => double_quoted(&mut characters, word.get_or_insert_default())?,
            '\\' => match characters.next() {
                Some('\n') => {}
                Some(escaped) => word.get_or_insert_default().push(escaped),
                None => return Err("a \\ stands at the end"),
            },
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    Ok(words)
}

fn double_quoted(
    characters: &mut std::str::Chars<'_>,
    word: &mut String,
) -> Result<(), &'static str> {
    loop {
        match characters.next() {
            Some('"') => return Ok(()),
            Some('\\') => match characters.next() {
                Some('\n') => {}
                Some(escaped @ ('"' | '\\' | '$' | '`')) => word.push(escaped),
                Some(other) => word.extend(['\\', other]),
                None => return Err("a \" is not closed"),
            },
            Some(inside) => word.push(inside),
            None => return Err("a \" is not closed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_are_split_as_a_shell_does() {
        for (line, words) in [
            ("a b  c", &["a", "b", "c"][..]),
            ("sh -c 'echo \"hi there\"'", &["sh", "-c", "echo \"hi there\""]),
            (r#"a "b \" \n c" \ d"#, &["a", r#"b " \n c"#, " d"]),
            ("'' \"\"", &["", ""]),
            ("x'y'\"z\"", &["xyz"]),
            ("  ", &[]),
        ] {
            assert_eq!(split(line).expect(line), words, "{line}");
        }
        for open in ["'a", "\"a", "\"a\\", "a\\"] {
            assert!(split(open).is_err(), "{open}");
        }
    }

    proptest! {
        #[test]
        fn quoted_words_come_back(words in prop::collection::vec("\\PC{0,12}", 0..6)) {
            let line: Vec<String> =
                words.iter().map(|word| format!("'{}'", word.replace('\'', "'\\''"))).collect();
            prop_assert_eq!(split(&line.join(" ")), Ok(words));
        }
    }
}

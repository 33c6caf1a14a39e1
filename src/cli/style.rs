//! How things look: colour, symbols, words. State is never said by colour alone.

use std::io::IsTerminal;

/// When to colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ColourChoice {
    /// On a terminal, unless `NO_COLOR` is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Whether to colour, which symbols to use, how much to show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// Write ANSI colours.
    pub colour: bool,
    /// Keep to ASCII.
    pub ascii: bool,
    /// Show ids and addresses too.
    pub wide: bool,
}

/// A state as a symbol. The word always stands beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// As it should be.
    Good,
    /// Behind, or on its way.
    Partly,
    /// Not there.
    Down,
    /// Kept from acting.
    Fenced,
    /// Not known.
    Unknown,
}

impl Mark {
    const ALL: [Self; 4] = [Self::Good, Self::Partly, Self::Down, Self::Fenced];

    const fn symbol(self, ascii: bool) -> &'static str {
        match (self, ascii) {
            (Self::Good, false) => "●",
            (Self::Good, true) => "[+]",
            (Self::Partly, false) => "◐",
            (Self::Partly, true) => "[~]",
            (Self::Down, false) => "○",
            (Self::Down, true) => "[-]",
            (Self::Fenced, false) => "⊘",
            (Self::Fenced, true) => "[x]",
            (Self::Unknown, false) => "?",
            (Self::Unknown, true) => "[?]",
        }
    }

    const fn colour(self) -> &'static str {
        match self {
            Self::Good => "32",
            Self::Partly | Self::Unknown => "33",
            Self::Down | Self::Fenced => "31",
        }
    }
}

impl Style {
    /// The style of what goes to the standard output.
    #[must_use]
    pub fn for_stdout(choice: ColourChoice, ascii: bool, wide: bool) -> Self {
        let colour =
            wants_colour(choice, std::io::stdout().is_terminal(), &|name| std::env::var(name).ok());
        Self { colour, ascii, wide }
    }

    /// The symbol of a state.
    #[must_use]
    pub const fn mark(&self, mark: Mark) -> &'static str {
        mark.symbol(self.ascii)
    }

    /// An arrow to the right.
    #[must_use]
    pub const fn arrow(&self) -> &'static str {
        if self.ascii { "->" } else { "→" }
    }

    /// A heading.
    #[must_use]
    pub fn heading(&self, text: &str) -> String {
        if self.colour { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Colours the symbols in a finished text. Done last, so that columns are measured without
    /// colour.
    #[must_use]
    pub fn paint(&self, text: String) -> String {
        if !self.colour {
            return text;
        }
        Mark::ALL.into_iter().fold(text, |text, mark| {
            let symbol = self.mark(mark);
            text.replace(symbol, &format!("\x1b[{}m{symbol}\x1b[0m", mark.colour()))
        })
    }
}

/// `NO_COLOR` and `CLICOLOR_FORCE` as <https://no-color.org> and <https://bixense.com/clicolors>
/// have them. The flag outranks both.
fn wants_colour(
    choice: ColourChoice,
    terminal: bool,
    variable: &dyn Fn(&str) -> Option<String>,
) -> bool {
    let set = |name| variable(name).filter(|value| !value.is_empty());
    match choice {
        ColourChoice::Always => true,
        ColourChoice::Never => false,
        ColourChoice::Auto => {
            if set("NO_COLOR").is_some() {
                false
            } else if set("CLICOLOR_FORCE").is_some_and(|value| value != "0") {
                true
            } else {
                terminal
                    && set("CLICOLOR").is_none_or(|value| value != "0")
                    && set("TERM").is_none_or(|value| value != "dumb")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_and_the_flag_decide_on_colour() {
        let with = |choice, terminal, variables: &[(&str, &str)]| {
            wants_colour(choice, terminal, &|name| {
                variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned())
            })
        };
        assert!(with(ColourChoice::Auto, true, &[]));
        assert!(!with(ColourChoice::Auto, false, &[]));
        assert!(!with(ColourChoice::Auto, true, &[("NO_COLOR", "1"), ("CLICOLOR_FORCE", "1")]));
        assert!(with(ColourChoice::Auto, true, &[("NO_COLOR", "")]));
        assert!(with(ColourChoice::Auto, false, &[("CLICOLOR_FORCE", "1")]));
        assert!(!with(ColourChoice::Auto, false, &[("CLICOLOR_FORCE", "0")]));
        assert!(!with(ColourChoice::Auto, true, &[("TERM", "dumb")]));
        assert!(with(ColourChoice::Always, false, &[("NO_COLOR", "1")]));
        assert!(!with(ColourChoice::Never, true, &[("CLICOLOR_FORCE", "1")]));
    }

    #[test]
    fn paint_changes_colours_and_nothing_else() {
        let style = Style { colour: true, ..Style::default() };
        let painted = style.paint("● a  ○ b".to_owned());
        assert_eq!(painted, "\x1b[32m●\x1b[0m a  \x1b[31m○\x1b[0m b");
        assert_eq!(Style::default().paint("● a".to_owned()), "● a");
    }
}

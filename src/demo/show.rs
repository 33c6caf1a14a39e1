//! What the demo prints: steps, commands as a user would type them, and ticks. With `--json` it
//! says all this on stderr and leaves stdout to the report.

use std::io::Write;

use anyhow::{Context, Result};

use super::report::{Promise, Report};
use crate::api::{Envelope, Schema as _};
use crate::cli::style::Style;

/// The demo's voice.
#[derive(Debug)]
pub(super) struct Show {
    style: Style,
    json: bool,
    step: u32,
}

impl Show {
    pub(super) const fn new(style: Style, json: bool) -> Self {
        Self { style, json, step: 0 }
    }

    pub(super) const fn style(&self) -> &Style {
        &self.style
    }

    /// Opens the next numbered step.
    pub(super) fn step(&mut self, text: &str) {
        self.step += 1;
        self.line("");
        self.line(&self.bold(&format!("{}. {text}", self.step)));
    }

    /// A command as a user would type it.
    pub(super) fn command(&self, text: &str) {
        self.line(&self.dim(&format!("   $ {text}")));
    }

    /// One line under the step.
    pub(super) fn say(&self, text: &str) {
        self.line(&format!("   {text}"));
    }

    /// Several lines under the step.
    pub(super) fn block(&self, text: &str) {
        for line in text.lines() {
            self.line(format!("     {line}").trim_end());
        }
    }

    /// A promise and whether it held.
    pub(super) fn promise(&self, promise: &Promise) {
        let (mark, colour) = match (promise.held, self.style.ascii) {
            (true, false) => ("✓", "32"),
            (true, true) => ("ok", "32"),
            (false, false) => ("✗", "31"),
            (false, true) => ("BROKEN", "31"),
        };
        let word = if promise.held { "" } else { " (did not hold)" };
        self.line(&format!("   {} {}{word}", self.paint(mark, colour), promise.text));
    }

    /// A line as it is. A reader that went away does not stop the demo.
    pub(super) fn line(&self, text: &str) {
        let written = if self.json {
            writeln!(std::io::stderr().lock(), "{text}")
        } else {
            writeln!(std::io::stdout().lock(), "{text}")
        };
        if let Err(error) = written {
            tracing::debug!(%error, "cannot print");
        }
    }

    /// The report as JSON on stdout.
    pub(super) fn json(&self, report: &Report) -> Result<()> {
        debug_assert!(self.json, "schema {}", Report::SCHEMA);
        let text = serde_json::to_string_pretty(&Envelope::new(report.clone()))
            .context("cannot write the report")?;
        writeln!(std::io::stdout().lock(), "{text}").context("cannot print the report")
    }

    fn bold(&self, text: &str) -> String {
        self.paint(text, "1")
    }

    fn dim(&self, text: &str) -> String {
        self.paint(text, "2")
    }

    fn paint(&self, text: &str, code: &str) -> String {
        if self.style.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

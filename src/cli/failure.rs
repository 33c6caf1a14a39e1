//! Errors on their way out: one line that says what to do, or one JSON document; an exit code.

use std::ffi::OsString;
use std::io;

use clap::CommandFactory;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::args::Cli;

use crate::api::{ApiError, Envelope, ErrorCode};
use crate::manifest::ManifestError;

/// The error of a deployment file.
pub(super) fn of_manifest(error: &ManifestError) -> ApiError {
    match error {
        ManifestError::Missing(_) => ApiError::new(ErrorCode::FileMissing, error.to_string())
            .hint("check the path; 'flocker help deploy' shows what goes into such a file"),
        ManifestError::Unreadable { source, .. } => of_io(error.to_string(), source),
        ManifestError::Wrong(fault) => {
            ApiError::new(ErrorCode::BadManifest, fault.to_string()).hint(fault.hint.clone())
        }
    }
}

/// The error of a file that can't be read.
pub(super) fn of_io(message: String, error: &io::Error) -> ApiError {
    let (code, hint) = match error.kind() {
        io::ErrorKind::NotFound => (ErrorCode::FileMissing, "check the path"),
        io::ErrorKind::PermissionDenied => (ErrorCode::NotPermitted, "check who may read it"),
        io::ErrorKind::IsADirectory => (ErrorCode::Usage, "give a file"),
        _ => (ErrorCode::Internal, "check the path"),
    };
    ApiError::new(code, message).hint(hint)
}

/// The error of a long-running command: what it said itself, or what the system said beneath.
pub(super) fn of_any(error: &anyhow::Error) -> ApiError {
    if let Some(own) = error.chain().find_map(|cause| cause.downcast_ref::<ApiError>()) {
        return own.clone();
    }
    let message = format!("{error:#}");
    let system = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>());
    match system.map(io::Error::kind) {
        Some(io::ErrorKind::AddrInUse) => ApiError::new(ErrorCode::AddressInUse, message)
            .hint("end what uses it, or choose another with --control-port, --data-port or --http"),
        Some(io::ErrorKind::PermissionDenied) => ApiError::new(ErrorCode::NotPermitted, message)
            .hint("run it as root, or choose a port above 1023 and folders of your own"),
        _ => ApiError::internal(message),
    }
}

/// Wrong usage, as one line. `arguments` are those of the process.
pub(super) fn of_usage(error: &clap::Error, arguments: &[OsString]) -> ApiError {
    let rendered = error.render().to_string();
    let first = one_line(rendered.split("\n\n").next().unwrap_or_default());
    let message = match (error.kind(), error.get(ContextKind::InvalidArg)) {
        (ErrorKind::MissingRequiredArgument, Some(ContextValue::Strings(missing))) => {
            format!("missing: {}", missing.join(", "))
        }
        _ => first.strip_prefix("error: ").unwrap_or(&first).to_owned(),
    };
    let tips = rendered.lines().filter_map(|line| line.trim().strip_prefix("tip: "));
    let mut hints: Vec<String> = tips.map(str::to_owned).collect();
    hints.push(format!("see '{} --help'", command_of(arguments)));
    ApiError::new(ErrorCode::Usage, message).hint(hints.join("; "))
}

/// The words of the command that was meant, as far as it can be told.
fn command_of(arguments: &[OsString]) -> String {
    meant(arguments).get_bin_name().unwrap_or("flocker").to_owned()
}

/// The help of the command that was meant but for its subcommand.
pub(super) fn help_of(arguments: &[OsString]) -> String {
    meant(arguments).render_help().to_string()
}

fn meant(arguments: &[OsString]) -> clap::Command {
    let mut root = Cli::command();
    root.build();
    let mut command = &root;
    for argument in arguments.iter().skip(1).filter_map(|argument| argument.to_str()) {
        command = command.find_subcommand(argument).unwrap_or(command);
    }
    command.clone()
}

/// The error as it is printed.
pub(super) fn line(error: &ApiError, json: bool) -> String {
    if json {
        let document = Envelope::new(error.clone());
        if let Ok(text) = serde_json::to_string(&document) {
            return text;
        }
    }
    let message = one_line(&error.message);
    if error.hint.is_empty() {
        format!("error: {message}")
    } else {
        format!("error: {message}; {}", one_line(&error.hint))
    }
}

/// The text without line ends and control characters.
fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").replace(char::is_control, "?")
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn an_error_is_one_line_without_control_characters() {
        let error = ApiError::internal("a\nb\x1b[31m\r\n  c").hint("do\nthis");
        assert_eq!(line(&error, false), "error: a b?[31m c; do this");
        assert_eq!(
            line(&error, true),
            r#"{"schema":"flocker.error/1","code":"internal","message":"a\nb\u001b[31m\r\n  c","hint":"do\nthis"}"#
        );
    }

    #[test]
    fn the_cause_beneath_gives_the_code() {
        let taken = Err::<(), _>(io::Error::from(io::ErrorKind::AddrInUse))
            .context("can't bind the control port 4523")
            .expect_err("an error");
        let error = of_any(&taken);
        assert_eq!(error.code, ErrorCode::AddressInUse);
        assert!(error.message.starts_with("can't bind the control port 4523: "), "{error}");
        let own = Err::<(), _>(ApiError::new(ErrorCode::AlreadyRunning, "x"))
            .context("outer")
            .expect_err("an error");
        assert_eq!(of_any(&own).code, ErrorCode::AlreadyRunning);
        assert_eq!(of_any(&anyhow::anyhow!("else")).code, ErrorCode::Internal);
    }
}

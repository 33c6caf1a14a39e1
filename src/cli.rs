//! The command line: arguments in, text or JSON out, one exit code.
//!
//! ```text
//!   argv ─▶ args ─▶ commands ─▶ api::client ─▶ agent        results ─▶ render ─▶ stdout
//!                └▶ up, demo ─▶ options ─▶ agent, demo      errors ─▶ failure ─▶ stderr
//! ```
//!
//! Results go to the standard output, all else to the standard error. No command decides
//! anything about the mesh.

mod args;
mod care;
mod care_help;
mod commands;
mod events;
mod failure;
mod help;
mod identity;
mod joining;
mod members;
pub mod options;
mod output;
mod place;
pub mod render;
pub mod style;
mod up;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::api::{ApiError, ErrorCode};
use args::{Cli, Command};
use commands::Context;
use options::DemoOptions;
use output::Ended;

/// Exit code of a command whose reader went away: that of a death by SIGPIPE.
const READER_GONE: u8 = 141;

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    if let Some(outcome) = own_use(&arguments) {
        return outcome
            .map_or_else(|error| failed(&failure::of_any(&error), false), |()| ExitCode::SUCCESS);
    }
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return not_run(&error, &arguments),
    };
    let context = Context::new(cli.global);
    match run(&context, cli.command) {
        Ok(code) => code,
        Err(Ended::ReaderGone) => ExitCode::from(READER_GONE),
        Err(Ended::Failed(error)) => failed(&error, context.json()),
    }
}

fn failed(error: &ApiError, json: bool) -> ExitCode {
    output::note(&failure::line(error, json));
    ExitCode::from(error.code.exit_code())
}

/// The subcommands that flocker starts itself with. They have to come before any thread, file or
/// parsing of what belongs to a service's own command, so they are told apart by their word alone.
fn own_use(arguments: &[OsString]) -> Option<anyhow::Result<()>> {
    let (_program, rest) = arguments.split_first()?;
    let (word, rest) = rest.split_first()?;
    match word.to_str()? {
        crate::engine::launch::SUBCOMMAND => {
            let command = rest.strip_prefix(&[OsString::from("--")]).unwrap_or(rest);
            Some(crate::engine::launch::run(command))
        }
        crate::guard::SUBCOMMAND => {
            Some(crate::guard::GuardOptions::parse(rest).and_then(crate::guard::run))
        }
        _ => None,
    }
}

/// Help and version, or wrong usage.
fn not_run(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _reader_gone = error.print();
            ExitCode::SUCCESS
        }
        // A variable of the environment counts as an argument to clap, hence the second kind.
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            output::note(failure::help_of(arguments).trim_end());
            ExitCode::from(ErrorCode::Usage.exit_code())
        }
        _ => failed(&failure::of_usage(error, arguments), wants_json(arguments)),
    }
}

/// Whether arguments that make no sense asked for JSON all the same.
fn wants_json(arguments: &[OsString]) -> bool {
    let words: Vec<&str> = arguments.iter().filter_map(|argument| argument.to_str()).collect();
    words.iter().any(|word| ["--json", "-ojson", "-o=json", "--output=json"].contains(word))
        || words.windows(2).any(|pair| matches!(pair, ["-o" | "--output", "json"]))
}

fn run(context: &Context, command: Command) -> Result<ExitCode, Ended> {
    let long = |outcome: anyhow::Result<()>| {
        outcome.map(|()| ExitCode::SUCCESS).map_err(|error| failure::of_any(&error).into())
    };
    match command {
        Command::Up(args) => {
            up::log(&args.log, args.log_format, context.style().colour)?;
            let options = up::options(context, *args)?;
            long(runtime()?.block_on(Box::pin(crate::agent::run(options))))
        }
        Command::Demo(args) => demo(context, args),
        Command::Identity(args::Identity::Csr(args)) => {
            identity::csr(context, &args)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Repair(command) => care::repair(context, command).map(|()| ExitCode::SUCCESS),
        Command::Tally => {
            up::log("info", args::LogFormat::Text, false)?;
            long(crate::tally::TallyOptions::from_environment().and_then(|options| {
                single_threaded()?.block_on(Box::pin(crate::tally::run(options)))
            }))
        }
        command => {
            single_threaded()?.block_on(ask(context, command))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The commands that ask the agent.
async fn ask(context: &Context, command: Command) -> Result<(), Ended> {
    match command {
        Command::Status(args) => commands::status(context, &args).await,
        Command::Deploy(args) => commands::deploy(context, &args).await,
        Command::Service(args) => commands::service(context, &args).await,
        Command::Volume(args) => commands::volume(context, &args).await,
        Command::Events(args) => events::events(context, &args).await,
        Command::Move(args) => commands::relocate(context, args).await,
        Command::Token(args) => members::token(context, &args).await,
        Command::Node(args) => members::node(context, &args).await,
        Command::Conflict(command) => care::conflict(context, command).await,
        Command::Quarantine(command) => care::quarantine(context, command).await,
        Command::Pending(command) => care::pending(context, command).await,
        _ => commands::version(context).await,
    }
}

fn demo(context: &Context, args: args::Demo) -> Result<ExitCode, Ended> {
    up::log("warn", args::LogFormat::Text, context.style().colour)?;
    let options = DemoOptions {
        once: args.once,
        dir: args.dir,
        seed: args.seed,
        json: context.json(),
        style: context.style(),
    };
    let outcome = runtime()?.block_on(Box::pin(crate::demo::run(options)));
    outcome.map_err(|error| failure::of_any(&error).into())
}

fn runtime() -> Result<tokio::runtime::Runtime, ApiError> {
    built(tokio::runtime::Builder::new_multi_thread().enable_all().build())
}

fn single_threaded() -> Result<tokio::runtime::Runtime, ApiError> {
    built(tokio::runtime::Builder::new_current_thread().enable_all().build())
}

fn built(
    runtime: std::io::Result<tokio::runtime::Runtime>,
) -> Result<tokio::runtime::Runtime, ApiError> {
    runtime.map_err(|error| {
        ApiError::internal(format!("can't start: {error}"))
            .hint("check the limits on threads and open files")
    })
}

//! The commands that ask the agent. Each is one call of the client and one rendering.

use std::future::Future;
use std::io::{self, BufRead, IsTerminal};
use std::time::Duration;

use flocker_base::Name;
use serde::{Deserialize, Serialize};

use super::args::{self, Format, Global};
use super::output::{self, Ended};
use super::style::Style;
use super::{failure, place, render};
use crate::api::client::Client;
use crate::api::{
    ApiError, Destination, ErrorCode, ExportRequest, MoveEvent, MoveRequest, PromoteRequest,
    Schema, Version,
};
use crate::manifest;

/// Time for commands that only read.
pub(super) const READING: Duration = Duration::from_secs(10);
/// Time for commands that change something.
pub(super) const CHANGING: Duration = Duration::from_secs(60);
/// Time for a move.
const MOVING: Duration = Duration::from_secs(600);

/// What the global options say, made ready for the commands.
pub(super) struct Context {
    global: Global,
    style: Style,
}

impl Context {
    pub(super) fn new(global: Global) -> Self {
        let wide = global.format() == Format::Wide;
        let style = Style::for_stdout(global.color, global.ascii, wide);
        Self { global, style }
    }

    pub(super) const fn style(&self) -> Style {
        self.style
    }

    pub(super) fn json(&self) -> bool {
        self.global.format() == Format::Json
    }

    pub(super) const fn quiet(&self) -> bool {
        self.global.quiet
    }

    pub(super) fn socket(&self) -> std::path::PathBuf {
        self.global.socket.clone().unwrap_or_else(place::socket)
    }

    pub(super) fn client(&self, usual: Duration) -> Client {
        Client::new(self.socket(), self.global.timeout.unwrap_or(usual))
    }
}

/// Gives way to Ctrl-C. `after` says what the agent does all the same.
pub(super) async fn unless_interrupted<T>(
    work: impl Future<Output = Result<T, ApiError>>,
    after: &str,
) -> Result<T, ApiError> {
    tokio::select! {
        ended = work => ended,
        _ = tokio::signal::ctrl_c() => {
            Err(ApiError::new(ErrorCode::Interrupted, "interrupted").hint(after))
        }
    }
}

pub(super) const NOTHING_CHANGED: &str = "nothing was changed";
pub(super) const MAY_GO_ON: &str = "the agent may go on with it: see 'flocker status'";

pub(super) async fn status(context: &Context, args: &args::Status) -> Result<(), Ended> {
    let client = context.client(READING);
    let status = unless_interrupted(client.status(), NOTHING_CHANGED).await?;
    let needed = status.attention.len();
    if context.json() {
        output::document(status)?;
    } else if !context.quiet() {
        output::result(&render::status(&status, &context.style))?;
    }
    if args.check && needed > 0 {
        let text = if needed == 1 { "1 thing needs" } else { &format!("{needed} things need") };
        return Err(ApiError::new(ErrorCode::Degraded, format!("{text} a person"))
            .hint("'flocker status' lists it at the top")
            .into());
    }
    Ok(())
}

pub(super) async fn deploy(context: &Context, args: &args::Deploy) -> Result<(), Ended> {
    let deployment = manifest::load(&args.file).map_err(|error| failure::of_manifest(&error))?;
    let client = context.client(CHANGING);
    let reply = unless_interrupted(client.deploy(deployment), MAY_GO_ON).await?;
    if context.json() {
        return output::document(reply);
    }
    for warning in &reply.warnings {
        output::note(&format!("warning: {warning}"));
    }
    if context.quiet() { Ok(()) } else { output::result(&render::changes(&reply)) }
}

pub(super) async fn service(context: &Context, args: &args::Service) -> Result<(), Ended> {
    match args {
        args::Service::Ls => {
            let client = context.client(READING);
            let list = unless_interrupted(client.services(), NOTHING_CHANGED).await?;
            if context.json() {
                output::document(list)
            } else if context.quiet() {
                output::result(&names(list.services.iter().map(|service| &service.name)))
            } else {
                output::result(&render::services(&list.services, &context.style))
            }
        }
        args::Service::Rm(args) => remove_service(context, args).await,
    }
}

async fn remove_service(context: &Context, args: &args::ServiceRm) -> Result<(), Ended> {
    if !args.yes {
        confirm(&format!("Stop and forget the service {}? Its volume stays.", args.service))?;
    }
    let client = context.client(CHANGING);
    let removed = unless_interrupted(client.remove_service(&args.service), MAY_GO_ON).await?;
    if context.json() {
        output::document(removed)
    } else if context.quiet() {
        Ok(())
    } else {
        output::result(&render::removed(&removed))
    }
}

/// Asks a person; without one, refuses.
pub(super) fn confirm(question: &str) -> Result<(), ApiError> {
    if !io::stdin().is_terminal() {
        return Err(ApiError::new(ErrorCode::Usage, "this needs a yes, and nobody is here to ask")
            .hint("add --yes"));
    }
    output::note(&format!("{question} [y/N]"));
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    if read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes") {
        Ok(())
    } else {
        Err(ApiError::new(ErrorCode::Interrupted, "not confirmed").hint(NOTHING_CHANGED))
    }
}

pub(super) async fn volume(context: &Context, args: &args::Volume) -> Result<(), Ended> {
    match args {
        args::Volume::Export(args) => return export(context, args).await,
        args::Volume::Promote(args) => return promote(context, args).await,
        args::Volume::Ls => {}
    }
    let client = context.client(READING);
    let list = unless_interrupted(client.volumes(), NOTHING_CHANGED).await?;
    if context.json() {
        output::document(list)
    } else if context.quiet() {
        output::result(&names(list.volumes.iter().map(|volume| &volume.name)))
    } else {
        output::result(&render::volumes(&list.volumes, &context.style))
    }
}

async fn export(context: &Context, args: &args::VolumeExport) -> Result<(), Ended> {
    // The agent's working folder is not the caller's.
    let into = std::path::absolute(&args.to).map_err(|error| {
        ApiError::new(ErrorCode::Usage, format!("cannot use {}: {error}", args.to.display()))
    })?;
    let request = ExportRequest { volume: args.volume.clone(), branch: args.branch.clone(), into };
    let client = context.client(CHANGING);
    let exported = unless_interrupted(client.export(&request), MAY_GO_ON).await?;
    if context.json() {
        output::document(exported)
    } else if context.quiet() {
        Ok(())
    } else {
        output::result(&format!("{} is in {}\n", exported.head, exported.into.display()))
    }
}

async fn promote(context: &Context, args: &args::VolumePromote) -> Result<(), Ended> {
    let args::VolumePromote { volume, node, gone, .. } = args.clone();
    if let Some(gone) = gone.as_ref().filter(|_| !args.yes) {
        confirm(&format!(
            "{gone} is off for good, and what only it had of {volume} may stay behind as a branch on \
             it. Until it hears of this there may be two masters. Go on?"
        ))?;
    }
    let request = PromoteRequest { volume, node, gone };
    let client = context.client(CHANGING);
    let promoted = unless_interrupted(client.promote(&request), MAY_GO_ON).await?;
    if context.json() {
        output::document(promoted)
    } else if context.quiet() {
        Ok(())
    } else {
        output::result(&render::promoted(&promoted))
    }
}

pub(super) async fn relocate(context: &Context, args: args::Move) -> Result<(), Ended> {
    let to = match (args.to, args.region) {
        (Some(node), _) => Destination::Node(node),
        (None, Some(region)) => Destination::Region(region),
        (None, None) => {
            let error = ApiError::new(ErrorCode::Usage, "a move needs a destination");
            return Err(error.hint("give --to NODE or --region REGION").into());
        }
    };
    let client = context.client(MOVING);
    let request = MoveRequest { service: args.service, to };
    let mut reader = Ok(());
    let moving = client.move_service(&request, |step| {
        if context.json() && reader.is_ok() {
            reader = output::document(MoveEvent::Step(step.clone()));
        } else if !context.json() && !context.quiet() {
            output::note(&render::step(step, &context.style));
        }
    });
    let moved =
        unless_interrupted(moving, "the move goes on: watch it with 'flocker status'").await;
    if context.json()
        && let Err(error) = &moved
    {
        output::document(MoveEvent::Failed(error.clone()))?;
    }
    let report = moved?;
    reader?;
    if context.json() {
        output::document(MoveEvent::Done(report))
    } else if context.quiet() {
        Ok(())
    } else {
        output::result(&render::moved(&report))
    }
}

/// The versions on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Versions {
    /// This program's.
    program: String,
    /// The agent's, if one answers.
    agent: Option<Version>,
}

impl Schema for Versions {
    const SCHEMA: &'static str = "flocker.versions/1";
}

pub(super) async fn version(context: &Context) -> Result<(), Ended> {
    let client = context.client(Duration::from_secs(2));
    let program = env!("CARGO_PKG_VERSION").to_owned();
    let agent = client.version().await;
    if context.json() {
        return output::document(Versions { program, agent: agent.ok() });
    }
    let agent = match agent {
        Ok(agent) => format!("flocker {} (agent of {})", agent.version, agent.node),
        Err(error) => error.message,
    };
    output::result(&format!("flocker {program}\n{agent}\n"))
}

fn names<'a>(names: impl Iterator<Item = &'a Name>) -> String {
    names.map(|name| format!("{name}\n")).collect()
}

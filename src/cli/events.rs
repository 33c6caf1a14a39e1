//! `flocker events`: what happened, and what happens. It asks the agent again and again, and prints
//! each event once.

use std::time::Duration;

use super::args;
use super::commands::{Context, NOTHING_CHANGED, unless_interrupted};
use super::output::{self, Ended};
use super::render;
use crate::api::{EventList, EventQuery};

/// How long the agent is to wait for the next event, and the time for its answer.
const WAIT: Duration = Duration::from_secs(15);
const ANSWER: Duration = Duration::from_secs(25);

pub(super) async fn events(context: &Context, args: &args::Events) -> Result<(), Ended> {
    let client = context.client(ANSWER);
    let mut query = EventQuery::default();
    loop {
        let list = unless_interrupted(client.events(&query), NOTHING_CHANGED).await?;
        query.after = list.newest;
        if args.follow {
            query.wait_ms = u64::try_from(WAIT.as_millis()).unwrap_or(u64::MAX);
        }
        show(context, list, args.follow)?;
        if !args.follow {
            return Ok(());
        }
    }
}

fn show(context: &Context, list: EventList, follows: bool) -> Result<(), Ended> {
    if context.json() {
        // While it follows, a list without events says nothing.
        return if follows && list.events.is_empty() { Ok(()) } else { output::document(list) };
    }
    if list.missed > 0 {
        output::note(&format!("{} earlier events are no longer kept", list.missed));
    }
    output::result(&render::events(&list))
}

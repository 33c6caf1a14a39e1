//! This node's certificate while the agent runs: made anew in time, stored durably, then shown by
//! the endpoints that run, without ending a connection. It shows nothing that is not stored.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use flocker_base::{Clock, WallTime};
use flocker_gossip::identity::renewal::{Command, Event, LOOK_EVERY, Renewal};
use flocker_gossip::identity::{NodeIdentity, Validity};
use flocker_quic::Endpoint;
use tokio_util::sync::CancellationToken;

use super::home::Home;
use super::parts::locked;
use crate::api::{Attention, Severity};

/// A certificate that could not be renewed and has less than this left is a danger.
const DANGER: Duration = Duration::from_secs(30 * 24 * 3600);

/// The authority's end is told of from so long before: replacing it means a new cluster.
const AUTHORITY_NOTICE: Duration = Duration::from_secs(2 * 365 * 24 * 3600);

/// The node's certificate, and who shows it.
pub(super) struct Certificate {
    folder: PathBuf,
    clock: Arc<dyn Clock>,
    endpoints: Vec<Endpoint>,
    state: Mutex<State>,
}

struct State {
    identity: NodeIdentity,
    /// Whether the endpoints show another one, since they could not be told.
    unshown: bool,
    /// Why the last attempt to renew it failed.
    problem: Option<String>,
}

impl Certificate {
    /// The certificate of this node's folder.
    pub(super) fn of(home: &Home, endpoints: Vec<Endpoint>, clock: Arc<dyn Clock>) -> Self {
        Self::new(home.folder.clone(), home.identity.clone(), endpoints, clock)
    }

    fn new(
        folder: PathBuf,
        identity: NodeIdentity,
        endpoints: Vec<Endpoint>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let state = Mutex::new(State { identity, unshown: false, problem: None });
        Self { folder, clock, endpoints, state }
    }

    /// Renews the certificate if it is due. Whether there is no trouble. Blocks on the disk.
    fn look(&self) -> bool {
        let mut state = locked(&self.state);
        match self.renew(&mut state) {
            Ok(()) => {
                state.problem = None;
                true
            }
            Err(error) => {
                let why = format!("{error:#}");
                tracing::warn!(why, "this node's certificate could not be renewed: trying again");
                state.problem = Some(why);
                false
            }
        }
    }

    fn renew(&self, state: &mut State) -> Result<()> {
        let now = self.clock.wall();
        if state.identity.needs_renewal(now)? {
            let renewed = state.identity.renewed(now)?;
            renewed.save(&self.folder)?;
            state.identity = renewed;
            state.unshown = true;
            tracing::info!("this node's certificate was made anew");
        }
        if state.unshown {
            let identity = state.identity.to_quic();
            self.endpoints.iter().try_for_each(|endpoint| endpoint.show(&identity))?;
            state.unshown = false;
        }
        Ok(())
    }

    /// What a person has to know of it.
    pub(super) fn attention(&self) -> Vec<Attention> {
        let state = locked(&self.state);
        let now = self.clock.wall();
        let (own, authority) = (state.identity.validity(), state.identity.authority().validity());
        match (own, authority) {
            (Ok(own), Ok(authority)) => notes(&own, &authority, now, state.problem.as_deref()),
            (Err(error), _) | (_, Err(error)) => vec![note(Severity::Critical, error.to_string())],
        }
    }
}

/// Keeps the certificate young until told to stop.
pub(super) async fn run(certificate: Arc<Certificate>, stop: CancellationToken) -> Result<()> {
    let clock = Arc::clone(&certificate.clock);
    let mut core = Renewal::new(clock.boot(), LOOK_EVERY);
    loop {
        let wait = core.next_deadline().saturating_since(clock.boot());
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(wait) => {}
        }
        for command in core.step(clock.boot(), &Event::Due) {
            let Command::Look = command;
            let looker = Arc::clone(&certificate);
            let well = tokio::task::spawn_blocking(move || looker.look()).await?;
            core.step(clock.boot(), if well { &Event::Settled } else { &Event::Failed });
        }
    }
}

fn notes(
    own: &Validity,
    authority: &Validity,
    now: WallTime,
    problem: Option<&str>,
) -> Vec<Attention> {
    let mut notes = Vec::new();
    let left = own.left(now);
    if let Some(why) = problem {
        let severity = if left < DANGER { Severity::Critical } else { Severity::Warning };
        let text = format!(
            "this node's certificate {} and could not be renewed: {why}",
            ends(left, "peers refuse this node's new connections")
        );
        notes.push(note(severity, text));
    }
    let left = authority.left(now);
    if left < AUTHORITY_NOTICE {
        let severity = if left < DANGER { Severity::Critical } else { Severity::Warning };
        let text = format!(
            "the cluster's certificate authority {}: flocker can't replace it yet, so plan a new \
             cluster before then",
            ends(left, "no node accepts another one's new connections")
        );
        notes.push(note(severity, text));
    }
    notes
}

fn ends(left: Duration, then: &str) -> String {
    match left.as_secs() / (24 * 3600) {
        0 if left.is_zero() => format!("has ended ({then})"),
        0 => format!("ends within a day ({then} then)"),
        1 => "ends in 1 day".to_owned(),
        days => format!("ends in {days} days"),
    }
}

fn note(severity: Severity, text: String) -> Attention {
    Attention { severity, text, command: None }
}

#[cfg(test)]
mod tests;

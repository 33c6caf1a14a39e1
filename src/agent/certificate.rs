//! This node's certificate while the agent runs: made anew in time, stored durably, then shown by
//! the endpoints that run, without ending a connection. It shows nothing that is not stored.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Result, bail};
use flocker_base::{BootTime, Clock, WallTime};
use flocker_gossip::identity::renewal::{Command, Event, LOOK_EVERY, Renewal};
use flocker_gossip::identity::{NodeIdentity, Validity};
use flocker_quic::Endpoint;
use tokio_util::sync::CancellationToken;

use super::home::Home;
use super::outside;
use super::parts::locked;
use crate::api::{Attention, Severity};
use crate::cli::options::{OutsideFiles, UpOptions};

/// A certificate that could not be renewed and has less than this left is a danger.
const DANGER: Duration = Duration::from_secs(30 * 24 * 3600);

/// How often the files are read, where the certificate comes from outside.
const REREAD_EVERY: Duration = Duration::from_secs(60);

/// The authority's end is told of from so long before: replacing it means a new cluster.
const AUTHORITY_NOTICE: Duration = Duration::from_secs(2 * 365 * 24 * 3600);

/// The node's certificate, and who shows it.
pub(super) struct Certificate {
    folder: PathBuf,
    clock: Arc<dyn Clock>,
    endpoints: Vec<Endpoint>,
    /// Where the certificate is, if an authority outside the cluster issues it.
    files: Option<OutsideFiles>,
    state: Mutex<State>,
}

struct State {
    identity: NodeIdentity,
    /// Whether the endpoints show another one, since they could not be told.
    unshown: bool,
    /// Why the last attempt to renew it failed.
    problem: Option<String>,
    /// When the log last told of its end.
    told: Option<BootTime>,
}

impl Certificate {
    /// The certificate of this node's folder, or of the files that are kept from outside.
    pub(super) fn of(
        home: &Home,
        options: &UpOptions,
        endpoints: Vec<Endpoint>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let files = options.outside.clone();
        Self { files, ..Self::new(home.folder.clone(), home.identity.clone(), endpoints, clock) }
    }

    fn new(
        folder: PathBuf,
        identity: NodeIdentity,
        endpoints: Vec<Endpoint>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let state = State { identity, unshown: false, problem: None, told: None };
        Self { folder, clock, endpoints, files: None, state: Mutex::new(state) }
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
        if let Some(files) = &self.files {
            return self.reread(files, state, now);
        }
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

    /// Takes what is in the files, if that is another certificate. What can't be used is not taken.
    fn reread(&self, files: &OutsideFiles, state: &mut State, now: WallTime) -> Result<()> {
        let given = outside::read(files, state.identity.store(), now)?;
        if given.authority_cert != state.identity.authority().cert_der() {
            bail!("the authority in {} is another one now", files.ca_cert.display());
        }
        let next = NodeIdentity::outside(state.identity.cluster(), state.identity.store(), given);
        if next != state.identity {
            let shown = next.to_quic();
            self.endpoints.iter().try_for_each(|endpoint| endpoint.show(&shown))?;
            state.identity = next;
            tracing::info!("this node's certificate was taken from its file anew");
        }
        self.tell_of_the_end(state, now)
    }

    /// Warns in the log, now and then, while nobody has brought a new certificate.
    fn tell_of_the_end(&self, state: &mut State, now: WallTime) -> Result<()> {
        let boot = self.clock.boot();
        let quiet = state.told.is_some_and(|told| boot.saturating_since(told) < LOOK_EVERY);
        if let Some(note) = outside_note(&state.identity.validity()?, now)
            && !quiet
        {
            tracing::warn!("{}", note.text);
            state.told = Some(boot);
        }
        Ok(())
    }

    /// What a person has to know of it.
    pub(super) fn attention(&self) -> Vec<Attention> {
        let state = locked(&self.state);
        let now = self.clock.wall();
        let (own, authority) = (state.identity.validity(), state.identity.authority().validity());
        match (own, authority) {
            (Ok(own), Ok(authority)) => {
                let mut notes = notes(&own, &authority, now, state.problem.as_deref());
                if self.files.is_some() && state.problem.is_none() {
                    notes.extend(outside_note(&own, now));
                }
                notes
            }
            (Err(error), _) | (_, Err(error)) => vec![note(Severity::Critical, error.to_string())],
        }
    }
}

/// Keeps the certificate young until told to stop.
pub(super) async fn run(certificate: Arc<Certificate>, stop: CancellationToken) -> Result<()> {
    let clock = Arc::clone(&certificate.clock);
    let every = if certificate.files.is_some() { REREAD_EVERY } else { LOOK_EVERY };
    let mut core = Renewal::new(clock.boot(), every);
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

/// What is said of a certificate whose end is near and that only the operator can renew: in the
/// last quarter of its life, and no more than a month before.
fn outside_note(own: &Validity, now: WallTime) -> Option<Attention> {
    let (left, life) = (own.left(now), own.until.saturating_since(own.from));
    if left >= (life / 4).min(DANGER) {
        return None;
    }
    let severity = if left < life / 10 { Severity::Critical } else { Severity::Warning };
    let text = format!(
        "this node's certificate {}: have its authority sign a new one (flocker identity csr) and \
         write it over the old file",
        ends(left, "peers refuse this node's new connections")
    );
    Some(note(severity, text))
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

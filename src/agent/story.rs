//! The story of each volume's elections, as this node had part in them, among its events: who asked
//! and why, who granted, how long each step took, and what became of the lease.

use std::time::Duration;

use flocker_base::{StoreId, VolumeId};
use flocker_gossip::lease::{CampaignFailure, Election, LeaseEvent};
use flocker_gossip::model::VolumeSpec;

use super::parts::Parts;
use super::reconcile::CampaignReason;

/// This node begins to ask for a volume.
pub(super) fn campaign(parts: &Parts, volume: &VolumeSpec, rank: u32, reason: CampaignReason) {
    let why = match reason {
        CampaignReason::Birth => "it is new",
        CampaignReason::MasterSilent => "its master is silent",
        CampaignReason::Released => "its master released it",
        CampaignReason::Mine => "it was this node's before",
    };
    let text = format!("{} asks for {}: {why} (rank {rank})", parts.name, volume.name);
    add(parts, "election.asked", volume.name.as_str(), text);
}

/// Tells what the lease core says; what it repeats each heartbeat is not told.
pub(super) fn tell(parts: &Parts, event: &LeaseEvent) {
    let Some((kind, text)) = line(parts, event) else { return };
    let volume = event.volume();
    add(parts, kind, &name(parts, volume), text);
}

fn add(parts: &Parts, kind: &str, volume: &str, text: String) {
    parts.events.add_news(parts.clock.wall(), kind, volume, text);
}

fn name(parts: &Parts, volume: VolumeId) -> String {
    let view = parts.map_view();
    view.volume(&volume).map_or_else(|| volume.short(), |known| known.spec.name.to_string())
}

fn line(parts: &Parts, event: &LeaseEvent) -> Option<(&'static str, String)> {
    let (me, of) = (&parts.name, |store: &StoreId| parts.name_of(*store));
    let volume = name(parts, event.volume());
    Some(match event {
        LeaseEvent::Won { epoch, election: Some(election), .. } => {
            let how = steps(election, |store| of(&store).to_string());
            ("election.won", format!("{me} leads {volume} under epoch {epoch}: {how}"))
        }
        LeaseEvent::Won { epoch, election: None, .. } => {
            ("lease.kept", format!("{me} leads {volume} on under epoch {epoch} after its start"))
        }
        LeaseEvent::Freeze { epoch, .. } => (
            "lease.late",
            format!("{volume} is frozen: {me}'s lease of epoch {epoch} was not renewed in time"),
        ),
        LeaseEvent::Lost { epoch, superseded_by: Some(by), .. } => {
            ("lease.lost", format!("{me} lost {volume}: epoch {by} follows its {epoch}"))
        }
        LeaseEvent::Lost { epoch, superseded_by: None, .. } => {
            ("lease.lost", format!("{me} lost {volume}: epoch {epoch} ended without a successor"))
        }
        LeaseEvent::HolderSilent { holder, epoch, .. } => (
            "promise.ended",
            format!("{me} promises {volume} to {} no more: silent (epoch {epoch})", of(holder)),
        ),
        LeaseEvent::HolderReleased { successor: Some(to), .. } => {
            ("lease.released", format!("{volume} was released, for {}", of(to)))
        }
        LeaseEvent::HolderReleased { successor: None, .. } => {
            ("lease.released", format!("{volume} was released, for anyone"))
        }
        LeaseEvent::Behind { best, at, .. } => (
            "election.behind",
            format!("{me} fetches {volume} up to {best} from {} before it leads", of(at)),
        ),
        LeaseEvent::NeedsDecision { newest, .. } => (
            "election.undecided",
            format!(
                "{volume} needs a decision: {} was replicated, and no copy is near it",
                newest.head
            ),
        ),
        LeaseEvent::CampaignFailed { why: CampaignFailure::NoQuorum { missing }, .. } => {
            let missing: Vec<_> = missing.iter().map(|s| of(s).to_string()).collect();
            let text = format!("{me} can't lead {volume}: missing voters: {}", missing.join(", "));
            ("election.failed", text)
        }
        LeaseEvent::CampaignFailed { why: CampaignFailure::Held { holder, epoch }, .. } => (
            "election.failed",
            format!("{me} does not lead {volume}: {} has it under epoch {epoch}", of(holder)),
        ),
        LeaseEvent::CampaignFailed { why, .. } => {
            ("election.failed", format!("{me} does not lead {volume}: {why}"))
        }
        LeaseEvent::VotersChanged { config, .. } => {
            let voters: Vec<_> = config.voters.iter().map(|s| of(s).to_string()).collect();
            ("voters.changed", format!("the voters of {volume} are {}", voters.join(", ")))
        }
        LeaseEvent::Renewed { .. } => return None,
    })
}

/// How long each step took, and whose grants it was.
fn steps(election: &Election, name: impl Fn(StoreId) -> String) -> String {
    let Election { asked, granted, confirmed, by, lost } = election;
    let total = *asked + *granted + *confirmed;
    let by: Vec<_> = by.iter().map(|store| name(*store)).collect();
    let again = match lost {
        0 => String::new(),
        lost => format!(" after {lost} lost"),
    };
    format!(
        "in {} ms{again} (asked {}, granted {}, confirmed {}), granted by {}",
        millis(total),
        millis(*asked),
        millis(*granted),
        millis(*confirmed),
        by.join(", ")
    )
}

fn millis(span: Duration) -> u128 {
    span.as_millis()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_elections_steps_add_up() {
        let ms = Duration::from_millis;
        let by = vec![StoreId::from_bytes([1; 16]), StoreId::from_bytes([2; 16])];
        let election = Election { asked: ms(12), granted: ms(3), confirmed: ms(5), by, lost: 0 };
        let name = |store: StoreId| format!("n{}", store.as_bytes()[0]);
        assert_eq!(
            steps(&election, name),
            "in 20 ms (asked 12, granted 3, confirmed 5), granted by n1, n2"
        );
        let election = Election { lost: 2, ..election };
        assert!(steps(&election, name).contains("20 ms after 2 lost"));
    }
}

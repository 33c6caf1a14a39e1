//! Which records are kept apart instead of merged: live ones that nobody here has heard of,
//! written long ago, while this node was in touch with its peers all the time. They come from a
//! node that was away for long, and a person decides. Pure: time comes in.
//!
//! It must never keep apart what a newcomer learns, nor what a mesh brings that was started after
//! a long pause: a node only judges once it has itself been in touch for as long as it asks of
//! others. See `docs/adr/0004-the-map-on-disk-and-quarantine.md`.

use std::time::Duration;

use flocker_base::{StoreId, WallTime};
use serde::{Deserialize, Serialize};

use super::encoding;
use super::key::{Kind, RecordKey};
use super::record::{IntentState, Record};
use super::stamp::Stamp;
use super::typed::{self, NAME};

/// Most records in quarantine; more are refused until someone decides on these.
pub const MAX_QUARANTINED: usize = 4_096;
/// Name of the note that says for how long this node has been in touch.
pub(super) const ATTENDANCE: &str = "attendance";
/// How often the note is written while nothing else is.
pub(super) const NOTED_EVERY: Duration = Duration::from_secs(3_600);
const VERSION: u8 = 1;

/// When a record comes too late to be merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuarantineConfig {
    /// The absence after which what a node brings is looked at by a person.
    pub after: Duration,
}

impl Default for QuarantineConfig {
    fn default() -> Self {
        Self { after: Duration::from_secs(7 * 86_400) }
    }
}

impl QuarantineConfig {
    /// Checks the setting.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn validate(&self) -> Result<(), &'static str> {
        let range = Duration::from_secs(86_400)..=Duration::from_secs(3_650 * 86_400);
        if range.contains(&self.after) {
            Ok(())
        } else {
            Err("records are quarantined after an absence of one day to ten years")
        }
    }

    /// The longest silence that does not end an attendance. Half of the absence: what was written
    /// during such a silence is then still young when it comes.
    fn longest_gap(&self) -> Duration {
        self.after / 2
    }
}

/// For how long this node has been in touch with its peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Attendance {
    since: WallTime,
    last: WallTime,
    /// The newest record version that it could read meanwhile: what an upgrade lets it read for
    /// the first time is no late-comer's.
    reads: u8,
}

impl Attendance {
    /// The attendance after a contact with a peer: this one goes on, unless there was a gap, the
    /// clock was set back, or the binary learned to read more.
    pub(super) fn after_contact(
        known: Option<Self>,
        now: WallTime,
        config: &QuarantineConfig,
    ) -> Self {
        match known {
            Some(it) if it.goes_on(now, config) => Self { last: now, ..it },
            _ => Self { since: now, last: now, reads: encoding::VERSION },
        }
    }

    fn goes_on(&self, now: WallTime, config: &QuarantineConfig) -> bool {
        self.reads == encoding::VERSION
            && now + super::stamp::MAX_AHEAD >= self.last
            && now.saturating_since(self.last) <= config.longest_gap()
    }

    /// Whether this node would have heard, by now, of anything that old.
    fn is_settled(&self, now: WallTime, config: &QuarantineConfig) -> bool {
        self.goes_on(now, config) && now.saturating_since(self.since) >= config.after
    }

    /// Whether the note on disk has to be written again, after this one was written there.
    pub(super) fn is_news(&self, noted: Option<Self>) -> bool {
        noted.is_none_or(|noted| {
            noted.since != self.since
                || noted.reads != self.reads
                || self.last.saturating_since(noted.last) >= NOTED_EVERY
        })
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        // Writing into memory does not fail for these types; an empty note reads as none.
        postcard::to_extend(self, vec![VERSION]).unwrap_or_default()
    }

    /// A note that cannot be read counts as none: then nothing is kept apart for a while.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (version, body) = bytes.split_first()?;
        (*version == VERSION).then(|| postcard::from_bytes(body).ok()).flatten()
    }
}

/// What is known here about a record that comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// The record itself, alive or deleted.
    pub record: bool,
    /// Of a placement: its volume's record, alive or deleted.
    pub volume: bool,
}

/// Whether the record is to be kept apart.
pub(super) fn comes_too_late(
    key: &RecordKey,
    record: &Record,
    known: Known,
    attendance: Option<Attendance>,
    now: WallTime,
    config: &QuarantineConfig,
) -> bool {
    if known.record || !attendance.is_some_and(|it| it.is_settled(now, config)) {
        return false;
    }
    let written = match record {
        // A node's record says who was admitted, and its flag only takes away.
        _ if key.kind() == Kind::NODE => return false,
        // A deletion brings nothing to life.
        Record::Intent(intent) if intent.fields().is_none() => return false,
        Record::Intent(_) => record.newest().wall(),
        // A placement has no time of its own and goes with its volume.
        Record::Placed(_) if known.volume => return false,
        Record::Placed(_) => match born(key) {
            Some(born) => born,
            None => return false,
        },
    };
    now.saturating_since(written) > config.after
}

/// When an id of UUID version 7 was made.
fn born(key: &RecordKey) -> Option<WallTime> {
    let id: &[u8; 16] = key.id().try_into().ok()?;
    let mut millis = [0; 8];
    millis[2..].copy_from_slice(&id[..6]);
    (id[6] >> 4 == 7).then(|| WallTime::from_millis(u64::from_be_bytes(millis)))
}

/// A record that is kept apart, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantined {
    /// The node that brought it first.
    pub from: StoreId,
    /// When it came, by this node's clock.
    pub at: WallTime,
    /// When it was last written, by its writer's clock; nothing for a placement.
    pub written: Option<Stamp>,
    /// The name that it wants.
    pub name: Option<String>,
}

/// A record that is kept apart, with all that is stored of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    pub from: StoreId,
    pub at: WallTime,
    pub record: Record,
}

#[derive(Serialize, Deserialize)]
struct WireKept {
    from: StoreId,
    at: WallTime,
    record: Vec<u8>,
}

impl Kept {
    pub(super) fn shown(&self, key: &RecordKey) -> Quarantined {
        let written = match &self.record {
            Record::Intent(_) => Some(self.record.newest()),
            Record::Placed(_) => None,
        };
        let name = match &self.record {
            Record::Intent(intent) if matches!(intent.state, IntentState::Live(_)) => {
                let fields = typed::shown(key.kind(), intent);
                fields.get(&NAME).and_then(|bytes| postcard::from_bytes::<String>(bytes).ok())
            }
            _ => None,
        };
        // Only these kinds have a name in this field; a token has its secret there.
        let named = matches!(key.kind(), Kind::VOLUME | Kind::SERVICE);
        Quarantined { from: self.from, at: self.at, written, name: name.filter(|_| named) }
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>, encoding::DecodeError> {
        let record = encoding::encode(&self.record)?;
        let wire = WireKept { from: self.from, at: self.at, record };
        postcard::to_extend(&wire, vec![VERSION])
            .map_err(|_refused| encoding::DecodeError::Malformed("a value cannot be written"))
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, encoding::DecodeError> {
        let malformed = encoding::DecodeError::Malformed("it does not parse");
        let Some((&VERSION, body)) = bytes.split_first() else { return Err(malformed) };
        let wire: WireKept = postcard::from_bytes(body).map_err(|_refused| malformed)?;
        let record = encoding::decode_own(&wire.record)?;
        Ok(Self { from: wire.from, at: wire.at, record })
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::{Intent, Placed, Tombstone};
    use super::super::register::Register;
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);
    const NOON: WallTime = WallTime::from_millis(1_700_000_000_000);
    const UNKNOWN: Known = Known { record: false, volume: false };

    fn days(number: u32) -> WallTime {
        NOON + DAY * number
    }

    fn live(written: WallTime) -> Record {
        let mut register = Register::default();
        register.write(StoreId::from_bytes([1; 16]), Stamp::at(written), vec![1]);
        let state = IntentState::Live([(1, register)].into());
        Record::Intent(Intent { life: 0, state })
    }

    fn key(kind: Kind) -> RecordKey {
        RecordKey::new(kind, flocker_base::VolumeId::new(NOON, [1; 10]).as_bytes())
    }

    /// The attendance of a node that hears from a peer every day from the first to the last.
    fn daily(first: u32, last: u32) -> Option<Attendance> {
        let config = QuarantineConfig::default();
        (first..=last)
            .fold(None, |known, day| Some(Attendance::after_contact(known, days(day), &config)))
    }

    fn late(kind: Kind, record: &Record, known: Known, it: Option<Attendance>, day: u32) -> bool {
        let config = QuarantineConfig::default();
        comes_too_late(&key(kind), record, known, it, days(day), &config)
    }

    #[test]
    fn what_is_old_and_unknown_to_a_node_that_was_always_there_is_kept_apart() {
        let record = live(days(1));
        assert!(late(Kind::VOLUME, &record, UNKNOWN, daily(0, 20), 20));
        assert!(late(Kind(77), &record, UNKNOWN, daily(0, 20), 20), "of unknown kinds as well");
        assert!(!late(Kind::VOLUME, &live(days(14)), UNKNOWN, daily(0, 20), 20), "it is young");
        let known = Known { record: true, volume: false };
        assert!(!late(Kind::VOLUME, &record, known, daily(0, 20), 20), "it is known");
        assert!(!late(Kind::NODE, &record, UNKNOWN, daily(0, 20), 20), "a node's record");
    }

    #[test]
    fn a_deletion_is_never_kept_apart() {
        let (stamp, actor) = (Stamp::at(days(1)), StoreId::from_bytes([1; 16]));
        let state = IntentState::Deleted(Tombstone { stamp, actor, label: String::new() });
        let deleted = Record::Intent(Intent { life: 1, state });
        assert!(!late(Kind::VOLUME, &deleted, UNKNOWN, daily(0, 20), 20));
    }

    #[test]
    fn a_placement_goes_with_its_volume() {
        let placed = Record::Placed(Placed {
            epoch: flocker_base::Epoch::new(0, 1),
            sequence: 1,
            holder: StoreId::from_bytes([1; 16]),
            content: std::collections::BTreeMap::new(),
        });
        assert!(late(Kind::PLACEMENT, &placed, UNKNOWN, daily(0, 20), 20));
        let known = Known { record: false, volume: true };
        assert!(!late(Kind::PLACEMENT, &placed, known, daily(0, 20), 20));
        assert!(!late(Kind::PLACEMENT, &placed, UNKNOWN, daily(0, 20), 6), "a young volume");
    }

    #[test]
    fn newcomers_and_a_mesh_after_a_long_pause_take_everything() {
        let record = live(days(1));
        assert!(!late(Kind::VOLUME, &record, UNKNOWN, None, 20), "never in touch");
        assert!(!late(Kind::VOLUME, &record, UNKNOWN, daily(19, 20), 20), "a newcomer");
        assert!(!late(Kind::VOLUME, &record, UNKNOWN, daily(0, 8), 20), "it was away itself");
        let config = QuarantineConfig::default();
        let back = Attendance::after_contact(daily(0, 8), days(20), &config);
        assert!(!late(Kind::VOLUME, &record, UNKNOWN, Some(back), 20), "and is back just now");
        assert!(!late(Kind::VOLUME, &record, UNKNOWN, Some(back), 22));
    }

    #[test]
    fn what_a_short_absence_missed_is_taken() {
        let config = QuarantineConfig::default();
        // Away from day 10 to day 13; the record was written on day 10 and comes on day 13.
        let back = Attendance::after_contact(daily(0, 10), days(13), &config);
        assert!(!late(Kind::VOLUME, &live(days(10)), UNKNOWN, Some(back), 13));
        // Even if the pull takes some more days.
        assert!(!late(Kind::VOLUME, &live(days(10)), UNKNOWN, Some(back), 16));
    }

    #[test]
    fn a_clock_that_jumps_starts_the_attendance_anew() {
        let config = QuarantineConfig::default();
        let ahead = Attendance::after_contact(daily(0, 20), days(40), &config);
        assert!(!late(Kind::VOLUME, &live(days(20)), UNKNOWN, Some(ahead), 40));
        let back = Attendance::after_contact(Some(ahead), days(20), &config);
        assert!(!late(Kind::VOLUME, &live(days(1)), UNKNOWN, Some(back), 20));
        assert_eq!(back.since, days(20));
    }

    #[test]
    fn what_a_new_binary_reads_for_the_first_time_is_taken() {
        let old = daily(0, 20).map(|it| Attendance { reads: encoding::VERSION - 1, ..it });
        assert!(!late(Kind::VOLUME, &live(days(1)), UNKNOWN, old, 20));
    }

    #[test]
    fn golden_bytes() {
        let it = Attendance { since: days(0), last: days(1), reads: 1 };
        let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
        assert_eq!(hex(&it.encode()), "0180d095ffbc318088afa8bd3101");
        assert_eq!(Attendance::decode(&it.encode()), Some(it));
        assert_eq!(Attendance::decode(&[2, 0]), None);
        let (from, record) = (StoreId::from_bytes([2; 16]), live(NOON));
        let kept = Kept { from, at: days(1), record };
        let bytes = kept.encode().expect("encodes");
        assert_eq!(Kept::decode(&bytes).expect("decodes"), kept);
        assert_eq!(
            hex(&bytes),
            "0110020202020202020202020202020202028088afa8bd3124010000010101011001010101010101010101010101010101808080c0d6fcf3c501000101"
        );
        for cut in 0..bytes.len() {
            assert!(Kept::decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn the_setting_has_a_range() {
        assert!(QuarantineConfig::default().validate().is_ok());
        assert!(QuarantineConfig { after: Duration::from_secs(60) }.validate().is_err());
    }
}

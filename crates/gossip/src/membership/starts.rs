//! How often this node has started lately, and how long it therefore waits before it announces
//! itself. Each start that is announced makes a state in its region's pool that stays for a while;
//! an agent that starts over and over would fill the pool, and the region's gossip would end. The
//! wait holds back nothing else: leases and the map work meanwhile.

use std::time::Duration;

use flocker_base::WallTime;
use redb::{Database, Durability, ReadableDatabase, TableDefinition};

/// Key: always 0. Value: a version byte and the times, eight bytes each, the oldest first.
const TABLE: TableDefinition<'_, u8, &[u8]> = TableDefinition::new("starts");
const VERSION: u8 = 1;

/// The most starts that are remembered.
const REMEMBERED: usize = 176;

/// For how long a start counts: as long as its state stays.
const COUNTED: Duration = Duration::from_secs(30 * 60);

/// Starts within that time that are not held back: more than any repair by hand needs, and so few
/// that several nodes that do nothing else leave room in a pool.
const FREE: usize = 160;

/// The wait of the first start beyond them, doubled with each, and the longest.
const FIRST_WAIT: Duration = Duration::from_secs(5);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Notes that this node starts now. Returns how long it is to wait before it announces itself.
/// Blocks on the disk.
///
/// # Errors
/// When the database fails; the process must then end.
pub fn note(database: &Database, now: WallTime) -> Result<Duration, redb::Error> {
    let mut starts = Vec::new();
    match database.begin_read()?.open_table(TABLE) {
        // What can't be read is of a later version, or damaged; the wait is then none.
        Ok(table) => starts = table.get(0)?.and_then(|v| decode(v.value())).unwrap_or_default(),
        Err(redb::TableError::TableDoesNotExist(_)) => {}
        Err(error) => return Err(error.into()),
    }
    starts.push(now);
    let begin = starts.len().saturating_sub(REMEMBERED);
    let starts = &starts[begin..];
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    transaction.open_table(TABLE)?.insert(0, encode(starts).as_slice())?;
    transaction.commit()?;
    Ok(wait(starts, now))
}

/// The wait after these starts, of which the last is now.
fn wait(starts: &[WallTime], now: WallTime) -> Duration {
    let counts = |start: &&WallTime| {
        now.as_millis()
            .checked_sub(start.as_millis())
            .is_some_and(|ago| u128::from(ago) < COUNTED.as_millis())
    };
    let Some(beyond) = starts.iter().filter(counts).count().checked_sub(FREE + 1) else {
        return Duration::ZERO;
    };
    let doubled = u32::try_from(beyond).ok().and_then(|n| 1_u32.checked_shl(n));
    FIRST_WAIT.saturating_mul(doubled.unwrap_or(u32::MAX)).min(LONGEST_WAIT)
}

fn encode(starts: &[WallTime]) -> Vec<u8> {
    let times = starts.iter().flat_map(|start| start.as_millis().to_le_bytes());
    std::iter::once(VERSION).chain(times).collect()
}

fn decode(value: &[u8]) -> Option<Vec<WallTime>> {
    let (version, times) = value.split_first()?;
    let (times, []) = times.as_chunks() else { return None };
    (*version == VERSION && times.len() <= REMEMBERED)
        .then(|| times.iter().map(|t| WallTime::from_millis(u64::from_le_bytes(*t))).collect())
}

#[cfg(test)]
mod tests {
    use redb::backends::InMemoryBackend;

    use super::*;

    fn at(secs: u64) -> WallTime {
        WallTime::from_millis(1_800_000_000_000 + secs * 1000)
    }

    #[test]
    fn a_node_that_starts_over_and_over_waits_longer_and_one_that_does_not_never() {
        let database = Database::builder().create_with_backend(InMemoryBackend::new());
        let database = database.expect("opens");
        let waits: Vec<_> =
            (0..172).map(|n| note(&database, at(n)).expect("noted").as_secs()).collect();
        assert_eq!(waits[..160], [0; 160], "so many starts are free");
        assert_eq!(waits[160..165], [5, 10, 20, 40, 60]);
        assert_eq!(waits[171], 60, "and no more than that");
        assert_eq!(note(&database, at(3600)).expect("noted"), Duration::ZERO, "an hour later");
        for n in 1..100 {
            assert_eq!(note(&database, at(3600 + n * 200)).expect("noted"), Duration::ZERO);
        }
    }

    #[test]
    fn a_clock_that_went_back_holds_nobody_up() {
        let starts: Vec<_> = (0..16).map(|n| at(10_000 + n)).chain([at(0)]).collect();
        assert_eq!(wait(&starts, at(0)), Duration::ZERO);
    }

    #[test]
    fn the_stored_form_is_fixed_and_a_damaged_one_is_none() {
        let bytes = [1, 1, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0];
        let starts = [WallTime::from_millis(1), WallTime::from_millis(258)];
        assert_eq!(encode(&starts), bytes);
        assert_eq!(decode(&bytes).as_deref(), Some(&starts[..]));
        for bad in [&bytes[..16], &[2, 1, 0, 0, 0, 0, 0, 0, 0], &[], &[1; 1 + 177 * 8]] {
            assert_eq!(decode(bad), None);
        }
    }
}

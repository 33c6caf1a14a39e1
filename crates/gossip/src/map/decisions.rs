//! What people decide about what is kept beside the map: records in quarantine, edits that wait
//! for a master. It must never decide anything by itself.

use super::change::{fit, renewed};
use super::pending::{MAX_PENDING, Pending};
use super::record::{IntentState, Record, Tombstone};
use super::{Amendment, Kind, Map, MapError, RecordKey, room};

impl Map {
    /// Takes a record out of quarantine into the map, here and, as every edit, everywhere. A
    /// volume brings its placement.
    ///
    /// # Errors
    /// [`MapError::NotQuarantined`], [`MapError::GoesWithVolume`], or as of an edit.
    pub fn admit_quarantined(&self, key: &RecordKey) -> Result<(), MapError> {
        self.decide(key, |map, draft, record| {
            let stamp = map.tick(draft)?;
            Ok(renewed(record, map.actor(), stamp))
        })
    }

    /// Deletes a record in quarantine, here and, as every deletion, everywhere: on the node that
    /// brought it as well.
    ///
    /// # Errors
    /// [`MapError::NotQuarantined`], [`MapError::GoesWithVolume`], or as of an edit.
    pub fn drop_quarantined(&self, key: &RecordKey) -> Result<(), MapError> {
        self.decide(key, |map, draft, mut record| {
            let (stamp, actor) = (map.tick(draft)?, map.actor());
            if let Record::Intent(intent) = &mut record
                && matches!(intent.state, IntentState::Live(_))
            {
                let label = draft.view.quarantined_record(key).and_then(|it| it.name.clone());
                let label = label.unwrap_or_default();
                intent.delete(Tombstone { stamp, actor, label });
            }
            Ok(record)
        })
    }

    fn decide(
        &self,
        key: &RecordKey,
        change: impl FnOnce(&Self, &mut super::Draft<'_>, Record) -> Result<Record, MapError>,
    ) -> Result<(), MapError> {
        if key.kind() == Kind::PLACEMENT {
            return Err(MapError::GoesWithVolume { key: key.clone() });
        }
        room::check(&*self.inner.config.disk)?;
        self.change(0, |draft| {
            let kept = draft.kept(key)?;
            let kept = kept.ok_or_else(|| MapError::NotQuarantined { key: key.clone() })?;
            let record = change(self, draft, kept.record)?;
            fit(key, &record)?;
            draft.release(key)?;
            draft.take_in(key, None, record).map(drop)
        })
    }

    /// Keeps an edit until its volume's master can be reached; gives its number. It goes to no
    /// peer by itself.
    ///
    /// # Errors
    /// [`MapError::TooManyPending`], or if the disk fails.
    pub fn add_pending(&self, amendment: Amendment) -> Result<u64, MapError> {
        room::check(&*self.inner.config.disk)?;
        let made = self.inner.clock.wall();
        self.change(0, |draft| {
            let same = draft
                .view
                .pending()
                .find(|(_, edit)| edit.refused.is_none() && edit.amendment == amendment);
            if let Some((number, _)) = same {
                return Ok(number);
            }
            if draft.view.pending().count() >= MAX_PENDING {
                return Err(MapError::TooManyPending);
            }
            let number = draft.next_number()?;
            draft.put_pending(number, Pending { amendment, made, refused: None })?;
            Ok(number)
        })
    }

    /// Forgets an edit that waited: its master made it, or a person drops it.
    ///
    /// # Errors
    /// [`MapError::NotPending`], or if the disk fails.
    pub fn remove_pending(&self, number: u64) -> Result<(), MapError> {
        self.change(0, |draft| {
            draft.view.pending_edit(number).ok_or(MapError::NotPending { number })?;
            draft.remove_pending(number)
        })
    }

    /// Notes why the master refused an edit. It stays until a person drops it.
    ///
    /// # Errors
    /// [`MapError::NotPending`], or if the disk fails.
    pub fn refuse_pending(&self, number: u64, why: String) -> Result<(), MapError> {
        self.change(0, |draft| {
            let edit = draft.view.pending_edit(number).ok_or(MapError::NotPending { number })?;
            let edit = Pending { refused: Some(why), ..Pending::clone(edit) };
            draft.put_pending(number, edit)
        })
    }
}

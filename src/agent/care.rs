//! What people settle in the placement map, as the API's calls: it names records, lists what needs
//! a person, and makes what that one decides. It must never decide by itself.

use flocker_base::{Name, StoreId, WallTime};
use flocker_gossip::map::conflict::Conflict;
use flocker_gossip::map::stamp::Stamp;
use flocker_gossip::map::typed::Typed as _;
use flocker_gossip::map::{Amendment, Edit, Kind, MapView, RecordKey};
use flocker_gossip::model::{NodeSpec, RouteKey, RouteSpec, ServiceSpec, VolumeSpec};

use super::parts::Parts;
use super::waiting::{self, Outcome, of_map};
use crate::api::{
    ApiError, Attention, ConflictList, ErrorCode, FieldConflict, FieldValue, MapReply, MapRequest,
    NameConflict, PendingEdit, PendingList, QuarantineList, QuarantinedRecord, Settled, Severity,
    UnreadableRecord,
};

/// Most lines of one sort in a status; the commands list all.
const MAX_LINES: usize = 10;

/// Does what was asked.
pub(super) async fn handle(parts: &Parts, request: MapRequest) -> Result<MapReply, ApiError> {
    let view = parts.map_view();
    Ok(match request {
        MapRequest::Conflicts => MapReply::Conflicts(conflicts(parts, &view)),
        MapRequest::Quarantine => MapReply::Quarantine(quarantine(parts, &view)),
        MapRequest::Pending => MapReply::Pending(pending(parts, &view)),
        MapRequest::Settle { record, field, by, stamp } => {
            let key = find(&view, &record)?;
            let conflict = view.conflicts().find(|c| c.key == key && spelt(c) == field);
            let conflict = conflict.ok_or_else(|| {
                ApiError::not_found(format!("the field {field} of {record} is not in conflict"))
                    .hint("list them: flocker conflict ls")
            })?;
            let to = Some((by, Stamp::from_u64(stamp)));
            let edit = Edit::Settle { key, field: conflict.field, to };
            parts.map.edit([edit]).map_err(|e| of_map(&e))?;
            settled(record, format!("its {} is settled", conflict.field_name()))
        }
        MapRequest::Rename { record, name } => rename(parts, &view, record, &name).await?,
        MapRequest::Admit { record } => {
            let key = find(&view, &record)?;
            parts.map.admit_quarantined(&key).map_err(|e| of_map(&e))?;
            parts.wake.notify_one();
            settled(record, "it is in the map".to_owned())
        }
        MapRequest::Drop { record } => {
            let key = find(&view, &record)?;
            parts.map.drop_quarantined(&key).map_err(|e| of_map(&e))?;
            settled(record, "it is deleted everywhere".to_owned())
        }
        MapRequest::DropPending { number } => {
            parts.map.remove_pending(number).map_err(|e| of_map(&e))?;
            settled(number.to_string(), "the edit is forgotten".to_owned())
        }
    })
}

const fn settled(record: String, text: String) -> MapReply {
    MapReply::Settled(Settled { record, text })
}

async fn rename(
    parts: &Parts,
    view: &MapView,
    record: String,
    name: &Name,
) -> Result<MapReply, ApiError> {
    let key = find(view, &record)?;
    let (volume, amendment) = match key.kind() {
        Kind::VOLUME => {
            let listed = VolumeSpec::id_of(&key).and_then(|id| view.volume(&id));
            let listed = listed.ok_or_else(|| unknown(&record))?;
            let wanted = VolumeSpec { name: name.clone(), ..listed.spec.clone() };
            (listed.spec.id, Amendment::to(listed, &wanted))
        }
        Kind::SERVICE => {
            let listed = ServiceSpec::id_of(&key).and_then(|id| view.service(&id));
            let listed = listed.ok_or_else(|| unknown(&record))?;
            let wanted = ServiceSpec { name: name.clone(), ..listed.spec.clone() };
            (listed.spec.volume.volume, Amendment::to(listed, &wanted))
        }
        _ => {
            let text = format!("{record} has no name that can be changed here");
            return Err(ApiError::new(ErrorCode::Usage, text)
                .hint("name a volume or a service, such as volume/pg"));
        }
    };
    let text = match waiting::amend(parts, volume, amendment).await? {
        Outcome::Made => format!("it is called {name}"),
        Outcome::Waits { number, why } => {
            format!("the change waits for the volume's master as edit {number}: {why}")
        }
    };
    Ok(settled(record, text))
}

/// What needs a person by the map's own account, for the status.
pub(super) fn attention(parts: &Parts, view: &MapView) -> Vec<Attention> {
    let mut found = Vec::new();
    let mut say =
        |texts: Vec<(Severity, String, String)>, list: &str| {
            let more = texts.len().saturating_sub(MAX_LINES);
            found.extend(texts.into_iter().take(MAX_LINES).map(|(severity, text, command)| {
                Attention { severity, text, command: Some(command) }
            }));
            if more > 0 {
                let text = format!("and {more} more of that sort");
                let command = Some(list.to_owned());
                found.push(Attention { severity: Severity::Warning, text, command });
            }
        };
    let list = conflicts(parts, view);
    let warning = |text: String, command: String| (Severity::Warning, text, command);
    let alarm = |text| (Severity::Critical, text, "flocker conflict ls".to_owned());
    say(list.alarms.into_iter().map(alarm).collect(), "flocker conflict ls");
    let field = |it: FieldConflict| {
        let values: Vec<_> =
            it.values.iter().map(|v| format!("{}: {}", v.number, v.text)).collect();
        let what = format!("two sides wrote the {} of {}", it.field, it.record);
        let text = format!("{what}: {} (the first is used)", values.join(", "));
        warning(text, format!("flocker conflict settle {} {} --to 1", it.record, it.field))
    };
    say(list.fields.into_iter().map(field).collect(), "flocker conflict ls");
    let name = |it: NameConflict| {
        let text = format!("{} wants the name {}, which another had first", it.record, it.wanted);
        warning(text, format!("flocker conflict rename {} NAME", it.record))
    };
    say(list.names.into_iter().map(name).collect(), "flocker conflict ls");
    let unreadable = |it: UnreadableRecord| {
        let text = format!("{} can't be read by this node's version: {}", it.record, it.why);
        warning(text, "flocker version".to_owned())
    };
    say(list.unreadable.into_iter().map(unreadable).collect(), "flocker conflict ls");
    let late = |it: QuarantinedRecord| {
        let called = it.name.map(|name| format!(" ({name})")).unwrap_or_default();
        let text = format!(
            "{}{called} came from {} after a long absence, and is not in the map",
            it.record, it.from
        );
        warning(text, format!("flocker quarantine admit {}", it.record))
    };
    let records = quarantine(parts, view).records;
    let volumes = records.into_iter().filter(|it| !it.record.starts_with("placement/"));
    say(volumes.map(late).collect(), "flocker quarantine ls");
    let edit = |it: PendingEdit| {
        let what = format!("edit {} of {} ({})", it.number, it.record, it.change);
        let text = match (it.refused, it.master) {
            (Some(why), _) => format!("{what} was refused: {why}"),
            (None, Some(master)) => format!("{what} waits for the volume's master, {master}"),
            (None, None) => format!("{what} waits for a master of the volume"),
        };
        warning(text, format!("flocker pending drop {}", it.number))
    };
    say(pending(parts, view).edits.into_iter().map(edit).collect(), "flocker pending ls");
    found
}

fn conflicts(parts: &Parts, view: &MapView) -> ConflictList {
    let value = |(number, it): (u32, &flocker_gossip::map::conflict::Contender)| FieldValue {
        number,
        text: it.text.clone(),
        node: parts.name_of(it.by),
        store: it.by,
        at: it.at.wall(),
        stamp: it.at.as_u64(),
    };
    let field = |it: &std::sync::Arc<Conflict>| FieldConflict {
        record: called(view, &it.key),
        field: spelt(it),
        values: (1..).zip(&it.contenders).map(value).collect(),
    };
    let name = |(key, _, wanted): (RecordKey, &Name, &Name)| NameConflict {
        record: called(view, &key),
        wanted: wanted.clone(),
    };
    let unreadable = |(key, why): (&RecordKey, &flocker_gossip::map::typed::Unreadable)| {
        UnreadableRecord { record: called(view, key), why: why.to_string() }
    };
    ConflictList {
        fields: view.conflicts().map(field).collect(),
        names: view.renamed().map(name).collect(),
        unreadable: view.unreadable().map(unreadable).collect(),
        alarms: view.alarms().iter().map(ToString::to_string).collect(),
    }
}

fn quarantine(parts: &Parts, view: &MapView) -> QuarantineList {
    let record = |(key, it): (&RecordKey, &std::sync::Arc<_>)| {
        let it: &flocker_gossip::map::quarantine::Quarantined = it;
        QuarantinedRecord {
            record: by_id(key),
            name: it.name.clone(),
            from: parts.name_of(it.from),
            came: it.at,
            written: it.written.map(|stamp: Stamp| -> WallTime { stamp.wall() }),
        }
    };
    QuarantineList { records: view.quarantined().map(record).collect() }
}

fn pending(parts: &Parts, view: &MapView) -> PendingList {
    let edit = |(number, it): (u64, &std::sync::Arc<_>)| {
        let it: &flocker_gossip::map::pending::Pending = it;
        let master: Option<StoreId> = waiting::volume_of(parts, &it.amendment)
            .and_then(|volume| waiting::master_of(parts, volume));
        PendingEdit {
            number,
            record: called(view, it.amendment.key()),
            change: it.amendment.describe(),
            master: master.map(|store| parts.name_of(store)),
            made: it.made,
            refused: it.refused.clone(),
        }
    };
    PendingList { edits: view.pending().map(edit).collect() }
}

/// A field's name as the commands take it: in one word.
fn spelt(conflict: &Conflict) -> String {
    match conflict.field_name() {
        "unknown field" => format!("field-{}", conflict.field),
        name => name.replace(' ', "-"),
    }
}

/// What a record is called: by its name if it has one.
fn called(view: &MapView, key: &RecordKey) -> String {
    match (view.shown_name(key), key.kind()) {
        (Some(name), kind) => format!("{kind}/{name}"),
        (None, Kind::ROUTE) => match RouteSpec::id_of(key) {
            Some(RouteKey::HttpHost(host)) => format!("route/{host}"),
            None => by_id(key),
        },
        (None, _) => by_id(key),
    }
}

fn by_id(key: &RecordKey) -> String {
    let kind = key.kind().to_string().replace(' ', "-");
    format!("{kind}/{}", data_encoding::HEXLOWER.encode(key.id()))
}

/// The record that someone calls so.
fn find(view: &MapView, text: &str) -> Result<RecordKey, ApiError> {
    let Some((kind, name)) = text.split_once('/') else {
        let text = format!("'{text}' names no record");
        return Err(ApiError::new(ErrorCode::Usage, text)
            .hint("name it KIND/NAME or KIND/ID as the lists do, such as volume/pg"));
    };
    let named = Name::new(name).ok();
    let by_name = match kind {
        "volume" => named.and_then(|n| view.volume_named(&n)).map(|v| VolumeSpec::key_of(&v.id)),
        "service" => named.and_then(|n| view.service_named(&n)).map(|s| ServiceSpec::key_of(&s.id)),
        "node" => named.and_then(|n| view.node_named(&n)).map(|n| NodeSpec::key_of(&n.store)),
        "route" => {
            let key = RouteKey::HttpHost(name.to_owned());
            view.route(&key).map(|route| RouteSpec::key_of(&route.key))
        }
        _ => None,
    };
    let number = match kind {
        "volume" => Some(Kind::VOLUME),
        "service" => Some(Kind::SERVICE),
        "route" => Some(Kind::ROUTE),
        "token" => Some(Kind::TOKEN),
        "node" => Some(Kind::NODE),
        "placement" => Some(Kind::PLACEMENT),
        other => other.strip_prefix("kind-").and_then(|n| n.parse().ok()).map(Kind),
    };
    let by_id = || {
        let id = data_encoding::HEXLOWER.decode(name.as_bytes()).ok()?;
        let key = RecordKey::new(number?, &id);
        RecordKey::from_bytes(key.as_bytes())
    };
    by_name.or_else(by_id).ok_or_else(|| unknown(text))
}

fn unknown(record: &str) -> ApiError {
    ApiError::not_found(format!("there is no record {record}"))
        .hint("name it as the lists do: flocker conflict ls, flocker quarantine ls")
}

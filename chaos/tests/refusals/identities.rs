//! Who shows a certificate of the cluster's own authority and must not get by with it: one whose
//! time is over or has not come, a member that speaks as if it were another, and a copy of a
//! node's identity beside the node.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flocker_base::{Clock as _, Epoch, Incarnation, StoreId, SystemClock, VolumeId, WallTime};
use flocker_gossip::identity::NodeIdentity;
use flocker_gossip::lease::Start;
use flocker_gossip::lease::message::{self, Heartbeat, Message, Release};
use flocker_quic::{Endpoint, EndpointConfig};
use rand::RngExt as _;
use tokio::io::AsyncWriteExt as _;

use crate::{CONTROL, Case, DATA, stranger};

const DIAL: Duration = Duration::from_secs(5);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
/// On the control port: the kind of a lease packet.
const LEASE: u8 = 2;
/// Packets of one sender, one after another.
const PACKETS: u64 = 200;

pub(crate) async fn all(case: &mut Case<'_>) -> Result<()> {
    let first = NodeIdentity::load(&case.mesh.nodes()[0].state_dir())?.context("no identity")?;
    out_of_time(case, &first).await?;
    speaks_as_another(case, &first).await?;
    copied(case, &first).await
}

/// Signed by the right authority, for another time.
async fn out_of_time(case: &mut Case<'_>, first: &NodeIdentity) -> Result<()> {
    let now = Duration::from_millis(SystemClock.wall().as_millis());
    let wall = |span: Duration| WallTime::from_millis(flocker_chaos::millis(span));
    let times =
        [("expired", wall(now.saturating_sub(YEAR * 13))), ("not yet valid", wall(now + YEAR * 3))];
    for (what, signed_at) in times {
        let store = StoreId::new(SystemClock.wall(), case.random.random());
        let authority = first.authority().clone();
        let identity = NodeIdentity::found(first.cluster(), store, authority, signed_at)?.to_quic();
        let node = &case.mesh.nodes()[0];
        for (port, at, alpn) in [("control", node.control(), CONTROL), ("data", node.data(), DATA)]
        {
            let name = format!("a certificate that is {what} on the {port} port");
            let (from, mark) = (case.fresh_address(), case.mesh.nodes()[0].log().mark());
            let turned_away = stranger::knock(from, at, alpn, Some(&identity)).await;
            turned_away.with_context(|| name.clone())?;
            let from = from.to_string();
            case.refused(&name, 0, mark, &["refused a connection", &from]).await?;
        }
    }
    Ok(())
}

/// A member gives up, in lease packets, what another holds, and confirms what another won. Who
/// it is says its certificate, not what it says.
async fn speaks_as_another(case: &mut Case<'_>, first: &NodeIdentity) -> Result<()> {
    let status = case.mesh.status(0).await?;
    let volume = status.volumes.first().context("a volume is deployed")?;
    let (id, epoch) = (volume.id, volume.epoch.context("it has a master")?);
    let store = StoreId::new(SystemClock.wall(), case.random.random());
    let authority = first.authority().clone();
    let member = NodeIdentity::found(first.cluster(), store, authority, SystemClock.wall())?;
    let start = Start { incarnation: Incarnation(u64::MAX), nonce: 1 };
    let higher = Epoch::new(epoch.generation, epoch.counter + 1);
    let said = |seq| {
        vec![
            Message::Release(Release { volume: id, epoch, successor: Some(store) }),
            Message::Abandon(id, epoch),
            Message::Heartbeat(beat(seq, vec![(id, epoch), (id, higher)])),
        ]
    };
    for node in 0..case.mesh.nodes().len() {
        say(case, node, &member, start, &said).await?;
    }
    let name = "a member that gives up another's volume";
    case.nothing_changed(name).await?;
    let packets = PACKETS * 3;
    case.lines.push((name.to_owned(), format!("{packets} packets: the same master and epoch")));
    Ok(())
}

fn beat(seq: u64, confirm: Vec<(VolumeId, Epoch)>) -> Heartbeat {
    let lease = Duration::from_secs(3);
    Heartbeat { seq, want: true, support: 0, lease, confirm, hints: Vec::new() }
}

/// The identity of a node, used from another place at the same time, by an older start of its
/// store and by another start of the same count: as after a restored backup or a cloned disk.
async fn copied(case: &mut Case<'_>, first: &NodeIdentity) -> Result<()> {
    let twin = NodeIdentity::load(&case.mesh.nodes()[1].state_dir())?.context("no identity")?;
    ensure!(twin.store() != first.store(), "two nodes have one store");
    for (what, incarnation) in [("an older start", 0), ("a second start of the same count", 1)] {
        let name = format!("a copied identity, {what}");
        let mark = case.mesh.nodes()[0].log().mark();
        let start = Start { incarnation: Incarnation(incarnation), nonce: 7 };
        say(case, 0, &twin, start, &|seq| vec![Message::Heartbeat(beat(seq, Vec::new()))]).await?;
        let log = case.mesh.nodes()[0].log();
        let parts = ["refused node", &twin.store().short(), "restored or copied"];
        let line = log.wait_for(mark, &parts, crate::LOGGED).await.context(name.clone())?;
        let lines = log.since(mark)?.lines().filter(|l| l.contains("restored or copied")).count();
        ensure!(lines <= 3, "{name}: {PACKETS} packets made {lines} log lines");
        case.lines.push((name.clone(), line));
        case.nothing_changed(&name).await?;
    }
    Ok(())
}

/// Sends lease packets to a node, as the owner of this identity, over a connection of its own.
async fn say(
    case: &mut Case<'_>,
    node: usize,
    identity: &NodeIdentity,
    start: Start,
    said: &dyn Fn(u64) -> Vec<Message>,
) -> Result<()> {
    let to = NodeIdentity::load(&case.mesh.nodes()[node].state_dir())?.context("no identity")?;
    let own = EndpointConfig::control((case.fresh_address(), 0).into());
    let endpoint = Endpoint::bind(&own, &identity.to_quic())?;
    let at = case.mesh.nodes()[node].control();
    let connection = endpoint.connect(to.store(), at, DIAL).await?;
    for seq in 1..=PACKETS {
        for packet in message::encode(start, &said(seq))? {
            let mut stream = connection.open_uni().await?;
            let length = u32::try_from(packet.len())?.to_le_bytes();
            stream.write_all(&[&[LEASE], length.as_slice(), &packet].concat()).await?;
            stream.finish();
        }
    }
    // Until they have been read: a call on the same connection is answered after them.
    tokio::time::sleep(Duration::from_millis(500)).await;
    Ok(())
}

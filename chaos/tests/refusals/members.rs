//! A member, with a certificate of the cluster, that breaks the protocol: frames over the limits
//! and bytes without sense. It must change no more than a stranger.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use flocker_base::{Clock as _, StoreId, SystemClock};
use flocker_gossip::identity::NodeIdentity;
use flocker_quic::{Connection, Endpoint, EndpointConfig, Purpose, RecvStream};
use rand::{Rng as _, RngExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::Case;

const DIAL: Duration = Duration::from_secs(5);
/// Time for a stream to be ended by the agent.
const ENDED: Duration = Duration::from_secs(10);
/// On the control port: the kind of a message, then its frame.
const MEMBERSHIP: u8 = 1;
const LEASE: u8 = 2;
/// On the data port: what a stream is for.
const REPLICATE: u8 = 1;
/// In a session of replication: a frame with a message.
const MESSAGE: u8 = 1;
/// One more than the largest frame of membership, and the largest that can be written.
const OVER: [u32; 2] = [(96 << 10) + 1, u32::MAX];

pub(crate) async fn all(case: &mut Case<'_>) -> Result<()> {
    let now = SystemClock.wall();
    let first = NodeIdentity::load(&case.mesh.nodes()[0].state_dir())?.context("no identity")?;
    let store = StoreId::new(now, case.random.random());
    let member = NodeIdentity::found(first.cluster(), store, first.authority().clone(), now)?;
    let rogue = Rogue { member, to: first.store() };
    rogue.on_control(case).await?;
    rogue.on_data(case).await
}

/// A member that breaks the protocol, each time over a connection of its own: what is logged of
/// one connection grows ever rarer.
struct Rogue {
    member: NodeIdentity,
    to: StoreId,
}

impl Rogue {
    async fn on_control(&self, case: &mut Case<'_>) -> Result<()> {
        for length in OVER {
            let name = format!("a message of {length} bytes on the control port");
            let bytes = [&[MEMBERSHIP], length.to_le_bytes().as_slice()].concat();
            let parts = ["refused a request", &length.to_string()];
            self.refused(case, Purpose::Control, &name, &bytes, &parts).await?;
        }
        let length = (1_u32 << 20) + 1;
        let bytes = [&[LEASE], length.to_le_bytes().as_slice()].concat();
        let parts = ["refused a request", &length.to_string()];
        let name = "a call of 1 MiB + 1 on the control port";
        self.refused(case, Purpose::Control, name, &bytes, &parts).await?;
        let mut bytes = vec![0_u8; 64];
        case.random.fill_bytes(&mut bytes);
        bytes[0] = 200;
        let name = "random bytes in a stream on the control port";
        let parts = ["refused a request", "200 is no kind"];
        self.refused(case, Purpose::Control, name, &bytes, &parts).await
    }

    async fn on_data(&self, case: &mut Case<'_>) -> Result<()> {
        let frame = |length: u32| {
            [&[REPLICATE], length.to_le_bytes().as_slice(), &[MESSAGE], &[255; 15]].concat()
        };
        for length in [(64 << 10) + 2, u32::MAX] {
            let name = format!("a frame of {length} bytes on the data port");
            let parts = ["a stream was not served", "limit"];
            self.refused(case, Purpose::Data, &name, &frame(length), &parts).await?;
        }
        let name = "a message without sense on the data port";
        let parts = ["a stream was not served", "decoded"];
        self.refused(case, Purpose::Data, name, &frame(16), &parts).await?;
        let name = "a stream of no known use on the data port";
        let parts = ["a data stream of no known use"];
        self.refused(case, Purpose::Data, name, &[77; 32], &parts).await
    }

    /// Sends the bytes as the beginning of a stream that could go on for ever, and sees it ended,
    /// with a line that has these parts and says whose it was.
    async fn refused(
        &self,
        case: &mut Case<'_>,
        purpose: Purpose,
        name: &str,
        bytes: &[u8],
        parts: &[&str],
    ) -> Result<()> {
        let mark = case.mesh.nodes()[0].log().mark();
        let own = (case.fresh_address(), 0).into();
        let (config, at) = match purpose {
            Purpose::Control => (EndpointConfig::control(own), case.mesh.nodes()[0].control()),
            Purpose::Data => (EndpointConfig::data(own), case.mesh.nodes()[0].data()),
        };
        let endpoint = Endpoint::bind(&config, &self.member.to_quic())?;
        let connection = endpoint.connect(self.to, at, DIAL).await;
        let connection = connection.with_context(|| format!("{name}: a member is refused"))?;
        let stream = speak(&connection, bytes);
        let outcome = tokio::time::timeout(ENDED, stream).await;
        outcome
            .with_context(|| format!("{name}: the stream is not ended"))?
            .with_context(|| name.to_owned())?;
        ensure!(!connection.is_closed(), "{name}: one bad stream cost the whole connection");
        let me = self.member.store().short();
        case.refused(name, 0, mark, &[parts, &[&me]].concat()).await
    }
}

async fn speak(connection: &Connection, bytes: &[u8]) -> Result<()> {
    let (mut send, mut recv) = connection.open_bi().await?;
    send.write_all(bytes).await?;
    send.flush().await?;
    ended(&mut recv).await
}

/// Reads until the agent ends the stream; what it may say before is a refusal.
async fn ended(recv: &mut RecvStream) -> Result<()> {
    let mut said = Vec::new();
    let mut buffer = [0; 512];
    loop {
        match recv.read(&mut buffer).await {
            Ok(0) | Err(_) => return Ok(()),
            Ok(length) => said.extend_from_slice(&buffer[..length]),
        }
        if said.len() > 8192 {
            bail!("it is answered at length");
        }
    }
}

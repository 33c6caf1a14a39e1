//! The messages of membership over hostile bytes: the guard first, then chitchat's own decoder
//! for what the guard lets through, as in a running node. And the values that they carry.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chitchat::{ChitchatMessage, Deserializable};
use data_encoding::BASE64_NOPAD;
use flocker_base::{BootTime, Clock, ClusterId, Incarnation, Name, StoreId, WallTime};
use flocker_quic::fuzzing::{joined, split};
use redb::Database;
use redb::backends::InMemoryBackend;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::core::{Core, Sights};
use super::detector::{Command, Event, Message, Verdict, Watch, WatchConfig};
use super::guard::{Guard, MAX_VALUE_BYTES};
use super::roster::message::{
    self, Contact, Greeting, MAX_BRIDGES, MAX_MATES, Request, Want, decode_digest, decode_greeting,
    decode_notices, decode_parts,
};
use super::roster::{MAX_REGIONS, Part, RegionId};
use super::{LocalNode, Membership, MembershipConfig, Suspicions, View, chat_id};
use super::{facts, pool};
use crate::addresses::AddressBookStore;
use crate::control::{Handler, Kind, MemoryNet};
use crate::model::NodeFacts;

/// Messages of one input at most.
const MOST: usize = 8;
/// The same where they are short.
const MOST_SHORT: usize = 32;
const CLUSTER: ClusterId = ClusterId::from_bytes([9; 16]);

const fn store(number: u8) -> StoreId {
    StoreId::from_bytes([number; 16])
}

/// Messages of peers, one after another: what passes the guard is read whole by chitchat, names
/// nodes of ours alone, and what there is to remember stays bounded.
pub(crate) fn messages(input: &[u8]) {
    let region = Name::new("eu").expect("a name");
    let mut guard = Guard::new(store(1), pool::id_of(CLUSTER, Some(&region)));
    guard.begin(chat_id::generation(Incarnation(1), 0).expect("a small number"));
    for message in split(input, MOST) {
        let admitted = guard.admit(message);
        guard.check_bounds();
        if admitted.is_err() {
            continue;
        }
        let mut rest = message;
        let read = ChitchatMessage::deserialize(&mut rest);
        assert!(read.is_ok(), "the guard lets through what chitchat cannot read: {read:?}");
        assert!(rest.is_empty(), "chitchat leaves {} bytes", rest.len());
    }
}

/// A value as facts and as a root: it is read, or it is not; what is read has its own form.
pub(crate) fn facts(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Some(read) = facts::decode(text) {
        assert!(!read.version.contains(char::is_control), "{:?} on a screen", read.version);
        let again = facts::encode(&read).expect("what was read is written");
        assert!(again.len() <= MAX_VALUE_BYTES);
        assert_eq!(facts::decode(&again).as_ref(), Some(&read), "it is read otherwise");
    }
    if let Some(root) = facts::decode_root(text) {
        assert_eq!(facts::encode_root(&root), text, "a root has one form");
    }
}

/// Facts and roots as nodes announce them.
pub(crate) fn values() -> Vec<Vec<u8>> {
    let named = |number| facts::encode(&facts_of(number)).expect("they fit");
    let mut with_proxy = facts_of(2);
    with_proxy.http = Some(with_proxy.control);
    let with_proxy = facts::encode(&with_proxy).expect("they fit");
    [named(1), with_proxy, facts::encode_root(&[7; 32])].map(String::into_bytes).into()
}

/// A node's facts, read from the form of the first version.
fn facts_of(number: u8) -> NodeFacts {
    let at = |port| SocketAddr::from(([10, 0, 0, number], port));
    let said = (format!("n{number}"), "eu", at(4523), at(4524), None::<SocketAddr>, "0.1.0");
    let bytes = postcard::to_extend(&said, vec![1]).expect("memory");
    facts::decode(&BASE64_NOPAD.encode(&bytes)).expect("it is read for ever")
}

fn local(number: u8) -> LocalNode {
    LocalNode {
        cluster: CLUSTER,
        incarnation: Incarnation(1),
        facts: facts_of(number),
        seeds: vec![store(1)],
        announce_after: Duration::ZERO,
    }
}

fn region(name: &str) -> Name {
    Name::new(name).expect("a name")
}

fn contact(number: u8) -> Contact {
    let facts = facts_of(number);
    let (control, data) = (facts.control, facts.data);
    Contact { store: store(number), region: region("eu"), control, data }
}

/// Requests and answers about rosters: a node answers within the frame, takes no roster that it has
/// not asked for, and believes nobody's word on who is a member. The first byte says who speaks,
/// the second what it is.
pub(crate) fn rosters(input: &[u8]) {
    let mut now = BootTime::ZERO + Duration::from_secs(1000);
    let generation = chat_id::generation(Incarnation(1), 0).expect("a small number");
    let grace = Duration::from_secs(600);
    let mut core = Core::new(now, store(1), &local(1), generation, grace, View::default());
    for message in split(input, MOST) {
        let Some(([who, what], body)) = message.split_first_chunk() else { continue };
        let peer = store(2 + who % 6);
        now = now + Duration::from_millis(100);
        match what % 4 {
            0 => {
                let Ok(answer) = core.answer(now, peer, body) else { continue };
                assert!(answer.len() <= Kind::Roster.max_frame(), "{} bytes", answer.len());
                let read = decode_greeting(&answer).is_some() || decode_parts(&answer).is_some();
                assert!(read, "its own answer cannot be read");
            }
            1 => {
                let (commands, known) = core.greeted(now, peer, None, body);
                let most = MAX_MATES + MAX_BRIDGES;
                assert!(known.len() <= most && commands.len() <= 2 * most + 1);
            }
            2 => core.pulled(now, peer, Some(body)),
            _ => {
                let text = String::from_utf8_lossy(body);
                assert!(decode_notices(&text).len() <= MAX_REGIONS);
                let _ = decode_digest(&text);
            }
        }
    }
    let suspected = Suspicions::new();
    let sights = Sights { region: &[], between: None, suspected: &suspected, stores: &[] };
    let view = core.read(now, &sights).changes.view;
    assert!(view.is_none_or(|view| view.nodes.is_empty()), "it believes who is a member");
}

/// Requests and answers as nodes send them.
pub(crate) fn questions() -> Vec<Vec<u8>> {
    let want = |name, since| Want { region: RegionId::of(&region(name)), since };
    let pull = Request::Pull(vec![want("eu", None), want("us", None)]);
    let greeting =
        Greeting { region: region("us"), mates: vec![contact(4)], bridges: vec![contact(5)] };
    let said = [
        (0, message::encode(&Request::Greet(contact(2)))),
        (0, message::encode(&pull)),
        (1, message::encode(&greeting)),
        (2, message::encode(&Vec::<Part>::new())),
    ];
    let said = said.map(|(what, bytes)| [vec![0, what], bytes.expect("it is written")].concat());
    let mut inputs: Vec<Vec<u8>> = said.iter().map(|one| joined(&[one])).collect();
    inputs.push(joined(&said));
    inputs
}

/// Messages of a watch, over time: what is sent stays within the frame and in bounds, and nobody's
/// word makes a node take itself for dead. The first byte says who speaks, the second how much
/// later.
pub(crate) fn watches(input: &[u8]) {
    const MEMBERS: u8 = 6;
    let mut now = BootTime::ZERO + Duration::from_secs(1000);
    let run = Incarnation(1);
    let mut watch = Watch::new(store(1), run, WatchConfig::default(), 7);
    let members = (1..=MEMBERS).map(|number| (store(number), run)).collect();
    watch.step(now, Event::Members(members));
    for message in split(input, MOST_SHORT) {
        let Some(([who, later], body)) = message.split_first_chunk() else { continue };
        now = now + Duration::from_millis(8) * u32::from(*later);
        let event = Message::decode(body).map_or(Event::Tick, |message| {
            let again = Message::decode(&message.encode());
            assert_eq!(again.as_ref(), Some(&message), "it is read otherwise");
            Event::Message { from: store(1 + who % (MEMBERS + 2)), message }
        });
        let commands = watch.step(now, event);
        assert!(commands.len() <= 256, "{} commands for one message", commands.len());
        for command in commands {
            if let Command::Send { to, message } = command {
                assert_ne!(to, store(1), "it talks to itself");
                assert!(message.encode().len() <= Kind::Watch.max_frame());
            }
        }
        assert_ne!(watch.verdict(store(1), run), Verdict::Dead);
        assert_eq!(watch.verdicts().count(), usize::from(MEMBERS));
    }
}

/// What the other five say to the first of six watches, of which one falls silent.
pub(crate) fn alarms() -> Vec<Vec<u8>> {
    let start = BootTime::ZERO + Duration::from_secs(1000);
    let run = Incarnation(1);
    let members: std::collections::BTreeMap<_, _> = (1..=6).map(|n| (store(n), run)).collect();
    let watch = |n: u8| Watch::new(store(n), run, WatchConfig::default(), n.into());
    let mut watches: Vec<Watch> = (1..=6).map(watch).collect();
    let mut queue = std::collections::VecDeque::new();
    let mut said = Vec::new();
    for tick in 0..800_u32 {
        let now = start + Duration::from_millis(10) * tick;
        for (n, watch) in (1_u8..).zip(&mut watches) {
            let event = if tick == 0 { Event::Members(members.clone()) } else { Event::Tick };
            let commands = watch.step(now, event);
            queue.extend(commands.into_iter().map(|command| (n, command)));
        }
        while let Some((from, command)) = queue.pop_front() {
            let Command::Send { to, message } = command else { continue };
            let silent = |store| tick > 300 && store == self::store(6);
            if silent(to) || silent(store(from)) {
                continue;
            }
            if to == store(1) && said.len() < 64 {
                said.push([vec![from - 1, 40], message.encode()].concat());
            }
            let event = Event::Message { from: store(from), message };
            let number = to.as_bytes()[0];
            if let Some(watch) = watches.get_mut(usize::from(number) - 1) {
                let commands = watch.step(now, event);
                queue.extend(commands.into_iter().map(|command| (number, command)));
            }
        }
    }
    let mut inputs: Vec<Vec<u8>> = said.iter().take(8).map(|one| joined(&[one])).collect();
    inputs.extend(said.chunks(MOST_SHORT).map(joined));
    inputs
}

/// What three real nodes say to the first of them in their first seconds.
pub(crate) fn conversations() -> Vec<Vec<u8>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let said = runtime.block_on(listen());
    let mut inputs: Vec<Vec<u8>> = said.iter().take(12).map(|one| joined(&[one])).collect();
    inputs.push(joined(&said[..said.len().min(MOST)]));
    inputs
}

/// The runtime's own clock, which stands still but for sleeps.
#[derive(Debug)]
struct VirtualClock(Instant);

impl Clock for VirtualClock {
    fn boot(&self) -> BootTime {
        BootTime::from_duration(self.0.elapsed())
    }

    fn wall(&self) -> WallTime {
        WallTime::from_millis(1_800_000_000_000) + self.0.elapsed()
    }
}

/// Writes down what arrives on its way to the real handler.
struct Ear {
    handler: Arc<dyn Handler>,
    heard: Arc<Mutex<Vec<Bytes>>>,
}

#[async_trait]
impl Handler for Ear {
    async fn on_message(&self, from: StoreId, payload: Bytes) {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).push(payload.clone());
        self.handler.on_message(from, payload).await;
    }

    async fn on_call(&self, from: StoreId, payload: Bytes) -> Result<Bytes, String> {
        self.handler.on_call(from, payload).await
    }
}

async fn listen() -> Vec<Bytes> {
    let (net, heard) = (MemoryNet::new(), Arc::<Mutex<Vec<Bytes>>>::default());
    let clock: Arc<dyn Clock> = Arc::new(VirtualClock(Instant::now()));
    let (shutdown, mut nodes) = (CancellationToken::new(), tokio::task::JoinSet::new());
    for number in 1..=3 {
        let database = Database::builder().create_with_backend(InMemoryBackend::new());
        let book = AddressBookStore::open(Arc::new(database.expect("memory"))).expect("memory");
        let wire = net.node(store(number));
        let config = MembershipConfig::default();
        let (membership, handlers) =
            Membership::new(config, local(number), wire, book, Arc::clone(&clock))
                .expect("it starts");
        for (kind, handler) in handlers {
            let handler: Arc<dyn Handler> = match (number, kind) {
                (1, Kind::Membership) => Arc::new(Ear { handler, heard: Arc::clone(&heard) }),
                _ => handler,
            };
            net.handle(store(number), kind, handler);
        }
        let shutdown = shutdown.clone();
        nodes.spawn(async move { membership.run(shutdown).await });
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    shutdown.cancel();
    nodes.join_all().await;
    std::mem::take(&mut *heard.lock().unwrap_or_else(PoisonError::into_inner))
}

//! A certificate exchanged under running endpoints, dates against a clock that is told, and
//! finding a node whose store is not known.

use flocker_base::{BootTime, ManualClock, WallTime};

use super::*;

/// Noon of 2026-06-01 or so.
const NOW: WallTime = WallTime::from_millis(1_780_315_200_000);
const DAY: Duration = Duration::from_secs(24 * 3600);

fn days(days: u32) -> WallTime {
    NOW + DAY * days
}

fn clock(wall: WallTime) -> Arc<ManualClock> {
    Arc::new(ManualClock::new(BootTime::ZERO, wall))
}

fn node(identity: &Identity, clock: &Arc<ManualClock>) -> Endpoint {
    let clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(clock);
    Endpoint::bind_with_clock(&control(), identity, clock).expect("binds")
}

/// Connects both, and gives the two sides.
async fn pair(from: &Endpoint, to: &Endpoint) -> Result<(Connection, Connection), QuicError> {
    let (out, accepted) = serving(to, from.connect(to.store(), to.local_addr(), SOON)).await;
    let out = out?;
    match accepted.into_iter().next() {
        Some(Accepted::Peer(inward)) => Ok((out, inward)),
        // The side that dials may know it first.
        _ => match within(to.accept()).await {
            Some(Accepted::Peer(inward)) => Ok((out, inward)),
            other => panic!("{other:?}"),
        },
    }
}

async fn carries(out: &Connection, inward: &Connection) {
    let (mut send, _) = out.open_bi().await.expect("stream");
    frame::write_frame(&mut send, b"still here").await.expect("written");
    send.finish();
    let (_, mut recv) = within(inward.accept_bi()).await.expect("stream");
    assert_eq!(&frame::read_frame(&mut recv, 20).await.expect("frame")[..], b"still here");
}

#[tokio::test]
async fn new_handshakes_show_the_new_certificate_and_old_connections_live_on() {
    let ca = cluster();
    let clock = clock(NOW);
    let old = ca.identity_until(store(1), days(2));
    let a = node(&old, &clock);
    let b = node(&ca.identity(store(2)), &clock);
    let (out, inward) = pair(&a, &b).await.expect("connected");
    assert_eq!(inward.peer_certificate().as_ref(), Some(&old.cert_der));

    let new = ca.identity_until(store(1), days(365));
    assert!(new.key_der != old.key_der, "a new key, too");
    a.show(&new).expect("shown");
    clock.advance(3 * DAY);
    carries(&out, &inward).await;
    carries(&inward, &out).await;
    let (_, dialled_by_a) =
        pair(&a, &b).await.expect("the old one has ended, the new one is shown");
    assert_eq!(dialled_by_a.peer_certificate().as_ref(), Some(&new.cert_der));
    let (dialled_by_b, _) = pair(&b, &a).await.expect("and so when it is dialled");
    assert_eq!(dialled_by_b.peer_certificate(), Some(new.cert_der));
}

#[tokio::test]
async fn without_renewal_the_end_of_a_certificate_is_the_end_of_new_connections() {
    let ca = cluster();
    let clock = clock(NOW);
    let a = node(&ca.identity_until(store(1), days(2)), &clock);
    let b = node(&ca.identity(store(2)), &clock);
    let (out, inward) = pair(&a, &b).await.expect("connected");
    clock.advance(3 * DAY);
    carries(&out, &inward).await;
    let (dial, accepted) = serving(&a, b.connect(store(1), a.local_addr(), SOON)).await;
    let error = dial.expect_err("refused").to_string();
    assert!(error.contains("expired"), "{error}");
    assert!(accepted.is_empty());
}

#[tokio::test]
async fn clocks_a_day_apart_change_nothing() {
    let ca = cluster();
    for (mine, theirs) in [(0, 1), (1, 0)] {
        let a = node(&ca.identity_until(store(1), days(200)), &clock(days(mine)));
        let b = node(&ca.identity_until(store(2), days(200)), &clock(days(theirs)));
        pair(&a, &b).await.expect("connected");
        pair(&b, &a).await.expect("connected");
    }
}

#[tokio::test]
async fn an_identity_that_is_not_this_nodes_is_never_shown() {
    let ca = cluster();
    let a = Endpoint::bind(&control(), &ca.identity(store(1))).expect("a");
    assert!(a.show(&ca.identity(store(2))).is_err());
    assert!(a.show(&Identity { store: store(1), ..ca.identity(store(2)) }).is_err());
    let mut no_key = ca.identity(store(1));
    no_key.key_der = ca.identity(store(1)).key_der;
    assert!(a.show(&no_key).is_err(), "a key that is not the certificate's");
    let b = Endpoint::bind(&control(), &ca.identity(store(2))).expect("b");
    pair(&b, &a).await.expect("what was shown is still shown");
}

#[tokio::test]
async fn whoever_is_at_an_address_is_known_by_its_certificate() {
    let ca = cluster();
    let a = Endpoint::bind(&control(), &ca.identity(store(1))).expect("a");
    let b = Endpoint::bind(&control(), &ca.identity(store(2))).expect("b");
    let (found, accepted) = serving(&b, a.find(b.local_addr(), SOON)).await;
    let found = found.expect("found");
    assert_eq!(found.peer(), store(2));
    assert!(found.dialled());
    let inward = match accepted.into_iter().next() {
        Some(accepted) => accepted,
        None => within(b.accept()).await.expect("accepted"),
    };
    assert!(matches!(inward, Accepted::Peer(p) if p.peer() == store(1)));
}

#[tokio::test]
async fn strangers_and_this_node_itself_are_not_found() {
    let ca = cluster();
    let a = Endpoint::bind(&control(), &ca.identity(store(1))).expect("a");
    let stranger = Endpoint::bind(&control(), &cluster().identity(store(2))).expect("stranger");
    let (found, _) = serving(&stranger, a.find(stranger.local_addr(), SOON)).await;
    let refused = matches!(found, Err(QuicError::Seek { reason: DialFailure::Untrusted(_), .. }));
    assert!(refused, "{found:?}");
    let nameless = ca.identity_for_names(&["localhost".to_owned()]);
    let clock: Arc<dyn Clock> = clock(NOW);
    let server = server_side(&control(), &nameless, &clock).expect("a server");
    let server = quinn::Endpoint::server(server, loopback()).expect("binds");
    let at = server.local_addr().expect("bound");
    let found = within(async {
        tokio::select! {
            found = a.find(at, SOON) => found,
            () = async { while let Some(i) = server.accept().await { drop(i.await); } } => panic!(),
        }
    })
    .await;
    let refused = matches!(found, Err(QuicError::Seek { reason: DialFailure::Untrusted(_), .. }));
    assert!(refused, "{found:?}");
    let (found, _) = serving(&a, a.find(a.local_addr(), SOON)).await;
    let refused = matches!(found, Err(QuicError::Seek { reason: DialFailure::Itself, .. }));
    assert!(refused, "{found:?}");
}

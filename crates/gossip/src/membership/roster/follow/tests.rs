//! Rosters followed: from whom they are pulled, and when a region counts as lost.

use super::*;

fn store(byte: u8) -> StoreId {
    StoreId::from_bytes([byte; 16])
}

fn name(text: &str) -> Name {
    Name::new(text).expect("name")
}

fn at(ms: u64) -> BootTime {
    BootTime::from_millis(ms)
}

fn rosters(me: u8, region: &str) -> Rosters {
    Rosters::new(store(me), name(region), 1 << 16, Duration::from_secs(1200))
}

fn offer(server: u8, region: &str, digest: u8, reach: Reach, direct: bool) -> Offer {
    let notice = Notice { region: RegionId::of(&name(region)), digest: [digest; 8], reach };
    Offer { server: store(server), notice, direct }
}

fn lines(count: u8) -> Lines {
    let line = Arc::new(Line::new(1, Liveness::Live, "f".to_owned()));
    (100..100 + count).map(|n| (store(n), Arc::clone(&line))).collect()
}

/// A server of region "us" with this many lines.
fn server(count: u8) -> Rosters {
    let mut server = rosters(50, "us");
    server.set_own(lines(count));
    server
}

fn offer_of(server: &Rosters) -> Offer {
    let notice = Notice {
        region: RegionId::of(&server.region),
        digest: server.own_digest(),
        reach: Reach::Heard,
    };
    Offer { server: server.me, notice, direct: true }
}

fn pulls(asks: &[Ask]) -> Vec<(StoreId, Vec<Want>)> {
    let pull = |ask: &Ask| match ask {
        Ask::Pull(server, wants) => Some((*server, wants.clone())),
        Ask::Probe(..) => None,
    };
    asks.iter().filter_map(pull).collect()
}

fn probes(asks: &[Ask]) -> usize {
    asks.iter().filter(|ask| matches!(ask, Ask::Probe(..))).count()
}

/// Pulls until nothing lacks.
fn sync(client: &mut Rosters, server: &Rosters, now: BootTime) {
    let asks = client.step(now, true, &[offer_of(server)]);
    for (from, wants) in pulls(&asks) {
        client.pulled(now, from, Some(&server.parts(&wants)));
    }
}

fn reachable(rosters: &Rosters) -> Option<bool> {
    rosters.others().next().map(|(_, reachable, _)| reachable)
}

#[test]
fn what_lacks_is_pulled_once_and_then_as_a_delta() {
    let mut server = server(3);
    let mut client = rosters(1, "eu");
    let first = client.step(at(0), true, &[offer_of(&server)]);
    let [(from, wants)] = &pulls(&first)[..] else { panic!("{first:?}") };
    assert_eq!((*from, wants[0].since), (store(50), None));
    assert_eq!(client.step(at(10), true, &[offer_of(&server)]), [], "it is under way");
    client.pulled(at(20), store(50), Some(&server.parts(wants)));
    assert_eq!(client.others().next().expect("one").2, server.own.lines());
    assert_eq!(client.step(at(1000), true, &[offer_of(&server)]), [], "nothing lacks");
    server.set_own(lines(4));
    let asks = client.step(at(2000), true, &[offer_of(&server)]);
    let wants = &pulls(&asks)[0].1;
    assert!(wants[0].since.is_some());
    let parts = server.parts(wants);
    assert_eq!(parts[0].lines.len(), 1, "only what changed");
    client.pulled(at(2001), store(50), Some(&parts));
    server.set_own(lines(5));
    let soon = client.step(at(2100), true, &[offer_of(&server)]);
    assert_eq!(soon, [], "not so soon after the last");
    assert_eq!(pulls(&client.step(at(2400), true, &[offer_of(&server)])).len(), 1);
}

#[test]
fn a_server_that_fails_rests_and_another_is_asked() {
    let mut client = rosters(1, "eu");
    let offers = [offer(50, "us", 1, Reach::Heard, true), offer(51, "us", 1, Reach::Heard, true)];
    let first = pulls(&client.step(at(0), true, &offers))[0].0;
    client.pulled(at(1), first, None);
    let second = pulls(&client.step(at(400), true, &offers))[0].0;
    assert_ne!(first, second);
    client.pulled(at(401), second, Some(&[]));
    assert_eq!(pulls(&client.step(at(800), true, &offers)), [], "both rest");
    assert_eq!(pulls(&client.step(at(4000), true, &offers))[0].0, first);
}

#[test]
fn parts_that_nobody_asked_for_or_that_are_wrong_change_nothing() {
    let server = server(3);
    let mut client = rosters(1, "eu");
    let wants = [Want { region: RegionId::of(&name("us")), since: None }];
    client.pulled(at(0), store(50), Some(&server.parts(&wants)));
    assert_eq!(client.others().count(), 0, "not asked for");
    client.step(at(0), true, &[offer_of(&server)]);
    let mut parts = server.parts(&wants);
    parts[0].lines.pop();
    client.pulled(at(1), store(50), Some(&parts));
    assert!(client.others().next().expect("named").2.is_empty(), "its digest is wrong");
    sync(&mut client, &server, at(5000));
    assert_eq!(client.others().next().expect("one").2.len(), 3);
}

#[test]
fn a_region_whose_bridges_fall_silent_is_asked_before_it_is_lost() {
    let server = server(5);
    let mut client = rosters(1, "eu");
    sync(&mut client, &server, at(0));
    client.step(at(1000), true, &[offer_of(&server)]);
    let mut asked = 0;
    for ms in (1250..4000).step_by(250) {
        asked += probes(&client.step(at(ms), true, &[]));
        assert_eq!(reachable(&client), Some(true), "at {ms}");
    }
    assert_eq!(asked, 6, "two a second");
    client.answered(at(4000), RegionId::of(&name("us")));
    client.step(at(6900), true, &[]);
    assert_eq!(reachable(&client), Some(true), "someone answered");
    client.step(at(7100), true, &[]);
    assert_eq!(reachable(&client), Some(false), "nobody does any more");
    assert!(probes(&client.step(at(9000), true, &[])) > 0, "and is still asked");
    client.answered(at(9100), RegionId::of(&name("us")));
    assert_eq!(reachable(&client), Some(true), "until one answers");
    client.step(at(1_300_000), true, &[]);
    assert_eq!(client.others().count(), 0, "what is long lost is forgotten");
}

#[test]
fn who_is_no_bridge_believes_the_bridges_of_its_region() {
    let server = server(2);
    let mut client = rosters(1, "eu");
    let told = |reach| offer(7, "us", 9, reach, false);
    let relayed = Offer { direct: false, ..offer_of(&server) };
    let asks = client.step(at(0), false, &[relayed]);
    let (from, wants) = &pulls(&asks)[0];
    client.pulled(at(1), *from, Some(&server.parts(wants)));
    assert_eq!(reachable(&client), Some(true));
    let both = [told(Reach::Lost), offer(8, "us", 9, Reach::Hearsay, false)];
    client.step(at(1000), false, &both);
    assert_eq!(reachable(&client), Some(true), "one is enough");
    assert_eq!(probes(&client.step(at(1100), false, &[told(Reach::Lost)])), 0);
    assert_eq!(reachable(&client), Some(false), "all say it is lost");
    client.step(at(2000), false, &[told(Reach::Heard)]);
    assert_eq!(reachable(&client), Some(true));
    client.step(at(11_000), false, &[]);
    assert_eq!(reachable(&client), Some(true), "the bridges may be changing");
    client.step(at(12_100), false, &[]);
    assert_eq!(reachable(&client), Some(false));
}

#[test]
fn a_bridge_hands_on_what_it_sees_itself_and_pulls_nothing_anew_for_it() {
    let server = server(2);
    let mut bridge = rosters(1, "eu");
    sync(&mut bridge, &server, at(0));
    bridge.set_seen(&BTreeMap::new());
    let want = [Want { region: RegionId::of(&name("us")), since: None }];
    assert_eq!(bridge.parts(&want)[0].digest, server.own_digest());
    bridge.set_seen(&[(store(100), Liveness::Left), (store(9), Liveness::Left)].into());
    let part = &bridge.parts(&want)[0];
    assert_eq!(part.digest, bridge.notices()[0].digest);
    assert_eq!(part.lines[0].1.liveness(), Liveness::Left);
    assert_eq!(part.lines[1].1.liveness(), Liveness::Live);
    assert_eq!(bridge.step(at(5000), true, &[offer_of(&server)]), [], "it lacks nothing");
    bridge.set_seen(&BTreeMap::new());
    assert_eq!(bridge.notices()[0].digest, server.own_digest());
}

#[test]
fn two_bridges_do_not_go_on_for_ever_on_each_others_word() {
    let server = server(2);
    let (mut a, mut b) = (rosters(1, "eu"), rosters(2, "eu"));
    for client in [&mut a, &mut b] {
        sync(client, &server, at(0));
    }
    let told = |of: &Rosters| {
        let notice = of.notices()[0];
        Offer { server: of.me, notice, direct: false }
    };
    for ms in (0..30_000).step_by(250) {
        let (to_a, to_b) = (told(&b), told(&a));
        a.step(at(ms), true, &[to_a]);
        b.step(at(ms), true, &[to_b]);
    }
    assert_eq!((reachable(&a), reachable(&b)), (Some(false), Some(false)));
}

#[test]
fn the_number_of_regions_and_the_size_of_answers_are_bounded() {
    let mut client = rosters(1, "eu");
    for n in 0..100 {
        let offer = offer(50, &format!("r{n}"), 1, Reach::Heard, true);
        client.step(at(0), true, &[offer]);
    }
    assert_eq!(client.others.len(), MAX_REGIONS - 1);
    let mut big = server(0);
    let facts = "x".repeat(1000);
    let store = |n: u16| {
        let mut bytes = [0; 16];
        bytes[..2].copy_from_slice(&n.to_le_bytes());
        StoreId::from_bytes(bytes)
    };
    let line = |n: u16| (store(n), Arc::new(Line::new(1, Liveness::Live, facts.clone())));
    big.set_own((0..700).map(line).collect());
    let want = Want { region: RegionId::of(&name("us")), since: None };
    let parts = big.parts(&[want.clone(), want.clone(), want]);
    assert_eq!(parts.len(), 1, "the rest comes with the next pull");
}
